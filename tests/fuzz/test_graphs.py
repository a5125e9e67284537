"""Properties that hold for every program: passes keep the value, derivatives agree, print and parse are inverse."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from chainrule.frontends.formula import parse
from chainrule.interpreters.differentiate import gradient, jvp
from chainrule.interpreters.evaluate import evaluate, evaluate_all
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Graph, check, variable
from chainrule.verbs.derive import derive
from tests.fuzz.graphs import SHAPES, SIZES, programs, values, weighted_sum, weights_of

seeds = st.integers(0, 3)
many = settings(max_examples=max(300, settings.default.max_examples))


def agree(a: object, b: object, scale: float = 1.0, tolerance: float = 1e-9) -> bool:
    """Equal where both are finite. (0 * x -> 0 and x / x -> 1 may give a number where the original had none.)"""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        return False
    both = np.isfinite(a) & np.isfinite(b)
    return bool(np.all(np.abs(a - b)[both] <= tolerance * max(1.0, scale)))


def largest(graph: Graph, table: dict) -> float:
    """The largest value on the way: what rounding is relative to."""
    finite = [np.abs(v[np.isfinite(v)]) for v in map(lambda n: np.asarray(table[n], dtype=float), graph.nodes)]
    return max((float(np.max(v, initial=0.0)) for v in finite), default=0.0)


def run(graph: Graph, seed: int) -> tuple[np.ndarray, float, dict]:
    given_values = values(graph, seed)
    table = evaluate_all(graph.outputs, given_values, SIZES)
    scale = largest(graph, table)
    assume(scale < 1e6)
    return np.asarray(table[graph.outputs[0]]), scale, given_values


@many
@given(programs(), seeds)
def test_simplify_keeps_type_and_value(graph: Graph, seed: int):
    check(graph)
    shorter = simplify(graph)
    check(shorter)
    assert shorter.outputs[0].type == graph.outputs[0].type
    before, scale, given_values = run(graph, seed)
    (after,) = evaluate(shorter.outputs, given_values, SIZES)
    assert agree(before, after, scale)
    assert np.all(np.isfinite(after) | ~np.isfinite(before)), "a value was lost"


@many
@given(programs(), seeds)
def test_exact_simplify_keeps_every_bit(graph: Graph, seed: int):
    shorter = simplify(graph, exact=True)
    check(shorter)
    before, _, given_values = run(graph, seed)
    (after,) = evaluate(shorter.outputs, given_values, SIZES)
    assert before.tobytes() == np.asarray(after).tobytes()


@many
@given(programs())
def test_simplify_is_idempotent(graph: Graph):
    once = simplify(graph.outputs[0])
    assert simplify(once) is once, f"{text(once)}  ->  {text(simplify(once))}"


@many
@given(programs(), seeds)
def test_gradients_of_the_program_and_of_the_simplified_program_agree(graph: Graph, seed: int):
    root, inputs = graph.outputs[0], list(graph.inputs)
    before, scale, given_values = run(graph, seed)
    scalar = weighted_sum(root)
    given_values |= weights_of(scalar, root, before.shape)
    plain = gradient(scalar, inputs)
    shorter = gradient(simplify(scalar), inputs)
    for leaf, a, b in zip(inputs, plain, shorter, strict=True):
        zero = np.zeros(given_values[leaf].shape)
        x = zero if a is None else evaluate([a], given_values, SIZES)[0]
        y = zero if b is None else evaluate([b], given_values, SIZES)[0]
        z = zero if a is None else evaluate([simplify(a)], given_values, SIZES)[0]
        assert a is None or a.type == leaf.type
        bound = max(scale, float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x))))
        assert agree(x, y, bound, 1e-8) and agree(x, z, bound, 1e-8)


@many
@given(programs(), seeds)
def test_reverse_equals_forward(graph: Graph, seed: int):
    root, inputs = graph.outputs[0], list(graph.inputs)
    before, scale, given_values = run(graph, seed)
    scalar = weighted_sum(root)
    given_values |= weights_of(scalar, root, before.shape)
    tangents = [variable(f"d{leaf.params['name']}", leaf.type) for leaf in inputs]
    generator = np.random.default_rng(seed)
    given_values |= {t: generator.standard_normal(given_values[x].shape) for t, x in zip(tangents, inputs, strict=True)}
    (forward,) = jvp([scalar], inputs, tangents)
    reverse = gradient(scalar, inputs)
    left = 0.0 if forward is None else float(evaluate([forward], given_values, SIZES)[0])
    right = sum(
        float(np.sum(evaluate([g], given_values, SIZES)[0] * given_values[t]))
        for g, t in zip(reverse, tangents, strict=True)
        if g is not None
    )
    assume(np.isfinite(left) and np.isfinite(right))
    assert abs(left - right) <= 1e-9 * max(1.0, scale, abs(left))


@many
@given(programs(), seeds)
def test_text_parses_back(graph: Graph, seed: int):
    """The value always; the identical node after simplify, which is how a printed answer is compared."""
    named = any(not isinstance(s, int) for leaf in graph.inputs for s in leaf.shape)
    declared = {k: (v if named else ",".join(str(SIZES[s]) for s in v.split(","))) for k, v in SHAPES.items() if v}
    for root in (graph.outputs[0], simplify(graph.outputs[0])):
        shown = text(root)
        again = parse(shown, declared).outputs[0]
        before, scale, given_values = run(Graph(graph.inputs, (root,)), seed)
        leaves = {n for n in Graph((), (again,)).nodes if "name" in n.params and n.is_leaf}
        (after,) = evaluate([again], {k: v for k, v in given_values.items() if k in leaves}, SIZES)
        assert agree(before, after, scale), shown
    same = simplify(again) is simplify(root)
    event("identical" if same else "equal in value only")
    # Orders of more than four equal operands of one contraction are not all tried: A @ A @ A @ A @ A may be two nodes.
    crowded = any(max(Counter(n.inputs).values(), default=0) > 4 for n in Graph((), (simplify(root),)).nodes)
    assert same or crowded, f"{shown}  ->  {text(simplify(again))}"


# ---- formulas ----------------------------------------------------------------------------------------------
@st.composite
def formulas(draw, depth: int = 4) -> str:
    """Text of a scalar function of x and z, smooth everywhere and of moderate size."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(("x", "z", "2", "0.5", "x", "3")))
    a = draw(formulas(depth - 1))
    kind = draw(st.integers(0, 9))
    if kind < 4:
        return f"{draw(st.sampled_from(('sin', 'cos', 'tanh', 'sigmoid', 'softplus', 'erf', 'atan')))}({a})"
    if kind == 4:
        return f"({a})^{draw(st.sampled_from(('2', '3')))}"
    if kind == 5:
        return f"exp(-({a})^2)"
    if kind == 6:
        return f"-({a})"
    b = draw(formulas(depth - 1))
    return f"({a}) {draw(st.sampled_from('+-*'))} ({b})" if kind < 9 else f"({a}) / (1 + ({b})^2)"


@settings(max_examples=max(150, settings.default.max_examples // 4))
@given(formulas(), st.floats(-1.2, 1.2), st.floats(-1.2, 1.2))
@example("exp(x) * z", 0.3, -0.4)
def test_three_modes_equal_finite_differences(source: str, x: float, z: float):
    step = 1e-5
    graph = parse(f"y = {source} + 0*x + 0*z")

    def value(x: float) -> float:
        at = {"x": x, "z": z}
        return float(evaluate(graph.outputs, {leaf: at[leaf.params["name"]] for leaf in graph.inputs})[0])

    expected = (value(x + step) - value(x - step)) / (2 * step)
    size = max(abs(value(x)), abs(expected), 1.0)
    assume(size < 1e4)
    for mode in ("direct", "forward", "reverse"):
        found = derive(f"y = {source} + 0*x + 0*z", wrt="x", mode=mode)["x"].evaluate(x=x, z=z)
        assert abs(float(found) - expected) <= 1e-5 * size, mode
