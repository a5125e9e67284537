"""Spread and size: variances, standard deviations, norms of vectors, distances between rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import UnsupportedOpError
from chainrule.ir import OPS, Node, Sample, apply, as_node, constant, lowering, product
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.casts import cast
from chainrule.ops.contraction import sum_axes
from chainrule.ops.families import kernel, zeros_like
from chainrule.ops.movement import broadcast
from chainrule.ops.reductions import mean, normal_axes

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])


def root(x: Node) -> Node:
    """The square root whose derivative at 0 is 0, as torch has it for norms and deviations."""
    zero = compare("eq", x, 0.0)
    return where(zero, zeros_like(x), apply(OPS["sqrt"], where(zero, as_node(1.0, like=x), x)))


# ---- variance ----------------------------------------------------------------------------------------------
def _variance(x: Node, *, dim: tuple[int, ...], correction: float, keepdim: bool) -> Node:
    axes = normal_axes(dim, x.type.rank) if dim else ()
    centred = x - mean(x, axes, keepdims=True) if axes else x - x
    count = product([x.shape[a] for a in axes])
    total = sum_axes(centred**2.0, axes, keepdim) if axes else centred**2.0
    freedom = max(0.0, int(count) - correction)
    return total / freedom


_OPTIONS = ({"dim": (1,), "correction": 1.0, "keepdim": False}, {"dim": (0, 1), "correction": 0.0, "keepdim": True})

VAR = kernel(
    "var",
    call="torch.var",
    expansion=_variance,
    aten={"var.correction": lambda x, dim=None, correction=1, keepdim=False: _moment(VAR, x, dim, correction, keepdim)},
    samples=tuple(Sample((_X,), o) for o in _OPTIONS),
    error_samples=(Sample((_X,), {"dim": (2,), "correction": 1.0, "keepdim": False}),),
    source="sum of squared deviations over n - correction",
)
STD = kernel(
    "std",
    call="torch.std",
    expansion=lambda x, **options: root(_variance(x, **options)),
    aten={"std.correction": lambda x, dim=None, correction=1, keepdim=False: _moment(STD, x, dim, correction, keepdim)},
    samples=tuple(Sample((_X,), o) for o in _OPTIONS),
    error_samples=(Sample((_X,), {"dim": (2,), "correction": 1.0, "keepdim": False}),),
    source="the root of the variance; derivative 0 where it is 0",
)


def _moment(op: Any, x: Node, dim: Any, correction: float, keepdim: bool) -> Node:
    axes = normal_axes(dim, x.type.rank)
    return apply(op, x, dim=axes, correction=float(correction), keepdim=keepdim)


# ---- norms -------------------------------------------------------------------------------------------------
def _vector_norm(x: Node, *, ord: float, dim: tuple[int, ...], keepdim: bool) -> Node:
    axes = normal_axes(dim, x.type.rank) if dim else ()
    size = apply(OPS["abs"], x)
    if ord in (math.inf, -math.inf):
        return apply(OPS["amax" if ord > 0 else "amin"], size, axes=axes, keepdims=keepdim) if axes else size
    if ord == 0:
        return (
            sum_axes(iverson(compare("ne", x, 0.0), like=x), axes, keepdim)
            if axes
            else iverson(compare("ne", x, 0.0), like=x)
        )
    if ord == 1 or not axes:
        return sum_axes(size, axes, keepdim) if axes else size
    if ord == 2:
        return root(sum_axes(x**2.0, axes, keepdim))
    none = compare("eq", x, 0.0)
    one = as_node(1.0, like=x)
    power = where(none, zeros_like(x) if ord > 0 else as_node(math.inf, like=x), where(none, one, size) ** float(ord))
    total = sum_axes(power, axes, keepdim)
    empty = compare("eq", total, 0.0)
    return where(empty, zeros_like(total), where(empty, as_node(1.0, like=x), total) ** (1.0 / ord))


def vector_norm(x: Node, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: str | None = None) -> Node:
    """The norm of that order over some dimensions."""
    x = x if dtype is None else cast(x, dtype)
    if any(n == 0 for n in x.shape) and not 0 <= ord < math.inf:
        raise UnsupportedOpError("the norm of a value without elements", given=str(x.type))
    return apply(VECTOR_NORM, x, ord=float(ord), dim=normal_axes(dim, x.type.rank), keepdim=keepdim)


VECTOR_NORM = kernel(
    "vector_norm",
    call="torch.linalg.vector_norm",
    expansion=_vector_norm,
    aten={
        "linalg_vector_norm": vector_norm,
        "norm.ScalarOpt_dim": lambda x, p, dim, keepdim=False: vector_norm(x, 2 if p is None else p, dim, keepdim),
        "norm.ScalarOpt_dim_dtype": lambda x, p, dim, keepdim=False, dtype=None: vector_norm(
            x, 2 if p is None else p, dim, keepdim, dtype
        ),
        "norm.Scalar": lambda x, p=2: vector_norm(x, p),
        "dist": lambda a, b, p=2: vector_norm(a - b, p),
    },
    samples=tuple(
        Sample((_X,), {"ord": o, "dim": (1,), "keepdim": k})
        for o, k in ((2.0, False), (1.0, True), (3.0, False), (0.5, False), (math.inf, False), (-math.inf, True))
    ),
    error_samples=(Sample((_X,), {"ord": 2.0, "dim": (2,), "keepdim": False}),),
    source="torch.linalg.vector_norm; derivative 0 at 0",
)


# ---- distances ---------------------------------------------------------------------------------------------
@lowering("pdist", "_pdist_forward")
def distances_within(x: Node, p: float = 2) -> Node:
    """The distance of each pair of rows once."""
    first, second = (k.astype(np.int64) for k in np.triu_indices(int(x.shape[0]), 1))
    rows = [apply(OPS["take"], x, constant(k), axis=0) for k in (first, second)]
    return vector_norm(rows[0] - rows[1], p, (-1,))


@lowering("renorm")
def shrunk(x: Node, p: float, dim: int, maxnorm: float) -> Node:
    """Slices whose norm is above a bound, scaled down to it; torch divides by the norm plus 1e-7."""
    axes = tuple(a for a in range(x.type.rank) if a != dim % x.type.rank)
    size = broadcast(vector_norm(x, p, axes, True), x.shape)
    return where(compare("gt", size, float(maxnorm)), x * (float(maxnorm) / (size + 1e-7)), x)


@lowering("nansum")
def sum_of_numbers(x: Node, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: str | None = None) -> Node:
    """The sum without what is nan."""
    x = x if dtype is None else cast(x, dtype)
    counted = where(compare("ne", x, x), zeros_like(x), x)
    return sum_axes(counted, normal_axes(dim, x.type.rank), keepdim) if x.shape else counted
