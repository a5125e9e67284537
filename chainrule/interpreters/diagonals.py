"""A tensor as a sum of cores that stand on its diagonals: no identity matrix is ever multiplied by anything.

The Hessian of ``sum((T - U V')^2)`` by U is ``2 (V'V)_kl`` where i = j and zero elsewhere. Its terms are read off the
algebra; each identity between two dimensions of the tensor is a *tie*, and what the terms of one set of ties add up to,
with tied dimensions read once, is their core. The cores are what has to be computed, kept and solved with.

Neighbours: ``linearize`` gives the tensor, ``contraction_order`` the order of the products inside of a core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from chainrule.interpreters.contraction_order import pairwise
from chainrule.interpreters.factors import Factor, Sum, Term, rename
from chainrule.interpreters.rebuild_terms import Builder
from chainrule.interpreters.terms import Algebra, collect, is_identity
from chainrule.ir import Node, apply, toposort

Ties = tuple[tuple[int, int], ...]

_MOST_TERMS = 64


@dataclass(frozen=True)
class Core:
    """One part of a tensor T: ``T[i..] = node[i without the tied]`` where all ties hold, zero elsewhere.

    Attributes:
        ties: pairs of dimensions of the tensor that are equal, the later one second. node: the values.
        axes: the dimensions of the tensor that the node's are, in order.
        factors: values that share no dimension, each with its axes, whose product the node is (a Kronecker or an outer
            product); one of them where it is no such product.
    """

    ties: Ties
    node: Node
    axes: tuple[int, ...]
    factors: tuple[tuple[Node, tuple[int, ...]], ...]


def cores(tensor: Node) -> list[Core] | None:
    """The cores of a tensor, the one without ties first; none of a zero; None where its terms are too many to read.

    >>> from chainrule.ir import TensorType, variable
    >>> from chainrule.ops.contraction import einsum, eye
    >>> V = variable("V", TensorType((4, 2)))
    >>> [core] = cores(einsum("jk,jl,im->ikml", V, V, eye(3)))
    >>> core.ties, core.node.shape, core.axes
    (((0, 2),), (3, 2, 2), (0, 1, 3))
    """
    algebra = Algebra()
    free = algebra.indices_of(tensor.type)
    groups: dict[Ties, Sum] = {}
    pending = collect(algebra.expand(tensor, free), algebra)
    count = 0
    while pending:
        count += 1
        if count > _MOST_TERMS:
            return None
        term = pending.pop(0)
        hidden = next((f for f in term.factors if f.power == 1 and _hides_an_identity(f)), None)
        split = algebra.expand(hidden.atom, hidden.indices) if hidden is not None else None
        if hidden is not None and split is not None and not (len(split) == 1 and split[0].factors == (hidden,)):
            others = replace(term, factors=tuple(f for f in term.factors if f is not hidden))
            pending += collect(algebra.multiply([[others], split]), algebra)
            continue
        ties, core = _untied(term, free)
        groups.setdefault(ties, []).append(core)
    found = []
    for ties in sorted(groups, key=len):
        axes = tuple(a for a in range(len(free)) if a not in {second for _, second in ties})
        builder = Builder(algebra, tensor.type.dtype)
        node = builder.sum(groups[ties], tuple(free[a] for a in axes))
        apart = _apart(groups[ties][0], free, axes) if len(groups[ties]) == 1 else []
        parts = [(builder.sum([t], tuple(free[a] for a in own)), own) for t, own in apart]
        found.append(Core(ties, node, axes, tuple(parts) if len(parts) > 1 else ((node, axes),)))
    nodes = dict.fromkeys(n for c in found for n in (c.node, *(f for f, _ in c.factors)))
    image = dict(zip(nodes, map(_scaled_inside, pairwise(list(nodes), (), {})), strict=True))
    return [replace(c, node=image[c.node], factors=tuple((image[f], own) for f, own in c.factors)) for c in found]


def _apart(term: Term, free: Sequence[int], axes: Sequence[int]) -> list[tuple[Term, tuple[int, ...]]]:
    """A term as factors that share no index, each with the dimensions it reads; the number goes to the first."""
    groups: list[tuple[list[Factor], set[int]]] = []
    for f in term.factors:
        own = {i for i in f.indices if i is not None}
        joined = [g for g in groups if g[1] & own]
        groups = [g for g in groups if not g[1] & own]
        groups.append(([*(x for g, _ in joined for x in g), f], own.union(*(i for _, i in joined))))
    numbers = [f for factors, own in groups if not own for f in factors]
    parts: list[tuple[Term, tuple[int, ...]]] = []
    for factors, own in ((f, i) for f, i in groups if i):
        first = not parts
        summed = tuple(i for i in term.summed if i in own)
        held = Term(term.coefficient if first else Fraction(1), (*factors, *(numbers if first else ())), summed)
        parts.append((held, tuple(a for a in axes if free[a] in own)))
    # Dimensions that nothing reads are in no factor: then the parts are not the whole.
    return parts if sum(len(own) for _, own in parts) == len(axes) and all(own for _, own in parts) else []


def _scaled_inside(node: Node) -> Node:
    """A number times a large product as the product with its smallest operand scaled."""
    if node.op.family != "elementwise" or not node.inputs or not isinstance(node.type.numel, int):
        return node
    *scales, large = sorted(node.inputs, key=lambda i: i.type.numel)
    if large.type != node.type or any(s.number is None for s in scales) or node.op.terms is None:
        return node
    if "operands" not in large.params or len(large.inputs) < 2:
        return node
    small = min(range(len(large.inputs)), key=lambda k: large.inputs[k].type.numel)
    if 4 * large.inputs[small].type.numel > node.type.numel:
        return node
    scaled = apply(node.op, *(large.inputs[small] if i is large else i for i in node.inputs), **node.params)
    if scaled.type != large.inputs[small].type or not _only_scales(node, large):
        return node
    return apply(large.op, *(scaled if k == small else i for k, i in enumerate(large.inputs)), **large.params)


def _only_scales(node: Node, large: Node) -> bool:
    """Whether the node is a number times ``large``, by the algebra."""
    algebra = Algebra()
    free = algebra.indices_of(node.type)
    terms, inner = algebra.expand(node, free), algebra.expand(large, free)
    if len(terms) != 1 or len(inner) != 1:
        return False
    # Powers too: the square of a product has the product's factors.
    outside, within = ([(f.atom, f.power) for f in t[0].factors] for t in (terms, inner))
    return Counter(outside) == Counter(within)


def _hides_an_identity(f: Factor) -> bool:
    """Whether an identity is inside of a factor, so that the whole is mostly zeros."""
    return not f.atom.is_leaf and any("size" in n.params and n.is_leaf for n in toposort([f.atom]))


def _untied(term: Term, free: Sequence[int]) -> tuple[Ties, Term]:
    """The identities between dimensions of the tensor, and the rest of the term with tied dimensions read once."""
    place = {index: axis for axis, index in enumerate(free)}
    image: dict[int, int] = {}
    ties: list[tuple[int, int]] = []
    rest: list[Factor] = []
    for f in term.factors:
        if f.power == 1 and is_identity(f) and set(f.indices) <= set(free):
            a, b = sorted(place[_last(i, image)] for i in f.indices)
            if a != b:
                ties.append((a, b))
                image[free[b]] = free[a]
            continue
        rest.append(f)
    settled = {i: _last(i, image) for i in image}
    return tuple(sorted(ties)), rename(replace(term, factors=tuple(rest)), settled)


def _last(index: int | None, image: dict[int, int]) -> int:
    assert index is not None
    while index in image:
        index = image[index]
    return index
