"""The learning rate against the curvature, against the loss's fall, and momentum that swings out again.

A learning rate is called too high only if trial steps of the user's own optimizer raise the loss and the curvature
says why; too low only if both the predicted fall of the loss and the change of the weights are negligible.
"""

from __future__ import annotations

import math

import torch

from chainrule.verbs.diagnose.curvature import largest_eigenvalue
from chainrule.verbs.diagnose.examination import Examination, Trial
from chainrule.verbs.diagnose.loss_calls import reduction_of
from chainrule.verbs.diagnose.naming import listed, modules_of
from chainrule.verbs.diagnose.optimizers import is_adaptive, of_groups, rate_of
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.diagnose.torch_ops import LOSSES
from chainrule.verbs.kinds import Finding

_SPIKE = 10.0  # times the first loss
_FALL, _CHANGE = 1e-6, 1e-6  # relative fall of the loss, and relative change of the weights, per step


def learning_rate(e: Examination, trial: Trial) -> list[Finding]:
    """Too high or too low."""
    optimizer, losses = e.optimizer, trial.losses
    assert optimizer is not None
    lr, first = rate_of(optimizer), losses[0]
    warming = warming_up(optimizer)
    if lr == 0.0:
        return [_low(e, trial, lr, "the learning rate is 0")] if not warming else []
    blown = not all(map(math.isfinite, losses))
    wild = is_adaptive(optimizer) and _median_change(trial) > 1 and max(losses) > 3 * abs(first)
    spiked = not is_adaptive(optimizer) and max(losses) > _SPIKE * abs(first)  # one batch is soon fitted all the same
    risen = (
        blown
        or wild
        or spiked
        or (min(losses[-4:]) > first + 0.02 * abs(first) and losses[-1] > first + 0.05 * abs(first))
    )
    vanished = _lost_epsilon(e, trial) if blown else []
    if vanished:
        return vanished
    if risen and len(losses) > (1 if blown else 2):
        return _high(e, trial, lr)
    still = _resting(e)
    if still:
        return still
    fall = lr * trial.squared / abs(first) if first else math.inf
    if is_adaptive(optimizer):
        fall = abs(trial.predicted) / abs(first) if first else math.inf
    changes = [u for u in trial.updates.values() if math.isfinite(u)]
    momentum = swinging(e)
    if momentum:
        return momentum
    if changes and fall < _FALL and max(changes) < _CHANGE and trial.squared > 0 and not warming:
        return [_low(e, trial, lr, f"a step lowers the loss by {fall:.1e} of itself")]
    return []


def _lost_epsilon(e: Examination, trial: Trial) -> list[Finding]:
    """Adam's epsilon that is zero in float16, so that the first step divides zero by zero."""
    assert e.optimizer is not None
    half = [n for n, p in e.subject.trainable.items() if p.dtype == torch.float16]
    eps = [float(g["eps"]) for g in e.optimizer.param_groups if "eps" in g]
    lost = [n for n in half if not math.isfinite(trial.updates.get(n, 0.0))]
    if not lost or not eps or min(eps) >= 6e-8:
        return []
    return [
        Finding(
            "nonfinite", "error", "the optimizer",
            f"eps = {min(eps):g} is zero in float16, so the first step divides by the root of a squared gradient that "
            "is zero too",
            measured=f"loss {trial.losses[0]:.3g} before the first step, {trial.losses[-1]:.3g} after it; weights of "
            f"{lost[0]} are not finite",
            expected="weights and the optimizer's state in float32", fix="float32 weights with autocast, or eps=1e-4",
            patch=Patch("for g in optimizer.param_groups:\n    g['eps'] = 1e-4"),
        )
    ]  # fmt: skip


def _resting(e: Examination) -> list[Finding]:
    """Groups of the optimizer whose learning rate is zero, beside others that move."""
    assert e.optimizer is not None
    names = {id(p): n for n, p in e.subject.trainable.items()}
    groups = e.optimizer.param_groups
    still = [g for g in groups if float(g["lr"]) == 0.0 and not float(g.get("initial_lr", 0.0) or g.get("max_lr", 0.0))]
    held = [names[id(p)] for g in still for p in g["params"] if id(p) in names]
    if not held or len(still) == len(groups):
        return []
    top = max(float(g["lr"]) for g in groups)
    return [
        Finding(
            "lr_too_low", "warning", listed(modules_of(held), 6),
            "the learning rate of this group of parameters is 0, so they never move",
            measured=f"lr 0 for {len(held)} parameters, {top:g} for others", expected="a rate, or frozen",
            fix=f"lr={top:g}",
            patch=Patch(f"for g in optimizer.param_groups:\n    g['lr'] = g['lr'] or {top:g}"),
        )
    ]  # fmt: skip


_HEAVY, _LONG = 0.98, 100  # momentum that forgets a gradient after 50 steps only, and how many are then looked at


def swinging(e: Examination) -> list[Finding]:
    """Momentum so close to 1 that steps run through the minimum and out again: the loss falls, then rises beyond."""
    optimizer = e.optimizer
    assert optimizer is not None
    beta, lr = max(of_groups(optimizer, "momentum")), rate_of(optimizer)
    if beta < _HEAVY or warming_up(optimizer):
        return []
    with e.subject.safely():
        losses = e.subject.steps(_LONG)
    low = min(losses)
    after = losses[losses.index(low) :]
    if math.isfinite(max(after)) and max(after) <= max(0.5 * losses[0], 3 * abs(low)) + 0.02 * abs(losses[0]):
        return []
    return [
        Finding(
            "lr_too_high", "error", "the optimizer",
            f"momentum {beta:g} adds up the gradients of the last {1 / (1 - beta):.0f} steps, so each moves the "
            f"weights by lr / (1 - momentum) = {lr / (1 - beta):.3g} of itself in the end: the weights run through the "
            "minimum and out on the other side",
            measured=f"loss {losses[0]:.3g}, then {low:.3g}, then {max(after):.3g} in {len(losses) - 1} trial steps",
            expected="momentum 0.9 to 0.95, or a learning rate as many times smaller", fix="momentum=0.9",
            patch=Patch("for g in optimizer.param_groups:\n    g['momentum'] = 0.9"),
        )
    ]  # fmt: skip


def _median_change(trial: Trial) -> float:
    changes = [u for u in trial.updates.values() if math.isfinite(u)]
    return sorted(changes)[len(changes) // 2] if changes else math.inf


def warming_up(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a schedule holds the rate far below its peak now: what counts is the peak."""
    return any(
        float(g["lr"]) < 0.5 * max(float(g.get("initial_lr", 0.0)), float(g.get("max_lr", 0.0)))
        for g in optimizer.param_groups
    )


def _high(e: Examination, trial: Trial, lr: float) -> list[Finding]:
    optimizer = e.optimizer
    assert optimizer is not None
    top = largest_eigenvalue(e)
    beta = max(of_groups(optimizer, "momentum"))
    losses = trial.losses
    ended = f"{losses[-1]:.3g}" if math.isfinite(losses[-1]) else str(losses[-1])
    adaptive = is_adaptive(optimizer)
    limit = 2 * (1 + beta)
    if not adaptive:
        if top is None or lr * top <= limit:
            # The batch's noise, or a saddle, is no fault of the learning rate.
            if math.isfinite(losses[-1]) and losses[-1] < 10 * abs(losses[0]) + 1:
                return []
        peak = max(filter(math.isfinite, losses))
        if math.isfinite(losses[-1]) and peak > _SPIKE * abs(losses[-1]):
            ended = f"{peak:.3g} -> {ended}"
        safe = 1 / top if top else lr / 100
        summed = _summed(e)
        return [
            Finding(
                "lr_too_high", "error", "the optimizer",
                f"the loss rises: lr * lambda_max = {lr * (top or math.nan):.3g} is beyond {limit:g}, where steps "
                "along the steepest direction overshoot by more than they gain"
                + (f"; the loss is a sum over {summed} samples, so its curvature is {summed} times that of the mean"
                   if summed else ""),
                measured=f"loss {losses[0]:.3g} -> {ended} in {len(losses) - 1} trial steps; lr {lr:g}, largest "
                f"eigenvalue of the Hessian {top or math.nan:.3g}",
                expected=f"lr below {limit:g} / lambda_max = {limit / top if top else math.nan:.2g}",
                fix=('reduction="mean", or ' if summed else "") + f"lr={safe:.2g}",
                patch=Patch(f"for g in optimizer.param_groups:\n    g['lr'] = {safe:.2g}"),
            )
        ]  # fmt: skip
    change = _median_change(trial)
    if math.isfinite(losses[-1]) and change < 0.1 and losses[-1] < 10 * abs(losses[0]) + 1:
        return []
    safe = lr * min(0.1, 1e-3 / change if change and math.isfinite(change) else 0.1)
    return [
        Finding(
            "lr_too_high", "error", "the optimizer",
            "the loss rises: each step changes the weights by a large part of their own size",
            measured=f"loss {losses[0]:.3g} -> {ended} in {len(losses) - 1} trial steps, up to "
            f"{max(filter(math.isfinite, losses)):.3g}; lr {lr:g}; the first step "
            f"changes the median weight tensor by {change:.0%}",
            expected="updates of about a thousandth of the weights", fix=f"lr={safe:.2g}",
            patch=Patch(f"for g in optimizer.param_groups:\n    g['lr'] = {safe:.2g}"),
        )
    ]  # fmt: skip


def _summed(e: Examination) -> int:
    """How many samples a loss adds up, as a loss of torch with reduction='sum' or by hand; 0 if it does not."""
    rows = {t.shape[0] for t in e.subject.input_tensors.values() if t.dim()}
    for call in e.seen.tape.calls:
        if call.name in LOSSES and reduction_of(call) == "sum":
            return call.inputs[0].shape[0] if call.inputs[0].shape else 0
    value = e.seen.loss
    while value.producer is not None and value.producer.name in ("neg", "mul", "add") and value.producer.inputs:
        value = max(value.producer.inputs, key=lambda v: v in e.path)
    call = value.producer
    if call is None or call.name != "sum" or not call.inputs[0].shape or call.inputs[0].shape[0] not in rows:
        return 0
    return call.inputs[0].shape[0]


def _low(e: Examination, trial: Trial, lr: float, why: str) -> Finding:
    changes = [u for u in trial.updates.values() if math.isfinite(u)]
    adaptive = e.optimizer is not None and is_adaptive(e.optimizer)
    top = None if adaptive else largest_eigenvalue(e)
    better = 1e-3 if adaptive else (1 / top if top else 0.1)
    better = min(better, 1e3)
    return Finding(
        "lr_too_low", "error", "the optimizer", f"{why}: training takes millions of steps",
        measured=f"lr {lr:g}; largest relative change of a weight tensor per step "
        f"{max(changes) if changes else 0.0:.1e}"
        + (f"; largest eigenvalue of the Hessian {top:.3g}" if top else ""),
        expected="relative changes of about 1e-3 per step", fix=f"lr={better:.2g}",
        patch=Patch(f"for g in optimizer.param_groups:\n    g['lr'] = {better:.2g}"),
    )  # fmt: skip
