"""The numbers of a check of a callable judged: every output and every gradient, its error against what is allowed.

Allowed is twice the error of the reference in the same dtype, with a floor of a few units in the last place, of the
result and of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.verbs.callable_runs import Arguments, Run, Tensors
from chainrule.verbs.callable_slips import Evidence, part, whole_scale
from chainrule.verbs.callable_truth import Gradients, Truth
from chainrule.verbs.error_region import EVERYWHERE, region

_ROUNDING = 64.0  # ulps, below which an error without another explanation is called that
LESS = 1 / 64
_TIMES = 2.0  # the reference's error in the same dtype
_ULPS = (4.0, 8.0)  # of the largest element, allowed in any case: in two bytes, in four and eight
_MEAN_ULPS = 2.0  # the same for root mean squares
_MEAN_OVER = 64  # elements, from which root mean squares are compared as well: systematic errors below the largest


@dataclass(frozen=True, eq=False)
class Trial:
    """One cotangent: the candidate's run, the reference's in the same dtype (None if it cannot), and in float64.

    ``nudged`` is the truth at inputs moved by half an ulp and by ``LESS`` of that; ``seeds`` are the cotangents,
    in float64.
    """

    kind: str
    candidate: Run
    ordinary: Run | None
    outputs: Tensors
    gradients: Gradients
    nudged_outputs: tuple[Tensors, Tensors]
    nudged: tuple[Gradients, Gradients]
    seeds: list[torch.Tensor | None]
    inputs: Tensors


@dataclass(frozen=True)
class Compared:
    """One output or gradient: the largest error and what is allowed, relative to the largest right element.

    Attributes:
        what: ``"output"``, ``"output 2"``, ``"gradient of x"``. where: the place of the error, empty if it holds.
        slip: the mistake that explains it, empty if none is recognised. fault: what is wrong with it.
    """

    what: str
    holds: bool
    error: float
    allowed: float
    reference_error: float | None
    fault: str = ""
    where: str = ""
    slip: str = ""

    def __str__(self) -> str:
        size = f"relative error {self.error:.2g}, allowed {self.allowed:.2g}"
        if self.holds:
            return f"{self.what}: {size}"
        lines = [f"{self.what}: {self.fault}{f', {self.where}' if self.where else ''}   ({size})"]
        return "\n".join([*lines, f"  likely slip: {self.slip}"] if self.slip else lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Measured:
    """One quantity of one trial in float64: found and right, the reference's in its dtype, right at nudged inputs."""

    found: torch.Tensor
    right: torch.Tensor
    ordinary: torch.Tensor | None
    nudged: torch.Tensor
    nudged_less: torch.Tensor


def judge(trials: Sequence[Trial], given: Arguments, right: Truth) -> tuple[Compared, ...]:
    """Every output and every gradient of all trials."""
    first = trials[0]
    eps = max(float(torch.finfo(t.dtype).eps) for t in given.tensors if t.is_floating_point())
    results = []
    for k, y in enumerate(first.outputs):
        what = "output" if len(first.outputs) == 1 else f"output {k + 1}"
        if not y.is_floating_point():
            same = torch.equal(first.candidate.outputs[k].to(y.dtype), y)
            results.append(Compared(what, same, 0.0 if same else 1.0, 0.0, None, "" if same else "other numbers"))
            continue
        ordinary = None if first.ordinary is None else first.ordinary.outputs[k].double()
        measured = _Measured(first.candidate.outputs[k].double(), y, ordinary, *(n[k] for n in first.nudged_outputs))
        own = max(eps, float(torch.finfo(first.candidate.outputs[k].dtype).eps))
        found = _compared(what, [measured], own, given, first.inputs)
        results.append(found if found.holds else _with(found, _forward_slip(k, first, measured, own, given, right)))
    results += [_gradient(k, trials, given, right, eps) for k in range(len(given.differentiated))]
    return tuple(results)


def _forward_slip(k: int, first: Trial, m: _Measured, eps: float, given: Arguments, right: Truth) -> str:
    sizes = {n: tuple(t.shape) for n, t in zip(given.names, given.tensors, strict=True)}
    evidence = [_evidence(first, m, _allowed(m, eps)[0], right)]
    found = _numbers_slip([m]) or whole_scale(evidence, sizes, "the output")
    if not found and right.derived is not None:
        found = part(right.derived.graph.outputs[k], right.derived.quantities, evidence, sizes)
    return found or _in_one_place([m], [evidence[0].allowed], evidence, given, first.inputs, "output")


# ---- one gradient ------------------------------------------------------------------------------------------
def _gradient(k: int, trials: Sequence[Trial], given: Arguments, right: Truth, eps: float) -> Compared:
    name = given.names[given.differentiated[k]]
    what = f"gradient of {name}"
    zero = torch.zeros_like(trials[0].inputs[given.differentiated[k]])
    truths = [_or(t.gradients[k], zero) for t in trials]
    if all(t.candidate.gradients[k] is None for t in trials):
        needed = any(bool(g.any()) for g in truths)
        fault = "its output has no gradient at all" if trials[0].candidate.detached else "there is none (None)"
        fault = fault if needed else ""
        return Compared(what, not needed, float(needed), 0.0, None, fault, slip=fault)
    measured = []
    for t, g in zip(trials, truths, strict=True):
        ordinary = None if t.ordinary is None else _or(t.ordinary.gradients[k], zero).double()
        found = _or(t.candidate.gradients[k], zero)
        measured.append(_Measured(found.double(), g, ordinary, *(_or(n[k], zero) for n in t.nudged)))
    result = _compared(what, measured, eps, given, trials[0].inputs)
    if result.holds:
        return result
    alone = [m for m, t in zip(measured, trials, strict=True) if not t.kind]
    if _compared(what, alone, eps, given, []).holds:
        others = [(t.kind, m) for t, m in zip(trials, measured, strict=True) if t.kind]
        kinds = [kind for kind, m in others if not _compared("", [m], eps, given, []).holds]
        return _with(result, slip=f"wrong only with {kinds[0]}" if kinds else "")
    slip = _numbers_slip(measured) or _slip(k, trials, given, right, measured, eps)
    if not slip and result.error < _ROUNDING * eps and result.reference_error:
        times = result.error / result.reference_error
        slip = f"rounding: right, but {times:.2g} times as inaccurate as the reference in the same dtype"
    return _with(result, slip=slip)


def _or(tensor: torch.Tensor | None, zero: torch.Tensor) -> torch.Tensor:
    return zero if tensor is None else tensor


def _with(c: Compared, slip: str) -> Compared:
    return Compared(c.what, c.holds, c.error, c.allowed, c.reference_error, c.fault, c.where, slip)


def _numbers_slip(measured: Sequence[_Measured]) -> str:
    for m in measured:
        bad = ~m.found.isfinite() & m.right.isfinite()
        if bool(bad.any()):
            return f"{int(bad.sum())} of {bad.numel()} elements are nan or inf"
    return ""


def _slip(
    k: int, trials: Sequence[Trial], given: Arguments, right: Truth, measured: Sequence[_Measured], eps: float
) -> str:
    """Which mistake gives these numbers."""
    plain = [(t, m) for t, m in zip(trials, measured, strict=True) if not t.kind]
    allowed = [_allowed(m, eps)[0] for _, m in plain]

    def same(guesses: Sequence[torch.Tensor | None]) -> bool:
        pairs = zip(plain, guesses, allowed, strict=True)
        return all(
            g is not None and g.shape == m.found.shape and float((g - m.found).abs().max()) <= 2 * a
            for (_, m), g, a in pairs
        )

    sizes = {n: tuple(t.shape) for n, t in zip(given.names, given.tensors, strict=True)}
    ones = [[None if g is None else torch.ones_like(g) for g in t.seeds] for t, _ in plain]
    fixed = [right.gradients(t.inputs, o)[k] for (t, _), o in zip(plain, ones, strict=True)]
    constant = all(torch.equal(plain[0][1].found, m.found) for _, m in plain)
    if same(fixed):
        return "the cotangent is ignored, as if it were 1: multiply by it"
    for j, other in enumerate(given.differentiated):
        if j != k and same([t.gradients[j] for t, _ in plain]):
            return f"this is the gradient of {given.names[other]}: the gradients are returned in another order"
    if measured[0].right.ndim >= 2 and same([m.right.mT for _, m in plain]):
        return "missing transpose"
    evidence = [_evidence(t, m, a, right) for (t, m), a in zip(plain, allowed, strict=True)]
    found = whole_scale(evidence, sizes)
    derived = right.derived
    if not found and derived is not None and derived.gradients[k] is not None:
        node = derived.gradients[k]
        assert node is not None
        found = part(node, derived.quantities, evidence, sizes)
    if not found and constant:
        return "the gradient does not depend on the cotangent"
    measures = [m for _, m in plain]
    return found or _in_one_place(measures, allowed, evidence, given, trials[0].inputs, "gradient")


def _in_one_place(
    measured: Sequence[_Measured],
    allowed: Sequence[float],
    evidence: Sequence[Evidence],
    given: Arguments,
    inputs: Tensors,
    what: str,
) -> str:
    """What is wrong there, where the rest is right."""
    wrong = torch.stack([(m.found - m.right).abs() > a for m, a in zip(measured, allowed, strict=True)]).any(0).cpu()
    place = region(wrong, dict(zip(given.names, (t.cpu() for t in inputs), strict=True)))
    if wrong.ndim == 0 or not place or place == EVERYWHERE or place.startswith("throughout"):
        return ""
    mask = wrong.numpy()
    local = [Evidence({}, e.found[mask], e.right[mask], e.allowed) for e in evidence]
    return whole_scale(local, {}, f"{place}: the {what}")


def _evidence(t: Trial, m: _Measured, allowed: float, right: Truth) -> Evidence:
    values: dict[Any, np.ndarray] = {}
    if right.derived is not None:
        for node, x in zip(right.derived.inputs, t.inputs, strict=True):
            values[node] = x.detach().cpu().numpy()
        for node, g, y in zip(right.derived.cotangents, t.seeds, t.outputs, strict=True):
            if node is not None:
                values[node] = np.zeros(tuple(y.shape)) if g is None else g.detach().cpu().numpy()
    return Evidence(values, m.found.cpu().numpy(), m.right.cpu().numpy(), allowed)


# ---- one comparison ----------------------------------------------------------------------------------------
def _allowed(m: _Measured, eps: float) -> tuple[float, float, float | None]:
    """(largest error allowed, root mean square allowed, the reference's largest error)."""
    right = m.right[m.right.isfinite()]
    if not right.numel():
        return 0.0, 0.0, None
    top, mean = float(right.abs().max()), _rms(right)
    long = eps < 1e-4
    floor, mean_floor = _ULPS[long] * eps * top, _MEAN_ULPS * eps * mean
    # What half an ulp of the inputs does is no fault either; less where the half ulp passes a kink and a smaller nudge
    # does not.
    moved = torch.minimum(4 * (m.nudged - m.right).abs(), (m.nudged_less - m.right).abs() / LESS)
    moved = moved[moved.isfinite()]
    if moved.numel():
        floor, mean_floor = max(floor, _TIMES * float(moved.max())), max(mean_floor, _TIMES * _rms(moved))
    if m.ordinary is None:
        return 4 * floor, 4 * mean_floor, None
    largest, usual = _errors(m.ordinary, m.right)
    return max(_TIMES * largest, floor), max(_TIMES * usual, mean_floor), largest


def _errors(found: torch.Tensor, right: torch.Tensor) -> tuple[float, float]:
    gap = (found - right)[found.isfinite() & right.isfinite()]
    return (float(gap.abs().max()), _rms(gap)) if gap.numel() else (0.0, 0.0)


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def _compared(what: str, measured: Sequence[_Measured], eps: float, given: Arguments, inputs: Tensors) -> Compared:
    """All trials of one quantity; errors are pooled, so that a lucky reference in one of them decides nothing."""
    limits = [_allowed(m, eps) for m in measured]
    sizes = [m.right[m.right.isfinite()].abs() for m in measured]
    scale = max((float(s.max()) for s in sizes if s.numel()), default=0.0)
    most, usual = max(a for a, _, _ in limits), max(b for _, b, _ in limits)
    wrong = torch.zeros(tuple(measured[0].right.shape), dtype=torch.bool)
    worst, fault = 0.0, ""
    for m in measured:
        gap = (m.found - m.right).abs()
        gap = torch.where(m.right.isfinite(), gap.nan_to_num(nan=float("inf")), torch.zeros_like(gap)).cpu()
        worst = max(worst, float(gap.max()) if gap.numel() else 0.0)
        wrong |= gap > most
        finite = gap[gap.isfinite()]
        if gap.numel() >= _MEAN_OVER and finite.numel() and _rms(finite) > usual and not bool((gap > most).any()):
            wrong |= gap > usual  # everywhere a little
            fault = "systematically wrong"
        if not bool(gap.isfinite().all()):
            fault = "not finite"
    unit = scale or 1.0
    reference = [r for _, _, r in limits if r is not None]
    holds = not bool(wrong.any())
    shown = {n: x.cpu() for n, x in zip(given.names, inputs, strict=False)}
    return Compared(
        what=what,
        holds=holds,
        error=worst / unit,
        allowed=most / unit,
        reference_error=max(reference) / unit if reference else None,
        fault="" if holds else fault or "wrong",
        where="" if holds else region(wrong, shown),
    )
