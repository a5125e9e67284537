"""The user's own names in an answer: parts of an expression that have a name are written by it.

A named quantity that occurs as it was defined is replaced by its name. One that is a product is also found among the
factors of a term: with ``xhat = (x - mu) / sigma`` the term ``(x - mu) @ (x - mu)' / sigma^2`` is ``xhat @ xhat'``, and
with ``b = inv(X' @ X) @ X' @ y`` so is that part of a longer product. Among the forms this gives the shortest is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from chainrule.interpreters.distribute import distribute
from chainrule.interpreters.factors import Factor, Term, occurrence
from chainrule.interpreters.rebuild_terms import Builder
from chainrule.interpreters.simplify import MAX_DEPTH, simplify
from chainrule.interpreters.terms import Algebra, collect, symmetric
from chainrule.ir import Node, TensorType, algebraic_depth, apply, rebuild, substitute_nodes, tree_size

_WORTH_TRYING = 5  # operators and operands
_SEARCHED = 600  # operators and operands of an answer or a definition in which names are looked for
_WORTH_ITS_OWN = (
    5  # of a definition whose name is to stand in its own derivative: r = (x' @ A @ x)/(x' @ x), not exp(x)
)


def useful_names(definitions: Mapping[Node, Node], of: str) -> list[tuple[Node, Node]]:
    """The names that a derivative of ``of`` may use: all others, and its own where that stands for much."""
    return [
        (symbol, body)
        for symbol, body in definitions.items()
        if symbol.params["name"] != of or tree_size(body) >= _WORTH_ITS_OWN
    ]


def shortest(closed: Node, resolved: Node | None, named: Sequence[tuple[Node, Node]]) -> Node:
    """The shortest way to write an expression with the names at hand.

    Args:
        closed: simplified, in the names as they happened to survive. resolved: the same with no names at all, where
            cancellations show that names hide; None to leave it out.
        named: (symbol, definition in earlier symbols), in order of computation.
    """
    if not _WORTH_TRYING <= tree_size(closed) <= _SEARCHED or not named:
        return closed
    patterns = _patterns(named)
    best = closed
    for start in dict.fromkeys([closed] if resolved is None else [closed, simplify(resolved)]):
        for multiplied in (False, True):
            candidate = _folded(start, patterns, multiplied)
            if tree_size(candidate) < tree_size(best):
                best = candidate
    return best


@dataclass(frozen=True)
class _Pattern:
    """A name and what it stands for, simplified; the factors of its only term where it is a product."""

    symbol: Node
    definition: Node
    product: Term | None
    indices: tuple[int, ...] = ()
    squared: Node | None = None  # what its square is, where it is a root


def _patterns(named: Sequence[tuple[Node, Node]]) -> list[_Pattern]:
    plain: dict[Node, Node] = {}  # names that are not worth writing: they are seen through
    found = []
    for symbol, definition in named:
        if tree_size(definition) > _SEARCHED:
            continue
        definition = simplify(substitute_nodes([definition], plain)[0])
        if not _worth_a_name(definition):
            plain[symbol] = definition
        elif definition.type.shape == symbol.type.shape:
            found.append(_Pattern(symbol, definition, *_as_product(definition)))
    return found


def _worth_a_name(definition: Node) -> bool:
    """``exp(f1)`` is as short as a name and says more; ``softmax(z)`` and ``mean(x)`` have better names."""
    operands = sum(i.number is None for i in definition.inputs)
    return operands > 1 or (operands == 1 and (tree_size(definition) > 3 or definition.op.family != "elementwise"))


def _as_product(definition: Node) -> tuple[Term | None, tuple[int, ...], Node | None]:
    """The factors of a definition that is a product, with their indices; or what it is the root of."""
    if definition.op.terms is None or not isinstance(definition.type, TensorType):
        return None, (), None
    if algebraic_depth(definition) > MAX_DEPTH:
        return None, (), None
    algebra = Algebra()
    free = algebra.indices_of(definition.type)
    terms = collect(algebra.expand(definition, free), algebra)
    if len(terms) != 1 or any("size" in f.atom.params for f in terms[0].factors):
        return None, (), None
    if len(terms[0].factors) > 1:
        return terms[0], free, None
    if not terms[0].factors:
        return None, (), None
    root = terms[0].factors[0]
    whole = (
        root.power == Fraction(1, 2) and terms[0].coefficient == 1 and root.indices == free and bool(root.atom.inputs)
    )
    return None, (), root.atom if whole else None


def _folded(node: Node, patterns: Sequence[_Pattern], multiplied: bool) -> Node:
    """The expression with definitions replaced by names, in the order in which these are computed.

    ``multiplied``: its products are multiplied out before, for names that a common factor has torn apart.
    """
    for p in patterns:
        if p.definition.inputs:
            node = substitute_nodes([node], {p.definition: p.symbol})[0]
        if p.squared is not None:
            node = substitute_nodes([node], {p.squared: p.symbol**2.0})[0]
        if p.product is not None and not multiplied:
            node = _in_products(node, p)
    return simplify(_in_terms(node, patterns, multiplied) if multiplied else node)


def _in_terms(node: Node, patterns: Sequence[_Pattern], multiplied: bool) -> Node:
    """Products among the terms of one node replaced by their names."""
    if node.op.terms is None or not isinstance(node.type, TensorType) or not node.type.is_float:
        return node
    if algebraic_depth(node) > MAX_DEPTH:
        return node
    algebra = Algebra()
    free = algebra.indices_of(node.type)
    terms = collect(algebra.expand(node, free), algebra)
    found = (distribute(terms, algebra) or terms) if multiplied else terms
    for p in patterns:
        if p.product is not None:
            found = [_with_name(t, p) for t in found]
    if found == terms:
        return node
    built = Builder(algebra, node.type.dtype).sum(found, free)
    return built if built.type.shape == node.type.shape else node


def _in_products(root: Node, pattern: _Pattern) -> Node:
    def renamed(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        built = _in_terms(new, [pattern], multiplied=False)
        return built if tree_size(built) < tree_size(new) else new

    return rebuild([root], renamed)[root]


def _with_name(term: Term, pattern: _Pattern) -> Term:
    """A term with every occurrence of the pattern's factors replaced by its symbol."""
    assert pattern.product is not None
    for variant in _signs(pattern.product):
        # The pattern's indices are numbered like the term's: moved out of the way, they cannot be confused.
        own = {i: -1 - i for f in variant.factors for i in f.indices if i is not None}
        moved = Term(
            variant.coefficient,
            tuple(replace(f, indices=tuple(None if i is None else own[i] for i in f.indices)) for f in variant.factors),
            tuple(own[i] for i in variant.summed),
        )
        hit = occurrence(moved, term, symmetric=symmetric)
        if hit is None:
            continue
        left, image = hit
        at = tuple(image.get(own.get(i, i)) for i in pattern.indices)
        if None in at or len(set(at)) != len(at):
            continue
        factor = Factor(pattern.symbol, at)
        return _with_name(Term(left.coefficient / moved.coefficient, (*left.factors, factor), left.summed), pattern)
    return term


def _signs(product: Term) -> list[Term]:
    """The product, and the same with one difference turned around: ``(a - b) / s`` is ``-(b - a) / s``."""
    found = [product]
    for k, f in enumerate(product.factors):
        if f.atom.op.opposite is not None and f.power in (1, -1):
            turned = replace(f, atom=f.atom.op.opposite(f.atom), power=f.power * Fraction(1))
            factors = (*product.factors[:k], turned, *product.factors[k + 1 :])
            found.append(Term(-product.coefficient, factors, product.summed))
    return found
