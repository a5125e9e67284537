"""Activation functions of torch.nn beyond those of the chapter: piecewise linear ones, shrinkage, gates, smooth ones.

At a kink the derivative is torch's: of the flat side for hardtanh and its relatives, zero for shrinkage.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import OPS, Code, Kink, Node, Op, Sample, apply, as_node, constant, lowering, shape_text
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.elementwise import EXP, LEAKY_RELU, SIGMOID, SOFTPLUS, TANH
from chainrule.ops.families import elementwise, kernel, unary, written_as_call, zeros_like
from chainrule.ops.kernels import backward_kernel, same_as_first
from chainrule.ops.movement import axis_of, reshape
from chainrule.ops.slicing import slice_axis

_X = np.array([-2.7, -0.83, -0.31, 0.27, 0.64, 3.9])
_F = "torch.nn.functional"


def _between(x: Node, low: float, high: float) -> Node:
    """``[low < x < high]``"""
    return iverson(compare("gt", x, low), like=x) * iverson(compare("lt", x, high), like=x)


def _keywords(name: str) -> Any:
    """``torch.nn.functional.name(x, key=value, ...)``"""
    return lambda node, x: f"{_F}.{name}({', '.join([x[0], *(f'{k}={v!r}' for k, v in node.params.items())])})"


def _shaped(
    name: str,
    value: Any,
    derivative: Any,
    aten: dict[str, Any],
    params: dict[str, float],
    kinks: tuple[float, ...] = (),
    native: Any = None,
) -> Op:
    """An activation with static parameters; ``derivative(y, x, **params)``."""
    samples = [Sample((_X,), params)]
    if kinks:
        samples.append(Sample((np.array(kinks),), params, kink=True))
    return elementwise(
        name,
        arity=1,
        value=value,
        derivative=lambda y, x, **given: (derivative(y, x, **given),),
        names=(),
        torch=_keywords(name.removesuffix("_above")),
        aten=aten,
        kinks=tuple(Kink(k, 0.0) for k in kinks),
        samples=tuple(samples),
        cost=lambda *_, **__: 0,
        native=native,
        source=f"torch.nn.functional.{name}",
        **written_as_call(name),
    )


# ---- piecewise linear --------------------------------------------------------------------------------------
HARDTANH = _shaped(
    "hardtanh",
    lambda x, *, min_val, max_val: np.clip(x, min_val, max_val),
    lambda y, x, *, min_val, max_val: _between(x, min_val, max_val),
    {"hardtanh": lambda x, low=-1.0, high=1.0: apply(HARDTANH, x, min_val=float(low), max_val=float(high))},
    {"min_val": -1.0, "max_val": 2.0},
    kinks=(-1.0, 2.0),
    native=lambda m, x, *, min_val, max_val: m.minimum(m.maximum(x, min_val), max_val),
)
THRESHOLD = _shaped(
    "threshold",
    lambda x, *, threshold, value: np.where(np.asarray(x) > threshold, x, value),
    lambda y, x, *, threshold, value: iverson(compare("gt", x, threshold), like=x),
    {"threshold": lambda x, limit, value: apply(THRESHOLD, x, threshold=float(limit), value=float(value))},
    {"threshold": 0.5, "value": 1.0},
    kinks=(0.5,),
    native=lambda m, x, *, threshold, value: m.where(x > threshold, x, value),
)
HARDSHRINK = _shaped(
    "hardshrink",
    lambda x, *, lambd: np.where(np.abs(x) > lambd, x, 0.0),
    lambda y, x, *, lambd: iverson(compare("gt", apply(OPS["abs"], x), lambd), like=x),
    {"hardshrink": lambda x, lambd=0.5: apply(HARDSHRINK, x, lambd=float(lambd))},
    {"lambd": 0.5},
    kinks=(-0.5, 0.5),
    native=lambda m, x, *, lambd: m.where(m.call("fabs", x) > lambd, x, 0.0),
)
SOFTSHRINK = _shaped(
    "softshrink",
    lambda x, *, lambd: np.sign(x) * np.maximum(np.abs(x) - lambd, 0.0),
    lambda y, x, *, lambd: iverson(compare("gt", apply(OPS["abs"], x), lambd), like=x),
    {"softshrink": lambda x, lambd=0.5: apply(SOFTSHRINK, x, lambd=float(lambd))},
    {"lambd": 0.5},
    kinks=(-0.5, 0.5),
    native=lambda m, x, *, lambd: m.call("copysign", m.maximum(m.call("fabs", x) - lambd, 0.0), x),
)
# torch's own slope is 1/6 as a float32 number has it, in every dtype.
HARDSIGMOID_BACKWARD = backward_kernel(
    "hardsigmoid_backward",
    shape=same_as_first,
    value=lambda g, x: np.where((x > -3) & (x < 3), g * float(np.float32(1) / np.float32(6)), 0.0),
    torch="torch.ops.aten.hardsigmoid_backward({0}, {1})",
    samples=(Sample((np.array([0.4, -1.1, 0.3]), np.array([0.2, -3.5, 1.7]))),),
    error_samples=(Sample((np.zeros(3), np.zeros(2))),),
    source="torch.ops.aten.hardsigmoid_backward",
)
HARDSIGMOID = unary(
    "hardsigmoid",
    fused_vjp=lambda g, y, x: (apply(HARDSIGMOID_BACKWARD, g, x),),
    value=lambda x: np.clip(np.asarray(x) + 3.0, 0.0, 6.0) / 6.0,
    derivative=lambda y, x: _between(x, -3.0, 3.0) / 6.0,
    torch=f"{_F}.hardsigmoid({{0}})",
    aten={"hardsigmoid": None},
    code=Code("({np}.clip({0} + 3.0, 0.0, 6.0) / 6.0)"),
    kinks=(Kink(-3.0, 0.0), Kink(3.0, 0.0)),
    native=lambda m, x: m.minimum(m.maximum(x + 3.0, 0.0), 6.0) / 6.0,
    source="Courbariaux et al. 2015: clip(x + 3, 0, 6) / 6",
)
HARDSWISH = unary(
    "hardswish",
    value=lambda x: x * np.clip(np.asarray(x) + 3.0, 0.0, 6.0) / 6.0,
    derivative=lambda y, x: where(
        compare("ge", x, 3.0), as_node(1.0, like=x), where(compare("gt", x, -3.0), x / 3.0 + 0.5, zeros_like(x))
    ),
    torch=f"{_F}.hardswish({{0}})",
    aten={"hardswish": None},
    code=Code("({0} * {np}.clip({0} + 3.0, 0.0, 6.0) / 6.0)"),
    native=lambda m, x: x * m.minimum(m.maximum(x + 3.0, 0.0), 6.0) / 6.0,
    source="Howard et al. 2019: x hardsigmoid(x)",
)
PRELU = elementwise(
    "prelu",
    arity=2,
    value=lambda x, a: np.where(np.asarray(x) > 0, x, np.asarray(a) * x),
    derivative=lambda y, x, a: (
        where(compare("gt", x, 0.0), as_node(1.0, like=x), a),
        x * iverson(compare("le", x, 0.0), like=x),
    ),
    domain=("real", "positive"),
    names=(),
    family="kernel",
    moments=None,
    torch="torch.where({0} > 0, {0}, {1} * {0})",
    aten={"_prelu_kernel": None},
    native=lambda m, x, a: m.where(x > 0.0, x, a * x),
    source="He et al. 2015: leaky ReLU with a learned slope per channel",
    **written_as_call("prelu"),
)


@lowering("rrelu", "rrelu_with_noise_functional")
def randomized(
    x: Node, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Node:
    """In evaluation the slope is the mean of its bounds."""
    if training:
        raise UnsupportedOpError("rrelu in training mode draws random numbers", instead="model.eval()")
    return apply(LEAKY_RELU, x, constant((lower + upper) / 2, x.type.dtype))


# ---- smooth ------------------------------------------------------------------------------------------------
CELU = _shaped(
    "celu",
    lambda x, *, alpha: np.where(np.asarray(x) > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / alpha)),
    lambda y, x, *, alpha: where(compare("gt", x, 0.0), as_node(1.0, like=x), apply(EXP, x / alpha)),
    {"celu": lambda x, alpha=1.0: apply(CELU, x, alpha=float(alpha))},
    {"alpha": 1.3},
    native=lambda m, x, *, alpha: m.where(x > 0.0, x, alpha * m.expm1(x / alpha)),
)
SCALED_SOFTPLUS = _shaped(
    "softplus_above",
    lambda x, *, beta, threshold: np.where(
        np.asarray(x) * beta > threshold, x, np.log1p(np.exp(np.minimum(np.asarray(x) * beta, threshold))) / beta
    ),
    lambda y, x, *, beta, threshold: where(
        compare("gt", x * beta, threshold), as_node(1.0, like=x), apply(SIGMOID, x * beta)
    ),
    {
        "softplus": lambda x, beta=1, threshold=20: (
            apply(SOFTPLUS, x)
            if (beta, threshold) == (1, 20)
            else apply(SCALED_SOFTPLUS, x, beta=float(beta), threshold=float(threshold))
        )
    },
    {"beta": 1.5, "threshold": 2.0},
    native=lambda m, x, *, beta, threshold: m.where(x * beta > threshold, x, m.softplus(x * beta) / beta),
)
MISH = unary(
    "mish",
    value=lambda x: x * np.tanh(np.logaddexp(x, 0.0)),
    derivative=lambda y, x: _mish_derivative(x, apply(TANH, apply(SOFTPLUS, x))),
    torch=f"{_F}.mish({{0}})",
    aten={"mish": None},
    code=Code("({0} * {np}.tanh({np}.logaddexp({0}, 0.0)))"),
    native=lambda m, x: x * m.tanh(m.softplus(x)),
    source="Misra 2019: x tanh(softplus(x))",
)
LOGSIGMOID = unary(
    "logsigmoid",
    value=lambda x: -np.logaddexp(0.0, -np.asarray(x)),
    derivative=lambda y, x: apply(SIGMOID, -x),
    torch=f"{_F}.logsigmoid({{0}})",
    aten={"log_sigmoid": None},
    code=Code("-{np}.logaddexp(-{0}, 0.0)"),
    native=lambda m, x: -m.softplus(-x),
    source="log sigmoid(x)",
)


def _mish_derivative(x: Node, t: Node) -> Node:
    return t + x * apply(SIGMOID, x) * (1.0 - t**2.0)


# ---- gates -------------------------------------------------------------------------------------------------
def _glu_expansion(x: Node, *, dim: int) -> Node:
    axis = axis_of(x, dim)
    if not x.shape or int(x.shape[axis]) % 2:
        raise ShapeError("glu of a dimension without two halves", given=f"({shape_text(x.shape)}), dimension {dim}")
    half = int(x.shape[axis]) // 2
    return slice_axis(x, axis, 0, half) * apply(SIGMOID, slice_axis(x, axis, half, 2 * half))


GLU = kernel(
    "glu",
    call=f"{_F}.glu",
    expansion=_glu_expansion,
    aten={"glu": lambda x, dim=-1: apply(GLU, x, dim=dim)},
    samples=(Sample((_X.reshape(3, 2),), {"dim": 1}), Sample((_X,), {"dim": 0})),
    error_samples=(Sample((_X[:3],), {"dim": 0}),),
    source="Dauphin et al. 2017: one half gated by the sigmoid of the other",
)


@lowering("_safe_softmax")
def safe_softmax(x: Node, dim: int, dtype: str | None = None) -> Node:
    """Softmax in which a row of -inf gives zeros."""
    whole = x if x.shape else reshape(x, (1,))
    axis = axis_of(x, dim)
    masked = compare("eq", apply(OPS["amax"], whole, axes=(axis,), keepdims=True), -math.inf)
    found = apply(OPS["softmax"], where(masked, zeros_like(whole), whole), axis=axis)
    return reshape(where(masked, zeros_like(whole), found), x.shape)
