"""Arithmetic, comparisons and choices: + - * / ^, < >, where, and the Iverson bracket.

``terms`` says how each of the first five is a sum of products; ``simplify`` collects like terms from that alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.ir import (
    ADD,
    ATOM,
    MUL,
    OPS,
    POWER,
    UNARY,
    Code,
    Kink,
    Node,
    Rewrite,
    Sample,
    TensorType,
    apply,
    as_node,
    constant,
)
from chainrule.ops.families import elementwise, elementwise_shape
from chainrule.ops.moment_rules import PowerRule, ProductRule, ScaleRule, SumRule
from chainrule.ops.slicing import side_by_side
from chainrule.ops.stable import LIMIT, limit_of_power, limit_of_quotient, stable_power, stable_quotient


def is_number(node: Node, value: float) -> bool:
    """Whether a node is the scalar constant ``value``, or that constant broadcast."""
    while node.op.name == "broadcast":
        node = node.inputs[0]
    return node.number is not None and node.number == value and not isinstance(node.number, bool)


def _same_type(node: Node, candidate: Node) -> Node | None:
    """``candidate`` if it can stand for ``node``: dropping an operand must not change shape or dtype."""
    if candidate.type.shape == node.type.shape and candidate.type.dtype == node.type.dtype:
        return candidate
    if candidate.type.dtype == node.type.dtype or candidate.number is not None:
        return apply(OPS["broadcast"], candidate, shape=node.type.shape)
    return None


def _drop_zero(node: Node) -> Node | None:
    a, b = node.inputs
    if is_number(b, 0):
        return _same_type(node, a)
    return _same_type(node, b) if is_number(a, 0) else None


def _drop_one(node: Node) -> Node | None:
    a, b = node.inputs
    if is_number(b, 1):
        return _same_type(node, a)
    return _same_type(node, b) if is_number(a, 1) else None


def _times_zero(node: Node) -> Node | None:
    # Not exact: 0 * inf is nan. Derivative graphs of traced models drop zeros by never creating them.
    return _same_type(node, constant(0.0, node.type.dtype)) if any(is_number(x, 0) for x in node.inputs) else None


def _negate_number(node: Node) -> Node | None:
    (x,) = node.inputs
    return constant(-x.number, node.type.dtype) if x.number is not None else None


def _double_negation(node: Node) -> Node | None:
    (x,) = node.inputs
    return x.inputs[0] if x.op is node.op else None


NEG = elementwise(
    "neg",
    arity=1,
    keeps_zeros=(0,),
    value=np.negative,
    derivative=lambda y, x: (as_node(-1.0, like=x),),
    vjp=lambda g, y, x: (-g,),
    jvp=lambda tangents, y, x: None if tangents[0] is None else -tangents[0],
    cost=lambda *_, **__: 0,
    terms=lambda algebra, node, indices: algebra.scaled(-1, algebra.expand(node.inputs[0], indices)),
    text="-{0}",
    latex="-{0}",
    precedence=UNARY,
    child_precedence=(UNARY + 1,),
    torch="-{0}",
    in_place={0: "{0}.neg_()"},
    into="torch.neg({0}, out={out})",
    aten={"neg": None},
    names=(),
    rewrites=(Rewrite(_double_negation, exact=True), Rewrite(_negate_number, exact=True)),
    moments=ScaleRule(-1),
    native=lambda m, x: -x,
    source="-x",
)

ADD_OP = elementwise(
    "add",
    arity=2,
    value=np.add,
    vjp=lambda g, y, a, b: (g, g),
    derivative=lambda y, a, b: (as_node(1.0, like=a), as_node(1.0, like=b)),
    jvp=lambda tangents, y, a, b: _moved(tangents[0], tangents[1], y),
    cost=lambda *_, **__: 0,
    terms=lambda algebra, node, indices: algebra.sum([(1, node.inputs[0]), (1, node.inputs[1])], node.type, indices),
    text="{0} + {1}",
    latex="{0} + {1}",
    precedence=ADD,
    child_precedence=(ADD, ADD + 1),
    torch="{0} + {1}",
    in_place={0: "{0}.add_({1})", 1: "{1}.add_({0})"},
    into="torch.add({0}, {1}, out={out})",
    names=(),
    rewrites=(Rewrite(side_by_side, exact=True), Rewrite(_drop_zero)),
    moments=SumRule(1),
    native=lambda m, a, b: a + b,
    source="a + b",
)


def _moved(a: Node | None, b: Node | None, y: Node) -> Node | None:
    moved = a + b if a is not None and b is not None else a if a is not None else b
    if moved is not None and moved.shape != y.shape:
        moved = apply(OPS["broadcast"], moved, shape=y.shape)
    return moved


SUB = elementwise(
    "sub",
    arity=2,
    value=np.subtract,
    vjp=lambda g, y, a, b: (g, -g),
    derivative=lambda y, a, b: (as_node(1.0, like=a), as_node(-1.0, like=b)),
    jvp=lambda tangents, y, a, b: _moved(tangents[0], None if tangents[1] is None else -tangents[1], y),
    cost=lambda *_, **__: 0,
    terms=lambda algebra, node, indices: algebra.sum([(1, node.inputs[0]), (-1, node.inputs[1])], node.type, indices),
    opposite=lambda node: node.inputs[1] - node.inputs[0],
    text="{0} - {1}",
    latex="{0} - {1}",
    precedence=ADD,
    child_precedence=(ADD, ADD + 1),
    torch="{0} - {1}",
    in_place={0: "{0}.sub_({1})", 1: "torch.sub({0}, {1}, out={1})"},
    into="torch.sub({0}, {1}, out={out})",
    names=(),
    rewrites=(
        Rewrite(
            lambda node: _same_type(node, node.inputs[0]) if is_number(node.inputs[1], 0) else None,
            exact=True,
        ),
        Rewrite(
            lambda node: (
                -node.inputs[1]
                if is_number(node.inputs[0], 0) and _same_type(node, node.inputs[1]) is node.inputs[1]
                else None
            )
        ),
    ),
    moments=SumRule(-1),
    native=lambda m, a, b: a - b,
    source="a - b",
)

MUL_OP = elementwise(
    "mul",
    arity=2,
    keeps_zeros=(0, 1),
    value=np.multiply,
    derivative=lambda y, a, b: (b, a),
    terms=lambda algebra, node, indices: algebra.product(
        [(node.inputs[0], 1), (node.inputs[1], 1)], node.type, indices
    ),
    text=lambda p, node: p.product(node),
    latex=lambda p, node: p.product(node),
    precedence=MUL,
    child_precedence=(MUL, MUL + 1),
    torch="{0} * {1}",
    in_place={0: "{0}.mul_({1})", 1: "{1}.mul_({0})"},
    into="torch.mul({0}, {1}, out={out})",
    names=(),
    aten={"mul.Tensor": None, "mul.Scalar": None},
    rewrites=(Rewrite(_drop_one, exact=True), Rewrite(_times_zero)),
    moments=ProductRule(),
    native=lambda m, a, b: a * b,
    source="a * b, elementwise",
)

DIV = elementwise(
    "div",
    arity=2,
    keeps_zeros=(0,),
    value=np.divide,
    domain=("real", "positive"),
    undefined=lambda a, b: "division by zero" if b == 0 else "",
    derivative=lambda y, a, b: (1.0 / b, -y / b),
    vjp=lambda g, y, a, b: (g / b, -(g * y) / b),
    terms=lambda algebra, node, indices: algebra.product(
        [(node.inputs[0], 1), (node.inputs[1], -1)], node.type, indices
    ),
    text="{0} / {1}",
    latex=lambda p, node: (
        rf"\frac{{{p.child(node.inputs[0], 0)}}}{{{p.child(node.inputs[1], 0)}}}",
        POWER,  # the bar groups by itself: brackets only where it gets an exponent
    ),
    precedence=MUL,
    child_precedence=(MUL, MUL + 1),
    torch="{0} / {1}",
    in_place={0: "{0}.div_({1})", 1: "torch.div({0}, {1}, out={1})"},
    into="torch.div({0}, {1}, out={out})",
    names=(),
    aten={
        "div.Tensor": None,
        "div.Scalar": None,
        "true_divide.Tensor": None,
        "reciprocal": lambda x: 1.0 / x,
    },
    rewrites=(
        Rewrite(
            lambda node: _same_type(node, node.inputs[0]) if is_number(node.inputs[1], 1) else None,
            exact=True,
        ),
    ),
    stable=(Rewrite(stable_quotient), Rewrite(limit_of_quotient, name=LIMIT)),
    moments=ProductRule(invert=True),
    native=lambda m, a, b: a / b,
    source="a / b, elementwise",
)


def _power_derivative(y: Node, a: Node, b: Node) -> tuple[Node, Node | None]:
    wrt_base = b * a ** (b - 1.0) if b.number is None else a ** (b.number - 1) * b.number
    # The exponent's derivative exists for positive bases only; a constant exponent never asks for it.
    return wrt_base, None if b.number is not None else y * apply(OPS["log"], a)


def _power_terms(algebra: Any, node: Node, indices: tuple[Any, ...]) -> Any:
    base, exponent = node.inputs
    if exponent.number is None:
        return None
    return algebra.product([(base, exponent.number)], node.type, indices)


def _power_text(p: Any, node: Node) -> str:
    base, exponent = node.inputs
    written, strength = p.rendered(exponent)
    signed = exponent.op is NEG and not p.is_named(exponent)
    magnitude = p.rendered(exponent.inputs[0])[1] if signed else POWER if exponent.number is not None else strength
    # x^-a and x^-2 need no brackets, x^(a * b) and x^(-a * b) do.
    return f"{p.child(base, POWER + 1)}^{written if magnitude >= POWER else p.brackets(written)}"


def _power_latex(p: Any, node: Node) -> str:
    base, exponent = node.inputs
    each = r"\circ " if base.type.rank > 1 else ""  # of every element, not a product of matrices
    # A transpose has an exponent already.
    return f"{p.child(base, ATOM)}^{{{each}{p.child(exponent, 0)}}}"


POW = elementwise(
    "pow",
    arity=2,
    value=lambda a, b: np.power(np.asarray(a, dtype=np.result_type(a, b, np.float32)), b),
    domain="positive",
    undefined=lambda a, b: "division by zero" if a == 0 and b is not None and b < 0 else "",
    derivative=_power_derivative,
    terms=_power_terms,
    text=_power_text,
    latex=_power_latex,
    precedence=POWER,
    torch="{0} ** {1}",
    in_place={0: "{0}.pow_({1})"},
    # A base that is a number has a kernel of its own.
    into=lambda node, x, out: "" if node.inputs[0].number is not None else f"torch.pow({x[0]}, {x[1]}, out={out})",
    names=(),
    aten={
        "pow.Tensor_Scalar": None,
        "pow.Tensor_Tensor": None,
        "pow.Scalar": None,
        "square": lambda x: x**2.0,
    },
    rewrites=(
        Rewrite(
            lambda node: _same_type(node, node.inputs[0]) if is_number(node.inputs[1], 1) else None,
            exact=True,
        ),
        Rewrite(
            lambda node: _same_type(node, constant(1.0, node.type.dtype)) if is_number(node.inputs[1], 0) else None,
            exact=True,  # of any base, nan too
        ),
    ),
    stable=(Rewrite(stable_power), Rewrite(limit_of_power, name=LIMIT)),
    moments=PowerRule(),
    native=lambda m, a, b: m.pow(a, b),
    source="a ^ b, elementwise; torch's 0^0 = 1",
)


def _needless_broadcast(node: Node) -> Node | None:
    """Comparisons broadcast by themselves: ``x == max(x)``, not ``x == max(x) * ones(n)``."""
    for k, x in enumerate(node.inputs):
        if x.op.name == "broadcast" and x.inputs[0].shape == ():
            shorter = apply(node.op, *(x.inputs[0] if n == k else i for n, i in enumerate(node.inputs)))
            if shorter.shape == node.shape:
                return shorter
    return None


# ---- comparisons: boolean, no derivative -------------------------------------------------------------------
def _comparison(name: str, symbol: str, latex: str, value: Any) -> Any:
    return elementwise(
        name,
        arity=2,
        value=value,
        shape=lambda *types, **params: elementwise_shape(*types, **params).with_dtype("bool"),
        text=f"{{0}} {symbol} {{1}}",
        latex=f"{{0}} {latex} {{1}}",
        precedence=ADD - 5,
        child_precedence=(ADD, ADD),
        torch=f"{{0}} {symbol} {{1}}",
        names=(),
        aten={f"{name}.Tensor": None, f"{name}.Scalar": None},
        cost=lambda *_, **__: 0,
        rewrites=(Rewrite(_needless_broadcast, exact=True),),
        native=lambda m, a, b: m.compare(name, a, b),
        source="comparison, true or false",
    )


GT = _comparison("gt", ">", ">", np.greater)
GE = _comparison("ge", ">=", r"\geq", np.greater_equal)
LT = _comparison("lt", "<", "<", np.less)
LE = _comparison("le", "<=", r"\leq", np.less_equal)
EQ = _comparison("eq", "==", "=", np.equal)
NE = _comparison("ne", "!=", r"\neq", np.not_equal)


def _iverson_of_number(node: Node) -> Node | None:
    (condition,) = node.inputs
    return constant(float(condition.number), node.type.dtype) if condition.number is not None else None


IVERSON = elementwise(
    "iverson",
    arity=1,
    shape=lambda c, *, dtype: TensorType(c.shape, dtype, None, c.device),
    value=lambda c, *, dtype: np.asarray(c, dtype=np.float64),
    text="[{0}]",
    latex=r"\mathbb{{I}}\left[{0}\right]",
    child_precedence=(0,),
    torch=lambda node, x: f"{x[0]}.to(torch.{node.params['dtype']})",
    code=Code("{np}.where({0}, 1.0, 0.0)"),
    cost=lambda *_, **__: 0,
    names=(),
    samples=(Sample((np.array([True, False]),), {"dtype": "float64"}),),
    rewrites=(Rewrite(_iverson_of_number, exact=True),),
    native=lambda m, c, *, dtype: m.cast(c, dtype),
    source="the indicator of the chapter (figure 7.6): 1 where the condition holds, else 0",
)


def iverson(condition: Node, like: Node | None = None) -> Node:
    """``[condition]`` as a float in the dtype of ``like``."""
    dtype = like.type.dtype if like is not None and like.type.is_float else "float64"
    return apply(IVERSON, condition, dtype=dtype)


def compare(name: str, a: Any, b: Any) -> Node:
    """The comparison ``gt ge lt le eq ne`` of two values."""
    return apply(OPS[name], as_node(a, like=b), as_node(b, like=a))


WHERE = elementwise(
    "where",
    arity=3,
    shape=lambda c, a, b: elementwise_shape(c, elementwise_shape(a, b)).with_dtype(promote_values(a, b)),
    value=lambda c, a, b: np.where(np.asarray(c, dtype=bool), a, b),
    vjp=lambda g, y, c, a, b: (None, where(c, g, _zeros(g)), where(c, _zeros(g), g)),
    terms=lambda algebra, node, indices: _where_terms(algebra, node, indices),
    jvp=lambda t, y, c, a, b: (
        None
        if t[1] is None and t[2] is None
        else where(c, t[1] if t[1] is not None else _zeros(a), t[2] if t[2] is not None else _zeros(b))
    ),
    build=lambda condition, a, b: where(condition, a, b),
    aten={
        "where.self": None,
        "where.ScalarOther": None,
        "where.ScalarSelf": None,
        "where.Scalar": None,
        "masked_fill.Scalar": lambda x, mask, value: where(mask, as_node(value, like=x), x),
        "masked_fill.Tensor": lambda x, mask, value: where(mask, value, x),
    },
    cost=lambda *_, **__: 0,
    samples=(Sample((np.array([True, False, True]), np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.7, 0.9]))),),
    differentiable=True,
    rewrites=(
        Rewrite(
            lambda node: (
                _same_type(node, node.inputs[1 if node.inputs[0].number else 2])
                if node.inputs[0].number is not None
                else None
            ),
            exact=True,
        ),
        Rewrite(
            lambda node: _same_type(node, node.inputs[1]) if node.inputs[1] is node.inputs[2] else None,
            exact=True,
        ),
    ),
    native=lambda m, c, a, b: m.where(c, a, b),
    source="a where the condition holds, else b; derivative of the selected side",
)


def _zeros(g: Node) -> Node:
    # A constant, not g * 0: an inf or nan must not leak into the branch that was not taken. It broadcasts.
    return constant(0.0, g.type.dtype)


_OPPOSITE = {"gt": "le", "le": "gt", "lt": "ge", "ge": "lt", "eq": "ne", "ne": "eq"}


def _where_terms(algebra: Any, node: Node, indices: tuple[Any, ...]) -> Any:
    """``where(c, a, 0)`` is ``[c] * a``, so a selected cotangent stays a product."""
    condition, a, b = node.inputs
    if is_number(b, 0):
        return algebra.product([(iverson(condition, a), 1), (a, 1)], node.type, indices)
    if is_number(a, 0) and condition.op.name in _OPPOSITE:
        opposite = compare(_OPPOSITE[condition.op.name], *condition.inputs)
        return algebra.product([(iverson(opposite, b), 1), (b, 1)], node.type, indices)
    if is_number(a, 0):
        return algebra.sum([(1, b), (-1, iverson(condition, b) * b)], node.type, indices)
    return None


def promote_values(a: TensorType, b: TensorType) -> str:
    """The dtype of a choice between two values."""
    return elementwise_shape(a, b).dtype


def where(condition: Node, a: Any, b: Any) -> Node:
    """``a`` where the condition holds, else ``b``."""
    return apply(WHERE, condition, as_node(a, like=b), as_node(b, like=a))


# ---- maximum and minimum -----------------------------------------------------------------------------------
_A, _B = np.array([-1.7, -0.83, -0.31, 0.27, 0.64, 1.9]), np.array([2.1, -1.9, -0.9, -0.35, 0.31, 0.72])


def _extremum(name: str, value: Any, wins: str) -> Any:
    def derivative(y: Node, a: Node, b: Node) -> tuple[Node, Node]:
        if a.number is not None or b.number is not None:  # the positive part and other bounds: 0 at the bound, as relu
            return iverson(compare(wins, a, b), like=y), iverson(compare(wins, b, a), like=y)
        tie = iverson(compare("eq", a, b), like=y) * 0.5
        return (
            iverson(compare(wins, a, b), like=y) + tie,
            iverson(compare(wins, b, a), like=y) + tie,
        )

    return elementwise(
        name,
        arity=2,
        value=value,
        derivative=derivative,
        kinks=(Kink(0.0, 0.5),),
        samples=(
            Sample((_A, _B)),
            Sample((_A.reshape(2, 3), _B[:3])),
            Sample((np.array(0.2), _B)),
            Sample((_A, _A), kink=True),
        ),
        latex=rf"\{name[:3]}\left({{0}}, {{1}}\right)",
        aten={name: None},
        cost=lambda *_, **__: 0,
        native=lambda m, a, b: getattr(m, name)(a, b),
        source="the larger (smaller) of two; at a tie each side gets half, as in torch; against a number none, as relu",
    )


MAXIMUM = _extremum("maximum", np.maximum, "gt")
MINIMUM = _extremum("minimum", np.minimum, "lt")
