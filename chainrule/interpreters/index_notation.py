"""A graph in index notation: one element of the value as one line, ``sum_k A_ik * x_k``, for values of any order.

The algebra of terms says what a node is: factors read at indices, sums over the indices that are not free; identities
are gone or a ``delta_ij``. Elementwise functions are written of their elements, and what has no reading of its own
stays in matrix notation with its indices behind: ``inv(X)_ij``, ``(A @ B)_ij``. How a special op reads is its field
``indexed``. ``sum_k`` extends to the end of its product; a summed letter is never one that already means something.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from chainrule.interpreters.printing import Printer
from chainrule.interpreters.terms import Algebra, Factor, Index, Number, Sum, Term, aligned, collect
from chainrule.ir import ADD, ATOM, MUL, POWER, UNARY, Dim, Node, algebraic_depth, toposort
from chainrule.ops.index_letters import LETTERS

_SUMMED = MUL - 1  # a product behind a sum sign: it may be added to, but is no factor without brackets
_MAX_DEPTH = 60  # of nested functions and sums; what is deeper stays in matrix notation
_MAX_ALGEBRA = 120

Written = tuple[str, int]  # text and binding strength


def index_letters(nodes: Sequence[Node], count: int) -> tuple[str, ...]:
    """The first ``count`` letters ``i, j, k, ...`` that are no name of a variable or size in ``nodes``.

    >>> from chainrule.ir import variable
    >>> index_letters([variable("j")], 2)
    ('i', 'k')
    """
    return tuple(_unused(_names(nodes), count))


def _names(nodes: Sequence[Node]) -> set[str]:
    found: set[str] = set()
    for node in toposort(nodes):
        name = str(node.params.get("name", ""))
        found |= {name, name.rpartition("_")[2]}  # x_i as a name would be read as an element of x
        sizes = [*getattr(node.type, "shape", ()), node.params.get("size")]
        found |= {name for size in sizes if isinstance(size, Dim) for name in size.names}
    return found


def _unused(taken: set[str], count: int) -> list[str]:
    letters = [c for c in LETTERS if c not in taken][:count]
    number = 1
    while len(letters) < count:
        if f"i{number}" not in taken:
            letters.append(f"i{number}")
        number += 1
    return letters


class IndexPrinter:
    """Writes elements of nodes. Subclasses are the two languages.

    Args:
        letters: of the free indices.
        nodes: everything that will be written: its names are no letters.
        ranks: name -> number of dimensions, to read a derivative by name, ``dy/dx``, at its indices.
        layout: of such derivatives.
    """

    style: Printer

    def __init__(
        self,
        letters: Sequence[str],
        nodes: Sequence[Node],
        ranks: Mapping[str, int] | None = None,
        layout: str = "denominator",
    ) -> None:
        self.algebra = Algebra()
        self.ranks, self.layout = dict(ranks or {}), layout
        self._free = list(letters)
        self._taken = _names(nodes)
        self._letter: dict[int, str] = {}
        self._affine: dict[int, tuple[tuple[tuple[int, Index], ...], Any]] = {}
        self._scope: list[str] = list(letters)
        self._depth = 0

    def element(self, node: Node) -> str:
        """The element of ``node`` at the free letters."""
        indices = self.algebra.indices_of(node.type)
        self._letter.update(zip(indices, self._free, strict=True))
        return self.at(node, indices)[0]

    # ---- any node ------------------------------------------------------------------------------------------
    def at(self, node: Node, indices: Sequence[Index]) -> Written:
        """Text and binding strength of an element."""
        indices = tuple(indices)
        if self._depth >= _MAX_DEPTH or algebraic_depth(node) > _MAX_ALGEBRA:
            return self.subscripted(node, indices)
        self._depth += 1
        try:
            if node.op.terms is not None:
                terms = collect(self.algebra.expand(node, indices), self.algebra)
                if not (len(terms) == 1 and terms[0].coefficient == 1 and _is_just(terms[0], node)):
                    return self.sum(terms)
                indices = terms[0].factors[0].indices
            found = node.op.indexed(self, node, indices) if node.op.indexed is not None else None
            return self.subscripted(node, indices) if found is None else found
        finally:
            self._depth -= 1

    def subscripted(self, node: Node, indices: tuple[Index, ...]) -> Written:
        """A node in matrix notation with its indices behind; an identity is ``delta_ij``, a name keeps its own."""
        name = node.params.get("name") if node.is_leaf else None
        if name is not None and "/" in name:
            return self.derivative(name, indices)
        if node.is_leaf and "size" in node.params and indices and "delta" not in self._taken:
            return self.with_labels(self.style.symbol("delta"), sorted(map(self.label, indices), key=_place)), ATOM
        text, strength = self.style.print(node), self.style.rendered(node)[1]
        if not indices:
            return text, strength
        atomic = name is not None or self.is_call(text)
        return self.with_indices(text if atomic else self.style.brackets(text), indices), ATOM

    def derivative(self, name: str, indices: tuple[Index, ...]) -> Written:
        """``dy/dx`` by name, its indices shared out between y and x."""
        found = re.fullmatch(r"[d∂](.+)/[d∂](.+)", name)
        ranks = [self.ranks.get(part) for part in found.groups()] if found else []
        if found is None or None in ranks or sum(r or 0 for r in ranks) != len(indices):
            return self.with_indices(self.style.brackets(self.style.symbol(name)), indices), ATOM
        of, wrt = found.groups()
        first = self.ranks[wrt] if self.layout == "denominator" else self.ranks[of]
        low, high = indices[:first], indices[first:]
        below, above = (low, high) if self.layout == "denominator" else (high, low)
        top, bottom = ([self.label(i) for i in group] for group in (above, below))
        return self.quotient(of, wrt, top, [bottom], partial="∂" in name), MUL

    def partial(self, function: str, argument: Node, indices: tuple[Index, ...]) -> Written:
        """The first derivative of an unknown scalar function by one of its arguments."""
        text = self.style.print(argument)
        below = text if argument.is_leaf else self.style.brackets(text)
        return self.fraction_of(self.style.symbol(function), self.with_indices(below, indices)), MUL

    # ---- elementwise functions -----------------------------------------------------------------------------
    def elementwise(self, node: Node, indices: tuple[Index, ...]) -> Written:
        """A function of the elements of its operands."""
        at = _Operands(self, node, indices)
        template = getattr(node.op, self.style.field)
        if callable(template):
            found: Any = template(at, node)
            return found if isinstance(found, tuple) else (found, node.op.precedence)
        asked = self.style.asked(node)
        parts = [at.child(i, s) for i, s in zip(node.inputs, asked, strict=True)]
        return template.format(*parts), node.op.precedence

    # ---- what ``indexed`` rules call -----------------------------------------------------------------------
    def bound(self, name: str, x: Node, axes: Sequence[int], indices: tuple[Index, ...], keepdims: bool) -> Written:
        """``max_k(A_ik)``: a function over the elements along ``axes``."""
        inner = self.algebra.indices_of(x.type)
        if keepdims:
            indices = tuple(i for a, i in enumerate(indices) if a not in axes)
        rest = iter(indices)
        at = tuple(inner[a] if a in axes else next(rest) for a in range(x.type.rank))
        with _Letters(self, [inner[a] for a in axes]) as letters:
            return self.over(name, letters, self.at(x, at)[0]), ATOM

    def sum_of(self, factors: Sequence[tuple[Node, Sequence[Index]]], summed: Sequence[int]) -> Written:
        """``sum_j w_j * x_{i+j}``: one product of elements, summed."""
        product = tuple(Factor(node, tuple(indices)) for node, indices in factors)
        return self.sum([Term(Fraction(1), product, tuple(summed))])

    def affine(self, parts: Sequence[tuple[int, Index]], offset: Any, size: int | Dim) -> int:
        """An index that is computed from others, ``2*i + 1``: a new one for the algebra."""
        index = self.algebra.fresh(size)
        self._affine[index] = (tuple(parts), offset)
        return index

    def is_free(self, index: Index) -> bool:
        """Whether an index ranges over a dimension of the result, or over nothing."""
        return index is None or all(self._letter.get(i) in self._free for i in self._bases([index]))

    def label(self, index: Index) -> str:
        """How an index is written; a dimension of size 1 is read at 0."""
        if index is None:
            return "0"
        if index not in self._affine:
            return self._letter[index]
        parts, offset = self._affine[index]
        text = ""
        for factor, i in parts:
            shown = self.label(i)
            if shown == "0":
                continue
            if abs(factor) != 1 or factor < 0:
                shown = shown if shown.isalnum() else f"({shown})"
            text += ("-" if factor < 0 else "+") + (f"{abs(factor)}*" if abs(factor) != 1 else "") + shown
        if offset != 0:
            number = str(offset).replace(" ", "")
            text = text + ("" if number.startswith("-") else "+") + number if text.startswith("+") else number + text
        return text.removeprefix("+") or "0"

    def where_at_least(self, i: Index, j: Index, x: Node, indices: tuple[Index, ...]) -> Written:
        """``[i >= j] * X_ij``."""
        return self.quotient_of([(self.indicator(self.label(i), self.label(j)), ATOM), self.at(x, indices)], [])

    # ---- sums and products ---------------------------------------------------------------------------------
    def sum(self, terms: Sum) -> Written:
        """Terms with their signs, positive ones first."""
        if not terms:
            return "0", ATOM
        ordered = sorted(terms, key=lambda t: t.coefficient < 0)
        written = [self.term(t) for t in ordered]
        if len(terms) == 1 and ordered[0].coefficient > 0:
            return written[0]
        text = ""
        for term, part in zip(ordered, written, strict=True):
            sign = "-" if term.coefficient < 0 else "+"
            text += (f" {sign} " if text else sign.replace("+", "")) + self._factor(part, _SUMMED)
        return text, ADD if len(terms) > 1 else UNARY

    def term(self, term: Term) -> Written:
        """One product without its sign."""
        coefficient = abs(term.coefficient)
        with _Letters(self, term.summed) as letters:
            inside = [f for f in term.factors if self._bases(f.indices) & set(term.summed)]
            outside = [f for f in term.factors if f not in inside]
            if not term.summed:
                return self.product(coefficient, outside)
            if coefficient == 1 and all(f.power < 0 for f in outside):  # x_j / n behind the sum sign
                inside, outside = [*inside, *outside], []
            body = self.over_sum(letters, self._factor(self.product(Fraction(1), inside)))
            if coefficient == 1 and not outside:
                return body, _SUMMED
            return self.juxtaposed([self._factor(self.product(coefficient, outside)), body]), _SUMMED

    def _factor(self, written: Written, strength: int = MUL) -> str:
        return written[0] if written[1] >= strength else self.style.brackets(written[0])

    def _bases(self, indices: Sequence[Index]) -> set[int]:
        """The indices with letters that others are computed from."""
        found: set[int] = set()
        pending = [i for i in indices if i is not None]
        while pending:
            index = pending.pop()
            if index in self._affine:
                pending += [i for _, i in self._affine[index][0] if i is not None]
            else:
                found.add(index)
        return found

    def product(self, number: Number, factors: Sequence[Factor]) -> Written:
        """A number times powers of factors."""
        factors = sorted(factors, key=self._reading_order)
        above, below = [self.power(f) for f in factors if f.power > 0], [self.power(f) for f in factors if f.power < 0]
        if isinstance(number, Fraction):
            above = [(self.style.number(number.numerator), ATOM), *above] if number.numerator != 1 else above
            below = [(self.style.number(number.denominator), ATOM), *below] if number.denominator != 1 else below
        else:
            above = [(self.style.number(number), ATOM), *above]
        return self.quotient_of(above, below)

    def _reading_order(self, f: Factor) -> tuple[int, int]:
        """Scalars, then identities, then by the first index: ``delta_ij * h_k``, ``dl/df_i * h_j``."""
        if not f.indices:
            return (0, 0)
        if f.atom.is_leaf and "size" in f.atom.params:
            return (1, 0)
        return (2, _place(self.label(f.indices[0])))

    def power(self, f: Factor) -> Written:
        """A factor to the absolute value of its power."""
        text, strength = self.at(f.atom, f.indices)
        exponent = abs(f.power)
        if exponent == 1:
            return text, strength
        if exponent == Fraction(1, 2):
            return self.root(text), ATOM
        return self.raised(text if strength > POWER else self.style.brackets(text), exponent), POWER

    # ---- the two languages ---------------------------------------------------------------------------------
    def is_call(self, text: str) -> bool:
        """Whether indices may follow the text without brackets."""
        raise NotImplementedError

    def with_indices(self, text: str, indices: Sequence[Index]) -> str:
        """``A_ij``; ``A_{i,0}`` where a label is not one letter."""
        return self.with_labels(text, [self.label(i) for i in indices])

    def with_labels(self, text: str, labels: Sequence[str]) -> str:
        """Text with subscripts."""
        raise NotImplementedError

    def quotient(
        self, of: str, wrt: str, above: Sequence[str], below: Sequence[Sequence[str]], partial: bool = False
    ) -> str:
        """``dy_i/dx_j`` of two names; ``below`` has the labels of each variable that is derived by."""
        raise NotImplementedError

    def fraction_of(self, top: str, bottom: str) -> str:
        """``dl/df_i`` of two texts."""
        raise NotImplementedError

    def quotient_of(self, above: Sequence[Written], below: Sequence[Written]) -> Written:
        """A product over a product."""
        raise NotImplementedError

    def juxtaposed(self, parts: Sequence[str]) -> str:
        """A product of texts."""
        raise NotImplementedError

    def over_sum(self, letters: Sequence[str], body: str) -> str:
        """``sum_jk body``."""
        raise NotImplementedError

    def over(self, name: str, letters: Sequence[str], body: str) -> str:
        """``max_k(body)``."""
        raise NotImplementedError

    def indicator(self, left: str, right: str) -> str:
        """``[left >= right]``."""
        raise NotImplementedError

    def root(self, text: str) -> str:
        """A square root."""
        raise NotImplementedError

    def raised(self, text: str, exponent: Number) -> str:
        """A power."""
        raise NotImplementedError


def _place(label: str) -> int:
    """Where a label stands in the order of letters; computed ones come last."""
    return LETTERS.index(label) if len(label) == 1 and label in LETTERS else len(LETTERS)


def _is_just(term: Term, node: Node) -> bool:
    return not term.summed and len(term.factors) == 1 and term.factors[0].atom is node and term.factors[0].power == 1


class _Letters:
    """Letters for summed indices while what they bind is written; afterwards they are free again."""

    def __init__(self, printer: IndexPrinter, indices: Sequence[int]) -> None:
        self.printer, self.indices = printer, indices

    def __enter__(self) -> list[str]:
        p = self.printer
        letters = _unused(p._taken | set(p._scope), len(self.indices))
        p._letter.update(zip(self.indices, letters, strict=True))
        p._scope += letters
        return letters

    def __exit__(self, *_: object) -> None:
        p = self.printer
        del p._scope[len(p._scope) - len(self.indices) :]


class _Operands:
    """What a template of an elementwise op asks of a printer, answered with elements."""

    def __init__(self, printer: IndexPrinter, node: Node, indices: tuple[Index, ...]) -> None:
        self._printer, self._node, self._indices = printer, node, indices

    def rendered(self, operand: Node) -> Written:
        return self._printer.at(operand, aligned(operand, self._node.type, self._indices))

    def child(self, operand: Node, strength: int) -> str:
        text, own = self.rendered(operand)
        return text if own >= strength else self._printer.style.brackets(text)

    def is_named(self, _: Node) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._printer.style, name)
