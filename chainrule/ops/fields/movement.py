"""Fields that change place: reshapes, slices, padding, concatenation, flips, repeated values, means over dimensions.

All are linear maps along single factors: ``y = A x`` along one factor takes E[x x'] to A E[x x'] A'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.factors import merged, regrouped, with_factor, without_ones
from chainrule.ir.field import Field, regraded, unknown, within_budget, worst
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.contraction import contracted
from chainrule.ops.fields.elementwise import scaled, uncorrelated
from chainrule.ops.fields.registry import rule, sizes

_FINE = 64  # positions of a dimension that is put together of parts, whose pairs are kept one by one


def along(value: Field, dim: int, matrix: np.ndarray, one_each: bool = False, fine: bool = False) -> Field:
    """A linear map (out, in) along one dimension of a field.

    ``one_each``: every output is one input (or zero). ``fine``: pairs of outputs are kept one by one.
    """
    out = matrix.shape[0]
    start = sum(len(d) for d in value.dims[:dim])
    count = len(value.dims[dim])
    value = merged(value, start, count) if count else with_factor(value, dim, Axis(1))
    old = value.axes[start]
    new = Axis(out, None) if fine else old.resized(out)
    table = pair.mapped(value.pairs, start, old, new, matrix, matrix)
    mean = _applied(value.mean, start, matrix)
    second = _applied(value.second, start, matrix * matrix)
    if not one_each:
        second = np.maximum(second + _off_diagonal(value, start, matrix, new, table), 0.0)
    dims = (*value.dims[:dim], (new,), *value.dims[dim + 1 :])
    return within_budget(
        replace(
            value,
            dims=dims,
            mean=mean,
            second=second,
            pairs=table,
            kind=value.kind if one_each else value.kind_of_both,
            mean_kind=value.kind_of_mean,
            array=None if value.array is None else _applied(value.array, start, matrix),
            own=value.own if value.array is None and one_each else (0.0 if value.array is not None else None),
            fresh=value.fresh and one_each,
        )
    )


def _off_diagonal(value: Field, k: int, matrix: np.ndarray, new: Axis, table: np.ndarray) -> np.ndarray:
    """What pairs of different positions along factor k add to E[y^2]."""
    old = value.axes[k]
    alone = np.zeros_like(value.pairs if value.pairs.shape[k] > 1 else np.repeat(value.pairs, old.classes, axis=k))
    index: list[Any] = [slice(None)] * alone.ndim
    index[k] = old.same
    alone[tuple(index)] = pair.resolved_one(value.pairs, k, old)
    diagonal = pair.mapped(alone, k, old, new, matrix, matrix)
    axes = [*value.axes[:k], new, *value.axes[k + 1 :]]
    return pair.resolved(table - diagonal, axes)


def _applied(array: np.ndarray, k: int, matrix: np.ndarray) -> np.ndarray:
    if array.shape[k] == 1:
        sums = matrix.sum(axis=1)
        if np.all(sums == sums[0]):
            return array * sums[0]
        return array * sums.reshape([-1 if d == k else 1 for d in range(array.ndim)])
    return np.moveaxis(np.tensordot(matrix, np.moveaxis(array, k, 0), axes=1), 0, k)


def picked(value: Field, dim: int, index: np.ndarray) -> Field:
    """Positions of one dimension by number; of a large exchangeable factor, only how many."""
    n = value.shape[dim]
    out = len(index)
    start = sum(len(d) for d in value.dims[:dim])
    count = len(value.dims[dim])
    value = merged(value, start, count) if count else with_factor(value, dim, Axis(1))
    old = value.axes[start]
    if out == n and np.array_equal(index, np.arange(n)):
        return value
    new = old.resized(out)

    def take(array: np.ndarray | None) -> np.ndarray | None:
        return array if array is None or array.shape[start] == 1 else np.take(array, index, axis=start)

    if value.pairs.shape[start] == 1:
        table = value.pairs
    elif old.lags is None:
        full = pair.lay_out(value.pairs, start, old)[..., index[:, None], index[None, :]]
        table = pair.average(full, start, new)
    elif old.lags == 0 or not old.laid_out:
        table = value.pairs if out > 1 else np.take(value.pairs, [0], axis=start)
        table = (
            table
            if out <= 1 or old.lags == 0
            else np.take(table, np.minimum(np.arange(new.classes), old.classes - 1), axis=start)
        )
    else:
        matrix = np.zeros((out, n))
        matrix[np.arange(out), index] = 1.0
        table = pair.mapped(value.pairs, start, old, new, matrix, matrix)
    dims = (*value.dims[:dim], (new,), *value.dims[dim + 1 :])
    first, second = take(value.mean), take(value.second)
    assert first is not None and second is not None
    echo, spike = (
        replace(e, rows=np.take(e.rows, index, axis=dim))
        if e is not None and dim < e.rows.ndim and e.rows.shape == value.shape[:-1]
        else None
        for e in (value.echo, value.spike)
    )
    return replace(
        value,
        dims=dims,
        echo=echo,
        spike=spike,
        mean=first,
        second=second,
        pairs=table,
        array=take(value.array),
        own=None if value.array is None else 0.0,
        own_sources=None,
    )


def spread_out(value: Field, dim: int, index: np.ndarray, size: int) -> Field:
    """The positions of one dimension put at ``index`` of a dimension of ``size``, zeros in between."""
    n = value.shape[dim]
    start = sum(len(d) for d in value.dims[:dim])
    count = len(value.dims[dim])
    value = merged(value, start, count) if count else with_factor(value, dim, Axis(1))
    old = value.axes[start]
    if not old.laid_out or size > 1024:
        return _mixed_with_zeros(value, start, dim, n, size)
    matrix = np.zeros((size, n))
    matrix[index, np.arange(n)] = 1.0
    return along(value, dim, matrix, one_each=True, fine=size <= _FINE and value.pairs.size * size * size < 100_000)


def _mixed_with_zeros(value: Field, k: int, dim: int, n: int, size: int) -> Field:
    share = n / size
    new = Axis(size, 0)
    value = regraded(value, k, Axis(n, 0))
    table = value.pairs
    if table.shape[k] == 1:
        table = np.repeat(table, min(2, size), axis=k)
    weight = np.array([share, share * (n - 1) / max(size - 1, 1)][: table.shape[k]])
    table = table * weight.reshape([-1 if d == k else 1 for d in range(table.ndim)])
    mean = np.mean(value.mean, axis=k, keepdims=True) * share
    second = np.mean(value.second, axis=k, keepdims=True) * share
    return replace(
        value,
        dims=(*value.dims[:dim], (new,), *value.dims[dim + 1 :]),
        mean=mean,
        second=second,
        pairs=table,
        array=None,
    )


# ---- the ops -----------------------------------------------------------------------------------------------
@rule("reshape")
def _reshape(node: Node, inputs: Sequence[Field]) -> Field:
    return regrouped(inputs[0], sizes(node.shape))


@rule("cast", "contiguous", "stop_gradient", "straight_through")
def _unchanged(node: Node, inputs: Sequence[Field]) -> Field:
    return inputs[0]


@rule("expand_dims", "squeeze")
def _expand(node: Node, inputs: Sequence[Field]) -> Field:
    return regrouped(inputs[0], sizes(node.shape)) if 1 in node.shape or 1 in node.inputs[0].shape else inputs[0]


@rule("broadcast")
def _broadcast(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    shape = sizes(node.shape)
    if x.array is not None and x.array.size == 1:
        one = x.array.reshape((1,) * len(shape))
        return replace(x, dims=tuple((Axis(n),) for n in shape), mean=one, second=one * one, pairs=one * one, array=one)
    for _ in range(len(shape) - len(x.dims)):
        x = replace(x, dims=((), *x.dims))
    for d, n in enumerate(shape):
        if x.shape[d] != n:
            x = with_factor(without_ones(x, d), d, Axis(n))
    return replace(x, array=None) if x.array is not None else x


@rule("slice")
def _slice(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    p = node.params
    for d, (start, stop, step) in enumerate(zip(p["starts"], p["stops"], p["steps"], strict=True)):
        if (start, stop, step) != (0, x.shape[d], 1):
            x = picked(x, d, np.arange(int(start), int(stop), int(step)))
    return x


@rule("flip")
def _flip(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    for d in node.params["axes"]:
        x = picked(x, d, np.arange(x.shape[d])[::-1].copy())
    return x


@rule("roll")
def _roll(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    p = dict(node.params)
    shifts = p.get("shifts", p.get("shift", ()))
    axes = p.get("axes", p.get("dims", ()))
    for d, s in zip(np.atleast_1d(axes), np.atleast_1d(shifts), strict=True):
        x = picked(x, int(d), np.roll(np.arange(x.shape[int(d)]), int(s)))
    return x


@rule("pad")
def _pad(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    p = node.params
    for d, (low, high, interior) in enumerate(zip(p["low"], p["high"], p["interior"], strict=True)):
        if (low, high, interior) == (0, 0, 0):
            continue
        n = x.shape[d]
        index = low + np.arange(n) * (interior + 1)
        keep = (index >= 0) & (index < sizes(node.shape)[d])
        if not keep.all():
            x = picked(x, d, np.flatnonzero(keep))
            index = index[keep]
        x = spread_out(x, d, index, sizes(node.shape)[d])
    return x


@rule("concat")
def _concat(node: Node, inputs: Sequence[Field]) -> Field:
    axis = int(node.params["axis"]) % len(node.shape)
    if len(inputs) == 1:
        return inputs[0]
    if any(not f.known for f in inputs):
        return unknown(sizes(node.shape), "a part is unknown", frozenset().union(*(f.sources for f in inputs)))
    return joined(inputs, axis, sizes(node.shape))


def joined(inputs: Sequence[Field], axis: int, shape: Sequence[int]) -> Field:
    """Uncorrelated parts one behind the other along a dimension."""
    n = shape[axis]
    wholes = []
    for f in inputs:
        start = sum(len(d) for d in f.dims[:axis])
        count = len(f.dims[axis])
        wholes.append(merged(f, start, count) if count else with_factor(f, axis, Axis(1)))
    offsets = np.cumsum([0, *(f.shape[axis] for f in wholes)])
    fine = any(f.axes[sum(len(d) for d in f.dims[:axis])].lags is None and f.shape[axis] > 1 for f in wholes)
    if n <= 64 and (fine or any(f.shape[axis] == 1 for f in wholes)):
        graded = Axis(n, None)
    else:
        graded = Axis(n, 0)
    parts = []
    for f, at in zip(wholes, offsets, strict=False):
        k = sum(len(d) for d in f.dims[:axis])
        own = f.axes[k]
        f = regraded(f, k, Axis(own.size, graded.lags))
        if graded.lags is None:
            f = spread_out(f, axis, at + np.arange(own.size), n)
        else:
            f = _mixed_with_zeros(f, k, axis, own.size, n)
            # arrays stay resolved where the part is
        parts.append(f)
    full, dims = broadcasted(parts, len(shape), shape)
    axes = [a for dim in dims for a in dim]
    k = sum(len(d) for d in dims[:axis])
    pairs = sum(f.pairs for f in full)
    for i, a in enumerate(full):
        for b in full[i + 1 :]:
            if np.any(a.mean) and np.any(b.mean):
                pairs = pairs + pair.outer(a.mean, b.mean, axes) + pair.outer(b.mean, a.mean, axes)
    mean, second = sum(f.mean for f in full), sum(f.second for f in full)
    if graded.lags is not None and not all(np.allclose(f.second.mean(), full[0].second.mean()) for f in full):
        mean, second = _blocks(wholes, axis, k, n, full)
    q = float(np.mean(second))
    scale: dict[Any, float] = {}
    lean = 0.0
    for whole in wholes:
        share = whole.mean_square * whole.shape[axis] / n / q if q > 0 else 0.0
        for key, e in whole.scale.items():
            scale[key] = scale.get(key, 0.0) + share * e
        lean += share * whole.lean
    random = [f for f in wholes if f.array is None]
    apart = all(uncorrelated(a, b) for i, a in enumerate(random) for b in random[i + 1 :])
    doubt = [] if apart else ["approximate"]  # pairs across the parts
    own = None
    if not all(f.normal for f in random):
        own = sum(f.own_spread * (f.mean_square * f.shape[axis] / n / q) ** 2 if q > 0 else 0.0 for f in random)
    return within_budget(
        Field(
            dims,
            np.asarray(mean),
            np.asarray(second),
            np.asarray(pairs),
            normal=all(f.normal for f in random) and bool(random),
            kurtosis=float(np.mean([f.kurtosis for f in wholes])),
            scale=scale,
            own=own,
            lean=lean,
            noise=max(f.noise for f in wholes),
            noise_lean=max(f.noise_lean for f in wholes),
            rough=max(f.rough for f in wholes),
            units=max(f.units for f in wholes),
            sources=frozenset().union(*(f.sources for f in wholes)),
            odd=frozenset.intersection(*(f.odd for f in wholes)),
            kind=worst(*(f.kind for f in wholes)),
            mean_kind=worst(*(f.kind_of_mean for f in wholes), *doubt),
            mixed=max((f.mixed for f in random), default=0),
            why="parts beside each other",
        )
    )


def _blocks(wholes: Sequence[Field], axis: int, k: int, n: int, full: Sequence[Field]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and second moment of parts with different moments, resolved along the joined dimension."""
    rank = full[0].mean.ndim
    found = []
    for name in ("mean", "second"):
        pieces = []
        for f, part in zip(wholes, full, strict=True):
            share = f.shape[axis] / n
            array = np.mean(getattr(part, name), axis=k, keepdims=True) / share
            pieces.append(np.repeat(array, f.shape[axis], axis=k))
        shape = [max(p.shape[d] for p in pieces) for d in range(rank)]
        pieces = [np.broadcast_to(p, [p.shape[d] if d == k else shape[d] for d in range(rank)]) for p in pieces]
        found.append(np.concatenate(pieces, axis=k))
    return found[0], found[1]


# ---- means and sums ----------------------------------------------------------------------------------------
def _mean_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    (x,) = inputs
    rank = len(x.dims)
    axes = node.params.get("axes")
    axes = [a % rank for a in (range(rank) if axes is None else axes)]
    count = int(np.prod([x.shape[d] for d in axes]))
    g = regrouped(g, [1 if d in axes else x.shape[d] for d in range(rank)])
    for d in axes:
        g = without_ones(g, d)
        for a in reversed(x.dims[d] or (Axis(1),)):
            g = with_factor(g, d, a)
    return [scaled(g, 1.0 / count)]


@rule("mean", backward=_mean_back)
def _mean(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    rank = len(x.dims)
    axes = node.params.get("axes")
    axes = [a % rank for a in (range(rank) if axes is None else axes)]
    kept = [d for d in range(rank) if d not in axes]
    count = int(np.prod([x.shape[d] for d in axes]))
    total = scaled(contracted([x], [list(range(rank))], kept, "sum"), 1.0 / count)
    total = replace(total, fresh=False)
    return regrouped(total, sizes(node.shape)) if len(node.shape) != len(kept) else total


def repeated(x: Field, dim: int, times: int) -> Field:
    """Each position of a dimension several times in a row."""
    start = sum(len(d) for d in x.dims[:dim])
    count = len(x.dims[dim])
    dims = list(x.dims)
    dims[dim] = (*dims[dim], Axis(times))
    put = lambda array: None if array is None else np.expand_dims(array, start + count)  # noqa: E731
    return replace(x, dims=tuple(dims), mean=put(x.mean), second=put(x.second), pairs=put(x.pairs), array=put(x.array))
