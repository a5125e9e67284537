"""The verdict on one claimed derivative: what ``check`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chainrule.interpreters.latex import LatexPrinter
from chainrule.ir import shape_text
from chainrule.verbs.assumptions import assumption_lines, assumptions_of
from chainrule.verbs.expression import Expression


@dataclass(frozen=True, eq=False)
class CheckResult:
    """The verdict on one claim.

    Attributes:
        holds: whether the claim is right. correct: the derivative. difference: claim - correct, simplified.
        claim: the claimed derivative; None where it is a function, or where its shapes do not fit together.
        claim_text: the claim as it was given.
        counterexample: a point ``{"at": ..., "first": claimed value, "second": right value}``, None if it holds.
        slip: the likely mistake in words, empty if not recognised. slip_kind: its kind, one of
            :data:`chainrule.verbs.slip_kinds.SLIPS`.
        decided_by: ``"algebra"``, ``"random points"`` or ``"shapes"``.
        except_at: kinks where alone a right claim has another value, ``"z = 0"``.
        of, wrt: what was derived, and by what. claim_row: the claim is a row, one dimension more than the answer.
    """

    of: str
    wrt: str
    holds: bool
    claim: Expression | None
    correct: Expression
    difference: Expression | None
    counterexample: dict[str, Any] | None
    slip: str
    decided_by: str
    except_at: str = ""
    slip_kind: str = ""
    claim_text: str = ""
    claim_row: bool = False

    @property
    def symbol(self) -> str:
        """``dl/df3``."""
        return f"d{self.of}/d{self.wrt}"

    @property
    def claimed(self) -> str:
        """The claim as text: of the formula language where it could be read."""
        return self.claim.text if self.claim is not None else self.claim_text

    @property
    def assumptions(self) -> dict[str, str]:
        """What variables were assumed to be, by name."""
        return assumptions_of(self.correct.variables)

    def __str__(self) -> str:
        return "\n".join([self._verdict(), *assumption_lines(self.correct.variables, (self.wrt,))])

    def _verdict(self) -> str:
        if self.holds:
            but = f", equal except at {self.except_at}" if self.except_at else ""
            return f"right: {self.symbol} = {self.claimed}{but}   (decided by {self.decided_by})"
        lines = [f"wrong: {self.symbol} is not {self.claimed}", f"  correct:     {self.correct.text}"]
        if self.difference is not None:
            lines.append(f"  difference:  {self.difference.text}   (claimed - correct)")
        elif self.decided_by == "shapes" and self.slip_kind != "shape":
            right = shape_text(self.correct.shape)
            if self.claim is None:
                lines.append(f"  shapes:      the claim's operands do not fit together, correct ({right})")
            else:
                row = "1, " if self.claim_row else ""
                lines.append(f"  shapes:      claimed ({row}{shape_text(self.claim.shape)}), correct ({right})")
        if self.counterexample:
            at = ", ".join(f"{k} = {v}" for k, v in self.counterexample["at"].items())
            lines.append(f"  for example: {self.counterexample['first']} instead of {self.counterexample['second']}")
            if "where" in self.counterexample:
                lines.append(f"               in elements {self.counterexample['where']}")
            lines.append(f"               at {at}")
        if self.slip:
            lines.append(f"  likely slip: {self.slip}")
        lines.append(f"  (decided by {self.decided_by})")
        return "\n".join(lines)

    def _repr_latex_(self) -> str:
        left = LatexPrinter().symbol(self.symbol)
        right = f"{left} = {self.correct.latex}"
        if self.holds:
            return f"${right}$"
        claimed = self.claim.latex if self.claim is not None else rf"\text{{{self.claimed.replace('_', ' ')}}}"
        return rf"${left} \neq {claimed}, \quad {right}$"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.check/1",
            "of": self.of,
            "wrt": self.wrt,
            "holds": self.holds,
            "claim": self.claimed,
            "correct": self.correct.text,
            "difference": self.difference.text if self.difference is not None else None,
            "counterexample": self.counterexample,
            "slip": self.slip,
            "slip_kind": self.slip_kind,
            "decided_by": self.decided_by,
            "except_at": self.except_at,
            "shape": [str(s) for s in self.correct.shape],
            "claim_shape": [str(s) for s in self.claim.shape] if self.claim is not None else None,
            "claim_text": self.claim_text,
            "correct_latex": self.correct.latex,
            "assumptions": self.assumptions,
        }
