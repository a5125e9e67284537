"""Reverse and forward mode: finite differences, paths that end, loops, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.frontends.formula import parse
from chainrule.interpreters.differentiate import expand_composites, gradient, jvp, vjp, vjp_all
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.simplify import simplify
from chainrule.ir import OPS, Graph, TensorType, apply, check, constant, variable
from chainrule.ops.contraction import matmul, sum_axes
from chainrule.ops.loops import scan
from tests.op_contract import central, close, number

SIZES = {"n": 3, "m": 2}
SHAPES = {"x": "n", "z": "n", "v": "m", "A": "n,n", "X": "m,n"}
RNG = np.random.default_rng(3)
VALUES = {
    "x": RNG.standard_normal(3),
    "z": RNG.standard_normal(3),
    "v": RNG.standard_normal(2),
    "A": RNG.standard_normal((3, 3)) + 3 * np.eye(3),
    "X": RNG.standard_normal((2, 3)),
    "a": np.array(0.7),
    "b": np.array(-0.4),
}

SCALARS = [
    "exp(exp(a) + exp(a)^2) + sin(exp(a) + exp(a)^2)",
    "x' @ A @ x / (1 + x' @ x)",
    "logsumexp(A @ x) - a*b",
    "sum(relu(X @ x)) + max(x) + min(z)",
    "norm(X @ x - v) + norm1(z)",
    "logdet(A) + v' @ X @ inv(A) @ x",
    "sum(solve(A, x) * softmax(z))",
    "sum(layer_norm(x)^3)",
    "sum(where(x > z, x^2, z*x))",
    "sum(X[0] * z[1:3][0]) + sum(concat(x, z, 0)^2)",
    "tr(A @ A' @ A) + a^b*0 + sum(x[:, None] * z[None, :])",
    "mean(X, 0) @ x + mean(X)",
    "sum(leaky_relu(x, 0.1)) + sum(elu(z, 0.5)) + sum(gelu(x) * silu(z))",
    "det(A) + sum(kron(A, X))",
]


def program(source: str):
    graph = parse(source, {k: v for k, v in SHAPES.items() if k in source})
    return graph, {leaf: VALUES[leaf.params["name"]] for leaf in graph.inputs}


def value(node, values):
    return np.asarray(evaluate([node], values, SIZES)[0])


@pytest.mark.parametrize("source", SCALARS)
def test_gradient_equals_finite_differences(source: str):
    graph, values = program(source)
    for leaf, g in zip(graph.inputs, gradient(graph.outputs[0], graph.inputs), strict=True):
        assert g is not None and g.type == leaf.type
        check(Graph(graph.inputs, (g,)))
        if np.any(values[leaf] <= 0) and "^b" in source and leaf.params["name"] == "a":
            continue
        expected = central(lambda x, leaf=leaf: value(graph.outputs[0], values | {leaf: x}), values[leaf])
        assert close(value(g, values), expected, 1e-7)


@pytest.mark.parametrize("source", SCALARS)
def test_forward_mode_equals_reverse_mode(source: str):
    graph, values = program(source)
    tangents = [variable(f"tangent {k}", leaf.type) for k, leaf in enumerate(graph.inputs)]
    moving = {t: RNG.standard_normal(np.shape(values[x])) for t, x in zip(tangents, graph.inputs, strict=True)}
    (moved,) = jvp(graph.outputs, graph.inputs, tangents)
    assert moved is not None
    expected = sum(
        np.sum(value(g, values) * moving[t])
        for g, t in zip(gradient(graph.outputs[0], graph.inputs), tangents, strict=True)
        if g is not None
    )
    assert value(moved, values | moving) == pytest.approx(expected, rel=1e-10, abs=1e-10)


# ---- where no path leads -----------------------------------------------------------------------------------
def test_no_path_is_none_not_zero():
    x, y = variable("x"), variable("y")
    assert gradient(x * 2.0, [x, y])[1] is None
    assert jvp([x * 2.0], [y], [constant(1.0)]) == [None]


def test_stop_gradient_cuts_the_path():
    x = variable("x")
    held = apply(OPS["stop_gradient"], x)
    assert gradient(held * 2.0, [x]) == [None]
    assert [simplify(g) for g in gradient(x * held, [x])] == [held]
    assert jvp([held], [x], [constant(1.0)]) == [None]
    assert jvp([x * held], [x], [constant(1.0)])[0] is not None


def test_comparisons_and_casts_to_integers_pass_nothing():
    x = variable("x")
    whole = apply(OPS["cast"], x, dtype="int64")
    assert gradient(apply(OPS["cast"], whole, dtype="float64") * x, [x]) != [None]
    assert gradient(apply(OPS["cast"], whole, dtype="float64"), [x]) == [None]
    assert gradient(apply(OPS["iverson"], apply(OPS["gt"], x, constant(0.0)), dtype="float64"), [x]) == [None]


def test_an_intermediate_may_be_the_variable():
    x = variable("x")
    f = apply(OPS["exp"], x)
    assert simplify(gradient(f * f + x, [f])[0]) is simplify(f + f)
    composite = apply(OPS["softmax"], variable("z", TensorType((3,))), axis=0)
    (g,) = gradient(sum_axes(composite * composite), [composite])
    assert g is not None and g.shape == (3,)


def test_the_output_itself_may_be_the_variable():
    x = variable("x")
    assert gradient(x, [x])[0].number == 1


def test_a_node_used_twice_adds_its_cotangents():
    x = variable("x")
    (g,) = gradient(x * x + x, [x])
    assert number(g, {x: 3.0}) == 7.0


def test_several_outputs_at_once():
    x = variable("x")
    seeds = [variable("g"), variable("h")]
    (back,) = vjp([x * 2.0, x * x], seeds, [x])
    assert number(back, {x: 3.0, seeds[0]: 1.0, seeds[1]: 10.0}) == 62.0


def test_cotangents_of_everything_on_the_way():
    x = variable("x")
    f = apply(OPS["sin"], x)
    _, every = vjp_all([f * f], [constant(1.0)], [x])
    assert {f, x, f * f} <= set(every)
    assert number(every[f], {x: 0.3}) == pytest.approx(2 * np.sin(0.3))


# ---- broadcasting ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shapes", [((3,), ()), ((2, 3), (3,)), ((2, 1), (1, 3)), ((1,), (4, 2)), ((2, 3), (1, 1))])
def test_broadcasting_is_summed_back(shapes):
    a, b = (variable(n, TensorType(s)) for n, s in zip("ab", shapes, strict=True))
    values = {n: RNG.standard_normal(n.shape) for n in (a, b)}
    loss = sum_axes((a * b) ** 2.0)
    for leaf, g in zip((a, b), gradient(loss, [a, b]), strict=True):
        assert g.shape == leaf.shape
        assert close(
            number(g, values), central(lambda x, leaf=leaf: number(loss, values | {leaf: x}), values[leaf]), 1e-8
        )


def test_infinities_do_not_leak_from_the_branch_not_taken():
    graph = parse("sum(where(x > 0, sqrt(x), 0*x))", {"x": "n"})
    (g,) = gradient(graph.outputs[0], graph.inputs)
    found = value(g, {graph.inputs[0]: np.array([4.0, -1.0, 9.0])})
    assert found[0] == 0.25 and found[2] == pytest.approx(1 / 6)


# ---- loops -------------------------------------------------------------------------------------------------
def recurrence(length: int, reverse: bool = False):
    """c' h_T + sum of all ys for h <- tanh(W h + x_t), y = h * x_t, as a loop."""
    vector, matrix = TensorType((2,)), TensorType((2, 2))
    w, h, x = variable("w", matrix), variable("h", vector), variable("x", vector)
    new = apply(OPS["tanh"], matmul(w, h) + x)
    body = Graph((w, h, x), (new, new * x))
    inputs = (variable("W", matrix), variable("h0", vector), variable("xs", TensorType((length, 2))))
    last, ys = scan(body, inputs[:1], inputs[1:2], inputs[2:], length, reverse)
    return inputs, sum_axes(last) + sum_axes(ys * ys)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 4])
def test_loops_at_order_one_and_two(length: int, reverse: bool):
    inputs, loss = recurrence(length, reverse)
    values = {i: RNG.standard_normal(i.shape) for i in inputs}
    found = gradient(loss, inputs)
    directions = {variable(f"d{k}", i.type): RNG.standard_normal(i.shape) for k, i in enumerate(inputs)}
    for leaf, g in zip(inputs, found, strict=True):
        check(Graph(inputs, (g,)))
        assert close(
            number(g, values), central(lambda x, leaf=leaf: number(loss, values | {leaf: x}), values[leaf]), 1e-8
        )
    (moved,) = jvp([loss], inputs, list(directions))
    along = sum(np.sum(number(g, values) * d) for g, d in zip(found, directions.values(), strict=True))
    assert number(moved, values | directions) == pytest.approx(along, rel=1e-10)
    square = sum_axes(found[0] * found[0])
    for leaf, g in zip(inputs, gradient(square, inputs), strict=True):
        expected = central(lambda x, leaf=leaf: number(square, values | {leaf: x}), values[leaf])
        assert close(number(g, values), expected, 1e-6)


# ---- what is refused ---------------------------------------------------------------------------------------
def test_the_gradient_of_a_tensor_says_what_to_use_instead():
    x = variable("x", TensorType((3,)))
    with pytest.raises(ShapeError, match="jacobian"):
        gradient(x * 2.0, [x])


def test_a_cotangent_has_the_shape_of_its_output():
    x = variable("x", TensorType((3,)))
    with pytest.raises(ShapeError, match="shape of its output"):
        vjp([x * 2.0], [constant(1.0)], [x])


def test_a_missing_rule_raises_and_names_the_op(monkeypatch: pytest.MonkeyPatch):
    bare = replace(OPS["sin"], vjp=None, jvp=None, name="bare")
    monkeypatch.setitem(OPS, "bare", bare)
    x = variable("x")
    node = apply(bare, x)
    with pytest.raises(UnsupportedOpError, match="'bare' declares no vjp"):
        gradient(node, [x])
    with pytest.raises(UnsupportedOpError, match="bare"):
        jvp([node], [x], [constant(1.0)])
    (g,) = gradient(node * variable("y"), [variable("y")])
    assert simplify(g) is node, "off the path nothing is asked of it"


def test_a_jvp_is_made_from_a_vjp(monkeypatch: pytest.MonkeyPatch):
    half = replace(OPS["sin"], jvp=None, name="half")
    monkeypatch.setitem(OPS, "half", half)
    x, t = variable("x"), variable("t")
    (moved,) = jvp([apply(half, x)], [x], [t])
    assert number(moved, {x: 0.3, t: 2.0}) == pytest.approx(2 * np.cos(0.3))


def test_composites_are_expanded_but_named_derivatives_stay():
    z = variable("z", TensorType((3,)))
    inner = apply(OPS["softmax"], z, axis=0)
    root = apply(OPS["mean"], inner, axes=(0,), keepdims=False)
    (kept,) = expand_composites([root])
    (all_out,) = expand_composites([root], keep_named=False)
    assert "softmax" in Graph((z,), (kept,)).op_counts() and "mean" not in Graph((z,), (kept,)).op_counts()
    assert not any(OPS[n].expansion for n in Graph((z,), (all_out,)).op_counts())
