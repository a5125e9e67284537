"""Calls of losses on a tape, and what goes into them; shared by the checks of losses, axes and targets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.torch_ops import LOSSES, TRANSPARENT
from chainrule.verbs.diagnose.values import Call, Value


def losses_of(e: Examination) -> Iterator[Call]:
    """The calls of losses that the loss was computed from."""
    for call in e.seen.tape.calls:
        if call.name in LOSSES and any(o in e.ancestors for o in call.outputs):
            yield call


def classes_of(call: Call) -> int:
    """How many classes the first input of a loss has."""
    shape = call.inputs[0].shape
    return shape[1] if len(shape) > 1 else shape[0] if shape else 1


def reduction_of(call: Call) -> str:
    """``none``, ``mean`` or ``sum``: what a loss of torch does with its entries."""
    at = _reduction_at(call.name)
    return "none" if at is None else ("none", "mean", "sum")[call.argument(at, "reduction", 1)]


@cache
def _reduction_at(name: str) -> int | None:
    """Which argument of torch's op it is; None of one that has none, or is of another library."""
    packet = getattr(torch.ops.aten, name, None)
    arguments = getattr(packet, packet.overloads()[0])._schema.arguments if packet is not None else ()
    return next((k for k, a in enumerate(arguments) if a.name == "reduction"), None)


def is_output(e: Examination, value: Value) -> bool:
    """Whether a value is what the model returns, or what a loss takes; an attention to one place is neither."""
    for _ in range(8):
        if value in e.seen.outputs or any(c.name in LOSSES or c.name in ("log", "neg") for c in value.consumers):
            return True
        following = next((c for c in value.consumers if c.name in TRANSPARENT and c.outputs), None)
        if following is None:
            return False
        value = following.outputs[0]
    return False
