"""Sums of products that torch names as one op: addcmul, lerp, the add-matrix-product family, and tests for nan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chainrule.errors import UnsupportedOpError
from chainrule.ir import OPS, Node, Op, Sample, apply, as_node, constant, lowering, product
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.contraction import einsum
from chainrule.ops.families import kernel
from chainrule.ops.movement import broadcast
from chainrule.ops.reductions import normal_axes

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])


def _scaled(x: Node, factor: float) -> Node:
    return x if factor == 1 else x * factor


# ---- elementwise -------------------------------------------------------------------------------------------
def _add_of(name: str, combine: Callable[[Node, Node], Node], source: str) -> Op:
    def rule(x: Node, a: Node, b: Node, value: float = 1) -> Node:
        return apply(OPS[name], x, a, b, value=value)

    return kernel(
        name,
        call=f"torch.{name}",
        expansion=lambda x, a, b, *, value: x + _scaled(combine(a, b), value),
        aten={name: rule},
        samples=(Sample((_X, _X + 0.3, _X[::-1] + 3.5), {"value": 0.7}),),
        error_samples=(Sample((_X, _X[:, :2], _X), {"value": 1}),),
        source=source,
    )


ADDCMUL = _add_of("addcmul", lambda a, b: a * b, "x + value a b")
ADDCDIV = _add_of("addcdiv", lambda a, b: a / b, "x + value a / b")
LERP = kernel(
    "lerp",
    call="torch.lerp",
    expansion=lambda a, b, w: a + w * (b - a),
    aten={"lerp.Tensor": None, "lerp.Scalar": lambda a, b, w: apply(LERP, a, b, as_node(w, like=a))},
    samples=(Sample((_X, _X[::-1] + 1.0, np.array(0.3))), Sample((_X, _X[::-1] + 1.0, _X + 0.2))),
    error_samples=(Sample((_X, _X[:, :2], _X)),),
    source="a + w (b - a)",
)


@lowering("deg2rad")
def radians(x: Node) -> Node:
    """Degrees as radians."""
    return x * (math.pi / 180)


@lowering("rad2deg")
def degrees(x: Node) -> Node:
    """Radians as degrees."""
    return x * (180 / math.pi)


@lowering("isnan")
def is_nan(x: Node) -> Node:
    """Whether it is no number: only nan differs from itself."""
    return compare("ne", x, x)


@lowering("logical_not")
def negated(x: Node) -> Node:
    """Whether it is zero."""
    return compare("eq", x, as_node(False) if x.type.dtype == "bool" else as_node(0, like=x))


@lowering("logical_and", "bitwise_and.Tensor")
def both(x: Node, y: Node) -> Node:
    """Whether both are true."""
    _truths("and", x, y)
    return x * y


@lowering("logical_or", "bitwise_or.Tensor")
def either(x: Node, y: Node) -> Node:
    """Whether one is true, or both."""
    _truths("or", x, y)
    return where(x, as_node(True), y)


@lowering("logical_xor", "bitwise_xor.Tensor")
def differing(x: Node, y: Node) -> Node:
    """Whether exactly one is true."""
    _truths("xor", x, y)
    return compare("ne", x, y)


@lowering("bitwise_not")
def opposite(x: Node) -> Node:
    """Whether it is false."""
    _truths("not", x)
    return compare("eq", x, as_node(False))


def _truths(name: str, *xs: Node) -> None:
    if any(x.type.dtype != "bool" for x in xs):
        raise UnsupportedOpError(f"{name} of numbers, bit by bit", required="booleans")


def _quantifier(extremum: str, x: Node, axes: Any, keepdim: bool) -> Node:
    truth = x if x.type.dtype == "bool" else compare("ne", x, as_node(0, like=x))
    found = normal_axes(axes, x.type.rank) if x.shape else ()
    if any(x.shape[a] == 0 for a in found):
        raise UnsupportedOpError("whether all or any of nothing holds", given=str(x.type))
    return apply(OPS[extremum], truth, axes=found, keepdims=keepdim) if found else truth


@lowering("any", "any.dim", "any.dims")
def some(x: Node, dim: Any = None, keepdim: bool = False) -> Node:
    """Whether one of them holds."""
    return _quantifier("amax", x, dim, keepdim)


@lowering("all", "all.dim", "all.dims")
def every(x: Node, dim: Any = None, keepdim: bool = False) -> Node:
    """Whether all of them hold."""
    return _quantifier("amin", x, dim, keepdim)


@lowering("native_dropout_backward")
def dropout_backward(g: Node, mask: Node, scale: float) -> Node:
    """The cotangent where something was kept."""
    return g * apply(OPS["cast"], mask, dtype=g.type.dtype) * float(scale)


@lowering("ldexp.Tensor")
def times_power_of_two(x: Node, exponent: Node) -> Node:
    """``x 2^e``"""
    power = exponent if exponent.type.is_float else apply(OPS["cast"], exponent, dtype=x.type.dtype)
    return x * constant(2.0, power.type.dtype) ** power


@lowering("fill.Scalar", "fill.Tensor")
def filled(x: Node, value: Any) -> Node:
    """One value everywhere."""
    node = value if isinstance(value, Node) else as_node(value, like=x)
    return broadcast(apply(OPS["cast"], node, dtype=x.type.dtype), x.shape)


@lowering("angle")
def angle(x: Node) -> Node:
    """Of a real number: pi below zero, else zero."""
    zero = as_node(0.0, like=x)
    return where(compare("ne", x, x), x, where(compare("lt", x, 0.0), as_node(math.pi, like=x), zero))


# ---- with matrix products ----------------------------------------------------------------------------------
def _added_product(name: str, subscripts: str, sizes: Sequence[Sequence[int]]) -> Op:
    """``beta x + alpha (a b)`` in one call: not the bits of a product and a sum."""

    def expansion(x: Node, a: Node, b: Node, *, beta: float, alpha: float) -> Node:
        found = _scaled(einsum(subscripts, a, b), alpha)
        return broadcast(found if beta == 0 else _scaled(x, beta) + found, found.shape)

    def rule(x: Node, a: Node, b: Node, beta: float = 1, alpha: float = 1) -> Node:
        return apply(OPS[name], x, a, b, beta=beta, alpha=alpha)

    arrays = [np.sin(np.arange(1.0, 1 + np.prod(s)) + k).reshape(s) for k, s in enumerate(sizes)]
    return kernel(
        name,
        call=f"torch.{name}",
        expansion=expansion,
        text="",
        latex="",
        aten={name: rule},
        cost=lambda result, x, a, b, **_: product([*a.shape]) * (b.shape[-1] if b.rank > 1 else 1),
        samples=(Sample(tuple(arrays), {"beta": 1, "alpha": 1}), Sample(tuple(arrays), {"beta": 0.5, "alpha": -2.0})),
        error_samples=(Sample((arrays[0], arrays[1], arrays[2][..., :-1]), {"beta": 1, "alpha": 1}),)
        if name != "addr"
        else (Sample((arrays[0], arrays[1][:, None], arrays[2]), {"beta": 1, "alpha": 1}),),
        source="beta x + alpha a b, by one call of BLAS",
    )


ADDMM = _added_product("addmm", "ij,jk->ik", [(3,), (2, 4), (4, 3)])
ADDMV = _added_product("addmv", "ij,j->i", [(2,), (2, 3), (3,)])
ADDR = _added_product("addr", "i,j->ij", [(2, 3), (2,), (3,)])
BADDBMM = _added_product("baddbmm", "bij,bjk->bik", [(2, 3), (2, 2, 4), (2, 4, 3)])
ADDBMM = _added_product("addbmm", "bij,bjk->ik", [(2, 3), (2, 2, 4), (2, 4, 3)])

ADD_SCALED = kernel(
    "add_scaled",
    call="torch.add",
    expansion=lambda a, b, *, alpha: a + b * alpha,
    text="",
    latex="",
    samples=(Sample((_X, _X[::-1] + 0.5), {"alpha": 0.3}), Sample((_X, _X[0]), {"alpha": -2})),
    error_samples=(Sample((_X, _X[:, :2]), {"alpha": 0.3}),),
    source="a + alpha b in one call, which is rounded once",
)


def add_scaled(a: Any, b: Any, alpha: float = 1) -> Node:
    """``a + alpha b`` as torch computes it."""
    if alpha == 1:
        return a + b
    if not isinstance(a, Node) or not isinstance(b, Node):  # a number is multiplied before
        return a + b * alpha
    return apply(ADD_SCALED, a, b, alpha=alpha)


def _subtract_scaled(a: Any, b: Any, alpha: float = 1) -> Node:
    return a - b if alpha == 1 else add_scaled(a, b, -alpha)


lowering("add.Tensor", "add.Scalar")(add_scaled)
lowering("sub.Tensor", "sub.Scalar")(_subtract_scaled)
lowering("rsub.Tensor", "rsub.Scalar")(lambda a, b, alpha=1: _subtract_scaled(b, a, alpha))


@lowering("vdot")
def inner_product(a: Node, b: Node) -> Node:
    """Of two vectors."""
    return einsum("i,i->", a, b)


@lowering("_trilinear")
def trilinear(
    a: Node,
    b: Node,
    c: Node,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
) -> Node:
    """The product of three values with dimensions added to each, summed over some."""
    rank = a.type.rank + len(expand1)
    operands = [tuple(d for d in range(rank) if d not in gone) for gone in (expand1, expand2, expand3)]
    return einsum((operands, tuple(d for d in range(rank) if d not in sumdim)), a, b, c)
