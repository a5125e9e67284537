"""Which engine runs the steps, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.backends.engine import Engine
from chainrule.errors import BackendError, ChainruleError, ModelError
from chainrule.verbs.fit.data import Arrays, Source
from chainrule.verbs.fit.schedule import Schedule
from chainrule.verbs.fit.torch_engine import TorchEngine

BACKENDS = ("auto", "native", "torch")


@dataclass(eq=False)
class Choice:
    """Makes the engine of a run, once its first batch is there.

    Args:
        backend: "auto", "native" or "torch". The rest: what is trained, and how.
    """

    backend: str
    model: Any
    loss: Any
    objective: Any
    optimizers: Sequence[torch.optim.Optimizer]
    schedule: Schedule
    source: Source
    native: Callable[..., Engine] | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise BackendError(
                f"unknown back end {self.backend!r}", required=" or ".join(BACKENDS), instead='backend="auto"'
            )

    def __call__(self, batch: Any) -> Engine:
        """The engine for batches like this one.

        Raises:
            BackendError, UnsupportedOpError: the native one was asked for, and does not cover this training.
        """
        reason = "asked for"
        if self.backend != "torch":
            try:
                return self._native(batch)
            except ChainruleError as error:
                if self.backend == "native" or isinstance(error, ModelError):
                    raise
                reason = f"not native: {error.what}"
        rebuilt = self.source.rebuilt if isinstance(self.source, Arrays) else tuple
        return TorchEngine(self.model, self.loss, self.objective, self.optimizers, rebuilt, reason)

    def _native(self, batch: Any) -> Engine:
        if self.schedule.moves_more_than_rates:
            raise BackendError("the schedule changes momentum too", instead="cycle_momentum=False")
        if self.native is None:
            raise BackendError("there is no native engine")
        return self.native(batch)
