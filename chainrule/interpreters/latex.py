"""A graph as LaTeX, with the chapter's symbols: bold names are left to the document, products are juxtaposed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.interpreters.printing import Printer
from chainrule.ir import ATOM, MUL, POSTFIX, POWER, Node

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
).split()


_LETTERS = "ijklmnopqrstuvwxyzabcdefgh"  # of indices, in order


def _spelled(stem: str) -> str:
    """A Greek letter as its command's name: ``ω1`` is ``omega1``."""
    spelled = unicodedata.name(stem[:1], "")
    if not spelled.startswith("GREEK ") or len(stem.rstrip("0123456789")) != 1:
        return stem
    letter = spelled.split()[-1].lower().replace("lamda", "lambda")
    letter = letter.capitalize() if "CAPITAL" in spelled else letter
    return letter + stem[1:] if letter in _GREEK else stem


class LatexPrinter(Printer):
    """LaTeX: ``A^{\\top} \\left(A x - b\\right)``."""

    field = "latex"
    fallback_strength = MUL

    def __init__(self, names: Mapping[Node, str] | None = None) -> None:
        super().__init__(names)
        self._indexed: set[Node] = set()

    def symbol(self, name: str) -> str:
        """Greek names as letters, trailing digits and underscores as subscripts: ``f_{3}``, ``\\Omega_{k}``."""
        derivative = re.fullmatch(r"d(\w+)/d(\w+)", name)
        if derivative:
            top, bottom = (self.symbol(g) for g in derivative.groups())
            return rf"\frac{{\partial {top}}}{{\partial {bottom}}}"
        if not name.strip("_"):
            return r"\_"
        stem, _, below = name.strip("_").partition("_")
        stem = _spelled(stem)
        digits = re.fullmatch(r"([^\W\d_]+)(\d+)", stem)
        if digits:
            stem, below = digits.group(1), digits.group(2) + (f",{below}" if below else "")
        if stem in _GREEK:
            stem = "\\" + stem
        elif len(stem) > 1:
            stem = rf"\mathrm{{{stem}}}"
        parts = [rf"\mathrm{{{p}}}" if len(p) > 1 and not p.isdigit() else p for p in re.split("[_,]+", below) if p]
        return f"{stem}_{{{','.join(parts)}}}" if parts else stem

    def _named(self, name: str) -> tuple[str, int]:
        """A derivative as a name is a fraction: brackets only where it gets an exponent."""
        return self.symbol(name), POWER if "/" in name else ATOM

    def number(self, value: Any) -> str:
        """Scientific notation as a power of ten."""
        text = super().number(value)
        mantissa, e, exponent = text.partition("e")
        return rf"{mantissa} \times 10^{{{int(exponent)}}}" if e else text

    def size(self, size: Any) -> str:
        """A dimension, with its subscript."""
        return self.symbol(str(size)) if str(size).isidentifier() else str(size)

    def brackets(self, text: str) -> str:
        """Brackets that grow."""
        return rf"\left({text}\right)"

    def matmul(self, parts: Sequence[Any]) -> str:
        """A matrix product: juxtaposition."""
        return " ".join(self.operand(p, MUL + 1) for p in parts)

    def hadamard(self, parts: Sequence[Any]) -> str:
        """An elementwise product."""
        scalars = [p for p in parts if getattr(p, "indices", None) == ()]
        tensors = [p for p in parts if getattr(p, "indices", None) != ()]
        body = r" \odot ".join(self.operand(p, MUL + 1) for p in tensors)
        return " ".join([*(self.operand(p, MUL + 1) for p in scalars), *([body] if body else [])])

    def product(self, node: Node) -> tuple[str, int]:
        """``mul``: juxtaposed with a scalar, a circled dot between tensors, a dot before a number."""
        a, b = node.inputs
        left, right = self.child(a, MUL), self.child(b, MUL + 1)
        if a.shape != () and b.shape != ():
            return rf"{left} \odot {right}", MUL
        return (rf"{left} \cdot {right}" if right[:1].isdigit() else f"{left} {right}"), MUL

    def transpose(self, part: Any) -> str:
        """A transpose."""
        if part.text.endswith("^{-1}") and part.strength == POSTFIX:
            return part.text.removesuffix("^{-1}") + r"^{-\top}"
        return self.operand(part, POSTFIX + 1) + r"^{\top}"

    def identity(self, size: Any) -> str:
        """The identity matrix."""
        return f"I_{{{self.size(size)}}}"

    def call(self, name: str, part: Any, axis: int | None = None) -> str:
        """Sums, traces and diagonals."""
        inside = part if isinstance(part, str) else part.text
        if name == "ones":
            return rf"\mathbf{{1}}_{{{inside.replace(', ', ' ' + chr(92) + 'times ')}}}"
        below = "" if axis is None else f"_{{{axis}}}"
        operator = r"\sum" if name == "sum" else rf"\operatorname{{{name}}}"
        return rf"{operator}{below}\left({inside}\right)"

    def _render(self, node: Node) -> tuple[str, int]:
        """Where values of different order meet, one in index notation is marked as a whole: its letters end there."""
        orders = {i.type.rank for i in node.inputs if getattr(i.type, "rank", 0)}
        marked = self._indexed.intersection(node.inputs) if len(orders) > 1 and "operands" not in node.params else ()
        before = {i: self._done[i] for i in marked if i in self._done}
        self._done |= {i: (rf"\operatorname{{tensor}}\left({t}\right)", ATOM) for i, (t, _) in before.items()}
        try:
            return super()._render(node)
        finally:
            self._done |= before

    def fallback(self, node: Node, subscripts: str) -> str:
        """Index notation."""
        self._indexed.add(node)
        left, _, right = subscripts.partition("->")
        # Free letters in the order of the result, so that the text says which dimension is which; summed ones behind.
        used = [*right, *dict.fromkeys(c for c in left if c not in right and c != ",")]
        image = dict(zip(used, _LETTERS, strict=False))
        left, right = ("".join(image.get(c, c) for c in side) for side in (left, right))
        summed = sorted(set(left) - set(right) - {","})
        body = " ".join(
            f"{{{self.child(i, 50)}}}_{{{s}}}" if s else self.child(i, 50)
            for i, s in zip(node.inputs, left.split(","), strict=True)
        )
        return rf"\sum_{{{','.join(summed)}}} {body}" if summed else body


def latex(node: Node, names: Mapping[Node, str] | None = None) -> str:
    """``node`` as LaTeX (math mode, without delimiters); nodes in ``names`` are written by name.

    >>> from chainrule.ir import variable
    >>> latex(variable("f3") ** 2.0)
    'f_{3}^{2}'
    """
    return LatexPrinter(names).print(node)
