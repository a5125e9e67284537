"""What meets in one place is added up, multiplied, or the largest of it is kept: scatter_reduce and its relatives.

Each runs as torch's own call, which decides the order of summation, and means its expansion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import Node, Op, Sample, TensorType, apply, constant, lowering, register, shape_text
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.families import kernel, written_as_call, zeros_like
from chainrule.ops.gathering import GATHER, PUT_SUM, SCATTER_SUM, places_along
from chainrule.ops.movement import axis_of, broadcast, reshape, vector
from chainrule.ops.placing import SCATTER
from chainrule.ops.slicing import leading

_X = np.arange(12.0).reshape(3, 4) / 7 - 0.6
_SRC = np.cos(np.arange(8.0)).reshape(2, 4) + 1.3
_II = np.array([[2, 0, 1, 1], [0, 0, 2, 1]])


# ---- sums --------------------------------------------------------------------------------------------------
INDEX_ADD = kernel(
    "index_add",
    call="",
    torch=lambda node, x: (
        f"torch.index_add({x[0]}, {node.params['axis']}, {x[2]}, {x[1]}, alpha={node.params['alpha']})"
    ),
    expansion=lambda x, src, index, *, axis, alpha: (
        x + _times(apply(PUT_SUM, src, index, axis=axis, size=x.shape[axis]), alpha)
    ),
    samples=(
        Sample((_X, _X[:2] + 0.3, np.array([2, 2])), {"axis": 0, "alpha": 1}),
        Sample((_X, _X[:, :2] + 0.3, np.array([3, 1])), {"axis": 1, "alpha": 0.5}),
    ),
    error_samples=(Sample((_X, _X, np.array([2, 2])), {"axis": 0, "alpha": 1}),),
    source="torch.index_add",
)


def _times(x: Node, alpha: float) -> Node:
    return x if alpha == 1 else x * alpha


@lowering("index_add")
def index_added(x: Node, dim: int, index: Node, source: Node, alpha: Any = 1) -> Node:
    """Slices added up where the index says."""
    whole, axis = vector(x), axis_of(x, dim)
    values = reshape(source, (*whole.shape[:axis], index.type.numel, *whole.shape[axis + 1 :]))
    return reshape(apply(INDEX_ADD, whole, values, vector(index), axis=axis, alpha=alpha), x.shape)


def _scatter_add(x: Node, src: Node, index: Node, *, axis: int) -> Node:
    return x + apply(SCATTER_SUM, src, index, axis=axis, shape=x.shape)


SCATTER_ADD = kernel(
    "scatter_add",
    call="",
    torch=lambda node, x: f"torch.scatter_add({x[0]}, {node.params['axis']}, {x[2]}, {x[1]})",
    expansion=_scatter_add,
    samples=(Sample((_X, _SRC, _II), {"axis": 0}),),
    error_samples=(Sample((_X, _X, _II), {"axis": 0}),),
    source="torch.scatter_add",
)


@lowering("scatter_add")
def scatter_added(x: Node, dim: int, index: Node, src: Node) -> Node:
    """Elements added up where the index says."""
    whole, places = vector(x), vector(index)
    added = apply(SCATTER_ADD, whole, leading(vector(src), places.shape), places, axis=axis_of(x, dim))
    return reshape(added, x.shape)


# ---- means, products, extrema ------------------------------------------------------------------------------
_START = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "amax": -np.inf, "amin": np.inf}
_STEP = {"sum": np.add, "mean": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}


def _shape(x: TensorType, src: TensorType, index: TensorType, *, axis: int, reduce: str, include_self: bool) -> Any:
    if src.shape != index.shape or x.rank != index.rank or "int" not in index.dtype or reduce not in _STEP:
        given = f"({shape_text(x.shape)}), ({shape_text(src.shape)}), {index}, {reduce!r}"
        raise ShapeError("scatter of operands that do not fit", given=given)
    return x


def _value(x: Any, src: Any, index: Any, *, axis: int, reduce: str, include_self: bool) -> Any:
    out, at = np.array(x, dtype=float), places_along(index, axis)
    if not include_self:
        out[at] = _START[reduce]
    _STEP[reduce].at(out, at, src)
    if reduce == "mean":
        counts = np.zeros(np.shape(x))
        np.add.at(counts, at, 1.0)
        out = out / (counts + 1.0 if include_self else np.where(counts == 0, 1.0, counts))
    return out


def _vjp(
    g: Node, y: Node, x: Node, src: Node, index: Node, *, axis: int, reduce: str, include_self: bool
) -> tuple[Node, Node, None]:
    options = {"axis": axis, "reduce": reduce, "include_self": include_self}

    def at_source(value: Node) -> Node:
        return apply(GATHER, value, index, axis=axis)

    def summed(value: Node) -> Node:
        return apply(SCATTER_SUM, value, index, axis=axis, shape=x.shape)

    one = constant(1.0, x.type.dtype)
    if reduce in ("sum", "mean"):
        by_x = by_src = g
        if reduce == "mean":
            counts = summed(broadcast(one, src.shape))
            counts = counts + 1.0 if include_self else where(compare("eq", counts, 0.0), one, counts)
            by_x = by_src = g / counts
        by_src = at_source(by_src)
    elif reduce == "prod":
        by_x = g * apply(SCATTER_REDUCE, broadcast(one, x.shape), src, index, **options)
        empty = compare("eq", src, 0.0)
        whole = where(compare("eq", x, 0.0), one, x) if include_self else x
        rest = apply(SCATTER_REDUCE, whole, where(empty, one, src), index, **options)
        zeros = summed(iverson(empty, like=src))
        lost = summed(where(empty, src, zeros_like(src)))  # zero, with the derivative of what is zero
        if include_self:
            zeros = zeros + iverson(compare("eq", x, 0.0), like=x)
            lost = lost + where(compare("eq", x, 0.0), x, zeros_like(x))
        other = where(compare("eq", at_source(zeros), 2.0), at_source(lost) - src, zeros_like(src))
        alone = at_source(rest) * where(compare("eq", at_source(zeros), 1.0), one, other)
        others = where(empty, alone, at_source(y) / where(empty, one, src))
        by_src = at_source(g) * others
    else:  # equal ones share the derivative
        own = iverson(compare("eq", x, y), like=x)
        theirs = iverson(compare("eq", src, at_source(y)), like=src)
        share = g / (own + summed(theirs))
        by_x, by_src = own * share, theirs * at_source(share)
    if not include_self:
        by_x = apply(SCATTER, by_x, zeros_like(src), index, axis=axis)
    return by_x, by_src, None


SCATTER_REDUCE = register(
    Op(
        "scatter_reduce",
        "kernel",
        shape=_shape,
        value=_value,
        vjp=_vjp,
        torch=lambda node, x: (
            f"torch.scatter_reduce({x[0]}, {node.params['axis']}, {x[2]}, {x[1]}, {node.params['reduce']!r}, "
            f"include_self={node.params['include_self']})"
        ),
        samples=tuple(
            Sample((_X, _SRC, _II), {"axis": 0, "reduce": reduce, "include_self": own})
            for reduce in _STEP
            for own in (True, False)
        ),
        error_samples=(Sample((_X, _X, _II), {"axis": 0, "reduce": "amax", "include_self": True}),),
        **written_as_call("scatter_reduce"),
        source="torch.scatter_reduce; equal extrema share the derivative",
    )
)


@lowering("scatter_reduce.two")
def scatter_reduced(x: Node, dim: int, index: Node, src: Node, reduce: str, include_self: bool = True) -> Node:
    """What meets in one place, reduced."""
    whole, places = vector(x), vector(index)
    values = leading(vector(src), places.shape)
    found = apply(SCATTER_REDUCE, whole, values, places, axis=axis_of(x, dim), reduce=reduce, include_self=include_self)
    return reshape(found, x.shape)


@lowering("index_reduce")
def index_reduced(x: Node, dim: int, index: Node, source: Node, reduce: str, include_self: bool = True) -> Node:
    """The same for whole slices."""
    whole, axis, flat = vector(x), axis_of(x, dim), vector(index)
    values = vector(source)
    if values.shape[axis] != flat.shape[0]:
        raise UnsupportedOpError("index_reduce of operands that do not fit", given=f"{source.type}, {index.type}")
    along = tuple(flat.shape[0] if a == axis else 1 for a in range(whole.type.rank))
    places = broadcast(reshape(flat, along), values.shape)
    return scatter_reduced(x, dim, places, values, reduce, include_self)


# ---- pools undone ------------------------------------------------------------------------------------------
def _flat_places(x: Node, places: Node, sizes: Sequence[int]) -> tuple[Node, Node, tuple[Any, ...]]:
    rank = len(sizes)
    lead = x.shape[: x.type.rank - rank]
    count = 1
    for n in x.shape[-rank:]:
        count *= int(n)
    return reshape(x, (*lead, count)), reshape(places, (*lead, count)), lead


def _unpooled(x: Node, places: Node, sizes: Sequence[int]) -> Node:
    values, flat, lead = _flat_places(x, places, sizes)
    target = broadcast(constant(0.0, x.type.dtype), (*lead, int(np.prod(sizes))))
    return reshape(apply(SCATTER, target, values, flat, axis=len(lead)), (*lead, *sizes))


@lowering("max_unpool2d")
def unpooled(x: Node, places: Node, output_size: Sequence[int]) -> Node:
    """Values at the places where a pool found them, zeros elsewhere."""
    return _unpooled(x, places, list(output_size))


@lowering("max_unpool3d")
def unpooled_in_space(
    x: Node, places: Node, output_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Node:
    """The same in three dimensions."""
    return _unpooled(x, places, list(output_size))


@lowering("max_pool2d_with_indices_backward")
def pooled_backward(g: Node, x: Node, *options: Any) -> Node:
    """Cotangents added up at the places where a pool found its values."""
    sizes = [int(n) for n in x.shape[-2:]]
    values, flat, lead = _flat_places(g, options[-1], sizes)
    summed = apply(SCATTER_SUM, values, flat, axis=len(lead), shape=(*lead, int(np.prod(sizes))))
    return reshape(summed, x.shape)
