"""Jacobians as one tensor: both layouts, movement, and no matrix form where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.frontends.formula import parse
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.linearize import jacobian
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Graph, check
from tests.op_contract import central, close

SIZES = {"n": 3, "m": 2}
SHAPES = {"x": "n", "z": "n", "v": "m", "A": "n,n", "B": "m,n", "X": "m,n", "N": "3,2", "u": "6"}
RNG = np.random.default_rng(5)
VALUES = {
    "x": RNG.standard_normal(3), "z": RNG.standard_normal(3), "v": RNG.standard_normal(2), "a": np.array(0.7),
    "A": RNG.standard_normal((3, 3)) + 3 * np.eye(3), "B": RNG.standard_normal((2, 3)), "X": RNG.standard_normal((2, 3)),
    "N": RNG.standard_normal((3, 2)), "u": RNG.standard_normal(6),
}  # fmt: skip

CASES = [
    ("A @ x", "x"), ("B @ x + v", "x"), ("B @ x + v", "B"), ("B @ x + v", "v"), ("exp(A @ x)", "x"),
    ("A @ (x*x)", "x"), ("x @ x'", "x"), ("x @ z'", "z"), ("softmax(z)", "z"), ("log_softmax(A @ z)", "z"),
    ("softmax(B, 1)", "B"), ("logsumexp(B, 1)", "B"), ("layer_norm(x)", "x"), ("relu(B @ x)", "x"),
    ("B @ A @ x", "A"), ("A @ X'", "X"), ("X @ A @ X'", "X"), ("inv(A)", "A"), ("solve(A, x)", "A"),
    ("solve(A, x)", "x"), ("solve(A, x*x)", "x"), ("det(A) * x", "A"), ("logdet(A) * x", "x"),
    ("N[1:]", "N"), ("N[0]", "N"), ("(N * N)[1:, 0]", "N"), ("N[:, None]", "N"), ("N[::2]", "N"), ("u[1:5:2]^2", "u"),
    ("reshape(N, 6)", "N"), ("reshape(N*N, 2, 3)[0]", "N"), ("concat(x, z*x, 0)", "x"), ("concat(x, x, 0)", "x"),
    ("pad(N, 1, 0, 0, 2)", "N"), ("x * ones(m, n)", "x"), ("a * x", "a"), ("a * B", "a"), ("sum(X, 0)", "X"),
    ("mean(X, 1)", "X"), ("max(N, 0)", "N"), ("X'", "X"), ("diag(A)", "A"), ("diag(x)", "x"), ("tr(A) * x", "A"),
    ("where(x > z, x, z)", "x"), ("x^2 / sum(x)", "x"), ("kron(A, B)", "B"), ("(x' @ A @ x)*x", "x"), ("x", "x"),
]  # fmt: skip


def program(source: str, wrt: str):
    graph = parse(source, {k: v for k, v in SHAPES.items() if k in source})
    leaf = next(i for i in graph.inputs if i.params["name"] == wrt)
    return graph, leaf, {i: VALUES[i.params["name"]] for i in graph.inputs}


@pytest.mark.parametrize("source, wrt", CASES)
def test_jacobian_equals_finite_differences_in_both_layouts(source: str, wrt: str):
    graph, leaf, values = program(source, wrt)
    output = graph.outputs[0]

    def f(x):
        return evaluate([output], values | {leaf: x}, SIZES)[0]

    expected = central(f, values[leaf])  # X.shape + F.shape: the book's layout
    found = jacobian(output, leaf)
    assert found is not None and found.shape == (*leaf.shape, *output.shape)
    check(Graph(graph.inputs, (found,)))
    assert simplify(found) is found
    assert close(evaluate([found], values, SIZES)[0], expected, 1e-7)
    other = jacobian(output, leaf, "numerator")
    assert other is not None and other.shape == (*output.shape, *leaf.shape)
    moved = np.moveaxis(expected, range(leaf.type.rank), range(output.type.rank, output.type.rank + leaf.type.rank))
    assert close(evaluate([other], values, SIZES)[0], moved, 1e-7)


@pytest.mark.parametrize(
    "source, wrt, expected",
    [
        ("v + B @ x", "x", "B'"),
        ("softmax(z)", "z", "diag(softmax(z)) - softmax(z) @ softmax(z)'"),
        ("exp(A @ x)", "x", "A' @ diag(exp(A @ x))"),
        ("A @ (x*x)", "x", "2 * diag(x) @ A'"),
        ("x * z", "x", "diag(z)"),
        ("x", "x", "eye(n)"),
        ("a * x", "a", "x"),
        ("x' @ A @ x", "x", "(A + A') @ x"),
    ],
)
def test_jacobian_as_a_person_writes_it(source: str, wrt: str, expected: str):
    graph, leaf, _ = program(source, wrt)
    found = jacobian(graph.outputs[0], leaf)
    assert found is not None and text(found) == expected


@pytest.mark.parametrize("source", ["x' @ A @ x", "logsumexp(A @ x)", "sum(exp(x) * z)", "norm(A @ x)"])
def test_second_derivative(source: str):
    graph, leaf, values = program(source, "x")
    first = jacobian(graph.outputs[0], leaf)
    assert first is not None
    second = jacobian(first, leaf, "numerator")
    assert second is not None
    expected = central(lambda x: evaluate([first], values | {leaf: x}, SIZES)[0], values[leaf])
    found = evaluate([second], values, SIZES)[0]
    assert close(found, expected, 1e-7) and close(found, found.T, 1e-12)


def test_no_path_is_none():
    graph = parse("x * 2", {"x": "n"})
    assert jacobian(graph.outputs[0], parse("y").inputs[0]) is None
