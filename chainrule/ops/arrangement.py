"""Arrangement: rolls, repeats, diagonals set into matrices, and dimensions split and joined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Sample, TensorType, apply, constant, lowering, shape_text
from chainrule.ops.arithmetic import where
from chainrule.ops.contraction import einsum, permute
from chainrule.ops.families import linear, written_as_call
from chainrule.ops.movement import axis_of, broadcast, expand_dims, reshape, vector
from chainrule.ops.slicing import PAD, slice_axis
from chainrule.ops.windows import FLIP

_X = np.arange(12.0).reshape(3, 4) / 7 - 0.6


# ---- roll --------------------------------------------------------------------------------------------------
def _roll_shape(x: TensorType, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> TensorType:
    if len(shifts) != len(axes) or any(not 0 <= a < x.rank for a in axes):
        raise ShapeError("roll of dimensions that do not exist", given=f"{axes} of ({shape_text(x.shape)})")
    return x


def _rolled(x: Node, shifts: Sequence[int], dims: Sequence[int] = ()) -> Node:
    if not dims:
        flat = reshape(x, (x.type.numel,))
        return reshape(apply(ROLL, flat, shifts=tuple(shifts), axes=(0,)), x.shape)
    axes = tuple(axis_of(x, d) for d in dims)
    return reshape(apply(ROLL, vector(x), shifts=tuple(shifts), axes=axes), x.shape)


ROLL = linear(
    "roll",
    family="kernel",
    moments=None,
    shape=_roll_shape,
    value=lambda x, *, shifts, axes: np.roll(x, shifts, axes),
    transpose=lambda g, y, x, *, shifts, axes: apply(ROLL, g, shifts=tuple(-s for s in shifts), axes=axes),
    torch=lambda node, x: f"{x[0]}.roll({tuple(node.params['shifts'])}, {tuple(node.params['axes'])})",
    aten={"roll": _rolled, "rot90": lambda x, k=1, dims=(0, 1): _rotated(x, k, dims)},
    samples=(Sample((_X,), {"shifts": (1, -2), "axes": (0, 1)}),),
    error_samples=(Sample((_X,), {"shifts": (1,), "axes": (2,)}),),
    **written_as_call("roll"),
    source="numpy.roll",
)


def _rotated(x: Node, k: int, dims: Sequence[int]) -> Node:
    from_axis, to_axis = (axis_of(x, d) for d in dims)
    order = list(range(x.type.rank))
    order[from_axis], order[to_axis] = order[to_axis], order[from_axis]
    if k % 4 == 1:
        return permute(flipped(x, (to_axis,)), tuple(order))
    if k % 4 == 2:
        return flipped(x, (from_axis, to_axis))
    return permute(flipped(x, (from_axis,)), tuple(order)) if k % 4 == 3 else x


def flipped(x: Node, axes: Sequence[int]) -> Node:
    """The elements along ``axes`` in reverse order."""
    return apply(FLIP, x, axes=tuple(sorted(axes)))


# ---- repeats -----------------------------------------------------------------------------------------------
@lowering("repeat")
def repeated(x: Node, repeats: Sequence[int]) -> Node:
    """The whole tensor repeated along each dimension."""
    shape = (*(1,) * (len(repeats) - x.type.rank), *x.shape)
    pairs = tuple(n for size in shape for n in (1, size))
    copies = tuple(n for count, size in zip(repeats, shape, strict=True) for n in (count, size))
    spread = broadcast(reshape(x, pairs), copies)
    return reshape(spread, tuple(count * size for count, size in zip(repeats, shape, strict=True)))


@lowering("repeat_interleave.self_int")
def repeated_each(x: Node, repeats: int, dim: int | None = None, output_size: int | None = None) -> Node:
    """Each slice repeated in place."""
    whole = reshape(x, (x.type.numel,)) if dim is None else vector(x)
    axis = 0 if dim is None else axis_of(x, dim)
    spread = broadcast(expand_dims(whole, (axis + 1,)), (*whole.shape[: axis + 1], repeats, *whole.shape[axis + 1 :]))
    return reshape(spread, (*whole.shape[:axis], whole.shape[axis] * repeats, *whole.shape[axis + 1 :]))


# ---- diagonals ---------------------------------------------------------------------------------------------
@lowering("diagonal", "diagonal_copy", "linalg_diagonal")
def diagonal_of(x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """A diagonal of two dimensions, which becomes the last one."""
    row, column = axis_of(x, dim1), axis_of(x, dim2)
    rows, columns = int(x.shape[row]), int(x.shape[column])
    length = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    x = slice_axis(x, row, max(-offset, 0), max(-offset, 0) + length)
    x = slice_axis(x, column, max(offset, 0), max(offset, 0) + length)
    names = [row if a == column else a for a in range(x.type.rank)]
    return einsum(([tuple(names)], (*(a for a in names if a not in (row,)), row)), x)


@lowering("diag_embed")
def diagonal_set(x: Node, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Node:
    """A matrix of zeros with the last dimension on a diagonal."""
    size = int(x.shape[-1])
    spread = broadcast(expand_dims(x, (x.type.rank,)), (*x.shape, size))
    square = where(constant(np.eye(size, dtype=bool)), spread, constant(0.0, x.type.dtype))
    rank = square.type.rank
    low, high = [0] * rank, [0] * rank
    low[rank - 2 if offset < 0 else rank - 1] = abs(offset)
    high[rank - 1 if offset < 0 else rank - 2] = abs(offset)
    matrix = apply(PAD, square, low=tuple(low), high=tuple(high), interior=(0,) * rank)
    row, column = dim1 % rank, dim2 % rank
    batch = iter(range(rank - 2))
    return permute(
        matrix, tuple(rank - 2 if a == row else rank - 1 if a == column else next(batch) for a in range(rank))
    )


@lowering("diagonal_scatter")
def diagonal_replaced(x: Node, src: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """``x`` with another diagonal."""
    row, column = axis_of(x, dim1), axis_of(x, dim2)
    rows, columns = int(x.shape[row]), int(x.shape[column])
    mask = np.eye(rows, columns, offset, dtype=bool)
    embedded = diagonal_set(src, offset, row, column)
    embedded = _fitted(embedded, x)
    return where(_between(mask, x, row, column), embedded, x)


def _fitted(x: Node, like: Node) -> Node:
    """Cut or padded with zeros behind to another shape."""
    for axis, size in enumerate(like.shape):
        x = slice_axis(x, axis, 0, int(size)) if int(x.shape[axis]) > int(size) else x
    high = tuple(int(n) - int(m) for n, m in zip(like.shape, x.shape, strict=True))
    zeros = (0,) * x.type.rank
    return apply(PAD, x, low=zeros, high=high, interior=zeros) if any(high) else x


def _between(mask: np.ndarray, x: Node, row: int, column: int) -> Node:
    """A matrix of two of the dimensions of ``x``, broadcast over the others."""
    oriented = mask if row < column else mask.T
    shape = tuple(int(x.shape[a]) if a in (row, column) else 1 for a in range(x.type.rank))
    return constant(oriented.reshape(shape))


@lowering("select_scatter")
def selection_replaced(x: Node, src: Node, dim: int, index: int) -> Node:
    """``x`` with another slice at one position."""
    axis = axis_of(x, dim)
    size = int(x.shape[axis])
    mask = np.arange(size) == index % size
    return where(_along(mask, x, axis), expand_dims(src, (axis,)), x)


@lowering("slice_scatter")
def slice_replaced(
    x: Node, src: Node, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Node:
    """``x`` with other elements in a slice."""
    axis = axis_of(x, dim)
    size = int(x.shape[axis])
    first, last, step = slice(start, end, step).indices(size)
    mask = np.zeros(size, dtype=bool)
    mask[first:last:step] = True
    count = int(mask.sum())
    low, high, gaps = [0] * x.type.rank, [0] * x.type.rank, [0] * x.type.rank
    if not count:
        return x
    low[axis], gaps[axis] = first, step - 1
    high[axis] = size - (first + (count - 1) * step + 1)
    spread = apply(PAD, src, low=tuple(low), high=tuple(high), interior=tuple(gaps))
    return where(_along(mask, x, axis), spread, x)


def _along(mask: np.ndarray, x: Node, axis: int) -> Node:
    return constant(mask.reshape([-1 if a == axis else 1 for a in range(x.type.rank)]))


# ---- dimensions split and joined ---------------------------------------------------------------------------
@lowering("pixel_shuffle")
def pixel_shuffled(x: Node, factor: int) -> Node:
    """``(..., C r^2, H, W)`` as ``(..., C, H r, W r)``."""
    *batch, channels, height, width = map(int, x.shape)
    k = len(batch)
    parts = reshape(x, (*batch, channels // factor**2, factor, factor, height, width))
    mixed = permute(parts, (*range(k), k, k + 3, k + 1, k + 4, k + 2))
    return reshape(mixed, (*batch, channels // factor**2, height * factor, width * factor))


@lowering("pixel_unshuffle")
def pixel_unshuffled(x: Node, factor: int) -> Node:
    """``(..., C, H r, W r)`` as ``(..., C r^2, H, W)``."""
    *batch, channels, height, width = map(int, x.shape)
    k = len(batch)
    parts = reshape(x, (*batch, channels, height // factor, factor, width // factor, factor))
    mixed = permute(parts, (*range(k), k, k + 2, k + 4, k + 1, k + 3))
    return reshape(mixed, (*batch, channels * factor**2, height // factor, width // factor))


@lowering("channel_shuffle", "native_channel_shuffle")
def channel_shuffled(x: Node, groups: int) -> Node:
    """Channels of the groups dealt out in turn."""
    batch, channels, *sizes = map(int, x.shape)
    parts = reshape(x, (batch, groups, channels // groups, *sizes))
    return reshape(permute(parts, (0, 2, 1, *range(3, parts.type.rank))), x.shape)


@lowering("block_diag")
def block_diagonal(xs: Sequence[Node]) -> Node:
    """Matrices along the diagonal of one."""
    matrices = [reshape(x, (1,) * (2 - x.type.rank) + x.shape) for x in xs]
    rows, columns = (sum(int(m.shape[a]) for m in matrices) for a in (0, 1))
    total: Node | None = None
    down = right = 0
    for m in matrices:
        height, width = (int(n) for n in m.shape)
        placed = apply(PAD, m, low=(down, right), high=(rows - down - height, columns - right - width), interior=(0, 0))
        mask = np.zeros((rows, columns), dtype=bool)
        mask[down : down + height, right : right + width] = True
        total = placed if total is None else where(constant(mask), placed, total)
        down, right = down + height, right + width
    assert total is not None
    return total
