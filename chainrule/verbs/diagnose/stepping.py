"""The optimizer's step: weight decay, clipping, accumulation, rounding, underflow; its rate is in ``rates``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from chainrule.verbs.diagnose.examination import Examination, Trial
from chainrule.verbs.diagnose.layers import name_of
from chainrule.verbs.diagnose.naming import listed, modules_of
from chainrule.verbs.diagnose.optimizers import maximizes, of_groups
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.diagnose.penalties import penalty
from chainrule.verbs.diagnose.rates import learning_rate, warming_up
from chainrule.verbs.diagnose.torch_ops import UNBOUNDED_ABOVE
from chainrule.verbs.diagnose.wide import inner, norm
from chainrule.verbs.kinds import Finding


def stepping(e: Examination) -> list[Finding]:
    """lr_too_high, lr_too_low, regularizer, rounding, accumulating, clipping, underflow."""
    found = captured(e) + underflow(e) + climbing(e)
    trial = e.trial
    if trial is None:
        return found
    return found + learning_rate(e, trial) + regularizer(e) + rounding(e, trial)


def climbing(e: Examination) -> list[Finding]:
    """maximize=True on a loss that has no maximum."""
    if not maximizes(e.optimizer):
        return []
    losses = [c for c in e.seen.tape.calls if c.name in UNBOUNDED_ABOVE and isinstance(c.weight, float)]
    if not losses or any(c.weight < 0 for c in losses):
        return []
    return [
        Finding(
            "sign", "error", "the optimizer",
            f"maximize=True makes {losses[0].name} as large as it gets, and it has no largest value",
            measured=f"maximize=True; loss {e.seen.loss_number:.4g}", expected="maximize=False", fix="maximize=False",
            patch=Patch("for g in optimizer.param_groups:\n    g['maximize'] = False"),
        )
    ]  # fmt: skip


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
            weight, slope = norm(p), norm(g)
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
    assert e.optimizer is not None
    if max(of_groups(e.optimizer, "lr")) == 0.0 or warming_up(e.optimizer):
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
    return math.sqrt(sum(norm(g) ** 2 for n in names if (g := gradients[n]) is not None))


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
    dot = sum(inner(a[n], b[n]) for n in names)  # type: ignore[union-attr]
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
