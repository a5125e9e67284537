"""The contract between ``fit`` and whatever runs its training steps.

An engine owns the inner loop alone: gather a batch, forward, backward, optimizer update, many steps per call. Epochs,
order of samples, learning-rate schedules, validation, saving and interruption are ``fit``'s. The torch objects are the
truth at every boundary: ``load`` reads them, ``store`` writes them back, so that training can go on in PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Engine(Protocol):
    """What runs training steps.

    Attributes:
        name: "native" or "torch". reason: why it was chosen or what it covers, one line.
    """

    name: str
    reason: str

    def load(self) -> None:
        """Reads parameters, buffers and optimizer state from the torch objects into private (packed) memory."""
        ...

    def store(self) -> None:
        """Writes parameters, buffers and optimizer state back, in torch's layout."""
        ...

    def run(self, arrays: tuple, order: np.ndarray | None, batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
        """Trains ``len(learning_rates)`` steps.

        Args:
            arrays: the whole data as tensors, samples first. order: int64 sample indices, consumed ``batch_size`` at a
            time (the last batch may be short); None is in sequence.
            batch_size: samples in a step. learning_rates: float64, one per step; with several parameter groups one row
            per step and one column per group.
        Returns:
            float64 loss of each step, before its update.
        """
        ...
