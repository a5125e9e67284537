"""A derivative as one line in index notation, element first and then the matrix it forms (problems 7.6 and 7.9).

``dz_i/dh_j = Omega_ij, hence dz/dh = Omega'``. Tensors of order three and up have no matrix form: the line says it all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chainrule.interpreters.index_languages import IndexLatex, IndexText
from chainrule.interpreters.index_notation import IndexPrinter, index_letters
from chainrule.ir import Node
from chainrule.verbs.expression import Expression

_DERIVATIVE = re.compile(r"[d∂](.+)/[d∂](.+)")


class IndexLines:
    """Lines about the quantities of one program.

    Args:
        symbols: name -> leaf of every named quantity and variable. layout: of the derivatives.
    """

    def __init__(self, symbols: Mapping[str, Node], layout: str) -> None:
        self.symbols, self.layout = symbols, layout
        self.ranks = {name: leaf.type.rank for name, leaf in symbols.items()}

    def definition(self, name: str, meaning: Expression) -> str:
        """``f_i = beta_i + sum_j Omega_ij * h_j``."""
        letters = self._letters(meaning, self.ranks[name])
        left = self._printer(IndexText, letters, meaning).with_labels(name, letters)
        return f"{left} = {self._element(IndexText, letters, meaning)}"

    def derivative(self, of: str, wrt: str, value: Expression, order: int, symbol: str) -> str:
        """The element, and the matrix called ``symbol`` where there is one."""
        line = self._line(IndexText, of, wrt, value, order)
        return f"{line}, hence {symbol} = {value.text}" if 1 <= value.node.type.rank <= 2 else line

    def latex(self, of: str, wrt: str, value: Expression, order: int, equals: str) -> str:
        """The element in LaTeX."""
        return self._line(IndexLatex, of, wrt, value, order, equals)

    def factor(self, symbol: str, value: Expression) -> str:
        """The element of a local factor called ``df/dOmega``; empty if the name is no derivative of known names."""
        found = _DERIVATIVE.fullmatch(symbol)
        if found is None or any(name not in self.ranks for name in found.groups()):
            return ""
        of, wrt = found.groups()
        return self._line(IndexText, of, wrt, value, 1, partial=symbol.startswith("∂"))

    # ---- pieces --------------------------------------------------------------------------------------------
    def _line(
        self,
        language: type[IndexPrinter],
        of: str,
        wrt: str,
        value: Expression,
        order: int,
        equals: str = " = ",
        partial: bool = False,
    ) -> str:
        above, below = self.ranks[of], self.ranks[wrt]
        if value.node.type.rank == order * below:  # contracted with a cotangent of the output
            above = 0
        letters = self._letters(value, above + order * below)
        top, bottom = letters[:above], letters[above:]
        behind = order == 1 and self.layout == "denominator"
        printer = self._printer(language, letters, value)
        groups = [bottom[k * below : (k + 1) * below] for k in range(order)]
        left = printer.quotient(of, wrt, top, groups, partial)
        return f"{left}{equals}{self._element(language, (*bottom, *top) if behind else letters, value)}"

    def _letters(self, value: Expression, count: int) -> tuple[str, ...]:
        return index_letters([value.node, *self.symbols.values()], count)

    def _printer(self, language: type[IndexPrinter], letters: Sequence[str], value: Expression) -> IndexPrinter:
        return language(letters, [value.node, *self.symbols.values()], self.ranks, self.layout)

    def _element(self, language: type[IndexPrinter], letters: Sequence[str], value: Expression) -> str:
        return value.element(self._printer(language, letters, value))
