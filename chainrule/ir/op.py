"""What an op is: one frozen declaration that answers every question asked of it, and the registry of all ops.

Interpreters read one field of each op; front ends read ``names`` and ``aten``; back ends read ``torch`` and ``native``.
Nothing outside ``chainrule.ops`` compares an op with another. The declarations themselves live in ``chainrule.ops``;
most fields are supplied by the families there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chainrule.errors import UnsupportedOpError

Rule = Callable[..., Any]

# Binding strength of printed text, weakest first. A child is bracketed where its own is below what its place asks.
ADD, UNARY, MUL, POWER, POSTFIX, ATOM = 10, 15, 20, 30, 40, 50


@dataclass(frozen=True)
class Kink:
    """A point where the derivative is a declared choice: ``at`` as printed (``x = 0``), ``value`` as chosen there."""

    at: float
    value: float | str


@dataclass(frozen=True, eq=False)
class Sample:
    """Arguments on which the contract test tries an op: arrays by position, static parameters by name."""

    args: tuple[Any, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    kink: bool = False  # the sample sits on a kink: value and back ends are compared there, differences are not
    smooth: bool = True  # finite differences make sense here


@dataclass(frozen=True)
class Rewrite:
    """A local simplification: ``rule(node)`` is an equal node or None.

    ``exact`` rules keep every bit of a floating-point result and may be used on traced models; the others
    reassociate, and are for formulas.
    """

    rule: Callable[[Any], Any]
    exact: bool = False
    name: str = ""


@dataclass(frozen=True)
class Code:
    """How an op is written in source whose sizes are names, by language.

    A template with ``{0}``, ``{1}`` and the namespace ``{np}``, or a rule ``(w, node) -> str`` or ``(str, strength)``
    that asks ``w(k, strength)`` for its operands and reads ``w.np``, ``w.size(n)``.

    Attributes:
        numpy: NumPy's words. jax: None where they are NumPy's. torch: None where they are ``Op.torch``.
        helper: sources of functions that NumPy's words call, each written once above.
    """

    numpy: str | Rule
    jax: str | Rule | None = None
    torch: str | Rule | None = None
    helper: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Op:
    """One op with everything the chapter asks of it.

    Attributes:
        name: unique key in :data:`OPS`.
        family: which family supplied the defaults (for tables and messages).
        shape: ``(*types, **params) -> TensorType | TupleType``; raises ShapeError.
        value: ``(*arrays, **params) -> array`` in NumPy: the oracle that every back end is compared with.
        vjp: ``(g, y, *xs, **params) -> cotangent per input`` (None: no derivative flows there).
        jvp: ``(tangents, y, *xs, **params) -> tangent``; a tangent is None where nothing moves.
        expansion: for composites, ``(*xs, **params) -> Node`` in smaller ops; everything not given follows from it.
        terms: how the node is a sum of products, for the algebra of ``simplify`` (see ``interpreters.terms``).
        sums_to_one: ``(node) -> axis`` along which its elements sum to one (softmax).
        cancels: ``(node) -> matrix`` whose product with the node, on either side, is the identity (inv).
        opposite: ``(node) -> Node``: its negative, written as short as itself (a - b and b - a).
        keeps_symmetry: of a symmetric, triangular or diagonal matrix it makes another one (inv).
        gram: ``(node) -> (matrix, axis)``: what the node's product with itself over that axis is (cholesky).
        structure: what matrix the result is, one of ``ir.structure.STRUCTURES`` ("lower triangular" for cholesky).
        keeps_zeros: the operands of an elementwise op whose zeros are zeros of the result (both factors of a product).
        lift: ``(node, inputs, extra) -> Node``: the same linear op on a value with more dimensions behind its own.
        moments: first and second moments, forward and backward (see ``interpreters.moments``).
        cost: ``(type, *input types, **params) -> multiplications``; default 0 (movement).
        text, latex: template with ``{0}``, ``{1}`` or ``(printer, node) -> str``; ``precedence`` is its own strength,
            ``child_precedence`` what it asks of each operand.
        indexed: ``(printer, node, indices) -> (text, strength)`` or None: how an element reads in index notation;
            without it the printed node has its indices behind, ``inv(X)_ij``.
        torch, native: template or ``(node, operand names) -> str`` of the expression in that language.
        in_place: operand position -> template of the torch expression that leaves the result in that operand's memory.
        into: template of the torch expression that leaves the result in other memory of its type, ``{out}``;
            ``(node, operand names, out) -> str``, or "" where there is none.
        order: how torch's result lies in memory: "given" in the order of its dimensions, "operands" if all operands
            do, "" unknown; ``(node) -> str`` where that depends.
        aliases: whether torch's result may lie in the memory of an operand, or keep it for later (views, tapes);
            ``(node) -> bool`` where that depends.
        works_inside: whether torch's kernel takes memory beside its operands and results, which only a run shows.
        prelude: source of what that expression calls, written once above. externals: ``(**params) -> objects`` that it
            refers to; their names come first among the operand names.
        fused_vjp: like vjp, by kernels that have no derivative themselves: what programs run; None where none fits.
        fused_again: whether the kernels of ``fused_vjp`` have derivatives themselves.
        taped: whether torch's autograd has a derivative of the call; code that it records has the expansion if not.
        recorded: ``(node, inputs) -> Node | None``: the same call in the form whose first outputs are the op's and
            which keeps what its backward kernel reads; where both forms of a call occur, that one runs.
        keeps_more: at run time there is one thing behind the outputs, which only its backward op understands.
        choosy: has a parameter ``wanted``, one flag per output, and computes only those.
        code: how it is written in source whose sizes are names: a :class:`Code`, or what all languages share.
        stable: rewrites for code that runs: the same function with less rounding, overflow or work.
        aten: overloads that the torch front end lowers to this op, each with an adaptor of arguments or None.
        symbol: the letter that its value customarily has (``p`` for softmax), for answers that repeat it.
        names: spellings in the formula language; ``build`` makes the node from parsed arguments.
        kinks: declared choices of the derivative. ``facts``: identities, as rewrites. ``rewrites``: simplifications.
        undefined: ``(*operands) -> str``: what is wrong everywhere ("division by zero"), or ""; an operand is a number
            where it is constant, else None.
        pure: False for random draws, which never merge: their parameter ``stream`` is their number in the program.
        samples, error_samples: for the contract test.
        source: where the formula can be checked.
    """

    name: str
    family: str
    shape: Rule
    value: Rule
    vjp: Rule | None = None
    jvp: Rule | None = None
    expansion: Rule | None = None
    terms: Rule | None = None
    lift: Rule | None = None
    sums_to_one: Rule | None = None
    cancels: Rule | None = None
    opposite: Rule | None = None
    keeps_symmetry: bool = False
    gram: Rule | None = None
    structure: str = ""
    keeps_zeros: tuple[int, ...] = ()
    moments: Any = None
    cost: Rule | None = None
    text: str | Rule = ""
    latex: str | Rule = ""
    precedence: int = ATOM
    child_precedence: tuple[int, ...] = ()
    indexed: Rule | None = None
    torch: str | Rule | None = None
    in_place: Mapping[int, str] = field(default_factory=dict)
    into: str | Rule = ""
    order: str | Rule = ""
    aliases: bool | Rule = False
    works_inside: bool = False
    prelude: str = ""
    externals: Rule | None = None
    fused_vjp: Rule | None = None
    fused_again: bool = False
    taped: bool = True
    recorded: Rule | None = None
    keeps_more: bool = False
    choosy: bool = False
    native: Any = None
    code: str | Rule | Code | None = None
    stable: tuple[Rewrite, ...] = ()
    aten: Mapping[str, Rule | None] = field(default_factory=dict)
    symbol: str = ""
    names: tuple[str, ...] = ()
    build: Rule | None = None
    kinks: tuple[Kink, ...] = ()
    undefined: Rule | None = None
    rewrites: tuple[Rewrite, ...] = ()
    facts: tuple[Rewrite, ...] = ()
    differentiable: bool = True
    transforms_body: bool = False  # the rules receive the differentiation functions (loops over a body graph)
    pure: bool = True
    samples: tuple[Sample, ...] = ()
    error_samples: tuple[Sample, ...] = ()
    source: str = ""

    def __repr__(self) -> str:
        return f"Op({self.name})"


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Adds a declaration to :data:`OPS`; a name can be declared once."""
    if op.name in OPS:
        raise ValueError(f"op {op.name!r} is declared twice")
    OPS[op.name] = op
    if op.names:
        spelling(*op.names)(op.build or _builder(op))
    return op


def _builder(op: Op) -> Rule:
    from chainrule.ir.graph import apply, as_node  # the graph module needs the registry above

    def build(*arguments: Any) -> Any:
        nodes = [a for a in arguments if not isinstance(a, (int, float))]
        return apply(op, *(as_node(a, like=nodes[0] if nodes else None) for a in arguments))

    return build


def rule_of(op: Op, rule: str, what: str) -> Rule:
    """The named rule of an op, or an UnsupportedOpError that says what could not be done without it."""
    found = getattr(op, rule)
    if found is None:
        raise UnsupportedOpError(
            f"cannot {what}: op {op.name!r} declares no {rule} rule",
            instead="declare it in chainrule/ops (docs/adding-an-op.md), or stop_gradient before it",
        )
    return found


SPELLINGS: dict[str, Rule] = {}


def spelling(*names: str) -> Callable[[Rule], Rule]:
    """Declares a function of the formula language that is built from ops: ``(*arguments) -> Node``.

    Arguments arrive as nodes, or as Python numbers where the text has a literal number. Ops with ``names`` are
    declared by :func:`register`; this is for those without an op of their own (``sum``, ``tr``).
    Parameters called ``size``, ``*sizes``, ``shape``, ``axis``, ``condition`` or ``subscripts`` receive those things
    (see ``frontends/formula/functions.py``); a default makes an argument optional, and callable by name.
    """

    def declare(build: Rule) -> Rule:
        for name in names:
            if name in SPELLINGS:
                raise ValueError(f"formula function {name!r} is declared twice")
            SPELLINGS[name] = build
        return build

    return declare


LOWERINGS: dict[str, Rule] = {}


def lowering(*overloads: str) -> Callable[[Rule], Rule]:
    """Declares what the torch front end makes of aten overloads that need no op of their own: ``(*args) -> Node(s)``.

    Tensors arrive as nodes, dtypes as names, everything else as it is. Ops say the same in ``Op.aten``.
    """

    def declare(rule: Rule) -> Rule:
        for overload in overloads:
            if overload in LOWERINGS:
                raise ValueError(f"aten.{overload} is declared twice")
            LOWERINGS[overload] = rule
        return rule

    return declare
