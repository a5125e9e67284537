"""Slices, padding and concatenation: values that are cut out and put together.

``slice`` and ``pad`` are each other's transpose (pad with ``interior`` zeros undoes a step), ``concat`` and slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    ATOM,
    Code,
    Dim,
    Node,
    Op,
    Rewrite,
    Sample,
    TensorType,
    apply,
    promote,
    register,
    shape_text,
)
from chainrule.ops.families import lifted, linear, zeros_like
from chainrule.ops.moment_rules import MovementRule
from chainrule.ops.movement import axes_tuple, expand_dims, squeeze

_X = np.arange(6.0).reshape(2, 3) / 7 - 0.4


# ---- slice and pad -----------------------------------------------------------------------------------------
def _length(start: int | Dim, stop: int | Dim, step: int) -> int | Dim:
    span = stop - start
    if step == 1:
        return span
    if isinstance(span, Dim):
        raise ShapeError("a step other than 1 over a named dimension", required="a number for its size")
    return max(0, -(-span // step))


def _one_per_dimension(x: TensorType, *amounts: Any) -> None:
    if any(len(a) != x.rank for a in amounts):
        raise ShapeError("one amount for each dimension", given=f"{amounts} for shape ({shape_text(x.shape)})")


def _slice_shape(x: TensorType, *, starts: Any, stops: Any, steps: Any) -> TensorType:
    _one_per_dimension(x, starts, stops, steps)
    for start, stop, size in zip(starts, stops, x.shape, strict=True):
        if all(isinstance(v, int) for v in (start, stop, size)) and not 0 <= start <= stop <= size:
            raise ShapeError("slice outside its dimension", given=f"{start}:{stop} of {size}")
    return x.with_shape(tuple(_length(a, b, c) for a, b, c in zip(starts, stops, steps, strict=True)))


def _slice_transpose(g: Node, y: Node, x: Node, *, starts: Any, stops: Any, steps: Any) -> Node:
    low, high, interior = [], [], []
    for axis, (start, step) in enumerate(zip(starts, steps, strict=True)):
        covered = start + (y.shape[axis] - 1) * step + 1 if y.shape[axis] != 0 else start
        low.append(start)
        high.append(x.shape[axis] - covered)
        interior.append(step - 1)
    return apply(PAD, g, low=tuple(low), high=tuple(high), interior=tuple(interior))


def _slice_text(p: Any, node: Node) -> str:
    (x,) = node.inputs
    parts = []
    for start, stop, step, size in zip(
        node.params["starts"], node.params["stops"], node.params["steps"], x.shape, strict=True
    ):
        begin = "" if start == 0 else p.size(start)
        end = "" if stop == size else p.size(stop)
        parts.append(f"{begin}:{end}" + (f":{step}" if step != 1 else ""))
    return f"{p.child(x, 50)}[{', '.join(parts)}]"


def _slice_indexed(p: Any, node: Node, indices: tuple[Any, ...]) -> Any:
    """``x[1:]`` at a free i is ``x_{i+1}``; a summed index would not say how far it goes."""
    (x,) = node.inputs
    cut = [i for i, size, full in zip(indices, node.shape, x.shape, strict=True) if size != full]
    if not all(map(p.is_free, cut)):
        return None
    starts, steps = node.params["starts"], node.params["steps"]
    moved = [
        i if (start, step) == (0, 1) and not (i is None and size != 1) else p.affine([(step, i)], start, size)
        for i, start, step, size in zip(indices, starts, steps, x.shape, strict=True)
    ]
    return p.at(x, moved)


def _slice_torch(node: Node, x: list[str]) -> str:
    parts = [
        f"{a}:{b}" + (f":{c}" if c != 1 else "")
        for a, b, c in zip(node.params["starts"], node.params["stops"], node.params["steps"], strict=True)
    ]
    return f"{x[0]}[{', '.join(parts)}]"


def _slice_code(w: Any, node: Node) -> str:
    amounts = zip(*(node.params[k] for k in ("starts", "stops", "steps")), node.inputs[0].shape, strict=True)
    parts = []
    for start, stop, step, size in amounts:
        end = "" if stop == size else w.size(stop)
        parts.append(f"{'' if start == 0 else w.size(start)}:{end}" + (f":{step}" if step != 1 else ""))
    return w.index(parts)


def _slice_whole(node: Node) -> Node | None:
    return node.inputs[0] if node.type.shape == node.inputs[0].type.shape else None


SLICE = linear(
    "slice",
    order="operands",
    shape=_slice_shape,
    value=lambda x, *, starts, stops, steps: np.asarray(x)[
        tuple(slice(a, b, c) for a, b, c in zip(starts, stops, steps, strict=True))
    ],
    transpose=_slice_transpose,
    lift=lifted(
        lambda params, extra: {
            "starts": (*params["starts"], *(0 for _ in extra)),
            "stops": (*params["stops"], *extra),
            "steps": (*params["steps"], *(1 for _ in extra)),
        }
    ),
    text=_slice_text,
    latex=_slice_text,
    indexed=_slice_indexed,
    torch=_slice_torch,
    code=_slice_code,
    rewrites=(Rewrite(_slice_whole, exact=True),),
    aten={
        "slice.Tensor": lambda x, dim=0, start=None, end=None, step=1: slice_axis(x, dim, start, end, step),
        "narrow": lambda x, dim, start, length: slice_axis(x, dim, start, _narrow_end(start, length)),
        "select.int": lambda x, dim, index: select(x, dim, index),
        "chunk": lambda x, chunks, dim=0: _chunks(x, chunks, dim),
        "split.Tensor": lambda x, size, dim=0: _pieces(x, size, dim),
        "split_with_sizes": lambda x, sizes, dim=0: _pieces(x, sizes, dim),
        "split.sizes": lambda x, sizes, dim=0: _pieces(x, sizes, dim),
        "unbind.int": lambda x, dim=0: [select(x, dim, k) for k in range(int(x.shape[dim]))],
    },
    samples=(
        Sample((_X,), {"starts": (0, 1), "stops": (2, 3), "steps": (1, 1)}),
        Sample((_X,), {"starts": (1, 0), "stops": (2, 3), "steps": (1, 2)}),
    ),
    error_samples=(
        Sample((_X,), {"starts": (0, 1), "stops": (2, 9), "steps": (1, 1)}),
        Sample((_X,), {"starts": (0,), "stops": (2,), "steps": (1,)}),
    ),
    native="slice",
    source="numpy basic slicing with positive steps",
)


def _pad_shape(x: TensorType, *, low: Any, high: Any, interior: Any) -> TensorType:
    _one_per_dimension(x, low, high, interior)
    if any(isinstance(n, int) and n < 0 for n in (*low, *high, *interior)):
        raise ShapeError("pad by a negative amount", given=f"{low}, {high}, {interior}", instead="a slice")
    return x.with_shape(
        tuple(
            a + b + n + (n - 1) * k if n != 0 else a + b
            for a, b, k, n in zip(low, high, interior, x.shape, strict=True)
        )
    )


def _pad_value(x: Any, *, low: Any, high: Any, interior: Any) -> Any:
    x = np.asarray(x)
    shape = [a + b + (n + (n - 1) * k if n else 0) for a, b, k, n in zip(low, high, interior, x.shape, strict=True)]
    out = np.zeros(shape, x.dtype)
    out[tuple(_placed(low, interior, x.shape))] = x
    return out


def _placed(low: Any, interior: Any, shape: Any) -> list[slice]:
    """Where the operand's elements go: ``slice(start, stop, step)`` per dimension."""
    return [
        slice(a, a + (n - 1) * (k + 1) + 1 if n else a, k + 1) for a, k, n in zip(low, interior, shape, strict=True)
    ]


def _pad_transpose(g: Node, y: Node, x: Node, *, low: Any, high: Any, interior: Any) -> Node:
    stops = tuple(a + (n - 1) * (k + 1) + 1 for a, k, n in zip(low, interior, x.shape, strict=True))
    return apply(SLICE, g, starts=tuple(low), stops=stops, steps=tuple(k + 1 for k in interior))


def _pad_torch(node: Node, x: list[str]) -> str:
    low, high, interior = (node.params[k] for k in ("low", "high", "interior"))
    code = x[0]
    for axis, (gap, size) in enumerate(zip(interior, node.inputs[0].shape, strict=True)):
        if gap:  # a new dimension beside the axis, padded by the gap and flattened into it
            trailing = (0, 0) * (len(interior) - 1 - axis)
            code = f"torch.nn.functional.pad({code}.unsqueeze({axis + 1}), {(*trailing, 0, gap)})"
            code = f"{code}.flatten({axis}, {axis + 1}).narrow({axis}, 0, {size + (size - 1) * gap})"
    amounts = [v for a, b in reversed(list(zip(low, high, strict=True))) for v in (a, b)]
    return f"torch.nn.functional.pad({code}, {tuple(amounts)})" if any(amounts) else code


_PAD = '''\
def _pad(x, low, high, interior):
    """Zeros before, after and between the elements of x."""
    sizes = [a + n + max(n - 1, 0) * k + b for n, a, b, k in zip(x.shape, low, high, interior)]
    out = np.zeros(sizes)
    out[tuple(slice(a, a + n * (k + 1), k + 1) for n, a, k in zip(x.shape, low, interior))] = x
    return out
'''


def _pad_code(w: Any, node: Node) -> str:
    low, high, interior = (w.shape(node.params[k]) for k in ("low", "high", "interior"))
    return f"_pad({w(0)}, {low}, {high}, {interior})"


def _pad_jax(w: Any, node: Node) -> str:
    amounts = zip(*(map(w.size, node.params[k]) for k in ("low", "high", "interior")), strict=True)
    return f"jax.lax.pad({w(0)}, 0.0, [{', '.join(f'({a}, {b}, {k})' for a, b, k in amounts)}])"


def _pad_code_torch(w: Any, node: Node) -> str:
    return _pad_torch(node, [w(0, ATOM)])


def _pad_text(p: Any, node: Node) -> str:
    amounts = [node.params["low"], node.params["high"]]
    amounts += [node.params["interior"]] if any(k != 0 for k in node.params["interior"]) else []
    return f"pad({', '.join([p.child(node.inputs[0], 0), *map(p.shape, amounts)])})"


def _no_padding(node: Node) -> Node | None:
    return node.inputs[0] if all(size == 0 for sizes in node.params.values() for size in sizes) else None


def _padded_twice(node: Node) -> Node | None:
    """Zeros around zeros, where none stand between elements."""
    (x,) = node.inputs
    if x.op is not node.op or any(size != 0 for size in (*x.params["interior"], *node.params["interior"])):
        return None
    low, high = (
        tuple(a + b for a, b in zip(x.params[side], node.params[side], strict=True)) for side in ("low", "high")
    )
    return apply(node.op, x.inputs[0], low=low, high=high, interior=node.params["interior"])


PAD = linear(
    "pad",
    shape=_pad_shape,
    value=_pad_value,
    transpose=_pad_transpose,
    lift=lifted(lambda params, extra: {k: (*v, *(0 for _ in extra)) for k, v in params.items()}),
    text=_pad_text,
    latex=lambda p, node: rf"\operatorname{{pad}}\left({p.child(node.inputs[0], 0)}\right)",
    torch=_pad_torch,
    code=Code(_pad_code, jax=_pad_jax, torch=_pad_code_torch, helper=(_PAD,)),
    samples=(
        Sample((_X,), {"low": (1, 0), "high": (0, 2), "interior": (0, 0)}),
        Sample((_X,), {"low": (0, 1), "high": (1, 0), "interior": (1, 0)}),
    ),
    error_samples=(
        Sample((_X,), {"low": (-1, 0), "high": (0, 0), "interior": (0, 0)}),
        Sample((_X,), {"low": (1,), "high": (0, 0), "interior": (0, 0)}),
    ),
    moments=MovementRule(fills=True),
    rewrites=(Rewrite(_no_padding, exact=True), Rewrite(_padded_twice, exact=True)),
    native="pad",
    source="zeros around and between elements, as in XLA's pad",
)


def slice_axis(x: Node, dim: int, start: int | None, end: int | None, step: int = 1) -> Node:
    """``x[start:end:step]`` along one dimension, with Python's meaning of negative and missing bounds.

    Raises:
        ShapeError: a negative bound of a named dimension, or a step below 1.
    """
    rank = x.type.rank
    (dim,) = axes_tuple(dim, rank)
    size = x.shape[dim]
    if step < 1:
        raise ShapeError("slice with a step below 1", given=str(step), required="a positive step")
    first, last = _bound(start, size, 0), _bound(end, size, size)
    if isinstance(first, int) and isinstance(last, int):
        last = max(first, last)
    starts, stops, steps = [0] * rank, list(x.shape), [1] * rank
    starts[dim], stops[dim], steps[dim] = first, last, step
    return apply(SLICE, x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def _bound(value: int | None, size: int | Dim, default: int | Dim) -> int | Dim:
    if value is None:
        return default
    if isinstance(size, int):
        return min(max(value + size if value < 0 else value, 0), size)
    return size + value if value < 0 else value


def select(x: Node, dim: int, index: int) -> Node:
    """``x[index]`` along one dimension, which disappears."""
    (dim,) = axes_tuple(dim, x.type.rank)
    size = x.shape[dim]
    if isinstance(size, int) and not -size <= index < size:
        raise ShapeError(f"index {index} of a dimension of size {size}")
    start = index + size if index < 0 else index
    rank = x.type.rank
    starts, stops = [0] * rank, list(x.shape)
    starts[dim], stops[dim] = start, start + 1
    piece = apply(SLICE, x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * rank)
    return squeeze(piece, (dim,))


def _narrow_end(start: int, length: int) -> int | None:
    return None if start < 0 <= start + length else start + length


def leading(x: Node, shape: Sequence[int | Dim]) -> Node:
    """The first elements of every dimension."""
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    return x if x.shape == tuple(shape) else apply(SLICE, x, starts=zeros, stops=tuple(shape), steps=ones)


def _pieces(x: Node, sizes: int | Sequence[int], dim: int = 0) -> list[Node]:
    total = x.shape[dim]
    assert isinstance(total, int)
    if isinstance(sizes, int):
        sizes = [min(sizes, total - k) for k in range(0, total, sizes)] if total else [0]
    bounds = np.cumsum([0, *sizes])
    return [slice_axis(x, dim, int(a), int(b)) for a, b in pairwise(bounds)]


def _chunks(x: Node, chunks: int, dim: int) -> list[Node]:
    total = x.shape[dim]
    assert isinstance(total, int)
    return _pieces(x, max(1, -(-total // chunks)), dim)


# ---- concat ------------------------------------------------------------------------------------------------
def _concat_shape(*types: TensorType, axis: int) -> TensorType:
    first = types[0]
    if not 0 <= axis < first.rank:
        raise ShapeError(f"axis {axis} of {first.rank} dimensions")
    size: int | Dim = 0
    for type_ in types:
        if type_.rank != first.rank or any(
            a != b for k, (a, b) in enumerate(zip(type_.shape, first.shape, strict=True)) if k != axis
        ):
            raise ShapeError(
                "concatenated shapes differ outside the axis",
                given=" and ".join(f"({shape_text(t.shape)})" for t in types),
                required=f"equal sizes in all dimensions but {axis}",
            )
        size = size + type_.shape[axis]
    dtype, device = promote(*types)
    return TensorType((*first.shape[:axis], size, *first.shape[axis + 1 :]), dtype, None, device)


def _concat_vjp(g: Node, y: Node, *xs: Node, axis: int) -> tuple[Node, ...]:
    pieces, start = [], 0
    for x in xs:
        starts, stops = [0] * g.type.rank, list(g.shape)
        starts[axis], stops[axis] = start, start + x.shape[axis]
        pieces.append(apply(SLICE, g, starts=tuple(starts), stops=tuple(stops), steps=(1,) * g.type.rank))
        start = start + x.shape[axis]
    return tuple(pieces)


def _concat_jvp(tangents: Sequence[Node | None], y: Node, *xs: Node, axis: int) -> Node:
    return apply(CONCAT, *(t if t is not None else zeros_like(x) for t, x in zip(tangents, xs, strict=True)), axis=axis)


CONCAT = register(
    Op(
        "concat",
        "linear",
        shape=_concat_shape,
        value=lambda *xs, axis: np.concatenate([np.asarray(x) for x in xs], axis),
        vjp=_concat_vjp,
        jvp=_concat_jvp,
        text=lambda p, node: f"concat({', '.join(p.child(i, 0) for i in node.inputs)}, {node.params['axis']})",
        latex=lambda p, node: rf"\operatorname{{concat}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)",
        torch=lambda node, x: f"torch.cat([{', '.join(x)}], {node.params['axis']})",
        code=Code(
            lambda w, node: f"{w.np}.concatenate([{', '.join(map(w, range(len(node.inputs))))}], {node.params['axis']})"
        ),
        aten={
            "cat": lambda xs, dim=0: concat(_joined(xs), dim),
            "stack": lambda xs, dim=0: concat(
                [expand_dims(x, (dim % (x.type.rank + 1),)) for x in xs], dim % (xs[0].type.rank + 1)
            ),
        },
        samples=(Sample((_X, _X[:, :1] + 1), {"axis": 1}),),
        error_samples=(Sample((_X, _X[:, :1]), {"axis": 0}),),
        native="concat",
        source="numpy.concatenate",
    )
)


def _joined(xs: Sequence[Node]) -> list[Node]:
    """What torch joins: empty vectors among values with more dimensions do not count."""
    return [x for x in xs if x.shape != (0,)] or list(xs)


def side_by_side(node: Node) -> Node | None:
    """``pad(a) + pad(b)`` where the one begins as the other ends: both in one piece, up to the sign of a zero.

    That is what the cotangent of a value is whose parts were read one by one (heads, gates, steps of a loop).
    """
    first, second = node.inputs
    if first.op is not PAD or second.op is not PAD or node.type != first.type or first.type != second.type:
        return None
    moving = [k for k, size in enumerate(first.inputs[0].shape) if size != node.shape[k]]
    moving += [k for k, size in enumerate(second.inputs[0].shape) if size != node.shape[k] and k not in moving]
    if len(moving) != 1 or any(size != 0 for x in (first, second) for size in x.params["interior"]):
        return None
    (axis,) = moving
    if first.params["low"][axis] == second.params["low"][axis] + second.inputs[0].shape[axis]:
        first, second = second, first
    if second.params["low"][axis] != first.params["low"][axis] + first.inputs[0].shape[axis]:
        return None
    parts = [
        p
        for x in (first.inputs[0], second.inputs[0])
        for p in (x.inputs if x.op is CONCAT and x.params["axis"] == axis else (x,))
    ]
    return apply(
        PAD,
        apply(CONCAT, *parts, axis=axis),
        low=first.params["low"],
        high=second.params["high"],
        interior=first.params["interior"],
    )


def concat(xs: Sequence[Node], axis: int = 0) -> Node:
    """The tensors one after the other along ``axis``."""
    (position,) = axes_tuple(axis, xs[0].type.rank)
    return apply(CONCAT, *xs, axis=position)
