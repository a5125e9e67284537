"""Which results are written over an operand that nothing reads afterwards: less memory, and less of it touched.

A tensor may be written over where three things hold: its memory was made by this program (no input, no constant, no
output lies in it), everything else that lies in the same memory (views of it, tapes that keep it) is dead, and the
result has its type and its order in memory. Reads ``Op.in_place`` and ``Op.aliases``; ``emit`` writes what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from chainrule.ir import Node, TensorType


def overwritten(nodes: Sequence[Node], kept: Collection[Node]) -> dict[Node, int]:
    """node -> position of the operand whose memory its result takes.

    Args:
        nodes: in the order in which they run.
        kept: nodes whose memory must stay: inputs, outputs, and what is computed once and read by every call.
    """
    return overwritten_in(nodes, kept, memories(nodes))


def peak(nodes: Sequence[Node], kept: Collection[Node]) -> int:
    """The most bytes that are alive at once of what the nodes make, with results written over operands."""
    memory = memories(nodes)
    over = overwritten_in(nodes, kept, memory)
    return max(sizes_over_time(nodes, over, memory, ends(nodes, kept, memory)), default=0)


def sizes_over_time(
    nodes: Sequence[Node], over: Collection[Node], memory: Mapping[Node, Node], end: Mapping[Node, int]
) -> list[int]:
    """For every node the bytes that are alive while it runs; ``over``: nodes that take no memory of their own."""
    alive = 0
    found: list[int] = []
    sizes: dict[Node, int] = {}
    dying: dict[int, list[Node]] = {}
    for held, place in end.items():
        dying.setdefault(place, []).append(held)
    for place, node in enumerate(nodes):
        if node not in over:
            size = bytes_of(node)
            sizes[memory[node]] = sizes.get(memory[node], 0) + size
            alive += size
        found.append(alive)
        alive -= sum(sizes.pop(held, 0) for held in dying.get(place, ()))
    return found


def bytes_of(node: Node) -> int:
    """What a node adds to memory: nothing where its result lies in an operand's, or in its own items."""
    if aliases(node) or not isinstance(node.type, TensorType) or not isinstance(node.type.nbytes, int):
        return 0
    return node.type.nbytes


def overwritten_in(nodes: Sequence[Node], kept: Collection[Node], memory: dict[Node, Node]) -> dict[Node, int]:
    """:func:`overwritten`; ``memory`` is brought up to date."""
    end = ends(nodes, kept, memory)
    found: dict[Node, int] = {}
    members: dict[Node, list[Node]] = {}
    for node, held in memory.items():
        members.setdefault(held, []).append(node)
    for place, node in enumerate(nodes):
        for position in node.op.in_place:
            operand = node.inputs[position]
            held = memory.get(operand)
            # The operand's memory dies here, and no other operand lies in it.
            if (
                held is not None
                and end.get(held) == place
                and operand.type == node.type
                and sum(memory.get(i) is held for i in node.inputs) == 1
                and made_here(operand)
                and _in_order(node, position)
            ):
                found[node] = position
                # From now on the result lies there: whoever reads it keeps the memory.
                taken, given = held, memory[node]
                if given is not taken:
                    moved = members.pop(given)
                    memory.update(dict.fromkeys(moved, taken))
                    members[taken] += moved
                end[taken] = end.pop(given, place)
                break
    return found


def memories(nodes: Sequence[Node]) -> dict[Node, Node]:
    """node -> one node for everything that may lie in the same memory."""
    group: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while group[node] is not node:
            group[node] = group[group[node]]
            node = group[node]
        return node

    for node in nodes:
        for i in (node, *node.inputs):
            group.setdefault(i, i)
        for i in node.inputs if aliases(node) else ():
            group[root(i)] = root(node)
    return {node: root(node) for node in group}


def aliases(node: Node) -> bool:
    """Whether torch's result may lie in the memory of an operand, or keep it for later."""
    return node.op.aliases(node) if callable(node.op.aliases) else node.op.aliases


def ends(nodes: Sequence[Node], kept: Collection[Node], memory: Mapping[Node, Node]) -> dict[Node, int]:
    """memory -> place of the last node that reads anything in it; memory that must stay has none."""
    end: dict[Node, int] = {}
    for place, node in enumerate(nodes):
        for i in (node, *node.inputs):
            end[memory[i]] = place
    for node in kept:
        if node in memory:
            end.pop(memory[node], None)
    return end


def made_here(operand: Node) -> bool:
    """Whether the operand is all of some memory that an op made, in an order of its own: no slice, no broadcast."""
    while True:
        if not isinstance(operand.type, TensorType) or not operand.inputs:
            return False
        if not aliases(operand):
            return True
        (source,) = operand.inputs[:1]
        if not isinstance(source.type, TensorType) or source.type.numel != operand.type.numel:
            return False
        if source.type.dtype != operand.type.dtype or len(operand.inputs) != 1:
            return False
        operand = source


def _in_order(node: Node, position: int) -> bool:
    """Whether the result would lie in the operand's order anyway: torch follows the first operand that has one."""
    return all(i.type.rank <= 1 for i in node.inputs[:position])
