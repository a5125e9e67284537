"""Maximal elementwise regions: however many ops a function is written with, it is integrated as one.

``x * sigmoid(x)`` is no product of independent factors. A region goes from a node back to the values that all of it
depends on: one normal value, or several that are independent of each other. Where that would be more than two, it stops
at values that no other path reaches, whatever their law (a gate, the state that it gates): the first two moments of
such values decide those of a function that is linear in each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from chainrule.ir import Node, toposort
from chainrule.ir import pairs as pair
from chainrule.ir.factors import with_factor, without_ones
from chainrule.ir.field import Field, pair_average, unknown, worst
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.elementwise import multiplied
from chainrule.ops.fields.functions import applied, average_law, correlations, passed
from chainrule.ops.fields.integrals import hermite, nodes
from chainrule.ops.fields.layers import fitted
from chainrule.ops.fields.registry import sizes
from chainrule.ops.quadrature import breaks_of, kinks_of

_MOST_OPS = 200
_REACH = 9.0
_GRID = 801


@dataclass(frozen=True)
class Region:
    """``node`` as a function of the values ``leaves``; ``numbers`` are what it reads besides."""

    node: Node
    leaves: tuple[Node, ...]
    ops: tuple[Node, ...]
    numbers: Mapping[Node, float]
    states: Mapping[Node, Any]
    shared: bool = False  # leaves have common sources, and are taken as independent

    def function(self, *values: Any) -> np.ndarray:
        """The node's value where the leaves have these values."""
        return np.asarray(self._table(values)[self.node], dtype=float)

    def _table(self, values: Sequence[Any], moved: Node | None = None, step: Any = 0.0) -> dict[Node, Any]:
        table: dict[Node, Any] = {**self.numbers, **dict(zip(self.leaves, values, strict=True))}
        with np.errstate(all="ignore"):
            for n in self.ops:
                table[n] = n.op.value(*(table[i] for i in n.inputs), **n.params)
                if n is moved:
                    table[n] = table[n] + step
        return table

    def breaks(self) -> list[float]:
        """Where an operand changes sign, meets a declared kink, or meets another operand."""
        u = self.states[self.leaves[0]]
        m, _ = average_law(u)
        deviation = float(np.sqrt(np.max(u.variance)))
        if deviation == 0 or all(_smooth(n) for n in self.ops):
            return []
        if len(self.ops) == 1 and len(self.node.inputs) == 1:
            return kinks_of(self.node)

        low = min(float(np.min(u.mean)), m) - _REACH * deviation
        high = max(float(np.max(u.mean)), m) + _REACH * deviation
        sharp = [n for n in self.ops if not _smooth(n)]
        return breaks_of(sharp, lambda x: self._table([x]), np.linspace(low, high, _GRID))

    def applied(self) -> Field:
        """The field of the node."""
        if len(self.leaves) == 1:
            u = self.states[self.leaves[0]]
            found = applied(self.function, replace(u, array=None), self.breaks())
            return found if found.shape == sizes(self.node.shape) else _stretched(found, sizes(self.node.shape))
        return _of_several(self)

    def inside(self, g: Field) -> dict[Node, Field]:
        """What this use of the region adds to the cotangents of its own values."""
        shape = sizes(self.node.shape)
        inner = [n for n in self.ops if n is not self.node and n.type.is_float and n.shape == self.node.shape]
        if len(self.leaves) != 1:
            return {n: multiplied([g, _of_several(self, slope=n)], shape) for n in inner}
        u = replace(self.states[self.leaves[0]], array=None)
        u = u if u.shape == shape else _stretched(u, shape)
        breaks, found = self.breaks(), {}
        for n in inner:

            def slope(x: np.ndarray, n: Node = n) -> np.ndarray:
                level = np.asarray(self._table([x])[n], dtype=float)
                step = 1e-6 * (1e-3 + np.abs(level))
                return (self.moved((x,), n, step) - self.moved((x,), n, -step)) / (2 * step)

            found[n] = replace(multiplied([g, applied(slope, u, breaks)], shape), normal=False)
        return found

    def moved(self, values: Sequence[Any], inner: Node, step: Any) -> np.ndarray:
        """The node's value where an inner value is changed by a step."""
        return np.asarray(self._table(values, inner, step)[self.node], dtype=float)

    def back(self, g: Field) -> list[tuple[Node, Field]]:
        """The cotangent of each leaf."""
        shape = sizes(self.node.shape)
        if len(self.leaves) == 1:
            leaf = self.leaves[0]
            u = replace(self.states[leaf], array=None)
            u = u if u.shape == shape else _stretched(u, shape)
            part = passed(g, self.function, u, self.breaks(), shape)
            return [(leaf, fitted(part, sizes(leaf.shape)))]
        found = []
        for leaf in self.leaves:
            slope = _of_several(self, slope=leaf)
            part = multiplied([g, slope], shape)
            if leaf.shape == self.node.shape:

                def made(level: float, size: float, leaf: Node = leaf) -> Field:
                    return _of_several(self, slope=leaf, times=(level, size))

                part = replace(part, own_alignment=_own_alignment(self, leaf))
                part = _met_by(part, g, self, leaf)
                part = replace(part, through=(part.pairs, g, made))
            found.append((leaf, fitted(part, sizes(leaf.shape))))
        return found


def _smooth(node: Node) -> bool:
    """Whether an op neither declares a kink nor makes or reads a truth value."""
    return not node.op.kinks and all(t.type.dtype != "bool" for t in (node, *node.inputs))


def region_of(
    node: Node,
    states: Mapping[Node, Any],
    roots: Callable[[Node], frozenset[Node]],
    direct: bool = False,
    active: Collection[Node] = (),
) -> Region | None:
    """The region of a node; None where it depends on too many values, or on one that is not known.

    ``direct``: the node alone, of its operands. ``active``: values that are leaves even where they are given numbers.
    """

    def number(n: Node) -> bool:
        return n not in active and _number(states[n])

    leaves = _leaves(node, states, roots, number, direct)
    shared = False
    if len(leaves) > 2 and not direct:
        leaves = _leaves(node, states, roots, number, any_law=True)
        if len(leaves) > _MOST_LEAVES:
            leaves = [i for i in dict.fromkeys(node.inputs) if not number(i)]
            if len(leaves) > 2:
                return None
    if not 1 <= len(leaves) <= _MOST_LEAVES or any(not states[leaf].known for leaf in leaves):
        return None
    if len(leaves) > 1:
        own = [roots(leaf) for leaf in leaves]
        shared = sum(map(len, own)) > len(frozenset().union(*own))
    inside = set(leaves)
    ops = [
        n
        for n in toposort([node], stop=lambda n: n in inside or (n is not node and number(n)))
        if n not in inside and not (n is not node and number(n))
    ]
    numbers = {i: float(states[i].array.ravel()[0]) for n in ops for i in n.inputs if i not in inside and number(i)}
    return Region(node, tuple(leaves), tuple(ops), numbers, states, shared)


def _leaves(
    node: Node,
    states: Mapping[Node, Any],
    roots: Callable[[Node], frozenset[Node]],
    number: Callable[[Node], bool],
    direct: bool = False,
    any_law: bool = False,
) -> list[Node]:
    """Where a region ends: at values that are not elementwise, and at normal ones (``any_law``: any) of their own."""
    order = {n: k for k, n in enumerate(toposort([node], stop=lambda n: n is not node and not _elementwise(n)))}
    frontier: set[Node] = {node}
    leaves: list[Node] = []
    seen = 0
    while frontier:
        last = max(frontier, key=order.__getitem__)
        frontier.discard(last)
        whole = last is not node and (
            direct
            or not _elementwise(last)
            or ((any_law or _as_leaf(states[last])) and _apart(last, frontier, leaves, roots))
        )
        if whole or seen > _MOST_OPS:
            leaves.append(last)
            continue
        seen += 1
        frontier |= {i for i in last.inputs if not number(i)}
    return leaves


def _as_leaf(value: Any) -> bool:
    return value.normal or not value.known


def _apart(node: Node, frontier: set[Node], leaves: Sequence[Node], roots: Callable[[Node], frozenset[Node]]) -> bool:
    """Whether no other path reaches what this node is made of."""
    own = roots(node)
    return all(not own & roots(n) for n in (*frontier, *leaves))


def _number(value: Any) -> bool:
    return value.array is not None and value.array.size == 1


def _elementwise(node: Node) -> bool:
    return node.op.family == "elementwise" and bool(node.inputs)


def _stretched(value: Field, shape: Sequence[int]) -> Field:
    """A field broadcast to a shape."""
    flat = Field((), np.array(0.0), np.array(0.0), np.array(0.0), array=np.array(0.0))
    (found, _), _ = broadcasted([value, replace(flat, dims=((),) * len(shape))], len(shape), shape)
    if found.shape == tuple(shape):
        return found
    for d, n in enumerate(shape):
        if found.shape[d] != n:
            found = with_factor(without_ones(found, d), d, Axis(n))
    return found


# ---- functions of several independent values ---------------------------------------------------------------
_MOST_LEAVES = 4
_TERMS = {2: 12, 3: 6, 4: 4}  # of a series along each leaf, by their number
_POINTS = {3: 20, 4: 12}
_GROUPS = {2: 320, 3: 64, 4: 16}  # of given numbers among the leaves


def _of_several(region: Region, slope: Node | None = None, times: tuple[float, float] | None = None) -> Field:
    """f(u, v, ...) of independent values by a product quadrature; ``slope``: its derivative by one of them."""
    shape = sizes(region.node.shape)
    states = [replace(region.states[leaf], array=None) for leaf in region.leaves]
    full, dims = broadcasted([s if s.shape == shape else _stretched(s, shape) for s in states], len(shape), shape)
    axes = [x for dim in dims for x in dim]
    count = len(full)
    means = np.broadcast_arrays(*(f.mean for f in full), *(f.variance for f in full))
    laws = np.stack([m.ravel() for m in means])
    unique, back = np.unique(laws, axis=1, return_inverse=True)
    if unique.shape[1] > 16:
        given = bool(np.any(laws[count:].max(axis=1) == 0))  # numbers, each of them a law of its own
        most = 1024 if count == 2 and any(f.strata for f in full) else _GROUPS[count]
        unique, back = _grouped(laws, most if given else 1)
    first, second = np.empty(unique.shape[1]), np.empty(unique.shape[1])
    for k, law in enumerate(unique.T):
        pairs_of = list(zip(law[:count], np.sqrt(law[count:]), strict=True))
        values, _, weight = _grid(region, pairs_of, slope, times)
        first[k], second[k] = np.sum(weight * values), np.sum(weight * values**2)
    if not np.all(np.isfinite(second)):
        return unknown(shape, "the function has no value on part of a normal law")
    first, second = first[back.ravel()].reshape(means[0].shape), second[back.ravel()].reshape(means[0].shape)
    values, standard, weight = _grid(region, [average_law(f) for f in full], slope, times)
    coefficients = weight * values
    for z in standard:  # each leaf's points in front give way to its terms behind
        terms = hermite(z, _TERMS[count]) if z.size > 1 else np.eye(_TERMS[count], 1)
        coefficients = np.tensordot(coefficients, terms, axes=([0], [1]))
    squares = coefficients**2
    at_one = float(np.sum(weight * values**2))
    series = _series(squares, np.broadcast_arrays(*(correlations(f) for f in full)))
    base, top = squares[(0,) * count], float(squares.sum())
    rho = (series - base) / (top - base) if top - base > 1e-12 * max(top, 1e-300) else np.zeros_like(series)
    std = np.sqrt(np.maximum(second - first**2, 0.0))
    pairs = pair.outer(first, first, axes) + rho * pair.outer(std, std, axes)
    fourth = float(np.sum(weight * values**4))
    level = pair_average(np.broadcast_to(series, np.broadcast_shapes(series.shape, (1,) * len(axes))), axes)
    turned = 1.0 - base / level if level > 0 else 1.0  # the part of the products that depends on directions
    own = sum(len(f.sources) for f in full) == len(frozenset().union(*(f.sources for f in full)))
    sure = all(f.normal and not f.mixed for f in full) and unique.shape[1] == 1 and own and not region.shared
    return Field(
        dims,
        first,
        second,
        pairs,
        kurtosis=fourth / at_one**2 if at_one > 0 else 1.0,
        scale={},
        noise=sum(f.noise for f in full) * turned**2,
        noise_lean=sum(f.noise_lean for f in full) * turned,
        rough=sum(f.rough for f in full),
        units=max(f.units for f in full),
        strata=max(f.strata for f in full),
        sources=frozenset().union(*(f.sources for f in full)),
        kind=worst(*(f.kind_of_both for f in full), "exact" if sure else "approximate"),
        why="operands with common sources, taken as independent" if region.shared else "quadrature under normal laws",
    )


def _grouped(laws: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(means of groups of similar laws, each law's group)."""
    order = np.lexsort(laws[np.argsort(laws.var(axis=1), kind="stable")])  # by what differs most
    groups = np.array_split(order, min(most, laws.shape[1]))
    back = np.empty(laws.shape[1], dtype=int)
    for k, g in enumerate(groups):
        back[g] = k
    return np.stack([laws[:, g].mean(axis=1) for g in groups], axis=1), back


def _series(squares: np.ndarray, correlation: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of squared coefficients times powers of the leaves' correlations."""
    if len(correlation) == 2:
        return np.polynomial.polynomial.polyval2d(correlation[0], correlation[1], squares)
    found = np.zeros(correlation[0].shape)
    for powers in np.argwhere(squares > 1e-6 * squares.max()):
        term: Any = squares[tuple(powers)]
        for c, power in zip(correlation, powers, strict=True):
            if power:
                term = term * c ** int(power)
        found = found + term
    return found


def _own_alignment(region: Region, leaf: Node) -> float:
    """E[f_u u (f_u u + f_v v + ...)] over E[f_u^2] E[u^2] of f: how this leaf's part moves with the leaves' size."""
    laws = [average_law(replace(region.states[n], array=None)) for n in region.leaves]
    parts, moments = {}, {}
    weight: Any = 0.0
    for k, (n, (m, s)) in enumerate(zip(region.leaves, laws, strict=True)):
        slopes, standard, weight = _grid(region, laws, n)
        parts[n] = slopes * _along(m + s * standard[k], k, len(laws))
        moments[n] = float(np.sum(weight * slopes**2)) * (m * m + s * s)
    whole = sum(parts.values())
    return float(np.sum(weight * parts[leaf] * whole)) / moments[leaf] if moments[leaf] > 0 else 1.0


def _met_by(part: Field, g: Field, region: Region, leaf: Node) -> Field:
    """The cotangent g f_u of a leaf where g has a part along f: it is large where f is, and so where that leaf decides.

    As of one value (``ops.fields.functions``): of the larger of two, the wider one wins where g is large.
    """
    if g.array is not None or not (g.alignment or g.drift):
        return part
    laws = [average_law(replace(region.states[n], array=None)) for n in region.leaves]
    k = region.leaves.index(leaf)
    m, s = laws[k]
    values, _, weight = _grid(region, laws, None)
    slopes, standard, _ = _grid(region, laws, leaf)
    square, steep = float(np.sum(weight * values**2)), float(np.sum(weight * slopes**2))
    level = m * m + s * s
    if not square > 0 or not steep > 0 or not level > 0:
        return part
    lift = 1.0 + g.alignment * (float(np.sum(weight * (values * slopes) ** 2)) / (square * steep) - 1.0)
    if not lift > 0:
        return part
    growth = float(np.sum(weight * slopes * _along(m + s * standard[k], k, len(laws)) * values)) / square
    turn = growth * float(np.sqrt(square / (steep * level * lift)))
    drift = float(np.clip(g.drift * turn, -1.0, 1.0))
    alignment = max(g.alignment * turn**2, drift**2)
    return replace(part, second=part.second * lift, pairs=part.pairs * lift, alignment=alignment, drift=drift)


def _along(points: np.ndarray, k: int, count: int) -> np.ndarray:
    """Points of leaf k, to be broadcast against those of the others."""
    return points.reshape([-1 if j == k else 1 for j in range(count)])


def _points(mean: float, std: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, standardised, weights) for one of so many leaves."""
    if std == 0:
        return np.array([mean]), np.zeros(1), np.ones(1)
    if count == 2:
        u, z, w = (x[0] for x in nodes(np.array([mean]), np.array([std]), [0.0]))
        return u, z, w
    z, w = np.polynomial.hermite_e.hermegauss(_POINTS[count])
    return mean + std * z, z, w / w.sum()


def _grid(
    region: Region,
    laws: Sequence[tuple[float, float]],
    slope: Node | None,
    times: tuple[float, float] | None = None,
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """(values, each leaf's standardised points, weights) at the points of a product quadrature."""
    count = len(laws)
    points = [_points(m, s, count) for m, s in laws]
    grid = [_along(u, k, count) for k, (u, _, _) in enumerate(points)]
    if slope is None:
        values = region.function(*grid)
    elif slope in region.leaves:
        k = region.leaves.index(slope)
        step = 1e-5 * (laws[k][1] or 0.1)
        up = [u + step * (j == k) for j, u in enumerate(grid)]
        down = [u - step * (j == k) for j, u in enumerate(grid)]
        values = (region.function(*up) - region.function(*down)) / (2 * step)
        if times is not None:  # with the standardised leaf at this level and size
            level, size = times
            values = values * (level + size * _along(points[k][1], k, count))
    else:
        step = 1e-6 * (sum(s for _, s in laws) or 1.0)
        values = (region.moved(grid, slope, step) - region.moved(grid, slope, -step)) / (2 * step)
    values = np.broadcast_to(values, [u.size for u, _, _ in points])
    weight = reduce(np.multiply, (_along(w, k, count) for k, (_, _, w) in enumerate(points)))
    return values, [z for _, z, _ in points], weight
