"""What ``fit`` drives: an engine trains a model many steps per call, whatever runs inside.

Implemented by ``verbs.native`` and by the torch engine of ``verbs.fit``. Neither changes the user's objects
before :meth:`Engine.store`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Engine(Protocol):
    """A compiled training step with its own copy of the state.

    Attributes:
        name: ``"native"`` or ``"torch"``. reason: why it was chosen, or what it covers, in one line.
    """

    name: str
    reason: str

    def load(self) -> None:
        """Reads parameters, buffers and optimizer state from the torch objects into private memory."""
        ...

    def store(self) -> None:
        """Writes them back, in torch's layout."""
        ...

    def run(self, arrays: tuple, order: np.ndarray | None, batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
        """Trains ``len(learning_rates)`` steps.

        Args:
            arrays: the full data as torch tensors, samples first.
            order: int64 sample numbers, consumed ``batch_size`` at a time, the last batch may be short; None: in
                sequence.
            learning_rates: one per step, or one row per step with a column for each parameter group.
        Returns:
            The loss of each step, float64.
        """
        ...
