"""What is known of a matrix: that it is symmetric, triangular, diagonal or positive definite.

The fact is a parameter of the variable's leaf, so ``S`` and a symmetric ``S`` are different nodes and no fact leaks
from one program to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainrule.ir.graph import Node

# Of a matrix X: symmetric, X' = X; lower, zero above the diagonal; upper, zero below it.
STRUCTURES: Mapping[str, frozenset[str]] = {
    "symmetric": frozenset(["symmetric"]),
    "positive definite": frozenset(["symmetric"]),
    "lower triangular": frozenset(["lower"]),
    "upper triangular": frozenset(["upper"]),
    "diagonal": frozenset(["symmetric", "lower", "upper"]),
}
DIAGONAL = STRUCTURES["diagonal"]
_TRANSPOSED = {"symmetric": "symmetric", "lower": "upper", "upper": "lower"}


def structure_of(node: Node) -> str | None:
    """The declared structure of a variable."""
    return node.params.get("structure")


def known_facts(node: Node) -> frozenset[str]:
    """What a declared structure says of a node: a variable, an identity, their transposes and inverses."""
    if node.is_leaf:
        if "size" in node.params and node.type.rank == 2:
            return DIAGONAL
        return STRUCTURES.get(structure_of(node) or "", frozenset())
    if node.op.keeps_symmetry:
        return known_facts(node.inputs[0])
    if (node.params.get("operands"), node.params.get("result")) == (((0, 1),), (1, 0)):
        return frozenset(_TRANSPOSED[fact] for fact in known_facts(node.inputs[0]))
    return frozenset()


def is_diagonal(node: Node) -> bool:
    """Whether a node is known to be a diagonal matrix."""
    return known_facts(node) == DIAGONAL
