"""When to stop before the last epoch, and which weights were the best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(eq=False)
class Best:
    """The lowest loss so far.

    Args:
        patience: epochs without improvement after which training ends; None never.
        min_delta: what counts as an improvement. keep: whether the weights of the best epoch are kept.
    """

    patience: int | None = None
    min_delta: float = 0.0
    keep: bool = False
    value: float = float("inf")
    epoch: int | None = None
    bar: float = float("inf")
    waited: int = 0
    weights: dict[str, torch.Tensor] | None = field(default=None, repr=False)

    def improves(self, value: float) -> bool:
        """Whether an epoch with this loss would be the best so far."""
        return value < self.value

    def see(self, epoch: int, value: float, model: Any = None) -> bool:
        """Takes note of an epoch (from 1); true if training should end."""
        if self.improves(value):
            self.value, self.epoch = value, epoch
            if self.keep:
                self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        if value < self.bar - self.min_delta:
            self.bar, self.waited = value, 0
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def restore(self, model: Any) -> None:
        """Puts the best weights back into the model."""
        if self.weights is not None:
            model.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """As data, for a saved run."""
        held = ("value", "epoch", "bar", "waited", "weights")
        return {name: getattr(self, name) for name in held}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a saved run."""
        for name, value in state.items():
            setattr(self, name, value)
