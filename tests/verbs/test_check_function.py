"""Claimed gradient functions: called with arrays, compared at points, failures located."""

from __future__ import annotations

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ModelError

SHAPES = {"x": "n", "A": "m,n", "b": "m"}
SQUARES = "l = sum((A @ x - b)^2)"


def check(claim, formula: str = SQUARES, wrt: str = "x", **options):
    return cr.check(formula, wrt=wrt, claim=claim, shapes=SHAPES, **options)


@pytest.mark.parametrize(
    "claim",
    [
        lambda x, A, b: 2 * A.T @ (A @ x - b),
        lambda p, q, r: 2 * p.T @ (p @ q - r),  # the order of the formula: A, x, b
        lambda **k: 2 * k["A"].T @ (k["A"] @ k["x"] - k["b"]),
        lambda *a: 2 * a[0].T @ (a[0] @ a[1] - a[2]),
        lambda x, A, b, n, scale=2: scale * A.T @ (A @ x - b) + 0 * n,
    ],
)
def test_right_functions_hold(claim):
    c = check(claim)
    assert c.holds and c.decided_by == "random points" and str(c).startswith("right: dl/dx")


@pytest.mark.parametrize(
    "claim, kind",
    [
        (lambda x, A, b: A.T @ (A @ x - b), "missing factor"),
        (lambda x, A, b: -2 * A.T @ (A @ x - b), "sign"),
        (lambda x, A, b: 2 * A.T @ A @ x, "forgotten path"),
        (lambda x, A, b: A @ x - b, "shape"),
    ],
)
def test_slips_of_functions_are_named(claim, kind: str):
    c = check(claim)
    assert not c.holds and c.slip_kind == kind, str(c)
    assert c.claim is None and c.to_dict()["claim"].startswith("<lambda>(")


def test_the_elements_that_differ_are_located():
    def claim(x, A, b):
        found = 2 * A.T @ (A @ x - b)
        found[-1] = 0
        return found

    c = check(claim)
    point = c.counterexample
    size = len(point["at"]["x"])
    assert point["where"] == f"[{size - 1}], 1 of {size}" and f"[{size - 1}]" in str(c)
    assert point["first"][-1] == 0 != point["second"][-1] and point["first"][:-1] == point["second"][:-1]


def test_not_a_number_is_no_agreement():
    assert not check(lambda x, A, b: x * np.nan).holds


def test_float32_is_compared_as_such():
    assert check(lambda x, A, b: (2 * A.T @ (A @ x - b)).astype(np.float32)).holds
    assert not check(lambda x, A, b: (2.02 * A.T @ (A @ x - b)).astype(np.float32)).holds


def test_torch_functions():
    torch = pytest.importorskip("torch")

    def by_autograd(x, A, b):
        x = x.clone().requires_grad_()
        torch.square(A @ x - b).sum().backward()
        return x.grad

    assert check(by_autograd).holds
    assert check(lambda x, A, b: torch.einsum("mn,m->n", A, A @ x - b)).slip_kind == "missing factor"


def test_cotangents_and_jacobians():
    def vjp(A, x, g):
        return np.outer(g, x)

    shapes = {"x": "n", "A": "m,n"}
    assert cr.check("A @ x", wrt="A", claim=vjp, shapes=shapes, cotangent="g").holds
    assert cr.check("A @ x", wrt="x", claim=lambda A, x: A.T, shapes=shapes).holds
    assert not cr.check("A @ x", wrt="x", claim=lambda A, x: A, shapes=shapes).holds


@pytest.mark.parametrize("claim", [lambda q: q, lambda x, A, b: x.missing(), lambda x, A, b: "text", lambda: 1])
def test_what_cannot_be_called_is_refused(claim):
    with pytest.raises(ModelError):
        check(claim)
