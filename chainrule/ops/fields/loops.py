"""Loops written out, step by step: every step is one more layer, with the weights of the others."""

from __future__ import annotations

from chainrule.ir import Node, rebuild
from chainrule.ops.movement import expand_dims, squeeze
from chainrule.ops.slicing import concat, slice_axis

_MOST_STEPS = 256


def written_out(node: Node) -> list[Node] | None:
    """The outputs of a loop as a program without it; None where the node is no loop, or a very long one."""
    if node.op.name != "scan" or int(node.params["length"]) > _MOST_STEPS or not node.params["length"]:
        return None
    body, length = node.params["body"], int(node.params["length"])
    first, second = int(node.params["n_consts"]), int(node.params["n_consts"]) + int(node.params["n_carry"])
    consts, carry, xs = list(node.inputs[:first]), list(node.inputs[first:second]), node.inputs[second:]
    steps = range(length)[:: -1 if node.params["reverse"] else 1]
    ys: dict[int, list[Node]] = {}
    for k in steps:
        slices = [squeeze(slice_axis(x, 0, k, k + 1), (0,)) for x in xs]
        image = dict(zip(body.inputs, [*consts, *carry, *slices], strict=True))
        done = rebuild(body.outputs, image=image)
        outputs = [done[o] for o in body.outputs]
        carry, ys[k] = outputs[: len(carry)], outputs[len(carry) :]
    stacked = [concat([expand_dims(ys[k][j], (0,)) for k in range(length)], 0) for j in range(len(ys[0]))]
    return [*carry, *stacked]
