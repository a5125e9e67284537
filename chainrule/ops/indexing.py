"""Movement as formulas write it: ``x[1:, None]``, ``reshape(x, m, n)``, ``concat(a, b, 0)``, ``pad(x, 1,
0)``.

An index becomes at most one slice, one squeeze and one expand_dims, so that what is printed for each of these
ops is read back as the same node.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType

from chainrule.errors import ShapeError
from chainrule.ir import Dim, Node, apply, shape_text, spelling
from chainrule.ops.movement import expand_dims, reshape, squeeze
from chainrule.ops.slicing import PAD, SLICE, concat

Size = int | Dim
Item = Size | slice | None | EllipsisType


def index(x: Node, items: Sequence[Item]) -> Node:
    """``x[items]`` with NumPy's meaning; bounds may be named sizes.

    >>> from chainrule.ir import TensorType, variable
    >>> x = variable("x", TensorType((4, Dim("n"))))
    >>> index(x, [1]).shape, index(x, [..., None, slice(1, None)]).shape
    ((n,), (4, 1, n - 1))

    Raises:
        ShapeError: more indices than dimensions, an index outside its dimension, a step below 1.
    """
    rank = x.type.rank
    used = sum(1 for item in items if item is not None and item is not ...)
    if used > rank:
        raise ShapeError(
            f"{used} indices of a value with {rank} dimension{'s' * (rank != 1)}",
            given=f"shape ({shape_text(x.shape)})",
            required=f"at most {rank}" if rank else "a declared shape: an undeclared name is a scalar",
        )
    if sum(1 for item in items if item is ...) > 1:
        raise ShapeError("'...' twice in one index", required="once at most")
    whole: list[Item] = [slice(None)] * (rank - used)
    full = list(items) if any(item is ... for item in items) else [*items, ...]
    at = next(k for k, item in enumerate(full) if item is ...)
    full[at : at + 1] = whole

    starts: list[Size] = []
    stops: list[Size] = []
    steps: list[int] = []
    dropped: list[int] = []
    added: list[int] = []
    position = 0  # in the result
    for item in full:
        axis = len(starts)
        if item is None:
            added.append(position)
            position += 1
            continue
        if isinstance(item, slice):
            start, stop, step = _bounds(item, x.shape[axis])
            position += 1
        else:
            assert isinstance(item, (int, Dim))
            start = _position(item, x.shape[axis], axis)
            stop, step = start + 1, 1
            dropped.append(axis)
        starts.append(start)
        stops.append(stop)
        steps.append(step)
    moved = any(s != 0 for s in starts) or tuple(stops) != x.shape or any(s != 1 for s in steps)
    piece = apply(SLICE, x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)) if moved else x
    return expand_dims(squeeze(piece, tuple(dropped)), tuple(added))


def _position(item: Size, size: Size, axis: int) -> Size:
    if isinstance(item, Dim):
        return item
    if isinstance(size, int) and not -size <= item < size:
        raise ShapeError(
            f"index {item} is outside dimension {axis} of size {size}",
            given=str(item),
            required=f"{-size} <= index < {size}" if size else "a dimension that is not empty",
        )
    return item + size if item < 0 else item


def _bounds(item: slice, size: Size) -> tuple[Size, Size, int]:
    step = 1 if item.step is None else item.step
    if not isinstance(step, int) or step < 1:
        raise ShapeError("a slice with a step below 1", given=str(step), required="a positive whole number")
    start, stop = _bound(item.start, size, 0), _bound(item.stop, size, size)
    if isinstance(start, int) and isinstance(stop, int):
        stop = max(start, stop)
    return start, stop, step


def _bound(value: Size | None, size: Size, default: Size) -> Size:
    if value is None:
        return default
    if isinstance(value, Dim):
        return value
    if isinstance(size, int):
        return min(max(value + size if value < 0 else value, 0), size)
    return size + value if value < 0 else value


# ---- functions ---------------------------------------------------------------------------------------------
@spelling("reshape")
def reshaped(x: Node, *sizes: Size) -> Node:
    """``x`` with its elements, in row-major order, in the shape ``sizes``."""
    return reshape(x, tuple(sizes))


@spelling("concat")
def concatenated(*xs: Node) -> Node:
    """``concat(a, b, axis)``: the last argument is the dimension along which the others are joined."""
    axis = xs[-1].number
    if axis is None or isinstance(axis, bool) or axis != int(axis) or len(xs) < 2:
        raise ShapeError("concat without an axis", required="a whole number as the last argument: concat(a, b, 0)")
    if not all(x.shape for x in xs[:-1]):
        raise ShapeError("concat of a scalar", required="values with at least one dimension")
    return concat(xs[:-1], int(axis))


@spelling("pad")
def padded(x: Node, *sizes: Size) -> Node:
    """``x`` with zeros before, after and (optionally) between its elements, one number per dimension."""
    rank = x.type.rank
    if not rank or len(sizes) not in (2 * rank, 3 * rank):
        raise ShapeError(
            "pad: amounts that do not fit",
            given=f"{len(sizes)} for shape ({shape_text(x.shape)})",
            required="for each dimension the zeros before it, then for each those after it (then in between)",
        )
    interior = tuple(sizes[2 * rank :]) or (0,) * rank
    return apply(PAD, x, low=tuple(sizes[:rank]), high=tuple(sizes[rank : 2 * rank]), interior=interior)
