"""Maximum pooling without gathers and scatters: comparisons at every place, whole vectors at a time.

A pool is traced as the place of each window's largest element and a gather at it, whose derivative is a scatter. The
value is the maximum of the window's elements as well; where windows do not overlap, the derivative is the cotangent
where an element's own number is the place, and zero elsewhere. Nothing here has derivatives any more: it is what runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product

import numpy as np

from chainrule.backends.native import access
from chainrule.backends.native.access import sizes
from chainrule.ir import OPS, Node, apply, constant, rebuild
from chainrule.ops.movement import expand_dims, reshape


def without_gathers(nodes: Sequence[Node]) -> list[Node]:
    """Equal nodes, bit for bit, in which pools are comparisons."""
    image = rebuild(nodes, _rewrite)
    return [image[n] for n in nodes]


def _rewrite(node: Node, inputs: tuple[Node, ...]) -> Node:
    new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
    if new.op.native == "gather":
        return _largest(new) or new
    if new.op.native == "reshape":
        return _spread(new) or new
    if access.is_elementwise(new):
        return _before_merging(new)
    return new


def _place(node: Node, source: Node | None) -> Node | None:
    """The places of a pool behind reshapes, of ``source`` if given, where its windows lie inside of the image."""
    node = _behind(node)
    if node.op.native != "max_pool_place" or any(node.params["padding"]) or node.params["ceil_mode"]:
        return None
    return node if source is None or _behind(source) is _behind(node.inputs[0]) else None


def _behind(node: Node) -> Node:
    while node.op.native == "reshape":
        node = node.inputs[0]
    return node


def _largest(node: Node) -> Node | None:
    """A gather at the places of its own operand's largest elements."""
    place = _place(node.inputs[1], node.inputs[0])
    if place is None or node.params["axis"] != node.type.rank - 1:
        return None
    x, p = place.inputs[0], place.params
    rank = len(p["kernel_size"])
    lead, out = sizes(x)[:-rank], sizes(place)[-rank:]
    if sizes(node) != (*lead, math.prod(out)):
        return None
    taps = []
    for tap in product(*(range(k) for k in p["kernel_size"])):
        starts = [t * d for t, d in zip(tap, p["dilation"], strict=True)]
        stops = [a + (n - 1) * s + 1 for a, n, s in zip(starts, out, p["stride"], strict=True)]
        cut = {
            "starts": (*(0 for _ in lead), *starts),
            "stops": (*lead, *stops),
            "steps": (*(1 for _ in lead), *p["stride"]),
        }
        taps.append(apply(OPS["slice"], x, **cut))
    return reshape(reduce(lambda a, b: apply(OPS["maximum"], a, b), taps), node.shape)


def _spread(node: Node) -> Node | None:
    """A scatter to the places of windows that lie side by side and cover the image."""
    scatter = node.inputs[0]
    if scatter.op.native != "scatter_sum" or scatter.params["axis"] != scatter.type.rank - 1:
        return None
    place = _place(scatter.inputs[1], None)
    if place is None:
        return None
    p, rank = place.params, len(place.params["kernel_size"])
    span, out, kernel = sizes(place.inputs[0])[-rank:], sizes(place)[-rank:], p["kernel_size"]
    apart = tuple(kernel) == tuple(p["stride"]) and all(d == 1 for d in p["dilation"])
    covers = all(n * k == s for n, k, s in zip(out, kernel, span, strict=True))
    if not apart or not covers or node.shape != place.inputs[0].shape:
        return None
    if sizes(scatter)[-1] != math.prod(span) or sizes(scatter.inputs[0])[-1] != math.prod(out):
        return None
    first = place.type.rank - rank
    axes = tuple(first + 2 * k + 1 for k in range(rank))
    pairs = [n for pair in zip(out, kernel, strict=True) for n in pair]
    numbers = constant(np.arange(math.prod(span)).reshape(pairs), place.type.dtype)
    here = apply(OPS["eq"], expand_dims(place, axes), numbers)
    g = expand_dims(reshape(scatter.inputs[0], place.shape), axes)
    return reshape(apply(OPS["where"], here, g, constant(0.0, g.type.dtype)), node.shape)


def _before_merging(node: Node) -> Node:
    """An elementwise op of what was spread, before its dimensions become those of the image: one loop does both."""
    for x in node.inputs:
        inner = x.inputs[0] if x.op.native == "reshape" else None
        if inner is None or inner.op is not OPS["where"] or inner.type.rank <= x.type.rank or x.shape != node.shape:
            continue
        if not all(o.shape == x.shape or o.number is not None for o in node.inputs):
            continue
        parts = [o.inputs[0] if o is x else o if o.number is not None else reshape(o, inner.shape) for o in node.inputs]
        return reshape(apply(node.op, *parts, **node.params), node.shape)
    return node
