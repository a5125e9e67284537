"""Formulas with no value anywhere, and declarations of nothing, are refused before any work is done on them.

The language itself can say ``1 / 0`` (a printed result may hold it); as a question to a verb it is a mistake.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from chainrule.errors import FormulaError
from chainrule.frontends.formula import Program
from chainrule.frontends.formula.functions import known_functions
from chainrule.frontends.formula.lexer import tokenize
from chainrule.interpreters.evaluate import evaluate, evaluate_all
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, TensorType, toposort, tree_size

_SIMPLIFIED = 1000  # operators and operands of a divisor that is looked through


def _constant(node: Node, varying: set[Node], values: Mapping[Node, Any]) -> float | None:
    """The number that a node always is, such as ``1 - 1`` or ``x - x``; None if it varies.

    Args:
        varying, values: of the whole program; what simplifying makes of a node is looked through again.
    """
    if node in values and node.type.is_float and node.shape == ():
        return float(values[node])
    if not isinstance(node.type, TensorType):
        return None
    short = node if node.is_leaf or tree_size(node) > _SIMPLIFIED else simplify(node)
    while short.number is None and len(short.inputs) == 1 and short.inputs[0].number is not None:
        short = short.inputs[0]  # the same number everywhere
    if short.number is not None:
        return float(short.number)
    if short.shape != () or short in varying or (short is not node and short in _varying([short])):
        return None
    return float(evaluate([short], {})[0])


def _varying(nodes: Iterable[Node]) -> set[Node]:
    """Of everything that ``nodes`` need, what is not the same number always. One walk: programs may be long."""
    found: set[Node] = set()
    for n in toposort(nodes):
        leaf = n.is_leaf and ("name" in n.params or "size" in n.params)
        if leaf or n.op.family == "unknown" or not n.op.pure or any(i in found for i in n.inputs):
            found.add(n)
    return found


def refuse_division_by_zero(program: Program) -> None:
    """Looks for a division by the number 0, and for constants that are not finite (``log(0)``).

    Raises:
        FormulaError: there is one; shows its place.

    >>> from chainrule.frontends.formula import parse_program
    >>> refuse_division_by_zero(parse_program("y = x / 0"))
    Traceback (most recent call last):
    chainrule.errors.FormulaError: division by zero (line 1, column 7)
        y = x / 0
              ^
      given:    x / 0
      required: a divisor that is not zero
    """
    roots = [statement.node for statement in program.statements]
    varying = _varying(roots)
    order = toposort(roots)
    fixed = [n for n in order if n.inputs and n not in varying and isinstance(n.type, TensorType)]
    values = evaluate_all([n for n in fixed if n.shape == () and n.type.is_float], {})
    for node in order:
        if node.op.undefined is not None:
            what = node.op.undefined(*(_constant(i, varying, values) for i in node.inputs))
            if what:
                raise _refusal(program, node, what, "a divisor that is not zero")
        if node.inputs and node in values and node.shape == () and not np.isfinite(values[node]):
            if node.type.is_float:
                raise _refusal(program, node, f"the value of {text(node)} is not finite", "a finite value")


def _refusal(program: Program, node: Node, what: str, required: str) -> FormulaError:
    origin = program.graph.origins.get(node)
    position = origin.position if origin is not None else None
    return FormulaError(what, source=program.source, position=position, given=text(node), required=required)


def refuse_unused(program: Program, shapes: Iterable[str]) -> None:
    """Looks for a declared shape of a name that the formula does not have: a slip of one that it has.

    Raises:
        FormulaError: there is one; suggests the nearest name.
    """
    found = {t.text for t in tokenize(program.source) if t.kind == "name"}
    for name in shapes:
        if name not in found:
            names = sorted(found - known_functions())
            near = difflib.get_close_matches(name, names, 1, 0.5)
            raise FormulaError(
                f"a shape is declared for {name!r}, which does not occur in the formula",
                given=name,
                required=f"one of {', '.join(names)}" if names else "a name of the formula",
                instead=near[0] if near else "",
            )
