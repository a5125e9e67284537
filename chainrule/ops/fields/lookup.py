"""Fields of embeddings and other lookups by integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.field import Dims, Echo, Field, fixed, unknown, within_budget, worst
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import aligned
from chainrule.ops.fields.elementwise import multiplied
from chainrule.ops.fields.movement import along, picked
from chainrule.ops.fields.registry import rule, sizes

_MOST_TOKENS = 4096
_MOST_POSITIONS = 512


def alike(index: Field, dims: Dims, rows: int, weights: np.ndarray | None = None) -> np.ndarray:
    """How often two places of an index hold the same number, by class of pair; ``weights``: of each number."""
    axes = [a for dim in dims for a in dim]
    if index.array is None or index.array.size > _MOST_TOKENS:
        table = np.full([a.classes for a in axes], 1.0 / max(rows, 1))
        for position in np.ndindex(*[len(a.same) for a in axes]):
            table[tuple(a.same[p] for a, p in zip(axes, position, strict=True))] = 1.0
        return table
    values = np.broadcast_to(index.array, [a.size for a in axes])
    found, back = np.unique(values, return_inverse=True)
    hot = np.zeros((values.size, found.size))
    hot[np.arange(values.size), back.ravel()] = 1.0 if weights is None else np.sqrt(weights[values.ravel().astype(int)])
    hot = hot.reshape(*values.shape, found.size)
    extra = Axis(found.size, 0)
    table = pair.outer(hot, hot, [*axes, extra])
    return pair.traced(table, len(axes), extra)[..., 0]


def _take_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    x, index = inputs
    axis = int(node.params["axis"])
    if not wanted[0]:
        return [None, None]
    if not g.known:
        return [unknown(x.shape, g.why), None]
    if not x.fresh and index.array is not None and len(index.dims) == 1 and x.shape[axis] <= _MOST_POSITIONS:
        back = np.zeros((x.shape[axis], index.shape[0]))  # positions, as of a padding
        back[np.broadcast_to(index.array, index.shape).astype(int), np.arange(index.shape[0])] = 1.0
        return [replace(along(g, axis, back), units=g.units, noise=g.noise), None]
    places = list(range(axis, axis + len(index.dims)))
    rows = x.shape[axis]
    shown = replace(
        index,
        mean=np.zeros_like(index.mean),
        second=np.zeros_like(index.second),
        pairs=alike(index, index.dims, rows),
        array=None,
    )
    labels = [list(range(len(g.dims))), places]
    g, shown = aligned([g, shown], labels)
    table = g.pairs
    start = np.cumsum([0, *(len(d) for d in g.dims)])
    factors = [k for d in places for k in range(start[d], start[d + 1])]
    shape = [1] * table.ndim
    if factors:
        both = shown.pairs
        shape[factors[0] : factors[-1] + 1] = list(both.shape)
        table = table * both.reshape(shape)
    for k in factors:
        table = pair.total(table, k, g.axes[k])
    table = np.squeeze(table, tuple(factors)) / rows
    dims = (*g.dims[:axis], (Axis(rows, 0),), *g.dims[axis + len(index.dims) :])
    where = sum(len(d) for d in g.dims[:axis])
    axes = [a for dim in dims for a in dim]
    table = np.expand_dims(table, where)
    second = pair.resolved(table, axes)
    return [
        Field(
            dims,
            np.full((1,) * len(axes), g.mean_value * float(np.prod(index.shape)) / rows),
            np.maximum(second, 0.0),
            table,
            kind=g.kind_of_both,
            scale=g.scale,
            lean=g.lean,
            why="summed over equal numbers",
        ),
        None,
    ]


@rule("take", backward=_take_back)
def _take(node: Node, inputs: Sequence[Field]) -> Any:
    x, index = inputs
    axis = int(node.params["axis"])
    if not x.known:
        return unknown(sizes(node.shape), "what is looked up is unknown", x.sources)
    if not x.fresh and index.array is not None and len(index.dims) == 1:
        return picked(x, axis, np.broadcast_to(index.array, index.shape).astype(int))
    return _exchangeable(x, index, axis)


def _exchangeable(x: Field, index: Field, axis: int) -> Field:
    """Rows that are alike: the same row twice, or two different ones."""
    start = sum(len(d) for d in x.dims[:axis])
    count = len(x.dims[axis])
    weights = _weights_of_rows(x, index, start, count)
    same = alike(index, index.dims, x.shape[axis], weights)
    axes = x.axes[start : start + count]
    equal, every = x.pairs, x.pairs
    n = 1.0
    for j, a in enumerate(axes):
        equal = pair.traced(equal, start + j, a)
        every = pair.total(every, start + j, a)
        n *= a.size
    equal = equal / n
    far = (every - n * equal) / max(n * (n - 1.0), 1.0) if n > 1 else equal
    flat = (*equal.shape[:start], *(1,) * same.ndim, *equal.shape[start + count :])
    shape = [1] * len(flat)
    shape[start : start + same.ndim] = list(same.shape)
    share = same.reshape(shape)
    table = equal.reshape(flat) * share + far.reshape(flat) * (1 - share)
    dims = (*x.dims[:axis], *index.dims, *x.dims[axis + 1 :])

    def spread(array: np.ndarray) -> np.ndarray:
        if weights is not None and array.shape[start] > 1 and index.array is not None:
            there = np.broadcast_to(index.array, [a.size for a in index.axes]).astype(int)
            return np.take(array, there, axis=start)
        array = np.mean(array, axis=tuple(range(start, start + count)), keepdims=True)
        return array.reshape(*array.shape[:start], *(1,) * same.ndim, *array.shape[start + count :])

    found = within_budget(
        replace(
            x,
            dims=dims,
            mean=spread(x.mean),
            second=spread(x.second),
            pairs=table,
            fresh=False,
            normal=x.normal,
            array=None,
            own=None,
            kind=worst(x.kind, "exact" if index.array is not None else "approximate"),
            units=float(x.shape[-1]) if x.fresh else x.units,
            why="rows of a table; equal numbers give equal rows",
        )
    )
    return replace(found, echo=_echo(x, index) if axis == 0 else None)


def _weights_of_rows(x: Field, index: Field, start: int, count: int) -> np.ndarray | None:
    """The mean squares of a table's rows over their mean, where they differ, as an empty one does."""
    if index.array is None or index.array.size > _MOST_TOKENS or count != 1 or x.second.shape[start] == 1:
        return None
    by_row = np.mean(x.second, axis=tuple(k for k in range(x.second.ndim) if k != start))
    level = float(np.mean(by_row))
    return by_row / level if level > 0 and not np.any(x.mean) else None


def _echo(table: Field, index: Field) -> Echo | None:
    """Rows of a table remember which they are."""
    if not table.fresh or len(table.sources) != 1 or index.array is None or index.array.size > _MOST_TOKENS:
        return None
    numbers = np.broadcast_to(index.array, [a.size for a in index.axes]).reshape(index.shape).astype(int)
    return Echo(next(iter(table.sources)), 1.0, numbers, table.mean_square)


def _padded_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    """Rows of the padding number get nothing."""
    index = inputs[1]
    if index.array is None or not g.known:
        return [g, None]
    kept = (np.broadcast_to(index.array, [a.size for a in index.axes]) != node.params["padding"]).astype(float)
    if kept.all():
        return [g, None]
    mask = replace(
        fixed(kept, [a.lags for a in index.axes]), dims=(*index.dims, *((),) * (len(g.dims) - len(index.dims)))
    )
    found = multiplied([g, mask], g.shape)
    return [replace(found, units=g.units, alignment=g.alignment, own_alignment=g.own_alignment), None]


@rule("padded_rows", backward=_padded_back)
def _padded(node: Node, inputs: Sequence[Field]) -> Any:
    """The padding row starts at zero: equal rows at padded places are equal zeros, not equal draws."""
    rows, index = inputs
    if not rows.known or rows.array is not None or index.array is None:
        return rows
    kept = np.broadcast_to(index.array, [a.size for a in index.axes]) != node.params["padding"]
    if kept.all():
        return rows
    mask = fixed(kept.reshape(*index.shape, 1).astype(float), [*(a.lags for a in index.axes), 0])
    return multiplied([rows, mask], sizes(node.shape))
