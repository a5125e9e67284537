"""Multiplications and bytes."""

from __future__ import annotations

import pytest

from chainrule.frontends.formula import parse
from chainrule.interpreters.cost import multiplications, nbytes
from chainrule.ir import OPS, Dim, TensorType, apply, variable
from chainrule.ops.contraction import einsum

m, n, k = Dim("m"), Dim("n"), Dim("k")
SHAPES = {"A": "m,n", "B": "n,k", "x": "n", "y": "m"}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("A @ B", m * n * k),
        ("A @ x", m * n),
        ("x' @ x", n),
        ("y @ x'", m * n),
        ("A @ B @ ones(k)", m * n * k + m * k),
        ("y' @ A @ x", m * n + 0 * m),
        ("A'", 0),
        ("sum(A)", 0),
        ("x + x", 0),
        ("x * x", n),
        ("exp(x)", n),
        ("relu(x)", 0),
        ("x[1:]", 0),
    ],
)
def test_multiplications(source: str, expected):
    node = parse(source, SHAPES).outputs[0]
    if source == "y' @ A @ x":
        assert multiplications([node]) == m * n + n, "y' A first, then its product with x"
    else:
        assert multiplications([node]) == expected


def test_a_product_of_three_is_counted_in_the_cheapest_order():
    a, b, c = (variable(name, TensorType(s)) for name, s in (("a", (100, 2)), ("b", (2, 100)), ("c", (100, 3))))
    assert multiplications([einsum("ij,jk,kl->il", a, b, c)]) == 2 * 100 * 3 + 100 * 2 * 3


def test_shared_parts_are_counted_once():
    f = parse("exp(x)", SHAPES).outputs[0]
    assert multiplications([f + f, f]) == n


def test_nodes_at_a_stop_are_free():
    f = parse("exp(x)", SHAPES).outputs[0]
    assert multiplications([f * f], stop=lambda node: node is f) == n


def test_a_composite_without_a_cost_is_counted_by_its_expansion():
    x = variable("x", TensorType((4, 5)))
    mean = apply(OPS["mean"], x, axes=(1,), keepdims=False)
    assert multiplications([mean]) == 4


def test_bytes_of_distinct_values():
    x = variable("x", TensorType((3, 4), "float32"))
    assert nbytes([x, x, x + x]) == 96
    assert nbytes([variable("v", TensorType((n,), "float64"))]) == 8 * n
