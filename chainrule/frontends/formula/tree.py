"""The syntax tree: what the parser makes of tokens and the lowering makes nodes of. Data only.

Every tree knows ``start`` and ``end`` (its text is ``source[start:end]``) and ``position``, the character
that a message points at: an operator, or the first character of a name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A piece of a formula."""

    position: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Number(Tree):
    """``2``, ``.5``, ``1e-5``."""

    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Name(Tree):
    """A variable, an assigned name or a dimension."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class String(Tree):
    """``"ij,jk->ik"``: the subscripts of ``einsum``."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Negative(Tree):
    """``-x``."""

    operand: Tree


@dataclass(frozen=True, slots=True, eq=False)
class Transposed(Tree):
    """``x'`` or ``x.T``."""

    operand: Tree


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Tree):
    """``+ - * / @ ^``; ``symbol`` is the canonical spelling."""

    symbol: str
    left: Tree
    right: Tree


@dataclass(frozen=True, slots=True, eq=False)
class Comparison(Tree):
    """``> >= < <= == !=``."""

    symbol: str
    left: Tree
    right: Tree


@dataclass(frozen=True, slots=True, eq=False)
class Iverson(Tree):
    """``[condition]`` in the place of a value."""

    condition: Tree


@dataclass(frozen=True, slots=True, eq=False)
class Sequence(Tree):
    """``(m, n)``: sizes or axes as an argument."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Slice(Tree):
    """``first:last:step`` inside an index; each may be missing."""

    first: Tree | None
    last: Tree | None
    step: Tree | None


@dataclass(frozen=True, slots=True, eq=False)
class NewAxis(Tree):
    """``None`` inside an index."""


@dataclass(frozen=True, slots=True, eq=False)
class Dots(Tree):
    """``...`` inside an index."""


@dataclass(frozen=True, slots=True, eq=False)
class Index(Tree):
    """``x[...]``; a call where ``x`` is the name of a function."""

    operand: Tree
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call(Tree):
    """``f(x, axis=0)``."""

    name: str
    arguments: tuple[Tree, ...]
    keywords: tuple[tuple[Name, Tree], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Partial(Tree):
    """``dl/df``, ``d2l/df2``, ``d2l/dfdg``, ``dl/d(x + 1)``: a derivative of an unknown function.

    ``wrt`` holds, in order, the text after a ``d`` of a name (``f``, ``f2``, ``fdg``) or a bracketed
    expression with the number of times that it occurs.
    """

    function: str
    order: int
    wrt: tuple[str | tuple[Tree, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Assignment(Tree):
    """``name = expression``; ``name`` is empty for a last bare expression, ``position`` is the name's."""

    name: str
    expression: Tree


def children(tree: Tree) -> tuple[Tree, ...]:
    """The trees directly inside a tree, in the order of the text."""
    match tree:
        case Negative() | Transposed():
            return (tree.operand,)
        case Binary() | Comparison():
            return (tree.left, tree.right)
        case Iverson():
            return (tree.condition,)
        case Sequence():
            return tree.items
        case Slice():
            return tuple(t for t in (tree.first, tree.last, tree.step) if t is not None)
        case Index():
            return (tree.operand, *tree.items)
        case Call():
            return (*tree.arguments, *(value for _, value in tree.keywords))
        case Partial():
            return tuple(w[0] for w in tree.wrt if not isinstance(w, str))
        case Assignment():
            return (tree.expression,)
    return ()
