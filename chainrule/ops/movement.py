"""Movement: values that only change place. Each is linear; its transpose moves cotangents back.

``slice`` and ``pad`` are each other's transpose (pad with ``interior`` zeros undoes a step), ``broadcast`` and a sum,
``concat`` and slices. A permutation of dimensions is an ``einsum``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    OPS,
    Dim,
    Node,
    Op,
    Rewrite,
    Sample,
    Shape,
    TensorType,
    apply,
    broadcast_shapes,
    constant,
    product,
    promote,
    register,
    shape_text,
)
from chainrule.ops.families import linear

_X = np.arange(6.0).reshape(2, 3) / 7 - 0.4


def _axes_tuple(axes: int | Sequence[int], rank: int) -> tuple[int, ...]:
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in given:
        if not -rank <= axis < rank:
            raise ShapeError(f"axis {axis} of {rank} dimensions", required=f"{-rank} <= axis < {rank}")
    return tuple(sorted({a % rank for a in given}))


# ---- broadcast ---------------------------------------------------------------------------------------------------------
def _broadcast_shape(x: TensorType, *, shape: Shape) -> TensorType:
    if broadcast_shapes(x.shape, shape) != shape:
        raise ShapeError(
            "cannot broadcast", given=f"({shape_text(x.shape)})", required=f"a shape that fits ({shape_text(shape)})"
        )
    return x.with_shape(shape)


def _no_change(node: Node) -> Node | None:
    return node.inputs[0] if node.inputs[0].type == node.type else None


def _nested(node: Node) -> Node | None:
    (x,) = node.inputs
    return apply(node.op, x.inputs[0], **node.params) if x.op is node.op else None


BROADCAST = linear(
    "broadcast",
    shape=_broadcast_shape,
    value=lambda x, *, shape: np.broadcast_to(x, shape),
    transpose=lambda g, y, x, *, shape: unbroadcast(g, x.shape),
    terms=lambda algebra, node, indices: algebra.broadcast(node.inputs[0], node.type, indices),
    text=lambda p, node: p.broadcast(node),
    latex=lambda p, node: p.broadcast(node),
    precedence=20,
    torch=lambda node, x: f"torch.broadcast_to({x[0]}, {tuple(node.params['shape'])})",
    rewrites=(Rewrite(_no_change, exact=True), Rewrite(_nested, exact=True)),
    aten={
        "expand": lambda x, sizes, implicit=False: broadcast(x, _expanded_shape(x, sizes)),
        "broadcast_to": lambda x, sizes: broadcast(x, _expanded_shape(x, sizes)),
        "expand_as": lambda x, other: broadcast(x, other.shape),
        "broadcast_tensors": lambda xs: [broadcast(x, broadcast_shapes(*(o.shape for o in xs))) for x in xs],
    },
    samples=(Sample((_X[:, :1],), {"shape": (4, 2, 3)}), Sample((np.array(0.7),), {"shape": (2,)})),
    error_samples=(Sample((_X,), {"shape": (2, 4)}),),
    source="numpy.broadcast_to",
)


def _expanded_shape(x: Node, sizes: Sequence[int]) -> Shape:
    offset = len(sizes) - x.type.rank
    return tuple(x.shape[k - offset] if size == -1 else size for k, size in enumerate(sizes))


def broadcast(x: Node, shape: Shape) -> Node:
    """``x`` repeated to ``shape``."""
    return x if x.shape == tuple(shape) else apply(BROADCAST, x, shape=tuple(shape))


def ones(shape: Shape, dtype: str = "float64") -> Node:
    """A tensor of ones."""
    return broadcast(constant(1.0, dtype), tuple(shape))


def unbroadcast(g: Node, shape: Shape) -> Node:
    """The transpose of a broadcast from ``shape``: sums over what was repeated."""
    if g.shape == tuple(shape):
        return g
    rank, extra = g.type.rank, g.type.rank - len(shape)
    kept_ones = tuple(a for a in range(extra, rank) if shape[a - extra] == 1 and g.shape[a] != 1)
    kept = tuple(a for a in range(extra, rank) if a not in kept_ones)
    total = g
    if extra or kept_ones:
        total = apply(OPS["einsum"], g, operands=(tuple(range(rank)),), result=kept)
    return expand_dims(total, tuple(a - extra for a in kept_ones))


# ---- reshape, expand_dims, squeeze -------------------------------------------------------------------------------------
def _reshape_shape(x: TensorType, *, shape: Shape) -> TensorType:
    if product(x.shape) != product(shape):
        raise ShapeError(
            "reshape changes the number of elements",
            given=f"({shape_text(x.shape)}) to ({shape_text(shape)})",
            required=f"{product(x.shape)} elements",
        )
    return x.with_shape(tuple(shape))


def _resolve(x: Node, sizes: Sequence[int]) -> Shape:
    if -1 not in sizes:
        return tuple(sizes)
    known = product([s for s in sizes if s != -1])
    total = x.type.numel
    if isinstance(known, Dim) or isinstance(total, Dim) or (known and total % known) or (not known and total):
        raise ShapeError(
            "reshape with -1", given=f"({shape_text(x.shape)}) to {tuple(sizes)}", required="a divisor"
        )
    return tuple((total // known if known else 0) if s == -1 else s for s in sizes)


def _flattened(x: Node, start: int = 0, end: int = -1) -> Node:
    rank = x.type.rank
    if rank == 0:
        return reshape(x, (1,))
    start, end = start % rank, end % rank
    return reshape(x, (*x.shape[:start], product(x.shape[start : end + 1]), *x.shape[end + 1 :]))


RESHAPE = linear(
    "reshape",
    shape=_reshape_shape,
    value=lambda x, *, shape: np.reshape(x, shape),
    transpose=lambda g, y, x, *, shape: reshape(g, x.shape),
    lift=lambda params, extra: {"shape": (*params["shape"], *extra)},
    text=lambda p, node: f"reshape({p.child(node.inputs[0], 0)}, {p.shape(node.params['shape'])})",
    latex=lambda p, node: (
        rf"\operatorname{{reshape}}\left({p.child(node.inputs[0], 0)}, {p.shape(node.params['shape'])}\right)"
    ),
    torch=lambda node, x: f"{x[0]}.reshape({tuple(node.params['shape'])})",
    rewrites=(Rewrite(_no_change, exact=True), Rewrite(_nested, exact=True)),
    aten={
        "view": lambda x, sizes: reshape(x, _resolve(x, sizes)),
        "reshape": lambda x, sizes: reshape(x, _resolve(x, sizes)),
        "view_as": lambda x, other: reshape(x, other.shape),
        "flatten.using_ints": _flattened,
        "ravel": lambda x: reshape(x, (x.type.numel,)),
        "unflatten.int": lambda x, dim, sizes: reshape(
            x, (*x.shape[: dim % x.type.rank], *_resolve_part(x, dim, sizes), *x.shape[dim % x.type.rank + 1 :])
        ),
    },
    samples=(Sample((_X,), {"shape": (3, 2)}), Sample((_X,), {"shape": (6,)})),
    error_samples=(Sample((_X,), {"shape": (4, 2)}),),
    source="numpy.reshape, row-major",
)


def _resolve_part(x: Node, dim: int, sizes: Sequence[int]) -> Shape:
    size, known = x.shape[dim], product([s for s in sizes if s != -1])
    assert isinstance(size, int) and isinstance(known, int)
    return tuple(size // known if s == -1 else s for s in sizes)


def reshape(x: Node, shape: Shape) -> Node:
    """``x`` with its elements, in row-major order, in another shape."""
    return x if x.shape == tuple(shape) else apply(RESHAPE, x, shape=tuple(shape))


def _expand_shape(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    rest = iter(x.shape)
    return x.with_shape(tuple(1 if a in axes else next(rest) for a in range(x.rank + len(axes))))


def _squeeze_shape(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    if any(x.shape[a] != 1 for a in axes):
        raise ShapeError("squeeze of a dimension that is not 1", given=f"({shape_text(x.shape)}), axes {axes}")
    return x.with_shape(tuple(s for a, s in enumerate(x.shape) if a not in axes))


def _index_text(p: Any, node: Node) -> str:
    axes = node.params["axes"]
    inside = ", ".join("None" if a in axes else ":" for a in range(node.type.rank))
    return f"{p.child(node.inputs[0], 50)}[{inside}]"


def _squeeze_text(p: Any, node: Node) -> str:
    (x,) = node.inputs
    inside = ", ".join("0" if a in node.params["axes"] else ":" for a in range(x.type.rank))
    return f"{p.child(x, 50)}[{inside}]"


def _unsqueeze(x: Node, dim: int) -> Node:
    return expand_dims(x, (dim % (x.type.rank + 1),))


EXPAND_DIMS = linear(
    "expand_dims",
    shape=_expand_shape,
    value=lambda x, *, axes: np.expand_dims(x, axes),
    transpose=lambda g, y, x, *, axes: squeeze(g, axes),
    terms=lambda algebra, node, indices: algebra.expand(
        node.inputs[0], tuple(i for a, i in enumerate(indices) if a not in node.params["axes"])
    ),
    text=_index_text,
    latex=_index_text,
    torch=lambda node, x: (
        f"{x[0]}.unsqueeze({node.params['axes'][0]})"
        if len(node.params["axes"]) == 1
        else f"{x[0]}.reshape({tuple(node.type.shape)})"
    ),
    rewrites=(
        Rewrite(
            lambda node: (
                node.inputs[0].inputs[0]
                if node.inputs[0].op.name == "squeeze" and node.inputs[0].params["axes"] == node.params["axes"]
                else None
            ),
            exact=True,
        ),
    ),
    aten={"unsqueeze": _unsqueeze},
    samples=(Sample((_X,), {"axes": (0, 2)}),),
    source="numpy.expand_dims",
)
SQUEEZE = linear(
    "squeeze",
    shape=_squeeze_shape,
    value=lambda x, *, axes: np.squeeze(x, axes),
    transpose=lambda g, y, x, *, axes: expand_dims(g, axes),
    terms=lambda algebra, node, indices: algebra.unsqueezed(node, node.params["axes"], indices),
    text=_squeeze_text,
    latex=_squeeze_text,
    torch=lambda node, x: (
        f"{x[0]}.squeeze({node.params['axes'][0]})"
        if len(node.params["axes"]) == 1
        else f"{x[0]}.reshape({tuple(node.type.shape)})"
    ),
    rewrites=(
        Rewrite(
            lambda node: (
                node.inputs[0].inputs[0]
                if node.inputs[0].op.name == "expand_dims" and node.inputs[0].params["axes"] == node.params["axes"]
                else None
            ),
            exact=True,
        ),
    ),
    aten={
        "squeeze": lambda x: squeeze(x, tuple(a for a, s in enumerate(x.shape) if s == 1)),
        "squeeze.dim": lambda x, dim: squeeze(x, (dim % x.type.rank,)) if x.shape[dim] == 1 else x,
        "squeeze.dims": lambda x, dims: squeeze(
            x, tuple(sorted(d % x.type.rank for d in dims if x.shape[d] == 1))
        ),
    },
    samples=(Sample((_X[:, None, :],), {"axes": (1,)}),),
    error_samples=(Sample((_X,), {"axes": (0,)}),),
    source="numpy.squeeze",
)


def expand_dims(x: Node, axes: tuple[int, ...]) -> Node:
    """``x`` with dimensions of size 1 at ``axes`` of the result."""
    return apply(EXPAND_DIMS, x, axes=tuple(axes)) if axes else x


def squeeze(x: Node, axes: tuple[int, ...]) -> Node:
    """``x`` without its dimensions ``axes``, which have size 1."""
    return apply(SQUEEZE, x, axes=tuple(axes)) if axes else x


# ---- slice and pad -------------------------------------------------------------------------------------------------------
def _length(start: int | Dim, stop: int | Dim, step: int) -> int | Dim:
    span = stop - start
    if step == 1:
        return span
    if isinstance(span, Dim):
        raise ShapeError("a step other than 1 over a named dimension", required="a number for its size")
    return max(0, -(-span // step))


def _slice_shape(x: TensorType, *, starts: Any, stops: Any, steps: Any) -> TensorType:
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


def _slice_torch(node: Node, x: list[str]) -> str:
    parts = [
        f"{a}:{b}" + (f":{c}" if c != 1 else "")
        for a, b, c in zip(node.params["starts"], node.params["stops"], node.params["steps"], strict=True)
    ]
    return f"{x[0]}[{', '.join(parts)}]"


def _slice_whole(node: Node) -> Node | None:
    return node.inputs[0] if node.type.shape == node.inputs[0].type.shape else None


SLICE = linear(
    "slice",
    shape=_slice_shape,
    value=lambda x, *, starts, stops, steps: np.asarray(x)[
        tuple(slice(a, b, c) for a, b, c in zip(starts, stops, steps, strict=True))
    ],
    transpose=_slice_transpose,
    lift=lambda params, extra: {
        "starts": (*params["starts"], *(0 for _ in extra)),
        "stops": (*params["stops"], *extra),
        "steps": (*params["steps"], *(1 for _ in extra)),
    },
    text=_slice_text,
    latex=_slice_text,
    torch=_slice_torch,
    rewrites=(Rewrite(_slice_whole, exact=True),),
    aten={
        "slice.Tensor": lambda x, dim=0, start=None, end=None, step=1: slice_axis(x, dim, start, end, step),
        "narrow": lambda x, dim, start, length: slice_axis(x, dim, start, start + length),
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
    error_samples=(Sample((_X,), {"starts": (0, 1), "stops": (2, 9), "steps": (1, 1)}),),
    source="numpy basic slicing with positive steps",
)


def _pad_shape(x: TensorType, *, low: Any, high: Any, interior: Any) -> TensorType:
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


def _pad_text(p: Any, node: Node) -> str:
    amounts = [node.params["low"], node.params["high"]]
    amounts += [node.params["interior"]] if any(k != 0 for k in node.params["interior"]) else []
    return f"pad({', '.join([p.child(node.inputs[0], 0), *map(p.shape, amounts)])})"


PAD = linear(
    "pad",
    shape=_pad_shape,
    value=_pad_value,
    transpose=_pad_transpose,
    lift=lambda params, extra: {k: (*v, *(0 for _ in extra)) for k, v in params.items()},
    text=_pad_text,
    latex=lambda p, node: rf"\operatorname{{pad}}\left({p.child(node.inputs[0], 0)}\right)",
    torch=_pad_torch,
    samples=(
        Sample((_X,), {"low": (1, 0), "high": (0, 2), "interior": (0, 0)}),
        Sample((_X,), {"low": (0, 1), "high": (1, 0), "interior": (1, 0)}),
    ),
    source="zeros around and between elements, as in XLA's pad",
)


def slice_axis(x: Node, dim: int, start: int | None, end: int | None, step: int = 1) -> Node:
    """``x[start:end:step]`` along one dimension, with Python's meaning of negative and missing bounds.

    Raises:
        ShapeError: a negative bound of a named dimension, or a step below 1.
    """
    rank = x.type.rank
    (dim,) = _axes_tuple(dim, rank)
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
    (dim,) = _axes_tuple(dim, x.type.rank)
    size = x.shape[dim]
    if isinstance(size, int) and not -size <= index < size:
        raise ShapeError(f"index {index} of a dimension of size {size}")
    start = index + size if index < 0 else index
    rank = x.type.rank
    starts, stops = [0] * rank, list(x.shape)
    starts[dim], stops[dim] = start, start + 1
    piece = apply(SLICE, x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * rank)
    return squeeze(piece, (dim,))


def _pieces(x: Node, sizes: int | Sequence[int], dim: int = 0) -> list[Node]:
    total = x.shape[dim]
    assert isinstance(total, int)
    if isinstance(sizes, int):
        sizes = [min(sizes, total - k) for k in range(0, total, sizes)] if total else [0]
    bounds = np.cumsum([0, *sizes])
    return [slice_axis(x, dim, int(a), int(b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _chunks(x: Node, chunks: int, dim: int) -> list[Node]:
    total = x.shape[dim]
    assert isinstance(total, int)
    return _pieces(x, max(1, -(-total // chunks)), dim)


# ---- concat ---------------------------------------------------------------------------------------------------------------
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
    return apply(
        CONCAT, *(t if t is not None else x * 0.0 for t, x in zip(tangents, xs, strict=True)), axis=axis
    )


CONCAT = register(
    Op(
        "concat",
        "linear",
        shape=_concat_shape,
        value=lambda *xs, axis: np.concatenate([np.asarray(x) for x in xs], axis),
        vjp=_concat_vjp,
        jvp=_concat_jvp,
        text=lambda p, node: (
            f"concat({', '.join(p.child(i, 0) for i in node.inputs)}, {node.params['axis']})"
        ),
        latex=lambda p, node: (
            rf"\operatorname{{concat}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)"
        ),
        torch=lambda node, x: f"torch.cat([{', '.join(x)}], {node.params['axis']})",
        aten={
            "cat": lambda xs, dim=0: concat(list(xs), dim),
            "stack": lambda xs, dim=0: concat(
                [expand_dims(x, (dim % (x.type.rank + 1),)) for x in xs], dim % (xs[0].type.rank + 1)
            ),
        },
        samples=(Sample((_X, _X[:, :1] + 1), {"axis": 1}),),
        error_samples=(Sample((_X, _X[:, :1]), {"axis": 0}),),
        source="numpy.concatenate",
    )
)


def concat(xs: Sequence[Node], axis: int = 0) -> Node:
    """The tensors one after the other along ``axis``."""
    (position,) = _axes_tuple(axis, xs[0].type.rank)
    return apply(CONCAT, *xs, axis=position)


