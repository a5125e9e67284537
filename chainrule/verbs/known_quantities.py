"""Names for the quantities that an answer repeats: ``diag(p) - p @ p'`` where ``p = softmax(z)``.

A part gets a name where that makes the answer shorter, its meaning included: the values of functions that have a
customary letter (``Op.symbol``) whenever it does, other parts only where it saves much, since a name must be looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from chainrule.frontends.formula.functions import known_functions
from chainrule.ir import Dim, Node, TensorType, substitute_nodes, toposort, tree_size, variable

_MAX_SIZE = 400  # operators and operands; longer expressions are cut by another rule
_MAX_TRIED = 24  # parts
_WORTH_LOOKING_UP = 6  # operators and operands that a name without a customary letter has to save


def known_quantities(node: Node, taken: Collection[str], named: Mapping[Node, str]) -> dict[Node, str]:
    """Parts of an expression worth a name, in order of computation, with their names.

    Args:
        taken: names that mean something else. named: names given already, in another answer of the same result.
    """
    if tree_size(node) > _MAX_SIZE:
        return {}
    order = toposort([node])
    used = _occurrences(node, order)
    parts = [n for n in order if n is not node and n.inputs and used[n] > 1 and _is_value(n)]
    parts = sorted(parts, key=tree_size, reverse=True)[:_MAX_TRIED]
    avoid = {*taken, *known_functions(), *_names_in(order), *named.values()}
    names: dict[Node, str] = {}
    for part in parts:
        before = written_size(node, names)
        letter = named.get(part) or _free(part.op.symbol or "u", avoid)
        saved = before - written_size(node, {**names, part: letter})
        if saved >= (1 if part.op.symbol else _WORTH_LOOKING_UP):
            names[part] = letter
            avoid.add(letter)
    return {n: names[n] for n in order if n in names}


def written_size(node: Node, names: Mapping[Node, str]) -> int:
    """Operators and operands of the expression with those names, and of what they mean."""
    image = {part: variable(name, part.type) for part, name in names.items()}
    bodies = [node, *names]
    return sum(tree_size(_cut(body, image)) for body in bodies)


def _cut(node: Node, image: Mapping[Node, Node]) -> Node:
    return substitute_nodes([node], {k: v for k, v in image.items() if k is not node})[0]


def _occurrences(root: Node, order: list[Node]) -> dict[Node, int]:
    """How often each part is written."""
    times = dict.fromkeys(order, 0)
    times[root] = 1
    for node in reversed(order):
        for operand in node.inputs:
            times[operand] += times[node]
    return times


def _is_value(node: Node) -> bool:
    """Whether it is a number or tensor of the formula, not a condition or a mere rearrangement."""
    return isinstance(node.type, TensorType) and node.type.is_float and node.op.family != "linear"


def _names_in(order: list[Node]) -> set[str]:
    """Variables and dimensions."""
    found = {n.params["name"] for n in order if n.is_leaf and "name" in n.params}
    for n in order:
        if isinstance(n.type, TensorType):
            found |= {name for size in n.shape if isinstance(size, Dim) for name in size.names}
    return found


def _free(letter: str, taken: Collection[str]) -> str:
    name, k = letter, 1
    while name in taken:
        k += 1
        name = f"{letter}{k}"
    return name
