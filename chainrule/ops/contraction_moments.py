"""How moments pass through contractions with independent weights of mean zero. Source: He et al. 2015."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Dim, Node, Op, apply, as_node, product
from chainrule.ir.moments import UNKNOWN, Moments, worst
from chainrule.ops.moment_rules import norm_fourth, over, sources_of, squared
from chainrule.ops.movement import expand_dims, squeeze


def contract(
    op: Op,
    values: Sequence[Any],
    operands: Sequence[tuple[int, ...]],
    result: Sequence[int],
    sizes: dict[int, int | Dim],
) -> Any:
    """The einsum of moment arrays, where a dimension of size 1 stands for equal elements.

    A summed dimension that no operand resolves counts its size; a free one stays 1. ``op``: the contraction of nodes.
    """
    present = dict.fromkeys(i for o in operands for i in o)
    if any(isinstance(v, Node) for v in values) or any(isinstance(sizes[i], Dim) for i in present):
        return _contract_nodes(op, values, operands, result, sizes)
    flat: list[Any] = []
    resolved: set[int] = set()
    for value, indices in zip(values, operands, strict=True):
        array = np.asarray(value, dtype=float)
        array = array.reshape((1,) * (len(indices) - array.ndim) + array.shape)
        kept = [a for a, i in enumerate(indices) if array.shape[a] != 1 or sizes[i] == 1]
        flat += [array.reshape([array.shape[a] for a in kept]), [indices[a] for a in kept]]
        resolved |= {indices[a] for a in kept}
    free = [i for i in result if i in resolved]
    total = np.einsum(*flat, free)
    count = float(product([sizes[i] for i in present if i not in result and i not in resolved]))  # type: ignore[arg-type]
    shape = [total.shape[free.index(i)] if i in resolved else 1 for i in result]
    return (total * count).reshape(shape)


def _contract_nodes(
    op: Op,
    values: Sequence[Any],
    operands: Sequence[tuple[int, ...]],
    result: Sequence[int],
    sizes: dict[int, int | Dim],
) -> Node:
    """The same of formulas: given numbers differ from element to element, moments of a law are one scalar for all."""
    total, parts, own = as_node(1.0), [], []
    for value, indices in zip(values, operands, strict=True):
        v = as_node(value) if isinstance(value, Node) or np.size(value) > 1 else as_node(float(np.ravel(value)[0]))
        there = indices[len(indices) - v.type.rank :]
        equal = tuple(a for a, i in enumerate(there) if v.shape[a] == 1 and sizes[i] != 1)
        v, there = squeeze(v, equal), tuple(i for a, i in enumerate(there) if a not in equal)
        if there:
            parts.append(v)
            own.append(there)
        else:
            total = total * v
    resolved = {i for o in own for i in o}
    summed = dict.fromkeys(i for o in operands for i in o if i not in result and i not in resolved)
    count = product([sizes[i] for i in summed])
    total = total * as_node(count if isinstance(count, Dim) else float(count))
    if not parts:
        return total
    free = tuple(i for i in result if i in resolved)
    found = apply(op, *parts, operands=tuple(own), result=free)
    equal = tuple(a for a, i in enumerate(result) if i not in resolved) if free else ()
    return total * expand_dims(found, equal)


class ContractionRule:
    """A contraction of independent operands, at least one of which is random with mean zero given the others.

    E[y^2] sums E[a^2] E[b^2] over the contracted elements where the operand with independent zero-mean elements makes
    cross terms vanish; a contraction without such an operand needs covariances and is unknown, unless all is given.
    """

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        operands, result = node.params["operands"], node.params["result"]
        if any(not s.known for s in states):
            return replace(UNKNOWN, sources=sources_of(states))
        sizes = {i: s for n, o in zip(node.inputs, operands, strict=True) for i, s in zip(o, n.shape, strict=True)}
        summed = [i for i in sizes if i not in result]
        if all(s.law == "given" for s in states):
            mean = contract(node.op, [s.mean for s in states], operands, result, sizes)
            return Moments(mean, mean * mean, law="given", why="a function of given numbers")
        random = [k for k, s in enumerate(states) if (s.odd or s.fresh) and set(summed) <= set(operands[k])]
        squares = _sum_of_squares(states, node, operands, result, sizes)
        if squares is not None:
            return squares
        if len(states) == 1:
            return _single(states[0], node, summed, sizes, operands, result)
        if not random:
            return replace(
                UNKNOWN, sources=sources_of(states), why="a contraction without independent zero-mean weights"
            )
        second = contract(node.op, [s.second for s in states], operands, result, sizes)
        kinds = [s.kind for s in states]
        # Different elements of the weights are uncorrelated where they were drawn independently.
        weights = next((k for k in random if states[k].independent), random[0])
        others = [s for k, s in enumerate(states) if k != weights]
        why = "independent weights of mean zero: E[f^2] = sum of Var(w) E[h^2]"
        coupled = any(states[weights].sources & s.sources for s in others)
        if coupled:
            kinds.append("approximate")
        if summed and not states[weights].independent:
            kinds.append("approximate")
            why = "a sum of elements of mean zero taken as uncorrelated"
        count = product([sizes[i] for i in summed])
        spread: Any = 1.0
        if len(states) == 2 and isinstance(count, int) and not isinstance(second, Node):
            spread = _spread_of_inputs(others[0], operands[1 - weights], operands[weights], result, count)
        mean: Any = as_node(0.0) if isinstance(second, Node) else np.zeros(np.shape(second))
        own = states[weights]
        if not own.odd:
            # Weights around a mean: the mean part is that mean times the sum of the inputs, E[(sum h)^2] taken
            # with independent h; only their variance sums independently.
            if len(others) != 1 or own.mean is None or others[0].mean is None:
                return replace(UNKNOWN, sources=sources_of(states), why="weights with a mean, of an input without one")
            (h,) = others
            pair = (operands[weights], operands[1 - weights])
            mean = contract(node.op, [own.mean, h.mean], pair, result, sizes)
            second = contract(node.op, [own.variance, h.second], pair, result, sizes) + mean * mean
            second = second + contract(node.op, [own.mean * own.mean, h.variance], pair, result, sizes)
            kinds.append("exact" if h.law == "given" else "approximate")
        # A sum of normal weights times given numbers is normal; times random ones it is so in the limit of many.
        shared = any(own.sources & s.sources for s in others)
        certain = own.is_normal and all(s.law == "given" for s in others)
        return Moments(
            mean,
            second,
            coupled=coupled,
            law="normal",
            limit="" if certain else "symmetric" if own.odd else "any",
            kind=worst(*kinds),
            mean_kind="exact" if own.odd and not shared else worst(*kinds, *(s.kind_of_mean for s in states)),
            sources=sources_of(states),
            odd=frozenset().union(*(s.odd for s in states)) if own.odd else frozenset(),
            unit_spread=spread,
            why=why,
        )


def _sum_of_squares(
    states: Sequence[Moments], node: Node, operands: Any, result: Any, sizes: dict[int, Any]
) -> Moments | None:
    """``x . x`` of independent normal elements: their squares are independent, so both moments are known."""
    if len(states) != 2 or node.inputs[0] is not node.inputs[1] or operands[0] != operands[1] or result:
        return None
    x = states[0]
    if x.law != "normal" or not x.independent or x.mean is None:
        return None
    of_one = squared(x, node)
    if np.size(x.second) > 1 or np.size(x.mean) > 1 or not of_one.known:
        return None
    mean = contract(node.op, [of_one.mean], [operands[0]], (), sizes)
    variance = contract(node.op, [of_one.variance], [operands[0]], (), sizes)
    why = "a sum of independent squares, E[x^4] = 3 v^2 + 6 m^2 v + m^4"
    return Moments(
        mean,
        variance + mean * mean,
        taken=of_one.taken,
        kind=of_one.kind,
        mean_kind=of_one.kind_of_mean,
        sources=x.sources,
        why=why,
    )


def _spread_of_inputs(x: Moments, own: Sequence[int], weights: Sequence[int], result: Sequence[int], n: int) -> Any:
    """The spread that units of W x share: that of |x|^2, vector by vector."""
    if x.law == "given":
        return 1.0
    axes = tuple(a for a, i in enumerate(own) if i not in result)
    if any(i in weights and i in result for i in own):
        return 1.0
    squared = (n * over(x.second, axes)) ** 2
    spread = np.divide(norm_fourth(x, n, axes), squared, out=np.ones_like(squared), where=squared > 0)
    units = tuple(a for a, i in enumerate(result) if i not in own)
    return _moved_units(spread, own, axes, result, units)


def _moved_units(
    aligned: Any, result: Sequence[int], units: Sequence[int], own: Sequence[int], axes: Sequence[int]
) -> Any:
    """A per-vector array of f as one of x: the shared dimensions permuted, units dropped and added with size 1."""
    array = np.asarray(aligned, dtype=float)
    array = array.reshape((1,) * (len(result) - array.ndim) + array.shape)
    shared = [i for a, i in enumerate(result) if a not in units]
    array = array.reshape([array.shape[a] for a in range(len(result)) if a not in units])
    order = [shared.index(i) for a, i in enumerate(own) if a not in axes]
    return np.expand_dims(np.transpose(array, order), tuple(axes))


def _single(
    state: Moments, node: Node, summed: list[int], sizes: dict[int, Any], operands: Any, result: Any
) -> Moments:
    """Permutations, and sums of one value (whose elements are taken as independent)."""
    if not summed:
        if isinstance(state.second, Node) and not state.second.type.rank:
            return state
        mean = None if state.mean is None else contract(node.op, [state.mean], operands, result, sizes)
        return replace(state, mean=mean, second=contract(node.op, [state.second], operands, result, sizes))
    if state.mean is None:
        return replace(UNKNOWN, sources=state.sources)
    mean = contract(node.op, [state.mean], operands, result, sizes)
    variance = contract(node.op, [state.variance], operands, result, sizes)
    law = "normal" if state.law == "normal" or not state.independent else "symmetric" if state.odd else "any"
    certain = state.is_normal and state.independent
    return Moments(
        mean,
        variance + mean * mean,
        law=law,
        limit="" if law != "normal" or certain else "symmetric" if state.odd else "any",
        kind=worst(state.kind, state.kind_of_mean, *([] if state.independent else ["approximate"])),
        mean_kind=state.kind_of_mean,
        sources=state.sources,
        odd=state.odd,
        why="a sum of independent elements" if state.independent else "a sum of elements taken as independent",
    )
