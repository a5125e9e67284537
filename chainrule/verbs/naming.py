"""The user's own names in an answer: parts of an expression that have a name are written by it.

A named quantity that occurs as it was defined is replaced by its name; one that is a quotient, ``xhat =
(x - mu) / sigma``, also stands for its numerator, ``x - mu = xhat * sigma``. Among the forms this gives the
shortest is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chainrule.interpreters.differentiate import expand_composites
from chainrule.interpreters.rebuild_terms import Builder
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.terms import Algebra, Factor, Term, collect
from chainrule.ir import Node, substitute_nodes, tree_size

_WORTH_A_NAME = 4  # operators and operands; exp(f1) is as short as a name and says more
_WORTH_TRYING = 12


def shortest(closed: Node, resolved: Node | None, named: Sequence[tuple[Node, Node]]) -> Node:
    """The shortest way to write an expression with the names at hand.

    Args:
        closed: simplified, in the names as they happened to survive. resolved: the same with no names at all, where
            cancellations show that names hide; None to leave it out.
        named: (symbol, definition in earlier symbols), in order of computation.
    """
    if tree_size(closed) < _WORTH_TRYING or not named:
        return closed
    best = closed
    starts = [closed] if resolved is None else [closed, simplify(_in_parts(resolved))]
    for start in starts:
        for candidate in _folded(start, named):
            if tree_size(candidate) < tree_size(best):
                best = candidate
    return best


def _in_parts(node: Node) -> Node:
    """The node without composites."""
    return expand_composites([node], keep_named=False)[0]


def _folded(start: Node, named: Sequence[tuple[Node, Node]]) -> Iterator[Node]:
    """The expression with definitions replaced by names, first without and then with quotients."""
    node = start
    for symbol, definition in named:
        # Derivatives of composites are written in their parts, so a mean is looked for as a sum over n too.
        for pattern in dict.fromkeys((simplify(definition), simplify(_in_parts(definition)))):
            if tree_size(pattern) >= _WORTH_A_NAME and pattern.type.shape == symbol.type.shape:
                node = _replace(node, pattern, symbol)
    node = simplify(node)
    yield node
    for symbol, definition in named:
        solved = _numerator(symbol, simplify(definition))
        if solved is not None:
            node = simplify(_replace(node, *solved))
            yield node


def _replace(node: Node, pattern: Node, by: Node) -> Node:
    return substitute_nodes([node], {pattern: by})[0] if pattern.inputs else node


def _numerator(symbol: Node, definition: Node) -> tuple[Node, Node] | None:
    """``(x - mu, xhat * sigma)`` for ``xhat = (x - mu) / sigma``: a sum, solved for."""
    if definition.op.terms is None:
        return None
    algebra = Algebra()
    free = algebra.indices_of(definition.type)
    terms = collect(algebra.expand(definition, free), algebra)
    if len(terms) != 1 or terms[0].summed:
        return None
    sums = [f for f in terms[0].factors if f.power == 1 and f.atom.inputs and f.indices == free]
    rest = [f for f in terms[0].factors if f not in sums]
    if len(sums) != 1 or not rest or tree_size(sums[0].atom) < 3:
        return None
    inverse = tuple(Factor(f.atom, f.indices, -f.power) for f in rest)
    solved = Term(1 / terms[0].coefficient, (Factor(symbol, free), *inverse))
    return sums[0].atom, Builder(algebra, definition.type.dtype).sum([solved], free)
