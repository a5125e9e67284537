"""Variances before running: first and second moments of every value and every cotangent.

Reads ``Op.moments``. Forward, each op's rule maps the moments of its operands to its own; an op without a rule is
expanded if it is a composite and is otherwise unknown, and so is everything after it: nothing passes in silence.
Backward, a rule with ``backward`` is asked; the others go by their local derivative, an expression whose moments are
the forward question again, with the cotangent as one more independent source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.interpreters.pointwise_moments import back_through, fused
from chainrule.ir import Node, TensorType, apply, rebuild, toposort, variable
from chainrule.ir.moments import UNKNOWN, CotangentMoments, Moments, worst
from chainrule.ops.contraction_moments import contract


def forward(outputs: Sequence[Node], given: Mapping[Node, Moments], strict: bool = False) -> dict[Node, Moments]:
    """The moments of every node that ``outputs`` need, from those of the leaves.

    Leaves that are not given are unknown; constants are what they are. Composites are expanded on the way, so ask
    :func:`expanded` for the program whose nodes carry moments. ``strict``: operands that share a source and are not
    known to be uncorrelated make a value unknown; otherwise they are taken as independent (approximate).
    """
    states: dict[Node, Moments] = dict(given)
    for node in toposort(outputs, stop=lambda n: n in states):
        if node in states:
            continue
        states[node] = _state(node, states, strict)
    return states


def _state(node: Node, states: Mapping[Node, Moments], strict: bool) -> Moments:
    if node.number is not None:
        value = float(node.number)
        return Moments(value, value**2, law="given", why="a constant")
    if "literal" in node.params:
        array = np.asarray(node.params["literal"].array, dtype=float)
        return Moments(array, array**2, law="given", why="a constant")
    if "size" in node.params and node.is_leaf and node.type.rank == 0:
        return Moments(node, node * node, law="given", why="a dimension")
    inputs = [states[i] for i in node.inputs]
    if node.op.moments is None or not inputs:
        sources = frozenset().union(*(s.sources for s in inputs))
        return replace(UNKNOWN, sources=sources, why=f"no moment rule for {node.op.name}")
    found = node.op.moments.forward(inputs, node)
    random = [s for s in inputs if s.law != "given"]
    shared = _shared(random)
    if node.op.family == "elementwise" and random:
        found = _of_elements(node, found, random, states, strict)
    elif found.independent and found is not inputs[0] and any(node.type.numel != i.type.numel for i in node.inputs):
        found = replace(found, independent=False)  # elements are repeated
    if strict and shared and found.kind == "approximate" and worst(*(s.kind for s in inputs)) == "exact":
        twice = ", ".join(sorted(shared))
        return replace(UNKNOWN, sources=found.sources, why=f"it depends on {twice} twice, and no law gives the product")
    return found


def _of_elements(
    node: Node, found: Moments, random: Sequence[Moments], states: Mapping[Node, Moments], strict: bool
) -> Moments:
    """What an elementwise rule found, or one quadrature of the whole function where the rule needs independence."""
    certain = len(random) == 1 and random[0].law == "normal" and found.known
    if found.law != "given" and not certain and (found.kind != "exact" or found.mean is None):
        whole = fused(node, states, any_law=not strict)
        if whole is not None and (whole.known or (strict and (found.known or not found.why))):
            return whole
    aligned = len(random) == 1 or not _shared(random)
    shapes = all(i.shape == node.shape for i in node.inputs if states[i].law != "given")
    independent = aligned and shapes and all(s.independent for s in random)
    if found.law == "uniform":  # the bounds were those of the operand
        found = replace(found, law="symmetric" if found.odd else "any", bounds=None)
    return found if found.independent == independent else replace(found, independent=independent)


def _shared(random: Sequence[Moments]) -> frozenset[str]:
    """Sources of more than one operand."""
    seen: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    for state in random:
        shared, seen = shared | (seen & state.sources), seen | state.sources
    return shared


def expanded(outputs: Sequence[Node]) -> dict[Node, Node]:
    """node -> node with composites that have no moment rule replaced by their expansions."""

    def expand(node: Node, inputs: tuple[Node, ...]) -> Node:
        same = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        if node.op.expansion is None or node.op.moments is not None:
            return same
        root = node.op.expansion(*inputs, **node.params)
        return expanded([root])[root]

    return rebuild(outputs, expand)


# ---- backward ----------------------------------------------------------------------------------------------
def backward(output: Node, states: Mapping[Node, Moments], wrt: Sequence[Node]) -> dict[Node, CotangentMoments]:
    """Moments of the cotangents of every node between a scalar ``output`` and the nodes ``wrt``.

    ``states`` are the forward moments. A node reached on several paths adds their second moments, as if the paths
    were uncorrelated, and is then approximate.
    """
    active: set[Node] = set()
    targets = set(wrt)
    order = toposort([output])
    for node in order:
        if node in targets or any(i in active for i in node.inputs):
            active.add(node)
    found: dict[Node, CotangentMoments] = {output: CotangentMoments(np.ones((1,) * output.type.rank), given=True)}
    for node in reversed(order):
        g = found.get(node)
        if g is None or node not in active:
            continue
        whole = back_through(node, g, states, order) if node.op.family == "elementwise" else None
        if whole is not None and whole[0] in active:
            pairs = [whole]
        else:
            pairs = list(zip(node.inputs, _cotangents(node, g, states, active), strict=True))
        for x, gx in pairs:
            if gx is not None and x in active:
                found[x] = gx if x not in found else _added(found[x], gx)
    return found


def _cotangents(
    node: Node, g: CotangentMoments, states: Mapping[Node, Moments], active: set[Node]
) -> list[CotangentMoments | None]:
    inputs = [states[i] for i in node.inputs]
    rule = node.op.moments
    if g.second is None:
        return [CotangentMoments(None, kind="unknown") for _ in inputs]
    if hasattr(rule, "backward"):
        answered = rule.backward(g, inputs, states[node], node)
        if answered is not None:
            return answered
    return _by_local_derivative(node, g, states, active)


def _by_local_derivative(
    node: Node, g: CotangentMoments, states: Mapping[Node, Moments], active: set[Node]
) -> list[CotangentMoments | None]:
    """The moments of the vjp expression, the cotangent an independent value of mean zero (or a given one)."""
    if node.op.vjp is None or not node.op.differentiable or not isinstance(node.type, TensorType):
        return [None] * len(node.inputs)
    leaf = variable("cotangent of moments", node.type)
    if g.given:
        own = Moments(np.sqrt(g.second), g.second, law="given")
    else:
        source = frozenset({"cotangent"})
        own = Moments(np.zeros(np.shape(g.second)), g.second, law="normal", sources=source, odd=source, kind=g.kind)
    back = node.op.vjp(leaf, node, *node.inputs, **node.params)
    answers: list[CotangentMoments | None] = []
    for x, gx in zip(node.inputs, back, strict=True):
        if gx is None or x not in active:
            answers.append(None)
            continue
        image = expanded([gx])
        state = forward([image[gx]], {**states, leaf: own})[image[gx]]
        if not state.known:
            answers.append(CotangentMoments(None, kind="unknown"))
            continue
        second = fitted(state.second, gx, x)
        answers.append(
            CotangentMoments(second, _carried(g, states, node, x), _axes(g, node, x), state.law == "given", state.kind)
        )
    return answers


def fitted(second: Any, gx: Node, x: Node) -> Any:
    """The second moment of a cotangent summed over what broadcasting repeated, its elements taken as independent."""
    extra = gx.type.rank - x.type.rank
    array = np.reshape(second, (1,) * (gx.type.rank - np.ndim(second)) + np.shape(second))
    repeated = [a for a in range(gx.type.rank) if a < extra or (x.shape[a - extra] == 1 and gx.shape[a] != 1)]
    if not repeated:
        return array
    indices = tuple(range(gx.type.rank))
    kept = [i for i in indices if i not in repeated]
    sizes = dict(enumerate(gx.shape))
    total = contract([array], [indices], kept, sizes)
    return np.expand_dims(total, tuple(a - extra for a in repeated if a >= extra)) if x.type.rank else total


def _axes(g: CotangentMoments, node: Node, x: Node) -> tuple[int, ...]:
    return g.axes if node.type.rank == x.type.rank else ()


def _carried(g: CotangentMoments, states: Mapping[Node, Moments], node: Node, x: Node) -> Any:
    """Alignment through an op that scales by given numbers: (g.y) is (g_x.x) where y is linear in x alone."""
    others = [states[i] for i in node.inputs if i is not x]
    linear = node.type.rank == x.type.rank and all(o.law == "given" for o in others)
    return g.aligned if linear and len(others) <= 1 and node.op.terms is not None else None


def _added(a: CotangentMoments, b: CotangentMoments) -> CotangentMoments:
    if a.second is None or b.second is None:
        return CotangentMoments(None, kind="unknown")
    aligned = None if a.aligned is None or b.aligned is None or a.axes != b.axes else a.aligned + b.aligned
    kind = worst(a.kind, b.kind, "approximate")
    return CotangentMoments(a.second + b.second, aligned, a.axes, a.given and b.given, kind)
