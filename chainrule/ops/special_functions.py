"""Special functions and the logarithms and exponentials that keep their digits: each a value and a local derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from chainrule.ir import Code, Node, Op, Sample, apply, as_node, constant, lowering
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.elementwise import COS, EXP, LOG, SIGMOID, SQRT
from chainrule.ops.families import elementwise, unary, zeros_like
from chainrule.ops.moment_rules import Pointwise

_UNITS = np.array([0.1, 0.3, 0.45, 0.6, 0.85])

_ERFC = "_erfc = np.vectorize(math.erfc, otypes=[float])\n"


def each_of(function: Callable[[float], float]) -> Any:
    """A function of one number on arrays."""
    return np.vectorize(function, otypes=[np.float64])


# ---- exponentials and logarithms ---------------------------------------------------------------------------
EXP2 = unary(
    "exp2",
    value=np.exp2,
    derivative=lambda y, x: y * math.log(2),
    aten={"exp2": None, "special_exp2": None},
    native=lambda m, x: m.exp(x * math.log(2)),
    source="2^x",
)
EXPM1 = unary(
    "expm1",
    value=np.expm1,
    derivative=lambda y, x: y + 1.0,
    aten={"expm1": None, "special_expm1": None},
    native=lambda m, x: m.expm1(x),
    source="exp(x) - 1",
)
LOG1P = unary(
    "log1p",
    value=np.log1p,
    derivative=lambda y, x: 1.0 / (1.0 + x),
    domain="positive",
    aten={"log1p": None, "special_log1p": None},
    native=lambda m, x: m.log1p(x),
    source="log(1 + x)",
)
LOG2 = unary(
    "log2",
    value=np.log2,
    derivative=lambda y, x: 1.0 / (x * math.log(2)),
    domain="positive",
    aten={"log2": None},
    native=lambda m, x: m.log(x) * (1 / math.log(2)),
    source="the logarithm to base 2",
)
LOG10 = unary(
    "log10",
    value=np.log10,
    derivative=lambda y, x: 1.0 / (x * math.log(10)),
    domain="positive",
    aten={"log10": None},
    native=lambda m, x: m.log(x) * (1 / math.log(10)),
    source="the logarithm to base 10",
)
RSQRT = unary(
    "rsqrt",
    value=lambda x: 1 / np.sqrt(x),
    derivative=lambda y, x: -0.5 * y**3.0,
    domain="positive",
    aten={"rsqrt": None},
    code=Code("(1 / {np}.sqrt({0}))"),
    native=lambda m, x: 1.0 / m.call("sqrt", x),
    source="1 / sqrt(x)",
)


def _logaddexp(name: str, value: Any, base: float) -> Op:
    def derivative(y: Node, a: Node, b: Node) -> tuple[Node, Node]:
        share = apply(SIGMOID, (a - b) * math.log(base))
        return share, apply(SIGMOID, (b - a) * math.log(base))

    return elementwise(
        name,
        arity=2,
        value=value,
        derivative=derivative,
        aten={name: None},
        moments=None,
        source=f"log(base^a + base^b) to base {base:.3g}",
    )


LOGADDEXP = _logaddexp("logaddexp", np.logaddexp, math.e)
LOGADDEXP2 = _logaddexp("logaddexp2", np.logaddexp2, 2.0)


def _xlog(name: str, log: Callable[[Node], Node], inverse: Callable[[Node], Node], value: Any, aten: Any) -> Op:
    """``x log(y)`` that is 0 at x = 0."""

    def derivative(result: Node, x: Node, y: Node) -> tuple[Node, Node]:
        nothing = where(compare("eq", x, 0.0), compare("le", y, -1.0 if name == "xlog1py" else 0.0), as_node(False))
        return where(nothing, zeros_like(x), log(y)), x * inverse(y)

    return elementwise(
        name,
        arity=2,
        value=value,
        derivative=derivative,
        domain=("real", "positive"),
        torch=f"torch.special.{name}({{0}}, {{1}})",
        code=Code(f"{{np}}.where({{0}} == 0, 0.0, {{0}} * {{np}}.{name[1:-1]}({{np}}.where({{0}} == 0, 1.0, {{1}})))"),
        aten=aten,
        moments=None,
        native=lambda m, x, y: m.where(m.compare("eq", x, 0.0), 0.0, x * getattr(m, name[1:-1])(y)),
        source=f"torch.special.{name}",
    )


def _zero_where_zero(x: Any, value: Any) -> Any:
    return np.where(np.asarray(x) == 0, 0.0, x * value)


XLOGY = _xlog(
    "xlogy",
    lambda y: apply(LOG, y),
    lambda y: 1.0 / y,
    lambda x, y: _zero_where_zero(x, np.log(y)),
    {
        key: None
        for key in (
            "xlogy.Tensor",
            "xlogy.Scalar_Self",
            "xlogy.Scalar_Other",
            "special_xlogy",
            "special_xlogy.self_scalar",
            "special_xlogy.other_scalar",
        )
    },
)
XLOG1PY = _xlog(
    "xlog1py",
    lambda y: apply(LOG1P, y),
    lambda y: 1.0 / (1.0 + y),
    lambda x, y: _zero_where_zero(x, np.log1p(y)),
    {key: None for key in ("special_xlog1py", "special_xlog1py.self_scalar", "special_xlog1py.other_scalar")},
)


@lowering("special_entr")
def entropy(x: Node) -> Node:
    """``-x log x``: 0 at 0, -inf below."""
    safe = where(compare("gt", x, 0.0), x, as_node(1.0, like=x))
    inside = where(compare("gt", x, 0.0), -x * apply(LOG, safe), zeros_like(x))
    return where(compare("lt", x, 0.0), constant(-np.inf, x.type.dtype), where(compare("ne", x, x), x, inside))


@lowering("logit", "special_logit")
def logit(x: Node, eps: float | None = None) -> Node:
    """``log(x / (1 - x))``."""
    if eps is not None:
        inside = where(compare("lt", x, eps), constant(eps, x.type.dtype), x)
        x = where(compare("gt", inside, 1 - eps), constant(1 - eps, x.type.dtype), inside)
    return apply(LOG, x / (1.0 - x))


# ---- trigonometric and hyperbolic --------------------------------------------------------------------------
ASINH = unary(
    "asinh",
    value=np.arcsinh,
    derivative=lambda y, x: 1.0 / apply(SQRT, x**2.0 + 1.0),
    moments=Pointwise(odd=True),
    aten={"asinh": None},
    source="DLMF 4.37",
)
ACOSH = unary(
    "acosh",
    value=lambda x: np.arccosh(x),
    derivative=lambda y, x: 1.0 / apply(SQRT, x**2.0 - 1.0),
    samples=(Sample((np.array([1.2, 1.9, 3.4]),)),),
    moments=None,
    aten={"acosh": None},
    source="DLMF 4.37",
)
ATANH = unary(
    "atanh",
    value=np.arctanh,
    derivative=lambda y, x: 1.0 / (1.0 - x**2.0),
    domain="unit",
    moments=None,
    aten={"atanh": None},
    source="DLMF 4.37",
)
ATAN2 = elementwise(
    "atan2",
    arity=2,
    value=np.arctan2,
    derivative=lambda r, y, x: (x / (x**2.0 + y**2.0), -y / (x**2.0 + y**2.0)),
    aten={"atan2": None, "arctan2": None},
    moments=None,
    source="the angle of the point (x, y), arguments in the order y, x",
)
HYPOT = elementwise(
    "hypot",
    arity=2,
    value=np.hypot,
    derivative=lambda r, a, b: (a / r, b / r),
    aten={"hypot": None},
    moments=None,
    source="sqrt(a^2 + b^2)",
)


def _sinc_derivative(y: Node, x: Node) -> Node:
    safe = where(compare("eq", x, 0.0), as_node(1.0, like=x), x)
    return where(compare("eq", x, 0.0), zeros_like(x), (apply(COS, safe * math.pi) - y) / safe)


SINC = unary(
    "sinc",
    value=np.sinc,
    derivative=_sinc_derivative,
    aten={"sinc": None, "special_sinc": None},
    source="sin(pi x) / (pi x)",
)

# ---- the normal law ----------------------------------------------------------------------------------------
ERFC = unary(
    "erfc",
    value=each_of(math.erfc),
    derivative=lambda y, x: apply(EXP, -(x**2.0)) * (-2.0 / math.sqrt(math.pi)),
    aten={"erfc": None, "special_erfc": None},
    code=Code("_erfc({0})", jax="jax.scipy.special.erfc({0})", helper=(_ERFC,)),
    source="DLMF 7.2.2",
)
ERFINV = unary(
    "erfinv",
    value=each_of(lambda x: NormalDist().inv_cdf((x + 1) / 2) / math.sqrt(2)),
    derivative=lambda y, x: apply(EXP, y**2.0) * (math.sqrt(math.pi) / 2.0),
    domain="unit",
    moments=None,
    aten={"erfinv": None, "special_erfinv": None},
    source="the inverse of erf",
)
ERFCX = unary(
    "erfcx",
    value=each_of(lambda x: math.exp(x * x) * math.erfc(x)),
    derivative=lambda y, x: 2.0 * x * y - 2.0 / math.sqrt(math.pi),
    torch="torch.special.erfcx({0})",
    moments=None,
    aten={"special_erfcx": None},
    source="exp(x^2) erfc(x)",
)
NDTR = unary(
    "ndtr",
    value=each_of(lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
    derivative=lambda y, x: apply(EXP, -(x**2.0) / 2.0) / math.sqrt(2 * math.pi),
    torch="torch.special.ndtr({0})",
    aten={"special_ndtr": None},
    code=Code("(0.5 * _erfc(-{0} / math.sqrt(2)))", jax="jax.scipy.special.ndtr({0})", helper=(_ERFC,)),
    source="the normal distribution function",
)
NDTRI = unary(
    "ndtri",
    value=each_of(NormalDist().inv_cdf),
    derivative=lambda y, x: apply(EXP, y**2.0 / 2.0) * math.sqrt(2 * math.pi),
    samples=(Sample((_UNITS,)),),
    torch="torch.special.ndtri({0})",
    moments=None,
    aten={"special_ndtri": None},
    source="the inverse of the normal distribution function",
)
LOG_NDTR = unary(
    "log_ndtr",
    value=each_of(lambda x: math.log(0.5 * math.erfc(-x / math.sqrt(2)))),
    # exp(-x^2/2) / ndtr(x) without cancellation: 2 / erfcx(-x / sqrt(2)).
    derivative=lambda y, x: math.sqrt(2 / math.pi) / apply(ERFCX, x * (-1 / math.sqrt(2))),
    torch="torch.special.log_ndtr({0})",
    moments=None,
    aten={"special_log_ndtr": None},
    source="the logarithm of the normal distribution function",
)
