"""Which thread writes what: the loop nests of a step divided among threads, and where these wait for each other.

A nest is divided along one axis of its results, never along one that is summed over: every number comes from the same
operations in the same order, so the bits do not depend on how many threads there are. Threads wait for each other
where one reads what another has written, or writes where another reads; not where each goes on with its own share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from chainrule.backends.native import access
from chainrule.backends.native.access import Index, sizes
from chainrule.backends.native.axes import axis_classes
from chainrule.backends.native.draws import STEP_COUNTER
from chainrule.backends.native.layout import kind_of, operand_loads, vector_axis
from chainrule.backends.native.memory import View
from chainrule.backends.native.plan import Kernel
from chainrule.backends.native.values import BYTES, Affine, LoopVar, Value
from chainrule.backends.native.write import Part, Writer
from chainrule.ir import Node

_EVEN = 0.85  # of the time of the slowest thread, from which on shares count as even
_LITTLE = 256  # operations of a nest that are not worth being divided
ALONE = "alone"  # whose share: all of it is the first thread's


class Solo:
    """The parts of a step for one thread: written one after the other."""

    def gather(self, leaf: Node, body: Callable[[], None]) -> None:
        """Samples that are copied into the arena."""
        body()

    def kernel(self, kernel: Kernel, body: Callable[[], None]) -> None:
        """A loop nest."""
        body()

    def copy(self, leaf: Node, to: View, body: Callable[[], None]) -> None:
        """A weight in another order."""
        body()

    def single(self, body: Callable[[], None], reads: Sequence[Node] = (), writes: Sequence[Node] = ()) -> None:
        """A few instructions."""
        body()

    def end(self) -> None:
        """The end of a step."""


@dataclass(frozen=True)
class _Split:
    """``share`` values of an axis with ``size`` for each thread, the last of which may have fewer."""

    axis: int
    share: int
    size: int


@dataclass(frozen=True)
class _Access:
    """Bytes of a buffer that are read or written. ``own``: what says that a thread stays in its share of a tensor."""

    where: int  # 0: the arena, else a tensor of torch's
    first: int
    end: int
    own: object

    def meets(self, other: _Access) -> bool:
        """Whether another thread may be at the same place."""
        apart = self.where != other.where or self.end <= other.first or other.end <= self.first
        return not apart and (self.own is None or self.own != other.own)


class Crew(Solo):
    """The parts of a step for several threads.

    Args:
        writer: of the function that all threads are in, which has ``%team``, ``%crew``, and ``%begin`` and ``%end``.
        shares: that a step is divided into; a thread does those from ``%begin`` to ``%end`` of each nest.
        order, batch: all nodes of the step, and its leaves with samples first.
    """

    def __init__(self, writer: Writer, shares: int, order: Sequence[Node], batch: Iterable[Node]) -> None:
        self.w, self.shares = writer, shares
        self.classes = axis_classes(order)
        self.samples = {self.classes(leaf, 0) for leaf in batch if sizes(leaf)}
        self.reads: list[_Access] = []  # since the threads have met
        self.writes: list[_Access] = []
        self.held: set[Node] = set()  # what every thread has read since it was written
        self.turn = writer.e.fresh()
        writer.e.scopes[0].head += [f"  {self.turn} = alloca i64", f"  store i64 0, ptr {self.turn}"]

    # ---- parts ---------------------------------------------------------------------------------------------
    def gather(self, leaf: Node, body: Callable[[], None]) -> None:
        view, shape = self.w.layout.views[leaf], sizes(leaf)
        split = self._best(shape, {0: self._granule(view, 0)}, {}) if math.prod(shape) >= _LITTLE else None
        self._part(split, [], [self._accessed(leaf, view, self._own(leaf, 0, split))], body)

    def copy(self, leaf: Node, to: View, body: Callable[[], None]) -> None:
        view, shape = self.w.layout.views[leaf], sizes(leaf)
        slow = to.innermost
        axes = {a: 1 for a, n in enumerate(shape) if n > 1 and a not in (slow, view.innermost)}
        if slow is not None:
            axes[slow] = self.w.e.lanes
        split = self._best(shape, axes, {})
        own = None if split is None else self._own(leaf, split.axis, split)
        held = ALONE if split is None else (to, split)
        self._part(split, [self._accessed(leaf, view, own or ALONE)], [self._accessed(leaf, to, held)], body)

    def single(self, body: Callable[[], None], reads: Sequence[Node] = (), writes: Sequence[Node] = ()) -> None:
        views = self.w.layout.views
        found = [[self._accessed(n, views[n], ALONE) for n in nodes] for nodes in (reads, writes)]
        self._part(None, found[0], found[1], body)

    def kernel(self, kernel: Kernel, body: Callable[[], None]) -> None:
        views, layout = self.w.layout.views, self.w.layout
        loads = _loads(kernel, self.w.plan.stored)
        split = self._split(kernel, loads)
        reads = []
        for node in kernel.reads:
            own: object = ALONE
            if split is not None:
                axis = _own_axis(node, loads, split.axis)
                own = None if axis is None else self._own(node, axis, split)
                if axis is None:
                    self.held.add(node)
            for view in (*([views[node]] if node in views else []), *layout.copies.get(node, {}).values()):
                reads.append(self._accessed(node, view, own))
        if STEP_COUNTER in views and _draws(kernel, self.w.plan.stored):
            reads.append(self._accessed(STEP_COUNTER, views[STEP_COUNTER], None if split is not None else ALONE))
        writes = []
        for root in kernel.roots:
            node = root.node if root.into is None else root.into
            own = ALONE if split is None else None if root.part is not None else self._own(node, split.axis, split)
            view = self.w.destination(root)
            writes.append(self._accessed(root.node if root.part is not None else node, view, own))
            self.held.discard(node)
        self._part(split, reads, writes, body)

    def end(self) -> None:
        """All threads meet: the next step writes where this one has read."""
        self._meet()

    # ---- shares --------------------------------------------------------------------------------------------
    def _split(self, kernel: Kernel, loads: Sequence[tuple[Node, Index]]) -> _Split | None:
        """The axis that a nest is divided along; None where one thread does it."""
        shape, core = kernel.shape, kernel.core
        terms, vector = 1, None
        axes = {a: 1 for a, n in enumerate(shape) if n > 1}
        if core is not None:
            found = access.accumulation(core)
            if found is None:  # a scatter adds to the same places from everywhere
                return None
            terms = math.prod(found.sizes)
            choice = vector_axis(core, self.w.plan, self.w.layout)
            vector = choice[1] if choice is not None and choice[0] == "out" else None
            marks = [LoopVar(f"o{a}", a) for a in range(len(shape))]
            index = tuple(Affine(((v, 1),)) for v in marks)
            extra = tuple(Affine(((LoopVar(f"r{a}", a), 1),)) for a in range(len(found.sizes)))
            for at in found.read(index, extra):
                for i in at:  # a window's place is compared with its image's edge: by itself
                    if len(i.terms) > 1 or i.const:
                        axes = {a: g for a, g in axes.items() if marks[a] not in dict(i.terms)}
        if math.prod(shape) * terms < _LITTLE:
            return None
        for root in kernel.roots:
            view = self.w.destination(root)
            axes = {a: max(g, self._granule(view, a)) for a, g in axes.items()}
        if vector in axes:
            axes[vector] = self.w.e.lanes
        strides = self.w.destination(kernel.roots[0]).strides
        axes = dict(sorted(axes.items(), key=lambda item: (item[0] == vector, -strides[item[0]])))
        result = core if core is not None else kernel.roots[0].node
        results = sum(_bytes(root.node) for root in kernel.roots)
        moved = {}
        for a in axes:
            apart = [n for n in kernel.reads if n not in self.held and _own_axis(n, loads, a) is None]
            by_sample = self.classes(result, a) in self.samples
            moved[a] = sum(map(_bytes, apart)) + (0 if by_sample else results)
        return self._best(shape, axes, moved)

    def _granule(self, view: View, axis: int) -> int:
        return self.w.e.lanes if view.strides and view.strides[axis] == 1 else 1

    def _best(self, shape: Sequence[int], axes: Mapping[int, int], moved: Mapping[int, int]) -> _Split | None:
        """A division into even shares, and of these the one for which least goes from thread to thread.

        Args:
            axes: axis -> what a share is a multiple of, outermost first. moved: axis -> bytes.
        """
        found = []
        for place, (axis, granule) in enumerate(axes.items()):
            share = -(-shape[axis] // self.shares)
            share = -(-share // granule) * granule
            if share < shape[axis]:
                even = shape[axis] / (share * self.shares)
                rank = (even >= _EVEN, 0 if even >= _EVEN else even, -moved.get(axis, 0), -place)
                found.append((rank, _Split(axis, share, shape[axis])))
        return max(found, key=lambda f: f[0])[1] if found else None

    # ---- writing -------------------------------------------------------------------------------------------
    def _part(
        self, split: _Split | None, reads: Sequence[_Access], writes: Sequence[_Access], body: Callable[[], None]
    ) -> None:
        before = [
            *((w, a) for w in self.writes for a in (*reads, *writes)),
            *((r, w) for r in self.reads for w in writes),
        ]
        if any(a.meets(b) for a, b in before):
            self._meet()
        self.reads += reads
        self.writes += writes
        if split is None:
            self._when("icmp eq i64 %begin, 0", body)
            return

        def shared(number: LoopVar, _: list[Value]) -> list[Value]:
            self._divided(split, number, body)
            return []

        self.w.e.loop("%end", shared, start="%begin")

    def _divided(self, split: _Split, number: LoopVar, body: Callable[[], None]) -> None:
        w = self.w
        taking = -(-split.size // split.share)
        rest = split.size - (taking - 1) * split.share
        w.part = Part(split.axis, Affine(((number, split.share),)), split.share)
        if rest == split.share and taking == self.shares:
            body()
        else:
            self._when(f"icmp ult i64 {number.ssa}, {taking - (rest < split.share)}", body)
        if rest < split.share:
            w.part = Part(split.axis, Affine((), (taking - 1) * split.share), rest)
            self._when(f"icmp eq i64 {number.ssa}, {taking - 1}", body)
        w.part = None

    def _when(self, condition: str, body: Callable[[], None]) -> None:
        e = self.w.e
        e.when(e.let(condition), body)

    def _meet(self) -> None:
        self.w.e.line(f"call void @meet(ptr %team, i64 %crew, ptr {self.turn})")
        self.reads, self.writes = [], []

    # ---- what is where -------------------------------------------------------------------------------------
    def _own(self, node: Node, axis: int, split: _Split | None) -> object:
        return ALONE if split is None else (node, axis, split.share, split.size)

    def _accessed(self, node: Node, view: View, own: object) -> _Access:
        size = BYTES[view.kind]
        last = sum((n - 1) * s for n, s in zip(sizes(node), view.strides, strict=True))
        first, end = view.offset * size, (view.offset + last + 1 + self.w.layout.lanes) * size
        start = 0 if view.external else view.start
        return _Access(view.start if view.external else 0, start + first, start + end, own)


def _bytes(node: Node) -> int:
    return math.prod(sizes(node)) * BYTES[kind_of(node)]


def _own_axis(node: Node, loads: Sequence[tuple[Node, Index]], axis: int) -> int | None:
    """The dimension of an operand that is read where the result's axis is, and nowhere else; None: there is none."""
    found = {_dimension(index, axis) for other, index in loads if other is node}
    return found.pop() if len(found) == 1 else None


def _dimension(index: Index, axis: int) -> int | None:
    at = [(a, i) for a, i in enumerate(index) if any(v.depth == axis and v.ssa == f"o{axis}" for v, _ in i.terms)]
    if len(at) != 1 or len(at[0][1].terms) != 1 or at[0][1].terms[0][1] != 1 or at[0][1].const:
        return None
    return at[0][0]


def _loads(kernel: Kernel, stored: set[Node]) -> list[tuple[Node, Index]]:
    """Stored values that a nest reads, and where; those at computed places are left out."""
    core = kernel.core
    index = tuple(Affine(((LoopVar(f"o{a}", a), 1),)) for a in range(len(kernel.shape)))
    out: list[tuple[Node, Index]] = []
    if core is not None:
        found = access.accumulation(core)
        if found is None:
            return out
        more = tuple(Affine(((LoopVar(f"r{a}", a), 1),)) for a in range(len(found.sizes)))
        for x, at in zip(core.inputs, found.read(index, more), strict=True):
            out += operand_loads(x, at, stored)
    for root in kernel.roots:
        if root.node is core:
            continue
        known = stored if root.into is not None else stored - {root.node}
        out += operand_loads(root.node, index, known if core is None else known | {core})
    return out


def _draws(kernel: Kernel, stored: set[Node]) -> bool:
    """Whether a nest draws random numbers."""
    stack = [root.node for root in kernel.roots] + list(kernel.core.inputs if kernel.core is not None else ())
    roots, seen = set(stack), set()
    while stack:
        node = stack.pop()
        if node in seen or (node in stored and node not in roots):
            continue
        seen.add(node)
        if node.op.native == "draw":
            return True
        stack.extend(node.inputs)
    return False
