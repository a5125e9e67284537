"""Which engine runs the steps, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from chainrule.backends.engine import Engine
from chainrule.errors import BackendError, ChainruleError, ModelError
from chainrule.verbs.fit.data import Arrays, Source
from chainrule.verbs.fit.schedule import Schedule
from chainrule.verbs.fit.step import check_backend, check_threads
from chainrule.verbs.fit.torch_engine import TorchEngine

_MISFITS = 6  # batches of other shapes that native code is compiled again for in one run


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
    threads: int | None = None  # of a native step
    seed: int | None = None  # of the native stream of random draws, where there is one
    misfits: int = field(default=0, init=False)  # batches that the running engine could not take

    def __post_init__(self) -> None:
        check_backend(self.backend)
        check_threads(self.threads, self.backend)

    def __call__(self, batch: Any) -> Engine:
        """The engine for batches like this one.

        Raises:
            BackendError, UnsupportedOpError: the native one was asked for, and does not cover this training.
        """
        reason = "asked for"
        if self.backend == "auto" and self.misfits > _MISFITS:
            reason = "not native: batches of many shapes"
        elif self.backend != "torch":
            try:
                return self._native(batch)
            except ChainruleError as error:
                if self.backend == "native" or isinstance(error, ModelError):
                    raise
                reason = f"not native: {error.what}"
        rebuilt = self.source.rebuilt if isinstance(self.source, Arrays) else tuple
        return TorchEngine(self.model, self.loss, self.objective, self.optimizers, rebuilt, reason)

    def check(self) -> torch.optim.Optimizer:
        """The one optimizer; raises BackendError where native code cannot do what is wanted around a step."""
        if self.schedule.moves_more_than_rates:
            raise BackendError("the schedule changes momentum too", instead="cycle_momentum=False")
        if len(self.optimizers) != 1:
            raise BackendError(
                f"{len(self.optimizers)} optimizers", required="one optimizer", instead='backend="torch"'
            )
        (optimizer,) = self.optimizers
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            raise BackendError("the optimizer has hooks, which native code does not call", instead='backend="torch"')
        own = {id(parameter) for parameter in self.model.parameters()}
        if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
            raise BackendError(
                "the optimizer trains tensors that are not parameters of the model", instead='backend="torch"'
            )
        return optimizer

    def _native(self, batch: Any) -> Engine:
        optimizer = self.check()
        # llvmlite is loaded where it is needed, and may be missing where there is no wheel of it
        try:
            from chainrule.verbs.native import native_engine
        except ModuleNotFoundError as error:
            raise BackendError(f"{error.name} is not installed", instead='pip install "chainrule[torch]"') from None
        small = self.backend == "auto"
        engine = native_engine(
            self.model, batch, self.loss, optimizer, objective=self.objective, small=small, threads=self.threads
        )
        if engine.draws:
            if self.seed is None:  # so that torch.manual_seed decides the masks, and two runs have different ones
                self.seed = int(torch.randint(2**31 - 1, ()))
            engine.seed = self.seed
        return engine
