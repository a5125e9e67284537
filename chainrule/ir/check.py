"""The executable specification of a graph: what every pass must leave true.

``check(graph)`` runs every shape rule again and names the first node that disagrees. Passes are tested with it; it is
cheap enough to run after each one while developing.
"""

from __future__ import annotations

from chainrule.errors import ShapeError
from chainrule.ir.graph import Graph, Node, describe
from chainrule.ir.op import OPS


def check(graph: Graph) -> None:
    """Raises ShapeError at the first node that breaks a rule; returns nothing.

    The rules: every op is the declared one; every node has the type that its shape rule gives; every leaf that is
    read is an input of the graph; names and outputs are part of it; impure nodes carry a stream.
    """
    seen: set[Node] = set()
    inputs = set(graph.inputs)
    for node in graph.nodes:
        where = f"{describe(node)} ({graph.origins.get(node, 'no origin')})"
        if OPS.get(node.op.name) is not node.op:
            raise ShapeError(f"{where}: op {node.op.name!r} is not the declared one")
        if any(i not in seen for i in node.inputs):
            raise ShapeError(f"{where}: an input comes after its use")
        expected = node.op.shape(*(i.type for i in node.inputs), **node.params)
        if expected != node.type:
            raise ShapeError(f"{where}: type differs from its shape rule", given=str(node.type), required=str(expected))
        if "name" in node.params and node.is_leaf and node not in inputs:
            raise ShapeError(f"{where}: read but not an input of the graph")
        if not node.op.pure and "stream" not in node.params:
            raise ShapeError(f"{where}: a random draw without a stream")
        seen.add(node)
    if len(graph.output_names) not in (0, len(graph.outputs)):
        raise ShapeError("output_names and outputs differ in length")
