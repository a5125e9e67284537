"""The algebra of sums of products: how a node reads as terms, and how terms become a node again.

A value with free indices is a sum of terms; a term is a number times factors, and a factor is a node (the atom) read
at indices, to a power, summed over the indices that are not free. Every op with a ``terms`` rule says how it is such
a sum; an op without one is an atom. Products are not distributed over sums (``A' @ (A @ x - b)`` stays factored)
unless asked. Identity matrices disappear by renaming an index, equal factors add their powers, equal terms add their
coefficients, and what all terms share is taken out.

Neighbours: ``simplify`` drives this over a graph; ``rebuild_terms`` writes terms back as nodes; ``linearize`` reads a
Jacobian off the terms of a linear function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

from chainrule.interpreters.factors import (
    Factor,
    Index,
    Number,
    Sum,
    Term,
    canonical_key,
    occurrence,
    order_key,
    rename,
)
from chainrule.ir import Dim, Node, TensorType, algebraic_depth, apply, as_node, is_diagonal, known_facts
from chainrule.ops.contraction import eye
from chainrule.ops.recognition import recognise

_MAX_POWER = 10**6  # of a factor; powers of powers beyond this stay nested
_MAX_LOG = 700  # of a number; exp(709) is the largest that float64 holds
MAX_DEPTH = 120  # nested sums and products; the algebra walks them recursively


def exact(value: float) -> Number:
    """A number as a fraction where that is what it means (2.0, 0.5), as a float otherwise (0.1)."""
    if isinstance(value, Fraction):
        return value
    as_fraction = Fraction(value)
    return as_fraction if as_fraction.denominator <= 64 else float(value)


@lru_cache(maxsize=4096)
def symmetric(node: Node) -> bool:
    """Whether a matrix is its own transpose: as declared, or by its form: an identity, ``X' @ X``, ``inv(A + A')``."""
    if node.type.rank != 2 or node.shape[0] != node.shape[1] or algebraic_depth(node) > MAX_DEPTH:
        return False
    if "symmetric" in known_facts(node):
        return True
    if node.op.keeps_symmetry:
        return symmetric(node.inputs[0])
    if node.op.terms is None or not node.inputs:
        return False
    algebra = Algebra()
    i, j = algebra.indices_of(node.type)
    read, transposed = (node.op.terms(algebra, node, pair) for pair in ((i, j), (j, i)))
    if read is None or transposed is None:
        return False
    a, b = (collect(terms, algebra) for terms in (read, transposed))
    return {_key(t): t.coefficient for t in a} == {_key(t): t.coefficient for t in b}


def _key(term: Term) -> object:
    return canonical_key(term, _symmetric_atom)


def _symmetric_atom(atom: Node) -> bool:
    # Of a form, inverses only: their matrix is smaller, so that the question ends.
    return "symmetric" in known_facts(atom) or (atom.op.keeps_symmetry and symmetric(atom))


@lru_cache(maxsize=4096)
def exchanges(node: Node) -> tuple[tuple[int, int, int], ...]:
    """Pairs of dimensions of a sum that may be exchanged, with the sign that this costs: ``X[:, None] - X`` has -1."""
    if node.op.terms is None or not node.inputs or node.type.rank not in (2, 3) or algebraic_depth(node) > MAX_DEPTH:
        return ((0, 1, 1),) if node.type.rank == 2 and symmetric(node) else ()
    found = []
    for p, q in combinations(range(node.type.rank), 2):
        if node.shape[p] != node.shape[q]:
            continue
        algebra = Algebra()
        own = list(algebra.indices_of(node.type))
        read = node.op.terms(algebra, node, tuple(own))
        own[p], own[q] = own[q], own[p]
        turned = node.op.terms(algebra, node, tuple(own))
        if read is None or turned is None:
            continue
        a, b = ({_key(t): t.coefficient for t in collect(terms, algebra)} for terms in (read, turned))
        if a == b:
            found.append((p, q, 1))
        elif len(a) > 1 and a == {key: -c for key, c in b.items()}:
            found.append((p, q, -1))
    return tuple(found)


class Algebra:
    """Expansion of nodes into terms. One instance per expression: it owns the indices.

    Args:
        sums_are_atoms: whether a contraction that sums is one factor.
    """

    def __init__(self, sums_are_atoms: bool = False) -> None:
        self.sizes: dict[int, int | Dim] = {}
        self.splits_inverses = False
        self._sums_are_atoms = sums_are_atoms  # inside a power: (a * sum(x))^-1 is a^-1 * sum(x)^-1

    def fresh(self, size: int | Dim) -> int:
        """A new index over a dimension of that size."""
        index = len(self.sizes)
        self.sizes[index] = size
        return index

    def indices_of(self, type_: TensorType) -> tuple[int, ...]:
        """New indices for every dimension of a type."""
        return tuple(self.fresh(size) for size in type_.shape)

    # ---- what the ``terms`` rules call ---------------------------------------------------------------------
    def expand(self, node: Node, indices: Sequence[Index]) -> Sum:
        """The terms of ``node`` at ``indices``."""
        rule = node.op.terms if algebraic_depth(node) <= MAX_DEPTH else None
        found = rule(self, node, tuple(indices)) if rule is not None else None
        return found if found is not None else self.atom(node, tuple(indices))

    def atom(self, node: Node, indices: tuple[Index, ...], power: Number = Fraction(1)) -> Sum:
        """The node as one factor; dimensions that may be exchanged are read with their indices in one order."""
        sign = 1
        for p, q, turned in exchanges(node) if len(indices) in (2, 3) else ():
            i, j = indices[p], indices[q]
            if i is None or j is None or (turned < 0 and power != int(power)):
                continue
            if turned < 0 and node.op.opposite is not None and order_key(node) > order_key(node.op.opposite(node)):
                node, sign = node.op.opposite(node), sign * (-1) ** int(power)
            if i == j and turned < 0 < power:
                return []
            if i > j:
                at = list(indices)
                at[p], at[q] = j, i
                indices, sign = tuple(at), sign * turned ** int(power) if turned < 0 else sign
        return [Term(Fraction(sign), (Factor(node, indices, power),))]

    def number(self, node: Node, indices: tuple[Index, ...]) -> Sum | None:
        """A scalar constant as a coefficient; arrays are atoms."""
        value = node.number
        if value is None or isinstance(value, bool) or value != value or abs(value) == float("inf"):
            return None
        return [Term(exact(value))]

    def delta(self, node: Node, indices: tuple[Index, ...]) -> Sum:
        """An identity matrix."""
        i, j = indices
        if i == j or i is None or j is None:
            return [Term(Fraction(1))]
        return self.atom(node, (min(i, j), max(i, j)))

    def scaled(self, number: float, terms: Sum) -> Sum:
        """``number`` times a sum."""
        return [replace(t, coefficient=t.coefficient * exact(number)) for t in terms]

    def sum(self, parts: Sequence[tuple[float, Node]], type_: TensorType, indices: tuple[Index, ...]) -> Sum:
        """A signed sum of nodes that broadcast to ``type_``."""
        total: Sum = []
        for sign, node in parts:
            total += self.scaled(sign, self.expand(node, aligned(node, type_, indices)))
        return total

    def broadcast(self, node: Node, type_: TensorType, indices: tuple[Index, ...]) -> Sum:
        """A node repeated to ``type_``."""
        return self.expand(node, aligned(node, type_, indices))

    def unsqueezed(self, node: Node, axes: tuple[int, ...], indices: tuple[Index, ...]) -> Sum:
        """A node without its size-1 dimensions ``axes``, read at ``indices``."""
        (x,) = node.inputs
        rest = iter(indices)
        return self.expand(x, tuple(None if a in axes else next(rest) for a in range(x.type.rank)))

    def product(self, parts: Sequence[tuple[Node, float]], type_: TensorType, indices: tuple[Index, ...]) -> Sum:
        """An elementwise product of powers of nodes that broadcast to ``type_``."""
        operands = [self.power(node, aligned(node, type_, indices), exact(p)) for node, p in parts]
        return self.multiply(operands)

    def contraction(
        self,
        inputs: Sequence[Node],
        operands: Sequence[tuple[int, ...]],
        result: Sequence[int],
        indices: tuple[Index, ...],
    ) -> Sum | None:
        """An einsum read at ``indices``; its summed indices are new."""
        if self._sums_are_atoms and any(i not in result for own in operands for i in own):
            return None
        name: dict[int, Index] = dict(zip(result, indices, strict=True))
        summed: list[int] = []
        for node, own in zip(inputs, operands, strict=True):
            for index, size in zip(own, node.shape, strict=True):
                if index not in name:
                    name[index] = self.fresh(size)
                    summed.append(len(self.sizes) - 1)
        parts = [
            self.power(n, tuple(name[i] for i in own), Fraction(1)) for n, own in zip(inputs, operands, strict=True)
        ]
        return [replace(t, summed=(*t.summed, *summed)) for t in self.multiply(parts)]

    def inverse(self, node: Node, indices: tuple[Index, ...]) -> Sum | None:
        """``inv(A @ B)`` as ``inv(B) @ inv(A)`` of square matrices, while products are multiplied out."""
        (x,) = node.inputs
        if not self.splits_inverses or x.type.rank != 2:
            return None
        i, j = indices
        pair = self.indices_of(x.type)
        terms = collect(self.expand(x, pair), self)
        if len(terms) != 1 or len(terms[0].factors) < 2 or terms[0].coefficient == 0:
            return None
        (term,) = terms
        if any(f.power != 1 or len(f.indices) != 2 or f.atom.shape != x.shape for f in term.factors):
            return None
        if sorted([*pair, *term.summed, *term.summed]) != sorted(k for f in term.factors for k in f.indices):  # type: ignore[type-var]
            return None
        at = {pair[0]: j, pair[1]: i}
        factors = tuple(
            Factor(apply(node.op, f.atom), tuple(at.get(k, k) for k in f.indices[::-1]), f.power)  # type: ignore[arg-type]
            for f in term.factors
        )
        return [Term(1 / term.coefficient, factors, term.summed)]

    def average(self, node: Node, axes: tuple[int, ...], indices: tuple[Index, ...]) -> Sum | None:
        """The mean of the operand along ``axes``: its sum over the number of elements."""
        (x,) = node.inputs
        own = tuple(range(x.type.rank))
        terms = self.contraction((x,), (own,), tuple(a for a in own if a not in axes), indices)
        if terms is None:
            return None
        count = Fraction(1)
        below: list[Factor] = []
        for size in (x.shape[a] for a in axes):
            if isinstance(size, Dim):
                below.append(Factor(as_node(size), (), Fraction(-1)))
            else:
                count *= size
        if count == 0:
            return None
        return [replace(t, coefficient=t.coefficient / count, factors=(*t.factors, *below)) for t in terms]

    # ---- products and powers -------------------------------------------------------------------------------
    def power(self, node: Node, indices: tuple[Index, ...], power: Number) -> Sum:
        """``node ^ power`` as terms: a sum of several stays one factor."""
        before, self._sums_are_atoms = self._sums_are_atoms, self._sums_are_atoms or power != 1
        terms = self.expand(node, indices)
        if len(terms) > 1 or power != 1:  # a single product is put in normal form once, at the end
            terms = collect(terms, self)
        self._sums_are_atoms = before
        if power == 1 and len(terms) <= 1:
            return terms
        if len(terms) == 1 and not terms[0].summed:
            raised = _raise(terms[0], power)
            if raised is not None:
                return [raised]
        if not terms and power > 0:
            return []
        return self.atom(node, indices, power)

    def multiply(self, operands: Sequence[Sum]) -> Sum:
        """The product of sums. Dummy indices of a repeated operand are renamed so that sums stay separate."""
        result: Sum = [Term(Fraction(1))]
        for operand in operands:
            result = [self._times(a, b) for a in result for b in operand]
        return result

    def _times(self, a: Term, b: Term) -> Term:
        clash = set(a.summed) & set(b.summed)
        if clash:
            image = {i: self.fresh(self.sizes[i]) for i in clash}
            b = rename(b, image)
        return Term(a.coefficient * b.coefficient, a.factors + b.factors, a.summed + b.summed)


def aligned(node: Node, type_: TensorType, indices: tuple[Index, ...]) -> tuple[Index, ...]:
    """The indices at which an operand of a broadcast is read: size-1 dimensions at their only element."""
    own = indices[len(indices) - node.type.rank :] if node.type.rank else ()
    sizes = type_.shape[type_.rank - node.type.rank :]
    return tuple(None if size == 1 and full != 1 else i for i, size, full in zip(own, node.shape, sizes, strict=True))


def _raise(term: Term, power: Number) -> Term | None:
    """A product to a power, where that is the product of powers; None where it is not (an even root of a square)."""
    whole = power == int(power)
    if not whole and (term.coefficient <= 0 or any(f.power != 1 for f in term.factors) or len(term.factors) > 1):
        return None
    if term.coefficient == 0 and power < 0:
        return None
    if any(abs(f.power * power) > _MAX_POWER for f in term.factors) or not _is_float(term.coefficient, power):
        return None
    coefficient = term.coefficient ** int(power) if whole else exact(float(term.coefficient) ** float(power))
    return Term(coefficient, tuple(replace(f, power=f.power * power) for f in term.factors))


def _is_float(base: Number, power: Number) -> bool:
    """Whether a number to a power has a value in float64: as an exact fraction it would grow without end."""
    try:
        return base in (0, 1, -1) or abs(power) * abs(math.log(abs(float(base)))) < _MAX_LOG
    except (OverflowError, ValueError):
        return False


# ---- normal form -------------------------------------------------------------------------------------------
def contract(term: Term, algebra: Algebra) -> Term:
    """Identities removed by renaming, equal factors merged, sums over absent indices replaced by sizes."""
    changed = True
    while changed:
        changed = False
        for position, f in enumerate(term.factors):
            if not is_identity(f):
                continue
            i, j = f.indices
            rest = term.factors[:position] + term.factors[position + 1 :]
            dummy = j if j in term.summed else i if i in term.summed else None
            if i == j:
                term = replace(term, factors=rest)
            elif dummy is not None and i is not None and j is not None:
                kept = i if dummy == j else j
                summed = tuple(s for s in term.summed if s != dummy)
                term = rename(replace(term, factors=rest, summed=summed), {dummy: kept})
            elif i is not None and j is not None and any(j in g.indices for g in rest):
                # Between free indices: all else is read at the first, so that p_j delta_ij is p_i delta_ij.
                moved = rename(replace(term, factors=rest), {j: i}).factors
                term = replace(term, factors=(*moved[:position], f, *moved[position:]))
            else:
                continue
            changed = True
            break
    merged: dict[tuple[Node, tuple[Index, ...]], Number] = {}
    for f in term.factors:
        # A delta between free indices is its own square.
        key = (f.atom, f.indices)
        merged[key] = Fraction(1) if is_identity(f) and f.power > 0 else merged.get(key, Fraction(0)) + f.power
    factors = [Factor(a, i, p) for (a, i), p in merged.items() if p != 0]
    factors = _read_diagonals(factors)
    found = _by_fact(replace(term, factors=tuple(factors)), algebra) if term.summed else None
    if found is not None:
        return contract(found, algebra)
    known = recognise([(f.atom, f.indices, f.power) for f in factors])
    if known is not None:
        return contract(replace(term, factors=tuple(Factor(a, i, Fraction(p)) for a, i, p in known)), algebra)
    coefficient, summed = term.coefficient, []
    used = {i for f in factors for i in f.indices}
    for index in term.summed:
        size = algebra.sizes[index]
        if index in used:
            summed.append(index)
        elif isinstance(size, Dim):
            factors.append(Factor(as_node(size), ()))
        else:
            coefficient = coefficient * size
    if len(factors) != len({(f.atom, f.indices) for f in factors}):
        return contract(Term(coefficient, tuple(factors), tuple(summed)), algebra)
    return Term(coefficient, tuple(factors), tuple(summed))


def _by_fact(term: Term, algebra: Algebra) -> Term | None:
    """A sum that an op declares to be known: elements that sum to one, a matrix times its inverse, a norm's square."""
    for position, f in enumerate(term.factors):
        others = replace(term, factors=(*term.factors[:position], *term.factors[position + 1 :]))
        if f.power == 1 and f.atom.op.sums_to_one is not None:
            index = f.indices[f.atom.op.sums_to_one(f.atom)]
            used = sum(g.indices.count(index) for g in term.factors)
            if index in term.summed and used == 1:
                return replace(others, summed=tuple(i for i in term.summed if i != index))
        if f.power == 1 and (found := _cancelled(f, others, algebra)) is not None:
            return found
        if (found := _gram(f, others, algebra)) is not None:
            return found
        if f.power != 1 and f.atom.inputs and f.atom.op.terms is not None:
            # x_i x_i / norm(x): the sum is there once as its elements and once as a factor.
            inner = collect(algebra.expand(f.atom, f.indices), algebra)
            if len(inner) == 1 and inner[0].summed and inner[0].coefficient == 1:
                fixed = {i: i for i in f.indices if i is not None}
                hit = occurrence(inner[0], others, fixed)
                if hit is not None:
                    left, _ = hit
                    return replace(left, factors=(*left.factors, replace(f, power=f.power + 1)))
    return None


def _cancelled(f: Factor, others: Term, algebra: Algebra) -> Term | None:
    """``inv(A)_ij A_jk`` summed over j as the identity, and ``A_ij inv(A)_jk`` too."""
    if f.atom.op.cancels is None or len(f.indices) != 2:
        return None
    whole = f.atom.op.cancels(f.atom)
    for axis, j in enumerate(f.indices):
        kept = f.indices[1 - axis]
        if j not in others.summed or j == kept or kept is None:
            continue
        k = algebra.fresh(whole.shape[0])
        pair = (j, k) if axis == 1 else (k, j)
        inner = collect(algebra.expand(whole, pair), algebra)
        if len(inner) != 1 or inner[0].coefficient == 0:
            continue
        hit = occurrence(replace(inner[0], summed=(*inner[0].summed, j)), others, {j: j})
        if hit is None:
            continue
        left, image = hit
        (tie,) = algebra.delta(eye(whole.shape[0], whole.type.dtype), (kept, image[k]))
        return Term(left.coefficient / inner[0].coefficient, (*left.factors, *tie.factors), left.summed)
    return None


def _gram(f: Factor, others: Term, algebra: Algebra) -> Term | None:
    """``L_ik L_jk`` summed over k as the matrix that L is a root of: ``L @ L' = S`` of its Cholesky factor."""
    known = f.atom.op.gram(f.atom) if f.atom.op.gram is not None and len(f.indices) == 2 else None
    if known is None or f.power not in (1, 2):
        return None
    matrix, axis = known
    k, row = f.indices[axis], f.indices[1 - axis]
    pairs = [g for g in others.factors if f.power == g.power == 1 and g.atom is f.atom and g.indices[axis] == k]
    partner = f if f.power == 2 else pairs[0] if pairs else None
    rest = tuple(g for g in others.factors if g is not partner)
    column = None if partner is None else partner.indices[1 - axis]
    if row is None or column is None or k not in others.summed or k in (row, column):
        return None
    if any(k in g.indices for g in rest):
        return None
    inner = collect(algebra.expand(matrix, (row, column)), algebra)
    if len(inner) != 1:
        return None
    (m,) = inner
    summed = (*(i for i in others.summed if i != k), *m.summed)
    return Term(others.coefficient * m.coefficient, (*rest, *m.factors), summed)


def is_identity(f: Factor) -> bool:
    """Whether a factor is an identity matrix."""
    return len(f.indices) == 2 and "size" in f.atom.params and f.atom.is_leaf


def _read_diagonals(factors: list[Factor]) -> list[Factor]:
    """``D_ii delta_ij`` as ``D_ij`` of a diagonal matrix, so that ``diag(diag(D))`` is D."""
    for e in filter(is_identity, factors):
        for f in factors:
            within = len(f.indices) == 2 and set(f.indices) <= set(e.indices)
            if f is not e and f.power == 1 and within and is_diagonal(f.atom):
                return [replace(g, indices=e.indices) if g is f else g for g in factors if g is not e]
    return factors


def collect(terms: Iterable[Term], algebra: Algebra) -> Sum:
    """Terms in normal form, like ones added, zeros dropped; order of first appearance."""
    total: dict[object, Term] = {}
    for raw in terms:
        term = contract(raw, algebra)
        key = _key(term)
        if key in total:
            term = replace(total[key], coefficient=total[key].coefficient + term.coefficient)
        total[key] = term
    return [t for t in total.values() if t.coefficient != 0]
