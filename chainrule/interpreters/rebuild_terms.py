"""Terms written back as a node, the way a person would write the formula.

Common factors are taken out (``A' @ (A @ x - b)``), a common number too (``2 * (f3 - y)``), positive terms come first,
powers below zero go under a fraction line, and everything is ordered, so that equal sums become the same node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import permutations

from chainrule.interpreters.alignment import align, as_stored, canonical_einsum, raised, squeezed
from chainrule.interpreters.common_factors import best_common, best_under_identity
from chainrule.interpreters.factors import Factor, Index, Number, Sum, Term, order_key, rename
from chainrule.interpreters.terms import Algebra, collect
from chainrule.ir import Node, as_node, constant, tree_size
from chainrule.ops.arithmetic import where
from chainrule.ops.contraction import einsum, sum_axes
from chainrule.ops.movement import broadcast, expand_dims
from chainrule.ops.recognition import complementary
from chainrule.ops.reductions import mean

Indices = tuple[int, ...]

_MAX_FACTORED = 40  # sums of more terms than this are left as they are


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
        single = [
            i for i in free if self.algebra.sizes[i] == 1 and not any(i in f.indices for t in terms for f in t.factors)
        ]
        if single and len(single) < len(free):  # dimensions of size 1 that nothing has are added at the very end
            inner = self.sum(terms, tuple(i for i in free if i not in single))
            return expand_dims(inner, tuple(a for a, i in enumerate(free) if i in single))
        node = self._sum(terms, free)
        if len(terms) > 1:
            node = self._shorter_flat(node, terms, free)
        new = len(shape) - node.type.rank
        if new and all(size == 1 for size in shape[:new]):
            node = expand_dims(node, tuple(range(new)))
        return broadcast(node, shape)

    def _shorter_flat(self, node: Node, terms: Sum, free: Indices) -> Node:
        """The node, or the same with sums among its terms taken apart: ``X + (X - A)'`` as ``2 X - A'``."""
        flat: Sum = []
        for term in terms:
            inner = [term]
            if len(term.factors) == 1 and not term.summed and term.factors[0].power == 1:
                f = term.factors[0]
                inner = self.algebra.scaled(
                    1, self.algebra.multiply([[replace(term, factors=())], self.algebra.expand(f.atom, f.indices)])
                )
            flat += inner
        if len(flat) == len(terms):
            return node
        flat = collect(flat, self.algebra)
        if not flat:
            return broadcast(constant(0.0, self.dtype), tuple(self.algebra.sizes[i] for i in free))
        shorter = self._sum(flat, free)
        return shorter if tree_size(shorter) < tree_size(node) else node

    def _sum(self, terms: Sum, free: Indices) -> Node:
        terms = [self._with_means(t) for t in terms]
        if len(terms) > 1:
            terms = self._under_common_identity(self._with_choices(terms, free), free)
        if len(terms) > 1 and _reads_transposed(terms, free):
            return einsum("ij->ji", self.sum(terms, free[::-1]))
        if 1 < len(terms) <= _MAX_FACTORED:
            terms = self._take_out(terms, free)
        if not terms:  # choices put together, or factors taken out, showed that everything cancels
            return broadcast(constant(0.0, self.dtype), tuple(self.algebra.sizes[i] for i in free))
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

    def _under_common_identity(self, terms: Sum, free: Indices) -> Sum:
        """``diag(a) + diag(b)`` as ``diag(a + b)``."""
        shared = [
            f for f in terms[0].factors if "size" in f.atom.params and len(f.indices) == 2 and set(f.indices) <= {*free}
        ]
        for tie in shared:
            if not all(tie in t.factors for t in terms):
                continue
            inner = [replace(t, factors=tuple(f for f in t.factors if f != tie)) for t in terms]
            used = {i for t in inner for f in t.factors for i in f.indices}
            own = tuple(i for i in free if i in used)
            return [Term(Fraction(1), (Factor(self.sum(inner, own), own), tie))]
        return terms

    def _with_choices(self, terms: Sum, free: Indices) -> Sum:
        """``[c] * a + [not c] * b`` as ``where(c, a, b)``."""
        indicators = {f for t in terms for f in t.factors if f.power == 1 and set(f.indices) <= set(free)}
        for yes, no in permutations(sorted(indicators, key=lambda f: order_key(f.atom)), 2):
            condition = complementary(yes.atom, no.atom) if yes.indices == no.indices else None
            if condition is None:
                continue
            chosen, others, rest = (
                [replace(t, factors=tuple(f for f in t.factors if f != yes)) for t in terms if yes in t.factors],
                [replace(t, factors=tuple(f for f in t.factors if f != no)) for t in terms if no in t.factors],
                [t for t in terms if yes not in t.factors and no not in t.factors],
            )
            own = {i for t in (*chosen, *others) for f in t.factors for i in f.indices} | set(yes.indices)
            target = tuple(i for i in free if i in own)
            branches = [self._sum(collect(part, self.algebra), target) for part in (chosen, others)]
            at = tuple(i for i in yes.indices if i is not None)
            if len(set(at)) != len(yes.indices):
                continue
            node = where(align(condition, at, target), *branches)
            if node.type.rank == len(target):
                return self._with_choices([Term(Fraction(1), (Factor(node, target),)), *rest], free)
        return terms

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
            found = best_common(terms, free) or best_under_identity(terms, free, self.algebra, self.dtype)
            if found is None:
                return terms
            members, rest = found
            grouped = self._group(members, free)
            if grouped is None:
                return terms
            terms = collect([grouped, *rest], self.algebra)
            if len(terms) == 1:
                return terms

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
        outer = as_stored(outer, [f for t in (*inner, members[0][0]) for f in t.factors])
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
        term = _with_positive_sign(term)
        fraction = self._summed_fraction(term, free)
        if fraction is not None:
            return fraction
        for f in sorted(term.factors, key=lambda f: order_key(f.atom)):
            node, indices = squeezed(f)
            if f.power > 0 or any(i in term.summed for i in indices):
                top.append((raised(node, f.power), indices))
            else:
                bottom.append((raised(node, -f.power), indices))
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
        node = align(node, covered, covered_all)
        below += [align(d, own, covered_all) for d, own in bottom]
        if below:
            under = below[0]
            for d in below[1:]:
                under = under * d
            node = node / under
        node = align(node, covered_all, free)
        return -node if negative else node

    def _with_means(self, term: Term) -> Term:
        """``sum_i a_i b_i / n`` with i over n as ``mean(a * b)``: sums of elementwise products over their size."""
        groups: dict[frozenset[Index], list[Factor]] = {}
        for f in term.factors:
            if len(set(f.indices)) == len(f.indices) and None not in f.indices:
                groups.setdefault(frozenset(f.indices), []).append(f)
        for shared, group in groups.items():
            averaged = [i for i in group[0].indices if i in term.summed]
            outside = {i for f in term.factors if f not in group for i in f.indices}
            if not averaged or outside & set(averaged) or any("size" in f.atom.params for f in group):
                continue
            left = self._without_sizes(term, [i for i in averaged if i is not None])
            if left is None:
                continue
            own = tuple(i for i in group[0].indices if i is not None)
            node, _ = self._fraction([f for f in left.factors if f in group], own)
            node = mean(node, tuple(a for a, i in enumerate(own) if i in averaged))
            factors = (
                *(f for f in left.factors if f not in group),
                Factor(node, tuple(i for i in own if i not in averaged)),
            )
            return self._with_means(Term(left.coefficient, factors, tuple(i for i in term.summed if i not in shared)))
        return term

    def _summed_fraction(self, term: Term, free: Indices) -> Node | None:
        """``sum_j D_ijk / d_ij`` as ``sum(D / d[:, :, None], 1)``: a tensor divided by what has fewer dimensions."""
        below = any(f.power < 0 and any(i in term.summed for i in f.indices) for f in term.factors)
        whole = max((f.indices for f in term.factors if f.power > 0), key=len, default=())
        own = tuple(i for i in whole if i is not None)
        kept = tuple(i for i in own if i not in term.summed)
        inside = [f for f in term.factors if f.indices]
        if not below or len(own) < 3 or len(set(own)) != len(whole) or kept != tuple(i for i in free if i in kept):
            return None
        if any(not set(f.indices) <= set(own) or len(set(f.indices)) != len(f.indices) for f in inside):
            return None
        if not set(term.summed) <= set(own):
            return None
        node = self._term(Term(Fraction(1), tuple(inside)), own)
        total = Factor(sum_axes(node, tuple(a for a, i in enumerate(own) if i in term.summed)), kept)
        scalars = tuple(f for f in term.factors if not f.indices)
        return self._term(Term(term.coefficient, (total, *scalars)), free)

    def _without_sizes(self, term: Term, indices: Sequence[int]) -> Term | None:
        """The term times the sizes of dimensions that it is divided by; None where it is not."""
        coefficient, factors = term.coefficient, list(term.factors)
        for index in indices:
            size = self.algebra.sizes[index]
            if isinstance(size, int):
                if size < 2 or not isinstance(coefficient, Fraction) or coefficient.denominator % size:
                    return None
                coefficient *= size
                continue
            atom = as_node(size)
            found = next((k for k, f in enumerate(factors) if f.atom is atom and f.power <= -1), None)
            if found is None:
                return None
            factors[found] = replace(factors[found], power=factors[found].power + 1)
        return Term(coefficient, tuple(f for f in factors if f.power != 0), term.summed)

    def _fraction(self, factors: Sequence[Factor], own: Indices) -> tuple[Node, Indices]:
        """The elementwise product of factors over the same indices, as one node with dimensions ``own``."""
        node = self._term(Term(Fraction(1), tuple(factors)), own)
        return broadcast(node, tuple(self.algebra.sizes[i] for i in own)), own

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
            core = canonical_einsum(parts, covered)
        product: Node | None = None
        for node in [*scalars, *([core] if core is not None else [])]:
            product = node if product is None else product * node
        return product


def _reads_transposed(terms: Sum, free: Indices) -> bool:
    """Whether every matrix is read from the wrong side: ``X' @ B' + B' @ X'`` is ``(X @ B + B @ X)'``."""
    if len(free) != 2:
        return False
    row, column = free
    for term in terms:
        outer = [f for f in term.factors if row in f.indices or column in f.indices]
        if not outer or any(len(f.indices) != 2 or f.indices[0] == row or f.indices[1] == column for f in outer):
            return False
    return True


def _with_positive_sign(term: Term) -> Term:
    """``-(a - b) * c`` as ``(b - a) * c``."""
    if term.coefficient != -1:
        return term
    for k, f in enumerate(term.factors):
        if f.atom.op.opposite is not None and f.power in (1, -1):
            flipped = replace(f, atom=f.atom.op.opposite(f.atom))
            return Term(-term.coefficient, (*term.factors[:k], flipped, *term.factors[k + 1 :]), term.summed)
    return term


def _content(terms: Sum, sign: bool = False) -> tuple[Number, Sum]:
    """The number that all coefficients share, taken out; with ``sign``, so that the first coefficient is positive."""
    sizes = {abs(t.coefficient) for t in terms}
    content: Number = sizes.pop() if len(sizes) == 1 else Fraction(1)
    if sign and terms[0].coefficient < 0:
        content = -content
    if content == 1:
        return content, terms
    return content, [replace(t, coefficient=t.coefficient / content) for t in terms]
