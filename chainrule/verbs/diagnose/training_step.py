"""The gradients at the optimizer's step of the user's own training step, run twice and taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from chainrule.verbs.diagnose.subject import Subject


def stepped_gradients(
    subject: Subject, training_step: Callable[[], Any]
) -> tuple[dict[str, torch.Tensor] | None, dict[str, torch.Tensor] | None]:
    """Gradients at the first step, and those that were left from it before the second; None where there was no step.

    The weights are put back before the second call, so that a second step on the same batch has the same gradient:
    (gradients at the second step, gradients at the first).
    """
    seen: list[dict[str, torch.Tensor]] = []

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.append({n: p.grad.detach().clone() for n, p in subject.trainable.items() if p.grad is not None})

    handle = register_optimizer_step_pre_hook(hook)
    try:
        with subject.safely():
            start = [(p, p.detach().clone()) for p in subject.parameters.values()]
            for _ in range(2):
                training_step()
                with torch.no_grad():
                    for p, value in start:
                        p.copy_(value)
    finally:
        handle.remove()
    if not seen:
        return None, None
    return seen[-1], seen[0] if len(seen) > 1 else None
