"""Index notation in the two languages: as text, ``2 * sum_j A_ij * x_j``, and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from chainrule.interpreters.index_notation import IndexPrinter, Written, index_letters
from chainrule.interpreters.latex import LatexPrinter
from chainrule.interpreters.terms import Number
from chainrule.interpreters.text import TextPrinter
from chainrule.ir import ATOM, MUL, Node


# ---- text --------------------------------------------------------------------------------------------------
class IndexText(IndexPrinter):
    """``2 * sum_j A_ij * x_j``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.style = TextPrinter()

    def is_call(self, text: str) -> bool:
        name, bracket, rest = text.partition("(")
        return bool(bracket) and name.isidentifier() and _closes_last(rest, "(", ")")

    def with_labels(self, text: str, labels: Sequence[str]) -> str:
        if not labels:
            return text
        plain = all(len(label) == 1 and label.isalpha() for label in labels)
        return f"{text}_{''.join(labels)}" if plain else f"{text}_{{{','.join(labels)}}}"

    def quotient(
        self, of: str, wrt: str, above: Sequence[str], below: Sequence[Sequence[str]], partial: bool = False
    ) -> str:
        d, order = "∂" if partial else "d", len(below)
        bottom = " ".join(d + self.with_labels(wrt, labels) for labels in below)
        return f"{d}{order if order > 1 else ''}{self.with_labels(of, above)}/{bottom}"

    def fraction_of(self, top: str, bottom: str) -> str:
        return f"d{top}/d{bottom}"

    def quotient_of(self, above: Sequence[Written], below: Sequence[Written]) -> Written:
        if len(above) == 1 and not below:
            return above[0]
        text = " * ".join(map(self._factor, above)) or "1"
        if not below:
            return text, MUL if above else ATOM
        if len(below) == 1:
            return f"{text} / {self._factor(below[0], MUL + 1)}", MUL
        inside = " * ".join(self._factor(p, MUL + 1) for p in below)
        return f"{text} / ({inside})", MUL

    def juxtaposed(self, parts: Sequence[str]) -> str:
        return " * ".join(parts)

    def over_sum(self, letters: Sequence[str], body: str) -> str:
        return f"{self.with_labels('sum', letters)} {body}"

    def over(self, name: str, letters: Sequence[str], body: str) -> str:
        return f"{self.with_labels(name, letters)}({body})"

    def indicator(self, left: str, right: str) -> str:
        return f"[{left} >= {right}]"

    def root(self, text: str) -> str:
        return f"sqrt({text})"

    def raised(self, text: str, exponent: Number) -> str:
        whole = not isinstance(exponent, Fraction) or exponent.denominator == 1
        return f"{text}^{self.style.number(exponent) if whole else f'({exponent})'}"


# ---- LaTeX -------------------------------------------------------------------------------------------------
class IndexLatex(IndexPrinter):
    """``2 \\sum_{j} A_{ij} x_{j}``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.style = LatexPrinter()

    def is_call(self, text: str) -> bool:
        call = re.match(r"\\(operatorname\{[^{}]*\}|[A-Za-z]+)(_\{[^{}]*\})?\\left\(", text)
        return call is not None and _closes_last(text[call.end() :], r"\left", r"\right")

    def with_labels(self, text: str, labels: Sequence[str]) -> str:
        if not labels:
            return text
        shown = [re.sub(r"(?<=\d)\*", " ", label) for label in labels]
        joined = "".join(shown) if all(len(label) == 1 for label in labels) else ",".join(shown)
        own = re.fullmatch(r"(.*?)_\{((?:[^{}]|\{[^{}]*\})*)\}", text)
        if own is not None and "{" not in own.group(1).replace(r"\mathrm{", ""):  # f_{3} has a subscript already
            return f"{own.group(1)}_{{{own.group(2)},{joined}}}"
        return f"{text}_{{{joined}}}"

    def quotient(
        self, of: str, wrt: str, above: Sequence[str], below: Sequence[Sequence[str]], partial: bool = False
    ) -> str:
        top = self.with_labels(self.style.symbol(of), above)
        bottom = [rf"\partial {self.with_labels(self.style.symbol(wrt), labels)}" for labels in below]
        order = f"^{{{len(below)}}}" if len(below) > 1 else ""
        return rf"\frac{{\partial{order} {top}}}{{{' '.join(bottom)}}}"

    def fraction_of(self, top: str, bottom: str) -> str:
        return rf"\frac{{\partial {top}}}{{\partial {bottom}}}"

    def quotient_of(self, above: Sequence[Written], below: Sequence[Written]) -> Written:
        if not below:
            if len(above) == 1:
                return above[0]
            return self.juxtaposed([self._factor(p) for p in above]) or "1", MUL if above else ATOM
        if len(above) == 1:
            top = above[0][0]
        else:
            top = self.juxtaposed([self._factor(p) for p in above]) or "1"
        bottom = below[0][0] if len(below) == 1 else self.juxtaposed([self._factor(p) for p in below])
        return rf"\frac{{{top}}}{{{bottom}}}", MUL

    def juxtaposed(self, parts: Sequence[str]) -> str:
        text = ""
        for part in parts:
            text += (r" \cdot " if part[:1].isdigit() else " ") + part if text else part
        return text

    def over_sum(self, letters: Sequence[str], body: str) -> str:
        return f"{self.with_labels(chr(92) + 'sum', letters)} {body}"

    def over(self, name: str, letters: Sequence[str], body: str) -> str:
        return rf"{self.with_labels(chr(92) + name, letters)}\left({body}\right)"

    def indicator(self, left: str, right: str) -> str:
        return rf"\mathbb{{I}}\left[{left} \geq {right}\right]"

    def root(self, text: str) -> str:
        return rf"\sqrt{{{text}}}"

    def raised(self, text: str, exponent: Number) -> str:
        return f"{text}^{{{exponent if isinstance(exponent, Fraction) else self.style.number(exponent)}}}"


def _closes_last(rest: str, opening: str, closing: str) -> bool:
    """Whether the bracket that was opened before ``rest`` is closed by its last one."""
    depth = 1
    for found in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", rest):
        depth += 1 if found.group() == opening else -1
        if depth == 0:
            return found.end() >= len(rest) - 1 if opening != "(" else found.end() == len(rest)
    return False


def index_text(node: Node, letters: Sequence[str] | None = None) -> str:
    """One element of ``node`` as a line of text; ``letters`` are its free indices, ``i, j, k, ...`` by default.

    >>> import chainrule as cr
    >>> index_text(cr.formula("A @ x + b", shapes={"A": "m,n", "x": "n", "b": "m"}).node)
    'sum_j A_ij * x_j + b_i'
    """
    letters = index_letters([node], node.type.rank) if letters is None else letters
    return IndexText(letters, [node]).element(node)


def index_latex(node: Node, letters: Sequence[str] | None = None) -> str:
    """The same as LaTeX.

    >>> import chainrule as cr
    >>> index_latex(cr.formula("A @ x", shapes={"A": "m,n", "x": "n"}).node)
    '\\\\sum_{j} A_{ij} x_{j}'
    """
    letters = index_letters([node], node.type.rank) if letters is None else letters
    return IndexLatex(letters, [node]).element(node)
