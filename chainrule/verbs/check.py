"""``check``: is this claimed derivative right, and if not, what is, and where do they differ?

Equality is decided by algebra where it can be, and otherwise by values at random points of the formula's domain in
float64; the verdict says which. A wrong claim comes with the right answer, the simplified difference, a point with
numbers, and the likely slip.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chainrule.errors import ChainruleError, FormulaError
from chainrule.frontends.formula import parse_program
from chainrule.frontends.formula.functions import unknown_in
from chainrule.interpreters.simplify import equal, simplify
from chainrule.ir import Graph, Node, shape_text, toposort, variable
from chainrule.ops.contraction import transpose
from chainrule.verbs.agreement import agreement
from chainrule.verbs.defined import refuse_division_by_zero
from chainrule.verbs.derive import DeriveResult, derive
from chainrule.verbs.expression import Expression


@dataclass(frozen=True, eq=False)
class CheckResult:
    """The verdict on one claim.

    Attributes:
        holds: whether the claim is right. claim, correct: both derivatives. difference: claim - correct, simplified.
        counterexample: a point ``{"at": ..., "first": claimed value, "second": right value}``, None if it holds.
        slip: the likely mistake, empty if not recognised.
        decided_by: ``"algebra"``, ``"random points"`` or ``"shapes"``.
        except_at: kinks where alone a right claim has another value, ``"z = 0"``.
    """

    of: str
    wrt: str
    holds: bool
    claim: Expression
    correct: Expression
    difference: Expression | None
    counterexample: dict[str, Any] | None
    slip: str
    decided_by: str
    except_at: str = ""

    def __str__(self) -> str:
        symbol = f"d{self.of}/d{self.wrt}"
        if self.holds:
            but = f", equal except at {self.except_at}" if self.except_at else ""
            return f"right: {symbol} = {self.claim.text}{but}   (decided by {self.decided_by})"
        lines = [f"wrong: {symbol} is not {self.claim.text}", f"  correct:     {self.correct.text}"]
        if self.difference is None:
            given, right = shape_text(self.claim.shape), shape_text(self.correct.shape)
            given = f"1, {given}" if given == right else given  # a row
            lines.append(f"  shapes:      claimed ({given}), correct ({right})")
        else:
            lines.append(f"  difference:  {self.difference.text}   (claimed - correct)")
        if self.counterexample:
            at = ", ".join(f"{k} = {v}" for k, v in self.counterexample["at"].items())
            lines.append(f"  for example: {self.counterexample['first']} instead of {self.counterexample['second']}")
            lines.append(f"               at {at}")
        if self.slip:
            lines.append(f"  likely slip: {self.slip}")
        lines.append(f"  (decided by {self.decided_by})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.check/1",
            "of": self.of,
            "wrt": self.wrt,
            "holds": self.holds,
            "claim": self.claim.text,
            "correct": self.correct.text,
            "difference": self.difference.text if self.difference is not None else None,
            "counterexample": self.counterexample,
            "slip": self.slip,
            "decided_by": self.decided_by,
            "except_at": self.except_at,
        }


def check(
    source: str | Graph | Expression,
    *,
    wrt: str,
    claim: str,
    shapes: Mapping[str, Any] | None = None,
    layout: str = "denominator",
    order: int = 1,
    cotangent: str | None = None,
) -> CheckResult:
    """Compares a claimed derivative with the derived one.

    Args:
        source: the formula or assignments. wrt: the variable, or a named intermediate, to derive by.
        claim: the claimed derivative, in the formula language; it may use the formula's own names.
        shapes, layout, order, cotangent: as in :func:`chainrule.derive`.

    Returns:
        CheckResult: ``c.holds``, ``c.correct``, ``c.difference``, ``c.counterexample``, ``c.slip``.

    Raises:
        FormulaError, ShapeError: the formula or the claim is not in the language.

    >>> import chainrule as cr
    >>> c = cr.check("l = (f3 - y)^2", wrt="f3", claim="2*f3")
    >>> c.holds, c.correct.text, c.difference.text
    (False, '2 * (f3 - y)', '2 * y')
    """
    if "," in wrt or wrt == "all":
        raise ChainruleError("check compares one derivative", given=f"wrt={wrt!r}", required="one name")
    # A single formula is compared written out; assignments keep their names in the answer.
    single = not isinstance(source, str) or len(parse_program(source, shapes).statements) == 1
    mode = "direct" if single else "reverse"
    derived = derive(source, wrt=wrt, shapes=shapes, mode=mode, layout=layout, order=order, cotangent=cotangent)
    correct = derived[derived.wrt[0]]
    claimed, row = _claim(claim, derived, shapes, cotangent)
    if claimed.shape != correct.shape:
        return _verdict(derived, claimed, correct, False, None, None, _shape_slip(claimed, correct), "shapes")
    if row and _is_gradient(derived, correct):
        return _verdict(derived, claimed, correct, False, None, None, _ROW, "shapes")
    difference = Expression(simplify(claimed.full - correct.full))
    if equal(claimed.full, correct.full):
        return _verdict(derived, claimed, correct, True, difference, None, "", "algebra")
    short = Expression(simplify(claimed.node - correct.node), correct.definitions)
    domain = Expression(derived.program.symbol[derived.of], derived.program.definitions).full
    found = agreement(claimed.full, correct.full, domain)
    different = _is_another_constant(difference.node, claimed.full, correct.full, domain)
    if found.same and not different:
        return _verdict(derived, claimed, correct, True, short, None, "", "random points", found.except_at)
    slip = _slip(claimed, correct, domain)
    return _verdict(derived, claimed, correct, False, short, found.point, slip, _DECIDED[different])


_ROW = "a row: the gradient is a column, drop the transpose"
_DECIDED = {True: "algebra", False: "random points"}


def _is_gradient(derived: DeriveResult, correct: Expression) -> bool:
    """Whether the derivative is a column: that of a scalar by a vector, in the layout where it is one."""
    output, target = (derived.program.symbol[n] for n in (derived.of, derived.wrt[0]))
    return derived.layout == "denominator" and output.shape == () and target.shape == correct.shape


def _is_another_constant(difference: Node, claimed: Node, correct: Node, domain: Node) -> bool:
    """Whether claim and correct differ by a number, or by a number as a factor, beyond rounding."""
    numbers = [abs(n.number) for n in toposort([claimed, correct]) if n.is_leaf and n.number is not None]
    offset = _number(difference)
    if offset is not None:
        return abs(offset) > 1e-14 * max(numbers, default=0.0)
    factor = _number(simplify(difference / correct))
    if factor is None or abs(factor) <= 1e-12:
        return False
    return not agreement(correct, correct * 0.0, domain).same  # a multiple of what is zero in disguise is zero


def _number(node: Node) -> float | None:
    """The number that a node is in all of its elements."""
    while node.number is None and len(node.inputs) == 1 and node.inputs[0].number is not None:
        node = node.inputs[0]
    return None if node.number is None else float(node.number)


def _verdict(
    derived: DeriveResult,
    claim: Expression,
    correct: Expression,
    holds: bool,
    difference: Expression | None,
    point: dict[str, Any] | None,
    slip: str,
    decided_by: str,
    except_at: str = "",
) -> CheckResult:
    of, wrt = derived.of, derived.wrt[0]
    return CheckResult(of, wrt, holds, claim, correct, difference, point, slip, decided_by, except_at)


def _claim(
    claim: str, derived: DeriveResult, shapes: Mapping[str, Any] | None, cotangent: str | None
) -> tuple[Expression, bool]:
    """The claim, in which the formula's own names mean what they mean there, and whether it is a row."""
    program = derived.program
    # An unknown function of the formula is one in the claim, too: dl/df is its derivative.
    given = {n: program.local[n] if unknown_in([program.local[n]]) else program.symbol[n] for n in program.order}
    given |= program.variables
    if cotangent is not None:
        given[cotangent] = variable(cotangent, program.symbol[program.output].type)
    parsed = parse_program(claim, {k: v for k, v in (shapes or {}).items() if k not in given}, given=given)
    for leaf in parsed.graph.inputs:
        if leaf.params["name"] not in given:
            raise _unknown_name(leaf.params["name"], claim, given)
    refuse_division_by_zero(parsed)
    last = parsed.statements[-1]
    return Expression(last.node, program.definitions), last.row


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


def _shape_slip(claimed: Expression, correct: Expression) -> str:
    if claimed.shape[::-1] == correct.shape and equal(transpose(claimed.full), correct.full):
        return "missing transpose"
    return ""


def _slip(claimed: Expression, correct: Expression, domain: Node) -> str:
    """The mistake that explains the difference, if it is one of the usual ones."""
    a, b = claimed.full, correct.full
    for factor, name in ((-1.0, "sign"), (2.0, "missing factor 2"), (0.5, "a factor 2 too many")):
        if equal(a * factor, b) or agreement(a * factor, b, domain).same:
            return name
    if len(claimed.shape) == 2 and claimed.shape[::-1] == correct.shape and equal(transpose(a), b):
        return "missing transpose"
    return ""
