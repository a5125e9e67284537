"""Indices and memory in LLVM text: loads, stores and addresses that are computed in the loop where they change."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.backends.native.values import BYTES, LLVM, Affine, Arithmetic, Value, in_memory


class Emitter(Arithmetic):
    """Writes one module. ``lanes``: elements of the main dtype per vector."""

    def index(self, a: Affine) -> Value:
        """An index as an i64 value, one per lane where it moves with the lane."""
        total = self.constant(a.const, "i64")
        for var, k in a.terms:
            total = total + (Value(self, "i64", 1, var.ssa) * k if k != 1 else Value(self, "i64", 1, var.ssa))
        if a.lane == 0:
            return total
        steps = ", ".join(f"i64 {k * a.lane}" for k in range(self.lanes))
        return total + Value(self, "i64", self.lanes, f"<{steps}>")

    def pointer(self, base: str, kind: str, address: Affine) -> str:
        """``base + address`` elements; what changes with an outer loop only is computed there."""
        pointer = base
        done: tuple = ()
        terms = sorted(address.terms, key=lambda t: t[0].depth)
        for var, k in terms:
            done = (*done, (var, k))
            scope = self.scopes[var.depth]
            key = (base, kind, done)
            if key not in scope.pointers:
                scaled = var.ssa
                if k != 1:
                    scaled = self.fresh()
                    scope.head.append(f"  {scaled} = mul nsw i64 {var.ssa}, {k}")
                name = self.fresh()
                scope.head.append(f"  {name} = getelementptr inbounds {LLVM[kind]}, ptr {pointer}, i64 {scaled}")
                scope.pointers[key] = name
            pointer = scope.pointers[key]
        if address.const:
            pointer = self.let(f"getelementptr inbounds {LLVM[kind]}, ptr {pointer}, i64 {address.const}")
        return pointer

    def load(self, base: str, kind: str, address: Affine, guarded: bool = False) -> Value:
        """The element at an address, or one per lane where the address moves with the lane.

        ``guarded``: memory that may end with the last lane that counts; what is behind it is not touched.
        """
        stored = in_memory(kind)
        if address.lane == 0:
            text = self.let(f"load {LLVM[stored]}, ptr {self.pointer(base, stored, address)}, align {BYTES[stored]}")
            value = Value(self, stored, 1, text)
        elif address.lane == 1:
            pointer = self.pointer(base, stored, Affine(address.terms, address.const))
            kind_text = f"<{self.lanes} x {LLVM[stored]}>"
            if guarded and self.valid < self.lanes:
                return self._masked_load(pointer, stored, kind)
            value = Value(self, stored, self.lanes, self.let(f"load {kind_text}, ptr {pointer}, align {BYTES[stored]}"))
        else:
            one = Affine(address.terms, address.const)
            parts = [self.load(base, stored, one + k * address.lane) for k in range(self.valid)]
            value = self.gathered(parts)
        return self.convert(value, "i1") if kind == "i1" else value

    def _masked_load(self, pointer: str, stored: str, kind: str) -> Value:
        vector = f"<{self.lanes} x {LLVM[stored]}>"
        mask = ", ".join(f"i1 {'true' if k < self.valid else 'false'}" for k in range(self.lanes))
        target = self.intrinsic(
            f"llvm.masked.load.v{self.lanes}{stored}.p0", vector, ["ptr", "i32", f"<{self.lanes} x i1>", vector]
        )
        text = self.let(
            f"call {vector} {target}(ptr {pointer}, i32 {BYTES[stored]}, "
            f"<{self.lanes} x i1> <{mask}>, {vector} zeroinitializer)"
        )
        value = Value(self, stored, self.lanes, text)
        return self.convert(value, "i1") if kind == "i1" else value

    def gathered(self, parts: Sequence[Value]) -> Value:
        """Scalars as the lanes of a vector; missing ones repeat the first."""
        kind = parts[0].kind
        text = "poison"
        lanes = self.lanes * self.replicas
        for k in range(lanes):
            part = parts[k] if k < len(parts) else parts[0]
            text = self.let(f"insertelement <{lanes} x {LLVM[kind]}> {text}, {LLVM[kind]} {part.text}, i32 {k}")
        return Value(self, kind, lanes, text)

    def lane(self, x: Value, k: int) -> Value:
        """One lane."""
        return x if x.lanes == 1 else self._part(x, k, 1)

    def store(self, x: Value, base: str, address: Affine, padded: bool = False) -> None:
        """Writes an element, or one per lane; ``padded``: lanes that do not count have room and get zeros."""
        if x.kind == "i1":
            x = (
                self.convert(x, "i8")
                if x.lanes == 1
                else Value(self, "i8", x.lanes, self.let(f"zext {x.type} {x.text} to <{x.lanes} x i8>"))
            )
        if address.lane == 0:
            x = self.lane(x, 0)
            pointer = self.pointer(base, x.kind, address)
            self.line(f"store {x.type} {x.text}, ptr {pointer}, align {BYTES[x.kind]}")
            return
        x = self.vector(x)
        one = Affine(address.terms, address.const)
        if address.lane != 1:
            for k in range(self.valid):
                self.store(self.lane(x, k), base, one + k * address.lane)
            return
        pointer = self.pointer(base, x.kind, one)
        if self.valid == self.lanes or padded:
            x = self.tail(x, self.valid)
            self.line(f"store {x.type} {x.text}, ptr {pointer}, align {BYTES[x.kind]}")
            return
        mask = ", ".join(f"i1 {'true' if k < self.valid else 'false'}" for k in range(self.lanes))
        target = self.intrinsic(
            f"llvm.masked.store.v{self.lanes}{x.kind}.p0", "void", [x.type, "ptr", "i32", f"<{self.lanes} x i1>"]
        )
        self.line(
            f"call void {target}({x.type} {x.text}, ptr {pointer}, i32 {BYTES[x.kind]}, <{self.lanes} x i1> <{mask}>)"
        )
