"""Formulas with no value anywhere are refused before any work is done on them.

The language itself can say ``1 / 0`` (a printed result may hold it); as a question to a verb it is a mistake.
"""

from __future__ import annotations

from chainrule.errors import FormulaError
from chainrule.frontends.formula import Program
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.text import text
from chainrule.ir import Node, toposort
from chainrule.ops.arithmetic import DIV


def _is_zero(node: Node) -> bool:
    """Whether a value is a constant that evaluates to zero, such as ``1 - 1``."""
    if node.shape != () or any("name" in n.params or "size" in n.params for n in toposort([node]) if n.is_leaf):
        return False
    return bool(evaluate([node], {})[0] == 0)


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
        if node.op is DIV and _is_zero(node.inputs[1]):
            origin = program.graph.origins.get(node)
            raise FormulaError(
                "division by zero",
                source=program.source,
                position=origin.position if origin is not None else None,
                given=text(node),
                required="a divisor that is not zero",
            )
