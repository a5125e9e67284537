"""Several trainings of one small network side by side: every number of a step is a vector with one lane per replica.

Nothing is padded whatever the widths, no sum is over lanes, and each replica has samples, learning rates and random
draws of its own. Memory holds ``replicas`` numbers where that of a single training holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.backends.native import access
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.values import BYTES, LLVM, Affine, LoopVar, Value, in_memory
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
