"""diagnose on a training script as it is: each optimizer's first step is examined while the script waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.frontends.torch.places import Place
from chainrule.frontends.torch.script import Captured, Segment, Watch, run_script
from chainrule.frontends.torch.script_case import parts_of
from chainrule.verbs.case import Case
from chainrule.verbs.diagnose import examine
from chainrule.verbs.diagnose.keeping import parameters_of
from chainrule.verbs.diagnose.ranking import ranked
from chainrule.verbs.diagnose.refusals import as_finding
from chainrule.verbs.diagnose.result import DiagnoseResult
from chainrule.verbs.diagnose.subject import Subject
from chainrule.verbs.kinds import Finding


def case_of(captured: Captured) -> Case:
    """The last backward pass before an optimizer's step as a case."""
    parts = parts_of(captured, captured.segments[-1])
    return Case(parts.model, parts.batch, parts.loss, captured.optimizer, parts.objective)


def script_case(path: Path, arguments: Sequence[str], at_step: int = 1) -> Case:
    """The case that a training script is at its first optimizer step.

    Raises:
        ModelError: the script raised, or ended before an optimizer stepped.
    """
    return case_of(run_script(path, arguments, lambda _: None, at_step).captured[0])


def diagnose_script(path: Path, arguments: Sequence[str] = (), at_step: int = 1) -> DiagnoseResult:
    """What is wrong with a training script, run as it is up to its optimizers' first steps.

    Args:
        path, arguments: the script and its own arguments. at_step: which step to look at.

    Raises:
        ModelError: the script raised, or ended before an optimizer stepped.
    """
    results: list[DiagnoseResult] = []

    def seen(captured: Captured) -> None:
        results.append(_examined(captured))

    try:
        watch = run_script(path, arguments, seen, at_step, leftovers=True)
    except ModelError as error:
        finding = as_finding(error) if not results else None
        if finding is None:
            raise
        early = () if finding.kind == "accumulating" else ("the script raised before its optimizer's step",)
        return DiagnoseResult((finding,), notes=early)
    return _merged(results, watch)


def _examined(captured: Captured) -> DiagnoseResult:
    segment = captured.segments[-1]
    if not segment.events:
        return DiagnoseResult((_fresh_loss(segment),))
    subject = _subject(captured, segment)
    names = {id(p): n for n, p in subject.parameters.items()}
    stepped = {names[k]: g for k, g in captured.gradients.items() if k in names}
    own = _summed(captured, names) if len(captured.segments) > 1 else None
    before = {names[k]: g for k, g in captured.segments[0].before.items() if k in names}
    result = examine(subject, stepped=stepped, before=before, own=own, foreign=captured.step == 1)
    if len(captured.segments) > 1:
        note = f"gradients of {len(captured.segments)} backward passes are accumulated per step; the last is examined"
        result = DiagnoseResult(**{**result.__dict__, "notes": (*result.notes, note)})
    return result


def _fresh_loss(segment: Segment) -> Finding:
    """``torch.tensor(loss.item(), requires_grad=True).backward()``: torch raises nothing, and nothing is trained."""
    name, place = segment.taken_out or ("", Place())
    return Finding(
        "loss_detached", "error", f"the loss{f' ({name})' if name else ''}",
        "backward() is called on a new tensor that was made of numbers and requires a gradient itself: no model and no "
        "parameter is in its history",
        measured="loss.grad_fn is None and loss.requires_grad is True"
        + (f"; the last that was done to a learned tensor before: {name}" if name else ""),
        expected="a loss that was computed from the parameters by torch's ops",
        fix="backward() of the loss itself: no torch.tensor(...), Variable(...), .item(), .data or requires_grad_() "
        "on the way",
        source=place.text, consequences=("every gradient is None, and step() changes nothing",),
    )  # fmt: skip


def _subject(captured: Captured, segment: Segment) -> Subject:
    parts = parts_of(captured, segment)
    case = Case(parts.model, parts.batch, parts.loss, captured.optimizer, parts.objective)
    around: Callable[[], Any] = nullcontext
    if captured.autocast is not None:
        around = partial(torch.autocast, captured.autocast[0], dtype=captured.autocast[1])
    mine = {id(p) for p in parameters_of(captured.optimizer)}
    theirs = {id(p) for o in captured.others for p in parameters_of(o)} - mine
    return Subject(case, around, ignored=frozenset(theirs), rng=segment.rng)


def _summed(captured: Captured, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """The gradients of all backward passes since the last step, together."""
    total: dict[str, torch.Tensor] = {}
    for segment in captured.segments:
        subject = _subject(captured, segment)
        own = subject.parameters
        for n, g in subject.observe(sizes=False).gradients.items():
            name = names.get(id(own[n]))
            if g is not None and name is not None:
                total[name] = total[name] + g if name in total else g
    return total


def _merged(results: Sequence[DiagnoseResult], watch: Watch) -> DiagnoseResult:
    if not results:
        raise ModelError("no optimizer step was seen")
    findings: dict[tuple[str, str, str], Finding] = {}
    for result in results:
        for f in result.findings:
            findings.setdefault((f.kind, f.where, f.source), f)
    alone = len(results) == 1 and not watch.captured[0].others
    if alone and watch.left and watch.left[0]:
        found = Finding(
            "accumulating", "error", "the training loop",
            "zero_grad() is not called between steps: when backward() was called after the first step, the gradients "
            "of the step before were still there",
            measured="every gradient of the first step unchanged at the next backward()",
            expected="gradients of None or zero",
            fix="optimizer.zero_grad() in every step",
        )  # fmt: skip
        findings = {k: f for k, f in findings.items() if f.kind != "lr_too_high"}
        findings[("accumulating", "", "")] = found
    notes = tuple(dict.fromkeys(n for r in results for n in r.notes))
    if alone and watch.renewed:
        notes = (
            *notes,
            "the loss after the first step is of other parameters: if the model is made anew in every pass of the "
            "loop on purpose, that is as it should be; if not, make it before the loop",
        )
    if len(results) > 1:
        notes = (*notes, f"{len(results)} optimizers were examined at their first steps")
    first = results[0]
    return DiagnoseResult(
        ranked(findings.values()), first.checked, notes, tuple(s for r in results for s in r.strip),
        sum(r.passes for r in results),
    )  # fmt: skip
