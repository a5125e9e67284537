"""Fixes that are statements, tried on the user's own objects, measured, and taken back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from chainrule.errors import ChainruleError
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.layers import Layer, layers_of
from chainrule.verbs.kinds import Finding

_STEPS = 10


def verified(e: Examination, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, those that can be tried with what was measured after their fix."""
    done: list[Finding] = []
    for k, finding in enumerate(findings):
        code = getattr(finding.patch, "code", "")
        able = k == 0 and code and finding.severity != "info" and not e.subject.sharded
        tried, better = _after(e, finding) if able else ("", True)
        if not better:
            e.subject.notes.append(f"initialising {finding.where} again was tried and made nothing better ({tried})")
            done.append(replace(finding, patch=None))
        else:
            done.append(replace(finding, verified=tried) if tried else finding)
    return tuple(done)


def _after(e: Examination, finding: Finding) -> tuple[str, bool]:
    """One line about the patched model: signal over depth and, with an optimizer, the loss over some steps.

    And whether a signal that shrank or grew does so less.
    """
    subject, case = e.subject, e.subject.case
    try:
        with torch.random.fork_rng(devices=[]), subject.safely():
            torch.manual_seed(0)
            loss, batch = finding.patch.apply(subject.model, subject.optimizer, case.loss, case.batch)
            subject.case = replace(case, loss=loss, batch=batch)
            for cached in ("parameters", "trainable", "batch_tensors", "roots", "optimized"):
                subject.__dict__.pop(cached, None)
            seen = subject.observe()
            layers = [x for x in layers_of(subject, seen) if x.backward > 0]
            parts = [f"loss {seen.loss_number:.4g}"]
            if len(layers) > 1:
                parts.append(f"rms of dL/dz {layers[0].backward:.1e} at {layers[0].name}, {layers[-1].backward:.1e} at "
                             f"{layers[-1].name}")  # fmt: skip
            if e.optimizer is not None and math.isfinite(seen.loss_number):
                losses = subject.steps(_STEPS)
                parts.append(f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses) - 1} steps")
                parts = parts[1:]
            return "; ".join(parts), finding.kind not in ("vanishing", "exploding") or _flatter(e, layers)
    except (ChainruleError, RuntimeError, AttributeError, LookupError, ValueError, TypeError) as error:
        subject.notes.append(f"the fix of {finding.kind} could not be tried: {str(error).splitlines()[0]}")
        return "", True
    finally:
        subject.case = case
        for cached in ("parameters", "trainable", "batch_tensors", "roots", "optimized"):
            subject.__dict__.pop(cached, None)


def _flatter(e: Examination, after: Sequence[Layer]) -> bool:
    """Whether the gradient changes by fewer decades from the last layer to the first than before the fix."""
    before = [x for x in e.layers if x.value in e.path]
    if len(before) < 2 or len(after) < 2:
        return True
    return _decades(after) < _decades(before)


def _decades(layers: Sequence[Layer]) -> float:
    first, last = layers[0].backward, layers[-1].backward
    return abs(math.log10(first / last)) if 0 < first < math.inf and 0 < last < math.inf else math.inf
