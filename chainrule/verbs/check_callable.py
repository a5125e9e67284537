"""``check`` of a callable with a hand-written backward (autograd.Function, Triton, CUDA) against its plain version.

The truth is the derivative of the plain reference in float64. The candidate runs in its own dtype, forward and back
with random cotangents, and passes if its errors are at most twice those of the reference run in that dtype. A failure
says which output or input, where in it, and which mistake would explain it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.verbs.callable_runs import Arguments, Run, Tensors, arguments, run
from chainrule.verbs.callable_truth import Truth, in_float64, truth
from chainrule.verbs.callable_verdicts import LESS, Compared, Trial, judge

_SEEDS = 3


@dataclass(frozen=True, eq=False)
class CallableCheckResult:
    """The verdict on a hand-written backward.

    Attributes:
        holds: whether forward and every gradient are right. name, reference: what the two callables are called.
        compared: one entry per output and per derived input: ``.what .holds .error .allowed .where .slip``.
        slip: the likely mistake, of the first that failed; empty if not recognised.
        problems: what is wrong other than numbers: it raised, wrote into an input, differs from call to call.
        notes: what is worth knowing and no fault. dtype: in which the candidate ran.
        truth_by: ``"derived"`` (by us, in float64) or ``"torch autograd"`` (in float64), ``truth_note`` says why.
    """

    name: str
    reference: str
    holds: bool
    compared: tuple[Compared, ...]
    slip: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    dtype: str
    truth_by: str
    truth_note: str

    def __str__(self) -> str:
        by = "the derived gradient" if self.truth_by == "derived" else "torch's autograd"
        head = "right" if self.holds else "wrong"
        verb = "agrees" if self.holds else "disagrees"
        lines = [f"{head}: {self.name} {verb} with {self.reference}   (in {self.dtype}, against {by} in float64)"]
        lines += [f"  {p}" for p in self.problems]
        for c in self.compared:
            lines += [f"  {line}" for line in str(c).splitlines()]
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"CallableCheckResult(holds={self.holds}, slip={self.slip!r})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.check_callable/1",
            "name": self.name,
            "reference": self.reference,
            "holds": self.holds,
            "slip": self.slip,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "dtype": self.dtype,
            "truth_by": self.truth_by,
            "truth_note": self.truth_note,
            "compared": [c.to_dict() for c in self.compared],
        }


def check_callable(
    function: Callable[..., Any],
    inputs: Any,
    reference: Callable[..., Any],
    *,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
) -> CallableCheckResult:
    """Compares a callable that has its own backward with the derivative of its plain version.

    Args:
        function: the candidate, such as ``MyFunction.apply``.
        inputs: example arguments of both: a tensor, a tuple (positional) or a mapping (keywords). Derived by are those
            that require a gradient, or all of floating point if none does; others are passed through.
        reference: the same function in plain torch operations.
        dtype: in which the candidate runs (``torch.bfloat16``, ``"float16"``); by default that of the inputs.
        seed: of the random cotangents.

    Returns:
        CallableCheckResult: ``c.holds``, ``c.slip``, ``c.compared``.

    Raises:
        ModelError: the inputs or the reference cannot be used; what the candidate does wrong is in the result.

    >>> import torch, chainrule as cr
    >>> class Square(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x * x
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return g * ctx.saved_tensors[0]
    >>> c = cr.check(Square.apply, torch.randn(5), reference=lambda x: x * x)
    >>> c.holds, c.slip
    (False, 'scale: the gradient is half what it should be')
    """
    for what, value in (("the candidate", function), ("the reference", reference)):
        if not callable(value):
            raise ModelError(
                f"{what} cannot be called",
                given=type(value).__name__,
                required="a function of tensors",
                instead="MyFunction.apply, for a torch.autograd.Function",
            )
    given = arguments(reference, inputs, _dtype(dtype))
    right = truth(reference, given)
    trials, problems, notes = _trials(function, reference, given, right, seed)
    compared = () if any(p.startswith("it raised") for p in problems) else judge(trials, given, right)
    slips = [*(c.slip for c in compared if c.slip), *problems]
    floats = [t.dtype for t in given.tensors if t.is_floating_point()]
    return CallableCheckResult(
        name=_name(function),
        reference=_name(reference),
        holds=not problems and all(c.holds for c in compared),
        compared=compared,
        slip=slips[0] if slips else "",
        problems=tuple(problems),
        notes=tuple(notes),
        dtype=str(floats[0]).removeprefix("torch."),
        truth_by=right.by,
        truth_note=right.why,
    )


# ---- the runs ----------------------------------------------------------------------------------------------
def _trials(
    function: Callable[..., Any], reference: Callable[..., Any], given: Arguments, right: Truth, seed: int
) -> tuple[list[Trial], list[str], list[str]]:
    """The candidate with several cotangents, and what it does that no gradient shows."""
    doubles = in_float64(given.tensors)
    plain = run(reference, given, doubles, None).outputs
    problems: list[str] = []
    notes: list[str] = []
    trials: list[Trial] = []
    for kind, make in _cotangents(plain, seed):
        candidate = run(function, given, given.tensors, make)
        if candidate.raised:
            problem = f"it raised in its {candidate.raised_in}{_of_kind(kind)}: {candidate.raised}"
            return trials, [*dict.fromkeys(problems), problem], notes
        wrong = _outputs_differ_in_kind(candidate.outputs, plain)
        if wrong:
            return trials, [f"it raised no error, but {wrong}"], notes
        seeds = [None if g is None else g.double() for g in make(candidate.outputs)]
        ordinary = run(reference, given, given.tensors, make)
        if ordinary.raised and not any("cannot run" in n for n in notes):
            notes.append(f"the reference cannot run in this dtype ({ordinary.raised}): held against rounding alone")
        moved = [(_nudged(doubles, given, seed, by), _nudged_seeds(seeds, given, seed, by)) for by in (1.0, LESS)]
        trials.append(
            Trial(
                kind=kind,
                candidate=candidate,
                ordinary=None if ordinary.raised else ordinary,
                outputs=plain,
                gradients=right.gradients(doubles, seeds),
                nudged_outputs=_pair([run(reference, given, x, None).outputs for x, _ in moved]),
                nudged=_pair([right.gradients(x, g) for x, g in moved]),
                seeds=seeds,
                inputs=doubles,
            )
        )
        problems += _side_effects(candidate)
    problems += _repeated(function, given, trials[0], plain, seed, notes)
    kinds = {(a.dtype, b.dtype) for a, b in zip(trials[0].candidate.outputs, _outputs_in_dtype(trials[0]), strict=True)}
    notes += [f"an output is {_bare(a)}, the reference's is {_bare(b)}" for a, b in sorted(kinds, key=str) if a != b]
    return trials, list(dict.fromkeys(problems)), notes


def _cotangents(outputs: Tensors, seed: int) -> list[tuple[str, Callable[[Tensors], list[torch.Tensor | None]]]]:
    """(kind, outputs -> cotangents): random ones; then not contiguous, expanded, and for one output alone."""
    floats = [k for k, y in enumerate(outputs) if y.is_floating_point()]

    def make(n: int, layout: str = "", alone: int | None = None) -> Callable[[Tensors], list[torch.Tensor | None]]:
        def cotangents(found: Tensors) -> list[torch.Tensor | None]:
            generator = torch.Generator().manual_seed(1000 * seed + n)
            result: list[torch.Tensor | None] = []
            for k, y in enumerate(found):
                drawn = torch.randn(tuple(y.shape), generator=generator, dtype=torch.float64)
                if not y.is_floating_point() or alone not in (None, k):
                    result.append(None)
                elif layout == "expanded":
                    result.append(torch.ones((), dtype=y.dtype, device=y.device).expand(y.shape))
                else:
                    g = drawn.to(dtype=y.dtype, device=y.device)
                    if layout == "strided":
                        back = tuple(range(g.ndim))[::-1]
                        g = g.permute(back).contiguous().permute(back)
                    result.append(g)
            return result

        return cotangents

    kinds = [("", make(n)) for n in range(_SEEDS)]
    if any(outputs[k].ndim > 1 for k in floats):
        kinds.append(("a cotangent that is not contiguous", make(0, "strided")))
    if any(outputs[k].ndim > 0 for k in floats):
        kinds.append(("the cotangent of y.sum(), expanded ones", make(0, "expanded")))
    if len(floats) > 1:
        kinds += [(f"a cotangent of output {k + 1} alone", make(0, alone=k)) for k in floats]
    return kinds


def _of_kind(kind: str) -> str:
    return f" with {kind}" if kind else ""


def _outputs_differ_in_kind(found: Tensors, plain: Tensors) -> str:
    if len(found) != len(plain):
        return f"it returned {len(found)} tensors where the reference returns {len(plain)}"
    for k, (a, b) in enumerate(zip(found, plain, strict=True)):
        if a.shape != b.shape:
            return f"output {k + 1} has shape {tuple(a.shape)} where the reference's has {tuple(b.shape)}"
    return ""


def _outputs_in_dtype(trial: Trial) -> Tensors:
    return trial.ordinary.outputs if trial.ordinary is not None else trial.candidate.outputs


def _bare(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _side_effects(candidate: Run) -> list[str]:
    found = [f"it writes into its input {name!r} in place" for name in candidate.changed]
    return found + ["its backward writes into the cotangent in place"] * candidate.changed_cotangent


def _repeated(
    function: Callable[..., Any], given: Arguments, trial: Trial, outputs: Tensors, seed: int, notes: list[str]
) -> list[str]:
    """Whether the backward is the same again: of a new forward, of the same one, and after another call."""
    make = _cotangents(outputs, seed)[0][1]
    problems = []
    others = [t.flip(0) if t.ndim else t * 0.5 if t.is_floating_point() else t for t in given.tensors]
    runs = (
        ("its backward differs from call to call", run(function, given, given.tensors, make).gradients),
        (
            "a second backward through the same forward (retain_graph=True) gives another gradient",
            run(function, given, given.tensors, make, twice=True).again,
        ),
        (
            "its gradient changes when it is called on other inputs before its backward: what it saves is shared",
            run(function, given, given.tensors, make, between=others).gradients,
        ),
    )
    for problem, gradients in runs:
        if len(gradients) != len(trial.candidate.gradients):
            notes.append(f"could not be tried: {problem}")
            continue
        distance = 0.0
        for a, b in zip(trial.candidate.gradients, gradients, strict=True):
            if a is None or b is None:
                distance = distance if a is b else float("inf")
            elif not torch.equal(a.nan_to_num(), b.nan_to_num()):
                scale = float(a.double().abs().max()) or 1.0
                step = float((a.double() - b.double()).abs().nan_to_num().max()) / scale
                distance = max(distance, step / float(torch.finfo(a.dtype).eps))
        if distance > 16:  # ulps: sums in another order differ by a few
            problems.append(problem)
        elif distance:
            notes.append(f"{problem}, by {distance:.1g} ulp: rounding")
    return problems[:1]  # the first explains the others


def _pair(two: list[Any]) -> tuple[Any, Any]:
    return two[0], two[1]


def _nudged(tensors: Sequence[torch.Tensor], given: Arguments, seed: int, by: float) -> Tensors:
    """The inputs moved by half an ulp of their dtype, or a part of that: what that does is no algorithm's fault."""
    generator = torch.Generator().manual_seed(7000 + seed)
    result = []
    for t, own in zip(tensors, given.tensors, strict=True):
        if not t.is_floating_point():
            result.append(t)
            continue
        drawn = torch.rand(tuple(t.shape), generator=generator, dtype=torch.float64).to(t.device)
        result.append(t * (1 + by * torch.finfo(own.dtype).eps * (drawn - 0.5)))
    return result


def _nudged_seeds(
    seeds: Sequence[torch.Tensor | None], given: Arguments, seed: int, by: float
) -> list[torch.Tensor | None]:
    eps = by * max(torch.finfo(t.dtype).eps for t in given.tensors if t.is_floating_point())
    generator = torch.Generator().manual_seed(8000 + seed)
    return [
        None if g is None else g * (1 + eps * (torch.rand(tuple(g.shape), generator=generator, dtype=g.dtype) - 0.5))
        for g in seeds
    ]


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(
            "not a dtype of floating point",
            given=str(dtype),
            required="float64, float32, bfloat16 or float16",
            instead="dtype=torch.bfloat16",
        )
    return found


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):
        return f"{owner.__name__}.{function.__name__}"
    return getattr(function, "__name__", type(function).__name__).replace("<lambda>", "the function")
