"""What is known of a matrix: that it is symmetric, triangular, diagonal or positive definite.

The fact is a parameter of the variable's leaf, so ``S`` and a symmetric ``S`` are different nodes and no fact leaks
from one program to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
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
    """What is known of a node: by its declaration, by its op, or of a contraction by what is known of its operands."""
    if node.is_leaf:
        if "size" in node.params and node.type.rank == 2:
            return DIAGONAL
        return STRUCTURES.get(structure_of(node) or "", frozenset())
    if node.op.structure:
        return STRUCTURES[node.op.structure]
    if node.op.keeps_symmetry:
        return known_facts(node.inputs[0])
    if node.op.keeps_zeros:
        kept = [known_facts(node.inputs[k]) for k in node.op.keeps_zeros if node.inputs[k].shape == node.shape]
        return _with_both(frozenset[str]().union(*kept) - {"symmetric"})
    operands, result = node.params.get("operands"), node.params.get("result")
    if (operands, result) == (((0, 1),), (1, 0)):
        return frozenset(_TRANSPOSED[fact] for fact in known_facts(node.inputs[0]))
    return frozenset() if operands is None or result is None or len(result) != 2 else _of_contraction(node)


def _of_contraction(node: Node) -> frozenset[str]:
    """Triangles of a contraction: a lower factor at (i, j) is zero unless i >= j, and such inequalities chain."""
    above: dict[int, set[int]] = {}  # i -> the indices that are no larger wherever no factor is zero
    for x, own in zip(node.inputs, node.params["operands"], strict=True):
        facts = known_facts(x) if len(own) == 2 else frozenset()
        for fact, (i, j) in (("lower", own), ("upper", own[::-1])) if facts else ():
            if fact in facts:
                above.setdefault(i, set()).add(j)
    row, column = node.params["result"]
    return _with_both({f for f, i, j in (("lower", row, column), ("upper", column, row)) if _reaches(above, i, j)})


def _with_both(triangles: Set[str]) -> frozenset[str]:
    """What is zero on both sides of the diagonal is symmetric too."""
    return DIAGONAL if {"lower", "upper"} <= triangles else frozenset(triangles)


def _reaches(above: Mapping[int, set[int]], start: int, end: int) -> bool:
    seen, left = {start}, [start]
    while left:
        new = above.get(left.pop(), set()) - seen
        seen |= new
        left += new
    return end in seen


def is_diagonal(node: Node) -> bool:
    """Whether a node is known to be a diagonal matrix."""
    return known_facts(node) == DIAGONAL
