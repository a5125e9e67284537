"""Emitted source: it runs on its own, its own check passes, and that check can fail.

The numbers are held against central differences by the emitted file itself, and against the reference evaluation here.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import chainrule as cr
from benchmarks.derive import derive
from chainrule.errors import BackendError, ChainruleError, ShapeError
from tests.problems import PROBLEMS, Problem

BY_ID = {p.id: p for p in PROBLEMS}
# One of each kind: exponentials, solves, determinants, choices, convolutions, higher tensors, no derivative at all.
SUBSET = ["S10", "V05", "V09", "V11", "V14", "V22", "V30", "V40", "M10", "M11", "M21", "M28", "M33", "M54", "T01", "T13", "T21", "T24"]  # fmt: skip
LEAST_SQUARES = {"X": "m,n", "w": "n", "y": "m"}


def run(source: str) -> dict[str, Any]:
    """The namespace of a file after its check has run."""
    namespace: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(source, "<emitted>", "exec"), namespace)
    namespace["check"]()
    return namespace


def body(source: str, name: str) -> str:
    """The lines of one function without its docstring and the reading of sizes."""
    text = source.split(f"def {name}(", 1)[1].split("\n\n", 1)[0]
    return "\n".join(line.split("#")[0].strip() for line in text.splitlines()[2:] if "_shape(" not in line)


# ---- every problem -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.id)
def test_numpy_checks_itself(problem: Problem, capsys):
    run(derive(problem).code("numpy"))
    assert capsys.readouterr().out.startswith("ok: ")


@pytest.mark.parametrize("id", SUBSET)
def test_torch_checks_itself(id: str, capsys):
    run(derive(BY_ID[id]).code("torch"))
    assert capsys.readouterr().out.startswith("ok: ")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["torch", "jax"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.id)
def test_other_languages_check_themselves(problem: Problem, language: str, capsys):
    if importlib.util.find_spec(language) is None:
        pytest.skip(f"{language} is not installed")
    run(derive(problem).code(language))
    assert capsys.readouterr().out.startswith("ok: ")


@pytest.mark.parametrize("id, language", [("V05", "numpy"), ("M33", "numpy"), ("V40", "torch")])
def test_a_file_runs_on_its_own(id: str, language: str, tmp_path):
    path = tmp_path / "emitted.py"
    path.write_text(derive(BY_ID[id]).code(language), encoding="utf-8")
    # -I: nothing of this project is importable, only what is installed
    done = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: ")


@pytest.mark.parametrize("kind", ["gradient", "hessian", "hessian_vector_product"])
def test_the_check_can_fail(kind: str, tmp_path):
    source = derive(BY_ID["M51"]).code("numpy")
    start = source.index(f"def {kind}(")
    changed = source[:start] + re.sub(r"return (.*)", r"return 1.0001 * (\1)", source[start:], count=1)
    path = tmp_path / "emitted.py"
    path.write_text(changed, encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "differs from finite differences" in done.stderr


def test_the_check_can_fail_for_jacobians():
    source = derive(BY_ID["V18"]).code("numpy")
    for kind in ("jacobian", "vjp"):
        start = source.index(f"def {kind}(")
        changed = source[:start] + re.sub(r"return (.*)", r"return -(\1)", source[start:], count=1)
        with pytest.raises(AssertionError, match="differs from finite differences"):
            run(changed)


# ---- how it is written -------------------------------------------------------------------------------------
def test_a_function_reads_like_its_formula():
    source = cr.derive("norm(X @ w - y)^2", shapes=LEAST_SQUARES, wrt="w").code("numpy")
    assert body(source, "gradient") == "t0 = X @ w\nt1 = X.T @ (t0 - y)\nreturn 2 * t1"


@pytest.mark.parametrize(
    "formula, shapes, function, wanted, unwanted",
    [
        ("y' @ inv(K) @ y", {"y": "n", "K": "n,n"}, "gradient", "np.linalg.solve", "inv("),
        ("log(abs(det(X)))", {"X": "n,n"}, "value", "slogdet", "np.linalg.det"),
        ("log(sum(exp(x)))", {"x": "n"}, "value", "_logsumexp(x, 0)", "np.exp"),
        ("log(1 + exp(x))", {}, "value", "np.logaddexp(x, 0.0)", "np.exp"),
        ("log(softmax(x))' @ c", {"x": "n", "c": "n"}, "value", "_log_softmax(x, 0)", "np.log("),
        ("exp(x)/(1 + exp(x))", {}, "value", "_sigmoid(x)", "np.exp"),
        ("exp(x)/sum(exp(x))", {"x": "n"}, "value", "_softmax(x, 0)", "np.exp"),
        ("A @ B @ C @ x", {"A": "n,n", "B": "n,n", "C": "n,n", "x": "n"}, "value", "C @ x", "A @ B"),
    ],
)
def test_stable_and_cheap_forms(formula: str, shapes: dict, function: str, wanted: str, unwanted: str):
    written = body(cr.derive(formula, shapes=shapes, wrt="all").code("numpy"), function)
    assert wanted in written and unwanted not in written


@pytest.mark.parametrize("language", ["numpy", "torch"])
def test_points_are_drawn_where_the_formula_is_defined(language: str, capsys):
    namespace = run(cr.derive("asin(x)*acos(y)*sqrt(z)*log(det(S))", shapes={"S": "n,n"}, wrt="all").code(language))
    for seed in range(20):
        namespace["check"](seed)


@pytest.mark.parametrize("language", ["numpy", "torch"])
def test_nothing_overflows_far_from_zero(language: str):
    d = cr.derive("sum(log(1 + exp(x))) + log(sum(exp(x))) + sum(sigmoid(x))", shapes={"x": "n"}, wrt="x")
    f = d.function(language)
    x = np.array([-1000.0, 3.0, 1000.0])
    at = torch.tensor(x) if language == "torch" else x
    assert np.isfinite(float(f.value(at)))
    np.testing.assert_allclose(np.asarray(f(at)), [0, 1 / (1 + np.exp(-3)) * (1 + 1 / (1 + np.exp(3))), 2], atol=1e-12)


@pytest.mark.parametrize(
    "formula, shapes",
    [
        ("(a * x + b) / (c * x + d)", {}),  # d is what the check calls a direction
        ("(value * rng + gradient) / (found^2 * rng + 1)", {}),
        ("sum(d * tanh(seed)) * value", {"d": "n", "seed": "n"}),
        ("d' @ check @ print", {"d": "n", "check": "n,n", "print": "n"}),
        ("hessian * g_of_value^2 + hessian_vector_product", {}),
        ("A @ d", {"A": "d,n", "d": "n"}),
    ],
)
@pytest.mark.parametrize("language", ["numpy", "torch", "autograd"])
def test_variables_may_be_called_as_the_names_of_the_check(formula: str, shapes: dict, language: str, capsys):
    for wrt in cr.derive(formula, shapes=shapes).wrt:
        run(cr.derive(formula, wrt=wrt, shapes=shapes).code(language))
        assert capsys.readouterr().out.startswith("ok")


@pytest.mark.parametrize("formula", ["a' @ inv(X' @ X) @ b", "logdet(X @ X')", "v' @ X @ inv(X' @ X) @ b"])
def test_the_check_of_a_function_finds_sizes_at_which_the_formula_is_defined(formula: str, capsys):
    shapes = {"X": "m,n", "a": "n", "b": "n", "v": "m"}
    used = {name: shape for name, shape in shapes.items() if re.search(rf"\b{name}\b", formula)}
    run(cr.derive(formula, wrt="X", shapes=used).code("autograd"))
    assert capsys.readouterr().out.startswith("ok")


def test_a_size_and_a_variable_of_one_name():
    f = cr.derive("sum(G*(x @ W))*W2", shapes={"x": "W,d", "W": "d,k", "G": "W,k"}, wrt="W").function("numpy")
    rng = np.random.default_rng(0)
    x, G, W = rng.standard_normal((4, 2)), rng.standard_normal((4, 3)), rng.standard_normal((2, 3))
    np.testing.assert_allclose(f(G=G, x=x, W=W, W2=2.0), 2 * x.T @ G, rtol=1e-12)


def test_a_size_that_no_shape_tells_is_an_argument():
    f = cr.derive("x*sum(eye(k))", wrt="x").function("numpy")
    assert f(x=3.0, k=5) == 5.0
    with pytest.raises(ChainruleError, match="k"):
        f(x=3.0)


def test_names_of_the_user_cannot_break_out():
    source = cr.derive("lambda = np^2; y = lambda*torch", wrt="all").code("numpy")
    run(source)
    compile(source, "emitted", "exec")


def test_no_code_says_why():
    d = cr.derive("l(f)", wrt="f")
    with pytest.raises(BackendError, match="cannot be written in numpy"):
        d.code("numpy")
    with pytest.raises(ChainruleError, match="no code for 'fortran'"):
        d.code("fortran")


# ---- the callable ------------------------------------------------------------------------------------------
def test_function_is_the_derivative():
    d = cr.derive("norm(X @ w - y)^2", shapes=LEAST_SQUARES, wrt="w")
    rng = np.random.default_rng(1)
    X, w, y = rng.standard_normal((4, 3)), rng.standard_normal(3), rng.standard_normal(4)
    f = d.function("numpy")
    assert f.names == ("X", "w", "y") and "def gradient(X, w, y):" in f.source
    np.testing.assert_allclose(f(X, w, y=y), d["w"].evaluate(X=X, w=w, y=y), rtol=1e-12)
    np.testing.assert_allclose(f.hessian(X, w, y), 2 * X.T @ X, rtol=1e-12)
    np.testing.assert_allclose(f.hessian_vector_product(X, w, y, w), 2 * X.T @ X @ w, rtol=1e-12)


def test_function_in_torch_keeps_dtype_and_gradients_agree_with_autograd():
    d = cr.derive("sum(log(1 + exp(-y*(X @ w)))) + sum(eye(2))*norm(w)^2", shapes=LEAST_SQUARES, wrt="w, X")
    f = d.function()
    generator = torch.Generator().manual_seed(0)
    X, y, w = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4, 3), (4,), (3,)))
    X.requires_grad_(), w.requires_grad_()
    loss = torch.log(1 + torch.exp(-y * (X @ w))).sum() + 2 * (w**2).sum()
    for found, expected in zip(f(X=X, w=w, y=y), torch.autograd.grad(loss, (w, X)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(g.dtype == torch.float32 for g in f(X=X.float(), w=w.float(), y=y.float()))


def test_function_names_the_argument_that_does_not_fit():
    f = cr.derive("norm(X @ w - y)^2", shapes=LEAST_SQUARES, wrt="w").function("numpy")
    with pytest.raises(ShapeError, match="'w' has a shape that does not fit"):
        f(X=np.ones((4, 3)), w=np.ones(4), y=np.ones(4))
    with pytest.raises(ChainruleError, match="each of X, w, y once"):
        f(np.ones((4, 3)), w=np.ones(3))
    with pytest.raises(ValueError, match="w has shape \\(4,\\), required \\(3\\)"):  # the file alone says it too
        run(f.source)["gradient"](np.ones((4, 3)), np.ones(4), np.ones(4))


def test_second_and_third_order_and_cotangents():
    d = cr.derive("sum(x^4)", shapes={"x": "n"}, wrt="x", order=3)
    x = np.array([1.0, -2.0])
    f = d.function("numpy")
    run(f.source)
    third = np.zeros((2, 2, 2))
    third[0, 0, 0], third[1, 1, 1] = 24.0, -48.0
    np.testing.assert_allclose(f(x), third, rtol=1e-12)
    f = cr.derive("A @ x", shapes={"A": "m,n", "x": "n"}, wrt="A", cotangent="g").function("numpy")
    run(f.source)
    np.testing.assert_allclose(f(A=np.ones((2, 2)), x=x, g=[3.0, 5.0]), np.outer([3.0, 5.0], x), rtol=1e-12)


def test_a_named_quantity_is_cut_free():
    f = cr.derive("u = A @ x; y = u' @ u", shapes={"A": "m,n", "x": "n"}, wrt="u").function("numpy")
    run(f.source)
    np.testing.assert_allclose(f(u=[1.0, 2.0]), [2.0, 4.0], rtol=1e-12)
    with pytest.raises(ChainruleError, match="u alone"):
        cr.derive("u = A @ x; y = u' @ u", shapes={"A": "m,n", "x": "n"}, wrt="u, x").code("numpy")


# ---- models ------------------------------------------------------------------------------------------------
def test_a_model_in_torch():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    x, y = torch.randn((5, 3), generator=generator), torch.tensor([0, 1, 1, 0, 1])
    d = cr.derive(model, (x, y), torch.nn.functional.cross_entropy)
    f = d.function("torch")
    run(f.source)
    values = {"x": x, "y": y} | {
        f"{kind}_{layer}": getattr(model[layer], kind) for layer in (0, 2) for kind in ("weight", "bias")
    }
    loss = torch.nn.functional.cross_entropy(model(x), y)
    expected = dict(zip(values, torch.autograd.grad(loss, list(values.values())[2:]), strict=False))
    expected = dict(zip([n for n in values if n not in ("x", "y")], expected.values(), strict=True))
    for name, found in zip(d.wrt, f(**values), strict=True):
        if name != "x":
            torch.testing.assert_close(found, expected[name])
