"""Fields through a graph: what every value and every cotangent will be over redraws of the weights, without running.

Forward, an op's rule in ``ops.fields`` is asked; a composite without one is expanded; elementwise ops that share a
value are integrated as one function of it (:mod:`chainrule.interpreters.regions`); what is left is measured by a
seeded probe, and what cannot be drawn is unknown: nothing passes in silence.

Backward, weights are taken as independent of those of the forward pass, except for the part of a cotangent that is
parallel to the value it belongs to. An op without a backward rule goes by its derivative, an expression whose fields
are the forward question again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.interpreters.regions import region_of
from chainrule.ir import Node, TensorType, apply, rebuild, toposort, variable
from chainrule.ir.field import Field, fixed, plain, unknown, worst
from chainrule.ops.fields.contraction import order_of_dimensions
from chainrule.ops.fields.draws import drawn
from chainrule.ops.fields.drift import carried, depending
from chainrule.ops.fields.elementwise import added
from chainrule.ops.fields.layers import fitted
from chainrule.ops.fields.loops import written_out
from chainrule.ops.fields.probe import probed, probed_back
from chainrule.ops.fields.registry import rule_for, sizes
from chainrule.ops.fields.standardised import back_through_norm, effective_count, standardised
from chainrule.ops.fields.written_norms import WrittenNorm, written_norm

States = dict[Node, Any]

_FINE = 64  # positions whose pairs are kept one by one
_MOST_GIVEN = 4_000_000  # elements of given numbers that are computed


def expanded(outputs: Sequence[Node]) -> dict[Node, Node]:
    """node -> node with composites that have no rule replaced by their expansions."""

    several: dict[Node, list[Node]] = {}  # a node with several outputs -> what they are

    def expand(node: Node, inputs: tuple[Node, ...]) -> Node:
        if inputs and inputs[0] in several and "index" in node.params:
            return several[inputs[0]][node.params["index"]]
        same = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        written = written_out(same)
        if written is not None:
            inner = expanded(written)
            several[same] = [inner[n] for n in written]
            return same
        if node.op.expansion is None or rule_for(node) is not None or node.op.family == "elementwise":
            return same
        root = node.op.expansion(*inputs, **node.params)
        if not isinstance(root.type, TensorType) and [i.type for i in root.inputs] == list(root.type.items):
            inner = expanded(root.inputs)
            several[same] = [inner[n] for n in root.inputs]
            return same
        return expanded([root])[root]

    return rebuild(outputs, expand)


def forward(outputs: Sequence[Node], given: Mapping[Node, Any]) -> States:
    """The field of every node that ``outputs`` (expanded) need, from those of the leaves."""
    states: States = dict(given)
    roots: dict[Node, frozenset[Node]] = {}
    for node in toposort(outputs, stop=lambda n: n in states):
        if node not in states:
            states[node] = _state(node, states, roots)
    return states


def _state(node: Node, states: States, roots: dict[Node, frozenset[Node]]) -> Any:
    if node.is_leaf:
        return _leaf(node)
    if not isinstance(node.type, TensorType) and rule_for(node) is None:
        return [unknown(sizes(t.shape), f"no rule for {node.op.name}") for t in node.type.items]
    inputs = [states[i] for i in node.inputs]
    if all(isinstance(f, Field) and f.array is not None for f in inputs) and isinstance(node.type, TensorType):
        found = _computed(node, inputs)
        if found is not None:
            strata = max((f.strata for f in inputs), default=0)
            return replace(found, strata=strata) if strata else found
    rule = rule_for(node)
    try:
        if node.op.family == "elementwise":
            return _of_elements(node, inputs, states, roots)
        if rule is not None:
            return rule.forward(node, inputs)
    except (IndexError, ValueError) as error:  # a layout that the rule cannot hold: said, and not guessed
        why = _does_not_hold(node, error)
        if isinstance(node.type, TensorType):
            return unknown(sizes(node.shape), why)
        return [unknown(sizes(t.shape), why) for t in node.type.items]
    return probed(node, inputs)


def _written(array: np.ndarray) -> Field:
    """Numbers of the program. Pairs of what varies along one dimension, such as positions, are told apart."""
    one = sum(n > 1 for n in array.shape) == 1
    return fixed(array, [None if one and n <= _FINE else 0 for n in array.shape], why="a constant")


def _does_not_hold(node: Node, error: Exception) -> str:
    return f"the rule of {node.op.name} does not hold for these layouts: {error}"


def _leaf(node: Node) -> Field:
    if "literal" in node.params:
        return _written(np.asarray(node.params["literal"].array))
    if node.op.pure and node.op.value is not None and "name" not in node.params:
        try:
            return fixed(node.op.value(**node.params), why="a constant")
        except (TypeError, ValueError, NotImplementedError):
            return unknown(sizes(node.shape), f"{node.op.name} has no value")
    if not node.op.pure:
        return drawn(node)
    return unknown(sizes(node.shape), f"nothing is said of {node.params.get('name', node.op.name)}")


def _computed(node: Node, inputs: Sequence[Field]) -> Field | None:
    """A function of given numbers."""
    if all(f.array is not None and f.array.size == 1 for f in inputs) and node.op.family == "elementwise":
        arrays: list[Any] = [f.array.reshape(()) for f in inputs if f.array is not None]
    elif int(node.type.numel) > _MOST_GIVEN or any(int(np.prod(f.shape)) > _MOST_GIVEN for f in inputs):
        return None
    else:
        arrays = [_whole(f) for f in inputs]
    for k, i in enumerate(node.inputs):
        if not i.type.is_float:
            arrays[k] = arrays[k].astype(bool if i.type.dtype == "bool" else np.int64)
    try:
        with np.errstate(all="ignore"):
            value = np.asarray(node.op.value(*arrays, **node.params), dtype=float)
    except (TypeError, ValueError, NotImplementedError):
        return None
    shape = sizes(node.shape)
    if value.size == 1 and np.prod(shape) > 1:
        one = value.reshape((1,) * len(shape))
        base = fixed(np.zeros(shape)) if np.prod(shape) < 64 else _constant(shape, 0.0)
        return replace(base, mean=one, second=one * one, pairs=one * one, array=one)
    return fixed(value.reshape(shape), _grades(node, inputs), why="a function of given numbers")


def _constant(shape: Sequence[int], value: float) -> Field:
    one = np.full((1,) * len(shape), value)
    return Field(plain(shape), one, one * one, one * one, array=one, kurtosis=1.0, own=0.0)


def _whole(value: Field) -> np.ndarray:
    assert value.array is not None
    shape = [a.size for a in value.axes]
    return np.broadcast_to(value.array, shape).reshape(value.shape)


def _grades(node: Node, inputs: Sequence[Field]) -> list[int | None]:
    """How finely pairs of a computed value are told apart: as in an operand of the same size."""
    grades: list[int | None] = []
    for d, n in zip(order_of_dimensions(node), sizes(node.shape), strict=True):
        grade: int | None = 0
        for f in inputs:
            offset = len(node.shape) - len(f.dims)
            if d >= offset and len(f.dims[d - offset]) == 1 and f.shape[d - offset] == n:
                own = f.dims[d - offset][0].lags
                grade = None if own is None or grade is None else max(grade, own)
        grades.append(grade if grade is not None or n <= 64 else 0)
    return grades


# ---- elementwise -------------------------------------------------------------------------------------------
def _of_elements(node: Node, inputs: Sequence[Field], states: States, roots: dict[Node, frozenset[Node]]) -> Field:
    norm = written_norm(node)
    if norm is not None and states[norm.x].known:
        found, _ = standardised(states[norm.x], norm.axes, norm.eps, norm.centre)
        return found
    rule = rule_for(node)
    random = [i for i, f in zip(node.inputs, inputs, strict=True) if f.array is None or f.array.size > 1]
    own = [_roots(i, states, roots) for i in dict.fromkeys(random)]
    disjoint = sum(map(len, own)) == len(frozenset().union(*own))
    if rule is not None and disjoint and len(random) == len(own):
        found = rule.forward(node, inputs)
        if found.known or len(random) > 2:
            return found
    region = region_of(node, states, lambda n: _roots(n, states, roots))
    if region is not None:
        return region.applied()
    if rule is not None:
        found = rule.forward(node, inputs)
        return replace(
            found,
            kind=worst(found.kind, "approximate"),
            mean_kind="",
            why="operands with common sources, taken as independent",
        )
    return probed(node, inputs)


def _roots(node: Node, states: States, roots: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """The values that are not elementwise and that an elementwise value is a function of."""
    found = roots.get(node)
    if found is None:
        if node.op.family == "elementwise" and node.inputs:
            parts = [
                _roots(i, states, roots)
                for i in node.inputs
                if not (states[i].array is not None and states[i].array.size == 1)
            ]
            found = frozenset().union(*parts)
        else:
            found = frozenset({node})
        roots[node] = found
    return found


# ---- backward ----------------------------------------------------------------------------------------------
def backward(
    output: Node,
    states: States,
    wrt: Sequence[Node],
    seed: Field | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[Node, Field]:
    """The cotangents of every node between ``output`` and ``wrt``: fields like those of the forward pass."""
    targets = set(wrt)
    order = toposort([output], stop=lambda n: n in targets)
    active: set[Node] = set()
    for node in order:
        if node in targets or any(i in active for i in node.inputs):
            active.add(node)
    roots: dict[Node, frozenset[Node]] = {}
    users: dict[Node, list[Node]] = {}
    for node in order:
        for i in node.inputs:
            users.setdefault(i, []).append(node)
    found: dict[Node, Any] = {output: seed or fixed(np.ones(sizes(output.shape)))}
    inner: dict[Node, Field] = {}
    for count, node in enumerate(reversed(order)):
        if progress is not None:
            progress(count)
        g = found.get(node)
        if g is None or node not in active or (node in targets and not node.inputs):
            continue
        for x, gx in _back(node, g, states, active, roots, users, inner):
            if gx is not None and x in active:
                found[x] = gx if x not in found else _met(found[x], gx, x)
    for n, part in inner.items():
        found[n] = part if n not in found else _met(found[n], part, n)
    return found


def _met(a: Any, b: Any, x: Node) -> Any:
    """The sum of the cotangents of two uses of one value, as if the paths were uncorrelated."""
    if isinstance(a, list):
        return [q if p is None else p if q is None else _met(p, q, x) for p, q in zip(a, b, strict=True)]
    found = added([a, b], (1.0, 1.0), sizes(x.shape))
    whole = a.mean_square + b.mean_square
    if not found.known or not whole > 0:
        return found
    shares = ((a, a.mean_square / whole), (b, b.mean_square / whole))
    drift = min(sum(f.drift * share**0.5 for f, share in shares), 1.0)
    together = drift**2 - sum(f.drift**2 * share for f, share in shares)  # both parts along x are one
    return replace(
        found,
        alignment=sum(f.alignment * share for f, share in shares) + together,
        own_alignment=sum(f.own_alignment * share for f, share in shares),
        drift=drift,
        noise=sum(f.noise**0.5 * share for f, share in shares) ** 2,  # most of it began in one sum, at the loss
        echo_drift=sum(f.echo_drift * share**0.5 for f, share in shares),
    )


def _back(
    node: Node,
    g: Any,
    states: States,
    active: set[Node],
    roots: dict[Node, frozenset[Node]],
    users: Mapping[Node, Sequence[Node]],
    inner: dict[Node, Field],
) -> list[tuple[Node, Any]]:
    if any(not isinstance(i.type, TensorType) for i in node.inputs):
        return [(i, [unknown(sizes(t.shape), "one of several outputs") for t in i.type.items]) for i in node.inputs]
    if not isinstance(node.type, TensorType):
        return [(i, unknown(_shape(i), f"no rule for {node.op.name}")) for i in node.inputs]
    inputs = [states[i] for i in node.inputs]
    wanted = [i in active for i in node.inputs]
    if isinstance(g, Field) and not g.known:
        return [(i, unknown(_shape(i), g.why)) for i, w in zip(node.inputs, wanted, strict=True) if w]
    rule = rule_for(node)
    norm = written_norm(node)
    if norm is not None and norm.x in active and _only_inside(node, norm, users):
        inner |= _within(node, g, norm, states, active, roots)
        x = states[norm.x]
        normal, spread = standardised(x, norm.axes, norm.eps, norm.centre)
        count = effective_count(x, norm.axes)
        units = float(np.prod([x.shape[d] for d in norm.axes]))
        along = min(g.pull(units) / units, 1.0)
        return [(norm.x, back_through_norm(g, normal, x, spread, norm.axes, norm.eps, norm.centre, count, along, True))]
    if node.op.family == "elementwise":
        random = [
            i for i, f in zip(node.inputs, inputs, strict=True) if f.array is None or f.array.size > 1 or i in active
        ]
        own = [_roots(i, states, roots) for i in dict.fromkeys(random)]
        disjoint = sum(map(len, own)) == len(frozenset().union(*own)) and len(own) == len(random)
        if not (rule is not None and disjoint):
            region = region_of(node, states, lambda n: _roots(n, states, roots), active=active)
            if region is not None:
                for n, part in region.inside(g).items():
                    inner[n] = part if n not in inner else _met(inner[n], part, n)
                return [(u, part) for u, part in region.back(g) if u in active]
    if rule is not None and rule.backward is not None:
        try:
            parts = rule.backward(node, g, states[node], inputs, wanted)
            parts = depending(node, g, inputs, parts)
            return list(zip(node.inputs, carried(node, g, states[node], inputs, parts), strict=True))
        except (IndexError, ValueError) as error:
            why = _does_not_hold(node, error)
            return [(i, unknown(_shape(i), why)) for i, w in zip(node.inputs, wanted, strict=True) if w]
    if node.op.family == "elementwise":
        region = region_of(node, states, lambda n: _roots(n, states, roots), direct=True, active=active)
        if region is not None:
            return [(u, part) for u, part in region.back(g) if u in active]
    parts = dict(_by_derivative(node, g, states, wanted))
    if len(parts) < len(set(node.inputs)) or len(set(node.inputs)) < len(inputs):
        return list(parts.items())
    return list(zip(node.inputs, carried(node, g, states[node], inputs, [parts[i] for i in node.inputs]), strict=True))


def _only_inside(node: Node, norm: WrittenNorm, users: Mapping[Node, Sequence[Node]]) -> bool:
    inside = {node, *norm.inner}
    return all(u in inside for n in norm.inner for u in users.get(n, ()))


def _within(
    node: Node,
    g: Field,
    norm: WrittenNorm,
    states: States,
    active: set[Node],
    roots: dict[Node, frozenset[Node]],
) -> dict[Node, Field]:
    """The cotangents of a written normalisation's inner values, op by op."""
    values = [node, *norm.inner]
    found: dict[Node, Any] = {node: g}
    for n in values:
        part = found.get(n)
        if part is None:
            continue
        rule, inputs = rule_for(n), [states[i] for i in n.inputs]
        wanted = [i in active for i in n.inputs]
        if rule is not None and rule.backward is not None:
            pairs = list(zip(n.inputs, rule.backward(n, part, states[n], inputs, wanted), strict=True))
        else:
            region = region_of(n, states, lambda m: _roots(m, states, roots), direct=True)
            pairs = region.back(part) if region is not None else []
        for i, gi in pairs:
            if gi is not None and i in values and i not in found:
                found[i] = gi
    del found[node]
    pull = g.pull(float(np.prod([int(node.shape[d]) for d in norm.axes])))  # they see only the part of g along x
    return {n: replace(f, second=f.second * pull, pairs=f.pairs * pull) for n, f in found.items()}


def _shape(node: Node) -> tuple[int, ...]:
    return sizes(node.shape) if isinstance(node.type, TensorType) else ()


def _by_derivative(node: Node, g: Any, states: States, wanted: Sequence[bool]) -> list[tuple[Node, Any]]:
    """The fields of the derivative's expression, the cotangent an independent leaf."""
    inputs = [states[i] for i in node.inputs]
    if node.op.vjp is None or not node.op.differentiable or not isinstance(node.type, TensorType):
        return [(i, f) for i, f in zip(node.inputs, probed_back(node, g, inputs, wanted), strict=True)]
    leaf = variable("cotangent of fields", node.type)
    back = node.op.vjp(leaf, node, *node.inputs, **node.params)
    answers: list[tuple[Node, Any]] = []
    for x, gx, w in zip(node.inputs, back, wanted, strict=True):
        if gx is None or not w:
            continue
        image = expanded([gx])[gx]
        part = forward([image], {**states, leaf: g})[image]
        answers.append((x, fitted(part, sizes(x.shape)) if part.known else unknown(sizes(x.shape), part.why)))
    return answers
