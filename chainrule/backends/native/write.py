"""Expressions as instructions: a node's value at a block of indices, from its root down to stored values.

What does not change with an inner loop is computed outside of it. ``accumulate`` and ``kernels`` build on this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from chainrule.backends.native import access
from chainrule.backends.native.access import ZERO, Index, sizes
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.forms import KINDS, Forms
from chainrule.backends.native.memory import Layout, View
from chainrule.backends.native.plan import Root, Schedule
from chainrule.backends.native.values import BYTES, LLVM, Affine, LoopVar, Value
from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node


@dataclass(frozen=True)
class Part:
    """What of a loop nest is written: ``count`` values of one axis of its results, from ``first`` on."""

    axis: int
    first: Affine
    count: int


class Writer:
    """Writes expressions and elementwise loops into the function that ``e`` is in.

    Args:
        registers: vector registers of the target, which bound the blocks.
        draw: ``(node, index) -> value`` of a random draw, or None where draws are refused.
    """

    def __init__(
        self,
        e: Emitter,
        plan: Schedule,
        layout: Layout,
        arena: str,
        registers: int = 16,
        draw: Callable[[Node, Index], Value] | None = None,
    ) -> None:
        self.e, self.plan, self.layout, self.arena = e, plan, layout, arena
        self.forms, self.registers, self.draw = Forms(e), registers, draw
        self.width = 32  # bytes of a vector
        self.bases: dict[int, str] = {}
        self.computing: set[Node] = set()
        self.ground = 0  # the scope of the kernel that is being written
        self.block_memory: str | None = None
        self.block: tuple[int, int] | None = None  # rows and columns of the kernel's blocks, where they are given
        self.part: Part | None = None  # what of a kernel is written, where threads share it

    # ---- memory --------------------------------------------------------------------------------------------
    def base(self, view: View) -> str:
        """The pointer to a buffer, made once at the start of the function."""
        if view.start not in self.bases:
            name, head = self.e.fresh(), self.e.scopes[0].head
            if view.external:
                slot = self.e.fresh()
                head.append(f"  {slot} = getelementptr inbounds ptr, ptr %tensors, i64 {-1 - view.start}")
                head.append(f"  {name} = load ptr, ptr {slot}, align 8")
            else:
                head.append(f"  {name} = getelementptr inbounds i8, ptr {self.arena}, i64 {view.start}")
            self.bases[view.start] = name
        return self.bases[view.start]

    def load(self, node: Node, index: Index) -> Value:
        """A stored value."""
        view = self.layout.views[node]
        address = view.address(index)
        if address.lane not in (0, 1):
            for other in self.layout.copies.get(node, {}).values():
                if other.address(index).lane == 1:
                    view, address = other, other.address(index)
        value = self.e.load(self.base(view), view.kind, address, view.external)
        return value

    def store(self, value: Value, view: View, index: Index) -> None:
        """Writes a value where its view says."""
        value = self.e.convert(value, view.kind) if value.kind != view.kind else value
        self.e.store(value, self.base(view), view.address(index), padded=view.room)

    def destination(self, root: Root) -> View:
        """Where a root goes."""
        if root.into is None:
            return self.layout.views[root.node]
        view = self.layout.views[root.into]
        if root.part is None:
            return view
        offset, strides = access.part(root.into, root.part, view.strides)
        return View(view.start, view.kind, view.offset + offset, strides, None, False)

    # ---- expressions ---------------------------------------------------------------------------------------
    def value(self, node: Node, index: Index) -> Value:
        """The value of a node at an index, computed in the outermost loop that it belongs to."""
        if node.number is not None:
            return self.e.constant(node.number, self.kind(node))
        depth = max([v.depth for i in index for v, _ in i.terms], default=self.ground)
        depth = max(depth, self.ground)
        lanes = any(i.lane for i in index)
        key = (node, index, self.e.valid if lanes else 0)
        for scope in self.e.scopes[self.ground :]:
            if key in scope.values:
                return scope.values[key]
        if depth < len(self.e.scopes) - 1:
            with self._at(depth):
                value = self._evaluate(node, index)
        else:
            value = self._evaluate(node, index)
        self.e.scopes[depth].values[key] = value
        return value

    def remember(self, node: Node, index: Index, value: Value) -> None:
        """Makes a value known at an index in the innermost block."""
        lanes = any(i.lane for i in index)
        self.e.scopes[-1].values[(node, index, self.e.valid if lanes else 0)] = value

    @contextmanager
    def _at(self, depth: int):
        """Instructions go to the head of an outer loop."""
        e = self.e
        inner = e.scopes[depth + 1 :]
        del e.scopes[depth + 1 :]
        scope = e.scopes[-1]
        body, scope.body = scope.body, scope.head  # type: ignore[assignment]
        try:
            yield
        finally:
            scope.body = body
            e.scopes.extend(inner)

    def kind(self, node: Node) -> str:
        """The kind of a node's elements."""
        kind = KINDS.get(node.type.dtype)
        if kind is None:
            raise UnsupportedOpError(f"values of dtype {node.type.dtype} in native code")
        return kind

    def _evaluate(self, node: Node, index: Index) -> Value:
        if (node in self.plan.stored or node.op.native == "input") and node not in self.computing:
            return self.load(node, index)
        return self.compute(node, index)

    def compute(self, node: Node, index: Index) -> Value:
        """The value of a node from its operands, though it may be stored."""
        e, kind = self.e, node.op.native
        if access.is_view(node):
            return self.value(node.inputs[0], access.through(node, index))
        if callable(kind):
            xs = [self.value(x, access.broadcast_index(x, sizes(node), index)) for x in node.inputs]
            found: Any = kind(self.forms, *self._promoted(node, xs), **node.params)
            return self._typed(found, node)
        if access.is_product(node):
            reads = access.product_reads(node, index)
            out = None
            for x, at in zip(node.inputs, reads, strict=True):
                v = self.value(x, at)
                out = v if out is None else out * v
            assert out is not None
            return self._typed(out, node)
        if kind == "one_hot":
            place = self.value(node.inputs[0], index[:-1])
            return e.convert(e.compare("eq", place, e.index(index[-1])), self.kind(node))
        if kind == "eye":
            return e.convert(e.compare("eq", e.index(index[0]), e.index(index[1])), self.kind(node))
        if kind == "draw":
            if self.draw is None:
                raise UnsupportedOpError("a random draw in native code", instead='backend="torch"')
            return self.draw(node, index)
        if kind in access.INDEXED:
            return self._gather(node, index)
        if kind == "max_pool_place":
            return self._pool_place(node, index)
        raise UnsupportedOpError(f"op {node.op.name!r} has no native form", instead='backend="torch"')

    def _promoted(self, node: Node, xs: list[Value]) -> list[Value]:
        """Operands of a float op in its dtype; comparisons and choices promote among themselves."""
        if not node.type.is_float or node.op.native is None:
            return xs
        kind = self.kind(node)
        return (
            [e if e.kind == "i1" or not e.is_float else self.e.convert(e, kind) for e in xs]
            if "dtype" not in node.params
            else xs
        )

    def _typed(self, value: Value, node: Node) -> Value:
        kind = self.kind(node)
        if not isinstance(value, Value):
            return self.e.constant(value, kind)
        return value if value.kind == kind else self.e.convert(value, kind)

    def _gather(self, node: Node, index: Index) -> Value:
        e = self.e
        places, axis, rest = access.gathered(node, index)
        x = node.inputs[0]
        place = self._within(self.value(node.inputs[1], places), node.inputs[1], sizes(x)[axis])
        view = self._view_of(x)
        at = list(rest)
        at.insert(axis, ZERO)
        address = view.address(tuple(at))
        step = view.strides[axis]
        lanes = max(place.lanes, e.lanes if address.lane else 1)
        parts = []
        for k in range(e.valid if lanes > 1 else 1):
            one = Affine(address.terms, address.const + k * address.lane)
            scaled = e.lane(place, k) * step
            scaled = e.convert(scaled, "i64")
            pointer = e.pointer(self.base(view), view.kind, one)
            text = e.let(f"getelementptr inbounds {LLVM[view.kind]}, ptr {pointer}, i64 {scaled.text}")
            parts.append(Value(e, view.kind, 1, e.let(f"load {LLVM[view.kind]}, ptr {text}, align {BYTES[view.kind]}")))
        return parts[0] if lanes == 1 else e.gathered(parts)

    def _within(self, place: Value, node: Node, size: int) -> Value:
        """A position that cannot leave the tensor, whatever the data holds."""
        while node.inputs and not node.op.native == "max_pool_place":
            if not access.is_view(node) and not access.is_placement(node):
                break
            node = node.inputs[0]
        if node.op.native == "max_pool_place":
            return place
        e = self.e
        return e.where(place < 0, 0, e.where(place > size - 1, size - 1, place))

    def _view_of(self, x: Node) -> View:
        """The memory of a stored node behind views, as a view of the outermost."""
        if x in self.plan.stored:
            return self.layout.views[x]
        if not access.is_view(x):
            raise UnsupportedOpError(
                f"op {x.op.name!r} read at computed places in native code", instead='backend="torch"'
            )
        inner = self._view_of(x.inputs[0])
        marks = [LoopVar(str(a), a) for a in range(x.type.rank)]
        address = inner.address(access.through(x, tuple(Affine(((v, 1),)) for v in marks)))
        found = dict(address.terms)
        return View(inner.start, inner.kind, address.const, tuple(found.get(v, 0) for v in marks), None, False)

    def _pool_place(self, node: Node, index: Index) -> Value:
        """Where in its window the largest element is, as torch numbers places: the first of equal ones."""
        e, p = self.e, node.params
        (x,) = node.inputs
        rank = len(p["kernel_size"])
        lead, at, span = index[:-rank], index[-rank:], sizes(x)[-rank:]
        best: Value | None = None
        place: Value | None = None
        taps: list[tuple[int, ...]] = [()]
        for k in p["kernel_size"]:
            taps = [(*t, j) for t in taps for j in range(k)]
        outputs = sizes(node)[-rank:]
        for tap in taps:
            where = [
                i * s + (j * d - pad)
                for i, j, s, d, pad in zip(at, tap, p["stride"], p["dilation"], p["padding"], strict=True)
            ]
            inside: Value | None = None
            for w, j, n, m, s, d, pad in zip(
                where, tap, span, outputs, p["stride"], p["dilation"], p["padding"], strict=True
            ):
                low, high = j * d - pad, (m - 1) * s + j * d - pad
                if low < 0:
                    c = e.compare("ge", e.index(w), 0)
                    inside = c if inside is None else inside & c
                if high >= n:
                    c = e.compare("lt", e.index(w), n)
                    inside = c if inside is None else inside & c
            v = self.value(x, (*lead, *where))  # outside of the tensor: some other memory of the arena, not used
            number: Value = e.constant(0, "i64")
            for w, n in zip(where, span, strict=True):
                number = number * n + e.index(w)
            if best is None or place is None:
                best = v if inside is None else e.where(inside, v, -math.inf)
                place = number
                continue
            larger = (v > best) | e.compare("ne", v, v)
            larger = larger if inside is None else larger & inside
            best, place = e.where(larger, v, best), e.where(larger, number, place)
        assert place is not None
        return place

    # ---- loops ----------------------------------------------------------------------------------------------
    def loop(self, count: int, body: Callable[[Affine], None], step: int = 1, start: int = 0) -> None:
        """A loop without carried values; none where there is one turn."""
        if count - start <= 0:
            return
        if count - start <= step:
            self.e.scopes[-1].values = getattr(self.e.scopes[-1], "values", {})
            saved = dict(self.e.scopes[-1].values)
            body(Affine((), start))
            self.e.scopes[-1].values = saved
            return

        def turn(var: LoopVar, _: list[Value]) -> list[Value]:
            self.e.scopes[-1].values = {}
            body(Affine(((var, 1),)))
            return []

        self.e.loop(count, turn, step=step, start=start)

    def roots(self, roots: Sequence[Root], index: Index) -> None:
        """Computes and stores roots at an index, in order."""
        for root in roots:
            self.computing = {root.node} if root.into is None or root.node not in self.plan.stored else set()
            lanes = any(i.lane for i in index)
            key = (root.node, index, self.e.valid if lanes else 0)
            known = next((s.values[key] for s in self.e.scopes[self.ground :] if key in s.values), None)
            if known is None:
                known = self.compute(root.node, index) if root.node in self.computing else self.value(root.node, index)
                if self.e.scopes:
                    self.e.scopes[-1].values[key] = known
            self.computing = set()
            self.store(known, self.destination(root), index)

    def map(self, roots: Sequence[Root]) -> None:
        shape = sizes(roots[0].node)
        view = self.destination(roots[0])
        axes = [a for a, n in enumerate(shape) if n > 1]
        unit = [a for a in axes if view.strides[a] == 1]
        vector = unit[-1] if unit and self.e.replicas == 1 else None
        order = sorted((a for a in axes if a != vector), key=lambda a: -view.strides[a])
        index: list[Affine] = [ZERO] * len(shape)

        def inside() -> None:
            if vector is None:
                self.roots(roots, tuple(index))
                return

            def vectors(i: Affine, axis: int = vector) -> None:
                index[axis] = i
                self.roots(roots, tuple(index))

            self.along(shape[vector], vectors, vector)

        self.nest(order, shape, index, inside)

    def nest(self, order: Sequence[int], shape: Sequence[int], index: list[Affine], inside: Callable[[], None]) -> None:
        """``inside`` within a loop over every axis of ``order``, outermost first; ``index`` says where it is."""
        if not order:
            inside()
            return

        first, count = self.span(order[0], shape[order[0]])

        def body(i: Affine) -> None:
            index[order[0]] = first + i
            self.nest(order[1:], shape, index, inside)

        self.loop(count, body)

    def along(self, size: int, body: Callable[[Affine], Any], axis: int | None = None) -> None:
        """``body`` at every vector of an index, the last of which may have lanes that do not count."""
        e = self.e
        lanes = e.lanes
        first, size = self.span(axis, size)
        full = size // lanes * lanes
        self.loop(full, lambda i: body(replace(first + i, lane=1)), step=lanes)
        if full < size:
            with self.counting(size - full):
                self.loop(1, lambda _: body(replace(first + full, lane=1)))

    def span(self, axis: int | None, size: int) -> tuple[Affine, int]:
        """Where an index begins and how many values of it are written: all, but of the one that threads share."""
        if self.part is None or self.part.axis != axis:
            return ZERO, size
        return self.part.first, self.part.count

    @contextmanager
    def counting(self, valid: int):
        """A block in which only the first lanes count."""
        before, self.e.valid = self.e.valid, valid
        try:
            yield
        finally:
            self.e.valid = before
