"""A program in two halves: what is known before some inputs are, and what waits for them.

The backward pass of a function needs its cotangents; everything else is computed once and kept. The values that the
second half reads of the first are the residuals.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.ir import Graph, Node, fresh_variable, rebuild, toposort


def halves(graph: Graph, late: Sequence[Node], last: int) -> tuple[Graph, Graph]:
    """The graph cut before everything that depends on the inputs ``late``, on which its ``last`` outputs depend.

    Returns:
        The first half: the inputs but ``late`` -> the other outputs, then the residuals.
        The second half: the residuals, then ``late`` -> the last outputs.
    """
    waiting: set[Node] = set(late)
    for node in toposort(graph.outputs):
        if any(i in waiting for i in node.inputs):
            waiting.add(node)
    early, roots = graph.outputs[: len(graph.outputs) - last], graph.outputs[len(graph.outputs) - last :]
    ahead = [n for n in toposort(roots, stop=lambda n: n not in waiting) if n not in waiting]
    residuals = [n for n in ahead if n.number is None]
    image: dict[Node, Node] = {}
    for k, node in enumerate(residuals):
        image[node] = fresh_variable(f"r{k}", node.type, [*late, *image.values()])
    done = rebuild(roots, image=image)
    first = Graph(
        inputs=tuple(i for i in graph.inputs if i not in late),
        outputs=(*early, *residuals),
        names=graph.names,
        origins=graph.origins,
        draws=graph.draws,
    )
    return first, Graph((*(image[r] for r in residuals), *late), tuple(done[r] for r in roots))
