"""A derivative that is exactly zero says why, in every mode, and a derivative that is not zero says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

import chainrule as cr
from chainrule.cli import cli

INDEPENDENT, FLAT, STOPPED, CANCEL = "does not depend on", "zero almost everywhere", "no derivative flows", "cancel"
VECTOR = {"x": "n", "z": "n", "A": "n,n"}
CASES = [
    ("u = x*2; y = z + 1", INDEPENDENT),
    ("y = x*0 + z", INDEPENDENT),
    ("y = x^0 + z", INDEPENDENT),
    ("y = sign(x)*z", FLAT),
    ("y = heaviside(sin(x)) + 3", FLAT),
    ("y = rect(exp(x))^2", FLAT),
    ("y = I[x > 0]*z", FLAT),
    ("y = where(x > 0, 1, 2)", FLAT),
    ("u = heaviside(x); y = u^2 + exp(u)", FLAT),
    ("u = x*z; v = I[u > 1]; y = v + z", FLAT),
    ("y = stop_gradient(x)*z", STOPPED),
    ("u = stop_gradient(x^2); y = exp(u) + z", STOPPED),
    ("y = x - x", CANCEL),
    ("u = x^2; v = x^2; y = u - v + z", CANCEL),
    ("y = (x + z)^2 - x^2 - 2*x*z - z^2", CANCEL),
    ("y = log(exp(x)) - x", CANCEL),
    ("y = x/x", CANCEL),
    ("u = x + z; v = u - z; y = v - x", CANCEL),
]
TENSORS = [
    ("y = sum(sign(x))", FLAT),
    ("y = A @ heaviside(x)", FLAT),
    ("y = z' @ stop_gradient(x)", STOPPED),
    ("y = x' @ A @ x - x' @ A' @ x", CANCEL),
    ("y = A @ x - (x' @ A')'", CANCEL),
    ("u = A @ x; y = z*z", INDEPENDENT),
]


def used(source: str) -> dict[str, str]:
    return {name: size for name, size in VECTOR.items() if name in source}


def says(source: str, mode: str, shapes: dict[str, str]) -> str:
    """The note of the derivative by x, which is zero at a point."""
    d = cr.derive(source, wrt="x", mode=mode, shapes=shapes)
    arrays = {
        name: np.linspace(0.5, 2, 3 ** sizes.count("n")).reshape([3] * sizes.count("n"))
        for name, sizes in shapes.items()
    }
    assert not np.any(d["x"].evaluate(**({"x": 0.7, "z": 1.3} | arrays)))
    return d.notes["x"]


@pytest.mark.parametrize("mode", ["reverse", "forward", "direct", "best"])
@pytest.mark.parametrize("source, reason", CASES)
def test_a_scalar_says_why(source: str, reason: str, mode: str):
    assert reason in says(source, mode, {})


@pytest.mark.parametrize("mode", ["reverse", "forward", "direct", "best"])
@pytest.mark.parametrize("source, reason", TENSORS)
def test_a_tensor_says_why(source: str, reason: str, mode: str):
    assert reason in says(source, mode, used(source))


@pytest.mark.parametrize("source", ["y = x + heaviside(x)", "y = x*stop_gradient(x)", "y = x - 2*x", "y = relu(x)"])
@pytest.mark.parametrize("mode", ["reverse", "forward", "direct", "best"])
def test_what_is_not_zero_has_no_note(source: str, mode: str):
    d = cr.derive(source, wrt="x", mode=mode)
    assert not d.notes and not d.steps[-1].note


def test_several_obstacles_are_all_named():
    note = cr.derive("y = rect(x) + stop_gradient(x)", wrt="x").notes["x"]
    assert "zero almost everywhere (rect)" in note and "no derivative flows (stop_gradient)" in note


@pytest.mark.parametrize(
    "source, order, reason",
    [
        ("f = x' @ A @ x", 3, "d2f/dx2 does not depend on x"),
        ("f = z' @ x", 2, "df/dx does not depend on x"),
        ("f = z' @ x", 3, "df/dx does not depend on x"),
        ("f = sum(relu(x))", 2, FLAT),
        ("f = z' @ z + 0*sum(x)", 2, INDEPENDENT),
    ],
)
def test_higher_orders_say_why(source: str, order: int, reason: str):
    shapes = used(source)
    d = cr.derive(source, wrt="x", shapes=shapes, order=order)
    assert reason in d.notes["x"] and reason in str(d)


def test_one_variable_among_many():
    d = cr.derive("y = w*sign(x) + stop_gradient(v) + w", wrt="w, x, v")
    assert set(d.notes) == {"x", "v"} and d["w"].text == "1 + sign(x)"
    assert FLAT in d.notes["x"] and STOPPED in d.notes["v"]


def test_the_reason_is_in_the_data_and_on_the_command_line():
    d = cr.derive("y = heaviside(x)", wrt="x")
    assert d.to_dict()["notes"] == d.notes and d.to_dict()["steps"][-1]["note"] == d.notes["x"]
    for arguments in ([], ["--json"], ["--mode", "direct"], ["--mode", "forward"]):
        shown = CliRunner().invoke(cli, ["derive", "y = heaviside(x)", "--wrt", "x", *arguments])
        assert shown.exit_code == 0 and FLAT in shown.output
