"""Terms written back as a node, the way a person would write the formula.

Common factors are taken out (``A' @ (A @ x - b)``), a common number too (``2 * (f3 - y)``), positive terms come first,
powers below zero go under a fraction line, and everything is ordered, so that equal sums become the same node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import permutations

from chainrule.interpreters.terms import Algebra, Factor, Number, Sum, Term, collect, rename
from chainrule.ir import OPS, Node, apply, constant, digest, tree_size
from chainrule.ops.contraction import einsum
from chainrule.ops.movement import broadcast, expand_dims, squeeze

Indices = tuple[int, ...]

_MAX_ORDERS = 120  # orders of equal operands that are compared
_MAX_FACTORED = 40  # sums of more terms than this are left as they are


def order_key(node: Node) -> tuple[object, ...]:
    """Human order: names alphabetically, then expressions from short to long, alphabetically among equals."""
    if node.is_leaf:
        return (0, 0, str(node.params.get("name", node.params)))
    return (1, tree_size(node), node.op.name, digest(node).hex())


def _term_key(term: Term) -> tuple[object, ...]:
    keys = sorted((order_key(f.atom), float(f.power), str(f.indices)) for f in term.factors)
    return (len(term.factors) > 0, sum(not f.atom.is_leaf for f in term.factors), keys)


class Builder:
    """Builds nodes of one dtype over the indices of one algebra."""

    def __init__(self, algebra: Algebra, dtype: str) -> None:
        self.algebra, self.dtype = algebra, dtype

    # ---- sums ----------------------------------------------------------------------------------------------
    def sum(self, terms: Sum, free: Indices) -> Node:
        """The node of a sum of terms, with one dimension per free index."""
        terms = collect(terms, self.algebra)
        shape = tuple(self.algebra.sizes[i] for i in free)
        if not terms:
            return broadcast(constant(0.0, self.dtype), shape)
        node = self._sum(terms, free)
        new = len(shape) - node.type.rank
        if new and all(size == 1 for size in shape[:new]):
            node = expand_dims(node, tuple(range(new)))
        return broadcast(node, shape)

    def _sum(self, terms: Sum, free: Indices) -> Node:
        if 1 < len(terms) <= _MAX_FACTORED:
            terms = self._take_out(terms, free)
        if len(terms) == 1:
            return self._term(terms[0], free)
        content, terms = _content(terms)
        # Positive terms first; a stable sort keeps each group in canonical order.
        terms = sorted(sorted(terms, key=_term_key), key=lambda t: t.coefficient < 0)
        node = self._term(terms[0], free)
        for term in terms[1:]:
            if term.coefficient < 0:
                node = node - self._term(replace(term, coefficient=-term.coefficient), free)
            else:
                node = node + self._term(term, free)
        return node if content == 1 else self._scaled(node, content)

    def _scaled(self, node: Node, number: Number) -> Node:
        sign, number = (-1, -number) if number < 0 else (1, number)
        if isinstance(number, Fraction):
            node = node if number.numerator == 1 else self._number(number.numerator) * node
            node = node if number.denominator == 1 else node / self._number(number.denominator)
        else:
            node = self._number(number) * node
        return -node if sign < 0 else node

    def _number(self, value: Number | int) -> Node:
        return constant(float(value), self.dtype)

    # ---- common factors ------------------------------------------------------------------------------------
    def _take_out(self, terms: Sum, free: Indices) -> Sum:
        while True:
            found = self._best_common(terms, free)
            if found is None:
                return terms
            members, rest = found
            grouped = self._group(members, free)
            if grouped is None:
                return terms
            terms = collect([grouped, *rest], self.algebra)
            if len(terms) == 1:
                return terms

    def _best_common(self, terms: Sum, free: Indices) -> tuple[list[tuple[Term, Factor]], Sum] | None:
        """The factor whose removal saves most, with the terms that have it and those that do not."""
        best_gain, best = 0, None
        shared: dict[object, list[tuple[Term, Factor]]] = {}
        for term in terms:
            seen = set()
            for f in term.factors:
                if "size" in f.atom.params and f.indices:
                    continue  # identities and dimensions are no common factor
                pattern = tuple(i if i in free or i is None else "*" for i in f.indices)
                key = (f.atom, pattern, f.power > 0)
                if key not in seen:
                    seen.add(key)
                    shared.setdefault(key, []).append((term, f))
        for members in shared.values():
            if len(members) < 2 or not self._rests_match(members, free):
                continue
            gain = (len(members) - 1) * (tree_size(members[0][1].atom) + 1)
            if gain > best_gain:
                inside = {id(t) for t, _ in members}
                best_gain, best = gain, (members, [t for t in terms if id(t) not in inside])
        return best

    def _rests_match(self, members: list[tuple[Term, Factor]], free: Indices) -> bool:
        """Whether what remains of each term has the same free indices: a sum of matrices, not of a matrix and a row."""
        common = set(members[0][1].indices) & set(free)
        rests = []
        for term, f in members:
            own_dummies = {i for i in f.indices if i is not None and i not in free}
            if any(d not in term.summed for d in own_dummies) or len(own_dummies) != sum(
                1 for i in f.indices if i is not None and i not in free
            ):
                return False
            positions = {i: p for p, i in enumerate(f.indices) if i in own_dummies}
            used = {i for g in term.factors if g is not f for i in g.indices if i is not None}
            kept = _power_left(f, min(abs(m[1].power) for m in members))
            used |= set(f.indices) - {None} if kept else set()
            rests.append({("d", positions[i]) if i in positions else i for i in used if i in free or i in positions})
        union = set().union(*rests)
        return all(r == rests[0] for r in rests) or union <= common

    def _group(self, members: list[tuple[Term, Factor]], free: Indices) -> Term | None:
        """``f * (sum of what remains)`` as one term."""
        first = members[0][1]
        dummies = tuple(i for i in first.indices if i is not None and i not in free)
        power = min((m[1].power for m in members), key=abs)
        inner: Sum = []
        for term, f in members:
            image = {
                a: b
                for a, b in zip(f.indices, first.indices, strict=True)
                if a is not None and b is not None and a != b
            }
            # Names of the common factor's summed indices must not collide with other summed indices of this term.
            clash = {i for i in term.summed if i in image.values() and i not in image}
            moved = rename(term, {i: self.algebra.fresh(self.algebra.sizes[i]) for i in clash})
            moved = rename(moved, image)
            position = term.factors.index(f)
            left = f.power - power
            own = [replace(moved.factors[position], power=left)] if left else []
            factors = (*moved.factors[:position], *own, *moved.factors[position + 1 :])
            inner.append(Term(moved.coefficient, factors, tuple(i for i in moved.summed if i not in dummies)))
        inner = collect(inner, self.algebra)
        if not inner:
            return Term(Fraction(0))
        used = {i for t in inner for f in t.factors for i in f.indices}
        # Indices in reading order: A' @ inner reads the summed index of inner first, inner @ x reads it last.
        inside = [i for i in free if i in used and i not in first.indices]
        leads = [i for i in free if i in first.indices]
        before = bool(leads and inside and free.index(leads[0]) < free.index(inside[0]))
        outer = tuple(i for i in ((*dummies, *free) if before else (*free, *dummies)) if i in used)
        if len(inner) == 1:
            body = inner[0]
            return Term(body.coefficient, (replace(first, power=power), *body.factors), (*body.summed, *dummies))
        # The number in front of the inner sum joins the outer term, so that -(y - x) and (x - y) are one factor.
        content, inner = _content(sorted(inner, key=_term_key), sign=True)
        node = self.sum(inner, outer)
        return Term(content, (replace(first, power=power), Factor(node, outer)), dummies)

    # ---- one term ------------------------------------------------------------------------------------------
    def _term(self, term: Term, free: Indices) -> Node:
        """The node of a term: dimensions for the free indices that it has, aligned for broadcasting."""
        top: list[tuple[Node, Indices]] = []
        bottom: list[tuple[Node, Indices]] = []
        for f in sorted(term.factors, key=lambda f: order_key(f.atom)):
            node, indices = _squeezed(f)
            if f.power > 0 or any(i in term.summed for i in indices):
                top.append((_raised(node, f.power), indices))
            else:
                bottom.append((_raised(node, -f.power), indices))
        covered = tuple(i for i in free if any(i in own for _, own in top))
        coefficient = term.coefficient
        negative, coefficient = coefficient < 0, abs(coefficient)
        numerator: Number = coefficient.numerator if isinstance(coefficient, Fraction) else coefficient
        front = [(self._number(numerator), ())] if numerator != 1 or not top else []
        node = self._product([*front, *top], covered, term.summed)
        assert node is not None
        below: list[Node] = []
        if isinstance(coefficient, Fraction) and coefficient.denominator != 1:
            below.append(self._number(coefficient.denominator))
        missing = tuple(i for i in free if i not in covered and any(i in own for _, own in bottom))
        covered_all = tuple(i for i in free if i in covered or i in missing)
        node = _align(node, covered, covered_all)
        below += [_align(d, own, covered_all) for d, own in bottom]
        if below:
            under = below[0]
            for d in below[1:]:
                under = under * d
            node = node / under
        node = _align(node, covered_all, free)
        return -node if negative else node

    def _product(self, top: list[tuple[Node, Indices]], covered: Indices, summed: Indices) -> Node | None:
        scalars = [node for node, own in top if not own]
        tensors: dict[Indices, Node] = {}
        extra: list[tuple[Node, Indices]] = []
        for node, own in top:
            if not own:
                continue
            if "size" in node.params or len(set(own)) != len(own):
                extra.append((node, own))
            else:
                tensors[own] = tensors[own] * node if own in tensors else node
        parts = [(node, own) for own, node in tensors.items()] + extra
        core: Node | None = None
        if len(parts) == 1 and parts[0][1] == covered:
            core = parts[0][0]
        elif (
            parts
            and not summed
            and not extra
            and covered in tensors
            and all(own == covered[len(covered) - len(own) :] for own in tensors)
        ):
            core = tensors[covered]  # NumPy aligns last dimensions: a plain product
            for own, node in tensors.items():
                if own != covered:
                    core = core * node
        elif parts:
            core = _canonical_einsum(parts, covered)
        product: Node | None = None
        for node in [*scalars, *([core] if core is not None else [])]:
            product = node if product is None else product * node
        return product


def _canonical_einsum(parts: list[tuple[Node, Indices]], result: Indices) -> Node:
    """The einsum with its operands in one order: equal operands in the order that numbers the indices least."""
    groups: dict[Node, list[Indices]] = {}
    for node, own in parts:
        groups.setdefault(node, []).append(own)
    orders: list[list[tuple[Node, Indices]]] = [[]]
    for node, owns in groups.items():
        options = list(permutations(owns)) if len(owns) <= 4 else [tuple(owns)]
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


def _power_left(f: Factor, common: Number) -> bool:
    return abs(f.power) != common


def _content(terms: Sum, sign: bool = False) -> tuple[Number, Sum]:
    """The number that all coefficients share, taken out; with ``sign``, so that the first coefficient is positive."""
    sizes = {abs(t.coefficient) for t in terms}
    content: Number = sizes.pop() if len(sizes) == 1 else Fraction(1)
    if sign and terms[0].coefficient < 0:
        content = -content
    if content == 1:
        return content, terms
    return content, [replace(t, coefficient=t.coefficient / content) for t in terms]


def _squeezed(f: Factor) -> tuple[Node, Indices]:
    axes = tuple(a for a, i in enumerate(f.indices) if i is None)
    node, indices = squeeze(f.atom, axes), tuple(i for i in f.indices if i is not None)
    once = tuple(dict.fromkeys(indices))
    return (node, indices) if once == indices else (einsum(([indices], once), node), once)  # a diagonal


def _raised(node: Node, power: Number) -> Node:
    if power == 1:
        return node
    if power == Fraction(1, 2):
        return apply(OPS["sqrt"], node)
    if power == -1:
        return 1.0 / node
    return node ** float(power)


def _align(node: Node, own: Indices, target: Indices) -> Node:
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
