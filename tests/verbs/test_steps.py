"""Steps in full: the whole chain with its sizes, and the lines from the chain rule to the simplified form."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import chainrule as cr
from chainrule.cli import cli
from tests.verbs.test_derive import ACYCLIC, CHAIN, NET, NET_SHAPES, TOY

# ---- the whole chain ---------------------------------------------------------------------------------------
SIZES_7_3 = "(D_1 x 1) = (D_1 x D_1)(D_1 x D_2)(D_2 x D_2)(D_2 x D_3)(D_3 x D_3)(D_3 x D_f)(D_f x 1)"


def test_problem_7_3_sizes_as_printed():
    d = cr.derive(NET, shapes=NET_SHAPES, wrt="f0")
    assert d.steps[-1].sizes == SIZES_7_3 and SIZES_7_3 in str(d)
    (path,) = d.steps[-1].chain
    assert [f.symbol for f in path] == "dh1/df0 df1/dh1 dh2/df1 df2/dh2 dh3/df2 df3/dh3 dli/df3".split()
    assert [tuple(map(str, f.shape)) for f in path[:2]] == [("D_1", "D_1"), ("D_1", "D_2")]
    turned = cr.derive(NET, shapes=NET_SHAPES, wrt="f0", layout="numerator").steps[-1].sizes
    assert turned.startswith("(1 x D_1) = (1 x D_f)(D_f x D_3)") and turned.endswith("(D_1 x D_1)")


@pytest.mark.parametrize("wrt", CHAIN)
def test_problem_7_2_chains_as_printed(wrt: str):
    step = cr.derive(TOY, wrt=wrt).steps[-1]
    (path,) = step.chain
    order = ["f3", "h3", "f2", "h2", "f1", "h1", "f0"]
    names = [wrt, *reversed(order[: order.index(wrt)]), "l"]
    assert [f.symbol for f in path] == [f"d{b}/d{a}" for a, b in pairwise(names)]
    product = " * ".join(f"({f.expression.text})" for f in path if f.expression)
    assert cr.formula(product).equals(cr.formula(step.closed_form.text))


def test_the_chain_is_the_sum_over_paths():
    step = cr.derive(ACYCLIC, wrt="f1").steps[-1]
    assert len(step.chain) == 4
    total = " + ".join("*".join(f"({f.expression.text})" for f in path if f.expression) for path in step.chain)
    assert cr.formula(total).equals(cr.formula(step.closed_form.text))


def test_many_paths_have_no_chain():
    source = "; ".join(["f0 = exp(x)", *(f"f{k} = sin(f{k - 1})*f{k - 1} + f{max(0, k - 2)}" for k in range(1, 8))])
    step = cr.derive(source, wrt="x").steps[-1]
    assert step.chain == () and step.sizes == ""


def test_the_cotangent_is_the_last_factor():
    step = cr.derive("s = A @ x; t = exp(s)", shapes={"A": "m,n", "x": "n"}, wrt="x", cotangent="g").steps[-1]
    assert step.sizes == "(n x 1) = (n x m)(m x m)(m x 1)"
    assert [f.symbol for f in step.chain[0]] == ["ds/dx", "dt/ds", "g"]


# ---- lines -------------------------------------------------------------------------------------------------
LOSS = "l = -(1 - y)*log(1 - sig[f]) - y*log(sig[f])"
PROGRAMS: list[tuple[str, str, dict[str, str]]] = [
    (LOSS, "f", {}),
    (ACYCLIC, "x", {}),
    (TOY, "w0", {}),
    ("y = x/(1 + abs(x))", "x", {}),
    ("y = log(1 + exp(x)) - z*x", "x", {}),
    ("y = exp(x)/(1 + exp(x))", "x", {}),
    ("y = (x^2 + 1)^3/(x*z)", "x", {}),
    ("y = x*sig(x) - x", "x", {}),
    ("u = (x + z)^2; v = x^2; y = u - v - 2*x*z", "x", {}),
    ("f = (b - X @ w)'@(b - X @ w)/2", "w", {"X": "3,2", "w": "2", "b": "3"}),
    ("f = log(sum(exp(x)))", "x", {"x": "3"}),
    ("f = x' @ A @ x/(x'@x)", "x", {"x": "3", "A": "3,3"}),
    ("s = A @ x; t = tanh(s); y = sum(t*t)", "x", {"A": "2,3", "x": "3"}),
    ("m = sum(x)/3; c = x - m; v = c' @ c; y = c/sqrt(v)", "x", {"x": "3"}),
    ("h = relu(A @ x); f = B @ h; l = (f - x)' @ (f - x)", "A", {"A": "2,3", "x": "3", "B": "3,2"}),
    ("y = tr(inv(X) @ A)", "X", {"X": "3,3", "A": "3,3"}),
]


def lines_at(d: Any, mode: str, arrays: dict[str, Any]) -> Any:
    """(step, value of each of its lines but the chain rule's), each read back from its text."""
    values = d.values(**arrays) if mode != "direct" else {}
    known = arrays | {n: values[n] for n in d.program.order if n in values}
    for step in d.steps:
        found = []
        for line, rule in step.lines:
            if rule.startswith("chain rule"):
                continue
            used = {n: ",".join(map(str, np.shape(v))) for n, v in known.items() if np.shape(v)}
            tokens = set("".join(c if c.isalnum() or c == "_" else " " for c in line).split())
            e = cr.formula(line, {n: s for n, s in used.items() if n in tokens})
            assert tuple(map(int, e.shape)) == tuple(map(int, step.shape)), line
            found.append(np.asarray(e.evaluate(**{n: v for n, v in known.items() if n in tokens})))
        yield step, found


@pytest.mark.parametrize("mode", ["direct", "reverse", "forward", "best"])
@pytest.mark.parametrize("source, wrt, shapes", PROGRAMS)
def test_all_lines_are_equal_and_read_back(source: str, wrt: str, shapes: dict, mode: str):
    d = cr.derive(source, wrt=wrt, shapes=shapes, mode=mode)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        names = [i.params["name"] for i in d.program.leaves]
        arrays = {n: generator.uniform(0.2, 1.7, [int(s) for s in shapes.get(n, "").split(",") if s]) for n in names}
        for step, found in lines_at(d, mode, arrays):
            expected = step.closed_form.evaluate(**arrays)
            for value in found:
                # the same numbers in another order: the condition of inv and of differences costs a few digits
                np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["direct", "reverse"])
def test_problem_7_5_cancels_as_printed(mode: str):
    step = cr.derive(LOSS, wrt="f", mode=mode).steps[-1]
    lines = [line for line, _ in step.lines]
    assert lines[-2:] == ["sigmoid(f) * (1 - y) - y * (1 - sigmoid(f))", "sigmoid(f) - y"]
    assert [rule for _, rule in step.lines[-2:]] == [
        "cancelled within each term" if mode == "direct" else "multiplied out and cancelled",
        "multiplied out, like terms collected",
    ]
    first = step.lines[0 if mode == "direct" else 1]
    assert "1 / (1 - sigmoid(f))" in first[0] or "f1 / f3" in first[0]


def test_a_known_form_is_named():
    rules = [rule for _, rule in cr.derive("y = log(1 + exp(x))", wrt="x", mode="direct").steps[0].lines]
    assert rules[-1].endswith("known form recognised (sigmoid)")


def test_lines_are_shown_on_request_and_always_in_the_data():
    d = cr.derive(LOSS, wrt="f", mode="direct")
    assert "cancelled within each term" not in d.text() and "cancelled within each term" in d.text(lines=True)
    assert [tuple(line) for line in json.loads(json.dumps(d.to_dict()))["steps"][0]["lines"]] == list(d.steps[0].lines)
    plain, full = (CliRunner().invoke(cli, ["derive", LOSS, "--wrt", "f", *more]).output for more in ([], ["--steps"]))
    assert "(chain rule)" not in plain and "= sigmoid(f) - y   (multiplied out, like terms collected)" in full
