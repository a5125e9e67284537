"""Elements at fixed positions: what a view of a tensor reads and writes, when both are values.

``take_elements`` gathers the elements of its operand (in row-major order) at constant positions; ``put_elements`` is
its transpose: it adds values up at those positions of a zero tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Literal, Node, Sample, TensorType, apply, product
from chainrule.ops.families import linear


def _take_shape(x: TensorType, *, positions: Literal) -> TensorType:
    size = product(x.shape)
    if (
        isinstance(size, int)
        and positions.array.size
        and not 0 <= positions.array.min() <= positions.array.max() < size
    ):
        raise ShapeError(
            "positions outside of the operand",
            given=f"{positions.array.min()} to {positions.array.max()}",
            required=f"0 to {size - 1}",
        )
    return x.with_shape(positions.array.shape)


def _put_shape(g: TensorType, *, positions: Literal, shape: tuple[int, ...]) -> TensorType:
    if g.shape != positions.array.shape:
        raise ShapeError("one value per position", given=str(g.shape), required=str(positions.array.shape))
    return g.with_shape(shape)


def _put(g: Any, *, positions: Literal, shape: tuple[int, ...]) -> Any:
    flat = np.zeros(int(np.prod(shape)), dtype=np.asarray(g).dtype)
    np.add.at(flat, positions.array.reshape(-1), np.asarray(g).reshape(-1))
    return flat.reshape(shape)


_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])
_AT = Literal(np.array([[4, 0], [2, 4]]), "int64")

TAKE = linear(
    "take_elements",
    shape=_take_shape,
    value=lambda x, *, positions: np.asarray(x).reshape(-1)[positions.array],
    transpose=lambda g, y, x, *, positions: apply(PUT, g, positions=positions, shape=x.shape),
    text=lambda p, node: f"take_elements({p.child(node.inputs[0], 0)})",
    latex=lambda p, node: rf"\operatorname{{take}}\left({p.child(node.inputs[0], 0)}\right)",
    torch="torch.take({1}, {0})",
    externals=lambda *, positions: (positions.array,),
    samples=(Sample((_X,), {"positions": _AT}),),
    error_samples=(Sample((np.zeros(3),), {"positions": _AT}),),
    source="numpy.take of the flattened operand",
)

PUT = linear(
    "put_elements",
    shape=_put_shape,
    value=_put,
    transpose=lambda g, y, x, *, positions, shape: apply(TAKE, g, positions=positions),
    text=lambda p, node: f"put_elements({p.child(node.inputs[0], 0)})",
    latex=lambda p, node: rf"\operatorname{{put}}\left({p.child(node.inputs[0], 0)}\right)",
    torch=lambda node, x: (
        f"torch.zeros({product(node.params['shape'])}, dtype={x[1]}.dtype, device={x[1]}.device)"
        f".index_add(0, {x[0]}.reshape(-1), {x[1]}.reshape(-1)).reshape({tuple(node.params['shape'])})"
    ),
    moments=None,  # values that meet in one place are not independent
    externals=lambda *, positions, shape: (positions.array,),
    samples=(Sample((_X[:, :2],), {"positions": _AT, "shape": (2, 3)}),),
    error_samples=(Sample((np.zeros(3),), {"positions": _AT, "shape": (2, 3)}),),
    source="the transpose of take_elements",
)


def take_elements(x: Node, positions: Any) -> Node:
    """The elements of ``x``, counted in row-major order, at ``positions`` (an integer array of the result's shape)."""
    return apply(TAKE, x, positions=Literal(np.asarray(positions, dtype=np.int64), "int64"))
