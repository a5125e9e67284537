"""Gathering and scattering: elements picked and placed by integer operands, each the transpose of the other.

    take    whole slices along one dimension (embedding, index_select)      put_sum      adds slices up at their places
    gather  one element per place, along one dimension                      scatter_sum  adds elements up

``placing`` has advanced indexing and what overwrites instead of adding. The integer operands have no derivative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import (
    Node,
    Op,
    Sample,
    Shape,
    TensorType,
    apply,
    constant,
    lowering,
    register,
    shape_text,
)
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.contraction import permute
from chainrule.ops.families import indexed, written_as_call, zeros_like
from chainrule.ops.movement import axis_of, broadcast, expand_dims, reshape, vector

_X = np.arange(12.0).reshape(3, 4) / 7 - 0.6
_I = np.array([2, 0, 2])
_II = np.array([[2, 0, 1, 1], [0, 0, 2, 1]])


def _integers(*types: TensorType) -> None:
    if any("int" not in t.dtype for t in types):
        raise UnsupportedOpError("an index that is not of integers", given=", ".join(map(str, types)))


# ---- slices along one dimension ----------------------------------------------------------------------------
def _take_shape(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    _integers(index)
    if not 0 <= axis < x.rank:
        raise ShapeError("take along a dimension that does not exist", given=f"{axis} of ({shape_text(x.shape)})")
    return x.with_shape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _take_torch(node: Node, x: list[str]) -> str:
    data, index = node.inputs
    axis = node.params["axis"]
    if axis == 0 and data.type.rank == 2:
        return f"torch.nn.functional.embedding({x[1]}, {x[0]})"
    if index.type.rank == 1:
        return f"{x[0]}.index_select({axis}, {x[1]})"
    return f"{x[0]}.index_select({axis}, {x[1]}.reshape(-1)).reshape({tuple(node.shape)})"


TAKE = indexed(
    "take",
    shape=_take_shape,
    value=lambda x, index, *, axis: np.take(x, index, axis),
    transpose=lambda g, y, x, index, *, axis: apply(PUT_SUM, g, index, axis=axis, size=x.shape[axis]),
    torch=_take_torch,
    aten={
        "index_select": lambda x, dim, index: _index_select(x, dim, index),
        "embedding": lambda weight, index, padding_idx=-1, scale=False, sparse=False: _embedding(
            weight, index, padding_idx, scale, sparse
        ),
        "take": lambda x, index: apply(TAKE, reshape(x, (x.type.numel,)), _wrapped(index, x.type.numel), axis=0),
        "unfold": lambda x, dim, size, step: _unfolded(x, dim, size, step),
        "unfold_copy": lambda x, dim, size, step: _unfolded(x, dim, size, step),
    },
    samples=(Sample((_X, _I), {"axis": 0}), Sample((_X, _II), {"axis": 1})),
    error_samples=(Sample((_X, _X), {"axis": 0}), Sample((_X, _I), {"axis": 2})),
    native="take",
    source="numpy.take",
)


def _put_shape(x: TensorType, index: TensorType, *, axis: int, size: int) -> TensorType:
    _integers(index)
    if x.shape[axis : axis + index.rank] != index.shape:
        raise ShapeError("values do not fit their index", given=f"({shape_text(x.shape)}) at {axis}: {index}")
    return x.with_shape((*x.shape[:axis], size, *x.shape[axis + index.rank :]))


def _put_value(x: Any, index: Any, *, axis: int, size: int) -> Any:
    x, rank = np.asarray(x), np.ndim(index)
    out = np.zeros((*x.shape[:axis], size, *x.shape[axis + rank :]), x.dtype)
    key: Any = (*(slice(None),) * axis, index)
    np.add.at(out, key, x)
    return out


def _put_torch(node: Node, x: list[str]) -> str:
    axis, index = node.params["axis"], node.inputs[1]
    values, places = x
    if index.type.rank != 1:
        flat = (*node.shape[:axis], index.type.numel, *node.shape[axis + 1 :])
        values, places = f"{x[0]}.reshape({flat})", f"{x[1]}.reshape(-1)"
    return f"{x[0]}.new_zeros({tuple(node.shape)}).index_add_({axis}, {places}, {values})"


PUT_SUM = indexed(
    "put_sum",
    shape=_put_shape,
    value=_put_value,
    transpose=lambda g, y, x, index, *, axis, size: apply(TAKE, g, index, axis=axis),
    torch=_put_torch,
    samples=(
        Sample((_X, _I), {"axis": 0, "size": 5}),
        Sample((_X[:2], _II), {"axis": 0, "size": 3}),
    ),
    error_samples=(Sample((_X, _I), {"axis": 1, "size": 5}),),
    native="put_sum",
    source="torch.Tensor.index_add of zeros",
)


def _index_select(x: Node, dim: int, index: Node) -> Node:
    return reshape(apply(TAKE, vector(x), vector(index), axis=axis_of(x, dim)), _selected_shape(x, dim, index))


def _selected_shape(x: Node, dim: int, index: Node) -> Shape:
    if not x.shape:
        return ()
    axis = axis_of(x, dim)
    return (*x.shape[:axis], index.type.numel, *x.shape[axis + 1 :])


def _embedding(weight: Node, index: Node, padding_idx: int, scale: bool, sparse: bool) -> Node:
    if scale:
        weight = apply(PER_USE, weight, index)
    rows = apply(TAKE, weight, index, axis=0)
    if padding_idx < 0:
        return rows
    return apply(PADDED_ROWS, rows, index, padding=padding_idx)


def _per_use(g: Node, weight: Node, index: Node) -> Node:
    """Each row divided by how often it is looked up."""
    ones = broadcast(constant(1.0, weight.type.dtype), index.shape)
    counts = apply(PUT_SUM, ones, index, axis=0, size=weight.shape[0])
    return g / expand_dims(where(compare("eq", counts, 0.0), constant(1.0, weight.type.dtype), counts), (1,))


def _rows_shape(weight: TensorType, index: TensorType) -> TensorType:
    _integers(index)
    if weight.rank != 2:
        raise ShapeError("a table has rows and columns", given=str(weight))
    return weight


PER_USE = register(
    Op(
        "per_use",
        "kernel",
        shape=_rows_shape,
        value=lambda weight, index: weight,
        vjp=lambda g, y, weight, index: (_per_use(g, weight, index), None),
        jvp=lambda t, y, weight, index: None if t[0] is None else _per_use(t[0], weight, index),
        torch="{0}",
        aliases=True,
        samples=(Sample((_X, _I), smooth=False),),
        error_samples=(Sample((_X, _X)),),
        **written_as_call("per_use"),
        source="torch.nn.functional.embedding with scale_grad_by_freq: a row's gradient is a mean over its uses",
    )
)


def _padded_rows_mask(g: Node, index: Node, padding: int) -> Node:
    padded = expand_dims(compare("eq", index, constant(padding, index.type.dtype)), (index.type.rank,))
    return where(broadcast(padded, g.shape), zeros_like(g), g)


PADDED_ROWS = register(
    Op(
        "padded_rows",
        "kernel",
        shape=lambda rows, index, *, padding: rows,
        value=lambda rows, index, *, padding: rows,
        vjp=lambda g, y, rows, index, *, padding: (_padded_rows_mask(g, index, padding), None),
        jvp=lambda t, y, rows, index, *, padding: None if t[0] is None else _padded_rows_mask(t[0], index, padding),
        torch="{0}",
        aliases=True,
        native=lambda m, rows, index, *, padding: rows,
        samples=(Sample((_X, _I), {"padding": 2}, smooth=False),),
        **written_as_call("padded_rows"),
        source="torch.nn.functional.embedding: the row padding_idx is used, and never gets a gradient",
    )
)


def _wrapped(index: Node, size: Any) -> Node:
    """Negative positions counted from the end."""
    return where(compare("lt", index, 0), index + constant(size, index.type.dtype), index)


def _unfolded(x: Node, dim: int, size: int, step: int) -> Node:
    whole, axis = vector(x), axis_of(x, dim)
    count = (int(whole.shape[axis]) - size) // step + 1
    places = np.arange(count)[:, None] * step + np.arange(size)[None]
    taken = apply(TAKE, whole, constant(places), axis=axis)
    order = [*range(axis + 1), *range(axis + 2, taken.type.rank), axis + 1]
    moved = permute(taken, tuple(order))
    return moved if x.shape else reshape(moved, (size,))


# ---- single elements along one dimension -------------------------------------------------------------------
def _gather_shape(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    _integers(index)
    if x.rank != index.rank or any(
        isinstance(i, int) and isinstance(n, int) and i > n
        for a, (i, n) in enumerate(zip(index.shape, x.shape, strict=True))
        if a != axis
    ):
        raise ShapeError(
            "gather with an index that does not fit", given=f"({shape_text(x.shape)}), ({shape_text(index.shape)})"
        )
    return x.with_shape(index.shape)


def places_along(index: Any, axis: int) -> tuple[Any, ...]:
    """The full advanced index of gather and scatter."""
    grid: list[Any] = list(np.indices(np.shape(index), sparse=True))
    grid[axis] = np.asarray(index)
    return tuple(grid)


GATHER = indexed(
    "gather",
    shape=_gather_shape,
    value=lambda x, index, *, axis: np.asarray(x)[places_along(index, axis)],
    transpose=lambda g, y, x, index, *, axis: apply(SCATTER_SUM, g, index, axis=axis, shape=x.shape),
    torch=lambda node, x: f"{x[0]}.gather({node.params['axis']}, {x[1]})",
    aten={"gather": lambda x, dim, index, sparse_grad=False: gather(x, dim, index)},
    samples=(Sample((_X, _II), {"axis": 0}), Sample((_X, _II[:, :3]), {"axis": 1})),
    error_samples=(Sample((_X, _I), {"axis": 0}), Sample((_X[:1], _II), {"axis": 1})),
    native="gather",
    source="torch.gather",
)


def _scatter_value(x: Any, index: Any, *, axis: int, shape: Any) -> Any:
    out = np.zeros(shape, np.asarray(x).dtype)
    np.add.at(out, places_along(index, axis), x)
    return out


def _scatter_sum_shape(x: TensorType, index: TensorType, *, axis: int, shape: Shape) -> TensorType:
    _integers(index)
    if x.shape != index.shape or len(shape) != x.rank:
        raise ShapeError(
            "scatter with an index that does not fit", given=f"({shape_text(x.shape)}), ({shape_text(index.shape)})"
        )
    return x.with_shape(tuple(shape))


SCATTER_SUM = indexed(
    "scatter_sum",
    shape=_scatter_sum_shape,
    value=_scatter_value,
    transpose=lambda g, y, x, index, *, axis, shape: apply(GATHER, g, index, axis=axis),
    torch=lambda node, x: f"{x[0]}.new_zeros({tuple(node.shape)}).scatter_add_({node.params['axis']}, {x[1]}, {x[0]})",
    samples=(Sample((_X[:2], _II), {"axis": 0, "shape": (3, 4)}),),
    error_samples=(Sample((_X, _II), {"axis": 0, "shape": (3, 4)}),),
    native="scatter_sum",
    source="torch.Tensor.scatter_add of zeros",
)


def gather(x: Node, dim: int, index: Node) -> Node:
    """``x`` at the positions ``index`` along one dimension: the result has the shape of the index."""
    found = apply(GATHER, vector(x), vector(index), axis=axis_of(x, dim))
    return reshape(found, index.shape)


@lowering("narrow.Tensor")
def narrowed(x: Node, dim: int, start: Node, length: int) -> Node:
    """A piece that begins where a tensor says."""
    axis = axis_of(x, dim)
    first = reshape(start, (1,))
    places = first + constant(np.arange(length), start.type.dtype)
    size = constant(x.shape[axis], start.type.dtype)
    return apply(TAKE, x, where(compare("lt", first, 0), places + size, places), axis=axis)
