"""A claimed gradient *function*: its values at random points against those of the derived gradient.

The function gets arrays, by the names of its parameters where these are the formula's, else in the order of the
formula's variables; NumPy arrays, or torch tensors where it takes nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, ShapeError
from chainrule.interpreters.evaluate import evaluate, numeric
from chainrule.ir import Node, shape_text, toposort
from chainrule.verbs.agreement import random_sizes
from chainrule.verbs.slip_kinds import NONE, Slip
from chainrule.verbs.slip_question import Question
from chainrule.verbs.slips import find_slip
from chainrule.verbs.verdict import CheckResult

_POINTS = 6
_TOLERANCE = 1e-7  # relative to the largest element: the function may be any stable float64 code
_SINGLE = 2e-3  # of one that computes in float32
_SHOWN = 6  # decimals of a counterexample


def check_function(
    function: Callable[..., Any], question: Question, derived: Any, correct: Any, cotangent: Node | None = None
) -> CheckResult:
    """The verdict on a claimed gradient function.

    Raises:
        ChainruleError: the function fails or returns no array. ShapeError: it cannot be called with the variables.
    """
    leaves = _leaves(derived, question, cotangent)
    call = _caller(function, [n.params["name"] for n in leaves])
    name = getattr(function, "__name__", type(function).__name__)
    # The function is sampled first: a claim whose values are known only point by point.
    sampled = _Sampled(call, leaves, question, name)
    verdict = {
        "of": derived.of,
        "wrt": derived.wrt[0],
        "claim": None,
        "correct": correct,
        "difference": None,
        "claim_text": f"{name}({', '.join(n.params['name'] for n in leaves)})",
    }
    wrong = sampled.shape_of_wrong()
    if wrong is not None:
        slip = Slip("shape", f"it returns an array of shape ({shape_text(wrong[0])}), ({shape_text(wrong[1])}) is right")
        return CheckResult(
            **verdict, holds=False, counterexample=None, slip=str(slip), slip_kind=slip.kind, decided_by="shapes"
        )
    worst = sampled.worst()
    if worst is None:
        return CheckResult(**verdict, holds=True, counterexample=None, slip="", decided_by="random points")
    slip = find_slip(question, None, None, values=sampled.at) if sampled.exact else NONE
    said = str(slip) if slip is not NONE else ""
    return CheckResult(
        **verdict, holds=False, counterexample=worst, slip=said, slip_kind=slip.kind, decided_by="random points"
    )
