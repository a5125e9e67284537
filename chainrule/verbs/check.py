"""``check``: is this claimed derivative right, and if not, what is, and where do they differ?

Equality is decided by algebra where it can be, and otherwise by values at random points in float64; the verdict says
which. A wrong claim comes with the right answer, the simplified difference, a point with numbers, and the likely slip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chainrule.errors import ChainruleError
from chainrule.frontends.formula import parse, parse_program
from chainrule.frontends.formula.functions import unknown_in
from chainrule.interpreters.simplify import equal, simplify
from chainrule.ir import Graph, shape_text, variable
from chainrule.ops.contraction import transpose
from chainrule.verbs.derive import DeriveResult, derive
from chainrule.verbs.expression import Expression, agree_at_random_points


@dataclass(frozen=True, eq=False)
class CheckResult:
    """The verdict on one claim.

    Attributes:
        holds: whether the claim is right. claim, correct: both derivatives. difference: claim - correct, simplified.
        counterexample: a point ``{"at": ..., "first": claimed value, "second": right value}``, None if it holds.
        slip: the likely mistake, empty if not recognised. decided_by: ``"algebra"`` or ``"random points"``.
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

    def __str__(self) -> str:
        symbol = f"d{self.of}/d{self.wrt}"
        if self.holds:
            return f"right: {symbol} = {self.claim.text}   (decided by {self.decided_by})"
        lines = [f"wrong: {symbol} is not {self.claim.text}", f"  correct:     {self.correct.text}"]
        if self.difference is None:
            given, right = shape_text(self.claim.shape), shape_text(self.correct.shape)
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
    claimed = _claim(claim, derived, shapes, cotangent)
    if claimed.shape != correct.shape:
        return _verdict(derived, claimed, correct, False, None, None, _shape_slip(claimed, correct), "shapes")
    difference = Expression(simplify(claimed.full - correct.full))
    if equal(claimed.full, correct.full):
        return _verdict(derived, claimed, correct, True, difference, None, "", "algebra")
    same, point = agree_at_random_points(claimed.full, correct.full)
    short = Expression(simplify(claimed.node - correct.node), correct.definitions)
    if same:
        return _verdict(derived, claimed, correct, True, short, None, "", "random points")
    return _verdict(derived, claimed, correct, False, short, point, _slip(claimed, correct), "random points")


def _verdict(
    derived: DeriveResult,
    claim: Expression,
    correct: Expression,
    holds: bool,
    difference: Expression | None,
    point: dict[str, Any] | None,
    slip: str,
    decided_by: str,
) -> CheckResult:
    return CheckResult(derived.of, derived.wrt[0], holds, claim, correct, difference, point, slip, decided_by)


def _claim(claim: str, derived: DeriveResult, shapes: Mapping[str, Any] | None, cotangent: str | None) -> Expression:
    """The claim, in which the formula's own names mean what they mean there."""
    program = derived.program
    # An unknown function of the formula is one in the claim, too: dl/df is its derivative.
    given = {n: program.local[n] if unknown_in([program.local[n]]) else program.symbol[n] for n in program.order}
    given |= program.variables
    if cotangent is not None:
        given[cotangent] = variable(cotangent, program.symbol[program.output].type)
    root = parse(claim, {k: v for k, v in (shapes or {}).items() if k not in given}, given=given).outputs[-1]
    return Expression(root, program.definitions)


def _shape_slip(claimed: Expression, correct: Expression) -> str:
    if claimed.shape[::-1] == correct.shape and equal(transpose(claimed.full), correct.full):
        return "missing transpose"
    return ""


def _slip(claimed: Expression, correct: Expression) -> str:
    """The mistake that explains the difference, if it is one of the usual ones."""
    a, b = claimed.full, correct.full
    for factor, name in ((-1.0, "sign"), (2.0, "missing factor 2"), (0.5, "a factor 2 too many")):
        if equal(a * factor, b) or agree_at_random_points(a * factor, b)[0]:
            return name
    if len(claimed.shape) == 2 and claimed.shape[::-1] == correct.shape and equal(transpose(a), b):
        return "missing transpose"
    return ""
