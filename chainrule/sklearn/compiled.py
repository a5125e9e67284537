"""Compiled training steps of perceptrons, kept for the next fit of the same architecture.

What is kept is code with the tensors it works on, a few of them, oldest out first. Whoever uses one takes it out, so
two threads never share one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.backends.engine import Engine
from chainrule.backends.native import jit
from chainrule.sklearn.losses import Objective
from chainrule.sklearn.network import get_weights, set_weights
from chainrule.verbs.fit.choice import Choice
from chainrule.verbs.fit.data import Arrays
from chainrule.verbs.fit.schedule import Schedule
from chainrule.verbs.native import shared as _native_engines  # noqa: F401  all of it is there before the first fit

jit.start()  # with the package, so that a first fit need not wait for it

_KEPT = 16
_POOL: OrderedDict[Hashable, list[Compiled]] = OrderedDict()
_LOCK = threading.Lock()


@dataclass(eq=False)
class Compiled:
    """A module, its optimizer, and the engine that trains it."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    engine: Engine

    def load(self, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray], state: Any, count: int) -> None:
        """Starts from these weights and this state of the optimizer (None: one that has counted ``count`` steps)."""
        set_weights(self.module, coefs, intercepts)
        self.optimizer.state.clear()
        if state is not None:
            for parameter, held in zip(self.module.parameters(), state, strict=True):
                self.optimizer.state[parameter] = _copied(held)
        elif count:
            for parameter in self.module.parameters():
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(count)), **zeros}
        self.engine.load()

    def state(self) -> list[dict[str, Any]]:
        """The optimizer's state by parameter, copied (torch's ``state_dict`` imports its compiler: a second)."""
        return [_copied(self.optimizer.state.get(parameter, {})) for parameter in self.module.parameters()]

    def weights(self, dtype: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The weights as they are now, in scikit-learn's layout."""
        self.engine.store()
        return get_weights(self.module, dtype)


def _copied(state: Any) -> dict[str, Any]:
    return {name: held.clone() if isinstance(held, torch.Tensor) else held for name, held in state.items()}


def take(key: Hashable) -> Compiled | None:
    """A compiled step of this architecture that nobody uses."""
    with _LOCK:
        free = _POOL.get(key)
        return free.pop() if free else None


def give_back(key: Hashable, compiled: Compiled) -> None:
    """Keeps it for the next fit."""
    with _LOCK:
        _POOL.setdefault(key, []).append(compiled)
        _POOL.move_to_end(key)
        while sum(map(len, _POOL.values())) > _KEPT:
            oldest = next(iter(_POOL))
            if _POOL[oldest]:
                _POOL[oldest].pop()
            if not _POOL[oldest]:
                del _POOL[oldest]


def compile_training(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: tuple[torch.Tensor, ...],
    backend: str,
) -> Compiled:
    """The engine for batches like this one."""
    source = Arrays(batch, len(batch[0]), None)
    choice = Choice(backend, module, None, objective, [optimizer], Schedule([], [optimizer]), source, seed=0)
    return Compiled(module, optimizer, objective, choice(source.example()))
