"""Which results are written into memory that a dead value leaves behind, instead of memory asked of the allocator.

Memory that is given back and asked for again comes as untouched pages: a large elementwise result then takes several
times as long as its arithmetic. A value that died before gives its memory where it lies in order and has the type of
the result, and where keeping it until then does not raise the peak. Reads ``Op.into`` and ``Op.order``; neighbours:
``reuse`` says what lies where and which results go over their own operands; ``emit`` writes what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from chainrule.backends.torch.reuse import aliases, bytes_of, ends, made_here, memories, overwritten_in, sizes_over_time
from chainrule.ir import Node, TensorType

_SMALL = 1 << 15  # bytes, below which the allocator has memory at hand
_LOOK = 4  # how many dead values of a type are tried


def memory_plan(nodes: Sequence[Node], kept: Collection[Node]) -> tuple[dict[Node, int], dict[Node, Node]]:
    """Results over operands (node -> position), and results in the memory of dead values (node -> that value).

    Args:
        nodes: in the order in which they run. kept: as in ``reuse.overwritten``.
    """
    memory = memories(nodes)
    over = overwritten_in(nodes, kept, memory)
    return over, _recycled(nodes, kept, over, memory)


def _recycled(
    nodes: Sequence[Node], kept: Collection[Node], over: Mapping[Node, int], memory: dict[Node, Node]
) -> dict[Node, Node]:
    end = ends(nodes, kept, memory)
    alive = sizes_over_time(nodes, over, memory, end)
    limit = max(alive, default=0)
    ordered = _in_order(nodes)
    read = {i: place for place, n in enumerate(nodes) for i in (n, *n.inputs)}  # value -> where it is read last
    whole: dict[Node, Node] = {}  # memory -> the last value that takes all of it, in order
    dying: dict[int, list[Node]] = {}
    for held, place in end.items():
        dying.setdefault(place, []).append(held)
    free: dict[TensorType, list[tuple[int, Node]]] = {}  # type -> (place of death, memory), the last one behind
    found: dict[Node, Node] = {}
    for place, node in enumerate(nodes):
        fits = _takes(node) and node not in over and ordered.get(node, False)
        for died, held in reversed(free.get(_kind(node), [])[-_LOOK:]) if fits else ():
            size = bytes_of(whole[held])
            # What may lie in its memory (a reshape of a transpose) may be a copy: without the name, its memory would
            # be free from its own last reader on.
            kept_for_it = range(min(died, read[whole[held]]) + 1, place)
            if all(alive[t] + size <= limit for t in kept_for_it):
                for t in kept_for_it:
                    alive[t] += size
                free[_kind(node)].remove((died, held))
                found[node] = whole[held]
                break
        held = memory[node]
        if bytes_of(node) >= _SMALL and ordered.get(node, False) and not aliases(node) and made_here(node):
            whole[held] = node
        for dead in dying.get(place, ()):
            if dead in whole and memory[whole[dead]] is dead:
                free.setdefault(_kind(whole[dead]), []).append((place, dead))
    return found


def _takes(node: Node) -> bool:
    return bool(node.op.into) and isinstance(node.type, TensorType) and bytes_of(node) >= _SMALL


def _kind(node: Node) -> TensorType:
    """What two values have in common that can lie in the same memory."""
    return TensorType(node.type.shape, node.type.dtype, None, node.type.device)


def _in_order(nodes: Sequence[Node]) -> dict[Node, bool]:
    """Whether a value lies in the order of its dimensions."""
    found: dict[Node, bool] = {}
    for node in (n for m in nodes for n in (*(i for i in m.inputs if i.is_leaf), m)):
        if node in found:
            continue
        if node.is_leaf:
            strides = node.type.layout if isinstance(node.type, TensorType) else None
            found[node] = strides is None or list(strides) == sorted(strides, reverse=True)
            continue
        order = node.op.order(node) if callable(node.op.order) else node.op.order
        found[node] = order == "given" or (order == "operands" and all(found.get(i, True) for i in node.inputs))
    return found
