"""``check``: is this claimed derivative right, and if not, what is, and where do they differ?

Equality is decided by algebra where it can be, and otherwise by values at random points of the formula's domain in
float64; the verdict says which. A wrong claim comes with the right answer, the simplified difference, a point with
numbers, and the likely slip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from chainrule.errors import ChainruleError, MissingExtraError
from chainrule.frontends.formula import parse_program
from chainrule.interpreters.simplify import equal, simplify
from chainrule.ir import Graph, Node, toposort
from chainrule.verbs.agreement import agreement
from chainrule.verbs.check_function import check_function
from chainrule.verbs.claim import cotangent_of, read_claim
from chainrule.verbs.derive import DeriveResult, derive
from chainrule.verbs.expression import Expression
from chainrule.verbs.slip_kinds import NONE, Slip
from chainrule.verbs.slip_question import Question
from chainrule.verbs.slips import find_slip
from chainrule.verbs.verdict import CheckResult as CheckResult

if TYPE_CHECKING:
    from chainrule.verbs.check_callable import CallableCheckResult


@overload
def check(
    source: str | Graph | Expression,
    *,
    wrt: str,
    claim: str | Callable[..., Any],
    shapes: Mapping[str, Any] | None = None,
    layout: str = "denominator",
    order: int = 1,
    cotangent: str | None = None,
    assume: Mapping[str, str] | None = None,
) -> CheckResult: ...
@overload
def check(
    source: Callable[..., Any], inputs: Any, *, reference: Callable[..., Any], dtype: Any = None
) -> CallableCheckResult: ...
def check(
    source: Any,
    inputs: Any = None,
    *,
    wrt: str = "",
    claim: Any = None,
    shapes: Mapping[str, Any] | None = None,
    layout: str = "denominator",
    order: int = 1,
    cotangent: str | None = None,
    assume: Mapping[str, str] | None = None,
    reference: Callable[..., Any] | None = None,
    dtype: Any = None,
) -> CheckResult | CallableCheckResult:
    r"""Compares a claimed derivative with the derived one; or, with ``reference``, a hand-written backward with it.

    Args:
        source: the formula or assignments. wrt: the variable, or a named intermediate, to derive by.
        claim: the claimed derivative, in the formula language or in LaTeX; it may use the formula's own names. Or a
            function of arrays (NumPy or torch) that returns the derivative's values; its parameters are the formula's
            names, or its arguments are the formula's variables in their order.
        shapes, layout, order, cotangent, assume: as in :func:`chainrule.derive`.
        inputs, reference, dtype: ``check(fn, inputs, reference=plain_fn)`` is
            :func:`chainrule.verbs.check_callable.check_callable`, for an autograd.Function, Triton or CUDA.

    Returns:
        CheckResult: ``c.holds``, ``c.correct``, ``c.difference``, ``c.counterexample``, ``c.slip``.

    Raises:
        FormulaError, ShapeError: the formula or the claim is not in the language.

    >>> import chainrule as cr
    >>> c = cr.check("l = (f3 - y)^2", wrt="f3", claim="2*f3")
    >>> c.holds, c.correct.text, c.difference.text
    (False, '2 * (f3 - y)', '2 * y')
    >>> print(cr.check("l = (f3 - y)^2", wrt="f3", claim=r"\left(f_{3} - y\right)").slip)
    missing factor 2
    """
    if reference is not None:
        return _check_callable(source, inputs, reference, dtype, {"wrt": wrt, "claim": claim, "shapes": shapes})
    _refuse_half_a_question(source, wrt, claim)
    if "," in wrt or wrt == "all":
        raise ChainruleError("check compares one derivative", given=f"wrt={wrt!r}", required="one name")
    # A single formula is compared written out; assignments keep their names in the answer.
    single = not isinstance(source, str) or len(parse_program(source, shapes).statements) == 1
    mode = "direct" if single else "reverse"
    options = {"layout": layout, "order": order, "cotangent": cotangent, "assume": assume}
    derived = derive(source, wrt=wrt, shapes=shapes, mode=mode, **options)
    correct = replace(derived[derived.wrt[0]], known={})  # a verdict is read without looking names up
    question = Question(derived, correct, cotangent_of(cotangent, derived))
    if callable(claim):
        return check_function(claim, question, derived, correct, cotangent_of(cotangent, derived))
    return _check_text(claim, question, derived, correct, shapes, cotangent_of(cotangent, derived))


def _check_callable(
    source: Any, inputs: Any, reference: Any, dtype: Any, rest: Mapping[str, Any]
) -> CallableCheckResult:
    given = [name for name, value in rest.items() if value]
    if given or inputs is None:
        raise ChainruleError(
            "a callable is checked against its reference, on inputs",
            given=", ".join(given) or "no inputs",
            required="check(function, inputs, reference=plain)",
            instead="without wrt, claim and shapes: every gradient is compared",
        )
    try:
        from chainrule.verbs.check_callable import check_callable  # torch is loaded here and not for formulas
    except ImportError as error:
        raise MissingExtraError("check of a callable", error.name or "torch", "torch") from None
    return check_callable(source, inputs, reference, dtype=dtype)


def _refuse_half_a_question(source: Any, wrt: str, claim: Any) -> None:
    if wrt and claim is not None:
        return
    if callable(source):
        raise ChainruleError(
            "check of a callable needs something to compare with",
            given="a callable without reference",
            required="the same function in plain torch operations",
            instead="cr.check(fn, inputs, reference=plain_fn)",
        )
    raise ChainruleError(
        "check needs something to compare with",
        given=f"wrt={wrt!r}, claim={claim!r}",
        required="wrt, a name, and claim, the derivative by it",
        instead='cr.check("l = (f - y)^2", wrt="f", claim="2*(f - y)")',
    )


def _check_text(
    claim: str,
    question: Question,
    derived: DeriveResult,
    correct: Expression,
    shapes: Mapping[str, Any] | None,
    cotangent: Node | None,
) -> CheckResult:
    read = read_claim(claim, derived, shapes, cotangent)
    claimed = read.expression
    verdict = partial(_verdict, derived, correct, claimed, claim)
    if claimed is None:
        slip = find_slip(question, None, read.trees)
        if slip is NONE and read.error is not None:
            raise read.error
        return verdict(holds=False, decided_by="shapes", slip=slip)
    if claimed.shape != correct.shape:
        return verdict(holds=False, decided_by="shapes", slip=find_slip(question, claimed.full, read.trees))
    if read.row and _is_gradient(derived, correct):
        return verdict(holds=False, decided_by="shapes", slip=_ROW, row=True)
    difference = Expression(simplify(claimed.full - correct.full))
    if equal(claimed.full, correct.full):
        return verdict(holds=True, decided_by="algebra", difference=difference)
    short = Expression(simplify(claimed.node - correct.node), correct.definitions)
    domain = Expression(derived.program.symbol[derived.of], derived.program.definitions).full
    found = agreement(claimed.full, correct.full, domain)
    different = _is_another_constant(difference.node, claimed.full, correct.full, domain)
    if found.same and not different:
        return verdict(holds=True, decided_by="random points", difference=short, except_at=found.except_at)
    decided_by = "algebra" if different else "random points"
    slip = find_slip(question, claimed.full, read.trees)
    return verdict(holds=False, decided_by=decided_by, difference=short, point=found.point, slip=slip)


_ROW = Slip("layout", "a row: the gradient is a column, drop the transpose")


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
    correct: Expression,
    claimed: Expression | None,
    source: str,
    *,
    holds: bool,
    decided_by: str,
    difference: Expression | None = None,
    point: dict[str, Any] | None = None,
    slip: Slip = NONE,
    except_at: str = "",
    row: bool = False,
) -> CheckResult:
    said = str(slip) if slip is not NONE else ""
    return CheckResult(
        of=derived.of,
        wrt=derived.wrt[0],
        holds=holds,
        claim=claimed,
        correct=correct,
        difference=difference,
        counterexample=point,
        slip=said,
        decided_by=decided_by,
        except_at=except_at,
        slip_kind=slip.kind,
        claim_text=source,
        claim_row=row,
    )
