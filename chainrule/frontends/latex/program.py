"""The entry points: LaTeX, with what is declared about its names, to trees and nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chainrule.errors import FormulaError
from chainrule.frontends.formula import Program, Trees
from chainrule.frontends.formula import functions as language
from chainrule.frontends.formula.sizes import declarations
from chainrule.frontends.formula.tree import Assignment
from chainrule.frontends.latex.lexer import Token, tokenize
from chainrule.frontends.latex.lower import LatexLowering
from chainrule.frontends.latex.parser import Parser
from chainrule.frontends.latex.symbols import Symbols
from chainrule.ir import Dim, Node, TupleType, toposort

_LATEX = re.compile(r"\\[a-zA-Z]|[_^]\{|^\s*\$")
_DEPTH = 400  # brackets and braces in one another


def is_latex(text: str) -> bool:
    """Whether a text is LaTeX rather than the formula language: a command, a braced script, or dollars.

    >>> is_latex(r"2 \\mathbf{A}^T x"), is_latex("x_{1}"), is_latex("2*A' @ x")
    (True, True, False)
    """
    return isinstance(text, str) and bool(_LATEX.search(text))


def parse_latex(
    text: str, shapes: Mapping[str, Any] | None = None, *, given: Mapping[str, Node] | None = None
) -> Trees:
    """The syntax trees of a LaTeX formula; of an equation the last right side.

    Lines ``name = ...`` before the last one are assignments if the name is new, and else steps that are passed over.

    Args:
        text, shapes, given: as for :func:`chainrule.frontends.formula.parse`.

    Raises:
        FormulaError: what is not read; shows the place.

    >>> parse_latex(r"\\mathbf{A}^T \\mathbf{x}", {"A": "m,n", "x": "m"}).program().graph.outputs[0].shape
    (n,)
    """
    if not isinstance(text, str):
        raise FormulaError("a formula is text", given=type(text).__name__, required="LaTeX as a string")
    given = dict(given or {})
    known = language.known_functions()
    declared = declarations(shapes, known, language.activations())
    unknown = language.unknown_in(given.values())
    sizes = {n for node in toposort(given.values()) for n in _size_names(node)} | declared.dimensions
    symbols = Symbols([*given, *declared.shapes, *declared.functions], sizes)
    called = known | set(declared.functions)
    rows = [_equation(row) for row in _rows(tokenize(text))]
    rows = [r for r in rows if r[1]]
    if not rows:
        raise FormulaError("an empty formula", source=text, position=0, required="at least one expression")
    statements: list[Assignment] = []
    for left, right in rows[:-1]:
        name = _new_name(text, left, symbols, called, unknown)
        if name:
            statements.append(_statement(text, name, left, right, symbols, called, unknown))
            symbols.add(name)
    statements.append(_statement(text, "", rows[-1][0], rows[-1][1], symbols, called, unknown))
    return Trees(text, tuple(statements), declared, unknown, given, LatexLowering)


def parse_latex_program(
    text: str, shapes: Mapping[str, Any] | None = None, *, given: Mapping[str, Node] | None = None
) -> Program:
    """Like :func:`parse_latex`, down to nodes."""
    return parse_latex(text, shapes, given=given).program()


def _size_names(node: Node) -> set[str]:
    if isinstance(node.type, TupleType):
        return set()
    return {name for size in node.shape if isinstance(size, Dim) for name in size.names}


def _rows(tokens: list[Token]) -> list[list[Token]]:
    """Lines, without the punctuation that ends them; one that begins with a sign goes on with the sum before it."""
    rows: list[list[Token]] = [[]]
    depth = 0
    for token in tokens[:-1]:
        depth += (token.kind in ("(", "[", "{")) - (token.kind in (")", "]", "}"))
        if depth > _DEPTH:
            raise FormulaError("brackets nested too deeply", given=f"more than {_DEPTH}", required="names for parts")
        if token.kind in ("row", ";"):
            rows.append([])
        else:
            rows[-1].append(token)
    for row in rows:
        while row and row[-1].kind in (".", ","):
            row.pop()
    joined: list[list[Token]] = []
    for row in filter(None, rows):
        if joined and row[0].kind in ("+", "-") and _equation(row)[0] == []:
            joined[-1] = joined[-1] + row
        else:
            joined.append(row)
    return joined


def _equation(row: list[Token]) -> tuple[list[Token], list[Token]]:
    """The first left side and the last right side; the left is empty where there is none."""
    depth, cuts = 0, []
    for k, token in enumerate(row):
        depth += (token.kind in ("(", "[", "{")) - (token.kind in (")", "]", "}"))
        if token.kind == "=" and depth == 0:
            cuts.append(k)
    return (row[: cuts[0]], row[cuts[-1] + 1 :]) if cuts else ([], row)


def _new_name(text: str, left: list[Token], symbols: Symbols, known: Any, unknown: Any) -> str:
    """The name that a line assigns; empty if its left side is no name, or a known one."""
    if not left:
        return ""
    parser = Parser(text, [*left, Token("end", "", left[-1].end, left[-1].end)], symbols, known, unknown)
    written = parser.symbol_text()
    if written is None or parser.token.kind != "end" or symbols.find(written) is not None or written in known:
        return ""
    return written if written.isidentifier() else ""


def _statement(
    text: str, name: str, left: list[Token], right: list[Token], symbols: Symbols, known: Any, unknown: Any
) -> Assignment:
    start, end = (left or right)[0].start, right[-1].end
    parser = Parser(text, [*right, Token("end", "", end, end)], symbols, known, unknown)
    return Assignment(start, right[0].start, end, name, parser.whole())
