"""What a wrong claim is held against: the function, the variable, and the right answer, in one form for all layouts.

A derivative of a tensor is compared after contraction with a random cotangent of the function, so that every
candidate is one vector-Jacobian product, whatever the shapes and the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chainrule.interpreters.linearize import jacobian
from chainrule.interpreters.text import text
from chainrule.ir import Node, TensorType, constant, variable
from chainrule.ops.contraction import einsum
from chainrule.verbs.derive import DeriveResult
from chainrule.verbs.expression import Expression, resolve

_LONG = 48  # characters of a quantity that a message shows


@dataclass(frozen=True)
class Candidate:
    """A wrong answer: ``kind`` of slip, the sentence that says it, and its value."""

    kind: str
    sentence: str
    node: Node


class Question:
    """The function and the variable of one claim.

    Attributes:
        output: the function, in the variables alone. target: the variable, a leaf of it. seed: the cotangent of the
            function: 1, or a leaf. of, wrt: their names. correct: the right answer in full.
    """

    def __init__(self, derived: DeriveResult, correct: Expression, cotangent: Node | None) -> None:
        program, name = derived.program, derived.wrt[0]
        self.of, self.wrt, self.order = derived.of, name, derived.order
        self.target = program.symbol[name]
        self.program = program
        # A named intermediate as the variable is cut free of what it means, and put back at the end.
        self._cut = {s: n for s, n in program.definitions.items() if s is self.target}
        definitions = {s: n for s, n in program.definitions.items() if s is not self.target}
        self.output = Expression(program.symbol[derived.of], definitions).full
        self.names = {Expression(program.symbol[n], definitions).full: n for n in reversed(program.order)}
        self.names = {node: n for node, n in self.names.items() if node.inputs and n != derived.of}
        if cotangent is not None:
            indices = tuple(range(self.output.type.rank))
            self.output = einsum(([indices, indices], ()), self.output, cotangent)
        for _ in range(derived.order - 1):
            self.output = jacobian(self.output, self.target, "numerator") or self.output
        self.leading = derived.layout == "numerator" or derived.order > 1
        self.seed = (
            constant(1.0, self.output.type.dtype)
            if self.output.shape == ()
            else variable("cotangent of F", TensorType(self.output.shape))
        )
        self.correct = correct.full

    def contracted(self, node: Node) -> Node:
        """A derivative in the claim's shape, times the cotangent of the function."""
        if self.seed.is_leaf and self.seed.number is not None:
            return node
        rank, inner = node.type.rank, self.output.type.rank
        indices = tuple(range(rank))
        own = indices[:inner] if self.leading else indices[rank - inner :]
        rest = indices[inner:] if self.leading else indices[: rank - inner]
        return einsum(([indices, own], rest), node, self.seed)

    def full(self, node: Node) -> Node:
        """A node in the original variables: a named intermediate as the variable means its definition again."""
        return resolve(node, {**self.program.definitions, **self._cut})

    def name(self, node: Node) -> str:
        """What to call a quantity: its name, or its text if short."""
        if node in self.names:
            return self.names[node]
        written = text(node, self.names)
        if len(written) > _LONG:
            return written[: _LONG - 3] + "..."
        return written if node.is_leaf else f"({written})"

    def symbol(self, of: Node, by: Node) -> str:
        """``dv/du``."""
        return f"d{self.of if of is self.output else self.name(of)}/d{self.name(by)}"


def shown(node: Any, names: dict[Node, str]) -> str:
    """The text of a factor in a message."""
    written = text(node, names)
    return written if len(written) <= _LONG else written[: _LONG - 3] + "..."
