"""Several trainings of one small network side by side: every number of a step is a vector with one lane per replica.

Nothing is padded whatever the widths, no sum is over lanes, and each replica has samples, learning rates and random
draws of its own. Memory holds ``replicas`` numbers where that of a single training holds one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from chainrule.backends.native import access
from chainrule.backends.native.access import ZERO, sizes
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.values import BYTES, LLVM, Affine, LoopVar, Scope, Value, in_memory
from chainrule.backends.native.write import Writer
from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node


class Replicated(Emitter):
    """An emitter whose elements are vectors; an index is the same for all replicas, and so is a loop."""

    def __init__(self, replicas: int) -> None:
        super().__init__(1)
        self.replicas = replicas

    def pointer(self, base: str, kind: str, address: Affine) -> str:
        return super().pointer(base, kind, Affine(address.terms, address.const) * self.replicas)

    def vector(self, x: Value, lanes: int | None = None) -> Value:
        return x if x.lanes > 1 else super().vector(x, self.replicas)

    def load(self, base: str, kind: str, address: Affine, guarded: bool = False) -> Value:
        stored = in_memory(kind)
        pointer = self.pointer(base, stored, address)
        vector = f"<{self.replicas} x {LLVM[stored]}>"
        value = Value(self, stored, self.replicas, self.let(f"load {vector}, ptr {pointer}, align {BYTES[stored]}"))
        return self.convert(value, "i1") if kind == "i1" else value

    def store(self, x: Value, base: str, address: Affine, padded: bool = False) -> None:
        x = self.vector(x)
        if x.kind == "i1":
            x = Value(self, "i8", x.lanes, self.let(f"zext {x.type} {x.text} to <{x.lanes} x i8>"))
        pointer = self.pointer(base, x.kind, address)
        self.line(f"store {x.type} {x.text}, ptr {pointer}, align {BYTES[x.kind]}")

    def loop(
        self,
        count: int | str,
        body: Callable[[LoopVar, list[Value]], list[Value]],
        carry: Sequence[Value] = (),
        step: int = 1,
        start: int | str = 0,
    ) -> list[Value]:
        def turn(var: LoopVar, carried: list[Value]) -> list[Value]:
            return [self.vector(v) for v in body(var, carried)]

        return super().loop(count, turn, [self.vector(c) for c in carry], step, start)


def refuse(order: Sequence[Node]) -> None:
    """Raises UnsupportedOpError for what reads or writes at computed places: these differ from replica to replica."""
    for node in order:
        if node.op.native in (*access.INDEXED, "max_pool_place") or access.is_scatter(node):
            raise UnsupportedOpError(f"op {node.op.name!r} in replicas side by side", instead="one after the other")


def gather(w: Writer, leaf: Node, source: str, step: str) -> None:
    """Copies the samples of this step into the arena: ``%order`` has one column per replica."""
    e, view = w.e, w.layout.views[leaf]
    assert isinstance(e, Replicated)
    scope = Scope()
    e.scopes[-1].body.append(scope)
    e.scopes.append(scope)
    w.ground = len(e.scopes) - 1
    batch, sample = sizes(leaf)[0], sizes(leaf)[1:]
    count = math.prod(sample)
    dense = [math.prod(sample[k + 1 :]) for k in range(len(sample))]
    first = e.let(f"mul nuw nsw i64 {step}, {batch}")

    def copy(b: Affine) -> None:
        at = e.let(f"add nuw nsw i64 {first}, {e.index(b).text}")
        at = e.let(f"mul nuw nsw i64 {at}, {e.replicas}")
        rows = []
        for k in range(e.replicas):
            slot = e.let(f"getelementptr inbounds i64, ptr %order, i64 {at}")
            slot = e.let(f"getelementptr inbounds i64, ptr {slot}, i64 {k}")
            number = e.let(f"load i64, ptr {slot}, align 8")
            offset = e.let(f"mul nsw i64 {number}, {count}")
            rows.append(e.let(f"getelementptr inbounds {LLVM[view.kind]}, ptr {source}, i64 {offset}"))
        index: list[Affine] = [b, *[ZERO] * len(sample)]

        def inside() -> None:
            place = ZERO
            for i, s in zip(index[1:], dense, strict=True):
                place = place + i * s
            where = e.index(place)
            kind = LLVM[view.kind]
            text = "poison"
            for k, row in enumerate(rows):
                slot = e.let(f"getelementptr inbounds {kind}, ptr {row}, i64 {where.text}")
                one = e.let(f"load {kind}, ptr {slot}, align {BYTES[view.kind]}")
                text = e.let(f"insertelement <{e.replicas} x {kind}> {text}, {kind} {one}, i32 {k}")
            w.store(Value(e, view.kind, e.replicas, text), view, tuple(index))

        w.nest(range(1, 1 + len(sample)), sizes(leaf), index, inside)

    w.loop(batch, copy)
    e.scopes.pop()
