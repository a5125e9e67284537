"""The engine that runs the derived step in torch and calls the optimizer's own ``step``.

It works on the torch objects themselves, so that there is nothing to load or to store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch import Trace, loss_value
from chainrule.verbs.fit.step import CompiledStep, wants_closure


class TorchEngine:
    """Trains with loss and gradients from the derived step (no autograd tape) and torch's own optimizers.

    A program that cannot be traced is run as it is, its gradients by autograd; ``reason`` says so.

    Args:
        model, loss, objective: as in :func:`chainrule.case`. optimizers: each takes its step, in order.
        rebuilt: puts a tuple of gathered tensors into the structure of a batch. reason: why this engine.
    """

    name = "torch"

    def __init__(
        self,
        model: Any,
        loss: Any,
        objective: Any,
        optimizers: Sequence[torch.optim.Optimizer],
        rebuilt: Callable[[Sequence[torch.Tensor]], Any] = tuple,
        reason: str = "",
    ) -> None:
        self.reason = reason
        self._program = model, loss, objective
        self._compiled = CompiledStep(model, loss, objective, _refuse_outside)
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        if isinstance(loss, torch.nn.Module):
            self._parameters |= {f"loss.{name}": p for name, p in loss.named_parameters(remove_duplicate=False)}
        self._tape = False
        self._optimizers = [(optimizer, wants_closure(optimizer)) for optimizer in optimizers]
        self._rebuilt = rebuilt

    def load(self) -> None:
        """Nothing: the torch objects are what is trained."""

    def store(self) -> None:
        """Nothing: the torch objects are what is trained."""

    def run(self, arrays: tuple, order: np.ndarray | None, batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
        """Trains ``len(learning_rates)`` steps; see :class:`chainrule.backends.engine.Engine`.

        A loss that is not finite ends it: the loss is the last one returned, and its step is not taken.
        """
        indices = None if order is None else torch.from_numpy(order)
        groups = [group for optimizer, _ in self._optimizers for group in optimizer.param_groups]
        before = [group["lr"] for group in groups]
        losses: list[float] = []
        try:
            for k, rates in enumerate(learning_rates):
                part = slice(k * batch_size, (k + 1) * batch_size)
                rows = part if indices is None else indices[part]
                _set(groups, rates)
                losses.append(self.run_batch(self._rebuilt([array[rows] for array in arrays])))
                if not math.isfinite(losses[-1]):
                    break
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate
        return np.asarray(losses, np.float64)

    def run_batch(self, batch: Any) -> float:
        """One step at the learning rates that the optimizers have; not taken if the loss is not finite."""
        first: float | None = None
        for optimizer, closure in self._optimizers:
            if closure:
                value = self._closed_step(optimizer, batch)
                first = value if first is None else first
                if not math.isfinite(value):
                    return first
        if first is None:
            first = self._gradients(batch)
            if not math.isfinite(first):
                return first
        for optimizer, closure in self._optimizers:
            if not closure:
                optimizer.step()
        return first

    def _closed_step(self, optimizer: torch.optim.Optimizer, batch: Any) -> float:
        values: list[float] = []

        def closure() -> float:
            values.append(self._gradients(batch))
            if len(values) == 1 and not math.isfinite(values[0]):
                raise _NotFinite
            return values[-1]

        try:
            optimizer.step(closure)
        except _NotFinite:
            pass
        return values[0]

    def _gradients(self, batch: Any) -> float:
        """The loss; the gradients are in ``.grad``, and None where there is none."""
        if self._tape:
            return self._recorded(batch)
        try:
            value, grads = self._compiled({n: p.detach() for n, p in self._parameters.items()}, batch)
        except UnsupportedOpError as error:
            self._tape = True
            self.reason += f"; gradients by autograd, because the program cannot be traced: {error.what}"
            return self._recorded(batch)
        for name, parameter in self._parameters.items():
            parameter.grad = grads.get(name)
        return float(value)

    def _recorded(self, batch: Any) -> float:
        for optimizer, _ in self._optimizers:
            optimizer.zero_grad()
        for parameter in self._parameters.values():
            parameter.grad = None
        with torch.enable_grad():
            value = loss_value(self._program[0], batch, *self._program[1:])
            value.backward()
        return float(value.detach())


def _set(groups: list[dict[str, Any]], rates: Any) -> None:
    """Gives every group its learning rate; tensors stay tensors."""
    for group, rate in zip(groups, np.broadcast_to(rates, len(groups)).tolist(), strict=True):
        if isinstance(group["lr"], torch.Tensor):
            if float(group["lr"]) != rate:
                group["lr"] = torch.full_like(group["lr"], rate)
        elif group["lr"] != rate:
            group["lr"] = rate


class _NotFinite(Exception):
    """The loss at the start of a step is not finite."""


def _refuse_outside(traced: Trace) -> None:
    """A derived gradient is that of the model's parameters: other tensors that are trained need a tape."""
    outside = [name for name, leaf in traced.captured.items() if traced.values[leaf].requires_grad]
    if outside:
        raise UnsupportedOpError(f"{outside[0]!r} is trained and not a parameter of the model")
