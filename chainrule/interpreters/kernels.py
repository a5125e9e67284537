"""Which kernels a program runs: one form of each call, and only the outputs that are read.

The derivative of an op with a backward kernel reads what its forward kernel keeps (statistics, a tape): outputs of the
recorded form of the op (``Op.recorded``). Where a program holds both forms of a call, the recorded one is left. A
backward kernel with several outputs is told which of them are wanted (``Op.choosy``), and so is the call whose tape it
reads (``Op.keeps_more``).
"""

from __future__ import annotations

from chainrule.ir import Graph, Node, TupleType, apply, item, rebuild, toposort


def selected(graph: Graph) -> Graph:
    """The graph with one form of each call, and no kernel output that nobody reads."""
    return _wanted(_recorded_once(graph))


def _recorded_once(graph: Graph) -> Graph:
    roots = [*graph.outputs, *graph.draws]
    nodes = toposort(roots)
    if not any(n.op.recorded for n in nodes):
        return graph
    present = {n for n in nodes if isinstance(n.type, TupleType)}

    def replaced(node: Node, inputs: tuple[Node, ...]) -> Node:
        if node.op.recorded is not None:
            twin = node.op.recorded(node, node.inputs)
            if twin in present:
                both = node.op.recorded(node, inputs)
                return both if isinstance(node.type, TupleType) else item(both, 0)
        return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)

    return graph.map(rebuild(roots, replaced))


def _wanted(graph: Graph) -> Graph:
    roots = [*graph.outputs, *graph.draws]
    nodes = toposort(roots)
    read: dict[Node, set[int]] = {n: set() for n in nodes if n.op.choosy}
    if not read:
        return graph
    for node in nodes:
        for source in node.inputs:
            if source in read:
                read[source].add(node.params["index"])  # nothing but an item reads a node with several outputs

    wanted = {n: tuple(k in found for k in range(len(n.type.items))) for n, found in read.items()}
    for back, own in list(wanted.items()):
        for taped in back.inputs:
            if taped.op.keeps_more:
                wanted[taped] = tuple(map(max, wanted.get(taped, own), own))

    def replaced(node: Node, inputs: tuple[Node, ...]) -> Node:
        more = {"wanted": wanted[node]} if node in wanted else {}
        return apply(node.op, *inputs, **(dict(node.params) | more)) if more or inputs != node.inputs else node

    return graph.map(rebuild(roots, replaced))
