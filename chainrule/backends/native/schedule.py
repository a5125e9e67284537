"""Which values are kept in memory and which loops compute them: a graph as a list of kernels.

A kernel is one loop nest: an accumulation (matrix product, convolution, sum) with everything elementwise that follows
at the same index, or elementwise work alone, or a scatter. Values between are recomputed where that is cheap. The
state (parameters, momenta) is updated in place: a kernel that overwrites it comes after all that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chainrule.backends.native import access
from chainrule.backends.native.plan import Kernel, Root, Schedule
from chainrule.errors import BackendError
from chainrule.ir import Node, toposort

_CHEAP = 12  # instructions that are repeated rather than stored


def schedule(
    outputs: Sequence[Node],
    updates: Mapping[Node, Node],
    weight: Callable[[Node], int],
) -> Schedule:
    """The kernels that compute ``outputs`` and replace each leaf of ``updates`` by its new value.

    Args:
        weight: how many instructions the elementwise form of a node has.
    Raises:
        BackendError: no order exists.
    """
    deferred: set[Node] = set()
    keep: set[Node] = set()
    for _ in range(200):
        plan = _Plan(outputs, updates, weight, keep, deferred)
        try:
            return plan.run()
        except _Again as again:
            keep |= again.keep
            deferred |= again.deferred
    raise BackendError("no order of loops was found for this graph", instead='backend="torch"')


class _Again(Exception):
    def __init__(self, keep: set[Node] = frozenset(), deferred: set[Node] = frozenset()) -> None:  # type: ignore[assignment]
        self.keep, self.deferred = set(keep), set(deferred)


class _Plan:
    def __init__(
        self,
        outputs: Sequence[Node],
        updates: Mapping[Node, Node],
        weight: Callable[[Node], int],
        keep: set[Node],
        deferred: set[Node],
    ) -> None:
        self.outputs, self.updates, self.weight, self.deferred = outputs, updates, weight, deferred
        self.order = toposort([*outputs, *updates.values()])
        self.users: dict[Node, list[Node]] = {}
        for node in self.order:
            for x in dict.fromkeys(node.inputs):
                self.users.setdefault(x, []).append(node)
        self.accumulates = {n for n in self.order if access.accumulation(n) is not None}
        self.stored: set[Node] = set(keep) | set(outputs)
        self.placed: dict[Node, tuple[Node, int]] = {}
        self.kernels: list[Kernel] = []
        self.writers: dict[Node, list[Kernel]] = {}

    # ---- what has memory -----------------------------------------------------------------------------------
    def _demand(self) -> None:
        for node in self.order:
            if self._has_memory(node) or access.is_scatter(node) or access.is_placement(node):
                self.stored.add(node)
            if node in self.accumulates:
                # A product reads each operand many times: what it reads is in memory.
                if len(node.inputs) > 1:
                    for x in node.inputs:
                        self._store(x)
            if access.is_product(node) or node.op.native in access.INDEXED:
                for x in node.inputs[:1] if node.op.native in access.INDEXED else node.inputs:
                    self._store(x)
            if node.op.native == "max_pool_place" or access.is_scatter(node):
                for x in node.inputs:
                    self._store(x)
            if node.op.native == "max_pool_place":  # read at every element of its window
                self.stored.add(node)
        for leaf in self.deferred:
            self.stored.add(self.updates[leaf])
        for node in self.order:
            if access.is_placement(node):
                for k, x in enumerate(node.inputs):
                    if (
                        x not in self.placed
                        and x.number is None
                        and x.op.native != "constant"
                        and node.inputs.count(x) == 1
                    ):
                        self.placed[x] = (node, k)
                        self.stored.add(x)

    def _store(self, node: Node) -> None:
        while access.is_view(node):
            node = node.inputs[0]
        if not _inline_leaf(node):
            self.stored.add(node)

    @staticmethod
    def _has_memory(node: Node) -> bool:
        return node.op.native == "input" or (node.op.native == "constant" and node.number is None)

    # ---- walking ---------------------------------------------------------------------------------------------
    def _explore(self, root: Node) -> _Reach:
        """What a root is computed from, down to stored values and accumulations."""
        reach = _Reach()
        seen: set[tuple[Node, bool]] = set()
        stack: list[tuple[Node, bool, bool]] = [(root, True, True)]
        while stack:
            node, same, first = stack.pop()
            if (node, same) in seen:
                continue
            seen.add((node, same))
            if not first and node in self.stored:
                reach.loads[node] = reach.loads.get(node, True) and same
                continue
            if not first and node in self.accumulates:
                (reach.anchors if same else reach.moved).add(node)
                continue
            reach.inside.add(node)
            for x in node.inputs:
                keeps = same and access.is_elementwise(node) and x.shape == node.shape
                stack.append((x, keeps or (same and _same_index(node, x)), False))
        return reach

    def run(self) -> Schedule:
        """The schedule, or _Again with more values to store."""
        self._demand()
        position = {n: k for k, n in enumerate(self.order)}
        self.position = position
        roots = [n for n in self.order if n in self.stored and not self._has_memory(n)]
        for node in roots:
            self._place(node)
        for leaf, new in self.updates.items():
            if leaf in self.deferred or new in self.stored or self._has_memory(new):
                continue
            self._assign(Root(new, into=leaf))
        copies = [
            leaf
            for leaf, new in self.updates.items()
            if leaf in self.deferred or new in self.stored or self._has_memory(new)
        ]
        for leaf in copies:
            self._assign(Root(self.updates[leaf], into=leaf), alone=True)
        self._share()
        return Schedule(self._ordered(), self.stored, self.placed)

    def _place(self, node: Node) -> None:
        if access.is_placement(node):
            joined: list[Kernel] = []
            for k, x in enumerate(node.inputs):
                if self.placed.get(x) == (node, k):
                    joined += self.writers.get(x, [])
                else:
                    joined.append(self._assign(Root(x, into=node, part=k), alone=True))
            self.writers[node] = joined
        elif access.is_scatter(node) or node in self.accumulates:
            kernel = self._new(node)
            kernel.roots.append(Root(node))
            self._read(kernel, self._explore_core(node))
            self.writers[node] = [kernel]
        else:
            self._assign(Root(node))

    def _core_of(self, node: Node) -> Kernel:
        """The kernel of an accumulation, made on first use."""
        for kernel in self.kernels:
            if kernel.core is node:
                return kernel
        kernel = self._new(node)
        self._read(kernel, self._explore_core(node))
        return kernel

    def _explore_core(self, node: Node) -> _Reach:
        reach = _Reach()
        for x in node.inputs:
            inner = self._explore(x) if x not in self.stored else None
            if inner is None:
                reach.loads[x] = False
                continue
            reach.inside |= inner.inside
            reach.loads.update(dict.fromkeys(inner.loads, False))
            if inner.anchors or inner.moved or x in self.accumulates:
                raise _Again({self._top(a) for a in inner.anchors | inner.moved | ({x} & self.accumulates)})
        return reach

    def _new(self, core: Node | None) -> Kernel:
        kernel = Kernel(len(self.kernels), core)
        self.kernels.append(kernel)
        return kernel

    def _read(self, kernel: Kernel, reach: _Reach) -> None:
        for x, same in reach.loads.items():
            kernel.reads[x] = kernel.reads.get(x, True) and same
            kernel.after |= {k for k in self.writers.get(x, ()) if k is not kernel}

    def _assign(self, root: Root, alone: bool = False) -> Kernel:
        """Puts a root into the kernel that has what it needs in registers, or into one of its own."""
        node = root.node
        reach = self._explore(node) if node not in self.stored or root.into is None else _Reach({node: True})
        if node in self.accumulates and root.into is not None and node not in self.stored:
            reach = _Reach(anchors={node})
        if reach.moved:
            raise _Again({self._top(a) for a in reach.moved})
        kernel: Kernel | None = None
        if reach.anchors:
            last = max(reach.anchors, key=self.position.__getitem__)
            others = reach.anchors - {last}
            if others:
                raise _Again({self._top(a) for a in others})
            kernel = self._core_of(last)
            if last.shape != node.shape or not self._fits(kernel, reach):
                raise _Again({self._top(last)})
        elif not alone:
            writers = {k for x in reach.loads for k in self.writers.get(x, ())}
            latest = max(writers, key=lambda k: k.number, default=None)
            if (
                latest is not None
                and latest.shape == node.shape
                and self._fits(latest, reach)
                and not (latest.core is not None and access.is_scatter(latest.core))
            ):
                kernel = latest
        if kernel is None:
            kernel = self._new(None)
        kernel.roots.append(root)
        self._read(kernel, reach)
        if root.into is None:
            self.writers[node] = [kernel]
        return kernel

    def _fits(self, kernel: Kernel, reach: _Reach) -> bool:
        """Whether a root can join: what it loads comes from elsewhere and earlier, or from its own index here."""
        for x, same in reach.loads.items():
            for writer in self.writers.get(x, ()):
                if writer is kernel and not (same and any(r.node is x and r.into is None for r in kernel.roots)):
                    return False
                if writer is not kernel and self._depends(writer, kernel):
                    return False
        return True

    def _depends(self, kernel: Kernel, on: Kernel) -> bool:
        stack, seen = [kernel], set()
        while stack:
            k = stack.pop()
            if k is on:
                return True
            if k not in seen:
                seen.add(k)
                stack.extend(k.after)
        return False

    def _top(self, node: Node) -> Node:
        """The value that is stored in place of an accumulation: what alone follows from it at the same index."""
        while True:
            users = self.users.get(node, [])
            if len(users) != 1 or node in self.stored or node in self.outputs:
                return node
            (user,) = users
            if not access.is_elementwise(user) or user.shape != node.shape or user.inputs.count(node) != 1:
                return node
            if any(self._after_accumulation(x) for x in user.inputs if x is not node):
                return node
            node = user

    def _after_accumulation(self, x: Node) -> bool:
        """Whether an operand is itself computed by other loops: it is stored then, and nothing is gained."""
        return not (x.is_leaf or x in self.stored)

    # ---- sharing ---------------------------------------------------------------------------------------------
    def _share(self) -> None:
        """Stores what several kernels would compute again at some cost."""
        where: dict[Node, set[Kernel]] = {}
        for kernel in self.kernels:
            starts = [r.node for r in kernel.roots if not (r.into is not None and r.node in self.stored)]
            starts += list(kernel.core.inputs) if kernel.core is not None else []
            inside: set[Node] = set()
            for start in starts:
                if start in self.stored and start not in {r.node for r in kernel.roots}:
                    continue
                inside |= self._explore(start).inside
            for node in inside:
                where.setdefault(node, set()).add(kernel)
        again: set[Node] = set()
        for node, kernels in where.items():
            if len(kernels) > 1 and node not in self.stored and not _inline_leaf(node) and access.is_elementwise(node):
                if self._price(node) > _CHEAP and node.type.is_float:
                    again.add(node)
        # Only the outermost: what is inside of them is then computed once.
        outer = {n for n in again if not any(u in again for u in self.users.get(n, ()))}
        if outer:
            raise _Again(outer)

    def _price(self, node: Node) -> int:
        total, seen, stack = 0, set(), [node]
        while stack:
            n = stack.pop()
            if n in seen or n in self.stored:
                continue
            seen.add(n)
            if access.is_elementwise(n):
                total += self.weight(n)
            stack.extend(n.inputs)
        return total

    # ---- order -----------------------------------------------------------------------------------------------
    def _ordered(self) -> list[Kernel]:
        for kernel in self.kernels:
            for root in kernel.roots:
                if root.into is None or root.part is not None:
                    continue
                leaf = root.into
                for other in self.kernels:
                    if leaf in other.reads:
                        if other is not kernel:
                            kernel.after.add(other)
                        elif not other.reads[leaf]:
                            raise _Again(deferred={leaf})
        done: list[Kernel] = []
        state: dict[Kernel, int] = {}
        for start in self.kernels:
            stack: list[tuple[Kernel, Iterator[Kernel]]] = []
            if start not in state:
                state[start] = 1
                stack.append((start, iter(sorted(start.after, key=lambda k: k.number))))
            while stack:
                kernel, rest = stack[-1]
                for child in rest:
                    if state.get(child) == 1:
                        written = {
                            r.into
                            for k in state
                            if state[k] == 1
                            for r in k.roots
                            if r.into is not None and r.part is None
                        }
                        if not written - self.deferred:
                            raise BackendError("loops that wait for each other")
                        raise _Again(deferred={w for w in written if w is not None})
                    if child not in state:
                        state[child] = 1
                        stack.append((child, iter(sorted(child.after, key=lambda k: k.number))))
                        break
                else:
                    state[kernel] = 2
                    done.append(kernel)
                    stack.pop()
        return done


@dataclass
class _Reach:
    loads: dict[Node, bool] = field(default_factory=dict)
    anchors: set[Node] = field(default_factory=set)
    moved: set[Node] = field(default_factory=set)
    inside: set[Node] = field(default_factory=set)


def _inline_leaf(node: Node) -> bool:
    """Leaves that are computed from nothing: numbers, identity matrices, random draws."""
    return node.number is not None or (node.is_leaf and node.op.native not in ("input", "constant"))


def _same_index(node: Node, x: Node) -> bool:
    return access.is_view(node) and x.shape == node.shape and node.op.native in ("broadcast", "reshape")
