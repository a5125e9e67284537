"""One run instead of two: an op that a backward op has made run with a recording is not run without one as well.

The derivative of an op with a fused backward reads what the forward kernel keeps (statistics, a tape), which is an
output of the recorded form of the op (``Op.recorded``). In a program that holds both forms of one call, this pass
leaves the recorded one.
"""

from __future__ import annotations

from typing import Any

from chainrule.ir import Graph, Node, Op, TupleType, apply, item, rebuild, toposort


def recorded_once(graph: Graph) -> Graph:
    """The graph in which no op runs beside its own recorded form."""
    roots = [*graph.outputs, *graph.draws]
    nodes = toposort(roots)
    if not any(n.op.recorded for n in nodes):
        return graph
    present = {_call(n.op, n): n for n in nodes if isinstance(n.type, TupleType)}

    def replaced(node: Node, inputs: tuple[Node, ...]) -> Node:
        twin = node.op.recorded
        if twin is not None and _call(twin, node) in present:
            both = apply(twin, *inputs, **node.params)
            return both if isinstance(node.type, TupleType) else item(both, 0)
        return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)

    return graph.map(rebuild(roots, replaced))


def _call(op: Op, node: Node) -> tuple[Any, ...]:
    """Equal for two nodes that would be one if both were of ``op``."""
    return (op.name, node.inputs, *sorted(node.params.items()))
