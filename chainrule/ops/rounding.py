"""Rounding, remainders and bounds: flat almost everywhere, or the identity in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import UnsupportedOpError
from chainrule.ir import OPS, Code, Node, Sample, apply, as_node, constant, lowering
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.families import call_of, elementwise, kernel, unary, zero_derivative, zeros_like

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])
_NO_COST = {"cost": lambda *_, **__: 0, "moments": None}  # jumps are nothing for quadrature


# ---- whole numbers -----------------------------------------------------------------------------------------
def _whole(name: str, value: Any) -> Any:
    return unary(
        name,
        value=value,
        derivative=zero_derivative,
        shape=lambda x: x,
        aten={name: None},
        source=f"torch.{name}: derivative zero almost everywhere",
        **_NO_COST,
    )


FLOOR = _whole("floor", np.floor)
CEIL = _whole("ceil", np.ceil)
TRUNC = _whole("trunc", np.trunc)
ROUND = _whole("round", np.round)
FRAC = unary(
    "frac",
    value=lambda x: x - np.trunc(x),
    derivative=lambda y, x: as_node(1.0, like=x),
    aten={"frac": None},
    code=Code("({0} - {np}.trunc({0}))"),
    source="x - trunc(x)",
    **_NO_COST,
)
ROUND_TO = kernel(
    "round_decimals",
    call="torch.round",
    expansion=lambda x, *, decimals: (
        apply(ROUND, x * 10.0**decimals) / 10.0**decimals
        if decimals >= 0
        else apply(ROUND, x / 10.0**-decimals) * 10.0**-decimals
    ),
    aten={"round.decimals": lambda x, decimals=0: apply(ROUND_TO, x, decimals=decimals)},
    samples=(Sample((_X,), {"decimals": 1}, smooth=False),),
    source="torch.round with decimals",
)


# ---- remainders --------------------------------------------------------------------------------------------
REMAINDER = elementwise(
    "remainder",
    arity=2,
    value=np.mod,
    domain=("real", "positive"),
    derivative=lambda y, a, b: (as_node(1.0, like=y), -apply(FLOOR, a / b)),
    moments=None,
    aten={"remainder.Tensor": None, "remainder.Scalar": None, "remainder.Scalar_Tensor": None},
    source="a - b floor(a / b)",
)
FMOD = elementwise(
    "fmod",
    arity=2,
    value=np.fmod,
    domain=("real", "positive"),
    derivative=lambda y, a, b: (as_node(1.0, like=y), -apply(TRUNC, a / b)),
    moments=None,
    aten={"fmod.Tensor": None, "fmod.Scalar": None},
    source="a - b trunc(a / b)",
)
COPYSIGN = elementwise(
    "copysign",
    arity=2,
    value=np.copysign,
    derivative=lambda y, a, b: (
        where(compare("eq", a, 0.0), zeros_like(a), apply(OPS["sign"], a) * apply(OPS["sign"], y)),
        zeros_like(b),
    ),
    names=(),
    family="kernel",
    moments=None,
    aten={"copysign.Tensor": None, "copysign.Scalar": None},
    source="the size of one, the sign of the other",
)


@lowering("div.Tensor_mode", "div.Scalar_mode")
def divided(a: Node, b: Any, rounding_mode: str | None = None) -> Node:
    """A quotient, rounded to a whole number by ``trunc`` or ``floor``."""
    if rounding_mode is None:
        return a / b
    return call_of(ROUNDED_QUOTIENT, a, as_node(b, like=a), rounding_mode=rounding_mode)


@lowering("floor_divide", "floor_divide.Scalar")
def floor_divided(a: Node, b: Any) -> Node:
    """The quotient rounded down."""
    return divided(a, b, "floor")


ROUNDED_QUOTIENT = elementwise(
    "rounded_quotient",
    arity=2,
    value=lambda a, b, *, rounding_mode: np.floor_divide(a, b) if rounding_mode == "floor" else np.trunc(a / b),
    names=(),
    family="kernel",
    differentiable=False,
    moments=None,
    torch=lambda node, x: f"torch.div({x[0]}, {x[1]}, rounding_mode={node.params['rounding_mode']!r})",
    samples=(Sample((_X, np.array([0.7, 0.3, -0.2])), {"rounding_mode": "floor"}),),
    source="torch.div with a rounding mode: flat almost everywhere",
)


# ---- bounds ------------------------------------------------------------------------------------------------
# Written so that nan passes: a comparison with nan is false.
def _at_least(x: Node, low: Node) -> Node:
    return where(compare("lt", x, low), low, x)


def _at_most(x: Node, high: Node) -> Node:
    return where(compare("gt", x, high), high, x)


CLAMP = kernel(
    "clamp",
    call="torch.clamp",
    optional=("min", "max"),
    expansion=lambda x, *, min, max: (
        _at_least(x, min) if max is None else _at_most(x if min is None else _at_least(x, min), max)
    ),
    aten={
        "clamp": lambda x, min=None, max=None: _clamped(x, min, max),
        "clamp.Tensor": lambda x, min=None, max=None: _clamped(x, min, max),
        "clip": lambda x, min=None, max=None: _clamped(x, min, max),
        "clip.Tensor": lambda x, min=None, max=None: _clamped(x, min, max),
        "clamp_min": lambda x, low: _clamped(x, low, None),
        "clamp_min.Tensor": lambda x, low: _clamped(x, low, None),
        "clamp_max": lambda x, high: _clamped(x, None, high),
        "clamp_max.Tensor": lambda x, high: _clamped(x, None, high),
    },
    samples=(
        Sample((_X, np.array(-0.5), np.array(0.5)), {"given": ("min", "max")}),
        Sample((_X, _X[0] + 0.3), {"given": ("max",)}),
        Sample((_X, np.array(0.2)), {"given": ("min",)}),
    ),
    error_samples=(Sample((_X, np.zeros(2)), {"given": ("min",)}),),
    source="torch.clamp: at a bound the derivative is that of x",
)


def _clamped(x: Node, low: Any, high: Any) -> Node:
    return call_of(CLAMP, x, min=_bound(low, x), max=_bound(high, x))


def _bound(value: Any, x: Node) -> Node | None:
    return None if value is None else as_node(value, like=x)


def _larger(name: str, wins: str, value: Any) -> Any:
    def derivative(y: Node, a: Node, b: Node) -> tuple[Node, Node]:
        first = where(compare(wins, a, b), as_node(True), compare("ne", b, b))
        return iverson(first, like=y), 1.0 - iverson(first, like=y)

    return elementwise(
        name,
        arity=2,
        value=value,
        derivative=derivative,
        names=(),
        family="kernel",
        moments=None,
        aten={name: None},
        source=f"numpy.{name}: a number rather than nan; at a tie the first",
    )


FMAX = _larger("fmax", "ge", np.fmax)
FMIN = _larger("fmin", "le", np.fmin)


@lowering("nan_to_num")
def finite(x: Node, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Node:
    """Numbers in the place of nan and the infinities; no derivative flows there."""
    if not x.type.is_float:
        return x
    largest = {"float64": 1.7976931348623157e308, "float32": 3.4028234663852886e38, "float16": 65504.0}
    top = largest.get(x.type.dtype, 0.0)
    if not top and (posinf is None or neginf is None):
        raise UnsupportedOpError("nan_to_num of this dtype without bounds", given=x.type.dtype)
    x = where(compare("ne", x, x), constant(0.0 if nan is None else nan, x.type.dtype), x)
    x = where(compare("eq", x, np.inf), constant(top if posinf is None else posinf, x.type.dtype), x)
    return where(compare("eq", x, -np.inf), constant(-top if neginf is None else neginf, x.type.dtype), x)
