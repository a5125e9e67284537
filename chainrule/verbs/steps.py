"""What a derivation consists of: steps, the paths of each as terms, and the local factors of each path."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from chainrule.interpreters.rewriting import stages
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, tree_size
from chainrule.verbs.expression import Expression, resolve

_CHAIN_RULE = {False: "chain rule", True: "chain rule, sum over paths"}
_SHOWN = 4000  # operators and operands of a form that is written in full
_WRITTEN_OUT = 150  # operators and operands of a form with no names in it that is shown


@dataclass(frozen=True)
class Factor:
    """One factor of a term.

    Attributes:
        symbol: ``df3/df1``. expression: what it is; None where no closed form was asked for or exists. shape: its own.
    """

    symbol: str
    expression: Expression | None  # None: no closed tensor form was asked for or exists
    shape: tuple[Any, ...]

    def to_dict(self) -> dict[str, Any]:
        """The factor as plain data."""
        expression = self.expression.text if self.expression else None
        return {"symbol": self.symbol, "expression": expression, "shape": [str(s) for s in self.shape]}


@dataclass(frozen=True)
class Term:
    """One path out of a quantity.

    Attributes:
        factors: in the order of multiplication. expression: their product.
    """

    factors: tuple[Factor, ...]
    expression: Expression
    raw: Node | None = field(default=None, repr=False)  # before simplification

    def __str__(self) -> str:
        return " * ".join(f.symbol for f in self.factors)


@dataclass(frozen=True)
class Step:
    """The derivative ``d of / d wrt`` as a sum over paths.

    Attributes:
        terms: one per path. expression: the sum in known derivatives. closed_form: with those put in.
        shape: of the derivative. value: its number if numbers were given. note: why it is zero, where it is.
        raw: the derivative before any simplification, in which :attr:`lines` start; None where there is no such form.
        order: 1, or that of a higher derivative by the same variable.
        chain: the whole product, one tuple of local factors per path, from the variable to the output (in numerator
            layout the other way round); empty where there are many paths. sizes: of the derivative and those factors,
            ``(D_1 x 1) = (D_1 x D_2)(D_2 x 1)``; empty for scalars.
        partial: further paths lead around the quantities eliminated so far (mode "best").
    """

    of: str
    wrt: str
    terms: tuple[Term, ...]
    expression: Expression
    closed_form: Expression
    shape: tuple[Any, ...]
    value: Any = None
    note: str = ""
    raw: Node | None = field(default=None, repr=False)
    order: int = 1
    partial: bool = False
    chain: tuple[tuple[Factor, ...], ...] = ()
    sizes: str = ""

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factors of the only term.

        Raises:
            ValueError: there are several paths; see ``terms``.
        """
        if len(self.terms) != 1:
            raise ValueError(f"d{self.of}/d{self.wrt} has {len(self.terms)} paths: see .terms")
        return self.terms[0].factors

    @cached_property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """``(line, rule)`` from the chain rule to the simplified form; all but the chain rule's are formulas."""
        found = [(" + ".join(map(str, self.terms)), _CHAIN_RULE[len(self.terms) > 1])] if self.terms else []
        rule = "local derivatives and known ones put in" if self.terms else "differentiated"
        end = self.closed_form.node
        if max(0 if self.raw is None else tree_size(self.raw), tree_size(end)) > _SHOWN:
            return (*found, (self.closed_form.text, rule))  # with names for its parts: in full it has no end
        for node, why in [] if self.raw is None else self._stages(self.raw, rule):
            shown = text(node)
            if not found or found[-1][0] != shown:
                found.append((shown, why))
        if not found or found[-1][0] != text(end):
            found.append((text(end), "simplified"))
        return tuple(found)

    def _stages(self, raw: Node, rule: str) -> list[tuple[Node, str]]:
        """The stages of the raw form; where names hide what cancels, of the form with the names put in as well."""
        end = self.closed_form.node
        own = simplify(raw)
        if own is end or tree_size(raw) > _WRITTEN_OUT:
            return stages(raw, end, rule)
        written_out = resolve(raw, self.closed_form.definitions)
        if written_out is raw or tree_size(written_out) > _WRITTEN_OUT:
            return stages(raw, end, rule)
        found = stages(written_out, simplify(written_out), "names written out")
        last = [] if found[-1][0] is end else [(end, "in the names given")]
        return [(simplify(raw, exact=True), rule), *found, *last]

    @property
    def symbol(self) -> str:
        """``dy/df3``, ``d2y/dx2``."""
        if self.partial:
            return f"∂{self.of}/∂{self.wrt}"
        return f"d{self.of}/d{self.wrt}" if self.order == 1 else f"d{self.order}{self.of}/d{self.wrt}{self.order}"

    def __str__(self) -> str:
        chain = " + ".join(str(t) for t in self.terms)
        closed = self.closed_form.text
        if all(f.expression is None for t in self.terms for f in t.factors[:1]):
            chain = ""
        middle = f" = {chain}" if chain and chain not in (self.symbol, closed) else ""
        return f"{self.symbol}{middle} = {closed}" + (f"   ({self.note})" if self.note else "")

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data, in the public schema."""
        return {
            "of": self.of,
            "wrt": self.wrt,
            "terms": [[f.to_dict() for f in t.factors] for t in self.terms],
            "chain": [[f.symbol for f in path] for path in self.chain],
            "sizes": self.sizes,
            "closed_form": self.closed_form.text,
            "shape": [str(s) for s in self.shape],
            "value": None if self.value is None else np.asarray(self.value).tolist(),
            "note": self.note,
            "lines": [list(line) for line in self.lines],
        }
