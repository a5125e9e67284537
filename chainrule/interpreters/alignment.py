"""Nodes read at indices: diagonals and size-1 dimensions taken off, dimensions put in order, one order of operands."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations, product

from chainrule.interpreters.factors import Factor, Number
from chainrule.interpreters.terms import symmetric
from chainrule.ir import OPS, Node, apply
from chainrule.ops.contraction import einsum
from chainrule.ops.movement import expand_dims, squeeze

Indices = tuple[int, ...]

_MAX_ORDERS = 120  # orders of equal operands that are compared


def as_stored(indices: Indices, factors: Sequence[Factor]) -> Indices:
    """Indices in the order in which most factors over just these have them, so that a sum needs few transposes."""
    votes: dict[Indices, int] = {}
    for f in factors:
        if len(f.indices) == len(indices) > 1 and set(f.indices) == set(indices):
            own = tuple(i for i in f.indices if i is not None)
            votes[own] = votes.get(own, 0) + 1
    best = max(votes, key=lambda own: (votes[own], own == indices), default=indices)
    return best if votes.get(best, 0) > votes.get(indices, 0) else indices


def canonical_einsum(parts: list[tuple[Node, Indices]], result: Indices) -> Node:
    """The einsum with its operands in one order: equal operands in the order that numbers the indices least."""
    groups: dict[Node, list[Indices]] = {}
    for node, own in parts:
        groups.setdefault(node, []).append(own)
    orders: list[list[tuple[Node, Indices]]] = [[]]
    for node, owns in groups.items():
        options = list(permutations(owns)) if len(owns) <= 4 else [tuple(owns)]
        if len(owns) <= 2 and len(owns[0]) == 2 and symmetric(node):  # each may be read either way
            options = [
                tuple(own[::step] for own, step in zip(option, steps, strict=True))
                for option in options
                for steps in product((1, -1), repeat=len(option))
            ]
        if len(orders) * len(options) > _MAX_ORDERS:
            options = options[:1]
        orders = [[*o, *((node, own) for own in option)] for o in orders for option in options]
    best = min(orders, key=lambda order: _numbered([own for _, own in order], result))
    return einsum(([own for _, own in best], result), *(node for node, _ in best))


def _numbered(operands: Sequence[Indices], result: Indices) -> tuple[object, ...]:
    number: dict[int, int] = {}
    for own in operands:
        for i in own:
            number.setdefault(i, len(number))
    return tuple(tuple(number[i] for i in own) for own in operands), tuple(number[i] for i in result)


def squeezed(f: Factor) -> tuple[Node, Indices]:
    axes = tuple(a for a, i in enumerate(f.indices) if i is None)
    node, indices = squeeze(f.atom, axes), tuple(i for i in f.indices if i is not None)
    once = tuple(dict.fromkeys(indices))
    return (node, indices) if once == indices else (einsum(([indices], once), node), once)  # a diagonal


def raised(node: Node, power: Number) -> Node:
    if power == 1:
        return node
    if power == Fraction(1, 2):
        return apply(OPS["sqrt"], node)
    if power == -1:
        return 1.0 / node
    return node ** float(power)


def align(node: Node, own: Indices, target: Indices) -> Node:
    """``node`` with dimensions ``own`` given size-1 dimensions so that it broadcasts against ``target``."""
    missing = [a for a, i in enumerate(target) if i not in own]
    if not own:
        return node
    order = tuple(own.index(i) for i in target if i in own)
    if order != tuple(range(len(own))):
        node = einsum(([tuple(range(len(own)))], order), node)
    first = next(a for a, i in enumerate(target) if i in own)
    return (
        expand_dims(node, tuple(a - first for a in missing if a > first)) if any(a > first for a in missing) else node
    )
