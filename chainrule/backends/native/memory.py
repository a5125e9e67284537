"""Where values lie: views of one arena, or of torch's own memory, and which memory is used again within a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from chainrule.backends.native.access import Index
from chainrule.backends.native.plan import Schedule
from chainrule.backends.native.values import BYTES, Affine
from chainrule.ir import Node

_ALIGN = 64


@dataclass(frozen=True)
class View:
    """Where a tensor is: ``start`` is a byte offset in the arena (``-1 - k``: the tensor's own memory, number k of
    those outside of the arena); the rest counts elements.

    ``room``: whether a vector store along the innermost axis may write past the last element of a row.
    """

    start: int
    kind: str
    offset: int
    strides: tuple[int, ...]
    innermost: int | None
    room: bool

    @property
    def external(self) -> bool:
        """Whether it is memory of torch's."""
        return self.start < 0

    def address(self, index: Index) -> Affine:
        """The address of an element."""
        total = Affine((), self.offset)
        for i, s in zip(index, self.strides, strict=True):
            total = total + i * s
        return total


@dataclass
class Arena:
    """Bytes handed out one after the other."""

    size: int = _ALIGN * 4
    zero_from: int = 0
    replicas: int = 1

    def take(self, count: int, kind: str) -> int:
        """The byte offset of room for ``count`` elements, with a vector to spare behind."""
        start = self.size
        self.size += -(-(count * self.replicas * BYTES[kind] + _ALIGN) // _ALIGN) * _ALIGN
        return start


@dataclass
class Layout:
    """Views of all stored nodes; ``copies``: further views of a weight, by innermost axis."""

    lanes: int
    arena: Arena
    views: dict[Node, View] = field(default_factory=dict)
    copies: dict[Node, dict[int, View]] = field(default_factory=dict)

    def dense(self, shape: Sequence[int], kind: str, order: Sequence[int], pad: bool) -> View:
        """A new tensor whose dimensions lie in ``order``, outermost first."""
        strides, step = [0] * len(shape), 1
        innermost = order[-1] if order else None
        for a in reversed(order):
            strides[a] = step
            size = shape[a]
            if a == innermost and pad and size > 1:
                size = -(-size // self.lanes) * self.lanes
            step *= size
        return View(self.arena.take(step, kind), kind, 0, tuple(strides), innermost, pad)


def reuse(plan: Schedule, layout: Layout, outputs: set[Node], batch: set[Node], mark: int) -> None:
    """Moves what lives for a part of the step together: memory is used again once its value is not read any more."""

    def whole(node: Node) -> Node:
        while node in plan.placed:
            node = plan.placed[node][0]
        return node

    life: dict[Node, tuple[int, int]] = {}

    def seen(node: Node, at: int) -> None:
        first, last = life.get(whole(node), (at, at))
        life[whole(node)] = (min(first, at), max(last, at))

    for node in batch:
        if node in layout.views:
            seen(node, -1)
    for at, kernel in enumerate(plan.kernels):
        for node in kernel.reads:
            seen(node, at)
        for root in kernel.roots:
            seen(root.into if root.into is not None else root.node, at)
    members: dict[Node, list[Node]] = {}
    for node in layout.views:
        members.setdefault(whole(node), []).append(node)
    movable = []
    for owner, nodes in members.items():
        fixed = any(n.op.native in ("input", "constant") and n not in batch for n in nodes)
        # The border of a padded image is written once, when the program is loaded.
        fixed = fixed or any(n.op.native == "pad" for n in nodes) or any(n in outputs for n in nodes)
        if not fixed and owner in life and layout.views[owner].start >= mark:
            movable.append(owner)
    starts = {layout.views[o].start for o in movable}
    held = [*layout.views.values(), *(v for c in layout.copies.values() for v in c.values())]
    kept = sorted({v.start for v in held if not v.external})
    sizes = {a: b - a for a, b in zip(kept, [*kept[1:], layout.arena.size], strict=True)}
    # What stays is packed first, then what moves, largest first, each as low as its life allows.
    new: dict[int, int] = {}
    cursor = mark
    for start in kept:
        if start >= mark and start not in starts:
            new[start] = cursor
            cursor += sizes[start]
    placed: list[tuple[int, int, int, int]] = []
    for owner in sorted(movable, key=lambda o: (-sizes[layout.views[o].start], life[o])):
        first, last = life[owner]
        size = sizes[layout.views[owner].start]
        at = cursor
        for low, high, begin, end in sorted(placed):
            if begin <= last and first <= end and low < at + size and at < high:
                at = high
        placed.append((at, at + size, first, last))
        new[layout.views[owner].start] = at
    layout.arena.size = max([cursor, *(high for _, high, _, _ in placed)])
    for node, view in layout.views.items():
        if view.start in new:
            layout.views[node] = replace(view, start=new[view.start])
    for copies in layout.copies.values():
        for axis, view in copies.items():
            if view.start in new:
                copies[axis] = replace(view, start=new[view.start])
