"""Products multiplied out over the sums among their factors, where that may show a cancellation."""

from __future__ import annotations

from dataclasses import replace

from chainrule.interpreters.factors import Factor, Sum, Term
from chainrule.interpreters.terms import Algebra, collect

_MAX_DISTRIBUTED = 64  # terms; multiplying out beyond this has not made a formula shorter


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
