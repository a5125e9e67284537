"""Transposed copies of weights, for products that read them the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from chainrule.backends.native.access import ZERO, Index, sizes
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.memory import Layout, View
from chainrule.backends.native.prepare import StepGraph
from chainrule.backends.native.values import Affine, Scope, Value
from chainrule.backends.native.write import Writer
from chainrule.ir import Node


def wanted(layout: Layout, graph: StepGraph, external: bool) -> Iterator[tuple[Node, View]]:
    """(weight, its copy): of those that a step has changed, or, of torch's own memory, of all before a step."""
    for leaf, copies in layout.copies.items():
        if layout.views[leaf].external == external and (external or leaf in graph.updates):
            yield from ((leaf, view) for view in copies.values())


def copy_weight(w: Writer, leaf: Node, to: View) -> None:
    """One weight in another order: square blocks are transposed in registers."""
    e = w.e
    source = w.layout.views[leaf]
    scope = Scope()
    e.scopes[-1].body.append(scope)
    e.scopes.append(scope)
    w.ground = len(e.scopes) - 1
    n = e.lanes
    assert source.innermost is not None and to.innermost is not None
    fast, slow = source.innermost, to.innermost
    index: list[Affine] = [ZERO] * leaf.type.rank
    others = [a for a, size in enumerate(sizes(leaf)) if size > 1 and a not in (fast, slow)]

    def squares() -> None:
        first, rows = w.span(slow, sizes(leaf)[slow])
        columns = sizes(leaf)[fast]
        whole_rows = rows // n * n

        def square(i: Affine, j: Affine) -> None:
            at = list(index)
            loaded = []
            for k in range(n):
                at[slow], at[fast] = i + k, replace(j, lane=1)
                loaded.append(e.load(w.base(source), source.kind, source.address(tuple(at)), source.external))
            for k, value in enumerate(transposed(e, loaded)):
                if k < e.valid:
                    at[slow], at[fast] = replace(i, lane=1), j + k
                    e.store(value, w.base(to), to.address(tuple(at)), padded=True) if e.valid == n else _full_store(
                        e, value, w, to, tuple(at)
                    )

        def all_columns(i: Affine) -> None:
            w.loop(columns // n * n, lambda j: square(i, j), step=n)
            if columns % n:
                with w.counting(columns % n):
                    w.loop(1, lambda _: square(i, Affine((), columns // n * n)))

        w.loop(whole_rows, lambda i: all_columns(first + i), step=n)
        for r in range(whole_rows, rows):  # the last rows one by one

            def column(j: Affine, r: int = r) -> None:
                at = list(index)
                at[slow], at[fast] = first + r, j
                value = e.load(w.base(source), source.kind, source.address(tuple(at)))
                e.store(value, w.base(to), to.address(tuple(at)))

            w.loop(columns, column)

    w.nest(others, sizes(leaf), index, squares)
    e.scopes.pop()


def _full_store(e: Emitter, value: Value, w: Writer, to: View, index: Index) -> None:
    before, e.valid = e.valid, e.lanes
    try:
        e.store(value, w.base(to), to.address(index))
    finally:
        e.valid = before


def transposed(e: Emitter, rows: Sequence[Value]) -> list[Value]:
    """A square of vectors transposed by log2(n) rounds of shuffles."""
    n = len(rows)
    out = list(rows)
    width = 1
    while width < n:
        new: list[Value] = [out[0]] * n
        for i in range(n):
            if i & width:
                continue
            a, b = out[i], out[i + width]
            low = [(k if not k & width else n + k - width) for k in range(n)]
            high = [(k + width if not k & width else n + k) for k in range(n)]
            new[i], new[i + width] = _shuffled(e, a, b, low), _shuffled(e, a, b, high)
        out = new
        width *= 2
    return out


def _shuffled(e: Emitter, a: Value, b: Value, picks: Sequence[int]) -> Value:
    mask = ", ".join(f"i32 {p}" for p in picks)
    return Value(
        e, a.kind, a.lanes, e.let(f"shufflevector {a.type} {a.text}, {b.type} {b.text}, <{a.lanes} x i32> <{mask}>")
    )
