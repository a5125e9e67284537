"""Kernels as loops: elementwise expressions, register-blocked accumulations, scatters.

``KernelWriter.kernel`` writes one kernel. An expression is evaluated from its root down to stored values, at a block of
indices; what does not change with an inner loop is computed outside of it. Accumulations keep a block of results in
registers: ``rows`` along one result index times ``columns`` vectors along another (or along a summed index, with a
horizontal sum at the end).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from chainrule.backends.native import access
from chainrule.backends.native.access import ZERO, Index
from chainrule.backends.native.forms import KINDS, Forms
from chainrule.backends.native.layout import Layout, View, vector_axis
from chainrule.backends.native.schedule import Kernel, Root, Schedule
from chainrule.backends.native.values import BYTES, LLVM, Affine, Emitter, LoopVar, Scope, Value
from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node

_PANEL = 16 * 1024  # bytes: half of the first cache


class KernelWriter:
    """Writes kernels into the function that ``e`` is in.

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
        self.vector: tuple[Node, int] | None = None

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
            xs = [self.value(x, access.broadcast_index(x, node.shape, index)) for x in node.inputs]
            return self._typed(kind(self.forms, *self._promoted(node, xs), **node.params), node)
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
        place = self._within(self.value(node.inputs[1], places), node.inputs[1], x.shape[axis])
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
            text = e.let(f"getelementptr inbounds {_llvm(view.kind)}, ptr {pointer}, i64 {scaled.text}")
            parts.append(
                Value(e, view.kind, 1, e.let(f"load {_llvm(view.kind)}, ptr {text}, align {_bytes(view.kind)}"))
            )
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
        lead, at, sizes = index[:-rank], index[-rank:], x.shape[-rank:]
        best: Value | None = None
        place: Value | None = None
        taps: list[tuple[int, ...]] = [()]
        for k in p["kernel_size"]:
            taps = [(*t, j) for t in taps for j in range(k)]
        outputs = node.shape[-rank:]
        for tap in taps:
            where = [
                i * s + (j * d - pad)
                for i, j, s, d, pad in zip(at, tap, p["stride"], p["dilation"], p["padding"], strict=True)
            ]
            inside: Value | None = None
            for w, j, n, m, s, d, pad in zip(
                where, tap, sizes, outputs, p["stride"], p["dilation"], p["padding"], strict=True
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
            for w, n in zip(where, sizes, strict=True):
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

    # ---- kernels -------------------------------------------------------------------------------------------
    def kernel(self, kernel: Kernel) -> None:
        """Writes one kernel."""
        e = self.e
        scope = Scope()
        e.scopes[-1].body.append(scope)
        e.scopes.append(scope)
        self.ground = len(e.scopes) - 1
        scope.values = {}
        if kernel.core is None:
            self._map(kernel.roots)
        elif access.is_scatter(kernel.core):
            self._scatter(kernel.core)
            rest = [r for r in kernel.roots if r.node is not kernel.core or r.into is not None]
            if rest:
                self._map(rest)
        else:
            self._accumulate(kernel)
        e.scopes.pop()

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

    def _map(self, roots: Sequence[Root]) -> None:
        shape = roots[0].node.shape
        view = self.destination(roots[0])
        axes = [a for a, n in enumerate(shape) if n > 1]
        unit = [a for a in axes if view.strides[a] == 1]
        vector = unit[-1] if unit else None
        order = sorted((a for a in axes if a != vector), key=lambda a: -view.strides[a])
        index: list[Affine] = [ZERO] * len(shape)

        def nest(k: int) -> None:
            if k < len(order):
                a = order[k]

                def body(i: Affine) -> None:
                    index[a] = i
                    nest(k + 1)

                self.loop(shape[a], body)
            elif vector is None:
                self.roots(roots, tuple(index))
            else:
                self.along(shape[vector], lambda i: (index.__setitem__(vector, i), self.roots(roots, tuple(index))))

        nest(0)

    def along(self, size: int, body: Callable[[Affine], Any], group: int = 1) -> None:
        """``body`` at every vector of an index, the last of which may have lanes that do not count."""
        e = self.e
        lanes = e.lanes
        full = size // lanes * lanes
        self.loop(full, lambda i: body(replace(i, lane=1)), step=lanes)
        if full < size:
            with self.counting(size - full):
                self.loop(1, lambda _: body(Affine((), full, 1)))

    @contextmanager
    def counting(self, valid: int):
        """A block in which only the first lanes count."""
        before, self.e.valid = self.e.valid, valid
        try:
            yield
        finally:
            self.e.valid = before

    # ---- accumulations -------------------------------------------------------------------------------------
    def _accumulate(self, kernel: Kernel) -> None:
        core = kernel.core
        assert core is not None
        found = access.accumulation(core)
        assert found is not None
        choice = vector_axis(core, self.plan, self.layout)
        if choice is not None and choice[0] == "extra":
            self._reduce_lanes(kernel, found, choice[1])
        else:
            self._keep_lanes(kernel, found, None if choice is None else choice[1])

    def _start(self, core: Node, found: access.Accumulation, lanes: int) -> Value:
        number = 0.0 if found.combine == "add" else -math.inf if found.combine == "max" else math.inf
        return self.e.constant(number, self.kind(core), lanes)

    def _combine(
        self, found: access.Accumulation, core: Node, acc: Value, index: Index, more: Index, mask: int = 0
    ) -> Value:
        """One more term in an accumulator; ``mask``: how many lanes count, where fewer than all do."""
        e = self.e
        xs = [self.value(x, at) for x, at in zip(core.inputs, found.read(index, more), strict=True)]
        xs = [x if x.kind == acc.kind else e.convert(x, acc.kind) for x in xs]
        if found.combine != "add":
            x = xs[0]
            if mask:
                x = e.tail(e.vector(x), mask, -math.inf if found.combine == "max" else math.inf)
            x = e.vector(x, acc.lanes) if x.lanes != acc.lanes else x
            return e.maximum(acc, x) if found.combine == "max" else e.minimum(acc, x)
        if mask:
            xs = [e.tail(x, mask) if x.lanes > 1 else x for x in xs]
            if all(x.lanes == 1 for x in xs):
                xs = [e.tail(e.vector(xs[0]), mask), *xs[1:]]
        if len(xs) == 1:
            return acc + xs[0]
        first = xs[0]
        for x in xs[1:-1]:
            first = first * x
        return e.fma(first, xs[-1], acc)

    def _sum(
        self,
        found: access.Accumulation,
        accs: list[Value],
        term: Callable[[list[Value], Index], list[Value]],
        skip: int | None = None,
    ) -> list[Value]:
        """Loops over the summed indices (but ``skip``), the accumulators carried from turn to turn."""
        sizes = found.sizes
        more: list[Affine] = [ZERO] * len(sizes)
        axes = [a for a, n in enumerate(sizes) if n > 1 and a != skip]

        def nest(k: int, accs: list[Value]) -> list[Value]:
            if k == len(axes):
                return term(accs, tuple(more))
            a = axes[k]
            if k == len(axes) - 1 and sizes[a] <= 5 and len(accs) * sizes[a] <= 80:
                for i in range(sizes[a]):
                    more[a] = Affine((), i)
                    accs = nest(k + 1, accs)
                return accs

            def turn(var: LoopVar, carried: list[Value]) -> list[Value]:
                self.e.scopes[-1].values = {}
                more[a] = Affine(((var, 1),))
                return nest(k + 1, carried)

            return self.e.loop(sizes[a], turn, accs)

        return nest(0, accs)

    def _keep_lanes(self, kernel: Kernel, found: access.Accumulation, vector: int | None) -> None:
        """The vector index is one of the result's: accumulators are rows x columns of vectors."""
        e, core = self.e, kernel.core
        assert core is not None
        lanes = e.lanes
        shape = core.shape
        target = self.destination(kernel.roots[0])
        index: list[Affine] = [ZERO] * len(shape)
        rest = [a for a, n in enumerate(shape) if n > 1 and a != vector]
        rest.sort(key=lambda a: -target.strides[a])
        row_axis = self._row_axis(core, found, vector, rest)
        outer = [a for a in rest if a != row_axis]
        vectors = 1 if vector is None else -(-shape[vector] // lanes)
        rows_total = 1 if row_axis is None else shape[row_axis]
        rows, columns = self._block(rows_total, vectors, len(core.inputs), math.prod(found.sizes))

        def block(m: Affine, mr: int, v: Affine, nr: int, tail: int) -> None:
            """One block of results: mr rows from m, nr vectors from v, the last of which has ``tail`` lanes."""
            where: list[tuple[Index, int]] = []
            for r in range(mr):
                for c in range(nr):
                    at = list(index)
                    if row_axis is not None:
                        at[row_axis] = m + r
                    if vector is not None:
                        at[vector] = replace(v + c * lanes, lane=1)
                    where.append((tuple(at), tail if tail and c == nr - 1 else lanes))
            width = 1 if vector is None else lanes

            def term(accs: list[Value], more: Index) -> list[Value]:
                out = []
                for acc, (at, valid) in zip(accs, where, strict=True):
                    with self.counting(valid):
                        out.append(self._combine(found, core, acc, at, more))
                return out

            accs = self._sum(found, [self._start(core, found, width)] * len(where), term)
            for acc, (at, valid) in zip(accs, where, strict=True):
                with self.counting(valid):
                    self.remember(core, at, acc)
                    self.roots(kernel.roots, at)

        def all_rows(v: Affine, nr: int, tail: int) -> None:
            full = rows_total // rows * rows
            self.loop(full, lambda m: block(m, rows, v, nr, tail), step=rows)
            if full < rows_total:
                self.loop(1, lambda _: block(Affine((), full), rows_total - full, v, nr, tail))

        def all_columns() -> None:
            if vector is None:
                all_rows(ZERO, 1, 0)
                return
            size = shape[vector]
            tail = size % lanes
            whole = size // lanes // columns * columns
            if tail == 0 or size // lanes % columns or whole * lanes == size:
                pass
            self.loop(whole * lanes, lambda v: all_rows(v, columns, 0), step=columns * lanes)
            left = vectors - whole
            if left:
                self.loop(1, lambda _: all_rows(Affine((), whole * lanes), left, tail))

        def nest(k: int) -> None:
            if k == len(outer):
                all_columns()
                return
            a = outer[k]

            def body(i: Affine) -> None:
                index[a] = i
                nest(k + 1)

            self.loop(shape[a], body)

        nest(0)

    def _row_axis(self, core: Node, found: access.Accumulation, vector: int | None, rest: Sequence[int]) -> int | None:
        """The result index whose block shares what is loaded along the vector index."""
        if not rest:
            return None
        marks = [LoopVar(f"o{a}", a) for a in range(core.type.rank)]
        extra = tuple(ZERO for _ in found.sizes)
        reads = found.read(tuple(Affine(((v, 1),)) for v in marks), extra)
        depends = [{v for i in at for v, _ in i.terms} for at in reads]

        def score(a: int) -> tuple[int, int]:
            shared = sum(marks[a] not in d for d in depends if vector is not None and marks[vector] in d)
            return (min(shared, 1), core.shape[a])

        return max(rest, key=score)

    def _block(self, rows: int, vectors: int, operands: int, terms: int = 0) -> tuple[int, int]:
        """The block with the least estimated time: multiply-adds, loads, latency and turns that do less.

        A block streams ``terms`` x ``columns`` vectors; where they do not fit into half of the first cache, each load
        of one takes longer.
        """
        budget = 10 if self.registers <= 16 else 16
        if operands == 1:
            budget = 4
        best: tuple[float, int, int] | None = None
        for r in range(1, min(rows, 10) + 1):
            for c in range(1, min(vectors, 10) + 1):
                if r * c > budget:
                    continue
                load = 0.5 if terms * c * self.width <= _PANEL else 2.2
                time = 0.0
                for br, count_r in ((r, rows // r), (rows % r, 1 if rows % r else 0)):
                    for bc, count_c in ((c, vectors // c), (vectors % c, 1 if vectors % c else 0)):
                        time += count_r * count_c * max(br * bc / 2, br / 2 + bc * load, 5)
                if best is None or time < best[0] * 0.999:
                    best = (time, r, c)
        assert best is not None
        return best[1], best[2]

    def _reduce_lanes(self, kernel: Kernel, found: access.Accumulation, vector: int) -> None:
        """The vector index is summed over: accumulators hold partial sums that are added at the end."""
        e, core = self.e, kernel.core
        assert core is not None
        lanes = e.lanes
        shape = core.shape
        size = found.sizes[vector]
        roots = list(kernel.roots)
        later: list[Root] = []
        results = math.prod(shape)
        if results > lanes and any(r.node is not core for r in roots):
            later = [r for r in roots if r.node is not core]
            roots = [r for r in roots if r.node is core]
            if not roots:
                self._scratch(core, later[0])
                roots = [Root(core)]
        axes = [a for a, n in enumerate(shape) if n > 1]
        first, second = self._pair(core, found, axes)
        outer = [a for a in axes if a not in (first, second)]
        rows_total = 1 if first is None else shape[first]
        columns_total = 1 if second is None else shape[second]
        rows, columns = self._block(rows_total, columns_total, 2)
        index: list[Affine] = [ZERO] * len(shape)

        def block(m: Affine, mr: int, n: Affine, nr: int) -> None:
            where: list[Index] = []
            for r in range(mr):
                for c in range(nr):
                    at = list(index)
                    if first is not None:
                        at[first] = m + r
                    if second is not None:
                        at[second] = n + c
                    where.append(tuple(at))

            def term(accs: list[Value], more: Index) -> list[Value]:
                full = size // lanes * lanes

                def turn(i: Affine, accs: list[Value], mask: int) -> list[Value]:
                    at = list(more)
                    at[vector] = i
                    with self.counting(mask or lanes):
                        return [
                            self._combine(found, core, a, w, tuple(at), mask) for a, w in zip(accs, where, strict=True)
                        ]

                if full:
                    if full == lanes:
                        accs = turn(Affine((), 0, 1), accs, 0)
                    else:

                        def body(var: LoopVar, carried: list[Value]) -> list[Value]:
                            e.scopes[-1].values = {}
                            return turn(Affine(((var, 1),), 0, 1), carried, 0)

                        accs = e.loop(full, body, accs, step=lanes)
                if full < size:
                    accs = turn(Affine((), full, 1), accs, size - full)
                return accs

            accs = self._sum(found, [self._start(core, found, lanes)] * len(where), term, skip=vector)
            for acc, at in zip(accs, where, strict=True):
                self.remember(core, at, e.total(acc, found.combine))
                self.roots(roots, at)

        def nest(k: int) -> None:
            if k < len(outer):
                a = outer[k]

                def body(i: Affine) -> None:
                    index[a] = i
                    nest(k + 1)

                self.loop(shape[a], body)
                return

            def all_columns(m: Affine, mr: int) -> None:
                full = columns_total // columns * columns
                self.loop(full, lambda n: block(m, mr, n, columns), step=columns)
                if full < columns_total:
                    self.loop(1, lambda _: block(m, mr, Affine((), full), columns_total - full))

            full = rows_total // rows * rows
            self.loop(full, lambda m: all_columns(m, rows), step=rows)
            if full < rows_total:
                self.loop(1, lambda _: all_columns(Affine((), full), rows_total - full))

        nest(0)
        if later:
            scope = Scope()
            scope.values = {}
            e.scopes[-1].body.append(scope)
            e.scopes.append(scope)
            before = self.ground
            self.ground = len(e.scopes) - 1
            held = core in self.plan.stored
            self.plan.stored.add(core)
            self._map(later)
            if not held:
                self.plan.stored.discard(core)
            self.ground = before
            e.scopes.pop()

    def _scratch(self, core: Node, like: Root) -> None:
        """Room for the sums where only what follows from them is stored."""
        if core in self.layout.views:
            return
        view = self.destination(like)
        count = 1 + sum((n - 1) * s for n, s in zip(core.shape, view.strides, strict=True)) + self.e.lanes
        start = self.layout.arena.take(count, self.kind(core))
        self.layout.views[core] = View(start, self.kind(core), 0, view.strides, view.innermost, view.room)

    def _pair(self, core: Node, found: access.Accumulation, axes: Sequence[int]) -> tuple[int | None, int | None]:
        """Two result indices of which each operand has one: their block shares loads both ways."""
        marks = [LoopVar(f"o{a}", a) for a in range(core.type.rank)]
        reads = found.read(tuple(Affine(((v, 1),)) for v in marks), tuple(ZERO for _ in found.sizes))
        depends = [{v for i in at for v, _ in i.terms} for at in reads]
        if len(depends) < 2:
            return (max(axes, key=lambda a: core.shape[a]), None) if axes else (None, None)
        only_first = [a for a in axes if marks[a] in depends[0] and marks[a] not in depends[1]]
        only_second = [a for a in axes if marks[a] in depends[1] and marks[a] not in depends[0]]
        pick = lambda found_axes: max(found_axes, key=lambda a: core.shape[a]) if found_axes else None  # noqa: E731
        return pick(only_first), pick(only_second)

    # ---- scatters ------------------------------------------------------------------------------------------
    def _scatter(self, node: Node) -> None:
        """Zeros, then every element of the operand added at its place, one after the other."""
        e = self.e
        view = self.layout.views[node]
        zero = e.constant(0.0, view.kind)
        self._fill(node, view, zero)
        x = node.inputs[0]
        index: list[Affine] = [ZERO] * x.type.rank
        source = self._view_of(x)
        order = sorted((a for a, n in enumerate(x.shape) if n > 1), key=lambda a: -source.strides[a])

        def nest(k: int) -> None:
            if k < len(order):
                a = order[k]

                def body(i: Affine) -> None:
                    index[a] = i
                    nest(k + 1)

                self.loop(x.shape[a], body)
                return
            place = e.convert(self.value(node.inputs[1], access.scatter_place(node, tuple(index))), "i64")
            target = access.scattered(node, tuple(index), None)
            axis = next(a for a, i in enumerate(target) if i is None)
            place = self._within(place, node.inputs[1], node.shape[axis])
            address = view.address(tuple(ZERO if i is None else i for i in target))
            pointer = e.pointer(self.base(view), view.kind, address)
            scaled = place * view.strides[axis]
            at = e.let(f"getelementptr inbounds {_llvm(view.kind)}, ptr {pointer}, i64 {scaled.text}")
            old = Value(e, view.kind, 1, e.let(f"load {_llvm(view.kind)}, ptr {at}, align {_bytes(view.kind)}"))
            new = old + self.value(x, tuple(index))
            e.line(f"store {new.type} {new.text}, ptr {at}, align {_bytes(view.kind)}")

        nest(0)

    def _fill(self, node: Node, view: View, zero: Value) -> None:
        index: list[Affine] = [ZERO] * node.type.rank
        axes = [a for a, n in enumerate(node.shape) if n > 1]
        unit = [a for a in axes if view.strides[a] == 1]
        vector = unit[-1] if unit else None
        order = sorted((a for a in axes if a != vector), key=lambda a: -view.strides[a])

        def nest(k: int) -> None:
            if k < len(order):
                a = order[k]

                def body(i: Affine) -> None:
                    index[a] = i
                    nest(k + 1)

                self.loop(node.shape[a], body)
            elif vector is None:
                self.store(zero, view, tuple(index))
            else:
                self.along(
                    node.shape[vector],
                    lambda i: (index.__setitem__(vector, i), self.store(self.e.vector(zero), view, tuple(index))),
                )

        nest(0)


def _llvm(kind: str) -> str:
    return LLVM[kind]


def _bytes(kind: str) -> int:
    return BYTES[kind]
