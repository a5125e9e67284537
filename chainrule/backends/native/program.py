"""A step graph as one function: a loop over steps that gathers a batch, runs the kernels and refreshes copies.

``Program`` holds the machine code and says where in the arena everything is. The same program serves every model of
the same architecture: it holds no tensors.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from chainrule.backends.native import copies, jit, meetings, replicated, sharing
from chainrule.backends.native.access import sizes
from chainrule.backends.native.draws import STEP_COUNTER, drawing
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.forms import KINDS
from chainrule.backends.native.gather import gather
from chainrule.backends.native.kernels import KernelWriter
from chainrule.backends.native.layout import choose
from chainrule.backends.native.memory import Arena, Layout, View
from chainrule.backends.native.plan import Kernel, Schedule
from chainrule.backends.native.prepare import StepGraph, weight
from chainrule.backends.native.schedule import schedule
from chainrule.backends.native.search import Search
from chainrule.backends.native.team import entrance
from chainrule.backends.native.tiers import Improving
from chainrule.backends.native.values import BYTES, LoopVar, Value
from chainrule.errors import BackendError, UnsupportedOpError
from chainrule.ir import Node, digest, toposort

_NUMPY = {"f32": np.float32, "f64": np.float64, "i64": np.int64, "i32": np.int32, "i8": np.int8, "i1": np.int8}


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled step.

    Attributes:
        graph: what it computes. layout: where. code: ``run(arguments)``, the address of seven numbers: arena, data,
            order, steps, rates, losses, tensors (see :func:`emit`).
        batch: leaves of the batch in order. rates: leaves of the learning rates.
        draws: whether it needs a counter for random numbers. cached: whether it came from the cache.
        engine: what owns the machine code. key: of its entry in the cache. threads: that run a step together.
        steady: whether always so many.
        improving: what runs ``code`` where it is quick code, to be replaced.
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
    threads: int = 1
    steady: bool = True
    improving: Improving | None = None

    def run(self, arguments: np.ndarray, size: int) -> None:
        """Runs steps of ``size`` samples with these seven numbers."""
        if self.improving is not None:
            self.improving.run(arguments, size, max(1, len(self.rates)))
        else:
            self.code(arguments.ctypes.data)

    def array(self, arena: np.ndarray, leaf: Node, view: View | None = None, replica: int = 0) -> np.ndarray:
        """The memory of a stored node, in its logical shape."""
        view = view or self.layout.views[leaf]
        kind = _NUMPY[view.kind]
        flat = arena[view.start :].view(np.uint8)
        room = (len(flat) // BYTES[view.kind]) * BYTES[view.kind]
        several = self.layout.arena.replicas
        typed = flat[:room].view(kind)[view.offset * several + replica :]
        strides = tuple(s * several * BYTES[view.kind] for s in view.strides)
        return np.lib.stride_tricks.as_strided(typed, sizes(leaf), strides)


def lanes_of(graph: StepGraph, target: jit.Target) -> int:
    """Elements per vector: of the widest float among tensors."""
    kinds = {n.type.dtype for n in graph.order if hasattr(n.type, "dtype") and n.type.is_float and sizes(n) != ()}
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
    longest: int | None = None,
    quick: bool = False,
    replicas: int = 1,
    threads: int = 1,
    steady: bool = True,
) -> Program:
    """The program of a step graph, from the cache where it is there.

    Args:
        batch: leaves that are gathered for every step, samples first. rates: learning rate leaves.
        fixed: the layout of the same step for another batch size, whose leaves and arena it shares.
        external: nodes whose memory is torch's, in the order of their addresses at a call.
        longest: characters of LLVM text that may be compiled; it takes about a second per million.
        replicas: trainings side by side, see ``emit``; never with ``quick``.
        threads: that run a step together; the numbers do not depend on it. steady: whatever else the machine does.
        quick: compiled in a hurry where it is not in the cache; ``Program.run`` then sees to better code.
    Raises:
        BackendError: the text is longer.
        UnsupportedOpError: a dtype or op without a native form.
    """
    if any(0 in sizes(node) for node in (*batch, *graph.order)):
        raise UnsupportedOpError("tensors without elements in native code", required="at least one sample")
    target = target or jit.host()
    key = _key(graph, batch, rates, fixed, external, target, replicas, threads)
    entry = jit.read(key)
    text: str | None = None
    if entry is None:
        text, layout, used, draws = emit(
            graph, batch, rates, fixed, external, target, replicas=replicas, threads=threads
        )
        if longest is not None and len(text) > longest:
            if threads > 1:  # shares that are not all alike are written twice
                return build(graph, batch, rates, fixed, external, target, longest, quick, replicas)
            raise BackendError(
                f"{len(text):,} characters of code take long to compile", required=f"at most {longest:,}"
            )
        description = _described(graph, layout, used, draws)
        code, cached = jit.compiled(text, target, quick), False
        packed = zlib.compress(text.encode(), 1) if quick else b""
        jit.write(key, description | {"text": len(packed)}, code + packed)
    else:
        description, code = entry
        packed = description.pop("text", 0)
        code, packed = code[: len(code) - packed], code[len(code) - packed :]
        layout, used, draws = _restored(graph, description, fixed, replicas)
        cached = True
        if packed:
            text = zlib.decompress(packed).decode()
            if not quick:
                code = jit.compiled(text, target)
                jit.write(key, description, code)
    engine = jit.loaded(code, target)
    run = entrance(engine, threads, steady)
    made = Program(graph, layout, run, used, tuple(rates), draws, cached, engine, key, threads, steady)
    if not quick:
        return made

    def write(**how: Any) -> tuple[str, Layout]:
        return emit(graph, batch, rates, None, (), target, **how)[:2]

    searched = fixed is not None or external or description.get("searched")
    search = None if searched else Search(lambda: plan_of(graph, batch, None, (), target), write, target)
    if text is None and search is None:
        return made
    return replace(made, improving=Improving(made, text, target, description, search))


def _key(
    graph: StepGraph,
    batch: Sequence[Node],
    rates: Sequence[Node],
    fixed: Layout | None,
    external: Sequence[Node],
    target: jit.Target,
    replicas: int,
    threads: int,
) -> str:
    state = hashlib.blake2b(digest_size=20)
    updates = [digest(n) for pair in graph.updates.items() for n in pair]
    for part in (
        jit.version().encode(),
        repr((target, replicas, threads)).encode(),
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
    graph: StepGraph, description: dict[str, Any], fixed: Layout | None, replicas: int = 1
) -> tuple[Layout, tuple[Node, ...], bool]:
    nodes = list(_numbered(graph))

    def view(held: list[Any]) -> View:
        start, kind, offset, strides, innermost, room = held
        return View(start, kind, offset, tuple(strides), innermost, room)

    layout = Layout(description["lanes"], fixed.arena if fixed is not None else Arena(replicas=replicas))
    layout.arena.size = description["size"]
    layout.views = {nodes[int(k)]: view(v) for k, v in description["views"].items()}
    layout.copies = {nodes[int(k)]: {int(a): view(v) for a, v in c.items()} for k, c in description["copies"].items()}
    draws = description["counter"] is not None
    if draws:
        layout.views[STEP_COUNTER] = view(description["counter"])
    return layout, tuple(nodes[k] for k in description["batch"]), draws


def plan_of(
    graph: StepGraph,
    batch: Sequence[Node],
    fixed: Layout | None,
    external: Sequence[Node],
    target: jit.Target,
    replicas: int = 1,
) -> tuple[Schedule, Layout]:
    """Which loops, and which memory."""
    plan = schedule(graph.results, graph.updates, weight)
    batch = [b for b in batch if b in plan.stored]
    lanes = lanes_of(graph, target) if replicas == 1 else 1
    return plan, choose(plan, graph.order, lanes, batch, graph.parameters, graph.results, fixed, external, replicas)


def emit(
    graph: StepGraph,
    batch: Sequence[Node],
    rates: Sequence[Node],
    fixed: Layout | None,
    external: Sequence[Node],
    target: jit.Target,
    only: Callable[[Kernel], bool] | None = None,
    blocks: Mapping[int, tuple[int, int]] | None = None,
    planned: tuple[Schedule, Layout] | None = None,
    replicas: int = 1,
    threads: int = 1,
) -> tuple[str, Layout, tuple[Node, ...], bool]:
    """(LLVM text, layout, leaves of the batch that are read, whether it draws random numbers) of a step.

    The function ``run`` takes the arena, the addresses of the data, the sample numbers, how many steps, the learning
    rates (float64, one row per step), where the losses go (float64; in their own dtype where there are external
    tensors), and the addresses of external tensors; ``call`` takes the address of these seven, and, where several
    threads share a step, what they meet at and how many they are (see ``sharing``), and which shares are the caller's:
    the first, and the end.

    Args:
        only: which kernels are written: to measure them one by one.
        blocks: position of a kernel -> (rows, columns) of its blocks, in place of those that are estimated to be best.
        planned: what :func:`plan_of` returned, where it was asked before.
        replicas: trainings side by side; sample numbers, rates and losses have a last dimension for them.
        threads: that a step is divided for; as many of them, or fewer, call ``call``.
    """
    plan, layout = planned or plan_of(graph, batch, fixed, external, target, replicas)
    order = graph.order
    batch = [b for b in batch if b in plan.stored]
    draws = any(n.op.native == "draw" for n in order)
    if draws and STEP_COUNTER not in layout.views:
        layout.views[STEP_COUNTER] = layout.dense((), "i64", (), False)
    for leaf in rates:
        if leaf not in layout.views:
            layout.views[leaf] = layout.dense((), "f64", (), False)
    if replicas > 1:
        replicated.refuse(order)
    e = Emitter(layout.lanes) if replicas == 1 else replicated.Replicated(replicas)

    def body() -> None:
        sources = []
        for k in range(len(batch)):
            slot = e.let(f"getelementptr inbounds ptr, ptr %data, i64 {k}")
            sources.append(e.let(f"load ptr, ptr {slot}, align 8"))

        def step(s: LoopVar, _: list[Value]) -> list[Value]:
            writer = KernelWriter(e, plan, layout, "%arena", target.registers)
            writer.draw = drawing(writer)
            crew = sharing.Solo() if threads == 1 else sharing.Crew(writer, threads, order, batch)

            def rate(g: int, leaf: Node) -> None:
                at = e.let(f"mul nuw nsw i64 {s.ssa}, {len(rates)}")
                at = e.let(f"add nuw nsw i64 {at}, {g}")
                slot = e.let(f"getelementptr inbounds {_several('double', replicas)}, ptr %rates, i64 {at}")
                text = e.let(f"load {_several('double', replicas)}, ptr {slot}, align 8")
                writer.ground = len(e.scopes) - 1
                writer.store(Value(e, "f64", replicas, text), layout.views[leaf], ())

            def loss(node: Node) -> None:
                writer.ground = len(e.scopes) - 1
                e.scopes[-1].values = {}
                view = layout.views[node]
                kind = view.kind if external else "f64"
                value = e.convert(e.load(writer.base(view), view.kind, view.address(())), kind)
                slot = e.let(f"getelementptr inbounds {value.type}, ptr %losses, i64 {s.ssa}")
                e.line(f"store {value.type} {value.text}, ptr {slot}, align {BYTES[kind]}")

            def count() -> None:
                view = layout.views[STEP_COUNTER]
                number = e.load(writer.base(view), "i64", view.address(()))
                e.store(number + 1, writer.base(view), view.address(()))

            def copied(external: bool) -> None:
                for leaf, view in copies.wanted(layout, graph, external):
                    crew.copy(leaf, view, partial(copies.copy_weight, writer, leaf, view))

            for k, leaf in enumerate(batch):
                position = e.let(f"mul nuw nsw i64 {s.ssa}, {sizes(leaf)[0]}")
                crew.gather(leaf, partial(gather, writer, leaf, sources[k], position))
            for g, leaf in enumerate(rates):
                if leaf in plan.stored:
                    crew.single(partial(rate, g, leaf), writes=[leaf])
            copied(external=True)
            for position, kernel in enumerate(plan.kernels):
                if only is None or only(kernel):
                    writer.block = (blocks or {}).get(position)
                    crew.kernel(kernel, partial(writer.kernel, kernel))
            if only is None:
                copied(external=False)
            if graph.loss is not None:
                crew.single(partial(loss, graph.loss), reads=[graph.loss])
            if draws:
                crew.single(count, writes=[STEP_COUNTER])
            crew.end()
            return []

        e.loop("%steps", step)

    pointers = ("arena", "data", "order", "steps", "rates", "losses", "tensors")
    # What one thread has to itself, LLVM may know.
    crew = ["ptr %team", "i64 %crew", "i64 %begin", "i64 %end"] if threads > 1 else []
    taken = [_ARGUMENTS[n] if not crew or n != "arena" else "ptr %arena" for n in pointers]
    e.function("run", ", ".join([*taken, *crew]), body)

    def call() -> None:
        given = []
        for k, name in enumerate(pointers):
            kind = _ARGUMENTS[name].split()[0]
            slot = e.let(f"getelementptr inbounds i64, ptr %arguments, i64 {k}")
            given.append(f"{kind} {e.let(f'load {kind}, ptr {slot}, align 8')}")
        e.line(f"call void @run({', '.join([*given, *crew])})")

    if crew:
        e.functions += meetings.functions(target.triple)
        e.function("call", ", ".join(["ptr %arguments", *crew]), lambda: meetings.entry(e, call))
    else:
        e.function("call", "ptr %arguments", call)
    return e.module(), layout, tuple(batch), draws


def _several(kind: str, count: int) -> str:
    return kind if count == 1 else f"<{count} x {kind}>"


_ARGUMENTS = {
    "arena": "ptr noalias %arena",
    "data": "ptr noalias %data",
    "order": "ptr noalias %order",
    "steps": "i64 %steps",
    "rates": "ptr noalias %rates",
    "losses": "ptr noalias %losses",
    "tensors": "ptr noalias %tensors",
}
