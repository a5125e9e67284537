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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

from chainrule.ir import Dim, Node, TensorType, as_node, digest, is_diagonal, known_facts
from chainrule.ops.recognition import recognise

Number = Fraction | float
Index = int | None  # None: a dimension of size 1, read at its only element

_MAX_DISTRIBUTED = 64  # terms; multiplying out beyond this has not made a formula shorter
_MAX_TIES = 720


@dataclass(frozen=True)
class Factor:
    """``atom[indices] ^ power``."""

    atom: Node
    indices: tuple[Index, ...]
    power: Number = Fraction(1)


@dataclass(frozen=True)
class Term:
    """``coefficient * product of factors``, summed over ``summed``."""

    coefficient: Number
    factors: tuple[Factor, ...] = ()
    summed: tuple[int, ...] = ()


Sum = list[Term]


def exact(value: float) -> Number:
    """A number as a fraction where that is what it means (2.0, 0.5), as a float otherwise (0.1)."""
    if isinstance(value, Fraction):
        return value
    as_fraction = Fraction(value)
    return as_fraction if as_fraction.denominator <= 64 else float(value)


def symmetric(node: Node) -> bool:
    """Whether a matrix is its own transpose: as declared, or by its form: an identity, ``X' @ X``, ``inv(A + A')``."""
    if node.type.rank != 2 or node.shape[0] != node.shape[1]:
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
    return {canonical_key(t): t.coefficient for t in a} == {canonical_key(t): t.coefficient for t in b}


class Algebra:
    """Expansion of nodes into terms. One instance per expression: it owns the indices.

    Args:
        sums_are_atoms: whether a contraction that sums is one factor.
    """

    def __init__(self, sums_are_atoms: bool = False) -> None:
        self.sizes: dict[int, int | Dim] = {}
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
        rule = node.op.terms
        found = rule(self, node, tuple(indices)) if rule is not None else None
        return found if found is not None else self.atom(node, tuple(indices))

    def atom(self, node: Node, indices: tuple[Index, ...], power: Number = Fraction(1)) -> Sum:
        """The node as one factor; a symmetric matrix is read with its indices in one order."""
        if len(indices) == 2 and None not in indices and indices[0] > indices[1] and symmetric(node):  # type: ignore[operator]
            indices = indices[::-1]
        return [Term(Fraction(1), (Factor(node, indices, power),))]

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


def rename(term: Term, image: dict[int, int]) -> Term:
    """A term with indices renamed."""
    factors = tuple(
        replace(f, indices=tuple(image.get(i, i) if i is not None else None for i in f.indices)) for f in term.factors
    )
    return replace(term, factors=factors, summed=tuple(image.get(i, i) for i in term.summed))


def _raise(term: Term, power: Number) -> Term | None:
    """A product to a power, where that is the product of powers; None where it is not (an even root of a square)."""
    whole = power == int(power)
    if not whole and (term.coefficient <= 0 or any(f.power != 1 for f in term.factors) or len(term.factors) > 1):
        return None
    if term.coefficient == 0 and power < 0:
        return None
    coefficient = term.coefficient ** int(power) if whole else exact(float(term.coefficient) ** float(power))
    return Term(coefficient, tuple(replace(f, power=f.power * power) for f in term.factors))


# ---- normal form -------------------------------------------------------------------------------------------
def contract(term: Term, algebra: Algebra) -> Term:
    """Identities removed by renaming, equal factors merged, sums over absent indices replaced by sizes."""
    changed = True
    while changed:
        changed = False
        for position, f in enumerate(term.factors):
            if not _is_identity(f):
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
            else:
                continue
            changed = True
            break
    merged: dict[tuple[Node, tuple[Index, ...]], Number] = {}
    for f in term.factors:
        # A delta between free indices is its own square.
        key = (f.atom, f.indices)
        merged[key] = Fraction(1) if _is_identity(f) and f.power > 0 else merged.get(key, Fraction(0)) + f.power
    factors = [Factor(a, i, p) for (a, i), p in merged.items() if p != 0]
    factors = _read_diagonals(factors)
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


def _is_identity(f: Factor) -> bool:
    return len(f.indices) == 2 and "size" in f.atom.params and f.atom.is_leaf


def _read_diagonals(factors: list[Factor]) -> list[Factor]:
    """``D_ii delta_ij`` as ``D_ij`` of a diagonal matrix, so that ``diag(diag(D))`` is D."""
    for e in filter(_is_identity, factors):
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
        key = canonical_key(term)
        if key in total:
            term = replace(total[key], coefficient=total[key].coefficient + term.coefficient)
        total[key] = term
    return [t for t in total.values() if t.coefficient != 0]


def distribute(terms: Sum, algebra: Algebra) -> Sum | None:
    """Products multiplied out over sums, one sum at a time with cancellation in between; None if that grows too long.

    A sum that divides by another factor of its term goes first: ``s * (1 - s) * (y / s - z / (1 - s))`` loses both
    denominators only in this order.
    """
    terms = collect(terms, algebra)
    while True:
        grown: Sum = []
        changed = False
        for term in terms:
            found = _sum_factor(term, algebra)
            if found is None:
                grown.append(term)
                continue
            changed = True
            f, inner = found
            own = (replace(f, power=f.power - 1),) if f.power > 1 else ()
            rest = replace(term, factors=(*(x for x in term.factors if x is not f), *own))
            grown += algebra.multiply([[rest], inner])
        if len(grown) > _MAX_DISTRIBUTED:
            return None
        if not changed:
            return terms
        terms = collect(grown, algebra)


def _sum_factor(term: Term, algebra: Algebra) -> tuple[Factor, Sum] | None:
    atoms = {f.atom for f in term.factors}
    found: tuple[Factor, Sum] | None = None
    for f in term.factors:
        if f.power not in (1, 2, 3) or f.atom.op.terms is None:
            continue
        inner = collect(algebra.expand(f.atom, f.indices), algebra)
        if len(inner) < 2:
            continue
        if any(g.power < 0 and g.atom in atoms for t in inner for g in t.factors):
            return f, inner
        found = found or (f, inner)
    return found


def canonical_key(term: Term) -> object:
    """A key that is equal for terms that differ only in the order of factors and the names of summed indices.

    Summed indices are coloured by where they occur until colours are stable; remaining ties are broken by trying
    their orders (up to a limit, beyond which two equal terms may be kept apart, which is never wrong).
    """
    summed = set(term.summed)

    def signature(f: Factor, colour: dict[int, object]) -> tuple[object, ...]:
        shown = tuple(("s", colour[i]) if i in summed else ("f", i) for i in f.indices)
        return (digest(f.atom), str(f.power), repr(shown))

    colour: dict[int, object] = dict.fromkeys(summed, "")
    for _ in range(3):
        colour = {
            d: repr(sorted((signature(f, colour), p) for f in term.factors for p, i in enumerate(f.indices) if i == d))
            for d in summed
        }
    groups: dict[str, list[int]] = {}
    for d in summed:
        groups.setdefault(str(colour[d]), []).append(d)
    ordered = [groups[c] for c in sorted(groups)]
    best: object = None
    for order in _orders(ordered):
        number: dict[int, object] = {d: k for k, d in enumerate(order)}
        key = tuple(sorted(signature(f, number) for f in term.factors))
        best = key if best is None or key < best else best  # type: ignore[operator]
    return best


def _orders(groups: list[list[int]]) -> Iterable[tuple[int, ...]]:
    results: list[tuple[int, ...]] = [()]
    for group in groups:
        options = list(permutations(group)) if len(group) <= 6 else [tuple(group)]
        if len(results) * len(options) > _MAX_TIES:
            options = options[:1]
        results = [r + o for r in results for o in options]
    return results
