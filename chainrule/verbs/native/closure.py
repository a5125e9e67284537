"""Optimizers that ask for the loss several times in a step (L-BFGS): native loss and gradients, torch's own algorithm.

Line search and curvature updates are torch's code on a private twin of model and optimizer; every evaluation is one
call of compiled code.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch

from chainrule.errors import BackendError, UnsupportedOpError
from chainrule.frontends.torch import batch as convention
from chainrule.verbs.native.step import NativeStep


class ClosureEngine:
    """See :class:`chainrule.backends.engine.Engine`."""

    name = "native"

    def __init__(
        self, model: torch.nn.Module, loss: Any, objective: Any, optimizer: torch.optim.Optimizer, example: Any
    ) -> None:
        self.model, self.optimizer, self.example = model, optimizer, example
        self.twin = copy.deepcopy(model)
        mine = dict(zip(map(id, model.parameters()), self.twin.parameters(), strict=True))
        known = inspect.signature(type(optimizer)).parameters
        (group,) = optimizer.param_groups  # L-BFGS has one
        options = {k: v for k, v in group.items() if k in known and k != "params"}
        self.copied = type(optimizer)([mine[id(p)] for p in group["params"]], **options)
        self.step = NativeStep(self.twin, loss, None, objective)
        if any(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p and m.training for m in model.modules()):
            raise UnsupportedOpError("dropout under L-BFGS in native code", instead='backend="torch"')
        self.step.prepare(*(example if isinstance(example, tuple) else (example,)))
        self.draws, self.seed = False, 0  # a line search needs the same loss twice
        count = sum(p.numel() for p in model.parameters())
        self.reason = f"{count:,} parameters, {type(optimizer).__name__}: loss and gradients in one compiled call"

    def load(self) -> None:
        """The state of the torch objects into the twin."""
        self.twin.load_state_dict(self.model.state_dict())
        self.copied.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))

    def store(self) -> None:
        """The state of the twin into the torch objects."""
        with torch.no_grad():
            pairs = zip(self.model.state_dict().values(), self.twin.state_dict().values(), strict=True)
            for theirs, mine in pairs:
                theirs.copy_(mine)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(copy.deepcopy(self.copied.state_dict()))
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def run(self, arrays: tuple, order: np.ndarray | None, batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
        """Trains ``len(learning_rates)`` steps; see ``Engine.run``."""
        rates = np.asarray(learning_rates, dtype=np.float64)
        rates = np.broadcast_to(rates.reshape(len(rates), -1), (len(rates), len(self.copied.param_groups)))
        samples = len(arrays[0])
        numbers = torch.arange(samples) if order is None else torch.from_numpy(np.asarray(order, dtype=np.int64))
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= samples):
            raise BackendError("sample numbers outside of the data", given=f"{numbers.min()} to {numbers.max()}")
        losses = np.zeros(len(rates))
        for k, row in enumerate(rates):
            at = numbers[k * batch_size : (k + 1) * batch_size]
            if not len(at):
                raise BackendError("more steps than the order has batches", given=f"{len(rates)} steps")
            for group, rate in zip(self.copied.param_groups, row, strict=True):
                group["lr"] = float(rate)
            batch = convention.with_leaves(self.example, iter([a[at] for a in arrays]))
            given = batch if isinstance(batch, tuple) else (batch,)
            losses[k] = float(self.copied.step(lambda given=given: self.step(*given)))  # type: ignore[arg-type]
        return losses
