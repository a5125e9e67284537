"""From a derivative as the rules give it to its simplified form, in the lines that a person would write.

``simplify`` goes from the one to the other in one walk over the graph. Here the same algebra is applied in stages, and
every stage that changes the formula is a line: products of ones dropped, each term cancelled, sums multiplied into
what they cancel with, and the simplified form with what it took. All lines are equal in value.

Reads ``Op.terms``, ``Op.precedence`` and ``Op.names``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chainrule.interpreters.rebuild_terms import Builder
from chainrule.interpreters.simplify import expand, simplify, together
from chainrule.interpreters.terms import Algebra, Factor, Sum, Term, collect, contract
from chainrule.ir import ADD, Node, TensorType, algebraic_depth, toposort, tree_size

Stage = tuple[Node, str]

_LONGEST = 400  # operators and operands of a formula whose stages are looked for
_MAX_DEPTH = 60  # of nested sums and products
_MAX_ROUNDS = 4


def stages(start: Node, end: Node, rule: str) -> list[Stage]:
    """The formula after every stage, with what was done: from ``start`` (by ``rule``) to its simplified form ``end``.

    >>> from chainrule.ir import variable
    >>> x, y = variable("x"), variable("y")
    >>> [why for _, why in stages((y / x - y) * x, y * (1.0 - x), "substituted")]
    ['substituted', 'multiplied out, like terms collected']
    """
    start = simplify(start, exact=True)
    found: list[Stage] = [(start, rule)]
    if tree_size(start) <= _LONGEST and algebraic_depth(start) <= _MAX_DEPTH:
        for node, why in _between(start):
            if node is end or tree_size(node) > 2 * tree_size(start):
                break
            if node is not found[-1][0]:
                found.append((node, why + _recognised(found[-1][0], node)))
    last = found[-1][0]
    if end is not last:
        found.append((end, _finally(last, end)))
    return found


def _between(start: Node) -> Iterator[Stage]:
    if start.op.terms is None or not isinstance(start.type, TensorType) or not start.type.is_float:
        return
    algebra = Algebra()
    free = algebra.indices_of(start.type)
    raw = algebra.expand(start, free)
    terms = [contract(t, algebra) for t in raw]
    if _weight(terms) < _weight(raw):  # otherwise only the order of factors would change
        yield _written(terms, free, algebra, start), "cancelled within each term" if len(terms) > 1 else "cancelled"
    terms = collect(terms, algebra)
    for _ in range(_MAX_ROUNDS):
        multiplied = _cancelling(terms, algebra)
        if multiplied is None:
            return
        terms = multiplied
        yield Builder(algebra, start.type.dtype).sum(terms, free), "multiplied out and cancelled"


def _weight(terms: Sum) -> float:
    return float(sum(abs(f.power) for t in terms for f in t.factors))


def _written(terms: Sum, free: tuple[int, ...], algebra: Algebra, like: Node) -> Node:
    """Terms one by one: like ones are not collected, nothing is taken out."""
    builder = Builder(algebra, like.type.dtype)
    total: Node | None = None
    for term in [t for t in terms if t.coefficient != 0]:
        if total is None:
            total = builder.sum([term], free)
        elif term.coefficient < 0:
            total = total - builder.sum([replace(term, coefficient=-term.coefficient)], free)
        else:
            total = total + builder.sum([term], free)
    return builder.sum([], free) if total is None else total


def _cancelling(terms: Sum, algebra: Algebra) -> Sum | None:
    """Each term with one of its sums multiplied out, if the sum has something to cancel with; None if none has."""
    grown: Sum = []
    changed = False
    for term in terms:
        found = _sum_that_cancels(term, algebra)
        if found is None:
            grown.append(term)
            continue
        changed = True
        f, inner = found
        rest = tuple(x for x in term.factors if x is not f)
        rest = (*rest, replace(f, power=f.power - 1)) if f.power > 1 else rest
        grown += algebra.multiply([[replace(term, factors=rest)], inner])
    return collect(grown, algebra) if changed else None


def _sum_that_cancels(term: Term, algebra: Algebra) -> tuple[Factor, Sum] | None:
    for f in term.factors:
        if f.power not in (1, 2, 3) or f.atom.op.terms is None or not f.atom.inputs:
            continue
        inner = collect(algebra.expand(f.atom, f.indices), algebra)
        others = {(g.atom, g.indices): g.power for g in term.factors if g is not f}
        if len(inner) > 1 and any(g.power * others.get((g.atom, g.indices), 0) < 0 for t in inner for g in t.factors):
            return f, inner
    return None


# ---- what a line did ---------------------------------------------------------------------------------------
def _finally(before: Node, after: Node) -> str:
    collected, fewer = _collected(before)
    if after is collected and fewer:
        done = "like terms collected"
    elif _is_sum(before) and not _is_sum(after):
        done = "brought to one fraction" if after is together(before) else "common factors taken out"
    elif after is not collected and after is expand(before):
        done = "multiplied out, like terms collected"
    else:
        done = "simplified"
    return done + _recognised(before, after)


def _collected(node: Node) -> tuple[Node | None, bool]:
    """The node with like terms collected and nothing multiplied out, and whether there were any."""
    if node.op.terms is None or not isinstance(node.type, TensorType) or algebraic_depth(node) > _MAX_DEPTH:
        return None, False
    algebra = Algebra()
    free = algebra.indices_of(node.type)
    terms = [contract(t, algebra) for t in algebra.expand(node, free)]
    collected = collect(terms, algebra)
    return Builder(algebra, node.type.dtype).sum(collected, free), len(collected) < len(terms)


def _is_sum(node: Node) -> bool:
    return node.op.precedence == ADD


def _recognised(before: Node, after: Node) -> str:
    """The functions that a line has and the one before had not: known forms."""
    had = {n.op for n in toposort([before])}
    new = [n.op.names[0] for n in toposort([after]) if n.op.names and n.inputs and n.op not in had]
    named = [n for n in dict.fromkeys(new) if n.isidentifier()]
    return f", known form recognised ({', '.join(named)})" if named else ""
