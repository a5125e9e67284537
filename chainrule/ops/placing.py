"""Advanced indexing, and placing that overwrites: ``x[:, i, j]``, ``x[:, i, j] = v``, scatter, masked_scatter.

Where a position is written twice, which value stays is not defined; every one of them gets the cotangent, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    as_node,
    broadcast_shapes,
    constant,
    lowering,
    register,
)
from chainrule.ir import shape_text as shown
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.casts import cast
from chainrule.ops.elements import take_elements
from chainrule.ops.families import indexed, kernel, written_as_call, zeros_like
from chainrule.ops.gathering import GATHER, PUT_SUM, TAKE, places_along
from chainrule.ops.leaves import known_numbers
from chainrule.ops.movement import axis_of, broadcast, reshape, vector
from chainrule.ops.scans import CUMSUM
from chainrule.ops.slicing import leading

_X = np.arange(24.0).reshape(2, 3, 4) / 17 - 0.6
_I, _J = np.array([1, 0]), np.array([[3, 0], [2, 2], [1, 1]])


# ---- x[:, i, j] --------------------------------------------------------------------------------------------
def _indexed_shape(shape: Shape, indices: Sequence[TensorType], positions: tuple[int, ...]) -> Shape:
    """The shape of ``x[...]``: index dimensions stand where the first index is, or in front if indices are apart."""
    if any("int" not in t.dtype for t in indices):
        raise UnsupportedOpError(
            "an index that is not of integers: of a mask the size depends on values",
            given=", ".join(map(str, indices)),
            instead="torch.where(mask, x, other)",
        )
    if len(positions) != len(indices) or any(not 0 <= p < len(shape) for p in positions):
        raise ShapeError("indices that do not fit", given=f"dimensions {positions} of ({shown(shape)})")
    together = broadcast_shapes(*(t.shape for t in indices))
    rest = [n for a, n in enumerate(shape) if a not in positions]
    adjacent = list(positions) == list(range(positions[0], positions[0] + len(positions)))
    at = positions[0] if adjacent else 0
    return (*rest[:at], *together, *rest[at:])


def _key(positions: Sequence[int], indices: Sequence[Any], none: Any) -> tuple[Any, ...]:
    key = [none] * (max(positions) + 1)
    for position, index in zip(positions, indices, strict=True):
        key[position] = index
    return tuple(key)


def _subscript(node: Node, names: Sequence[str]) -> str:
    inside = ", ".join(_key(node.params["positions"], names, ":"))
    return f"[{inside}]"


def _tensors(node: Node, names: Sequence[str]) -> str:
    return f"[{', '.join(_key(node.params['positions'], names, 'None'))}]"


def _index_sum_value(g: Any, *indices: Any, positions: Any, shape: Any) -> Any:
    out = np.zeros(shape, np.asarray(g).dtype)
    np.add.at(out, _key(positions, indices, slice(None)), g)
    return out


def _index_sum_shape(g: TensorType, *indices: TensorType, positions: tuple[int, ...], shape: Shape) -> TensorType:
    if g.shape != _indexed_shape(shape, indices, positions):
        raise ShapeError("values do not fit the indexed places", given=f"({shown(g.shape)}) in ({shown(shape)})")
    return g.with_shape(tuple(shape))


INDEX = indexed(
    "index",
    shape=lambda x, *indices, positions: x.with_shape(_indexed_shape(x.shape, indices, positions)),
    value=lambda x, *indices, positions: np.asarray(x)[_key(positions, indices, slice(None))],
    transpose=lambda g, y, x, *indices, positions: apply(INDEX_SUM, g, *indices, positions=positions, shape=x.shape),
    torch=lambda node, x: f"{x[0]}{_subscript(node, x[1:])}",
    aten={"index.Tensor": lambda x, indices: index_by(x, indices)},
    samples=(
        Sample((_X, _I), {"positions": (1,)}),
        Sample((_X, _I, _J), {"positions": (0, 2)}),
        Sample((_X, _J[:, :1] % 3, _J), {"positions": (1, 2)}),
    ),
    error_samples=(Sample((_X, _X), {"positions": (0,)}), Sample((_X, _I), {"positions": (3,)})),
    source="numpy advanced indexing",
)
INDEX_SUM = indexed(
    "index_sum",
    shape=_index_sum_shape,
    value=_index_sum_value,
    transpose=lambda g, y, x, *indices, positions, shape: apply(INDEX, g, *indices, positions=positions),
    torch=lambda node, x: (
        f"torch.ops.aten.index_put({x[0]}.new_zeros({tuple(node.shape)}), {_tensors(node, x[1:])}, {x[0]}, True)"
    ),
    samples=(Sample((_X[:, :2], np.array([1, 1])), {"positions": (1,), "shape": (2, 3, 4)}),),
    error_samples=(Sample((_X, _I), {"positions": (1,), "shape": (2, 3, 4)}),),
    source="numpy.add.at of zeros",
)


def _given(indices: Sequence[Any]) -> tuple[tuple[int, ...], list[Node]]:
    """(dimension, integers) of each index; a mask that is known stands for the places where it holds."""
    positions: list[int] = []
    given: list[Node] = []
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        masked = index.type.dtype in ("bool", "uint8")
        known = known_numbers(index) if masked else None
        if masked and known is None:
            raise UnsupportedOpError(
                "an index that is not of integers: of a mask the size depends on values",
                given=str(index.type),
                instead="torch.where(mask, x, other)",
            )
        parts = [cast(index, "int64")] if known is None else [constant(k) for k in np.nonzero(known)]
        given += parts
        positions += range(axis, axis + len(parts))
        axis += len(parts)
    return tuple(positions), given


def index_by(x: Node, indices: Sequence[Any]) -> Node:
    """``x[indices]``, with None for a whole dimension."""
    positions, given = _given(indices)
    return apply(INDEX, x, *given, positions=positions) if given else x


# ---- x[:, i, j] = v ----------------------------------------------------------------------------------------
def _set_shape(x: TensorType, values: TensorType, *indices: TensorType, positions: tuple[int, ...]) -> TensorType:
    if values.shape != _indexed_shape(x.shape, indices, positions):
        raise ShapeError("values do not fit the indexed places", given=f"({shown(values.shape)}) in ({shown(x.shape)})")
    return x


def _set_value(x: Any, values: Any, *indices: Any, positions: Any) -> Any:
    out = np.array(x)
    out[_key(positions, indices, slice(None))] = values
    return out


def _overwritten(t: Sequence[Node | None], y: Node, x: Node, values: Node, *rest: Node, **params: Any) -> Node | None:
    """The tangent of an op that is linear in what it overwrites and in what it writes."""
    if t[0] is None and t[1] is None:
        return None
    moved = [zeros_like(v) if d is None else d for d, v in zip(t, (x, values), strict=False)]
    return apply(y.op, *moved, *rest, **params)


INDEX_SET = register(
    Op(
        "index_set",
        "kernel",
        shape=_set_shape,
        value=_set_value,
        vjp=lambda g, y, x, values, *indices, positions: (
            apply(INDEX_SET, g, zeros_like(values), *indices, positions=positions),
            apply(INDEX, g, *indices, positions=positions),
            *(None for _ in indices),
        ),
        jvp=_overwritten,
        **written_as_call("index_set"),
        torch=lambda node, x: f"torch.ops.aten.index_put({x[0]}, {_tensors(node, x[2:])}, {x[1]})",
        aten={
            "index_put": lambda x, indices, values, accumulate=False: _index_put(x, indices, values, accumulate),
            "index_copy": lambda x, dim, index, source: _index_copy(x, dim, index, source),
            "index_fill.int_Scalar": lambda x, dim, index, value: _index_fill(x, dim, index, as_node(value, like=x)),
            "index_fill.int_Tensor": lambda x, dim, index, value: _index_fill(x, dim, index, value),
            "put": lambda x, index, source, accumulate=False: reshape(
                _index_put(reshape(x, (x.type.numel,)), [index], source, accumulate), x.shape
            ),
        },
        samples=(Sample((_X, _X[:, :2] + 1.3, np.array([2, 0])), {"positions": (1,)}),),
        error_samples=(Sample((_X, _X, _I), {"positions": (1,)}),),
        source="numpy's x[index] = values",
    )
)


INDEX_ADDED = kernel(
    "index_added",
    call="",
    torch=lambda node, x: f"torch.ops.aten.index_put({x[0]}, {_tensors(node, x[2:])}, {x[1]}, True)",
    expansion=lambda x, values, *indices, positions: (
        x + apply(INDEX_SUM, values, *indices, positions=positions, shape=x.shape)
    ),
    samples=(Sample((_X, _X[:, :2] + 1.3, np.array([1, 1])), {"positions": (1,)}),),
    error_samples=(Sample((_X, _X, _I), {"positions": (1,)}),),
    source="numpy.add.at, in torch's order of summation",
)


def _filled_by_mask(x: Node, indices: Sequence[Any], values: Node, accumulate: bool) -> Node | None:
    """One value where a mask holds: its size does not matter. None where it is something else."""
    masks = [(k, i) for k, i in enumerate(indices) if i is not None]
    if len(masks) != 1 or masks[0][1].type.dtype not in ("bool", "uint8") or values.type.numel != 1:
        return None
    axis, mask = masks[0]
    if mask.shape != x.shape[axis : axis + mask.type.rank]:
        return None
    holds = mask if mask.type.dtype == "bool" else compare("ne", mask, constant(0, "uint8"))
    aligned = reshape(holds, (*(1,) * axis, *mask.shape, *(1,) * (x.type.rank - axis - mask.type.rank)))
    value = cast(reshape(values, ()), x.type.dtype)
    return where(broadcast(aligned, x.shape), x + value if accumulate else value, x)


def _index_put(x: Node, indices: Sequence[Any], values: Node, accumulate: bool) -> Node:
    filled = _filled_by_mask(x, indices, values, accumulate)
    if filled is not None:
        return filled
    positions, given = _given(indices)
    shape = _indexed_shape(x.shape, [i.type for i in given], positions)
    values = broadcast(cast(values, x.type.dtype), shape)
    if accumulate:
        return apply(INDEX_ADDED, x, values, *given, positions=positions)
    return apply(INDEX_SET, x, values, *given, positions=positions)


def _index_copy(x: Node, dim: int, index: Node, source: Node) -> Node:
    whole, axis, places = vector(x), axis_of(x, dim), vector(index)
    values = reshape(source, (*whole.shape[:axis], *places.shape, *whole.shape[axis + 1 :]))
    return reshape(apply(INDEX_SET, whole, values, places, positions=(axis,)), x.shape)


def _index_fill(x: Node, dim: int, index: Node, value: Node) -> Node:
    """A position that is named twice is filled once: the value's derivative counts it once, as torch does it."""
    whole, axis, places = vector(x), axis_of(x, dim), vector(index)
    size = whole.shape[axis]
    named = apply(PUT_SUM, broadcast(constant(1.0), places.shape), places, axis=0, size=size)
    shape = tuple(size if a == axis else 1 for a in range(whole.type.rank))
    hit = reshape(compare("gt", named, 0.0), shape)
    return reshape(where(hit, cast(value, x.type.dtype), whole), x.shape)


# ---- scatter -----------------------------------------------------------------------------------------------
def _scatter_shape(x: TensorType, src: TensorType, index: TensorType, *, axis: int) -> TensorType:
    if "int" not in index.dtype or src.shape != index.shape or index.rank != x.rank or not 0 <= axis < x.rank:
        raise ShapeError(
            "scatter of operands that do not fit", given=f"({shown(x.shape)}), ({shown(src.shape)}), {index}"
        )
    return x


def _scatter_value(x: Any, src: Any, index: Any, *, axis: int) -> Any:
    out = np.array(x)
    out[places_along(index, axis)] = src
    return out


SCATTER = register(
    Op(
        "scatter",
        "kernel",
        shape=_scatter_shape,
        value=_scatter_value,
        vjp=lambda g, y, x, src, index, *, axis: (
            apply(SCATTER, g, zeros_like(src), index, axis=axis),
            apply(GATHER, g, index, axis=axis),
            None,
        ),
        jvp=_overwritten,
        **written_as_call("scatter"),
        torch=lambda node, x: f"{x[0]}.scatter({node.params['axis']}, {x[2]}, {x[1]})",
        aten={
            "scatter.src": lambda x, dim, index, src: _scatter(x, dim, index, src),
            "scatter.value": lambda x, dim, index, value: _scatter(
                x, dim, index, broadcast(as_node(value, like=x), index.shape)
            ),
        },
        samples=(Sample((_X[0], _X[1, :2] + 1.0, np.array([[0, 2, 1, 1], [1, 0, 2, 0]])), {"axis": 0}),),
        error_samples=(Sample((_X[0], _X[0], _J), {"axis": 0}),),
        source="torch.Tensor.scatter",
    )
)


def _scatter(x: Node, dim: int, index: Node, src: Node) -> Node:
    places = vector(index)
    values = leading(vector(src), places.shape)
    return reshape(apply(SCATTER, vector(x), values, places, axis=axis_of(x, dim)), x.shape)


@lowering("masked_select")
def selected_by_mask(x: Node, mask: Node) -> Node:
    """The elements where a known mask holds, one after the other."""
    known = known_numbers(mask)
    if known is None:
        raise UnsupportedOpError("masked_select of a mask that depends on the inputs", instead="torch.where")
    shape = broadcast_shapes(x.shape, mask.shape)
    return take_elements(broadcast(x, shape), np.flatnonzero(np.broadcast_to(known, tuple(map(int, shape)))))


@lowering("masked_scatter")
def scattered_by_mask(x: Node, mask: Node, source: Node) -> Node:
    """The elements of ``source`` one after the other where the mask holds."""
    shape = broadcast_shapes(x.shape, mask.shape)
    x, mask = broadcast(x, shape), broadcast(mask, shape)
    flat = reshape(mask, (mask.type.numel,))
    count = apply(CUMSUM, cast(flat, "int64"), axis=0, reverse=False) - constant(1, "int64")
    place = where(flat, count, constant(0, "int64"))
    taken = apply(TAKE, reshape(source, (source.type.numel,)), place, axis=0)
    return where(mask, reshape(taken, shape), x)
