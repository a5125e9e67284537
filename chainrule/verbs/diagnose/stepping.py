"""The optimizer's step: learning rate against curvature, weight decay, clipping, accumulation, rounding, underflow.

A learning rate is called too high only if trial steps of the user's own optimizer raise the loss and the curvature
says why; too low only if both the predicted fall of the loss and the change of the weights are negligible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from chainrule.verbs.diagnose.curvature import largest_eigenvalue
from chainrule.verbs.diagnose.examination import Examination, Trial
from chainrule.verbs.diagnose.layers import name_of
from chainrule.verbs.diagnose.naming import listed, modules_of
from chainrule.verbs.diagnose.optimizers import is_adaptive, of_groups, rate_of
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.diagnose.penalties import penalty
from chainrule.verbs.diagnose.torch_ops import LOSSES
from chainrule.verbs.kinds import Finding

_FALL, _CHANGE = 1e-6, 1e-6  # relative fall of the loss, and relative change of the weights, per step


def stepping(e: Examination) -> list[Finding]:
    """lr_too_high, lr_too_low, regularizer, rounding, accumulating, clipping, underflow."""
    found = captured(e) + underflow(e)
    trial = e.trial
    if trial is None:
        return found
    return found + learning_rate(e, trial) + regularizer(e) + rounding(e, trial)


def learning_rate(e: Examination, trial: Trial) -> list[Finding]:
    """Too high or too low."""
    optimizer, losses = e.optimizer, trial.losses
    assert optimizer is not None
    lr, first = rate_of(optimizer), losses[0]
    if lr == 0.0:
        return [_low(e, trial, lr, "the learning rate is 0")] if not _scheduled(optimizer) else []
    blown = not all(map(math.isfinite, losses))
    wild = is_adaptive(optimizer) and _median_change(trial) > 1 and max(losses) > 3 * abs(first)
    risen = blown or wild or (min(losses[-4:]) > first + 0.02 * abs(first) and losses[-1] > first + 0.05 * abs(first))
    if risen and len(losses) > 2:
        return _high(e, trial, lr)
    fall = lr * trial.squared / abs(first) if first else math.inf
    if is_adaptive(optimizer):
        fall = abs(trial.predicted) / abs(first) if first else math.inf
    changes = [u for u in trial.updates.values() if math.isfinite(u)]
    if changes and fall < _FALL and max(changes) < _CHANGE and trial.squared > 0 and not _scheduled(optimizer):
        return [_low(e, trial, lr, f"a step lowers the loss by {fall:.1e} of itself")]
    return []


def _median_change(trial: Trial) -> float:
    changes = [u for u in trial.updates.values() if math.isfinite(u)]
    return sorted(changes)[len(changes) // 2] if changes else math.inf


def _scheduled(optimizer: torch.optim.Optimizer) -> bool:
    return any("initial_lr" in g for g in optimizer.param_groups)


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
        safe = 1 / top if top else lr / 100
        summed = _summed(e)
        return [
            Finding(
                "lr_too_high", "error", "the optimizer",
                f"the loss rises: lr * lambda_max = {lr * (top or math.nan):.3g} is beyond {limit:g}, where steps "
                f"along the "
                "steepest direction overshoot by more than they gain"
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
    """How many samples a loss with reduction='sum' adds up; 0 if it does not."""
    for call in e.seen.tape.calls:
        if call.name in LOSSES and call.argument(3 if LOSSES[call.name].classes else 2, "reduction", 1) in (2, "sum"):
            return call.inputs[0].shape[0] if call.inputs[0].shape else 0
    return 0


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


# ---- weight decay --------------------------------------------------------------------------------------------
def regularizer(e: Examination) -> list[Finding]:
    """Weight decay that is far stronger than the gradient."""
    optimizer = e.optimizer
    assert optimizer is not None
    by_hand = penalty(e)
    if by_hand:
        return by_hand
    names = {id(p): n for n, p in e.subject.trainable.items()}
    strong: list[tuple[str, float, float]] = []
    for group in optimizer.param_groups:
        decay, lr = float(group.get("weight_decay", 0.0) or 0.0), float(group["lr"])
        if decay < 0.1:
            continue
        decoupled = group.get("decoupled_weight_decay") or type(optimizer).__name__ == "AdamW"
        for p in group["params"]:
            g = e.seen.gradients.get(names.get(id(p), ""))
            if g is None or g.is_sparse or p.dim() < 2:
                continue
            weight, slope = float(p.detach().double().norm()), float(g.double().norm())
            if decoupled:
                if lr * decay > 0.02:
                    strong.append((names[id(p)], decay, lr * decay))
            elif decay * weight > 10 * slope > 0:
                strong.append((names[id(p)], decay, decay * weight / slope))
    if not strong:
        return []
    name, decay, ratio = strong[0]
    return [
        Finding(
            "regularizer", "warning", listed([n for n, _, _ in strong]),
            "weight decay is stronger than the gradient of the loss: the weights go to zero instead of learning",
            measured=f"weight_decay {decay:g}; at {name} "
            + (f"it takes {ratio:.0%} of the weights per step" if ratio < 1 else f"{ratio:.3g} times the gradient"),
            expected="a part of the gradient: 1e-4 to 1e-2 (AdamW to 0.1)", fix="weight_decay=1e-4",
            patch=Patch("for g in optimizer.param_groups:\n    g['weight_decay'] = 1e-4"),
        )
    ]  # fmt: skip


# ---- arithmetic ----------------------------------------------------------------------------------------------
def rounding(e: Examination, trial: Trial) -> list[Finding]:
    """Updates that are lost in the last place of the weights."""
    lost = {n: s for n, s in trial.unmoved.items() if s > 0.5 and e.subject.trainable[n].numel() > 1}
    if len(lost) < max(1, len(trial.unmoved) // 2) or not lost:
        return []
    if max(of_groups(e.optimizer, "lr")) == 0.0:  # type: ignore[arg-type]
        return []
    name = max(lost, key=lambda n: lost[n])
    dtype = e.subject.trainable[name].dtype
    return [
        Finding(
            "rounding", "warning", listed(list(lost)),
            f"updates are smaller than half a unit in the last place of {name_of(dtype)} weights, so adding them "
            f"changes nothing",
            measured=f"{lost[name]:.0%} of the entries of {name} with a gradient did not change in a step",
            expected="updates that change the weights", fix="keep the weights in float32 (mixed precision by autocast)",
        )
    ]  # fmt: skip


def underflow(e: Examination) -> list[Finding]:
    """float16 gradients that are zero and would not be with a loss scale."""
    half = [c for c in e.seen.tape.calls for o in c.outputs if o.dtype == torch.float16 and o in e.path]
    half16 = any(p.dtype == torch.float16 for p in e.subject.trainable.values())
    if not half and not half16:
        return []
    before = {n: g for n, g in e.seen.gradients.items() if g is not None and n in e.trainable and not g.is_sparse}
    scale = 2.0**14
    scaled = e.subject.observe(boost=scale, sizes=False).gradients
    lost = {}
    for n, g in before.items():
        other = scaled[n]
        if other is None or not g.numel() or not bool(torch.isfinite(other).all()):
            continue
        live = other != 0
        share = float(((g == 0) & live).sum()) / max(int(live.sum()), 1)
        if share > 0.3:
            lost[n] = share
    if not lost:
        return []
    name = max(lost, key=lambda n: lost[n])
    return [
        Finding(
            "underflow", "warning", listed(list(lost)),
            "gradients below 6e-8 are zero in float16",
            measured=f"{lost[name]:.0%} of the gradient of {name} is zero and is not with the loss times {scale:g}",
            expected="a loss scale", fix=f"torch.amp.GradScaler(init_scale={scale:g}), or bfloat16",
        )
    ]  # fmt: skip


# ---- what the user's own step did ----------------------------------------------------------------------------
def captured(e: Examination) -> list[Finding]:
    """Gradients at the user's own step against those of the batch: left over from before, or clipped."""
    if e.stepped is None:
        return []
    own = e.seen.gradients if e.own is None else e.own
    mine = {n for n, p in e.subject.trainable.items() if id(p) in e.subject.optimized}
    before = {n: g for n, g in (e.before or {}).items() if n in mine}
    left = foreign(own, e.stepped, before) if e.foreign else accumulating(own, e.stepped, e.before)
    return left or clipping(own, e.stepped) or emptied(own, e.stepped)


def _shared(own: Mapping[str, torch.Tensor | None], other: Mapping[str, torch.Tensor]) -> list[str]:
    return [n for n in other if (g := own.get(n)) is not None and not g.is_sparse and not other[n].is_sparse]


def _norm(gradients: Mapping[str, torch.Tensor | None], names: list[str]) -> float:
    return math.sqrt(sum(float((g.double() ** 2).sum()) for n in names if (g := gradients[n]) is not None))


def accumulating(
    own: Mapping[str, torch.Tensor | None],
    stepped: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor] | None,
) -> list[Finding]:
    """Whether the gradient at a step is that of the batch plus what the step before left."""
    if not before:
        return []
    names = [n for n in _shared(own, stepped) if n in before]
    if not names:
        return []
    left = {n: stepped[n].double() - own[n].double() for n in names}  # type: ignore[union-attr]
    rest = _norm({n: left[n] - before[n].double() for n in names}, names)
    size = _norm(before, names)
    if not size or rest > 0.05 * size:
        return []
    return [
        Finding(
            "accumulating", "error", "the training loop",
            "the gradient at the optimizer's step is that of this batch plus that of the step before: zero_grad() is "
            "not called between steps",
            measured=f"|g at the step - g of this batch - g of the step before| = {rest / size:.1e} of the latter",
            expected="the gradient of the batches since the last step", fix="optimizer.zero_grad() in every step",
        )
    ]  # fmt: skip


def foreign(
    own: Mapping[str, torch.Tensor | None],
    stepped: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor] | None,
) -> list[Finding]:
    """Whether the gradient at a step holds that of another loss, for which another optimizer has stepped."""
    names = [n for n in _shared(own, stepped) if n in (before or {})]
    if not before or not names:
        return []
    both = {n: own[n].double() + before[n].double() for n in names}  # type: ignore[union-attr]
    if not (_norm(stepped, names) and _norm(own, names)):
        return []
    alike, alone = _cosine(stepped, both, names), _cosine(stepped, own, names)
    if alike < 0.9999 or alone > 0.9999:
        return []
    ratio = _norm(before, names) / _norm(own, names)
    return [
        Finding(
            "accumulating", "warning", listed(modules_of(names), 6),
            "the gradient at the optimizer's step holds that of another loss, whose backward() reached these "
            "parameters too and was not cleared",
            measured=f"{ratio:.2g} times the gradient of the optimizer's own loss was there before its backward()",
            expected="the gradient of the optimizer's own loss",
            fix="zero_grad() right before this loss's backward(), or detach() what the other loss takes from here",
        )
    ]  # fmt: skip


def _cosine(a: Mapping[str, torch.Tensor | None], b: Mapping[str, torch.Tensor | None], names: list[str]) -> float:
    dot = sum(float((a[n].double() * b[n].double()).sum()) for n in names)  # type: ignore[union-attr]
    return dot / max(_norm(a, names) * _norm(b, names), 1e-300)


def clipping(own: Mapping[str, torch.Tensor | None], stepped: Mapping[str, torch.Tensor]) -> list[Finding]:
    """Whether the gradient at a step is that of the batch times a number far below one."""
    names = _shared(own, stepped)
    real, used = _norm(own, names) if names else 0.0, _norm(stepped, names) if names else 0.0
    if not real or not used or not math.isfinite(real) or used > 0.02 * real:
        return []
    by_norm = _cosine(own, stepped, names) > 0.99
    if not by_norm and not _by_value(own, stepped, names):
        return []
    if not by_norm:
        limit = max(float(stepped[n].abs().max()) for n in names if stepped[n].numel())
        return [
            Finding(
                "clipping", "warning", "the training loop",
                "nearly every entry of the gradient is clipped to one and the same size, so only its sign is left",
                measured=f"|g| {real:.3g} before, {used:.3g} at the optimizer's step; no entry above {limit:.3g}",
                expected="few entries clipped", fix="clip_grad_norm_, which keeps the direction, or a larger limit",
            )
        ]  # fmt: skip
    return [
        Finding(
            "clipping", "warning", "the training loop",
            "the gradient is clipped to a small part of its size, so the limit of the norm is the learning rate",
            measured=f"|g| {real:.3g} before, {used:.3g} at the optimizer's step", expected="few steps clipped",
            fix=f"clip_grad_norm_(parameters, {_nice(real)}): about the 90th percentile of the unclipped norms",
        )
    ]  # fmt: skip


def _by_value(own: Mapping[str, torch.Tensor | None], stepped: Mapping[str, torch.Tensor], names: list[str]) -> bool:
    """Whether every entry has kept its sign, and what is larger than the largest that is left became that."""
    limit = max((float(stepped[n].abs().max()) for n in names if stepped[n].numel()), default=0.0)
    for n in names:
        g = own[n]
        assert g is not None
        if not torch.allclose(g.clamp(-limit, limit), stepped[n].to(g.dtype), rtol=1e-3, atol=limit * 1e-3):
            return False
    return limit > 0


def emptied(own: Mapping[str, torch.Tensor | None], stepped: Mapping[str, torch.Tensor]) -> list[Finding]:
    """Whether the gradient is gone at the step: zero_grad() between backward() and step()."""
    names = _shared(own, stepped)
    if not _norm(own, [n for n, g in own.items() if g is not None and not g.is_sparse]):
        return []
    if names and _norm(stepped, names):
        return []
    return [
        Finding(
            "accumulating", "error", "the training loop",
            "there is no gradient left at the optimizer's step: zero_grad() is called between backward() and step()",
            measured="every gradient is zero or None at step()", expected="the gradient of the batch",
            fix="zero_grad(), backward(), step(), in this order",
        )
    ]  # fmt: skip


def _nice(number: float) -> str:
    return f"{float(f'{number:.1g}'):g}"
