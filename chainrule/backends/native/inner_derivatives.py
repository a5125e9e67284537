"""Second derivatives inside of a loss, with fewer products: a chain that runs back to one number per sample is cut.

Where a loss differentiates by the model's inputs, ``u_xx`` is the end of a linear chain that goes back through all
layers, from what arises in each (``s_k``) to the inputs: ``u_xx = sum_k <J_k e_x, s_k>`` for every sample. The tangents
``J_k e_x`` are there already, because the derivative of ``u_x`` carried them forward: the inner products give the same
number without the chain. In reverse mode a physics-informed loss then takes nine matrix products per pair of layers in
place of twelve.

Nothing is assumed about the program: a chain is followed as long as the nodes are linear and keep samples apart, and
cut only where the transposed products exist in the graph, which is a matter of identity of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from chainrule.backends.native import access
from chainrule.backends.native.access import sizes
from chainrule.backends.native.values import Affine, LoopVar
from chainrule.errors import ChainruleError
from chainrule.ir import OPS, Node, TensorType, apply, constant, substitute_nodes, toposort, variable
from chainrule.ops.movement import broadcast, reshape


def differentiates_inside(output: Node) -> bool:
    """Whether a value may hold derivatives of itself: a matrix is multiplied from more than one side."""
    sides: dict[Node, set[tuple[int, ...]]] = {}
    for node in toposort([output]):
        found = access.accumulation(node) if len(node.inputs) == 2 else None
        if found is None or "operands" not in node.params:
            continue
        for x, own in zip(node.inputs, node.params["operands"], strict=True):
            if x.op.native == "input" and len(own) == 2:
                sides.setdefault(x, set()).add(tuple(own.index(i) for i in own if i not in node.params["result"]))
    return any(len(s) > 1 for s in sides.values())


def shortened(output: Node, normal: Callable[[Node], Node]) -> Node:
    """An equal value, up to rounding, that takes fewer multiplications; the same one where there is none.

    ``normal``: the form in which equal nodes of the graph are one node.
    """
    while True:
        order = toposort([output])
        found = _candidates(order, normal)
        cost = _multiplications(order)
        groups: dict[Node, dict[Node, Node]] = {}
        for node, chain in found.items():  # several components of one derivative go together
            groups.setdefault(chain.base, {})[node] = chain.value()
        trials = [{node: chain.value()} for node, chain in found.items()] + [g for g in groups.values() if len(g) > 1]
        best = output
        for image in trials:
            (trial,) = substitute_nodes([output], image)
            lower = _multiplications(toposort([trial]))
            if lower < 0.99 * cost:
                best, cost = trial, lower
        if best is output:
            return output
        output = best


def _multiplications(order: Sequence[Node]) -> float:
    total = 0.0
    for node in order:
        found = access.accumulation(node)
        if found is not None and len(node.inputs) > 1:
            total += math.prod(sizes(node)) * math.prod(found.sizes)
    return total


@dataclass
class _Chain:
    """``<1, node>`` per sample as a sum of inner products; ``base``: the first product on the way."""

    node: Node
    base: Node
    terms: list[tuple[Node, Node]] = field(default_factory=list)

    def value(self) -> Node:
        """The node by its inner products."""
        samples = sizes(self.node)[0]
        total: Node | None = None
        by_shape: dict[tuple, Node] = {}
        for cotangent, value in self.terms:
            part = cotangent * value
            before = by_shape.get(part.shape)
            by_shape[part.shape] = part if before is None else before + part
        for shape, part in by_shape.items():
            if math.prod(shape) > samples:
                labels = tuple(range(len(shape)))
                part = apply(OPS["einsum"], part, operands=(labels,), result=(0,))
            part = reshape(part, self.node.shape)
            total = part if total is None else total + part
        assert total is not None
        return total


def _candidates(order: Sequence[Node], normal: Callable[[Node], Node]) -> dict[Node, _Chain]:
    """Nodes with one number per sample at the end of a chain of which at least one product falls away."""
    existing = set(order)
    found: dict[Node, _Chain] = {}
    for node in reversed(order):
        if not isinstance(node.type, TensorType) or not node.type.is_float or node.is_leaf:
            continue
        shape = sizes(node)
        if not shape or shape[0] < 2 or math.prod(shape) != shape[0]:
            continue
        one = broadcast(constant(1.0, node.type.dtype), node.shape)
        walk = _Walk(existing, normal)
        terms = walk.follow(node, one)
        if walk.cut and terms is not None:
            found[node] = _Chain(node, walk.cut[0], terms)
    return found


class _Walk:
    """From one end of a chain to where its parts arise. ``cut``: the products that are not needed."""

    def __init__(self, existing: set[Node], normal: Callable[[Node], Node]) -> None:
        self.existing, self.normal, self.steps = existing, normal, 0
        self.cut: list[Node] = []

    def follow(self, node: Node, cotangent: Node) -> list[tuple[Node, Node]] | None:
        """``<cotangent, node>`` as terms (cotangent, value); None where no product is saved."""
        self.steps += 1
        if node.is_leaf or self.steps > 400:
            return None
        for operands in _linear_in(node):
            try:
                back = node.op.vjp(cotangent, node, *node.inputs, **node.params)  # type: ignore[misc]
            except ChainruleError:
                return None
            product = access.accumulation(node) is not None and len(node.inputs) > 1
            terms: list[tuple[Node, Node]] = []
            before = len(self.cut)
            for k in operands:
                x, g = node.inputs[k], back[k]
                if g is None:
                    break
                if sizes(x) != sizes(g):  # an operand that was broadcast: it ends here
                    if sizes(g) != sizes(node):
                        break
                    terms.append((g, broadcast(x, node.shape)))
                    continue
                if product and g not in self.existing:
                    g = self.normal(g)
                    if g not in self.existing:
                        break
                if not _keeps_samples(node, k):
                    break
                if product:
                    self.cut.append(node)
                inner = self.follow(x, g)
                terms += inner if inner is not None else [(g, x)]
            else:
                if len(self.cut) > before:
                    return terms
            del self.cut[before:]
        return None


def _linear_in(node: Node) -> list[tuple[int, ...]]:
    """Sets of operands that a node is linear in, all of a set together: the factors of a product, one set each."""
    if node.op.vjp is None or not isinstance(node.type, TensorType):
        return []
    count = len(node.inputs)
    names = [variable(f"operand {k} of a chain", x.type) for k, x in enumerate(node.inputs)]
    result = variable("result of a chain", node.type)
    seed = variable("cotangent of a chain", node.type)
    try:
        back = node.op.vjp(seed, result, *names, **node.params)
    except ChainruleError:
        return []
    reads = [set() if g is None else set(toposort([g])) for g in back]
    if any(result in r for r in reads):
        return []
    free = [k for k in range(count) if back[k] is not None and names[k] not in reads[k]]
    together = tuple(k for k in free if not any(names[j] in reads[k] for j in free))
    if together == tuple(free) and len(free) > 1:
        sets = [together]
    else:
        sets = [(k,) for k in free]
    return [s for s in sets if _vanishes(node, s)]


def _vanishes(node: Node, operands: tuple[int, ...]) -> bool:
    """Whether the value is zero where these operands are: linear, not only affine."""
    xs = [
        held.array if held is not None else np.full(sizes(x), float(k not in operands))
        for k, (x, held) in enumerate((x, x.params.get("literal")) for x in node.inputs)
    ]
    if any("literal" in node.inputs[k].params for k in operands):
        return False
    with np.errstate(all="ignore"):
        return not np.any(node.op.value(*xs, **node.params))


def _keeps_samples(node: Node, k: int) -> bool:
    """Whether sample i of the result reads operand ``k`` at sample i only."""
    index = tuple(Affine(((LoopVar(f"{a}", a), 1),)) for a in range(node.type.rank))
    if not index:
        return False
    found = access.accumulation(node)
    if found is not None:
        more = tuple(Affine(((LoopVar(f"r{a}", a), 1),)) for a in range(len(found.sizes)))
        at = found.read(index, more)[k]
    elif access.is_view(node):
        at = access.through(node, index)
    elif access.is_product(node):
        at = access.product_reads(node, index)[k]
    elif access.is_elementwise(node):
        at = access.broadcast_index(node.inputs[k], sizes(node), index)
    elif node.op.native == "pad":
        first = [node.params[p][0] for p in ("low", "high", "interior")]
        return first == [0, 0, 0]
    elif node.op.native == "concat":
        return node.params["axis"] != 0
    else:
        return False
    moves = [index[0].terms[0][0] in dict(i.terms) for i in at]
    return bool(at) and at[0] == index[0] and sum(moves) == 1 and sizes(node.inputs[k])[0] == sizes(node)[0]
