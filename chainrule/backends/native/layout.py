"""Where values lie: one arena, every tensor with its own order of dimensions, the innermost padded to whole vectors.

Layouts are chosen for the whole program. Dimensions of different tensors that are one index of the computation form a
class; where convolutions move over images the batch class is innermost everywhere, else each tensor keeps torch's order
unless its last dimension is too short to fill a vector. A weight lies so that the product that reads it first loads
vectors; a product that needs it the other way round gets a transposed copy, made after each update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from chainrule.backends.native import access
from chainrule.backends.native.access import Index, sizes
from chainrule.backends.native.axes import axis_classes
from chainrule.backends.native.forms import KINDS
from chainrule.backends.native.memory import Arena, Layout, View, reuse
from chainrule.backends.native.plan import Schedule
from chainrule.backends.native.values import Affine, LoopVar
from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node


# ---- choosing ----------------------------------------------------------------------------------------------
def _filled(size: int, lanes: int) -> float:
    return size / (-(-size // lanes) * lanes)


def choose(
    plan: Schedule,
    order: Sequence[Node],
    lanes: int,
    batch: Iterable[Node],
    weights: Iterable[Node],
    outputs: Iterable[Node] = (),
    fixed: Layout | None = None,
    external: Sequence[Node] = (),
    replicas: int = 1,
) -> Layout:
    """Views for everything stored.

    Args:
        batch: leaves whose first dimension runs over samples. weights: leaves that are trained. outputs: what is read
            after a step.
        fixed: a layout of the same program for another batch size: its leaves stay where they are.
        external: nodes whose memory is torch's, contiguous. replicas: numbers in the place of one.
    """
    layout = Layout(lanes, fixed.arena if fixed is not None else Arena(replicas=replicas))
    mark = layout.arena.size
    classes = axis_classes(order)
    batch, weights = list(batch), list(weights)
    batch_classes = {classes(x, 0) for x in batch if sizes(x)}
    windows = any(n.op.native == "conv" or n.op.native == "max_pool_place" for n in order)
    size = max((sizes(x)[0] for x in batch if sizes(x)), default=1)
    by_batch = windows and _filled(size, lanes) >= 0.7

    def innermost(node: Node) -> int | None:
        shape = sizes(node)
        wide = [a for a, n in enumerate(shape) if n > 1]
        if not wide:
            return None
        if by_batch:
            own = [a for a in wide if classes(node, a) in batch_classes]
            if own:
                return own[-1]
        last = wide[-1]
        if _filled(shape[last], lanes) >= 0.5:
            return last
        return max(wide, key=lambda a: (round(_filled(shape[a], lanes), 2) if shape[a] >= lanes else 0, a))

    numbers = {node: k for k, node in enumerate(external)}

    def own_view(node: Node, axis: int | None) -> View:
        kind = kind_of(node)
        exact = access.placement_is_exact(node) if access.is_placement(node) else (False,) * node.type.rank
        axes = list(range(node.type.rank))
        pad = True
        if axis is not None and axis != axes[-1] and not exact[axis]:
            axes.remove(axis)
            axes.append(axis)
        if axes and exact[axes[-1]]:
            pad = False
        return layout.dense(sizes(node), kind, axes, pad)

    def place(node: Node) -> View:
        if node in layout.views:
            return layout.views[node]
        if node in numbers:
            layout.views[node] = outside(node, numbers[node])
            return layout.views[node]
        inside = plan.placed.get(node)
        if inside is None:
            held = fixed.views.get(node) if fixed is not None else None
            view = held or own_view(node, innermost(node))
        else:
            whole, k = inside
            outer = place(whole)
            offset, strides = access.part(whole, k, outer.strides)
            stride_one = [a for a, s in enumerate(strides) if s == 1 and sizes(node)[a] > 1]
            axis = stride_one[-1] if stride_one else None
            full = (
                axis is not None
                and whole.op.native == "reshape"
                and outer.room
                and strides[axis] == 1
                and any(outer.innermost == a and sizes(node)[axis] == sizes(whole)[a] for a in range(whole.type.rank))
            )
            view = View(outer.start, outer.kind, outer.offset + offset, strides, axis, full)
        layout.views[node] = view
        return view

    movable = [w for w in weights if sum(n > 1 for n in sizes(w)) > 1 and w not in plan.placed and w in plan.stored]
    if fixed is not None:
        layout.copies = fixed.copies
        layout.views.update({w: fixed.views[w] for w in movable if w in fixed.views})
        movable = [w for w in movable if w not in fixed.views]
    followers = _followers(plan, set(movable))
    for node in order:
        if node in plan.stored and node not in movable and node not in followers:
            place(node)
    for w in movable:
        _place_weight(w, plan, layout, own_view, numbers.get(w))
    for node, leader in followers.items():
        if node in numbers:
            place(node)
        if node not in layout.views:
            held = fixed.views.get(node) if fixed is not None else None
            layout.views[node] = held or own_view(node, layout.views[leader].innermost)
    for kernel in plan.kernels:  # what is only written
        for root in kernel.roots:
            if root.into is not None and root.into not in layout.views:
                place(root.into)
    reuse(plan, layout, set(outputs), set(batch), mark)
    return layout


def _followers(plan: Schedule, leaders: set[Node]) -> dict[Node, Node]:
    """Leaves that are updated in the loop of a weight of their shape (its momentum): they lie like it."""
    out: dict[Node, Node] = {}
    for kernel in plan.kernels:
        written = [r.into for r in kernel.roots if r.into is not None and r.part is None]
        for leaf in written:
            leader = next((w for w in written if w in leaders and sizes(w) == sizes(leaf)), None)
            if leader is not None and leaf not in leaders and leaf not in plan.placed:
                out[leaf] = leader
    return out


def kind_of(node: Node) -> str:
    """The kind of a node's elements."""
    kind = KINDS.get(node.type.dtype)
    if kind is None:
        raise UnsupportedOpError(f"values of dtype {node.type.dtype} in native code", instead='backend="torch"')
    return kind


def outside(node: Node, number: int) -> View:
    """A contiguous tensor of torch's."""
    strides = tuple(math.prod(sizes(node)[a + 1 :]) for a in range(node.type.rank))
    last = node.type.rank - 1 if sizes(node) and sizes(node)[-1] > 1 else None
    return View(-1 - number, kind_of(node), 0, strides, last, False)


def _place_weight(
    w: Node, plan: Schedule, layout: Layout, own_view: Callable[[Node, int | None], View], number: int | None
) -> None:
    """The order of a weight's dimensions, and copies in another order where products want them."""
    axes = [a for a, n in enumerate(sizes(w)) if n > 1]
    mark = layout.arena.size
    trial = {a: own_view(w, a) for a in axes}
    layout.arena.size = mark  # trials take no room
    wanted: list[int] = []
    for kernel in plan.kernels:
        core = kernel.core
        if core is None or access.accumulation(core) is None or len(core.inputs) < 2:
            continue
        if not any(_base(x) is w for x in core.inputs):
            continue
        costs = {}
        for a in axes:
            layout.views[w] = trial[a]
            costs[a] = min((c for c, _ in vector_costs(core, plan, layout)), default=0.0)
        del layout.views[w]
        best = min(costs.values())
        if max(costs.values()) > 1.1 * best:
            wanted.append(next(a for a in reversed(axes) if costs[a] <= best * 1.02))
    if wanted:
        # Kept where most of the work is: the first reader is the forward pass; a short innermost axis is waste.
        primary = max(
            dict.fromkeys(wanted), key=lambda a: (round(_filled(sizes(w)[a], layout.lanes), 1), -wanted.index(a))
        )
    else:
        primary = max(axes, key=lambda a: (round(_filled(sizes(w)[a], layout.lanes), 2), a))
    if number is not None:
        layout.views[w] = outside(w, number)
        primary = layout.views[w].innermost
    else:
        layout.views[w] = own_view(w, primary)
    others = {a for a in wanted if a != primary}
    if others:
        layout.copies[w] = {a: own_view(w, a) for a in sorted(others)}


def _base(node: Node) -> Node:
    while access.is_view(node):
        node = node.inputs[0]
    return node


# ---- the vector axis of an accumulation --------------------------------------------------------------------
def operand_loads(node: Node, index: Index, stored: set[Node]) -> list[tuple[Node, Index]]:
    """Every stored value that an expression reads, and where."""
    out: list[tuple[Node, Index]] = []
    stack = [(node, index)]
    seen = set()
    while stack:
        n, at = stack.pop()
        if (n, at) in seen:
            continue
        seen.add((n, at))
        if n in stored:
            out.append((n, at))
        elif access.is_view(n):
            stack.append((n.inputs[0], access.through(n, at)))
        elif access.is_product(n):
            stack += list(zip(n.inputs, access.product_reads(n, at), strict=True))
        elif access.is_elementwise(n):
            stack += [(x, access.broadcast_index(x, sizes(n), at)) for x in n.inputs]
        elif n.op.native == "one_hot":
            stack.append((n.inputs[0], at[:-1]))
        elif n.op.native in access.INDEXED:
            places, _, _ = access.gathered(n, at)
            stack.append((n.inputs[1], places))
    return out


def vector_costs(core: Node, plan: Schedule, layout: Layout) -> list[tuple[float, tuple[str, int]]]:
    """(cost, ("out" | "extra", axis)) of vectorising an accumulation along each of its indices."""
    found = access.accumulation(core)
    assert found is not None
    own = [LoopVar(f"o{a}", a) for a in range(core.type.rank)]
    extra = [LoopVar(f"r{a}", a) for a in range(len(found.sizes))]
    index = tuple(Affine(((v, 1),)) for v in own)
    more = tuple(Affine(((v, 1),)) for v in extra)
    size = {("out", a): sizes(core)[a] for a in range(len(own))} | {("extra", a): n for a, n in enumerate(found.sizes)}
    variables = {("out", a): v for a, v in enumerate(own)} | {("extra", a): v for a, v in enumerate(extra)}
    addresses: list[list[Affine]] = []
    for x, at in zip(core.inputs, found.read(index, more), strict=True):
        options = []
        for node, where in operand_loads(x, at, plan.stored):
            if node not in layout.views:
                continue
            options = [layout.views[node].address(where)]
            options += [v.address(where) for v in layout.copies.get(node, {}).values()]
            addresses.append(options)
    kernel = next((k for k in plan.kernels if k.core is core), None)
    target = None
    if kernel is not None:
        for root in kernel.roots:
            view = layout.views.get(root.into if root.into is not None and root.part is None else root.node)
            target = target or view
    points = 1.0
    for n in size.values():
        points *= n
    results = 1.0
    for n in sizes(core):
        results *= n
    out = []
    for key, n in size.items():
        if n == 1:
            continue
        vectors = -(-n // layout.lanes)
        turns = points / n * vectors
        gathers = sum(
            0 if any(dict(o.terms).get(variables[key], 0) in (0, 1) for o in options) else 1 for options in addresses
        )
        cost = turns * (1 + 2 * layout.lanes * gathers)
        if key[0] == "extra":
            cost += results * 8
        elif target is not None and target.strides[key[1]] != 1:
            cost += results * 4
        else:
            cost += results / n * vectors
        out.append((cost, key))
    return out


def vector_axis(core: Node, plan: Schedule, layout: Layout) -> tuple[str, int] | None:
    """The index that an accumulation is vectorised along; None: every index has one value."""
    costs = vector_costs(core, plan, layout)
    return min(costs)[1] if costs else None
