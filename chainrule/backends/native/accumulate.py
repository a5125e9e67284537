"""Sums and extrema over extra indices: matrix products, convolutions, reductions, with what follows from them.

A block of results is kept in registers: rows along one result index times columns of vectors along another, or along a
summed index with a horizontal sum at the end. Every operand of a block is loaded once per term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from chainrule.backends.native import access
from chainrule.backends.native.access import ZERO, Index, sizes
from chainrule.backends.native.blocks import LONG, MANY_TOTALS, Blocks
from chainrule.backends.native.layout import vector_axis
from chainrule.backends.native.memory import View
from chainrule.backends.native.plan import Kernel, Root
from chainrule.backends.native.values import Affine, LoopVar, Scope, Value
from chainrule.ir import Node

_WORTH = 0.7  # share of a sum's turns that count, from which on loops of fixed length are as fast


class Accumulating(Blocks):
    """A writer that knows blocks of accumulators."""

    def accumulate(self, kernel: Kernel) -> None:
        """Writes a kernel whose core is an accumulation."""
        core = kernel.core
        assert core is not None
        found = access.accumulation(core)
        assert found is not None
        choice = vector_axis(core, self.plan, self.layout) if self.e.replicas == 1 else None
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
        limits: Mapping[int, tuple[Affine, Affine]] | None = None,
        unroll: bool = True,
    ) -> list[Value]:
        """Loops over the summed indices (but ``skip``), the accumulators carried from turn to turn.

        ``limits``: index -> first and end of what of it counts; at least one turn is in there. ``unroll``: whether a
        few turns are written one after the other.
        """
        sizes, limits = found.sizes, limits or {}
        more: list[Affine] = [ZERO] * len(sizes)
        axes = [a for a, n in enumerate(sizes) if n > 1 and a != skip]

        def nest(k: int, accs: list[Value]) -> list[Value]:
            if k == len(axes):
                return term(accs, tuple(more))
            a = axes[k]
            few = unroll and sizes[a] <= 5 and len(accs) * sizes[a] <= 80
            if k == len(axes) - 1 and few and a not in limits:
                for i in range(sizes[a]):
                    more[a] = Affine((), i)
                    accs = nest(k + 1, accs)
                return accs

            def turn(var: LoopVar, carried: list[Value]) -> list[Value]:
                self.e.scopes[-1].values = {}
                more[a] = Affine(((var, 1),))
                return nest(k + 1, carried)

            if a in limits:
                e = self.e
                first, end = (e.index(i) for i in limits[a])
                first, end = e.where(first < 0, 0, first), e.where(end > sizes[a], sizes[a], end)
                return e.loop(end.text, turn, accs, start=first.text)
            return self.e.loop(sizes[a], turn, accs)

        return nest(0, accs)

    def _limits(
        self, core: Node, found: access.Accumulation, where: Sequence[Index]
    ) -> dict[int, tuple[Affine, Affine]]:
        """Summed index -> (first, end) of the turns in which a padded operand is read inside of its padding.

        Nothing where that saves little, or where the results of a block disagree.
        """
        marks = [LoopVar(f"r{a}", a) for a in range(len(found.sizes))]
        more = tuple(Affine(((v, 1),)) for v in marks)
        out: dict[int, tuple[Affine, Affine]] = {}
        share = 1.0
        for number, x in enumerate(core.inputs):
            if x.op.native != "pad" or any(x.params["interior"]):
                continue
            reads = [found.read(index, more)[number] for index in where]
            for axis, (i, low, n) in enumerate(zip(reads[0], x.params["low"], sizes(x.inputs[0]), strict=True)):
                own = [(marks.index(v), c) for v, c in i.terms if v in marks]
                if n == sizes(x)[axis] or len(own) != 1 or own[0][1] != 1 or any(r[axis] != i for r in reads):
                    continue
                a = own[0][0]
                place = Affine(tuple((v, c) for v, c in i.terms if v not in marks), i.const, i.lane)
                if a in out or place.lane or len(place.terms) != 1 or place.terms[0][1] < 0:
                    continue
                # A window of the size of the summed index at every place: how many of its turns count.
                step, size = place.terms[0][1], found.sizes[a]
                places = range(place.const, sizes(x)[axis] - size + 1, step)
                turns = [min(size, low + n - p) - max(0, low - p) for p in places]
                if min(turns) < 1:
                    continue
                out[a] = place * -1 + low, place * -1 + (low + n)
                share *= sum(turns) / (size * len(turns))
        return out if share < _WORTH else {}

    def _keep_lanes(self, kernel: Kernel, found: access.Accumulation, vector: int | None) -> None:
        """The vector index is one of the result's: accumulators are rows x columns of vectors."""
        e, core = self.e, kernel.core
        assert core is not None
        lanes = e.lanes
        shape = sizes(core)
        target = self.destination(kernel.roots[0])
        index: list[Affine] = [ZERO] * len(shape)
        rest = [a for a, n in enumerate(shape) if n > 1 and a != vector]
        rest.sort(key=lambda a: -target.strides[a])
        row_axis = self._row_axis(core, found, vector, rest)
        outer = [a for a in rest if a != row_axis]
        first_row, rows_total = self.span(row_axis, 1 if row_axis is None else shape[row_axis])
        first_column, size = self.span(vector, 1 if vector is None else shape[vector])
        vectors = 1 if vector is None else -(-size // lanes)
        long_term = self.length(core.inputs) >= LONG  # is written once, and makes a block by itself
        rows, columns = self.shape_of_block(rows_total, vectors, len(core.inputs), math.prod(found.sizes))
        if long_term:
            rows = columns = 1
        long = self.length([root.node for root in kernel.roots], core) >= LONG

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

            limits = self._limits(core, found, [at for at, _ in where])
            start = [self._start(core, found, width)] * len(where)
            accs = self._sum(found, start, term, limits=limits, unroll=not long_term)
            if long and len(accs) > 2:
                self.follow(kernel, accs, index, (row_axis, m, mr), (vector, v, nr, tail))
                return
            for acc, (at, valid) in zip(accs, where, strict=True):
                with self.counting(valid):
                    self.remember(core, at, acc)
                    self.roots(kernel.roots, at)

        def all_rows(v: Affine, nr: int, tail: int) -> None:
            full = rows_total // rows * rows
            self.loop(full, lambda m: block(first_row + m, rows, v, nr, tail), step=rows)
            if full < rows_total:
                self.loop(1, lambda _: block(first_row + full, rows_total - full, v, nr, tail))

        def all_columns() -> None:
            if vector is None:
                all_rows(ZERO, 1, 0)
                return
            tail = size % lanes
            whole = size // lanes // columns * columns
            self.loop(whole * lanes, lambda v: all_rows(first_column + v, columns, 0), step=columns * lanes)
            left = vectors - whole
            if left:
                self.loop(1, lambda _: all_rows(first_column + whole * lanes, left, tail))

        self.nest(outer, shape, index, all_columns)

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
            return (min(shared, 1), sizes(core)[a])

        return max(rest, key=score)

    def _reduce_lanes(self, kernel: Kernel, found: access.Accumulation, vector: int) -> None:
        """The vector index is summed over: accumulators hold partial sums that are added at the end."""
        e, core = self.e, kernel.core
        assert core is not None
        lanes = e.lanes
        shape = sizes(core)
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
        first_row, rows_total = self.span(first, 1 if first is None else shape[first])
        first_column, columns_total = self.span(second, 1 if second is None else shape[second])
        rows, columns = self.shape_of_block(rows_total, columns_total, 2)
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
            if len(accs) >= MANY_TOTALS:
                self.totals(core, found, roots, accs, index, (first, m, mr), (second, n, nr))
                return
            for acc, at in zip(accs, where, strict=True):
                self.remember(core, at, e.total(acc, found.combine))
                self.roots(roots, at)

        def inside() -> None:
            def all_columns(m: Affine, mr: int) -> None:
                full = columns_total // columns * columns
                self.loop(full, lambda n: block(m, mr, first_column + n, columns), step=columns)
                if full < columns_total:
                    self.loop(1, lambda _: block(m, mr, first_column + full, columns_total - full))

            full = rows_total // rows * rows
            self.loop(full, lambda m: all_columns(first_row + m, rows), step=rows)
            if full < rows_total:
                self.loop(1, lambda _: all_columns(first_row + full, rows_total - full))

        self.nest(outer, shape, index, inside)
        if later:
            scope = Scope()
            scope.values = {}
            e.scopes[-1].body.append(scope)
            e.scopes.append(scope)
            before = self.ground
            self.ground = len(e.scopes) - 1
            held = core in self.plan.stored
            self.plan.stored.add(core)
            self.map(later)
            if not held:
                self.plan.stored.discard(core)
            self.ground = before
            e.scopes.pop()

    def _scratch(self, core: Node, like: Root) -> None:
        """Room for the sums where only what follows from them is stored."""
        if core in self.layout.views:
            return
        view = self.destination(like)
        count = 1 + sum((n - 1) * s for n, s in zip(sizes(core), view.strides, strict=True)) + self.e.lanes
        start = self.layout.arena.take(count, self.kind(core))
        self.layout.views[core] = View(start, self.kind(core), 0, view.strides, view.innermost, view.room)

    def _pair(self, core: Node, found: access.Accumulation, axes: Sequence[int]) -> tuple[int | None, int | None]:
        """Two result indices of which each operand has one: their block shares loads both ways."""
        marks = [LoopVar(f"o{a}", a) for a in range(core.type.rank)]
        reads = found.read(tuple(Affine(((v, 1),)) for v in marks), tuple(ZERO for _ in found.sizes))
        depends = [{v for i in at for v, _ in i.terms} for at in reads]
        if len(depends) < 2:
            return (max(axes, key=lambda a: sizes(core)[a]), None) if axes else (None, None)
        only_first = [a for a in axes if marks[a] in depends[0] and marks[a] not in depends[1]]
        only_second = [a for a in axes if marks[a] in depends[1] and marks[a] not in depends[0]]
        pick = lambda found_axes: max(found_axes, key=lambda a: sizes(core)[a]) if found_axes else None  # noqa: E731
        return pick(only_first), pick(only_second)
