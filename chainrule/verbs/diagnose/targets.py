"""Targets: outside of what the loss or the last activation can reach, and labels that smoothing has wiped out."""

from __future__ import annotations

import math

import torch

from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.loss_calls import classes_of, losses_of
from chainrule.verbs.diagnose.patches import Patch, around_loss
from chainrule.verbs.diagnose.removal import without
from chainrule.verbs.diagnose.torch_ops import ACTIVATIONS, SOFTMAXES, TRANSPARENT
from chainrule.verbs.diagnose.values import Call, Value, origin
from chainrule.verbs.kinds import Finding


def targets(e: Examination, call: Call) -> Finding | None:
    """Targets that a loss is not made for, or that the last activation cannot reach."""
    if len(call.held) < 2:
        return None
    target, name = call.held[1], call.name
    if not target.numel():
        return None
    if name in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        low, high = float(target.min()), float(target.max())
        if low < 0 or high > 1:
            patch = around_loss(e.subject.case, "compared(output, (target + 1) / 2)") if low >= -1 else None
            return _out_of_range(call, low, high, "[0, 1]", "(target + 1) / 2 for labels of -1 and 1", patch=patch)
    if name == "cross_entropy_loss" and target.is_floating_point() and target.dim() > 1:
        sums = target.sum(1)
        off = float((sums - 1).abs().max())
        if off > 0.01 or float(target.min()) < 0:
            return _out_of_range(call, float(target.min()), float(target.max()), "probabilities that sum to 1",
                                 "target / target.sum(1, keepdim=True), or class indices")  # fmt: skip
    if name in _SIGNED:
        return _unsigned(e, call)
    if name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        return _unreachable(e, call, call.inputs[0], target)
    return None


# Losses whose targets are -1 and 1, by the position of the target among their tensors.
_SIGNED = {"soft_margin_loss": 1, "hinge_embedding_loss": 1, "margin_ranking_loss": 2, "cosine_embedding_loss": 2}


def _unsigned(e: Examination, call: Call) -> Finding | None:
    """Labels of 0 and 1 where -1 and 1 are meant: a label of 0 takes the prediction out of the loss, or half of it."""
    at = _SIGNED[call.name]
    if len(call.held) <= at or not call.held[at].numel():
        return None
    target = call.held[at].double()
    zeros, ones = target == 0, target == 1
    if not bool(zeros.any()) or not bool((zeros | ones).all()):
        return None
    patch = around_loss(e.subject.case, "compared(output, 2 * target - 1)") if at == 1 else None
    return _out_of_range(
        call, float(target.min()), float(target.max()), "-1 and 1", "2 * target - 1 for labels of 0 and 1",
        f"; {float(zeros.double().mean()):.0%} are 0, which says neither", patch=patch,
    )  # fmt: skip


def _unreachable(e: Examination, call: Call, output: Value, target: torch.Tensor) -> Finding | None:
    """Targets outside of what the last activation can give."""
    made = origin(output, TRANSPARENT).producer
    bounds = ACTIVATIONS[made.name].bounded if made is not None and made.name in ACTIVATIONS else None
    if made is not None and bounds is None and made.name in _ONE_SIDED:
        bounds = (0.0, math.inf)
    if made is None or (bounds is None and made.name not in SOFTMAXES):
        return None
    low, high = bounds or (0.0, 1.0)
    slack = 0.01 * (high - low if high < math.inf else 1.0)
    outside = float(((target < low - slack) | (target > high + slack)).float().mean())
    if outside <= 0.05:
        return None
    return _out_of_range(
        call, float(target.min()), float(target.max()), f"[{low:g}, {high:g}], what {made.name} can give",
        f"no {made.name} at the end, or targets scaled to its range", f"; {outside:.0%} are outside", made,
        without(e, made, None),
    )  # fmt: skip


_ONE_SIDED = frozenset({"relu", "softplus", "exp", "square"})


def targets_by_hand(e: Examination) -> list[Finding]:
    """The same for differences that are squared, or whose size is taken, by the user's own loss."""
    for call in e.seen.tape.calls:
        if call.name != "sub" or call.module or len(call.inputs) != 2 or not any(o in e.path for o in call.outputs):
            continue
        if not any(c.name in ("pow", "square", "abs", "mul") for o in call.outputs for c in o.consumers):
            continue
        a, b = call.inputs
        output, given = (a, b) if a.learned else (b, a)
        target = given.tensor()
        if given.learned or not given.data or target is None or not target.is_floating_point() or not target.numel():
            continue
        found = _unreachable(e, call, output, target.detach())
        if found is not None:
            return [found]
    return []


def smoothed(e: Examination) -> list[Finding]:
    """Label smoothing that leaves next to nothing of the labels."""
    for call in losses_of(e):
        if call.name != "cross_entropy_loss":
            continue
        share, classes = float(call.argument(5, "label_smoothing", 0.0) or 0.0), max(classes_of(call), 2)
        if share <= 0.7:
            continue
        kept = 1 - share + share / classes
        return [
            Finding(
                "regularizer", "error" if share > 0.95 else "warning", call.where,
                f"label smoothing gives the right one of {classes} classes a probability of {kept:.3g} only: the "
                "labels "
                + ("say nothing any more" if share == 1 else "are mostly noise"),
                measured=f"label_smoothing {share:g}", expected="0.05 to 0.2", fix="label_smoothing=0.1",
                source=call.place.text,
            )
        ]  # fmt: skip
    return []


def _out_of_range(
    call: Call, low: float, high: float, expected: str, fix: str, more: str = "",
    last: Call | None = None, patch: Patch | None = None,
) -> Finding:  # fmt: skip
    where = f"{call.module + ' ' if call.module else ''}{call.name}"
    if last is not None:
        where = f"{last.module + ' ' if last.module else ''}{last.name} before {where}"
    return Finding(
        "target_range", "error", where,
        "the targets are outside of what the loss or the last layer can reach",
        measured=f"targets between {low:.4g} and {high:.4g}{more}", expected=expected, fix=fix,
        source=call.place.text, patch=patch,
    )  # fmt: skip
