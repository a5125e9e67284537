"""Syntax trees to nodes: one method per kind of tree, recursion through ``trampoline``.

Neighbours: ``names`` says what a name means, ``functions`` what an argument is, ``orientation`` what ``@``
and ``'`` mean of vectors, ``partials`` which derivative ``dl/df`` is. Errors of shape rules leave with the
place in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from chainrule.errors import ChainruleError, FormulaError, ShapeError
from chainrule.frontends.formula import functions, tree
from chainrule.frontends.formula.messages import located, short
from chainrule.frontends.formula.names import Names
from chainrule.frontends.formula.orientation import Value, aligned, keeps_orientation, product, transposed
from chainrule.frontends.formula.partials import Partials
from chainrule.frontends.formula.sizes import size
from chainrule.frontends.formula.trampoline import Steps, run
from chainrule.ir import SPELLINGS, Dim, Node, Origin, constant, shape_text, toposort
from chainrule.ops.arithmetic import compare, iverson
from chainrule.ops.indexing import index
from chainrule.ops.unknown import partial

_ARITHMETIC: dict[str, Callable[[Node, Node], Node]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": lambda a, b: a**b,
}
_COMPARISONS = {">": "gt", ">=": "ge", "<": "lt", "<=": "le", "==": "eq", "!=": "ne"}


class Lowering:
    """Makes the nodes of one text.

    Attributes:
        origins: node -> where in the text it was first made.
    """

    def __init__(self, source: str, names: Names, statements: Sequence[tree.Assignment]) -> None:
        self.source, self.names = source, names
        self.origins: dict[Node, Origin] = {}
        self.partials = Partials(source, names, statements)
        self.argument_counts: dict[str, int] = {}
        self.rules: dict[type, Callable[[Any], Any]] = {
            tree.Number: self.number,
            tree.Name: self.name,
            tree.Negative: self.negative,
            tree.Transposed: self.transposed,
            tree.Binary: self.binary,
            tree.Comparison: self.comparison,
            tree.Iverson: self.iverson,
            tree.Index: self.index,
            tree.Call: self.call,
            tree.Partial: self.partial,
        }

    def statement(self, statement: tree.Assignment) -> Value:
        """The value of a statement, which may be a condition."""
        return run(self.lower(statement.expression))

    def lower(self, part: tree.Tree) -> Any:
        """The value of a tree, or the steps to it."""
        rule = self.rules.get(type(part))
        if rule is None:
            self.misplaced(part)
        return rule(part)

    # ---- leaves --------------------------------------------------------------------------------------------
    def number(self, part: tree.Number) -> Value:
        return self.made(part, Value(constant(part.value)))

    def name(self, part: tree.Name) -> Value:
        return self.made(part, self.names.read(part))

    # ---- operators -----------------------------------------------------------------------------------------
    def negative(self, part: tree.Negative) -> Steps:
        if isinstance(part.operand, tree.Number):  # -1 is a constant, as it is printed
            return self.made(part, Value(constant(-part.operand.value)))
        x = self.as_number(part.operand, (yield self.lower(part.operand)))
        return self.build(part, lambda: Value(-x.node, x.row))

    def transposed(self, part: tree.Transposed) -> Steps:
        x = self.as_number(part.operand, (yield self.lower(part.operand)))
        return self.build(part, lambda: transposed(x))

    def binary(self, part: tree.Binary) -> Steps:
        a = self.as_number(part.left, (yield self.lower(part.left)))
        if part.symbol == "^" and a.rank and isinstance(part.right, tree.Name) and part.right.name == "T":
            self.refuse_power_t(part)
        b = self.as_number(part.right, (yield self.lower(part.right)))
        if part.symbol == "@":
            return self.build(part, lambda: product(a, b), (part.left, a), (part.right, b))
        apply = _ARITHMETIC[part.symbol]
        return self.build(part, lambda: _elementwise(apply, a, b), (part.left, a), (part.right, b))

    def comparison(self, part: tree.Comparison) -> Steps:
        a = self.as_number(part.left, (yield self.lower(part.left)))
        b = self.as_number(part.right, (yield self.lower(part.right)))
        name = _COMPARISONS[part.symbol]
        return self.build(
            part,
            lambda: _elementwise(lambda x, y: compare(name, x, y), a, b),
            (part.left, a),
            (part.right, b),
        )

    def iverson(self, part: tree.Iverson) -> Steps:
        condition = self.as_condition(part.condition, (yield self.lower(part.condition)))
        return self.build(part, lambda: Value(iverson(condition.node), condition.row))

    # ---- calls and indices ---------------------------------------------------------------------------------
    def index(self, part: tree.Index) -> Steps:
        operand = part.operand
        if isinstance(operand, tree.Name):
            called = self.names.is_callable(operand.name) or operand.name == functions.IVERSON
            if called and not self.names.is_variable(operand.name):
                call = tree.Call(operand.position, part.start, part.end, operand.name, part.items)
                return (yield self.call(call))
        x = self.as_number(operand, (yield self.lower(operand)))
        items: list[Any] = []
        for item in part.items:
            items.append((yield self.index_item(item)))
        row = x.row and any(isinstance(item, slice) for item in items)
        return self.build(part, lambda: _row(index(x.node, items), row), (operand, x))

    def index_item(self, item: tree.Tree) -> Steps:
        if isinstance(item, tree.NewAxis):
            return None
        if isinstance(item, tree.Dots):
            return ...
        if isinstance(item, tree.Slice):
            first = None if item.first is None else (yield self.size(item.first))
            last = None if item.last is None else (yield self.size(item.last))
            step = None if item.step is None else (yield self.size(item.step))
            return slice(first, last, step)
        return (yield self.size(item))

    def size(self, part: tree.Tree) -> Steps:
        return size(part, self.source, self.names.dimension)

    def call(self, part: tree.Call) -> Steps:
        if part.name == functions.IVERSON and not self.names.is_variable(part.name):
            if len(part.arguments) != 1 or part.keywords:
                self.fail("I takes one condition", part, required="I[z > 0]")
            return (yield self.iverson(tree.Iverson(part.position, part.start, part.end, part.arguments[0])))
        part = replace(part, name=self.names.declared.functions.get(part.name, part.name))
        if part.name in SPELLINGS and not self.names.is_variable(part.name):
            return (yield self.known_call(part))
        self.names.refuse_function(part.name, part.position)
        return (yield self.unknown_call(part))

    def known_call(self, part: tree.Call) -> Steps:
        operands: list[Value] = []
        texts: list[tuple[tree.Tree, Value]] = []
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        bound = dict(functions.bind(part, self.source))
        gap = False
        for parameter in functions.parameters(part.name):
            parts = bound.get(parameter)
            if parts is None:
                gap = True
                continue
            found = []
            for argument in [parts] if parameter.kind in ("axis", "shape") else parts:
                value = yield self.argument(parameter, argument)
                if isinstance(value, Value):
                    operands.append(value)
                    assert isinstance(argument, tree.Tree)
                    texts.append((argument, value))
                    value = value.node
                found.append(value)
            if gap:
                keywords[parameter.name] = found[0]
            else:
                positional += found
        op = functions.op_called(part.name)
        oriented = "text" not in {p.kind for p in bound}
        elementwise = op is not None and op.family == "elementwise"

        def make() -> Value:
            row = aligned(*operands) if elementwise else False
            node = SPELLINGS[part.name](*positional, **keywords)
            if oriented and not elementwise:
                row = keeps_orientation(node, operands)
            return _row(node, row)

        return self.build(part, make, *texts)

    def argument(self, parameter: functions.Parameter, part: Any) -> Steps:
        """What a builder receives for one argument; ``part`` is a list of trees for axes and shapes."""
        if parameter.kind == "axis":
            return functions.axes(part, parameter.several, self.source)
        if parameter.kind == "shape":
            sizes = []
            for item in [i for p in part for i in (p.items if isinstance(p, tree.Sequence) else (p,))]:
                sizes.append(self.not_negative((yield self.size(item)), item))
            return tuple(sizes)
        if parameter.kind == "size":
            return self.not_negative((yield self.size(part)), part)
        if parameter.kind == "text":
            if not isinstance(part, tree.String):
                self.fail(f"{parameter.name} not in quotes", part, required='a string: einsum("ij,jk->ik", A, B)')
            return part.text
        if parameter.takes_numbers and (number := functions.literal_number(part)) is not None:
            return number
        value = yield self.lower(part)
        return self.as_condition(part, value) if parameter.kind == "condition" else self.as_number(part, value)

    def not_negative(self, value: int | Dim, part: tree.Tree) -> int | Dim:
        if isinstance(value, int) and value < 0:
            self.fail("a negative size", part, given=str(value), required="a size of 0 or more")
        return value

    def unknown_call(self, part: tree.Call) -> Steps:
        if part.keywords or not part.arguments:
            self.fail(
                f"{part.name!r} is an unknown function",
                part,
                required=f"its arguments by position: {part.name}(f)",
            )
        values = []
        for argument in part.arguments:
            values.append(self.as_number(argument, (yield self.lower(argument))))
        nodes = [v.node for v in values]
        if len(set(nodes)) < len(nodes):
            self.fail(
                f"{part.name!r} is called with one value twice",
                part,
                required="different arguments, so that dl/df is one",
            )
        count = self.argument_counts.setdefault(part.name, len(nodes))
        if count != len(nodes):
            self.fail(f"{part.name!r} is called with {len(nodes)} arguments here and {count} elsewhere", part)
        return self.build(part, lambda: Value(partial(part.name, nodes)))

    def partial(self, part: tree.Partial) -> Steps:
        node = yield self.partials.resolve(part, self.lower)
        return self.made(part, Value(node))

    # ---- checks and messages -------------------------------------------------------------------------------
    def as_number(self, part: tree.Tree, value: Value) -> Value:
        """A value that is used as a number: not a comparison."""
        if getattr(value.node.type, "dtype", "") != "bool":
            return value
        text = short(self.source[part.start : part.end])
        self.fail(
            "a comparison used as a number",
            part,
            given=text,
            required="a number; comparisons stand in where(condition, a, b) and in [condition]",
            instead=f"[{text}], which is 1 where it holds and 0 elsewhere",
        )

    def as_condition(self, part: tree.Tree, value: Value) -> Value:
        """A value that is used as a condition: a comparison."""
        if value.node.type.dtype == "bool":
            return value
        text = short(self.source[part.start : part.end])
        self.fail("a number used as a condition", part, given=text, required="a comparison", instead=f"{text} != 0")

    def refuse_power_t(self, part: tree.Binary) -> None:
        if not self.names.is_variable("T"):
            text = short(self.source[part.left.start : part.left.end])
            self.fail("'^T' is a power", part, required="' or .T for the transpose", instead=f"{text}'")

    def misplaced(self, part: tree.Tree) -> NoReturn:
        what, required = {
            tree.String: ("a string", "quotes around the subscripts of einsum only; x' for a transpose"),
            tree.Sequence: ("several values in brackets", "one value; sizes in brackets as an argument only"),
            tree.Slice: ("a slice", "a value; for an index, a name whose shape is declared before '['"),
            tree.NewAxis: ("None", "a value; for an index, a name whose shape is declared before '['"),
            tree.Dots: ("'...'", "a value; for an index, a name whose shape is declared before '['"),
        }.get(type(part), ("this", "a value"))
        self.fail(f"{what} where a value is expected", part, required=required)

    def fail(self, what: str, part: tree.Tree, **parts: str) -> NoReturn:
        raise FormulaError(what, source=self.source, position=part.position, **parts)

    def build(self, part: tree.Tree, make: Callable[[], Value], *operands: tuple[tree.Tree, Value]) -> Value:
        """Runs a builder; what it raises leaves with the place and the operands as the text has them."""
        try:
            return self.made(part, make())
        except ChainruleError as error:
            shapes = [f"{short(self.source[p.start : p.end])} ({_standing(v)})" for p, v in operands]
            given = " and ".join(shapes) if isinstance(error, ShapeError) else ""
            raise located(error, self.source, part.position, given) from None
        except Exception as error:  # a builder may be anyone's: its failure is about this place in the text
            raise FormulaError(
                f"{short(self.source[part.start : part.end])!r} cannot be built",
                source=self.source,
                position=part.position,
                given=f"{type(error).__name__}: {error}",
            ) from error

    def made(self, part: tree.Tree, value: Value) -> Value:
        """Notes where a node and everything that was made for it came from; the first place wins."""
        origins, node = self.origins, value.node
        if node not in origins:
            for new in (
                [node] if all(i in origins for i in node.inputs) else toposort([node], stop=origins.__contains__)
            ):
                origins.setdefault(new, Origin(text=self.source, position=part.position))
        return value


def _elementwise(apply: Callable[[Node, Node], Node], a: Value, b: Value) -> Value:
    row = aligned(a, b)
    return _row(apply(a.node, b.node), row)


def _row(node: Node, row: bool) -> Value:
    return Value(node, row and node.type.rank == 1)


def _standing(value: Value) -> str:
    return ("a row of " if value.row else "") + shape_text(value.node.shape)
