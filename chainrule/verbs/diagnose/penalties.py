"""Penalties that the loss itself adds: terms of parameters alone, against what the data say.

The gradient of the penalty is taken out in one more pass, by gradient hooks at the places where such a term joins what
depends on the batch; what is left is the gradient of the data.
"""

from __future__ import annotations

import math

import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.naming import listed, modules_of
from chainrule.verbs.diagnose.values import Call, Value
from chainrule.verbs.kinds import Finding

_LIMIT = 10.0  # times the gradient of the data


def joins(e: Examination) -> list[tuple[Call, Value]]:
    """Scalars of parameters alone that are added to one that depends on the batch."""
    found = []
    for call in e.seen.tape.calls:
        if call.name not in ("add", "sub", "stack") or not call.outputs or call.outputs[0] not in e.path:
            continue
        terms = [v for v in call.inputs if v in e.path and math.prod(v.shape) == 1]
        alone = [v for v in terms if v.learned and not v.data and v.producer is not None]
        if alone and any(v.data for v in terms):
            found += [(call, v) for v in alone]
    return found


def penalty(e: Examination) -> list[Finding]:
    """regularizer: a penalty whose gradient is many times that of the data."""
    terms = joins(e)
    if not terms:
        return []
    places = {(call.index, k) for call, v in terms for k, u in enumerate(call.inputs) if u is v}
    whole = {n: g for n, g in e.seen.gradients.items() if g is not None and n in e.trainable and not g.is_sparse}
    silenced = _silenced(e, {v.producer.index for _, v in terms if v.producer is not None})
    if silenced is None or not places:
        return []
    strong: list[tuple[str, float]] = []
    for n, g in whole.items():
        own = silenced.get(n)
        if own is None or g.dim() < 2:
            continue
        rest, data = float((g.double() - own.double()).norm()), float(own.double().norm())
        if data > 0 and rest > _LIMIT * data:
            strong.append((n, rest / data))
    if not strong or len(strong) < sum(1 for g in whole.values() if g.dim() >= 2) / 2:
        return []
    name, ratio = max(strong, key=lambda s: s[1])
    call = terms[-1][0]
    return [
        Finding(
            "regularizer", "warning", listed(modules_of([n for n, _ in strong]), 6),
            "the penalty that the loss adds is stronger than the data: the weights go to where it is least instead of "
            "learning",
            measured=f"at {name} its gradient is {ratio:.3g} times that of the data; together the terms are "
            f"{sum(v.scale for _, v in terms):.3g} of a loss of {e.seen.loss_number:.3g}",
            expected="a part of the gradient of the data",
            fix=f"a factor {min(1.0, 0.1 / ratio):.1g} of what it is", source=call.place.text,
        )
    ]  # fmt: skip


def _silenced(e: Examination, producers: set[int]) -> dict[str, torch.Tensor | None] | None:
    """The gradients of a pass in which the outputs of these calls pass none on."""

    def watch(value: Value, grad: torch.Tensor) -> torch.Tensor | None:
        made = value.producer
        return torch.zeros_like(grad) if made is not None and made.index in producers else None

    try:
        return dict(e.subject.observe(sizes=False, watch=watch).gradients)
    except ModelError:
        return None
