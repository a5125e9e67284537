"""The entry points: a text, with what is declared about its names, to a graph and its statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.errors import FormulaError
from chainrule.frontends.formula import functions
from chainrule.frontends.formula.lexer import tokenize
from chainrule.frontends.formula.lower import Lowering
from chainrule.frontends.formula.names import Names
from chainrule.frontends.formula.parser import assigned_names, parse_tokens, unknown_functions
from chainrule.frontends.formula.sizes import Declarations, declarations
from chainrule.frontends.formula.tree import Assignment
from chainrule.ir import Graph, Node


@dataclass(frozen=True)
class Statement:
    """One statement: its name (empty for a last bare expression), its node, and where it stands in the text.

    ``row`` says that its value is a row vector; its node has shape (n,) all the same.
    """

    name: str
    node: Node
    start: int
    end: int
    row: bool = False


@dataclass(frozen=True)
class Program:
    """A parsed text: the graph of its last statement, and all statements in order."""

    source: str
    graph: Graph
    statements: tuple[Statement, ...]


def parse(text: str, shapes: Mapping[str, Any] | None = None, *, given: Mapping[str, Node] | None = None) -> Graph:
    """The graph of a formula; its output is the last statement.

    Inputs are the variables in the order of their first appearance. A vector is a column of shape (n,); a
    result that is a row has that shape too.

    Args:
        text: statements ``name = expression``, separated by newline or ``;``; the last may be bare.
        shapes: variable -> shape (``"n"``, ``"m,n"``, ``3``, ``(3, "n")``, ``""``), or the name of an
            elementwise function that it stands for. Undeclared names are scalars.
        given: names that stand for nodes made elsewhere, such as another text's ``graph.names``. Their
            unknown functions are known here too: ``dl/df`` is read as that derivative.

    Raises:
        FormulaError: the text is not in the language. ShapeError: operands do not fit. Both show the place.

    >>> graph = parse("f = beta + Omega @ h", shapes={"beta": "m", "Omega": "m,n", "h": "n"})
    >>> [i.params["name"] for i in graph.inputs], graph.output("f").shape
    (['beta', 'Omega', 'h'], (m,))
    """
    return parse_program(text, shapes, given=given).graph


def parse_program(
    text: str, shapes: Mapping[str, Any] | None = None, *, given: Mapping[str, Node] | None = None
) -> Program:
    """Like :func:`parse`, with the statements.

    >>> [(s.name, s.node.op.name) for s in parse_program("f = exp(x); f^2").statements]
    [('f', 'exp'), ('', 'pow')]
    """
    return parse_trees(text, shapes, given=given).program()


@dataclass(frozen=True)
class Trees:
    """A text as syntax trees, with what its names mean: lowered as it is, or changed first.

    Attributes:
        statements: in order. lowering: the rules that make nodes of trees (a front end may have more kinds of tree).
    """

    source: str
    statements: tuple[Assignment, ...]
    declared: Declarations
    unknown: frozenset[str]
    given: Mapping[str, Node]
    lowering: type[Lowering] = Lowering

    def program(self, statements: Sequence[Assignment] | None = None) -> Program:
        """The nodes of these statements (by default the text's own).

        Raises:
            FormulaError, ShapeError: what cannot be lowered; shows the place.
        """
        trees = self.statements if statements is None else tuple(statements)
        assigned = {s.name: s.position for s in reversed(trees) if s.name}
        names = Names(self.source, self.declared, assigned, self.unknown, self.given)
        lowering = self.lowering(self.source, names, trees)
        found: list[Statement] = []
        for statement in trees:
            value = lowering.statement(statement)
            if statement is trees[-1]:
                lowering.as_number(statement.expression, value)  # a condition may be named, but is no result
            if statement.name:
                names.assign(statement, value)
            found.append(Statement(statement.name, value.node, statement.start, statement.end, value.row))
        graph = Graph(
            tuple(names.inputs),
            (found[-1].node,),
            (trees[-1].name,),
            {s.name: s.node for s in found if s.name},
            lowering.origins,
        )
        return Program(self.source, graph, tuple(found))


def parse_trees(
    text: str, shapes: Mapping[str, Any] | None = None, *, given: Mapping[str, Node] | None = None
) -> Trees:
    """Like :func:`parse_program`, before any node is made.

    >>> [type(s.expression).__name__ for s in parse_trees("f = exp(x); f^2").statements]
    ['Call', 'Binary']
    """
    if not isinstance(text, str):
        raise FormulaError("a formula is text", given=type(text).__name__, required="a string such as 'y = exp(x)'")
    given = dict(given or {})
    known = functions.known_functions()
    declared = declarations(shapes, known, functions.activations())
    tokens = tokenize(text)
    assigned = assigned_names(tokens)
    variables = {*assigned, *declared.shapes, *given}
    own = unknown_functions(tokens, known | variables | set(declared.functions) | {functions.IVERSON})
    statements = parse_tokens(text, tokens, own | functions.unknown_in(given.values()), variables)
    return Trees(text, tuple(statements), declared, own, given)
