"""From a traced case to the graph of one training step: loss, new parameters, new optimizer state.

Composites are expanded, gradients taken, the optimizer's rule written as nodes, so that everything is one graph for
the scheduler. Rewrites keep values up to rounding in the last place (this back end chooses its own order of sums).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from chainrule.backends.native import access
from chainrule.backends.native.access import sizes
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.forms import Forms
from chainrule.backends.native.inner_derivatives import differentiates_inside, shortened
from chainrule.backends.native.pools import without_gathers
from chainrule.backends.native.values import Scope, Value
from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.interpreters.differentiate import expand_composites, gradient
from chainrule.interpreters.simplify import simplify
from chainrule.ir import OPS, Graph, Node, Op, apply, constant, rebuild, toposort
from chainrule.ops.families import Parts
from chainrule.ops.movement import broadcast

Rule = Callable[[str, Node, Node], tuple[Node, Mapping[Node, Node]]]


@dataclass(frozen=True, eq=False)
class StepGraph:
    """One step as a graph.

    Attributes:
        loss: a scalar, or None of a forward pass. updates: leaf -> its value after the step.
        gradients: of the parameters, where asked for.
        parameters: leaf -> its name. unused: names of parameters that the loss does not depend on.
    """

    loss: Node | None
    updates: Mapping[Node, Node]
    gradients: Mapping[Node, Node]
    parameters: Mapping[Node, str]
    unused: tuple[str, ...]
    outputs: tuple[Node, ...] = ()

    @property
    def results(self) -> list[Node]:
        """What is read after a step."""
        first = [] if self.loss is None else [self.loss]
        return [*first, *self.gradients.values(), *self.outputs]

    @property
    def roots(self) -> list[Node]:
        """Everything that is computed."""
        return [*self.results, *self.updates.values()]

    @property
    def order(self) -> list[Node]:
        """Every node, operands first."""
        return toposort(self.roots)


def expanded(nodes: Sequence[Node]) -> list[Node]:
    """Without composites, and without ops of several outputs where these have forms of their own."""
    found = list(nodes)
    while True:
        image = rebuild(found, _taken_apart)
        short = list(expand_composites([image[n] for n in found], keep_named=False))
        if short == found:  # composites may hold further ones, and ops of several outputs
            return found
        found = short


def _taken_apart(node: Node, inputs: tuple[Node, ...]) -> Node:
    new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
    source = new.inputs[0] if new.inputs else new
    if "index" in new.params and isinstance(source.op.native, Parts):
        return source.op.native.rule(*source.inputs, **source.params)[new.params["index"]]
    return new


def step_graph(
    loss: Node,
    parameters: Mapping[Node, str],
    buffers: Mapping[Node, Node],
    rule: Callable[[Mapping[Node, Node]], Mapping[Node, Node]] | None,
) -> StepGraph:
    """The graph of a step.

    Args:
        parameters: trained leaf -> name. buffers: leaf -> new value, of what the forward pass updates.
        rule: gradients -> (leaf -> new value) of parameters and optimizer state; None: gradients are the result.
    Raises:
        UnsupportedOpError: an op without a native form; ModelError: nothing to train.
    """
    (root, *new_buffers) = expanded([loss, *buffers.values()])
    if differentiates_inside(root):
        root = shortened(normal([root])[0], lambda node: normal([node])[0])
    leaves = list(parameters)
    found = dict(zip(leaves, gradient(root, leaves, whole=True), strict=True)) if leaves else {}
    used = {leaf: g for leaf, g in found.items() if g is not None}
    if rule is not None and not used:
        raise ModelError("no parameter reaches the loss", required="a loss that depends on a trainable parameter")
    grads = dict(zip(used, expanded(list(used.values())), strict=True))
    root, *rest = normal([root, *grads.values(), *new_buffers])
    grads = dict(zip(grads, rest, strict=False))
    new_buffers = rest[len(grads) :]
    updates = dict(zip(buffers, new_buffers, strict=True))
    if rule is not None:
        new = rule(grads)
        updates |= dict(zip(new, normal(list(new.values())), strict=True))
    unused = tuple(parameters[leaf] for leaf, g in found.items() if g is None)
    root, *rest = without_gathers([root, *grads.values(), *updates.values()])
    grads = dict(zip(grads, rest, strict=False))
    updates = dict(zip(updates, rest[len(grads) :], strict=True))
    graph = StepGraph(root, updates, {} if rule is not None else grads, parameters, unused)
    check(graph.order)
    return graph


def forward_graph(outputs: Sequence[Node]) -> list[Node]:
    """The outputs of a forward pass, ready for the scheduler."""
    nodes = without_gathers(normal(expanded(outputs)))
    check(toposort(nodes))
    return nodes


def check(nodes: Sequence[Node]) -> None:
    """Raises UnsupportedOpError where a node has no native form."""
    for node in nodes:
        if not access.supported(node):
            raise UnsupportedOpError(
                f"op {node.op.name!r} has no native form",
                given=str(node.type),
                instead='backend="torch"',
            )


def normal(nodes: Sequence[Node]) -> list[Node]:
    """Exact simplifications, numbers computed once, and what native loops want written in another way."""
    short = simplify(Graph((), tuple(nodes)), exact=True).outputs
    image = rebuild(short, _rewrite)
    return [image[n] for n in short]


def _rewrite(node: Node, inputs: tuple[Node, ...]) -> Node:
    new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
    return _folded(_uniform(_padded(_grouped(_narrow(new)))))


def _narrow(node: Node) -> Node:
    """Elementwise ops broadcast by themselves: a broadcast number below one is a number."""
    if not access.is_elementwise(node) or node.type.rank == 0:
        return node
    inputs = list(node.inputs)
    for k, x in enumerate(inputs):
        while x.op.native in ("broadcast", "expand_dims") and x.inputs:
            inner = x.inputs[0]
            if x.op.native == "expand_dims" and sizes(inner) != ():
                break
            trial = [*inputs[:k], inner, *inputs[k + 1 :]]
            if apply(node.op, *trial, **node.params).type != node.type:
                break
            x = inner
            inputs[k] = inner
    return apply(node.op, *inputs, **node.params) if tuple(inputs) != node.inputs else node


def _uniform(node: Node) -> Node:
    """A view of one number is that number in another shape."""
    if not access.is_view(node):
        return node
    (x,) = node.inputs
    number = x.inputs[0] if x.op.native == "broadcast" else x
    return node if number.number is None else broadcast(number, node.shape)


def _folded(node: Node) -> Node:
    """A number computed from numbers, and one times what it multiplies."""
    if access.is_elementwise(node) and node.inputs and all(x.number is not None for x in node.inputs):
        with np.errstate(all="ignore"):
            value = node.op.value(*(x.params["literal"].array for x in node.inputs), **node.params)
        return constant(np.asarray(value).item(), node.type.dtype)
    return node


def _padded(node: Node) -> Node:
    """A convolution of a padded image."""
    if node.op.native != "conv" or not any(node.params["padding"]):
        return node
    x, w = node.inputs
    rank = len(node.params["padding"])
    lead = (0,) * (x.type.rank - rank)
    edges = (*lead, *node.params["padding"])
    padded = apply(OPS["pad"], x, low=edges, high=edges, interior=(0,) * x.type.rank)
    return apply(node.op, padded, w, **{**node.params, "padding": (0,) * rank})


def _grouped(node: Node) -> Node:
    """A convolution in groups as one per group."""
    groups = node.params.get("groups", 1) if node.op.native == "conv" else 1
    if groups == 1:
        return node
    x, w = node.inputs
    parts = []
    for k in range(groups):
        own = []
        for tensor, axis in ((x, 1), (w, 0)):
            size = sizes(tensor)[axis] // groups
            starts = tuple(k * size if a == axis else 0 for a in range(tensor.type.rank))
            stops = tuple((k + 1) * size if a == axis else n for a, n in enumerate(sizes(tensor)))
            own.append(apply(OPS["slice"], tensor, starts=starts, stops=stops, steps=(1,) * tensor.type.rank))
        part = apply(node.op, *own, **{**node.params, "groups": 1})
        parts.append(_padded(part))
    return apply(OPS["concat"], *parts, axis=1)


@cache
def _weight(op: Op, operands: tuple[tuple[str, float | None], ...], params: tuple) -> int:
    e = Emitter(8)
    scope = Scope()
    e.scopes.append(scope)
    xs = [Value(e, kind, 8, "%x") if n is None else e.constant(n, kind, 8) for kind, n in operands]
    op.native(Forms(e), *xs, **dict(params))  # type: ignore[operator]  # asked of elementwise ops only
    return sum(_instructions(str(line)) for line in scope.body)


def _instructions(line: str) -> int:
    if "shufflevector" in line or "insertelement" in line:
        return 0
    return _CALL if any(f"@llvm.{name}." in line for name in _OF_THE_LIBRARY) else 1


_OF_THE_LIBRARY = ("pow", "tan", "asin", "acos", "atan")  # functions that LLVM calls once per lane
_CALL = 20  # as many instructions as such a call takes at least


def weight(node: Node) -> int:
    """How many instructions the elementwise form of a node has, which may be short for a number among its operands."""
    try:
        operands = tuple(("i1" if x.type.dtype == "bool" else "f32", x.number) for x in node.inputs)
        return _weight(node.op, operands, tuple(sorted(node.params.items())))
    except TypeError:
        return 1


@dataclass(frozen=True)
class Limit:
    """Which numbers an integer tensor of the batch may hold: from 0 below ``size``, and those that are ``ignored``."""

    size: int
    ignored: frozenset[int]


def limits(order: Sequence[Node]) -> dict[Node, Limit]:
    """The limits of integer leaves that are used as positions or class numbers."""
    found: dict[Node, int] = {}
    ignored: dict[Node, set[int]] = {}
    for node in order:
        kind = node.op.native
        if kind == "one_hot":
            size, place = node.params["classes"], node.inputs[0]
        elif kind in access.INDEXED:
            size, place = sizes(node.inputs[0])[node.params["axis"]], node.inputs[1]
        elif access.is_scatter(node):
            size, place = sizes(node)[node.params["axis"]], node.inputs[1]
        else:
            numbers = [x.number for x in node.inputs if isinstance(x.number, int)]
            if node.type.dtype == "bool" and numbers and access.is_elementwise(node):
                for x in node.inputs:
                    ignored.setdefault(_behind(x), set()).update(numbers)
            continue
        for leaf in toposort([place]):
            if leaf.op.native == "input" and "int" in leaf.type.dtype:
                found[leaf] = min(int(size or 0), found.get(leaf, int(size or 0)))
    return {leaf: Limit(size, frozenset(ignored.get(leaf, ()))) for leaf, size in found.items()}


def _behind(node: Node) -> Node:
    while access.is_view(node):
        node = node.inputs[0]
    return node
