"""Movement of shape: broadcasting, reshaping, dimensions of size 1. Linear; the transpose moves cotangents back.

Slices, padding and concatenation are in ``slicing``; a permutation of dimensions is an ``einsum``.
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
    Rewrite,
    Sample,
    Shape,
    TensorType,
    apply,
    broadcast_shapes,
    constant,
    product,
    shape_text,
)
from chainrule.ops.families import lifted, linear

_X = np.arange(6.0).reshape(2, 3) / 7 - 0.4


def axes_tuple(axes: int | Sequence[int], rank: int) -> tuple[int, ...]:
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in given:
        if not -rank <= axis < rank:
            raise ShapeError(f"axis {axis} of {rank} dimensions", required=f"{-rank} <= axis < {rank}")
    return tuple(sorted({a % rank for a in given}))


def axis_of(x: Node, dim: int) -> int:
    """A dimension counted from the front; of a scalar, 0 and -1 mean the one that it would have as a vector."""
    (axis,) = axes_tuple(dim, max(x.type.rank, 1))
    return axis


def vector(x: Node) -> Node:
    """A scalar as a vector of one element; everything else as it is."""
    return x if x.shape else reshape(x, (1,))


# ---- broadcast ---------------------------------------------------------------------------------------------
def _broadcast_shape(x: TensorType, *, shape: Shape) -> TensorType:
    if broadcast_shapes(x.shape, shape) != shape:
        raise ShapeError(
            "cannot broadcast",
            given=f"({shape_text(x.shape)})",
            required=f"a shape that fits ({shape_text(shape)})",
        )
    return x.with_shape(shape)


def _broadcast_code(w: Any, node: Node) -> str:
    shape, number = w.shape(node.params["shape"]), w.number(0)
    if number is None:
        return f"{w.np}.broadcast_to({w(0)}, {shape})"
    filled = {"0": "zeros", "1": "ones"}.get(number)
    return f"{w.np}.{filled}({shape}{w.dtype})" if filled else f"{w.np}.full({shape}, float({number}){w.dtype})"


def _no_change(node: Node) -> Node | None:
    return node.inputs[0] if node.inputs[0].type == node.type else None


def _nested(node: Node) -> Node | None:
    (x,) = node.inputs
    return apply(node.op, x.inputs[0], **node.params) if x.op is node.op else None


BROADCAST = linear(
    "broadcast",
    order="operands",
    shape=_broadcast_shape,
    value=lambda x, *, shape: np.broadcast_to(x, shape),
    transpose=lambda g, y, x, *, shape: unbroadcast(g, x.shape),
    terms=lambda algebra, node, indices: algebra.broadcast(node.inputs[0], node.type, indices),
    text=lambda p, node: p.broadcast(node),
    latex=lambda p, node: p.broadcast(node),
    precedence=20,
    torch=lambda node, x: f"torch.broadcast_to({x[0]}, {tuple(node.params['shape'])})",
    code=lambda w, node: _broadcast_code(w, node),
    rewrites=(Rewrite(_no_change, exact=True), Rewrite(_nested, exact=True)),
    aten={
        "expand": lambda x, sizes, implicit=False: broadcast(x, _expanded_shape(x, sizes)),
        "broadcast_to": lambda x, sizes: broadcast(x, _expanded_shape(x, sizes)),
        "expand_as": lambda x, other: broadcast(x, other.shape),
        "broadcast_tensors": lambda xs: [broadcast(x, broadcast_shapes(*(o.shape for o in xs))) for x in xs],
    },
    samples=(Sample((_X[:, :1],), {"shape": (4, 2, 3)}), Sample((np.array(0.7),), {"shape": (2,)})),
    error_samples=(Sample((_X,), {"shape": (2, 4)}),),
    native="broadcast",
    source="numpy.broadcast_to",
)


def is_zero(x: Node) -> bool:
    """Whether a value is zero everywhere by its form: the number, or the number repeated."""
    while x.op is BROADCAST:
        (x,) = x.inputs
    return x.number == 0


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


# ---- reshape, expand_dims, squeeze -------------------------------------------------------------------------
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
        raise ShapeError("reshape with -1", given=f"({shape_text(x.shape)}) to {tuple(sizes)}", required="a divisor")
    return tuple((total // known if known else 0) if s == -1 else s for s in sizes)


def _flattened(x: Node, start: int = 0, end: int = -1) -> Node:
    rank = x.type.rank
    if rank == 0:
        return reshape(x, (1,))
    start, end = start % rank, end % rank
    return reshape(x, (*x.shape[:start], product(x.shape[start : end + 1]), *x.shape[end + 1 :]))


RESHAPE = linear(
    "reshape",
    order="operands",
    shape=_reshape_shape,
    value=lambda x, *, shape: np.reshape(x, shape),
    transpose=lambda g, y, x, *, shape: reshape(g, x.shape),
    lift=lifted(lambda params, extra: {"shape": (*params["shape"], *extra)}),
    text=lambda p, node: f"reshape({p.child(node.inputs[0], 0)}, {p.shape(node.params['shape'])})",
    latex=lambda p, node: (
        rf"\operatorname{{reshape}}\left({p.child(node.inputs[0], 0)}, {p.shape(node.params['shape'])}\right)"
    ),
    torch=lambda node, x: f"{x[0]}.reshape({tuple(node.params['shape'])})",
    code=lambda w, node: f"{w.np}.reshape({w(0)}, {w.shape(node.params['shape'])})",
    rewrites=(Rewrite(_no_change, exact=True), Rewrite(_nested, exact=True)),
    aten={
        "view": lambda x, sizes: reshape(x, _resolve(x, sizes)),
        "reshape": lambda x, sizes: reshape(x, _resolve(x, sizes)),
        "view_as": lambda x, other: reshape(x, other.shape),
        "flatten.using_ints": _flattened,
        "ravel": lambda x: reshape(x, (x.type.numel,)),
        "unflatten.int": lambda x, dim, sizes: reshape(
            x,
            (*x.shape[: dim % x.type.rank], *_resolve_part(x, dim, sizes), *x.shape[dim % x.type.rank + 1 :]),
        ),
    },
    samples=(Sample((_X,), {"shape": (3, 2)}), Sample((_X,), {"shape": (6,)})),
    error_samples=(Sample((_X,), {"shape": (4, 2)}),),
    native="reshape",
    source="numpy.reshape, row-major",
)


def _resolve_part(x: Node, dim: int, sizes: Sequence[int]) -> Shape:
    size, known = x.shape[dim], product([s for s in sizes if s != -1])
    assert isinstance(size, int) and isinstance(known, int)
    return tuple(size // known if s == -1 else s for s in sizes)


def reshape(x: Node, shape: Shape) -> Node:
    """``x`` with its elements, in row-major order, in another shape."""
    return x if x.shape == tuple(shape) else apply(RESHAPE, x, shape=tuple(shape))


def _check_axes(x: TensorType, axes: tuple[int, ...], rank: int) -> None:
    if list(axes) != sorted(set(axes)) or any(not 0 <= a < rank for a in axes):
        raise ShapeError(
            "dimensions that do not fit",
            given=f"{axes} for shape ({shape_text(x.shape)})",
            required=f"increasing numbers from 0 to {rank - 1}",
        )


def _expand_shape(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    _check_axes(x, axes, x.rank + len(axes))
    rest = iter(x.shape)
    return x.with_shape(tuple(1 if a in axes else next(rest) for a in range(x.rank + len(axes))))


def _squeeze_shape(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    _check_axes(x, axes, x.rank)
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


def _ones_among(x: Node, dims: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in axes_tuple(dims, x.type.rank or 1) if x.shape[a : a + 1] == (1,))


def _unsqueeze(x: Node, dim: int) -> Node:
    return expand_dims(x, (dim % (x.type.rank + 1),))


EXPAND_DIMS = linear(
    "expand_dims",
    order="operands",
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
    code=lambda w, node: w.index(":" if a not in node.params["axes"] else "None" for a in range(node.type.rank)),
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
    samples=(Sample((_X,), {"axes": (0, 2)}), Sample((_X,), {"axes": (1,)})),
    error_samples=(Sample((_X,), {"axes": (3,)}), Sample((_X,), {"axes": (1, 0)})),
    native="expand_dims",
    source="numpy.expand_dims",
)
SQUEEZE = linear(
    "squeeze",
    order="operands",
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
    code=lambda w, node: w.index(
        ":" if a not in node.params["axes"] else "0" for a in range(len(node.inputs[0].shape))
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
        "squeeze.dim": lambda x, dim: squeeze(x, _ones_among(x, dim)),
        "squeeze.dims": lambda x, dims: squeeze(x, _ones_among(x, dims)),
    },
    samples=(Sample((_X[:, None, :],), {"axes": (1,)}),),
    error_samples=(Sample((_X,), {"axes": (0,)}), Sample((_X[:1],), {"axes": (2,)})),
    native="squeeze",
    source="numpy.squeeze",
)


def expand_dims(x: Node, axes: tuple[int, ...]) -> Node:
    """``x`` with dimensions of size 1 at ``axes`` of the result."""
    if x.op is SQUEEZE and x.params["axes"] == tuple(axes):
        return x.inputs[0]
    return apply(EXPAND_DIMS, x, axes=tuple(axes)) if axes else x


def squeeze(x: Node, axes: tuple[int, ...]) -> Node:
    """``x`` without its dimensions ``axes``, which have size 1."""
    if x.op is EXPAND_DIMS and x.params["axes"] == tuple(axes):
        return x.inputs[0]
    return apply(SQUEEZE, x, axes=tuple(axes)) if axes else x
