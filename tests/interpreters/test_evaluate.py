"""Numbers: sizes learnt from arrays, errors that name what is missing, IEEE arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.errors import ShapeError
from chainrule.frontends.formula import parse
from chainrule.interpreters.evaluate import evaluate, evaluate_all, evaluate_graph
from chainrule.ir import OPS, Graph, TensorType, apply, variable


def test_named_sizes_are_learnt_from_the_arrays():
    graph = parse("sum(A @ x) / m + sum(ones(n))", {"A": "m,n", "x": "n"})
    (found,) = evaluate_graph(graph, np.ones((4, 3)), np.ones(3))
    assert found == 12 / 4 + 3


def test_sizes_that_no_array_says_are_asked_for():
    graph = parse("sum(ones(k)) * x")
    with pytest.raises(ShapeError, match="k has no number"):
        evaluate_graph(graph, 2.0)
    assert evaluate(graph.outputs, {graph.inputs[0]: 2.0}, {"k": 5}) == [10.0]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"A": np.ones((2, 3))}, "no value for 'x'"),
        ({"A": np.ones((2, 3)), "x": np.ones(2)}, r"value of 'x' has the wrong shape"),
        ({"A": np.ones(3), "x": np.ones(3)}, r"value of 'A' has the wrong shape"),
    ],
)
def test_missing_and_misshapen_arrays_are_named(arrays, message: str):
    graph = parse("A @ x", {"A": "m,n", "x": "n"})
    with pytest.raises(ShapeError, match=message):
        evaluate(graph.outputs, {i: arrays[i.params["name"]] for i in graph.inputs if i.params["name"] in arrays})


def test_any_node_may_be_given():
    graph = parse("f = exp(x); f^2")
    assert evaluate(graph.outputs, {graph.names["f"]: 3.0}) == [9.0]


def test_division_by_zero_and_overflow_are_ieee():
    assert evaluate_graph(parse("1/x"), 0.0) == [np.inf]
    assert np.isnan(evaluate_graph(parse("x/x"), 0.0)[0])
    assert evaluate_graph(parse("exp(x)"), 1000.0) == [np.inf]
    assert np.isnan(evaluate_graph(parse("log(x)"), -1.0)[0])


def test_the_oracle_computes_in_float64_whatever_the_type_says():
    x = variable("x", TensorType((), "float32"))
    (found,) = evaluate([x + 1e-12], {x: np.float32(1.0)})
    assert found.dtype == np.float64 and found != 1.0


def test_integers_stay_integers():
    k = variable("k", TensorType((2,), "int64"))
    (found,) = evaluate([k * 2], {k: np.array([1, 2])})
    assert np.issubdtype(found.dtype, np.integer)


def test_every_intermediate_is_at_hand():
    graph = parse("f = exp(x); g = f + 1; g^2")
    table = evaluate_all(graph.outputs, {graph.inputs[0]: 0.0})
    assert (table[graph.names["f"]], table[graph.names["g"]]) == (1.0, 2.0)


def test_shared_parts_are_computed_once(monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    calls = []
    counting = replace(OPS["sin"], name="counting", value=lambda x: calls.append(1) or np.sin(x))
    monkeypatch.setitem(OPS, "counting", counting)
    x = variable("x")
    node = apply(counting, x)
    evaluate([node * node + node], {x: 1.0})
    assert len(calls) == 1


def test_a_graph_of_several_outputs():
    x = variable("x")
    assert evaluate_graph(Graph((x,), (x + 1.0, x * x)), 3.0) == [4.0, 9.0]
