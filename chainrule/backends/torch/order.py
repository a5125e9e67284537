"""The order in which a program runs, with less alive at once: what frees as much memory as it takes runs early.

A reader that is the last one of large values (the second product of a cotangent, say) need not wait for the place where
its result is used. The order of random draws is the program's. Neighbours: ``reuse`` says what lies where.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from chainrule.backends.torch.reuse import bytes_of, memories, peak
from chainrule.ir import Node


def with_less_alive(nodes: Sequence[Node], kept: Collection[Node]) -> list[Node]:
    """``nodes`` in an order whose peak is not above theirs; the same order where nothing is won.

    Args:
        nodes: in an order in which they can run. kept: as in ``reuse.overwritten``.
    """
    early = _brought_forward(nodes, kept)
    return early if peak(early, kept) < peak(nodes, kept) else list(nodes)


def _brought_forward(nodes: Sequence[Node], kept: Collection[Node]) -> list[Node]:
    memory = memories(nodes)
    stays = {memory[n] for n in kept if n in memory}
    own = set(nodes)
    readers: dict[Node, list[Node]] = {}
    waiting: dict[Node, int] = {}  # operands that are not there yet
    open_readers: dict[Node, set[Node]] = {}  # memory -> who still reads it
    sizes: dict[Node, int] = {}
    for node in nodes:
        operands = {i for i in node.inputs if i in own}
        waiting[node] = len(operands)
        for i in operands:
            readers.setdefault(i, []).append(node)
        for held in {memory[i] for i in node.inputs}:
            open_readers.setdefault(held, set()).add(node)
        sizes[memory[node]] = sizes.get(memory[node], 0) + bytes_of(node)
    order: list[Node] = []
    done: set[Node] = set()

    def frees(node: Node) -> int:
        held = {memory[i] for i in node.inputs} - stays - {memory[node]}
        return sum(sizes.get(h, 0) for h in held if open_readers[h] == {node})

    def run(first: Node) -> None:
        pending = [first]
        while pending:
            node = pending.pop()
            if node in done:
                continue
            done.add(node)
            order.append(node)
            candidates = list(readers.get(node, ()))
            for reader in candidates:
                waiting[reader] -= 1
            for held in {memory[i] for i in node.inputs}:
                open_readers[held].discard(node)
                if len(open_readers[held]) == 1:
                    candidates += open_readers[held]
            for reader in candidates:
                if reader not in done and not waiting[reader] and reader.op.pure:
                    freed = frees(reader)
                    if freed and freed >= bytes_of(reader):
                        pending.append(reader)

    for node in nodes:
        run(node)
    return order
