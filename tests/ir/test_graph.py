"""Nodes and graphs: what makes two nodes one, names beside values, and the executable specification."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import (
    OPS,
    Graph,
    Node,
    Origin,
    TensorType,
    apply,
    as_node,
    canonical_text,
    check,
    constant,
    digest,
    item,
    rebuild,
    register,
    rule_of,
    substitute_nodes,
    toposort,
    tree_size,
    variable,
)
from chainrule.ir.graph import describe, fresh_variable
from chainrule.ops.arithmetic import iverson
from chainrule.ops.loops import scan

x, y = variable("x"), variable("y")


# ---- identity ----------------------------------------------------------------------------------------------
def test_equal_nodes_are_one_node():
    assert x * y + 1.0 is x * y + 1.0
    assert x * y is not y * x, "commuting is for simplify"
    assert variable("x") is x
    assert variable("x", TensorType((2,))) is not x


def test_constants_are_told_apart_by_dtype_and_bits():
    kinds = [constant(v) for v in (1, 1.0, True, 0.0, -0.0, 0, False, float("nan"))]
    assert len(set(map(id, kinds))) == len(kinds)
    assert constant(float("nan")) is constant(float("nan"))
    assert constant(1.0, "float32") is not constant(1.0, "float64")
    assert constant([1.0, 2.0]) is constant(np.array([1.0, 2.0]))
    assert constant([1.0]) is not constant(1.0)


def test_parameters_take_part_in_identity():
    v = variable("v", TensorType((2, 3)))
    total = OPS["mean"]
    assert apply(total, v, axes=(0,), keepdims=False) is not apply(total, v, axes=(1,), keepdims=False)
    assert apply(total, v, axes=(0,), keepdims=False) is not apply(total, v, axes=(0,), keepdims=True)
    assert iverson(apply(OPS["gt"], x, y)) is not apply(OPS["iverson"], apply(OPS["gt"], x, y), dtype="float32")


def test_constants_are_read_only():
    array = np.array([1.0, 2.0])
    node = constant(array)
    array[0] = 5.0
    assert node.params["literal"].array.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        node.params["literal"].array[0] = 7.0
    with pytest.raises(TypeError):
        node.params["dtype"] = "float32"  # type: ignore[index]


def test_nodes_that_nobody_holds_are_forgotten():
    gc.collect()  # what other tests left must not be forgotten in between
    before = len(_nodes())
    root = x
    for _ in range(1000):
        root = apply(OPS["sin"], root + 0.123)
    assert len(_nodes()) >= before + 2000
    del root
    gc.collect()
    assert len(_nodes()) <= before + 10


def _nodes():
    from chainrule.ir import graph

    return graph._NODES


def test_numbers_take_the_dtype_of_their_partner():
    half = variable("h", TensorType((2,), "float16"))
    whole = variable("k", TensorType((2,), "int64"))
    assert (half * 2).type.dtype == "float16"
    assert (whole * 2).type.dtype == "int64"
    assert (whole * 2.0).type.dtype == "float64"
    assert as_node(2).type.dtype == "float64"


# ---- names and origins -------------------------------------------------------------------------------------
def test_names_and_origins_live_on_the_graph():
    square = x * x
    a = Graph((x,), (square,), ("f",), {"f": square, "g": square}, {square: Origin("f = x*x", 6)})
    assert a.name_of() == {square: "f"}
    assert a.output("f") is square
    moved = a.map({square: x * y})
    assert moved.names == {"f": x * y, "g": x * y} and moved.origins[x * y].position == 6
    assert str(Origin("f = x*x", 6)) == "column 7 of 'f = x*x'"
    assert str(Origin(module="encoder.0", file="model.py", line=41)) == "encoder.0 (model.py:41)"


def test_summary_counts_ops():
    assert str(Graph((x,), (x * x + 2.0,)).summary()).splitlines() == [
        "declared  add, mul",
        "composite none",
        "opaque    none",
        "inputs    1",
        "constants 1",
    ]
    assert Graph((x,), (x * x + x * x,)).op_counts() == {"add": 1, "input": 1, "mul": 1}


# ---- traversal ---------------------------------------------------------------------------------------------
def test_depth_is_no_limit():
    root = x
    for _ in range(20_000):
        root = root + y
    assert len(toposort([root])) == 20_002
    assert tree_size(root) == 40_001
    assert len(digest(root)) == 12
    image = rebuild([root], image={y: x})
    check(Graph((x,), (image[root],)))


def test_tree_size_counts_operators_and_operands():
    assert tree_size(x) == 1
    assert tree_size((x + y) * (x + y)) == 7


def test_toposort_stops_where_asked():
    inner = x * y
    assert toposort([inner + 1.0], stop=lambda n: n is inner) == [inner, constant(1.0), inner + 1.0]


def test_substitution():
    assert substitute_nodes([x * y + x], {x: y})[0] is y * y + y


def test_fresh_variables_avoid_what_is_taken():
    assert fresh_variable("g", TensorType(), [x]) is variable("g")
    assert fresh_variable("x", TensorType(), [x]).params["name"] == "x'"


# ---- canonical text and digests ----------------------------------------------------------------------------
_PROGRAM = "import chainrule as cr; from chainrule.ir import digest; g = cr.formula('sum(exp(A @ x) * [x > 0]) / 3', shapes={'A': 'n,n', 'x': 'n'}).graph; print(digest(g.outputs[0]).hex()); print(g)"


def test_text_and_digest_are_the_same_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert len(outputs) == 1
    scope: dict = {}
    exec(_PROGRAM.rsplit("; print(digest", 1)[0], scope)
    assert outputs == {f"{digest(scope['g'].outputs[0]).hex()}\n{scope['g']}\n"}


def test_canonical_text_does_not_know_the_order_of_making():
    def made(first: str) -> str:
        apply(OPS["sin"], variable(first))
        return canonical_text(cr.formula("sin(p) + sin(q)").graph)

    assert made("p") == made("q")


def test_digest_sees_what_identity_sees():
    nodes = [constant(v) for v in (1, 1.0, True, 0.0, -0.0)] + [x, y, x + y, y + x, variable("x", TensorType((2,)))]
    assert len({digest(n) for n in nodes}) == len(nodes)


# ---- the executable specification --------------------------------------------------------------------------
def _broken(node: Node, **changes) -> Node:
    """A node that no builder would make."""
    bad = Node()
    for slot in ("op", "inputs", "params", "type"):
        setattr(bad, slot, changes.get(slot, getattr(node, slot)))
    bad._key = bad._digest = bad._size = None
    return bad


def _impure() -> Node:
    op = replace(OPS["exp"], pure=False)
    bad = _broken(apply(OPS["exp"], x), op=op)
    return bad


v = variable("v", TensorType((2, 3)))
BROKEN = {
    "type differs": Graph((x,), (_broken(x * x, type=TensorType((2,))),)),
    "type differs from its shape rule": Graph((x,), (_broken(x * x, type=TensorType((), "float32")),)),
    "not the declared one": Graph((x,), (_broken(x * x, op=replace(OPS["mul"], source="other")),)),
    "not an input": Graph((), (x * x,)),
    "differ in length": Graph((x,), (x,), ("a", "b")),
    "do not broadcast": Graph(
        (v,), (_broken(apply(OPS["broadcast"], v, shape=(4, 2, 3)), params=MappingProxyType({"shape": (4, 2, 2)})),)
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_check_names_the_first_broken_node(message: str):
    with pytest.raises(ShapeError, match=message):
        check(BROKEN[message])


def test_check_wants_a_stream_of_a_random_draw():
    bad = _impure()
    registered = OPS["exp"]
    OPS["exp"] = bad.op
    try:
        with pytest.raises(ShapeError, match="without a stream"):
            check(Graph((x,), (bad,)))
    finally:
        OPS["exp"] = registered


def test_check_passes_what_builders_make():
    check(cr.formula("logsumexp(A @ x) + norm(x)", shapes={"A": "m,n", "x": "n"}).graph)


# ---- ops ---------------------------------------------------------------------------------------------------
def test_an_op_is_declared_once():
    with pytest.raises(ValueError, match="declared twice"):
        register(replace(OPS["exp"], names=()))


def test_a_missing_rule_is_an_error_that_names_the_op():
    with pytest.raises(UnsupportedOpError, match="'gt' declares no vjp"):
        rule_of(OPS["gt"], "vjp", "differentiate")


def test_shape_errors_name_the_op():
    with pytest.raises(ShapeError, match="^add"):
        variable("a", TensorType((2,))) + variable("b", TensorType((3,)))


def test_describe_names_parameters():
    assert describe(apply(OPS["mean"], v, axes=(0,), keepdims=False)) == "mean(v, axes=(0,), keepdims=False)"
    assert describe(x) == "x" and repr(x) == "<x: float64[]>"


def test_nodes_with_several_outputs_are_taken_apart():
    h, w = variable("h", TensorType((2,))), variable("w", TensorType((2,)))
    last, stacked = scan(Graph((w, h), (w * h, h)), [w], [h], [], 4)
    assert (last.shape, stacked.shape) == ((2,), (4, 2))
    assert item(last.inputs[0], 0) is last
