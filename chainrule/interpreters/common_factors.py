"""Which factor a sum shares: the one whose removal saves most, and what may not be taken out.

``rebuild_terms`` takes it out and writes the rest as a sum; here it is only chosen.
"""

from __future__ import annotations

from dataclasses import replace

from chainrule.interpreters.factors import Factor, Number, Sum, Term
from chainrule.interpreters.terms import Algebra
from chainrule.ir import tree_size
from chainrule.ops.contraction import eye

Indices = tuple[int, ...]
Members = list[tuple[Term, Factor]]  # terms that share a factor, each with the factor as it has it
Choice = tuple[Members, Sum]  # ... and the terms that do not


def best_common(terms: Sum, free: Indices) -> Choice | None:
    """The factor whose removal saves most, with the terms that have it and those that do not."""
    best_gain, best = 0, None
    shared: dict[object, Members] = {}
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
        if len(members) < 2 or not _rests_match(members, free) or _raises_order(members, free):
            continue
        gain = (len(members) - 1) * (tree_size(members[0][1].atom) + 1)
        if gain > best_gain:
            inside = {id(t) for t, _ in members}
            best_gain, best = gain, (members, [t for t in terms if id(t) not in inside])
    return best


def best_under_identity(terms: Sum, free: Indices, algebra: Algebra, dtype: str) -> Choice | None:
    """A matrix that one term sums over and another reads at a free index: ``p_i A_ij - p_i (A' p)_j``.

    The second is ``(diag(p) - p @ p') @ A`` once ``A_ij`` is written as a sum over an identity.
    """
    for k, term in enumerate(terms):
        for f in term.factors:
            for axis, index in enumerate(f.indices):
                if len(f.indices) != 2 or index not in free or "size" in f.atom.params:
                    continue
                other = f.indices[1 - axis]
                if other not in free or not any(index in g.indices for g in term.factors if g is not f):
                    continue
                for n, partner in enumerate(terms):
                    g = _summed_like(partner, f, axis, free) if n != k else None
                    if g is None:
                        continue
                    lifted = _over_identity(term, f, axis, algebra, dtype)
                    rest = [t for m, t in enumerate(terms) if m not in (k, n)]
                    return [(partner, g), lifted], rest
    return None


def _over_identity(term: Term, f: Factor, axis: int, algebra: Algebra, dtype: str) -> tuple[Term, Factor]:
    """``f[j]`` of a term as ``sum_i f[i] eye[i, j]``."""
    index = f.indices[axis]
    assert index is not None
    fresh = algebra.fresh(algebra.sizes[index])
    moved = replace(f, indices=tuple(fresh if a == axis else i for a, i in enumerate(f.indices)))
    tie = Factor(eye(algebra.sizes[index], dtype), (index, fresh))
    others = tuple(g for g in term.factors if g is not f)
    return Term(term.coefficient, (moved, tie, *others), (*term.summed, fresh)), moved


def _rests_match(members: Members, free: Indices) -> bool:
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
    return all(r == rests[0] for r in rests) or union <= common or _broadcasts(members, rests, union, free)


def _summed_like(term: Term, f: Factor, axis: int, free: Indices) -> Factor | None:
    """The factor of a term that is ``f`` with the index at ``axis`` summed."""
    for g in term.factors:
        if g.atom is f.atom and g.power == f.power == 1 and g.indices[1 - axis] == f.indices[1 - axis]:
            if g.indices[axis] in term.summed and g.indices[axis] not in free:
                return g
    return None


def _power_left(f: Factor, common: Number) -> bool:
    return abs(f.power) != common


def _broadcasts(members: Members, rests: list[set[object]], union: set[object], free: Indices) -> bool:
    """Whether a rest that lacks dimensions reads well beside the others: ``(G - mean(G, 0)) / sigma``."""
    if not set(members[0][1].indices) <= {*free, None}:
        return False
    identity = any("size" in f.atom.params and f.indices for term, _ in members for f in term.factors)
    return all(r == union or not (r and (identity or term.summed)) for (term, _), r in zip(members, rests, strict=True))


def _raises_order(members: Members, free: Indices) -> bool:
    """Whether the sum of what remains would be a tensor of higher order than anything that it is made of.

    ``B' @ C @ v + D' @ C' @ w`` stays two products: their sum without C has order three.
    """
    highest = max(2, *(len(f.indices) for term, _ in members for f in term.factors))
    for term, f in members:
        left = [g for g in term.factors if g is not f]
        if len({i for g in left for i in g.indices if i in free or i in f.indices} - {None}) > highest:
            return True
    return False
