"""A graph as text of the formula language, which parses back to an equal graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.interpreters.printing import Printer
from chainrule.ir import MUL, POSTFIX, Node


class TextPrinter(Printer):
    """The formula language: ``A' @ (A @ x - b)``."""

    field = "text"

    def matmul(self, parts: Sequence[Any]) -> str:
        """A matrix product."""
        return " @ ".join(self.operand(p, MUL + 1) for p in parts)

    def hadamard(self, parts: Sequence[Any]) -> str:
        """An elementwise product, or one with scalars."""
        return " * ".join(self.operand(p, MUL + 1) for p in parts)

    def product(self, node: Node) -> tuple[str, int]:
        """``mul``. A scalar in front of a matrix product needs no brackets: ``2 * A' @ x`` scales the first factor."""
        a, b = node.inputs
        bare = a.shape == () and "operands" in b.params and not self.is_named(b)
        return f"{self.child(a, MUL)} * {self.child(b, MUL if bare else MUL + 1)}", MUL

    def transpose(self, part: Any) -> str:
        """A transpose."""
        return self.operand(part, POSTFIX) + "'"

    def fallback(self, node: Node, subscripts: str) -> str:
        """A contraction without matrix notation."""
        single = _diagonals_of_stack(self, node) or _nested_sums(self, node)
        if single is not None:
            return single
        return f'einsum("{subscripts}", {", ".join(self.child(i, 0) for i in node.inputs)})'


def _diagonals_of_stack(p: TextPrinter, node: Node) -> str | None:
    """The diagonals, or the traces, of a stack of matrices."""
    operands, result = node.params["operands"], node.params["result"]
    if len(operands) != 1 or len(operands[0]) < 3:
        return None
    *batch, i, j = operands[0]
    if i != j or len({*batch, i}) != len(batch) + 1 or result not in ((*batch,), (*batch, i)):
        return None
    return f"{'tr' if len(result) == len(batch) else 'diag'}({p.child(node.inputs[0], 0)})"


def _nested_sums(p: TextPrinter, node: Node) -> str | None:
    """Sums over some dimensions of one tensor, the others in order."""
    operands, result = node.params["operands"], node.params["result"]
    if len(operands) != 1 or tuple(i for i in operands[0] if i in result) != result:
        return None
    if len(set(operands[0])) != len(operands[0]):  # along a diagonal
        return None
    text = p.child(node.inputs[0], 0)
    if not result:
        return f"sum({text})"
    for axis in reversed([a for a, i in enumerate(operands[0]) if i not in result]):
        text = f"sum({text}, {axis})"
    return text


def text(node: Node, names: Mapping[Node, str] | None = None) -> str:
    """``node`` in the formula language; nodes in ``names`` are written by name.

    >>> from chainrule.ir import variable
    >>> text((variable("x") + 1.0) ** 2.0)
    '(x + 1)^2'
    """
    return TextPrinter(names).print(node)
