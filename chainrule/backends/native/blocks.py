"""Blocks of accumulators: their shape, and what follows from them where that is too long to be written for each.

``accumulate`` fills them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from chainrule.backends.native import access
from chainrule.backends.native.access import sizes
from chainrule.backends.native.plan import Kernel, Root
from chainrule.backends.native.prepare import weight
from chainrule.backends.native.values import BYTES, Affine, Value
from chainrule.backends.native.write import Writer
from chainrule.ir import Node

_PANEL = 16 * 1024  # bytes: half of the first cache
_BUDGET = 16  # accumulators of a block
LARGEST = 32  # of one whose shape is given
LONG = 10  # instructions after a sum, from which on they are written once, in a loop over the block
MANY_TOTALS = 8  # sums over lanes, from which on they are a loop
_AS_FAST = 1.02  # a block that takes this much longer, and leaves fewer others, is less code


class Blocks(Writer):
    """A writer that knows blocks of values in registers."""

    def shape_of_block(self, rows: int, vectors: int, operands: int, terms: int = 0) -> tuple[int, int]:
        """The block with the least estimated time: multiply-adds, loads, latency and turns that do less.

        A block streams ``terms`` x ``columns`` vectors; where they do not fit into half of the first cache, each load
        of one takes longer.
        """
        if self.block is not None:
            return min(rows, self.block[0]), min(vectors, self.block[1])
        budget = 10 if self.registers <= 16 else _BUDGET
        if operands == 1:
            budget = 4
        found: list[tuple[float, int, int, int]] = []
        for r in range(1, min(rows, 10) + 1):
            for c in range(1, min(vectors, 10) + 1):
                if r * c > budget:
                    continue
                load = 0.5 if terms * c * self.width <= _PANEL else 2.2
                time = 0.0
                for br, count_r in ((r, rows // r), (rows % r, 1 if rows % r else 0)):
                    for bc, count_c in ((c, vectors // c), (vectors % c, 1 if vectors % c else 0)):
                        time += count_r * count_c * max(br * bc / 2, br / 2 + bc * load, 5)
                kinds = ((rows >= r) + (rows % r > 0)) * ((vectors >= c) + (vectors % c > 0))
                found.append((time, kinds, r, c))
        least = min(found)[0]
        _, _, r, c = min((f for f in found if f[0] <= least * _AS_FAST), key=lambda f: (f[1], f[0]))
        return r, c

    def length(self, nodes: Sequence[Node], core: Node | None = None) -> int:
        """Instructions of expressions down to stored values (and to ``core``), those of single numbers left out."""
        total, seen = 0, {core}
        stack = [(node, True) for node in nodes]
        while stack:
            node, first = stack.pop()
            if node in seen or (node in self.plan.stored and not (first and core is not None)):
                continue
            seen.add(node)
            if access.is_elementwise(node) and math.prod(sizes(node)) > 1:
                total += weight(node)
            stack.extend((x, False) for x in node.inputs)
        return total

    def follow(
        self,
        kernel: Kernel,
        accs: Sequence[Value],
        index: Sequence[Affine],
        rows: tuple[int | None, Affine, int],
        columns: tuple[int | None, Affine, int, int],
    ) -> None:
        """What follows from a block of results as a loop over them: written once where it is long.

        Args:
            rows: (axis, first, how many). columns: (axis, first, how many vectors, lanes of the last; 0: all).
        """
        e, core = self.e, kernel.core
        assert core is not None
        (row_axis, m, mr), (vector, v, nr, tail) = rows, columns
        width = 1 if vector is None else e.lanes
        kind = accs[0].kind
        held = self.held_block()
        for k, acc in enumerate(accs):
            e.store(acc, held, Affine((), k * width, 1 if width > 1 else 0))

        def row(r: Affine) -> None:
            def column(c: Affine) -> None:
                at = list(index)
                if row_axis is not None:
                    at[row_axis] = m + r
                if vector is not None:
                    at[vector] = replace(v + c, lane=1)
                place = r * (nr * width) + c
                acc = e.load(held, kind, replace(place, lane=1 if width > 1 else 0))
                self.remember(core, tuple(at), acc)
                self.roots(kernel.roots, tuple(at))

            whole = nr - (tail > 0)
            self.loop(whole * width, column, step=width)
            if tail:
                with self.counting(tail):
                    self.loop(1, lambda _: column(Affine((), whole * width)))

        self.loop(mr, row)

    def totals(
        self,
        core: Node,
        found: access.Accumulation,
        roots: Sequence[Root],
        accs: Sequence[Value],
        index: Sequence[Affine],
        rows: tuple[int | None, Affine, int],
        columns: tuple[int | None, Affine, int],
    ) -> None:
        """The lanes of a block of partial sums added up, in a loop over them: (axis, first, how many) of both."""
        e = self.e
        held, lanes = self.held_block(), e.lanes
        for k, acc in enumerate(accs):
            e.store(acc, held, Affine((), k * lanes, 1))
        (first, m, mr), (second, n, nr) = rows, columns

        def row(r: Affine) -> None:
            def column(c: Affine) -> None:
                at = list(index)
                if first is not None:
                    at[first] = m + r
                if second is not None:
                    at[second] = n + c
                acc = e.load(held, accs[0].kind, replace((r * nr + c) * lanes, lane=1))
                self.remember(core, tuple(at), e.total(acc, found.combine))
                self.roots(roots, tuple(at))

            self.loop(nr, column)

        self.loop(mr, row)

    def held_block(self) -> str:
        """Stack memory for a block of accumulators, made once in a function."""
        if self.block_memory is None:
            self.block_memory = self.e.fresh()
            size = LARGEST * self.e.lanes * self.e.replicas * max(BYTES.values())
            self.e.scopes[0].head.append(f"  {self.block_memory} = alloca [{size} x i8], align 64")
        return self.block_memory
