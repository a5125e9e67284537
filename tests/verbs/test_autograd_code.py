"""``d.code("autograd")``: emitted files run, agree with plain autograd, and keep what a person would keep."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import chainrule as cr
from chainrule.errors import BackendError, ChainruleError
from chainrule.interpreters.residuals import choose
from chainrule.ir import OPS, TensorType, apply, variable
from tests.problems import PROBLEMS, Problem

SOFTMAX_CE = ("-sum(Y*log(softmax(Z)))", {"Y": "m,n", "Z": "m,n"})
LAYER_NORM = ("y = gamma*layer_norm(X, eps) + beta", {"X": "m,n", "gamma": "n", "beta": "n"})
RMS_NORM = ("y = gamma*X/sqrt(mean(X^2, 1) + eps)[:, None]", {"X": "m,n", "gamma": "n"})
ATTENTION = ("S = Q @ K'/sqrt(d); P = softmax(S); O = P @ V", {"Q": "m,d", "K": "n,d", "V": "n,v"})
SWIGLU = (
    "A = X @ W1; B = X @ W2; y = (A*sigmoid(A)*B) @ W3",
    {"X": "m,d", "W1": "d,h", "W2": "d,h", "W3": "h,d"},
)
WORKED = {
    "cross_entropy": SOFTMAX_CE,
    "layer_norm": LAYER_NORM,
    "rms_norm": RMS_NORM,
    "attention": ATTENTION,
    "swiglu": SWIGLU,
}


@cache
def derived(name: str) -> Any:
    formula, shapes = WORKED[name]
    return cr.derive(formula, shapes=shapes)


@cache
def source_of(name: str) -> str:
    return derived(name).code("autograd")


def emitted(name: str) -> tuple[str, dict[str, Any]]:
    """The source of a worked case, and the names that it defines."""
    source = source_of(name)
    names: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(source, "emitted.py", "exec"), names)
    return source, names


def saved(source: str) -> list[str]:
    """The arguments of ``save_for_backward``."""
    found = re.search(r"save_for_backward\((.*)\)", source)
    assert found is not None
    return found[1].split(", ")


def leaves(names: dict[str, Any]) -> list[torch.Tensor]:
    return [x.clone().requires_grad_() for x in names["example"]()]


# ---- the worked cases --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WORKED)
def test_the_check_of_a_worked_case_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, names = emitted(name)
    names["check"]()
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.parametrize("name", WORKED)
def test_the_backward_pass_can_be_differentiated(name: str) -> None:
    source, names = emitted(name)
    assert "once_differentiable" not in source
    # Second differences of a first derivative: twice the default step's error.
    assert torch.autograd.gradgradcheck(names["formula"], leaves(names), atol=1e-4, rtol=1e-3)


SECOND = {
    "mean((sigmoid(X @ w) - y)^2)": {"X": "m,n", "w": "n", "y": "m"},  # y is also what an output is called
    "inv(X) @ b + inv(X)' @ c": {"X": "n,n", "b": "n", "c": "n"},  # gradients that others are made of
}


@pytest.mark.parametrize("formula", SECOND)
def test_second_derivatives_through_what_is_kept(formula: str) -> None:
    names: dict[str, Any] = {"__name__": "emitted"}
    exec(cr.derive(formula, shapes=SECOND[formula]).code("autograd"), names)
    assert torch.autograd.gradgradcheck(names["formula"], leaves(names), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", WORKED)
def test_it_can_be_mapped_over_a_batch(name: str) -> None:
    _, names = emitted(name)
    example = names["example"]()
    batch = [torch.stack([x, x + 0.1, 2 * x]) for x in example]

    def gradients(function: Callable[..., Any]) -> Any:
        return torch.func.grad(lambda *xs: function(*xs).sin().sum(), argnums=tuple(range(len(example))))

    found = torch.func.vmap(gradients(names["formula"]))(*batch)
    for k in range(3):
        expected = gradients(names["reference"])(*(x[k] for x in batch))
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f[k], e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", WORKED)
def test_transposed_inputs_and_half_precision(name: str) -> None:
    _, names = emitted(name)
    example = names["example"]()
    strided = [x.mT.contiguous().mT if x.ndim == 2 else x for x in example]
    torch.testing.assert_close(names["formula"](*strided), names["formula"](*example))
    low = [x.to(torch.bfloat16).requires_grad_() for x in example]
    value = names["formula"](*low)
    value.sum().backward()
    assert value.dtype == torch.bfloat16
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in low)


def test_the_file_runs_on_its_own(tmp_path: Any) -> None:
    path = tmp_path / "attention.py"
    path.write_text(emitted("attention")[0], encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_wrong_backward_pass_is_found() -> None:
    source, _ = emitted("cross_entropy")
    wrong = source.replace("torch.sum(Y, 1)", "torch.ones_like(Y[:, 0])")  # as if the targets summed to 1
    assert wrong != source
    names: dict[str, Any] = {"__name__": "emitted"}
    exec(compile(wrong, "wrong.py", "exec"), names)
    with pytest.raises(Exception, match="mismatch"):
        names["check"]()


# ---- what is kept ------------------------------------------------------------------------------------------
def test_attention_keeps_one_number_per_row_of_scores() -> None:
    source, _ = emitted("attention")
    kept = saved(source)
    assert kept[:4] == ["Q", "K", "V", "O"]
    assert len(kept) == 5 and "logsumexp" in kept[4]
    # rowsum(P*dP) is rowsum(O*dO): no second sum over the scores.
    assert re.search(r"= torch.sum\((O \* g|g \* O), 1\)", source)
    assert "4*m bytes in float32 = 16,384" in source


def test_short_attention_keeps_its_probabilities() -> None:
    assert "P" in saved(derived("attention").code("autograd", sizes={"m": 16, "n": 16, "d": 64, "v": 64}))


def test_layer_norm_keeps_two_statistics_and_its_input() -> None:
    source, _ = emitted("layer_norm")
    kept = saved(source)
    assert sorted(kept)[:2] == ["X", "eps_plus_row_mean"] and set(kept) >= {"gamma", "row_mean"} and len(kept) == 4
    assert "8*m bytes in float32" in source


def test_matrix_products_are_kept_and_gates_computed_again() -> None:
    source, names = emitted("swiglu")
    assert set(saved(source)) == {"X", "W1", "W2", "W3", "A", "B"}
    backward = source.split("def backward")[1].split("def formula")[0]
    products = [line for line in backward.splitlines() if "@" in line and "#" in line and "_ =" not in line]
    assert all(line.count("@") == 1 for line in products)
    assert len([p for p in products if re.match(r"\s+d", p)]) >= 6
    assert names["Formula"].generate_vmap_rule


def test_the_choice_is_the_cheapest_of_all_subsets() -> None:
    """Against brute force: every subset of the forward values that the backward pass can be computed from."""
    sizes, balance = {}, 3.0
    n = TensorType((20,))
    x, w, g = variable("x", n), variable("W", TensorType((20, 20))), variable("g", n)
    product = apply(OPS["einsum"], w, x, operands=((0, 1), (1,)), result=(0,))
    middle = apply(OPS["sigmoid"], apply(OPS["exp"], product))
    y = apply(OPS["sin"], middle * x)
    back = g * apply(OPS["cos"], middle * x) * apply(OPS["exp"], product) + g * middle
    found = choose([y], [back], {g}, sizes, balance=balance)
    values = [v for v in (x, w, product, apply(OPS["exp"], product), middle, middle * x)]
    work = {product: 400.0, values[3]: 20.0, middle: 20.0, values[5]: 20.0}

    def cost(kept: set[Any]) -> float:
        total = sum(balance * 4 * (400 if v is w else 20) * (0.5 if v in (x, w) else 1) for v in kept)
        again: set[Any] = set()
        stack = [values[5], values[3], middle]
        while stack:
            v = stack.pop()
            if v in kept or v in again:
                continue
            if v in (x, w):
                return float("inf")
            again.add(v)
            stack += v.inputs
        return total + sum(work[v] for v in again)

    subsets = [{v for k, v in enumerate(values) if bits >> k & 1} for bits in range(2 ** len(values))]
    best = min(map(cost, subsets))
    assert cost(set(found.kept)) == pytest.approx(best)


# ---- arguments ---------------------------------------------------------------------------------------------
def test_only_what_was_asked_for_has_a_gradient() -> None:
    source = cr.derive(*SWIGLU[:1], shapes=SWIGLU[1], wrt="W1, X").code("autograd")
    assert "return dX, dW1, None, None" in source
    ast.parse(source)


def test_a_cotangent_changes_nothing_and_scalars_may_be_numbers() -> None:
    formula, shapes = LAYER_NORM
    names: dict[str, Any] = {"__name__": "emitted"}
    exec(cr.derive(formula, shapes=shapes, cotangent="g").code("autograd", name="norm_of_rows"), names)
    x = torch.randn(4, 8)
    expected = torch.nn.functional.layer_norm(x, (8,), eps=1e-5)
    order = [p for p in names["norm_of_rows"].__code__.co_varnames[:4]]
    given = {"gamma": torch.ones(8), "X": x, "eps": 1e-5, "beta": torch.zeros(8)}
    torch.testing.assert_close(names["norm_of_rows"](*(given[k] for k in order)), expected)
    assert issubclass(names["NormOfRows"], torch.autograd.Function)


def test_refusals_say_what_to_do() -> None:
    d = cr.derive("h = tanh(W @ x); l = sum(h^2)", shapes={"W": "m,n", "x": "n"}, wrt="h")
    with pytest.raises(ChainruleError, match="computed from"):
        d.code("autograd")
    with pytest.raises(ChainruleError, match="no dimension"):
        cr.derive("sum(x)", shapes={"x": "n"}).code("autograd", sizes={"k": 3})
    with pytest.raises(BackendError):
        cr.derive("l(f)", wrt="f").code("autograd")


def test_kinks_are_said() -> None:
    source = cr.derive("sum(relu(W @ x))", shapes={"W": "m,n", "x": "n"}).code("autograd")
    assert "the derivative of relu at 0 is taken as 0" in source


# ---- all problems ------------------------------------------------------------------------------------------
FEW = ("S12", "V10", "V14", "V32", "M08", "T21")


def _holds(problem: Problem) -> None:
    names: dict[str, Any] = {"__name__": "emitted"}
    source = cr.derive(problem.formula, shapes=problem.shapes).code("autograd")
    exec(compile(source, f"{problem.id}.py", "exec"), names)
    names["check"]()


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.id in FEW], ids=lambda p: p.id)
def test_emitted_files_check_themselves(problem: Problem) -> None:
    _holds(problem)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.id not in FEW], ids=lambda p: p.id)
def test_every_emitted_file_checks_itself(problem: Problem) -> None:
    _holds(problem)
