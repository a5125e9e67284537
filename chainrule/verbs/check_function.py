"""A claimed gradient *function*: its values at random points against those of the derived gradient.

The function gets arrays, by the names of its parameters where these are the formula's, else in the order of the
formula's variables: NumPy arrays, or torch tensors where it does not take those.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, ModelError
from chainrule.interpreters.evaluate import evaluate
from chainrule.ir import Node, TensorType, shape_text, variable
from chainrule.verbs.derive import DeriveResult
from chainrule.verbs.expression import Expression
from chainrule.verbs.slip_kinds import NONE, Slip
from chainrule.verbs.slip_points import Points
from chainrule.verbs.slip_question import Question
from chainrule.verbs.slips import find_slip
from chainrule.verbs.verdict import CheckResult

_POINTS = 8
_TOLERANCE = {"float64": 1e-8, "float32": 1e-3, "float16": 2e-2}  # relative to the largest element; by what it returns
_DIGITS = 5  # of a counterexample's numbers


def check_function(
    function: Callable[..., Any],
    question: Question,
    derived: DeriveResult,
    correct: Expression,
    cotangent: Node | None = None,
) -> CheckResult:
    """The verdict on a claimed gradient function.

    Raises:
        ModelError: it cannot be called with the formula's variables, fails, or returns no array.
        ChainruleError: no point was found where the formula has a derivative.
    """
    leaves = [*derived.program.variables.values(), *([cotangent] if cotangent is not None else [])]
    name = getattr(function, "__name__", type(function).__name__)
    call = _Call(function, name, leaves)
    slip, point, decided_by, holds = NONE, None, "random points", True
    points = Points([question.correct, question.full(question.output)], count=_POINTS)
    if not len(points):
        raise ChainruleError(
            "no point was found where the formula and its derivative are finite", required="a formula with a domain"
        )
    for values, sizes in zip(points.samples(leaves), points.sizes(), strict=True):
        (right,) = evaluate([question.correct], values, sizes)
        claimed, tolerance = call(values, sizes)
        if claimed.shape != np.shape(right):
            given, required = (shape_text(s) for s in (claimed.shape, np.shape(right)))
            slip = Slip("shape", f"it returns ({given}) where ({required}) is right, for {correct.text}")
            holds, decided_by = False, "shapes"
            break
        apart = np.abs(claimed - right)
        allowed = tolerance * max(float(np.max(np.abs(right), initial=0.0)), 1e-300)
        if not np.all(apart <= allowed):  # nan is no agreement
            holds, point = False, _point(values, claimed, right, apart > allowed)
            claim = variable("the claimed values", TensorType(question.correct.shape))
            computed = {claim: lambda sample, at: call({n: sample(n) for n in leaves}, at)[0]}
            slip = find_slip(question, claim, computed=computed)
            break
    return CheckResult(
        of=derived.of,
        wrt=derived.wrt[0],
        holds=holds,
        claim=None,
        correct=correct,
        difference=None,
        counterexample=point,
        slip=str(slip) if slip is not NONE else "",
        decided_by=decided_by,
        slip_kind=slip.kind,
        claim_text=f"{name}({', '.join(call.names)})",
    )


class _Call:
    """A function of the user's, called with the values of leaves."""

    def __init__(self, function: Callable[..., Any], name: str, leaves: Sequence[Node]) -> None:
        self.function, self.name = function, name
        self.known = {n.params["name"]: n for n in leaves}
        self.by_name, self.names = self._arguments()
        self.as_tensors = False

    def _arguments(self) -> tuple[bool, list[str]]:
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):  # a builtin without a signature
            return False, list(self.known)
        sizes = {name for n in self.known.values() for s in n.shape for name in getattr(s, "names", ())}
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        asked = [p.name for p in plain if p.name in self.known or p.name in sizes]
        needed = [p.name for p in plain if p.default is p.empty]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return True, list(self.known)
        if plain and set(needed) <= set(asked):
            return True, asked
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(positional) == len(self.known) or any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return False, list(self.known)
        raise ModelError(
            f"{self.name} cannot be called with the formula's variables",
            given=f"parameters {', '.join(p.name for p in parameters) or 'none'}",
            required=f"the names {', '.join(self.known)}, or that many arguments in this order",
        )

    def __call__(self, values: Mapping[Node, Any], sizes: Mapping[str, int]) -> tuple[Any, float]:
        """What it returns as a float64 array, and how exact that is by its dtype."""
        arrays = {name: np.array(values[self.known[name]]) for name in self.names if name in self.known}
        arrays = {name: arrays.get(name, sizes.get(name)) for name in self.names}
        try:
            found = self._run(arrays)
        except Exception as error:
            raise ModelError(
                f"{self.name} fails",
                given=f"{type(error).__name__}: {error}",
                required=f"a function of {', '.join(self.names)}, as NumPy arrays or torch tensors: one array",
            ) from error
        if hasattr(found, "detach"):
            found = found.detach().cpu().numpy()
        try:
            array = np.asarray(found)
            return array.astype(np.float64), _TOLERANCE.get(str(array.dtype), 1e-8)
        except (TypeError, ValueError) as error:
            given = type(found).__name__
            raise ModelError(f"{self.name} returns no array", given=given, required="one array") from error

    def _run(self, arrays: Mapping[str, Any]) -> Any:
        if not self.as_tensors:
            try:
                with np.errstate(all="ignore"):
                    return self._called(arrays)
            except (TypeError, AttributeError):
                if "torch" not in sys.modules:  # a function of tensors comes with torch loaded
                    raise
                self.as_tensors = True
        torch = sys.modules["torch"]
        tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()}
        return self._called(tensors)

    def _called(self, arguments: Mapping[str, Any]) -> Any:
        return self.function(**arguments) if self.by_name else self.function(*arguments.values())


def _point(values: Mapping[Node, Any], claimed: Any, right: Any, wrong: Any) -> dict[str, Any]:
    """The point as plain numbers, and the range of indices where the values differ."""

    def plain(array: Any) -> Any:
        array = np.asarray(array, dtype=float)
        return np.array([float(f"{v:.{_DIGITS}g}") for v in array.ravel()]).reshape(array.shape).tolist()

    wrong = wrong | ~np.isfinite(claimed)
    found = {
        "at": {n.params["name"]: plain(v) for n, v in values.items()},
        "first": plain(claimed),
        "second": plain(right),
    }
    if np.ndim(wrong):
        at = np.argwhere(wrong)
        low, high = at.min(0), at.max(0)
        ranges = ", ".join(str(a) if a == b else f"{a}:{b + 1}" for a, b in zip(low, high, strict=True))
        found["where"] = f"[{ranges}], {len(at)} of {wrong.size}"
    return found
