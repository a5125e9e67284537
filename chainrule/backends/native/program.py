"""A step graph as one function: a loop over steps that gathers a batch, runs the kernels and refreshes copies.

``Program`` holds the machine code and says where in the arena everything is. The same program serves every model of
the same architecture: it holds no tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from chainrule.backends.native import jit
from chainrule.backends.native.access import ZERO, Index
from chainrule.backends.native.forms import KINDS
from chainrule.backends.native.layout import Arena, Layout, View, choose
from chainrule.backends.native.prepare import StepGraph, weight
from chainrule.backends.native.schedule import Kernel, schedule
from chainrule.backends.native.values import BYTES, LLVM, Affine, Emitter, LoopVar, Scope, Value
from chainrule.backends.native.write import KernelWriter
from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node, TensorType, digest, toposort, variable

STEP_COUNTER = variable("random_step", TensorType((), "int64"))
_NUMPY = {"f32": np.float32, "f64": np.float64, "i64": np.int64, "i32": np.int32, "i8": np.int8, "i1": np.int8}


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled step.

    Attributes:
        graph: what it computes. layout: where. code: ``run(arguments)``, the address of eight numbers: arena, data,
            order, steps, rates, losses, tensors (see :func:`emit`).
        batch: leaves of the batch in order. rates: leaves of the learning rates.
        draws: whether it needs a counter for random numbers. cached: whether it came from the cache.
        engine: what owns the machine code. key: of its entry in the cache.
    """

    graph: StepGraph
    layout: Layout
    code: Any
    batch: tuple[Node, ...]
    rates: tuple[Node, ...]
    draws: bool
    cached: bool
    engine: Any
    key: str

    def array(self, arena: np.ndarray, leaf: Node, view: View | None = None) -> np.ndarray:
        """The memory of a stored node, in its logical shape."""
        view = view or self.layout.views[leaf]
        kind = _NUMPY[view.kind]
        flat = arena[view.start :].view(np.uint8)
        room = (len(flat) // BYTES[view.kind]) * BYTES[view.kind]
        typed = flat[:room].view(kind)[view.offset :]
        strides = tuple(s * BYTES[view.kind] for s in view.strides)
        return np.lib.stride_tricks.as_strided(typed, leaf.shape, strides)


def lanes_of(graph: StepGraph, target: jit.Target) -> int:
    """Elements per vector: of the widest float among tensors."""
    kinds = {n.type.dtype for n in graph.order if hasattr(n.type, "dtype") and n.type.is_float and n.shape != ()}
    kinds = kinds or {n.type.dtype for n in graph.results}
    for dtype in kinds:
        if dtype not in KINDS:
            raise UnsupportedOpError(f"tensors of dtype {dtype} in native code", instead='backend="torch"')
    return target.bytes // (8 if "float64" in kinds else 4)


def build(
    graph: StepGraph,
    batch: Sequence[Node],
    rates: Sequence[Node],
    fixed: Layout | None = None,
    external: Sequence[Node] = (),
    target: jit.Target | None = None,
) -> Program:
    """The program of a step graph, from the cache where it is there.

    Args:
        batch: leaves that are gathered for every step, samples first. rates: learning rate leaves.
        fixed: the layout of the same step for another batch size, whose leaves and arena it shares.
        external: nodes whose memory is torch's, in the order of their addresses at a call.
    Raises:
        UnsupportedOpError: a dtype or op without a native form.
    """
    target = target or jit.host()
    key = _key(graph, batch, rates, fixed, external, target)
    entry = jit.read(key)
    if entry is None:
        text, layout, used, draws = emit(graph, batch, rates, fixed, external, target)
        code, cached = jit.compiled(text, target), False
        jit.write(key, _described(graph, layout, used, draws), code)
    else:
        description, code = entry
        layout, used, draws = _restored(graph, description, fixed)
        cached = True
    engine = jit.loaded(code, target)
    return Program(graph, layout, jit.function(engine, "call", 1), used, tuple(rates), draws, cached, engine, key)


def _key(
    graph: StepGraph,
    batch: Sequence[Node],
    rates: Sequence[Node],
    fixed: Layout | None,
    external: Sequence[Node],
    target: jit.Target,
) -> str:
    state = hashlib.blake2b(digest_size=20)
    updates = [digest(n) for pair in graph.updates.items() for n in pair]
    for part in (
        jit.version().encode(),
        repr(target).encode(),
        *(digest(n) for n in graph.results),
        *updates,
        b"/",
        *(digest(n) for n in [*batch, *rates, *graph.parameters]),
        b"/",
        *(digest(n) for n in external),
    ):
        state.update(part + b"\0")
    if fixed is not None:
        state.update(repr((fixed.arena.size, sorted(fixed.views.values(), key=repr))).encode())
    return state.hexdigest()


def _numbered(graph: StepGraph) -> dict[Node, int]:
    return {node: k for k, node in enumerate(toposort([*graph.roots, *graph.updates]))}


def _described(graph: StepGraph, layout: Layout, batch: Sequence[Node], draws: bool) -> dict[str, Any]:
    """What the object code does not say: where leaves and results are."""
    number = _numbered(graph)
    wanted = {n for n in number if n.is_leaf} | set(graph.results)
    return {
        "lanes": layout.lanes,
        "size": layout.arena.size,
        "views": {number[n]: astuple(v) for n, v in layout.views.items() if n in wanted},
        "copies": {number[n]: {a: astuple(v) for a, v in c.items()} for n, c in layout.copies.items()},
        "batch": [number[n] for n in batch],
        "counter": astuple(layout.views[STEP_COUNTER]) if draws else None,
    }


def _restored(
    graph: StepGraph, description: dict[str, Any], fixed: Layout | None
) -> tuple[Layout, tuple[Node, ...], bool]:
    nodes = list(_numbered(graph))

    def view(held: list[Any]) -> View:
        start, kind, offset, strides, innermost, room = held
        return View(start, kind, offset, tuple(strides), innermost, room)

    layout = Layout(description["lanes"], fixed.arena if fixed is not None else Arena())
    layout.arena.size = description["size"]
    layout.views = {nodes[int(k)]: view(v) for k, v in description["views"].items()}
    layout.copies = {nodes[int(k)]: {int(a): view(v) for a, v in c.items()} for k, c in description["copies"].items()}
    draws = description["counter"] is not None
    if draws:
        layout.views[STEP_COUNTER] = view(description["counter"])
    return layout, tuple(nodes[k] for k in description["batch"]), draws


def emit(
    graph: StepGraph,
    batch: Sequence[Node],
    rates: Sequence[Node],
    fixed: Layout | None,
    external: Sequence[Node],
    target: jit.Target,
    only: Callable[[Kernel], bool] | None = None,
) -> tuple[str, Layout, tuple[Node, ...], bool]:
    """(LLVM text, layout, leaves of the batch that are read, whether it draws random numbers) of a step.

    The function ``run`` takes the arena, the addresses of the data, the sample numbers, how many steps, the learning
    rates (float64, one row per step), where the losses go (float64; in their own dtype where there are external
    tensors), and the addresses of external tensors; ``call`` takes the address of these seven.

    Args:
        only: which kernels are written: to measure them one by one.
    """
    lanes = lanes_of(graph, target)
    plan = schedule(graph.results, graph.updates, weight)
    order = graph.order
    batch = [b for b in batch if b in plan.stored]
    layout = choose(plan, order, lanes, batch, graph.parameters, graph.results, fixed, external)
    draws = any(n.op.native == "draw" for n in order)
    if draws and STEP_COUNTER not in layout.views:
        layout.views[STEP_COUNTER] = layout.dense((), "i64", (), False)
    for leaf in rates:
        if leaf not in layout.views:
            layout.views[leaf] = layout.dense((), "f64", (), False)
    e = Emitter(lanes)

    def body() -> None:
        sources = []
        for k in range(len(batch)):
            slot = e.let(f"getelementptr inbounds ptr, ptr %data, i64 {k}")
            sources.append(e.let(f"load ptr, ptr {slot}, align 8"))

        def step(s: LoopVar, _: list[Value]) -> list[Value]:
            writer = KernelWriter(e, plan, layout, "%arena", target.registers)
            writer.draw = _drawing(writer)
            for k, leaf in enumerate(batch):
                size = leaf.shape[0]
                position = e.let(f"mul nuw nsw i64 {s.ssa}, {size}")
                _gather(writer, leaf, sources[k], position)
            for g, leaf in enumerate(rates):
                if leaf in plan.stored:
                    at = e.let(f"mul nuw nsw i64 {s.ssa}, {len(rates)}")
                    at = e.let(f"add nuw nsw i64 {at}, {g}")
                    slot = e.let(f"getelementptr inbounds double, ptr %rates, i64 {at}")
                    rate = Value(e, "f64", 1, e.let(f"load double, ptr {slot}, align 8"))
                    writer.ground = len(e.scopes) - 1
                    writer.store(rate, layout.views[leaf], ())
            _copy_weights(writer, graph, external=True)
            for kernel in plan.kernels:
                if only is None or only(kernel):
                    writer.kernel(kernel)
            if only is None:
                _copy_weights(writer, graph, external=False)
            writer.ground = len(e.scopes) - 1
            e.scopes[-1].values = {}
            if graph.loss is not None:
                view = layout.views[graph.loss]
                kind = view.kind if external else "f64"
                loss = e.convert(e.load(writer.base(view), view.kind, view.address(())), kind)
                slot = e.let(f"getelementptr inbounds {LLVM[kind]}, ptr %losses, i64 {s.ssa}")
                e.line(f"store {LLVM[kind]} {loss.text}, ptr {slot}, align {BYTES[kind]}")
            if draws:
                view = layout.views[STEP_COUNTER]
                count = e.load(writer.base(view), "i64", view.address(()))
                e.store(count + 1, writer.base(view), view.address(()))
            return []

        e.loop("%steps", step)

    pointers = ("arena", "data", "order", "steps", "rates", "losses", "tensors")
    e.function("run", ", ".join(_ARGUMENTS[n] for n in pointers), body)

    def call() -> None:
        given = []
        for k, name in enumerate(pointers):
            kind = _ARGUMENTS[name].split()[0]
            slot = e.let(f"getelementptr inbounds i64, ptr %arguments, i64 {k}")
            given.append(f"{kind} {e.let(f'load {kind}, ptr {slot}, align 8')}")
        e.line(f"call void @run({', '.join(given)})")

    e.function("call", "ptr %arguments", call)
    return e.module(), layout, tuple(batch), draws


_ARGUMENTS = {
    "arena": "ptr noalias %arena",
    "data": "ptr noalias %data",
    "order": "ptr noalias %order",
    "steps": "i64 %steps",
    "rates": "ptr noalias %rates",
    "losses": "ptr noalias %losses",
    "tensors": "ptr noalias %tensors",
}


# ---- the batch ---------------------------------------------------------------------------------------------
def _gather(w: KernelWriter, leaf: Node, source: str, position: str) -> None:
    """Copies the samples of this step into the arena."""
    e, view = w.e, w.layout.views[leaf]
    scope = Scope()
    e.scopes[-1].body.append(scope)
    e.scopes.append(scope)
    w.ground = len(e.scopes) - 1
    sample = leaf.shape[1:]
    count = math.prod(sample)
    size = BYTES[view.kind]
    dense = [math.prod(sample[k + 1 :]) for k in range(len(sample))]

    def row(b: Affine) -> str:
        """Where sample number ``b`` of this step begins."""
        at = e.index(b)
        at = e.let(f"add nuw nsw i64 {position}, {at.text}")
        slot = e.let(f"getelementptr inbounds i64, ptr %order, i64 {at}")
        number = e.let(f"load i64, ptr {slot}, align 8")
        offset = e.let(f"mul nsw i64 {number}, {count}")
        return e.let(f"getelementptr inbounds {LLVM[view.kind]}, ptr {source}, i64 {offset}")

    if view.strides and view.strides[0] == 1 and leaf.shape[0] > 1 and count > 1:
        _gather_lanes(w, leaf, view, row, dense)
    else:
        # The longest run of elements that lie one after the other in both.
        run, axis = 1, len(sample)
        while axis and view.strides[axis] == run:
            axis -= 1
            run *= sample[axis]

        def copy(b: Affine) -> None:
            begin = row(b)
            index: list[Affine] = [b, *[ZERO] * len(sample)]

            def nest(k: int) -> None:
                if k < axis:

                    def inner(i: Affine) -> None:
                        index[1 + k] = i
                        nest(k + 1)

                    w.loop(sample[k], inner)
                    return
                to = e.pointer(w.base(view), view.kind, view.address(tuple(index)))
                at = ZERO
                for k2 in range(axis):
                    at = at + index[1 + k2] * dense[k2]
                start = e.let(f"getelementptr inbounds {LLVM[view.kind]}, ptr {begin}, i64 {e.index(at).text}")
                if run * size <= 16 * 32:
                    _copy_run(e, to, start, view.kind, run)
                else:
                    target = e.intrinsic("llvm.memcpy.p0.p0.i64", "void", ["ptr", "ptr", "i64", "i1"])
                    given = f"ptr align {size} {to}, ptr align {size} {start}, i64 {run * size}, i1 false"
                    e.line(f"call void {target}({given})")

            nest(0)

        w.loop(leaf.shape[0], copy)
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


def _gather_lanes(w: KernelWriter, leaf: Node, view: View, row: Callable[[Affine], str], dense: Sequence[int]) -> None:
    """Samples side by side in the lanes: one load per element, one store per vector."""
    e = w.e
    sample = leaf.shape[1:]

    def block(b: Affine) -> None:
        rows = [row(replace(b, lane=0) + k) for k in range(e.valid)]
        index: list[Affine] = [b, *[ZERO] * len(sample)]

        def nest(k: int) -> None:
            if k < len(sample):

                def inner(i: Affine) -> None:
                    index[1 + k] = i
                    nest(k + 1)

                w.loop(sample[k], inner)
                return
            at = ZERO
            for i, s in zip(index[1:], dense, strict=True):
                at = at + i * s
            where = e.index(at)
            parts = []
            for begin in rows:
                slot = e.let(f"getelementptr inbounds {LLVM[view.kind]}, ptr {begin}, i64 {where.text}")
                parts.append(
                    Value(e, view.kind, 1, e.let(f"load {LLVM[view.kind]}, ptr {slot}, align {BYTES[view.kind]}"))
                )
            w.store(e.gathered(parts), view, tuple(index))

        nest(0)

    w.along(leaf.shape[0], block)


# ---- transposed copies of weights --------------------------------------------------------------------------
def _copy_weights(w: KernelWriter, graph: StepGraph, external: bool) -> None:
    """Copies of weights: of those that a step has changed, or, of torch's own memory, of all before a step."""
    for leaf, copies in w.layout.copies.items():
        if w.layout.views[leaf].external != external or (not external and leaf not in graph.updates):
            continue
        for view in copies.values():
            copy_weight(w, leaf, view)


def copy_weight(w: KernelWriter, leaf: Node, to: View) -> None:
    """One weight in another order: square blocks are transposed in registers."""
    e = w.e
    source = w.layout.views[leaf]
    scope = Scope()
    e.scopes[-1].body.append(scope)
    e.scopes.append(scope)
    w.ground = len(e.scopes) - 1
    n = e.lanes
    fast, slow = source.innermost, to.innermost
    index: list[Affine] = [ZERO] * leaf.type.rank
    others = [a for a, size in enumerate(leaf.shape) if size > 1 and a not in (fast, slow)]

    def squares() -> None:
        rows, columns = leaf.shape[slow], leaf.shape[fast]
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

        w.loop(whole_rows, all_columns, step=n)
        for r in range(whole_rows, rows):  # the last rows one by one

            def column(j: Affine, r: int = r) -> None:
                at = list(index)
                at[slow], at[fast] = Affine((), r), j
                value = e.load(w.base(source), source.kind, source.address(tuple(at)))
                e.store(value, w.base(to), to.address(tuple(at)))

            w.loop(columns, column)

    def nest(k: int) -> None:
        if k == len(others):
            squares()
            return

        def body(i: Affine) -> None:
            index[others[k]] = i
            nest(k + 1)

        w.loop(leaf.shape[others[k]], body)

    nest(0)
    e.scopes.pop()


def _full_store(e: Emitter, value: Value, w: KernelWriter, to: View, index: Index) -> None:
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


# ---- random draws ------------------------------------------------------------------------------------------
def _drawing(w: KernelWriter) -> Callable[[Node, Index], Value]:
    """Bernoulli draws from a counter: a hash of step, stream and element number. Not torch's bits."""

    def draw(node: Node, index: Index) -> Value:
        e = w.e
        if node.params["method"] != "bernoulli_":
            raise UnsupportedOpError(f"random draw {node.params['method']} in native code", instead='backend="torch"')
        (keep,) = node.params["args"]
        number, stride = ZERO, 1
        for a in reversed(range(len(index))):
            number, stride = number + index[a] * stride, stride * node.shape[a]
        x = e.convert(e.index(number), "i32")
        step = e.convert(w.value(STEP_COUNTER, ()), "i32")
        salt = (node.params["stream"] * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF
        x = x * _signed(0x85EBCA77) + (step * _signed(0xC2B2AE3D) + _signed(salt))
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0x9E3779B1), (15, 0x85EBCA6B), (16, 1)):
            x = e.logic("xor", x, e.shift("lshr", x, shift))
            if factor != 1:
                x = x * _signed(factor)
        # The upper 24 bits as a number in [0, 2^24).
        uniform = e.shift("lshr", x, 8)
        kept = e.compare("lt", uniform, round(float(keep) * 2**24))
        return e.convert(kept, w.kind(node))

    return draw


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number
