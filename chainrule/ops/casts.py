"""Changes of dtype: between floats linear up to rounding; to integers or booleans no derivative passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.ir import ATOM, UNARY, Node, Rewrite, Sample, TensorType, apply, promote
from chainrule.ops.families import linear


def _shape(x: TensorType, *, dtype: str) -> TensorType:
    return TensorType(x.shape, dtype, None, x.device)


def _value(x: Any, *, dtype: str) -> Any:
    # The oracle stays in float64: rounding is the back end's business, truncation to integers is the op's.
    if "float" in dtype:
        return np.asarray(x, dtype=np.float64)
    return np.asarray(x).astype(dtype)


def _back(g: Node, y: Node, x: Node, *, dtype: str) -> Node | None:
    return cast(g, x.type.dtype) if x.type.is_float and y.type.is_float else None


def _forward(tangents: Any, y: Node, x: Node, *, dtype: str) -> Node | None:
    moves = tangents[0] is not None and x.type.is_float and y.type.is_float
    return cast(tangents[0], dtype) if moves else None


def _to(x: Node, dtype: str | None) -> Node:
    return x if dtype is None else cast(x, dtype)


CAST = linear(
    "cast",
    shape=_shape,
    value=_value,
    transpose=_back,
    jvp=_forward,
    text="{0}",  # dtypes are no part of the mathematics
    latex="{0}",
    precedence=UNARY,
    child_precedence=(UNARY,),
    torch=lambda node, x: f"{x[0]}.to(torch.{node.params['dtype']})",
    code=lambda w, node: w(0, ATOM) if "float" in node.params["dtype"] else w.cast(0, node.params["dtype"]),
    rewrites=(
        Rewrite(
            lambda node: node.inputs[0] if node.inputs[0].type.dtype == node.params["dtype"] else None,
            exact=True,
        ),
    ),
    aten={
        "to.dtype": lambda x, dtype, *_, **__: _to(x, dtype),
        "to.dtype_layout": lambda x, dtype=None: _to(x, dtype),
        "to.device": lambda x, device, dtype, *_, **__: _to(x, dtype),
        "to.other": lambda x, other, *_, **__: cast(x, other.type.dtype),
        "type_as": lambda x, other: cast(x, other.type.dtype),
        "_to_copy": lambda x, dtype=None: _to(x, dtype),
    },
    samples=(
        Sample((np.array([0.3, -1.7]),), {"dtype": "float64"}),
        Sample((np.array([0.3, -1.7]),), {"dtype": "int64"}, smooth=False),
    ),
    error_samples=(Sample((np.zeros(2),), {"dtype": "complex64"}),),
    native=lambda m, x, *, dtype: m.cast(x, dtype),
    source="torch.Tensor.to(dtype)",
)


def cast(x: Node, dtype: str) -> Node:
    """``x`` in another dtype; itself where it has that already."""
    return x if x.type.dtype == dtype else apply(CAST, x, dtype=dtype)


def widened(x: Node, *values: Node) -> Node:
    """``x`` in the widest dtype among it and others: a layer computes in that of its weights and statistics."""
    return cast(x, promote(x.type, *(v.type for v in values))[0])
