"""What an optimizer's groups say about its steps."""

from __future__ import annotations

from typing import Any

import torch


def of_groups(optimizer: torch.optim.Optimizer, key: str, default: float = 0.0) -> list[float]:
    """One setting of every group."""
    return [float(g.get(key, default)) for g in optimizer.param_groups]


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The largest learning rate; of a schedule its start or peak."""
    return max(max(of_groups(optimizer, "lr")), max(of_groups(optimizer, "initial_lr")))


def is_adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Whether steps are divided by the gradient's own size (Adam, RMSprop, Adafactor, Adadelta)."""
    return any(
        "betas" in g or "beta2_decay" in g or "rho" in g or ("alpha" in g and "eps" in g)
        for g in optimizer.param_groups
    )


def maximizes(optimizer: Any) -> bool:
    """Whether an optimizer climbs."""
    return optimizer is not None and any(g.get("maximize") for g in optimizer.param_groups)
