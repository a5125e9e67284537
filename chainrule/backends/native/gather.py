"""The start of a step: the samples of the batch are copied into the arena, in the layout that was chosen for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from chainrule.backends.native.access import ZERO, sizes
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.memory import View
from chainrule.backends.native.values import BYTES, LLVM, Affine, Scope, Value, in_memory
from chainrule.backends.native.write import Writer
from chainrule.ir import Node


def gather(w: Writer, leaf: Node, source: str, position: str) -> None:
    """Copies the samples of this step into the arena.

    Args:
        position: of its first sample number in ``%order``, which has a column for each replica.
    """
    e, view = w.e, w.layout.views[leaf]
    scope = Scope()
    e.scopes[-1].body.append(scope)
    e.scopes.append(scope)
    w.ground = len(e.scopes) - 1
    sample = sizes(leaf)[1:]
    count = math.prod(sample)
    kind, size = in_memory(view.kind), BYTES[view.kind]
    dense = [math.prod(sample[k + 1 :]) for k in range(len(sample))]

    def row(b: Affine, replica: int = 0) -> str:
        """Where sample number ``b`` of this step begins."""
        at = e.let(f"add nuw nsw i64 {position}, {e.index(b).text}")
        if e.replicas > 1:
            at = e.let(f"mul nuw nsw i64 {at}, {e.replicas}")
            at = e.let(f"add nuw nsw i64 {at}, {replica}")
        slot = e.let(f"getelementptr inbounds i64, ptr %order, i64 {at}")
        number = e.let(f"load i64, ptr {slot}, align 8")
        offset = e.let(f"mul nsw i64 {number}, {count}")
        return e.let(f"getelementptr inbounds {LLVM[kind]}, ptr {source}, i64 {offset}")

    if e.replicas > 1:
        w.loop(sizes(leaf)[0], lambda b: _into_lanes(w, leaf, view, b, [row(b, k) for k in range(e.replicas)], dense))
    elif view.strides and view.strides[0] == 1 and sizes(leaf)[0] > 1 and count > 1:

        def block(b: Affine) -> None:
            _into_lanes(w, leaf, view, b, [row(replace(b, lane=0) + k) for k in range(e.valid)], dense)

        w.along(sizes(leaf)[0], block, 0)
    else:
        # The longest run of elements that lie one after the other in both.
        run, axis = 1, len(sample)
        while axis and view.strides[axis] == run:
            axis -= 1
            run *= sample[axis]

        def copy(b: Affine) -> None:
            begin = row(b)
            index: list[Affine] = [b, *[ZERO] * len(sample)]

            def inside() -> None:
                to = e.pointer(w.base(view), kind, view.address(tuple(index)))
                at = ZERO
                for k2 in range(axis):
                    at = at + index[1 + k2] * dense[k2]
                start = e.let(f"getelementptr inbounds {LLVM[kind]}, ptr {begin}, i64 {e.index(at).text}")
                if run * size <= 16 * 32:
                    _copy_run(e, to, start, kind, run)
                else:
                    target = e.intrinsic("llvm.memcpy.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
                    given = f"ptr align {size} {to}, ptr align {size} {start}, i64 {run * size}, i1 false"
                    e.line(f"call void {target}({given})")

            w.nest(range(1, 1 + axis), sizes(leaf), index, inside)

        first, samples = w.span(0, sizes(leaf)[0])
        w.loop(samples, lambda b: copy(first + b))
    e.scopes.pop()


def _copy_run(e: Emitter, to: str, start: str, kind: str, count: int) -> None:
    """Exactly ``count`` elements, by the widest loads that fit: nothing behind them is touched."""
    done = 0
    width = e.lanes
    while done < count:
        while width > count - done:
            width //= 2
        kind_text = LLVM[kind] if width == 1 else f"<{width} x {LLVM[kind]}>"
        source = e.let(f"getelementptr inbounds {LLVM[kind]}, ptr {start}, i64 {done}")
        value = e.let(f"load {kind_text}, ptr {source}, align {BYTES[kind]}")
        target = e.let(f"getelementptr inbounds {LLVM[kind]}, ptr {to}, i64 {done}")
        e.line(f"store {kind_text} {value}, ptr {target}, align {BYTES[kind]}")
        done += width


def _into_lanes(w: Writer, leaf: Node, view: View, b: Affine, rows: Sequence[str], dense: Sequence[int]) -> None:
    """The samples that begin at ``rows``, one per lane: one load per element, one store per vector."""
    e, kind = w.e, in_memory(view.kind)
    index: list[Affine] = [b, *[ZERO] * len(dense)]

    def inside() -> None:
        at = ZERO
        for i, s in zip(index[1:], dense, strict=True):
            at = at + i * s
        where = e.index(at)
        parts = []
        for begin in rows:
            slot = e.let(f"getelementptr inbounds {LLVM[kind]}, ptr {begin}, i64 {where.text}")
            parts.append(Value(e, kind, 1, e.let(f"load {LLVM[kind]}, ptr {slot}, align {BYTES[kind]}")))
        w.store(e.convert(e.gathered(parts), view.kind), view, tuple(index))

    w.nest(range(1, len(index)), sizes(leaf), index, inside)
