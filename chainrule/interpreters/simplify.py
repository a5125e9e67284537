"""Shorter equal graphs: constants, zeros and ones, like terms, identities, common factors, declared rewrites.

``simplify(node)`` is for formulas: it may reassociate. ``simplify(graph, exact=True)`` is for traced models: only what
keeps every bit (dead nodes, shared subexpressions, rewrites declared exact). Both are passes: they return new nodes.
Reads ``Op.rewrites``, ``Op.facts`` and ``Op.terms``; knows no op by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import overload

import numpy as np

from chainrule.interpreters.distribute import distribute
from chainrule.interpreters.rebuild_terms import Builder
from chainrule.interpreters.terms import MAX_DEPTH as MAX_DEPTH
from chainrule.interpreters.terms import Algebra, Factor, Number, Term, collect
from chainrule.ir import (
    Graph,
    Node,
    Rewrite,
    TensorType,
    algebraic_depth,
    apply,
    constant,
    rebuild,
    toposort,
    tree_size,
)

_MAX_ROUNDS = 6
# Beyond these the answer stays as the rules give it: right, with only the rewrites that keep every bit.
_MAX_NODES = 1500  # of a program
_MAX_FACTORS = 40  # of one product


@overload
def simplify(program: Node, exact: bool = False) -> Node: ...
@overload
def simplify(program: Graph, exact: bool = False) -> Graph: ...


def simplify(program: Node | Graph, exact: bool = False) -> Node | Graph:
    """An equal, shorter program.

    Args:
        program: a node, or a graph (whose names and origins follow).
        exact: only rewrites that keep every bit of a floating-point result.

    >>> from chainrule.ir import variable
    >>> x, y = variable("x"), variable("y")
    >>> simplify((x + y) * 2.0 - x - x) is simplify(2.0 * y)
    True
    """
    if isinstance(program, Graph):
        return program.map(_pass(program.outputs, exact))
    return simplify_all([program], exact)[0]


def simplify_all(nodes: Sequence[Node], exact: bool = False) -> list[Node]:
    """Each node simplified; shared work is done once."""
    exact = exact or len(toposort(nodes)) > _MAX_NODES
    results = _stable(nodes, exact)
    return results if exact else [_shorter_of_expanded(n) for n in results]


def _stable(nodes: Sequence[Node], exact: bool) -> list[Node]:
    """Passes until nothing changes."""
    results = list(nodes)
    for _ in range(_MAX_ROUNDS):
        image = _pass(results, exact)
        after = [image[n] for n in results]
        if after == results:
            break
        results = after
    return results


def expand(node: Node) -> Node:
    """The node with products multiplied out and like terms collected, common factors then taken out again."""
    found = _normal_form(node, distributed=True)
    return node if found is None else found


@lru_cache(maxsize=2_000)
def _shorter_of_expanded(node: Node) -> Node:
    """Multiplying out pays off where things cancel: the shorter of the two forms."""
    if node.op.terms is None or not isinstance(node.type, TensorType):
        return node
    best = node
    for candidate in (expand(node), together(node)):
        if tree_size(candidate) < tree_size(best):
            (again,) = _stable([candidate], exact=False)
            best = again if tree_size(again) <= tree_size(candidate) else candidate
    return best


def together(node: Node) -> Node:
    """The node as one fraction: all terms over a common denominator, the numerator multiplied out."""
    if algebraic_depth(node) > MAX_DEPTH:
        return node
    algebra = Algebra()
    free = algebra.indices_of(node.type)
    terms = distribute(algebra.expand(node, free), algebra)
    if terms is None or len(terms) < 2:
        return node
    below: dict[tuple[Node, tuple[int | None, ...]], Number] = {}
    for term in terms:
        for f in term.factors:
            if f.power < 0 and not any(i in term.summed for i in f.indices):
                below[f.atom, f.indices] = max(below.get((f.atom, f.indices), Fraction(0)), -f.power)
    if not below:
        return node
    raised = tuple(Factor(atom, indices, power) for (atom, indices), power in below.items())
    above = distribute([replace(t, factors=(*t.factors, *raised)) for t in terms], algebra)
    if above is None or any(f.power < 0 for t in above for f in t.factors):
        return node
    builder = Builder(algebra, node.type.dtype)
    if not above:
        return builder.sum([], free)
    numerator = builder.sum(above, free)
    quotient = Term(Fraction(1), (Factor(numerator, free), *(replace(f, power=-f.power) for f in raised)))
    return builder.sum([quotient], free)


# ---- one pass ----------------------------------------------------------------------------------------------
def _pass(outputs: Sequence[Node], exact: bool) -> dict[Node, Node]:
    def replace_node(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        return _settled(new, exact)

    return rebuild(outputs, replace_node)


@lru_cache(maxsize=20_000)  # nodes are values: the passes, and the steps of a derivation, meet the same ones
def _settled(node: Node, exact: bool) -> Node:
    for _ in range(_MAX_ROUNDS):
        shorter = _once(node, exact)
        if shorter is None or shorter is node:
            return node
        node = shorter
    return node


def _once(node: Node, exact: bool) -> Node | None:
    folded = _fold(node)
    if folded is not None:
        return folded
    for rewrite in _rules(node, exact):
        found = rewrite.rule(node)
        if found is not None and found.type == node.type:
            return found
    return None if exact else _normal_form(node)


def _rules(node: Node, exact: bool) -> Iterable[Rewrite]:
    return (r for r in (*node.op.rewrites, *node.op.facts) if r.exact or not exact)


def _fold(node: Node) -> Node | None:
    """Scalar constants evaluated. Exact: the back ends inline Python numbers, which are float64 as well."""
    if not node.inputs or not isinstance(node.type, TensorType) or node.type.shape != () or not node.op.pure:
        return None
    values = [i.number for i in node.inputs]
    if any(v is None for v in values):
        return None
    with np.errstate(all="ignore"):
        value = node.op.value(*values, **node.params)
    # A number that has no short decimal (sqrt(2)) stays as it was written, and so does nan.
    result = float(value)
    if not _short(result) and all(_short(float(v)) for v in values if v is not None):
        return None
    return constant(np.asarray(value), node.type.dtype)


def _short(value: float) -> bool:
    return np.isfinite(value) and len(repr(value)) <= 12


def _normal_form(node: Node, distributed: bool = False) -> Node | None:
    """The node through the algebra of terms and back; None if it is no sum of products."""
    if node.is_leaf or node.op.terms is None or not isinstance(node.type, TensorType) or not node.type.is_float:
        return None
    if algebraic_depth(node) > MAX_DEPTH:
        return None
    algebra = Algebra()
    algebra.splits_inverses = distributed
    free = algebra.indices_of(node.type)
    read = algebra.expand(node, free)
    if any(len(t.factors) > _MAX_FACTORS for t in read):
        return None
    terms = collect(read, algebra)
    if distributed:
        multiplied = distribute(terms, algebra)
        if multiplied is None:
            return None
        terms = multiplied
    if len(terms) == 1 and len(terms[0].factors) == 1 and terms[0].factors[0].atom is node:
        return None
    built = Builder(algebra, node.type.dtype).sum(terms, free)
    return built if built.type.shape == node.type.shape else None


def equal(a: Node, b: Node) -> bool:
    """Whether the algebra shows two nodes to be the same function. False means only that it could not show it."""
    if a.type.shape != b.type.shape:
        return False
    difference = simplify(a - b)
    while difference.inputs and len(difference.inputs) == 1 and difference.inputs[0].number is not None:
        difference = difference.inputs[0]
    return difference.number == 0
