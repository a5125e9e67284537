"""Derivatives of tensors with diagonals, choices, solves and slices: every mode and layout against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr

RNG = np.random.default_rng(0)
SHAPES = {"x": "3", "y": "3", "A": "3,3", "B": "3,3", "s": ""}
VALUES: dict[str, Any] = {
    "x": RNG.standard_normal(3),
    "y": RNG.standard_normal(3),
    "A": RNG.standard_normal((3, 3)) + 3 * np.eye(3),
    "B": RNG.standard_normal((3, 3)),
    "s": np.array(0.7),
}
CASES = [
    ("diag(s*x)", "s"),
    ("diag(B @ x)", "x"),
    ("diag(softmax(y))", "y"),
    ("eye(3)*(B @ x)", "x"),
    ("diag(log_softmax(x))", "x"),
    ("diag(sum(A, 1))", "A"),
    ("atan(diag(y)) - tanh(B)'", "y"),
    ("diag(y)^2 + 1/(2 + diag(y)^2)", "y"),
    ("solve(A, y) @ x'", "y"),
    ("diag(solve(A, y))", "y"),
    ("outer(erf(y), solve(A, x))", "x"),
    ("where(s > 0, s^2, s)", "s"),
    ("where(x > 0, x^2, s)", "s"),
    ("inv(A) @ x", "A"),
    ("A[0:2, :] @ x", "A"),
    ("tr(A @ B)*x", "A"),
    ("diag(A)*x", "A"),
    ("A*A'", "A"),
    ("max(A, 1)", "A"),
    ("A @ A", "A"),
    ("x[:, None] - x[None, :]", "x"),
    ("reshape(A @ B, 9)", "B"),
    ("kron(A, B)", "B"),
    ("logdet(A)*A", "A"),
]


def differences(formula: str, wrt: str) -> tuple[np.ndarray, dict[str, Any]]:
    """dF/dX by central differences, X.shape + F.shape, and the values it was taken at."""
    f = cr.formula(formula, shapes=_used(formula))
    at = {n.params["name"]: VALUES[n.params["name"]] for n in f.graph.inputs}
    jacobian = np.zeros(np.shape(at[wrt]) + np.shape(f.evaluate(**at)))
    for i in np.ndindex(np.shape(at[wrt])):
        moved = []
        for sign in (1, -1):
            x = at[wrt].copy()
            x[i] += sign * 1e-6
            moved.append(np.asarray(f.evaluate(**{**at, wrt: x})))
        jacobian[i] = (moved[0] - moved[1]) / 2e-6
    return jacobian, at


def _used(formula: str) -> dict[str, str]:
    return {
        k: v
        for k, v in SHAPES.items()
        if k in set(formula.replace("[", " ").replace("'", " ").translate(_SPACES).split())
    }


_SPACES = str.maketrans({c: " " for c in "()+-*/@,:;^]>"})


@pytest.mark.parametrize("layout", ["denominator", "numerator"])
@pytest.mark.parametrize("mode", ["direct", "reverse", "forward"])
@pytest.mark.parametrize(("formula", "wrt"), CASES)
def test_against_differences(formula: str, wrt: str, mode: str, layout: str):
    expected, at = differences(formula, wrt)
    rank = np.ndim(at[wrt])
    if layout == "numerator":
        expected = np.transpose(expected, (*range(rank, expected.ndim), *range(rank)))
    found = cr.derive(f"F = {formula}", wrt=wrt, shapes=_used(formula), mode=mode, layout=layout)[wrt]
    # Central differences with a step of 1e-6 are good to about 1e-9 of values of order one to ten.
    np.testing.assert_allclose(found.evaluate(**at), expected, atol=1e-6)
