"""One kernel as loops: an accumulation, a scatter, or elementwise work alone."""

from __future__ import annotations

from chainrule.backends.native import access
from chainrule.backends.native.access import ZERO, sizes
from chainrule.backends.native.accumulate import Accumulating
from chainrule.backends.native.memory import View
from chainrule.backends.native.plan import Kernel
from chainrule.backends.native.values import BYTES, LLVM, Affine, Scope, Value
from chainrule.ir import Node


class KernelWriter(Accumulating):
    """Writes kernels into the function that ``e`` is in."""

    def kernel(self, kernel: Kernel) -> None:
        """Writes one kernel."""
        e = self.e
        scope = Scope()
        e.scopes[-1].body.append(scope)
        e.scopes.append(scope)
        self.ground = len(e.scopes) - 1
        scope.values = {}
        if kernel.core is None:
            self.map(kernel.roots)
        elif access.is_scatter(kernel.core):
            self._scatter(kernel.core)
            rest = [r for r in kernel.roots if r.node is not kernel.core or r.into is not None]
            if rest:
                self.map(rest)
        else:
            self.accumulate(kernel)
        e.scopes.pop()

    def _scatter(self, node: Node) -> None:
        """Zeros, then every element of the operand added at its place, one after the other."""
        e = self.e
        view = self.layout.views[node]
        zero = e.constant(0.0, view.kind)
        self._fill(node, view, zero)
        x = node.inputs[0]
        index: list[Affine] = [ZERO] * x.type.rank
        source = self._view_of(x)
        order = sorted((a for a, n in enumerate(sizes(x)) if n > 1), key=lambda a: -source.strides[a])

        def inside() -> None:
            place = e.convert(self.value(node.inputs[1], access.scatter_place(node, tuple(index))), "i64")
            target = access.scattered(node, tuple(index), None)
            axis = next(a for a, i in enumerate(target) if i is None)
            place = self._within(place, node.inputs[1], sizes(node)[axis])
            address = view.address(tuple(ZERO if i is None else i for i in target))
            pointer = e.pointer(self.base(view), view.kind, address)
            scaled = place * view.strides[axis]
            at = e.let(f"getelementptr inbounds {LLVM[view.kind]}, ptr {pointer}, i64 {scaled.text}")
            old = Value(e, view.kind, 1, e.let(f"load {LLVM[view.kind]}, ptr {at}, align {BYTES[view.kind]}"))
            new = old + self.value(x, tuple(index))
            e.line(f"store {new.type} {new.text}, ptr {at}, align {BYTES[view.kind]}")

        self.nest(order, sizes(x), index, inside)

    def _fill(self, node: Node, view: View, zero: Value) -> None:
        index: list[Affine] = [ZERO] * node.type.rank
        axes = [a for a, n in enumerate(sizes(node)) if n > 1]
        unit = [a for a in axes if view.strides[a] == 1]
        vector = unit[-1] if unit else None
        order = sorted((a for a in axes if a != vector), key=lambda a: -view.strides[a])

        def inside() -> None:
            if vector is None:
                self.store(zero, view, tuple(index))
                return

            def vectors(i: Affine, axis: int = vector) -> None:
                index[axis] = i
                self.store(self.e.vector(zero), view, tuple(index))

            self.along(sizes(node)[vector], vectors, vector)

        self.nest(order, sizes(node), index, inside)
