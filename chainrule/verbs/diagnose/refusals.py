"""What torch refuses to run, as a finding where it is a fault of the vocabulary: targets, pairing, batch size."""

from __future__ import annotations

import re
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.patches import Patch, around_loss
from chainrule.verbs.diagnose.torch_ops import FLAT
from chainrule.verbs.kinds import Finding

_KNOWN = (
    (r"Target (-?\d+) is out of bounds", "target_range", "a class index that the output has no entry for",
     "labels from 0 to K - 1, or a last layer with more outputs"),
    (r"elements of target should be between 0 and 1", "target_range", "BCELoss takes targets in [0, 1]",
     "(target + 1) / 2 for labels of -1 and 1"),
    (r"elements of input should be between 0 and 1", "loss_pairing",
     "BCELoss takes probabilities and is given numbers outside of [0, "
     "1]", "BCEWithLogitsLoss, or a Sigmoid at the end"),
    (r"Expected more than 1 value per channel", "batch_too_small",
     "batch normalisation in training has no variance to compute from one value per channel",
     "a batch of 2 and more (drop_last=True), or LayerNorm or GroupNorm"),
    (r"step\(\) is called before loss.backward\(\)", "accumulating",
     "optimizer.step() is called before loss.backward(): the step has no gradient, or that of the pass before",
     "zero_grad(), the model and its loss, backward(), step(), in this order"),
    (r"element 0 of tensors does not require grad", "loss_detached", "the loss has no history",
     "compute the loss from the model's output itself"),
)  # fmt: skip

_WHERE = {"batch_too_small": "the model", "accumulating": "the training loop"}


def as_finding(error: ModelError, case: Any = None) -> Finding | None:
    """The finding that an error is; None for one that is only an error."""
    said = str(error.__cause__ or error)
    missing = re.search(r"derivative for aten::(\w+) is not implemented", said)
    if missing is not None:
        return Finding(
            "zero_derivative" if missing[1] in FLAT else "cut", "error", missing[1],
            f"torch has no derivative of {missing[1]}: backward() raises"
            + (", and where there is one it is zero" if missing[1] in FLAT else ""),
            measured=said.split("\n")[0], expected="an op with a derivative",
            fix="a smooth function (sigmoid for a step), or a straight-through estimator",
        )  # fmt: skip
    for pattern, kind, cause, fix in _KNOWN:
        if re.search(pattern, said):
            place: Any = error.place
            where = error.module or _WHERE.get(kind, "the loss")
            return Finding(
                kind, "error", where, cause,
                measured=said.split("\n")[0], expected=error.required, fix=fix,
                source=place.text if place is not None else "", patch=_patch(kind, said, case),
            )  # fmt: skip
    return None


def _patch(kind: str, said: str, case: Any) -> Patch | None:
    """What can be written: labels that count from 1, logits into BCELoss."""
    if case is None:
        return None
    if kind == "loss_pairing" and "between 0 and 1" in said:
        return around_loss(case, "nn.functional.binary_cross_entropy_with_logits(output, target)")
    target = case.batch[1] if isinstance(case.batch, (tuple, list)) and len(case.batch) == 2 else None
    if kind == "target_range" and "out of bounds" in said and isinstance(target, torch.Tensor):
        if target.numel() and not target.is_floating_point() and int(target.min()) == 1:
            return Patch("batch = (batch[0], batch[1] - 1)")
    return None
