"""Elementwise functions of one value: each is a value and a local derivative, which is again an expression.

A derivative is written in terms of the output ``y`` where that is how it is remembered (``y * (1 - y)`` for the
sigmoid of problem 7.7): the output is at hand in the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chainrule.ir import OPS, Code, Kink, Node, Rewrite, Sample, apply, as_node, constant
from chainrule.ops.activation_kernels import (
    GELU_BACKWARD,
    RELU_BACKWARD,
    SIGMOID_BACKWARD,
    SILU_BACKWARD,
    TANH_BACKWARD,
)
from chainrule.ops.arithmetic import compare, is_number, iverson, where
from chainrule.ops.families import elementwise, unary, zero_derivative
from chainrule.ops.moment_rules import Pointwise
from chainrule.ops.movement import expand_dims
from chainrule.ops.stable import stable_logarithm

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Any) -> Any:
    x = np.asarray(x, dtype=np.float64)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


_ERF = "_erf = np.vectorize(math.erf, otypes=[float])\n"
_SIGMOID = '''\
def _sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0, 1 / (1 + e), e / (1 + e))
'''


def _root_text(p: Any, node: Node, root: str, norm: str, along: str) -> str:
    """``sqrt(sum(x^2))`` is written as the norm that it is, over all elements or along one axis."""
    (total,) = node.inputs
    operands = total.params.get("operands", ())
    square = total.inputs[0] if len(operands) == 1 else None
    if square is None or p.is_named(total) or p.is_named(square) or square.op.name != "pow":
        return root.format(p.child(total, 0))
    (own,), result = operands, total.params["result"]
    # A trace of squares, einsum("ii->"), sums less than all elements.
    plain = len(set(own)) == square.type.rank and tuple(i for i in own if i in result) == result
    summed = [a for a, i in enumerate(own) if i not in result]
    if not plain or square.inputs[1].number != 2 or square.inputs[0].shape != square.shape:
        return root.format(p.child(total, 0))
    if result and len(summed) != 1:
        return root.format(p.child(total, 0))
    return (along if result else norm).format(p.child(square.inputs[0], 0), summed[0])


def _off_the_diagonal(root: Node, radicand: Node) -> Node:
    """The root, plus one where it is zero by its form: on the diagonal of ``norm(X[:, None] - X[None, :], 2)``.

    A distance of a point from itself does not change with the point: with 1 for the root, 0/0 there is 0.
    """
    pair = _zero_diagonal(radicand)
    if pair is None:
        return root
    identity = apply(OPS["eye"], size=root.shape[pair[0]], dtype=root.type.dtype)
    return root + expand_dims(identity, tuple(a for a in range(root.type.rank) if a not in pair))


def _zero_diagonal(total: Node) -> tuple[int, int] | None:
    """The two dimensions of a sum of squared differences of one array with itself that it vanishes between."""
    operands = total.params.get("operands", ())
    square = total.inputs[0] if len(operands) == 1 else None
    if square is None or square.op.name != "pow" or square.inputs[0].op.name != "sub":
        return None
    difference = square.inputs[0]
    (a, at), (b, where_b) = (_positions(x, difference.type.rank) for x in difference.inputs)
    moved = [(p, q) for p, q in zip(at, where_b, strict=False) if p != q]
    if a is not b or len(moved) != 1 or len(set(operands[0])) != len(operands[0]):
        return None
    kept = [total.params["result"].index(operands[0][p]) for p in moved[0] if operands[0][p] in total.params["result"]]
    return (kept[0], kept[1]) if len(kept) == 2 else None


def _positions(x: Node, rank: int) -> tuple[Node, list[int]]:
    """An array before new dimensions were put into it, and where its own are among ``rank`` dimensions."""
    shift = rank - x.type.rank
    if x.op.name != "expand_dims":
        return x, list(range(shift, rank))
    return x.inputs[0], [shift + p for p in range(x.type.rank) if p not in x.params["axes"]]


def _function(name: str) -> str:
    return rf"\{name}\left({{0}}\right)"


# ---- powers and exponentials -------------------------------------------------------------------------------
def _inverse(name: str) -> Rewrite:
    """``f(g(x)) = x`` where the inner op is called ``name`` and defined for every x that f(g(.)) accepts."""

    def rule(node: Node) -> Node | None:
        (x,) = node.inputs
        return x.inputs[0] if x.op.name == name else None

    return Rewrite(rule)


def _log_of_one_plus_exponential(node: Node) -> Node | None:
    """``log(1 + exp(u)) = softplus(u)``, which does not overflow."""
    (x,) = node.inputs
    if x.op.name != "add":
        return None
    for one, e in (x.inputs, x.inputs[::-1]):
        if is_number(one, 1) and e.op.name == "exp" and e.shape == x.shape:
            return apply(SOFTPLUS, e.inputs[0])
    return None


def _log_of_sum_of_exponentials(node: Node) -> Node | None:
    """``log(sum(exp(x)))`` over the last dimension (all of a vector) is ``logsumexp(x)``."""
    (total,) = node.inputs
    operands = total.params.get("operands")
    if operands is None or len(operands) != 1 or total.inputs[0].op.name != "exp":
        return None
    if operands[0][:-1] != total.params["result"] or len(set(operands[0])) != len(operands[0]):
        return None
    return apply(OPS["logsumexp"], total.inputs[0].inputs[0], axis=len(operands[0]) - 1)


EXP = unary(
    "exp",
    value=np.exp,
    derivative=lambda y, x: y,
    latex=_function("exp"),
    aten={"exp": None},
    rewrites=(_inverse("log"),),
    moments=Pointwise(
        shifted=lambda m, v: (apply(EXP, m + v / 2.0), apply(EXP, 2.0 * m + 2.0 * v)),
        why="exp(u) of a normal u is lognormal: E[exp(k u)] = exp(k m + k^2 v / 2)",
    ),
    native=lambda m, x: m.exp(x),
    source="DLMF 4.2",
)
LOG = unary(
    "log",
    value=np.log,
    derivative=lambda y, x: 1.0 / x,
    domain="positive",
    latex=_function("log"),
    aten={"log": None},
    names=("log", "ln"),
    rewrites=(_inverse("exp"), Rewrite(_log_of_one_plus_exponential), Rewrite(_log_of_sum_of_exponentials)),
    stable=(Rewrite(stable_logarithm),),
    native=lambda m, x: m.log(x),
    source="DLMF 4.2, natural logarithm",
)
SQRT = unary(
    "sqrt",
    value=np.sqrt,
    derivative=lambda y, x: 0.5 / _off_the_diagonal(y, x),
    domain="positive",
    text=lambda p, node: _root_text(p, node, "sqrt({0})", "norm({0})", "norm({0}, {1})"),
    latex=lambda p, node: _root_text(
        p, node, r"\sqrt{{{0}}}", r"\left\|{0}\right\|", r"\operatorname{{norm}}_{{{1}}}\left({0}\right)"
    ),
    aten={"sqrt": None},
    terms=lambda algebra, node, indices: algebra.product([(node.inputs[0], 0.5)], node.type, indices),
    native=lambda m, x: m.call("sqrt", x),
    source="the positive root; derivative infinite at 0, as in torch; a distance of a point from itself counts as 0",
)

# ---- absolute value and steps ------------------------------------------------------------------------------
SIGN = unary(
    "sign",
    value=np.sign,
    derivative=zero_derivative,
    kinks=(Kink(0.0, 0.0),),
    aten={"sign": None, "sgn": None},
    moments=Pointwise(odd=True),
    cost=lambda *_, **__: 0,
    native=lambda m, x: m.where(x > 0.0, 1.0, m.where(x < 0.0, -1.0, x * 0.0)),
    source="-1, 0, 1; derivative zero almost everywhere",
)
ABS = unary(
    "abs",
    value=np.abs,
    derivative=lambda y, x: apply(SIGN, x),
    kinks=(Kink(0.0, 0.0),),
    latex=r"\left|{0}\right|",
    aten={"abs": None},
    moments=Pointwise(symmetric=lambda q: q, why="|u|^2 = u^2"),
    cost=lambda *_, **__: 0,
    native=lambda m, x: m.call("fabs", x),
    source="|x|; derivative sign(x), 0 at 0 as in torch",
)
HEAVISIDE = unary(
    "heaviside",
    value=lambda x: (np.asarray(x) >= 0).astype(np.float64),
    derivative=zero_derivative,
    kinks=(Kink(0.0, 0.0),),
    names=("heaviside", "Heaviside", "step"),
    code=Code("{np}.where({0} >= 0, 1.0, 0.0)"),
    torch=lambda node, x: f"({x[0]} >= 0).to({x[0]}.dtype)",
    cost=lambda *_, **__: 0,
    native=lambda m, x: m.where(x >= 0.0, m.like(1.0, x), 0.0),
    source="problem 7.8 (i): 0 below 0, 1 from 0 on",
)
RECT = unary(
    "rect",
    value=lambda x: ((np.asarray(x) >= 0) & (np.asarray(x) <= 1)).astype(np.float64),
    derivative=zero_derivative,
    kinks=(Kink(0.0, 0.0), Kink(1.0, 0.0)),
    code=Code("{np}.where(({0} >= 0) & ({0} <= 1), 1.0, 0.0)"),
    torch=lambda node, x: f"(({x[0]} >= 0) & ({x[0]} <= 1)).to({x[0]}.dtype)",
    cost=lambda *_, **__: 0,
    native=lambda m, x: m.where((x >= 0.0) & (x <= 1.0), m.like(1.0, x), 0.0),
    source="problem 7.8 (ii): 1 on [0, 1], else 0",
)

# ---- trigonometric and hyperbolic --------------------------------------------------------------------------
SIN = unary(
    "sin",
    value=np.sin,
    derivative=lambda y, x: apply(COS, x),
    latex=_function("sin"),
    moments=Pointwise(odd=True),
    aten={"sin": None},
    native=lambda m, x: m.sin(x),
    source="DLMF 4.20",
)
COS = unary(
    "cos",
    value=np.cos,
    derivative=lambda y, x: -apply(SIN, x),
    latex=_function("cos"),
    aten={"cos": None},
    native=lambda m, x: m.cos(x),
    source="DLMF 4.20",
)
TAN = unary(
    "tan",
    value=np.tan,
    derivative=lambda y, x: 1.0 + y**2.0,
    domain="unit",
    latex=_function("tan"),
    aten={"tan": None},
    native=lambda m, x: m.call("tan", x),
    source="DLMF 4.20",
)
SINH = unary(
    "sinh",
    value=np.sinh,
    derivative=lambda y, x: apply(COSH, x),
    latex=_function("sinh"),
    moments=Pointwise(odd=True),
    aten={"sinh": None},
    native=lambda m, x: (m.expm1(x) - m.expm1(-x)) * 0.5,
    source="DLMF 4.34",
)
COSH = unary(
    "cosh",
    value=np.cosh,
    derivative=lambda y, x: apply(SINH, x),
    latex=_function("cosh"),
    aten={"cosh": None},
    native=lambda m, x: (m.exp(x) + m.exp(-x)) * 0.5,
    source="DLMF 4.34",
)
TANH = unary(
    "tanh",
    value=np.tanh,
    derivative=lambda y, x: 1.0 - y**2.0,
    fused_vjp=lambda g, y, x: (apply(TANH_BACKWARD, g, y),),
    fused_again=True,
    latex=_function("tanh"),
    moments=Pointwise(odd=True),
    aten={"tanh": None},
    native=lambda m, x: m.tanh(x),
    source="DLMF 4.34",
)
ASIN = unary(
    "asin",
    value=np.arcsin,
    derivative=lambda y, x: 1.0 / apply(SQRT, 1.0 - x**2.0),
    domain="unit",
    latex=_function("arcsin"),
    moments=Pointwise(odd=True),
    aten={"asin": None},
    native=lambda m, x: m.call("asin", x),
    source="DLMF 4.24",
)
ACOS = unary(
    "acos",
    value=np.arccos,
    derivative=lambda y, x: -1.0 / apply(SQRT, 1.0 - x**2.0),
    domain="unit",
    latex=_function("arccos"),
    aten={"acos": None},
    native=lambda m, x: m.call("acos", x),
    source="DLMF 4.24",
)
ATAN = unary(
    "atan",
    value=np.arctan,
    derivative=lambda y, x: 1.0 / (1.0 + x**2.0),
    latex=_function("arctan"),
    moments=Pointwise(odd=True),
    aten={"atan": None},
    native=lambda m, x: m.call("atan", x),
    source="DLMF 4.24",
)
ERF = unary(
    "erf",
    value=_erf,
    derivative=lambda y, x: apply(EXP, -(x**2.0)) * (2.0 / math.sqrt(math.pi)),
    aten={"erf": None},
    moments=Pointwise(odd=True),
    code=Code("_erf({0})", jax="jax.scipy.special.erf({0})", helper=(_ERF,)),
    native=lambda m, x: m.erf(x),
    source="DLMF 7.2.1",
)

# ---- activations -------------------------------------------------------------------------------------------
SIGMOID = unary(
    "sigmoid",
    symbol="s",
    value=_sigmoid,
    derivative=lambda y, x: y * (1.0 - y),
    fused_vjp=lambda g, y, x: (apply(SIGMOID_BACKWARD, g, y),),
    fused_again=True,
    latex=r"\operatorname{{sig}}\left({0}\right)",
    names=("sigmoid", "sig"),
    code=Code("_sigmoid({0})", jax="jax.nn.sigmoid({0})", helper=(_SIGMOID,)),
    aten={"sigmoid": None},
    native=lambda m, x: m.sigmoid(x),
    source="problem 7.7: 1 / (1 + exp(-x)), derivative y(1 - y)",
)
RELU = unary(
    "relu",
    value=lambda x: np.maximum(x, 0),
    derivative=lambda y, x: iverson(compare("gt", x, 0.0), like=x),
    fused_vjp=lambda g, y, x: (apply(RELU_BACKWARD, g, y),),
    fused_again=True,
    kinks=(Kink(0.0, 0.0),),
    names=("relu", "ReLU"),
    latex=r"\operatorname{{ReLU}}\left({0}\right)",
    aten={"relu": None},
    moments=Pointwise(
        symmetric=lambda q: q / 2.0,
        normal=lambda v: ((v / (2.0 * math.pi)) ** 0.5, v / 2.0),
        why="u and -u are equally likely and relu keeps one of them: E[relu(u)^2] = E[u^2] / 2 (problem 7.14)",
    ),
    code=Code("{np}.maximum({0}, 0)"),
    cost=lambda *_, **__: 0,
    samples=(Sample((np.array([-1.7, -0.31, 0.27, 1.9]),)), Sample((np.array([0.0, -0.0]),), kink=True)),
    in_place={0: "torch.relu_({0})"},
    into="torch.ops.aten.relu.out({0}, out={out})",
    native=lambda m, x: m.where(x <= 0.0, 0.0, x),
    source="problem 7.1: derivative [x > 0]; 0 at 0, as in torch",
)
LEAKY_RELU = elementwise(
    "leaky_relu",
    arity=2,
    value=lambda x, a: np.where(np.asarray(x) > 0, x, np.asarray(a) * x),
    derivative=lambda y, x, a: (
        where(compare("gt", x, 0.0), as_node(1.0, like=x), a),
        x * iverson(compare("le", x, 0.0), like=x),
    ),
    domain=("real", "positive"),
    kinks=(Kink(0.0, "alpha"),),
    torch="torch.where({0} > 0, {0}, {1} * {0})",
    code="{np}.where({0} > 0, {0}, {1} * {0})",
    moments=Pointwise(
        symmetric=lambda q, a: q * (1.0 + a * a) / 2.0,
        why="half of u^2 is kept and half is scaled by alpha^2: E = E[u^2] (1 + alpha^2) / 2",
    ),
    latex=r"\operatorname{{LReLU}}\left({0}, {1}\right)",
    names=("leaky_relu", "LeakyReLU"),
    build=lambda x, a=0.01: apply(LEAKY_RELU, x, as_node(a, like=x)),
    aten={"leaky_relu": lambda x, a=0.01: apply(LEAKY_RELU, x, as_node(a, like=x))},
    native=lambda m, x, a: m.where(x > 0.0, x, a * x),
    source="problem 7.10: alpha x below 0, x above; alpha at 0, as in torch",
)
SOFTPLUS = unary(
    "softplus",
    value=lambda x: np.logaddexp(x, 0.0),
    derivative=lambda y, x: apply(SIGMOID, x),
    torch="torch.nn.functional.softplus({0})",
    code=Code("{np}.logaddexp({0}, 0.0)"),
    native=lambda m, x: m.softplus(x),
    source="log(1 + exp(x)), derivative sigmoid(x)",
)
SILU = unary(
    "silu",
    value=lambda x: x * _sigmoid(x),
    derivative=lambda y, x: apply(SIGMOID, x) * (1.0 + x * (1.0 - apply(SIGMOID, x))),
    torch="torch.nn.functional.silu({0})",
    in_place={0: "torch.nn.functional.silu({0}, inplace=True)"},
    into="torch.ops.aten.silu.out({0}, out={out})",
    code=Code("({0} * _sigmoid({0}))", jax="jax.nn.silu({0})", helper=(_SIGMOID,)),
    names=("silu", "swish"),
    aten={"silu": None},
    fused_vjp=lambda g, y, x: (apply(SILU_BACKWARD, g, x),),
    fused_again=True,
    native=lambda m, x: x * m.sigmoid(x),
    source="Elfwing et al. 2018: x sigmoid(x)",
)
GELU = unary(
    "gelu",
    value=lambda x: 0.5 * x * (1 + _erf(np.asarray(x) / math.sqrt(2))),
    derivative=lambda y, x: (
        0.5 * (1.0 + apply(ERF, x / math.sqrt(2))) + x * apply(EXP, -(x**2.0) / 2.0) / math.sqrt(2 * math.pi)
    ),
    torch="torch.nn.functional.gelu({0})",
    in_place={0: "torch.ops.aten.gelu.out({0}, out={0})"},
    into="torch.ops.aten.gelu.out({0}, out={out})",
    code=Code(
        "_gelu({0})",
        jax="jax.nn.gelu({0}, approximate=False)",
        helper=(_ERF, "def _gelu(x):\n    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))\n"),
    ),
    fused_vjp=lambda g, y, x: (apply(GELU_BACKWARD, g, x),),
    fused_again=True,
    native=lambda m, x: 0.5 * x * (1.0 + m.erf(x * math.sqrt(0.5))),
    source="Hendrycks and Gimpel 2016: x Phi(x)",
)


ELU = elementwise(
    "elu",
    arity=2,
    value=lambda x, a: np.where(np.asarray(x) > 0, x, np.asarray(a) * np.expm1(np.minimum(x, 0.0))),
    derivative=lambda y, x, a: (
        where(compare("gt", x, 0.0), as_node(1.0, like=x), a * apply(EXP, x)),
        where(compare("gt", x, 0.0), as_node(0.0, like=x), apply(EXP, x) - 1.0),
    ),
    domain=("real", "positive"),
    kinks=(Kink(0.0, "alpha"),),
    torch="torch.where({0} > 0, {0}, {1} * torch.expm1({0}))",
    code=Code("{np}.where({0} > 0, {0}, {1} * {np}.expm1({np}.minimum({0}, 0)))"),
    names=("elu",),
    build=lambda x, a=1.0: apply(ELU, x, as_node(a, like=x)),
    aten={
        "elu": lambda x, alpha=1.0, scale=1.0, input_scale=1.0: (
            apply(ELU, x * input_scale if input_scale != 1.0 else x, constant(alpha, x.type.dtype)) * scale
        ),
    },
    native=lambda m, x, a: m.where(x > 0.0, x, a * m.expm1(x)),
    source="Clevert et al. 2016; selu's constants from Klambauer et al. 2017",
)
