"""Moments of a function of one random value, however many elementwise ops it is written with.

``x * sigmoid(x)`` is not a product of independent factors. The region between a node and the one random value that
all of it depends on is composed and integrated once, over that value's law, split where the numbers show that an
argument changes sign or passes a declared kink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node, toposort
from chainrule.ir.moments import UNKNOWN, Moments, worst
from chainrule.ops.quadrature import breaks_of, law_nodes, law_range

_GRID = 1601  # points among which sign changes are looked for
_CHECKED = 8  # pairs of mean and variance whose integral is done twice
_MOST_NODES = 200  # of a region
_TOLERANCE = 1e-6  # between the two quadratures; an expectation that differs more does not exist
_LAWS = ("normal", "uniform")


def fused(node: Node, states: Mapping[Node, Moments], any_law: bool) -> Moments | None:
    """The moments of ``node`` by one quadrature over the value it depends on; None where there is no such value.

    An expectation that does not exist is unknown. ``any_law``: a value of unknown law is taken as normal, and the
    result is approximate.
    """
    found = _source(node, states, any_law)
    if found is None:
        return None
    source, region = found
    u = states[source]
    given = _given(region, source, states)
    if given is None:
        return None

    table = _composed(source, region, given)
    law = u.law if u.law in _LAWS else "normal"
    bounds = u.bounds if law == "uniform" else None
    means, variances = np.broadcast_arrays(np.asarray(u.mean, dtype=float), np.asarray(u.variance, dtype=float))
    pairs, back = np.unique(np.stack([means.ravel(), variances.ravel()]), axis=1, return_inverse=True)
    integrals = np.empty((3, pairs.shape[1]))
    odd = bool(u.odd) and bool(np.all(pairs[0] == 0))
    stds = np.sqrt(np.maximum(pairs[1], 0.0))
    ranges = [law_range(law, m, s, bounds) for m, s in zip(pairs[0], stds, strict=True)]
    grid = np.linspace(min(r[0] for r in ranges), max(r[1] for r in ranges), _GRID)
    kinks = breaks_of(region, table, grid, most=16, halvings=60, apart=1e-12) if np.any(stds > 0) else []
    for k, (mean, std) in enumerate(zip(pairs[0], stds, strict=True)):
        both = []
        for fine in (False, True) if k < _CHECKED else (False,):
            x, w = law_nodes(law, mean, std, bounds, kinks, fine)
            y = np.broadcast_to(np.asarray(table(x)[node], dtype=float), x.shape)
            with np.errstate(all="ignore"):
                both.append([float(np.sum(w * y**p)) for p in (1, 2, 4)])
        (_, second, _), (mean2, second2, _) = both[0], both[-1]
        if not np.isfinite(second) or abs(second - second2) > _TOLERANCE * abs(second2):
            return replace(UNKNOWN, sources=u.sources, why=f"the integral under the {law} law does not converge")
        if abs(both[0][0] - mean2) > _TOLERANCE * np.sqrt(abs(second2)):
            return replace(UNKNOWN, sources=u.sources, why=f"the integral under the {law} law does not converge")
        integrals[:, k] = both[0]
        if odd:
            values = np.asarray(table(grid)[node], dtype=float)
            mirror = np.asarray(table(-grid)[node], dtype=float)
            odd = bool(np.all(np.abs(values + mirror) <= 1e-12 * (1 + np.abs(values))))
    first, second, fourth = (row[back.ravel()].reshape(means.shape) for row in integrals)
    first = np.where(odd | (np.abs(first) < 1e-14 * np.sqrt(second)), 0.0, first)
    why = f"quadrature under a {law} law" if u.law in _LAWS else "quadrature as if the law were normal"
    if means.ndim and means.ndim < node.type.rank:
        extra = (1,) * (node.type.rank - means.ndim)
        first, second, fourth = (a.reshape(extra + a.shape) for a in (first, second, fourth))
    return Moments(
        first,
        second,
        law="symmetric" if odd else "any",
        taken=source if u.law in _LAWS and u.limit else None,
        kind=u.kind if u.law in _LAWS and not u.limit else worst(u.kind, "approximate"),
        sources=u.sources,
        odd=u.odd if odd else frozenset(),
        unit_spread=u.unit_spread,
        kurtosis=np.divide(fourth, second**2, out=np.ones_like(second), where=second > 0),
        independent=u.independent and source.shape == node.shape,
        why=why,
    )


def _composed(
    source: Node, region: Sequence[Node], given: Mapping[Node, float]
) -> Callable[[np.ndarray], dict[Node, np.ndarray]]:
    """x -> the value of every node of the region where the source is x."""

    def table(x: np.ndarray) -> dict[Node, np.ndarray]:
        values: dict[Node, Any] = {source: x, **given}
        with np.errstate(all="ignore"):
            for n in region:
                values[n] = n.op.value(*(values[i] for i in n.inputs), **n.params)
        return values

    return table


def _source(node: Node, states: Mapping[Node, Moments], any_law: bool) -> tuple[Node, Sequence[Node]] | None:
    """The nearest value with a numeric law that everything random in ``node`` passes, and the ops in between."""
    rank = {n: k for k, n in enumerate(toposort([node], stop=lambda n: n is not node and not _elementwise(n)))}
    frontier, seen = {node}, 0
    fallback = None
    while frontier and seen < _MOST_NODES:
        last = max(frontier, key=rank.__getitem__)
        if last is not node and len(frontier) == 1:
            state = states[last]
            numeric = state.known and state.mean is not None and not isinstance(state.second, Node)
            numeric = numeric and not isinstance(state.mean, Node)
            if numeric and state.law in _LAWS and (state.law != "uniform" or state.bounds is not None):
                return last, _between(node, last, states)
            if numeric and any_law and state.law in ("any", "symmetric"):
                fallback = last
        if not _elementwise(last):
            break
        frontier.remove(last)
        frontier |= {i for i in last.inputs if i in states and states[i].law != "given"}
        seen += 1
    return (fallback, _between(node, fallback, states)) if fallback is not None else None


def _elementwise(node: Node) -> bool:
    return node.op.family == "elementwise" and bool(node.inputs)


def _between(node: Node, source: Node, states: Mapping[Node, Moments]) -> list[Node]:
    def stops(n: Node) -> bool:
        return n is source or (n is not node and states[n].law == "given")

    return [n for n in toposort([node], stop=stops) if not stops(n)]


def _given(region: Sequence[Node], source: Node, states: Mapping[Node, Moments]) -> dict[Node, float] | None:
    """The numbers that the region reads; None where one is symbolic or differs from element to element."""
    inside, numbers = {*region, source}, {}
    for n in region:
        for i in n.inputs:
            if i in inside:
                continue
            mean = states[i].mean
            if isinstance(mean, Node) or mean is None or not np.all(np.asarray(mean) == np.ravel(mean)[:1]):
                return None
            numbers[i] = float(np.ravel(mean)[0])
    return numbers
