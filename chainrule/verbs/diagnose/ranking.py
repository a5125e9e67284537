"""From everything that was found to root causes: what follows from a cause is nested under it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from chainrule.verbs.kinds import Finding

# What is looked at first, because it makes the measurements after it meaningless or explains them.
ORDER = tuple(
    "masked_labels nonfinite loss_detached cut unregistered not_in_optimizer wrong_backward input_constant "
    "no_signal symmetric zero_derivative loss_pairing loss_axis broadcast sign batch_leak future_leak input_scale "
    "underflow exploding vanishing target_range dead saturated target_scale batch_too_small noise accumulating "
    "clipping lr_too_high lr_too_low rounding regularizer init_loss linear_stack duplicate unused output_unused "
    "frozen".split()
)

_SMALL = "vanishing dead saturated no_signal lr_too_low rounding init_loss zero_derivative".split()
_TRAINING = "lr_too_high lr_too_low rounding regularizer init_loss clipping".split()
# cause -> what it explains
EXPLAINS: Mapping[str, frozenset[str]] = {
    "masked_labels": frozenset({"nonfinite", *_TRAINING}),
    "nonfinite": frozenset({*_TRAINING, *_SMALL, "exploding", "input_scale", "symmetric"}),
    "loss_detached": frozenset({"cut", "not_in_optimizer", *_SMALL, *_TRAINING, "unused", "output_unused"}),
    "cut": frozenset({*_SMALL, *_TRAINING, "symmetric", "linear_stack"}),
    "unregistered": frozenset({"not_in_optimizer", *_TRAINING}),
    "not_in_optimizer": frozenset(_TRAINING),
    "wrong_backward": frozenset({*_TRAINING, "exploding", "vanishing"}),
    "input_constant": frozenset({"symmetric", "input_scale", "no_signal", "duplicate", *_TRAINING}),
    "no_signal": frozenset({"output_unused", "unused", *_SMALL, *_TRAINING}),
    "symmetric": frozenset({*_SMALL, *_TRAINING, "exploding", "duplicate", "linear_stack"}),
    "zero_derivative": frozenset({*_SMALL, *_TRAINING}),
    "loss_pairing": frozenset(
        {*_SMALL, *_TRAINING, "loss_axis", "batch_leak", "sign", "symmetric", "target_range", "target_scale"}
    ),
    "loss_axis": frozenset({"batch_leak", "future_leak", *_TRAINING, "loss_pairing"}),
    "broadcast": frozenset({*_TRAINING, "batch_leak"}),
    "sign": frozenset({*_TRAINING}),
    "exploding": frozenset({"saturated", "dead", "nonfinite", "target_scale", *_TRAINING}),
    "vanishing": frozenset({"dead", "no_signal", "saturated", "symmetric", *_TRAINING}),
    "dead": frozenset({"vanishing", "no_signal", *_TRAINING, "symmetric"}),
    "saturated": frozenset({"vanishing", "exploding", *_TRAINING}),
    "input_scale": frozenset({"saturated", "dead", "exploding", *_TRAINING}),
    "target_range": frozenset({"dead", "saturated", *_TRAINING}),
    "target_scale": frozenset(_TRAINING),
    "noise": frozenset(_TRAINING),
    "accumulating": frozenset({"clipping", "lr_too_high"}),
    "underflow": frozenset({"rounding", "lr_too_low", "vanishing"}),
    "lr_too_low": frozenset({"rounding"}),
    "lr_too_high": frozenset({"init_loss"}),
    "regularizer": frozenset({"lr_too_high"}),
}


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Root causes first, each with what it explains among its consequences; infos last.

    A cause explains only what is no more severe than it: an info explains nothing.
    """
    ordered = sorted(findings, key=lambda f: ORDER.index(f.kind) if f.kind in ORDER else len(ORDER))
    roots: list[Finding] = []
    for finding in ordered:
        cause = next((k for k, r in enumerate(roots) if _explains(r, finding)), None)
        if cause is None:
            roots.append(finding)
        elif finding.severity != "info":
            said = f"{finding.kind}{f' at {finding.where}' if finding.where else ''}: {finding.cause}"
            roots[cause] = replace(roots[cause], consequences=(*roots[cause].consequences, said))
    return tuple(sorted(roots, key=lambda f: f.severity == "info"))


def _explains(cause: Finding, finding: Finding) -> bool:
    if finding.kind == "lr_too_high" and cause.kind == "input_scale" and "reduction" in finding.fix:
        return False  # a sum over the batch stays one whatever the inputs' scale
    if (cause.kind, finding.kind) == ("input_scale", "init_loss"):
        return True  # and where training copes with the scale, it copes with the first loss
    return cause.severity != "info" and finding.kind in EXPLAINS.get(cause.kind, frozenset())
