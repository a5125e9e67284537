"""A claimed derivative read in the names of its formula: text of the formula language, or LaTeX."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chainrule.errors import FormulaError, ShapeError
from chainrule.frontends.formula import Trees, parse_trees
from chainrule.frontends.formula.functions import unknown_in
from chainrule.frontends.latex import is_latex, parse_latex
from chainrule.ir import Node, variable
from chainrule.verbs.defined import refuse_division_by_zero
from chainrule.verbs.derive import DeriveResult
from chainrule.verbs.expression import Expression


@dataclass(frozen=True)
class Claim:
    """What was claimed: ``expression`` is None where operands do not fit, and ``error`` says which."""

    source: str
    trees: Trees
    expression: Expression | None
    row: bool
    error: ShapeError | None = None


def read_claim(claim: str, derived: DeriveResult, shapes: Mapping[str, Any] | None, cotangent: Node | None) -> Claim:
    """The claim, in which the formula's own names mean what they mean there.

    Raises:
        FormulaError: it is not in the language, or has a name that the formula does not have.
    """
    program = derived.program
    # An unknown function of the formula is one in the claim, too: dl/df is its derivative.
    given = {n: program.local[n] if unknown_in([program.local[n]]) else program.symbol[n] for n in program.order}
    given |= program.variables
    if cotangent is not None:
        given[cotangent.params["name"]] = cotangent
    own = {k: v for k, v in (shapes or {}).items() if k not in given}
    trees = parse_latex(claim, own, given=given) if is_latex(claim) else parse_trees(claim, own, given=given)
    try:
        parsed = trees.program()
    except ShapeError as error:
        return Claim(claim, trees, None, False, error)
    for leaf in parsed.graph.inputs:
        if leaf.params["name"] not in given:
            raise _unknown_name(leaf.params["name"], claim, given)
    refuse_division_by_zero(parsed)
    last = parsed.statements[-1]
    return Claim(claim, trees, Expression(last.node, program.definitions), last.row)


def cotangent_of(name: str | None, derived: DeriveResult) -> Node | None:
    """The leaf that a named cotangent is."""
    program = derived.program
    return None if name is None else variable(name, program.symbol[program.output].type)


def _unknown_name(name: str, claim: str, given: Mapping[str, Node]) -> FormulaError:
    near = difflib.get_close_matches(name, given, 1, 0.5) or difflib.get_close_matches(name.lower(), given, 1, 0.5)
    place = re.search(rf"\b{re.escape(name)}\b", claim)
    return FormulaError(
        f"the claim names {name!r}, which does not occur in the formula",
        source=claim,
        position=place.start() if place else None,
        given=name,
        required=f"a name of the formula: {', '.join(given)}",
        instead=near[0] if near else next(iter(given)) if len(given) == 1 else "",
    )
