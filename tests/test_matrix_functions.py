"""Norms by singular values, Cholesky factors and stacks of matrices in formulas, held against torch's autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import chainrule as cr
from chainrule.backends.torch import compile
from chainrule.frontends.formula import parse
from chainrule.interpreters.differentiate import gradient
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.text import text
from chainrule.ir import Graph

SIZES = {"m": 4, "n": 3, "k": 2, "b": 2}


def _symmetric(x):
    return (x + x.mT) / 2


def _factor(x):
    return torch.linalg.cholesky(_symmetric(x))


def _nuclear(x):
    return torch.linalg.svdvals(x).sum(-1)


def _spectral(x):
    return torch.linalg.matrix_norm(x, 2)


# formula, variable, shapes, the same in torch, the answer where it is short
PROBLEMS = {
    "prox of the nuclear norm": (
        "norm(X - Y)^2/2 + 0.7*nuclear_norm(X)",
        {"X": "m,n", "Y": "m,n"},
        lambda X, Y: ((X - Y) ** 2).sum() / 2 + 0.7 * _nuclear(X),
        "X + 0.7 * polar(X) - Y",
    ),
    "nuclear norm of a wide product": (
        "nuclear_norm(A @ X)",
        {"X": "m,n", "A": "k,m"},
        lambda X, A: _nuclear(A @ X),
        "A' @ polar(A @ X)",
    ),
    "spectral regularisation": (
        "spectral_norm(W)^2/2 + sum((W @ x - y)^2)",
        {"W": "m,n", "x": "n", "y": "m"},
        lambda W, x, y: _spectral(W) ** 2 / 2 + ((W @ x - y) ** 2).sum(),
        "2 * (W @ x - y) @ x' + spectral_norm(W) * top_singular(W)",
    ),
    "stack": (
        "sum(nuclear_norm(X)^2)",
        {"X": "b,m,n"},
        lambda X: (_nuclear(X) ** 2).sum(),
        "2 * nuclear_norm(X)[:, None, None] * polar(X)",
    ),
    "log determinant": (
        "2*sum(log(diag(cholesky(S))))",
        {"S": "n,n"},
        lambda S: torch.logdet(_symmetric(S)),
        "inv((S + S') / 2)",
    ),
    "Gaussian likelihood": (
        "sum(log(diag(cholesky(S)))) + norm(solve(cholesky(S), x))^2/2",
        {"S": "n,n", "x": "n"},
        lambda S, x: torch.logdet(_symmetric(S)) / 2 + x @ torch.linalg.solve(_symmetric(S), x) / 2,
        None,
    ),
    "whitening": (
        "sum((inv(cholesky(S)) @ X)^3)",
        {"S": "n,n", "X": "n,k"},
        lambda S, X: (torch.linalg.solve(_factor(S), X) ** 3).sum(),
        None,
    ),
    "stack of factors": (
        "sum(cholesky(S)^3)",
        {"S": "b,n,n"},
        lambda S: (_factor(S) ** 3).sum(),
        None,
    ),
    "one matrix for a stack of right-hand sides": (
        "sum(solve(X, B)^2)",
        {"X": "n,n", "B": "b,n,k"},
        lambda X, B: (torch.linalg.solve(X, B) ** 2).sum(),
        None,
    ),
    "a stack of matrices for one right-hand side": (
        "sum(solve(X, B)^2)",
        {"X": "b,n,n", "B": "n"},
        lambda X, B: (torch.linalg.solve(X, B.expand(2, 3)) ** 2).sum(),
        None,
    ),
    "traces of a stack": (
        "sum(tr(X)^2 + sum(diag(X)^3, 1))",
        {"X": "b,n,n"},
        lambda X: (X.diagonal(0, 1, 2).sum(1) ** 2).sum() + (X.diagonal(0, 1, 2) ** 3).sum(),
        None,
    ),
}


def _values(shapes):
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes.items():
        sizes = tuple(SIZES[s] for s in shape.split(","))
        found[name] = rng.standard_normal(sizes)
        if len(sizes) > 1 and sizes[-1] == sizes[-2]:  # positive definite but for a part that is not symmetric
            found[name] = found[name] @ np.swapaxes(found[name], -1, -2) + np.eye(sizes[-1]) + 0.1 * found[name]
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_answer_parses_back_and_equals_autograd(name):
    formula, shapes, program, expected = PROBLEMS[name]
    (wrt, *_), values = shapes, _values(shapes)
    answer = str(cr.derive(formula, wrt=wrt, shapes=shapes).steps[-1].expression)
    if expected is not None:
        assert answer == expected
    again = parse(answer, shapes)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in values.items()}
    program(**tensors).backward()
    at = {leaf: values[leaf.params["name"]] for leaf in again.inputs}
    found = evaluate(again.outputs, at, SIZES)[0]
    # 1e-11: a chain of factorisations of matrices with condition numbers below 100
    assert np.allclose(found, tensors[wrt].grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", PROBLEMS)
def test_source_checks_itself(name):
    formula, shapes, *_ = PROBLEMS[name]
    derived = cr.derive(formula, wrt=next(iter(shapes)), shapes=shapes)
    for language in ("numpy", "autograd"):
        source = str(derived.code(language))
        exec(source, {"__name__": "__main__"})


@pytest.mark.parametrize(
    "formula, claim, right",
    [
        ("nuclear_norm(X)", "polar(X)", True),
        ("nuclear_norm(X)", "X @ inv(X' @ X)", False),
        ("spectral_norm(X)", "top_singular(X)", True),
        ("spectral_norm(X)", "X / norm(X)", False),
    ],
)
def test_claims(formula, claim, right):
    result = cr.check(formula, wrt="X", claim=claim, shapes={"X": "m,n"})
    assert ("right" in str(result).splitlines()[0] and "not" not in str(result).splitlines()[0]) == right


def test_log_determinant_by_a_factor_of_a_definite_matrix():
    result = cr.derive("2*sum(log(diag(cholesky(S))))", wrt="S", shapes={"S": "n,n"}, assume={"S": "positive definite"})
    assert str(result.steps[-1].expression) == "2 * inv(S) - diag(diag(inv(S)))"


@pytest.mark.parametrize("formula", ["nuclear_norm(X)", "spectral_norm(X)"])
def test_equal_singular_values_are_as_in_torch(formula):
    """Of full rank with equal singular values the nuclear norm is smooth; equal largest ones share the derivative."""
    graph = parse(formula, {"X": (3, 3)})
    at = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0] * 2.0
    (slope,) = gradient(graph.outputs[0], graph.inputs)
    assert slope is not None
    found = evaluate([slope], {graph.inputs[0]: at})[0]
    assert np.allclose(found, at / 2.0 if "nuclear" in formula else at / 6.0, atol=1e-14)
    (emitted,) = compile(Graph(graph.inputs, (slope,)))(torch.tensor(at))
    assert np.allclose(found, emitted.numpy(), atol=1e-14)


@pytest.mark.parametrize("formula", ["tr(X)", "diag(X)"])
def test_diagonals_of_stacks_print_as_such(formula):
    node = parse(formula, {"X": "b,n,n"}).outputs[0]
    assert text(node) == formula
    assert parse(text(node), {"X": "b,n,n"}).outputs[0] is node


@pytest.mark.parametrize(
    "formula, program",
    [
        ("norm(X)", lambda X: torch.linalg.norm(X)),
        ("sum(norm(X, 1)^3 + norm(X, 1))", lambda X: (X.norm(dim=1) ** 3 + X.norm(dim=1)).sum()),
        ("D = X[:, None] - X[None, :]; f = sum(norm(D, 2))", lambda X: (X[:, None] - X[None]).norm(dim=2).sum()),
        ("r = X - X; f = sum(X) + norm(r)", lambda X: X.sum() + torch.linalg.norm(X - X)),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_derivative_of_a_norm_at_zero_is_zero(formula, program, scale):
    """As in torch: of a whole norm, of a row of zeros, and of a distance of a point from itself however it is named."""
    at = scale * np.array([[0.3, -1.0], [0.0, 0.0], [2.0, 0.5]])
    tensor = torch.tensor(at, requires_grad=True)
    program(tensor).backward()
    derived = cr.derive(formula, wrt="X", shapes={"X": "m,n"})
    with np.errstate(all="raise"):
        for expression in (derived.steps[-1].expression, derived.steps[-1].closed_form):
            assert np.allclose(expression.evaluate(X=at), tensor.grad.numpy(), atol=1e-13)
