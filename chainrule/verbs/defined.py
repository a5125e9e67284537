"""Formulas with no value anywhere are refused before any work is done on them.

The language itself can say ``1 / 0`` (a printed result may hold it); as a question to a verb it is a mistake.
"""

from __future__ import annotations

from chainrule.errors import FormulaError
from chainrule.frontends.formula import Program
from chainrule.interpreters.text import text
from chainrule.ir import toposort
from chainrule.ops.arithmetic import DIV


def refuse_division_by_zero(program: Program) -> None:
    """Looks for a division by the number 0.

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
    for node in toposort([statement.node for statement in program.statements]):
        if node.op is DIV and node.inputs[1].number == 0:
            origin = program.graph.origins.get(node)
            raise FormulaError(
                "division by zero",
                source=program.source,
                position=origin.position if origin is not None else None,
                given=text(node),
                required="a divisor that is not zero",
            )
