"""Which dimensions of different tensors are one index of the computation: what layouts are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.backends.native import access
from chainrule.backends.native.access import Index, sizes
from chainrule.backends.native.values import Affine, LoopVar
from chainrule.ir import Node


class _Classes:
    """Union-find over (node, axis)."""

    def __init__(self) -> None:
        self.parent: dict = {}

    def find(self, key: object) -> object:
        self.parent.setdefault(key, key)
        while self.parent[key] != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def join(self, a: object, b: object) -> None:
        self.parent[self.find(a)] = self.find(b)


def axis_classes(order: Sequence[Node]) -> Callable[[Node, int], object]:
    """``(node, axis) -> class``: dimensions in one class run over the same index."""
    classes = _Classes()

    def same(node: Node, index: Index, keys: dict[LoopVar, object]) -> None:
        for a, i in enumerate(index):
            if len(i.terms) == 1 and i.terms[0][1] == 1 and i.const == 0:
                classes.join((node, a), keys[i.terms[0][0]])

    for node in order:
        rank = len(sizes(node)) if hasattr(node.type, "shape") else 0
        own = [LoopVar(f"{a}", a) for a in range(rank)]
        index = tuple(Affine(((v, 1),)) for v in own)
        keys: dict[LoopVar, object] = {v: (node, a) for a, v in enumerate(own)}
        found = access.accumulation(node)
        if found is not None:
            extra = [LoopVar(f"r{a}", a) for a in range(len(found.sizes))]
            keys |= {v: (node, "extra", a) for a, v in enumerate(extra)}
            for x, at in zip(node.inputs, found.read(index, tuple(Affine(((v, 1),)) for v in extra)), strict=True):
                same(x, at, keys)
        elif access.is_view(node):
            same(node.inputs[0], access.through(node, index), keys)
        elif access.is_product(node):
            for x, at in zip(node.inputs, access.product_reads(node, index), strict=True):
                same(x, at, keys)
        elif access.is_elementwise(node):
            for x in node.inputs:
                same(x, access.broadcast_index(x, sizes(node), index), keys)
        elif node.op.native == "reshape":
            for inside, outside in access.reshape_groups(sizes(node.inputs[0]), sizes(node)):
                if len(inside) == len(outside) == 1:
                    classes.join((node, outside[0]), (node.inputs[0], inside[0]))
        elif node.op.native in ("concat", "pad"):
            for x in node.inputs:
                for a in range(rank):
                    if sizes(x)[a] == sizes(node)[a]:
                        classes.join((node, a), (x, a))
        elif node.op.native in access.INDEXED:
            places, axis, rest = access.gathered(node, index)
            same(node.inputs[1], places, keys)
            left = [a for a in range(node.inputs[0].type.rank) if a != axis]
            for a, i in zip(left, rest, strict=True):
                if sizes(node.inputs[0])[a] == sizes(node)[i.terms[0][0].depth]:
                    classes.join((node.inputs[0], a), keys[i.terms[0][0]])
        elif access.is_scatter(node):
            x = node.inputs[0]
            inner = [LoopVar(f"{a}", a) for a in range(x.type.rank)]
            at = tuple(Affine(((v, 1),)) for v in inner)
            same(node.inputs[1], access.scatter_place(node, at), {v: (x, a) for a, v in enumerate(inner)})
            for a, i in enumerate(access.scattered(node, at, None)):
                if i is not None and sizes(x)[i.terms[0][0].depth] == sizes(node)[a]:
                    classes.join((node, a), (x, i.terms[0][0].depth))
        elif node.op.native == "max_pool_place":
            for a in range(rank - len(node.params["kernel_size"])):
                classes.join((node, a), (node.inputs[0], a))
        elif node.op.native == "one_hot":
            same(node.inputs[0], index[:-1], keys)
    return lambda node, axis: classes.find((node, axis))
