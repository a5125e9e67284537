"""Which rule says what an op does to a field: ``rule("einsum", ...)`` declares one, ``RULES`` holds them.

A rule has ``forward(node, inputs) -> Field`` and, where the cotangent needs more than the op's own derivative,
``backward(node, g, y, inputs, wanted) -> cotangents``. What a rule takes as independent it says in ``Field.kind``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.ir import Node
from chainrule.ir.field import Field

Forward = Callable[[Node, Sequence[Any]], Any]
Backward = Callable[[Node, Field, Field, Sequence[Field], Sequence[bool]], Sequence[Field | None]]


@dataclass(frozen=True)
class Rule:
    """What one op does to fields, and to cotangents."""

    forward: Forward
    backward: Backward | None = None


RULES: dict[str, Rule] = {}


def rule_for(node: Node) -> Rule | None:
    """The rule of a node's op, or None."""
    return RULES.get(node.op.name)


def rule(*ops: str, backward: Backward | None = None) -> Callable[[Forward], Forward]:
    """Declares the forward function below as the rule of these ops."""

    def declare(forward: Forward) -> Forward:
        for op in ops:
            if op in RULES:
                raise ValueError(f"{op} has two rules for fields")
            RULES[op] = Rule(forward, backward)
        return forward

    return declare


def sizes(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape in numbers."""
    return tuple(int(n) for n in shape)
