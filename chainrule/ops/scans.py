"""Running sums, products and logarithms of sums along one dimension: each element sees those before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Node, Op, Sample, TensorType, apply, constant, register, shape_text
from chainrule.ops.arithmetic import where
from chainrule.ops.casts import cast
from chainrule.ops.contraction import sum_axes, summable
from chainrule.ops.families import kept_dtype, linear, written_as_call
from chainrule.ops.movement import axis_of, broadcast, expand_dims, reshape, vector
from chainrule.ops.slicing import concat, slice_axis
from chainrule.ops.windows import FLIP

_X = np.array([[0.3, -1.2, 0.8, 1.1], [2.0, -0.4, 0.1, -0.7]])


def _along(x: TensorType, *, axis: int, **_: Any) -> TensorType:
    if not 0 <= axis < x.rank:
        raise ShapeError("a dimension that does not exist", given=f"{axis} of ({shape_text(x.shape)})")
    return x if x.dtype != "bool" else x.with_dtype("int64")


def scanned(op: Op, x: Node, dim: int, dtype: str | None = None, **params: Any) -> Node:
    """A scan as torch calls it: integers are added up as int64, a scalar is its own scan."""
    if dtype is None and not x.type.is_float:
        dtype = "int64"
    x = cast(x, dtype) if dtype else x
    return reshape(apply(op, vector(x), axis=axis_of(x, dim), **params), x.shape)


# ---- sums --------------------------------------------------------------------------------------------------
def _cumsum_value(x: Any, *, axis: int, reverse: bool) -> Any:
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)


def _cumsum_torch(node: Node, x: list[str]) -> str:
    axis, kept = node.params["axis"], kept_dtype(node)
    if node.params["reverse"]:
        return f"{x[0]}.flip({axis}).cumsum({axis}{kept}).flip({axis})"
    return f"{x[0]}.cumsum({axis}{kept})"


CUMSUM = linear(
    "cumsum",
    family="kernel",
    moments=None,
    shape=_along,
    value=_cumsum_value,
    transpose=lambda g, y, x, *, axis, reverse: apply(CUMSUM, g, axis=axis, reverse=not reverse),
    torch=_cumsum_torch,
    aten={"cumsum": lambda x, dim, dtype=None: scanned(CUMSUM, x, dim, dtype, reverse=False)},
    samples=(Sample((_X,), {"axis": 1, "reverse": False}), Sample((_X,), {"axis": 0, "reverse": True})),
    error_samples=(Sample((_X,), {"axis": 2, "reverse": False}),),
    **written_as_call("cumsum"),
    source="numpy.cumsum; its transpose adds up from the end",
)


# ---- products ----------------------------------------------------------------------------------------------
def _before(node: Node, axis: int, strictly: bool) -> Node:
    """``[k < i]`` (or ``k <= i``) for positions k along ``axis`` and i along ``axis + 1`` of a pair of dimensions."""
    size = int(node.shape[axis])
    k, i = np.arange(size)[:, None], np.arange(size)[None]
    mask = constant((k < i) if strictly else (k <= i))
    trailing = (1,) * (node.type.rank - axis - 1)
    return reshape(mask, (size, size, *trailing))


def _ones_first(x: Node, axis: int) -> Node:
    """Ones in the shape of the first slice."""
    return slice_axis(broadcast(constant(1.0, x.type.dtype), x.shape), axis, 0, 1)


def _cumprod_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    """``L_k sum_{i>=k} g_i prod_{k<j<=i} x_j`` with L_k the product before k: exact at zeros, no division."""
    if x.shape[axis] == 0:
        return (g,)
    before = concat([_ones_first(x, axis), slice_axis(y, axis, 0, -1)], axis)
    pairs = (*x.shape[: axis + 1], *x.shape[axis:])
    later = where(_before(x, axis, True), broadcast(expand_dims(x, (axis,)), pairs), constant(1.0, x.type.dtype))
    segments = apply(CUMPROD, later, axis=axis + 1)
    kept = where(_before(x, axis, False), expand_dims(g, (axis,)) * segments, constant(0.0, x.type.dtype))
    return (before * sum_axes(kept, (axis + 1,)),)


CUMPROD = register(
    Op(
        "cumprod",
        "kernel",
        shape=_along,
        value=lambda x, *, axis: np.cumprod(x, axis),
        vjp=_cumprod_vjp,
        torch=lambda node, x: f"{x[0]}.cumprod({node.params['axis']}{kept_dtype(node)})",
        aten={"cumprod": lambda x, dim, dtype=None: scanned(CUMPROD, x, dim, dtype)},
        samples=(Sample((_X,), {"axis": 1}), Sample((np.array([0.5, 0.0, 2.0, 0.0, 1.0]),), {"axis": 0})),
        error_samples=(Sample((_X,), {"axis": 2}),),
        **written_as_call("cumprod"),
        source="numpy.cumprod",
    )
)


def _prod_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    """The product of the others: those before times those behind, so that zeros are exact."""
    if x.shape[axis] == 0:
        return (broadcast(constant(0.0, x.type.dtype), x.shape),)
    one = _ones_first(x, axis)
    before = concat([one, slice_axis(apply(CUMPROD, x, axis=axis), axis, 0, -1)], axis)
    turned = apply(FLIP, x, axes=(axis,))
    behind = concat([one, slice_axis(apply(CUMPROD, turned, axis=axis), axis, 0, -1)], axis)
    return (expand_dims(g, (axis,)) * before * apply(FLIP, behind, axes=(axis,)),)


PROD = register(
    Op(
        "prod",
        "kernel",
        shape=lambda x, *, axis: _along(x, axis=axis).with_shape((*x.shape[:axis], *x.shape[axis + 1 :])),
        value=lambda x, *, axis: np.prod(x, axis),
        vjp=_prod_vjp,
        torch=lambda node, x: f"{x[0]}.prod({node.params['axis']}{kept_dtype(node)})",
        aten={
            "prod": lambda x, dtype=None: _prod_all(x, dtype),
            "prod.dim_int": lambda x, dim, keepdim=False, dtype=None: _prod(x, dim, keepdim, dtype),
        },
        samples=(Sample((_X,), {"axis": 1}), Sample((np.array([0.5, 0.0, 2.0, 0.0]),), {"axis": 0})),
        error_samples=(Sample((_X,), {"axis": 2}),),
        **written_as_call("prod"),
        source="numpy.prod; the derivative is the product of the others",
    )
)


def _prod_all(x: Node, dtype: str | None) -> Node:
    x = summable(x, dtype)
    return apply(PROD, reshape(x, (x.type.numel,)), axis=0)


def _prod(x: Node, dim: int, keepdim: bool, dtype: str | None) -> Node:
    x = summable(x, dtype)
    if not x.shape:
        return apply(PROD, vector(x), axis=0)
    axis = axis_of(x, dim)
    found = apply(PROD, x, axis=axis)
    return expand_dims(found, (axis,)) if keepdim else found


# ---- logarithms of sums ------------------------------------------------------------------------------------
def _logcumsumexp_value(x: Any, *, axis: int) -> Any:
    return np.logaddexp.accumulate(np.asarray(x), axis)


def _logcumsumexp_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    """``sum_{i>=k} g_i exp(x_k - y_i)``: no exponent is above zero."""
    if x.shape[axis] == 0:
        return (g,)
    difference = expand_dims(x, (axis + 1,)) - expand_dims(y, (axis,))
    weight = apply(OPS["exp"], where(_before(x, axis, False), difference, constant(-np.inf, x.type.dtype)))
    return (sum_axes(expand_dims(g, (axis,)) * weight, (axis + 1,)),)


LOGCUMSUMEXP = register(
    Op(
        "logcumsumexp",
        "kernel",
        shape=_along,
        value=_logcumsumexp_value,
        vjp=_logcumsumexp_vjp,
        torch=lambda node, x: f"{x[0]}.logcumsumexp({node.params['axis']})",
        aten={"logcumsumexp": lambda x, dim: scanned(LOGCUMSUMEXP, x, dim)},
        samples=(Sample((_X,), {"axis": 1}), Sample((_X * 30,), {"axis": 0})),
        error_samples=(Sample((_X,), {"axis": 2}),),
        **written_as_call("logcumsumexp"),
        source="log of the running sum of exponentials",
    )
)
