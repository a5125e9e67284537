"""``fit``: train a model with the derived step, torch's own optimizer and schedule.

The training step is compiled from the traced loss: loss and all gradients without an autograd tape. One back end so
far, ``torch``; ``h.backend`` and ``h.reason`` say what ran and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from chainrule.backends.torch import Step
from chainrule.backends.torch import step as compile_traced
from chainrule.errors import (
    BackendError,
    ChainruleError,
    MissingExtraError,
    ModelError,
    StaleTraceError,
    UnsupportedOpError,
)
from chainrule.frontends.torch import trace_case
from chainrule.verbs.case import Case

_MAX_STALE = 8  # traces for other branches, after which the program branches on every batch

Callback = Callable[[int, float], None]


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        loss: mean loss of each epoch. step_loss: of each step. backend, reason: what ran, and why.
        seconds: wall time, tracing included. interrupted: stopped by the user before the last epoch.
    """

    loss: tuple[float, ...]
    step_loss: tuple[float, ...] = field(repr=False)
    backend: str
    reason: str
    seconds: float
    interrupted: bool = False

    def plot(self) -> Any:
        """A matplotlib figure of the loss over epochs.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise MissingExtraError("plot", "matplotlib", "report") from error
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.semilogy(range(1, len(self.loss) + 1), self.loss)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        return figure

    def __str__(self) -> str:
        if not self.loss:
            return "no epoch was completed"
        ends = f"loss {self.loss[0]:.4g} at epoch 1, {self.loss[-1]:.4g} at epoch {len(self.loss)}"
        stopped = ", interrupted" if self.interrupted else ""
        return f"{ends}; {len(self.step_loss)} steps in {self.seconds:.2f} s ({self.backend}: {self.reason}){stopped}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {"schema": "chainrule.fit/1"} | {
            k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()
        }


class CompiledStep:
    """``loss, grads = step(params, batch)`` for batches of any shape: traced once per shape.

    Args:
        model, loss, objective: as in :func:`chainrule.case`.
    """

    def __init__(self, model: Any, loss: Any = None, objective: Any = None) -> None:
        self.model, self.loss, self.objective = model, loss, objective
        self._steps: dict[Any, Step] = {}
        self._stale = 0

    def __call__(self, params: dict[str, torch.Tensor], batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss and the gradient of every parameter, by dotted name; buffers are updated as eager would.

        Raises:
            UnsupportedOpError: the program reads another value on every batch (it branches on them).
        """
        key = (_signature(batch), getattr(self.model, "training", None))
        if key in self._steps and self._steps[key].guarded:
            state = torch.get_rng_state()
            try:
                return self._steps[key](params, batch)
            except StaleTraceError as stale:
                torch.set_rng_state(state)
                self._stale += 1
                if self._stale > _MAX_STALE:
                    raise UnsupportedOpError(
                        f"{stale.what}, {_MAX_STALE} times",
                        required="a program that does the same ops on every batch",
                        instead="torch.where(condition, a, b) for a branch on values",
                    ) from None
                del self._steps[key]
        elif key in self._steps:
            return self._steps[key](params, batch)
        return self.traced(batch)(params, batch)

    def traced(self, batch: Any) -> Step:
        """The step for batches like this one.

        Raises:
            UnsupportedOpError: the forward pass changes attributes of the model, which a compiled step could not.
        """
        key = (_signature(batch), getattr(self.model, "training", None))
        if key not in self._steps:
            traced = trace_case(self.model, batch, self.loss, self.objective)
            if traced.mutations:
                raise UnsupportedOpError(
                    f"the forward pass changes {traced.mutations[0]}",
                    required="a model whose state is in its buffers",
                    instead="self.register_buffer(...), or eager training",
                )
            self._steps[key] = compile_traced(traced)
        return self._steps[key]


def _signature(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape), str(batch.dtype), str(batch.device)
    if isinstance(batch, dict):
        return tuple((k, _signature(v)) for k, v in sorted(batch.items()))
    if isinstance(batch, tuple | list):
        return tuple(_signature(v) for v in batch)
    return repr(batch)


def compile_step(
    model: torch.nn.Module,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    objective: Any = None,
) -> Callable[..., torch.Tensor]:
    """A training step for a loop of one's own: ``step(x, y) -> loss``.

    Each call computes loss and gradients with the derived step, puts the gradients into ``.grad`` and, where an
    optimizer is given, takes its step.

    Raises:
        ModelError, UnsupportedOpError: at the first call, if the model cannot be traced.
    """
    compiled = CompiledStep(model, loss, objective)

    def step(*batch: Any) -> torch.Tensor:
        given = batch[0] if len(batch) == 1 else batch
        value = _compute(compiled, model, given)
        if optimizer is not None:
            optimizer.step()
        return value

    return step


def _compute(compiled: CompiledStep, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    parameters = {n: p for n, p in model.named_parameters(remove_duplicate=False)}
    value, grads = compiled({n: p.detach() for n, p in parameters.items()}, batch)
    for name, parameter in parameters.items():
        if name in grads:
            parameter.grad = grads[name]
    return value


def fit(
    model: Any,
    data: Any = None,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    epochs: int | None = None,
    scheduler: Any = None,
    objective: Any = None,
    backend: str = "auto",
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Trains a model in place.

    Args:
        model: an ``nn.Module``, or a Case that knows its data, optimizer and epochs.
        data: a DataLoader (or any iterable that can be run through once per epoch) of batches, or one batch ``(X, y)``.
        loss, optimizer, scheduler: torch's own; the scheduler steps once per epoch.
        objective: ``(model, batch) -> scalar`` in place of a loss.
        epochs: passes over the data.
        backend: ``"auto"`` or ``"torch"``.
        callbacks: called with (epoch, mean loss) after each epoch.

    Returns:
        FitResult: ``h.loss``, ``h.step_loss``, ``h.backend``, ``h.reason``, ``h.plot()``. Interrupting it with Ctrl-C
        keeps the parameters of the last completed step and returns what was recorded.

    Raises:
        ModelError: something is missing, or the loss is not finite (the parameters are those before that step).
    """
    if isinstance(model, Case):
        case = model
        data = data if data is not None else case.data
        loss, objective = loss or case.loss, objective or case.objective
        optimizer, scheduler = optimizer or case.optimizer, scheduler or case.scheduler
        epochs, model = epochs or case.epochs, case.model
    missing = [n for n, v in (("data", data), ("optimizer", optimizer), ("epochs", epochs)) if v is None]
    if missing or (loss is None and objective is None):
        missing += ["loss"] if loss is None and objective is None else []
        raise ModelError(f"fit needs {', '.join(missing)}", instead="cr.fit(model, data, loss, optimizer, epochs=...)")
    if backend not in ("auto", "torch"):
        raise BackendError(f"unknown back end {backend!r}", required="auto or torch")
    assert optimizer is not None and epochs is not None
    reason = "the only back end so far" if backend == "auto" else "asked for"
    compiled = CompiledStep(model, loss, objective)
    epoch_loss: list[float] = []
    step_loss: list[float] = []
    start, interrupted = perf_counter(), False
    try:
        for epoch in range(epochs):
            before = len(step_loss)
            for batch in _batches(data):
                value = float(_compute(compiled, model, batch))
                if not np.isfinite(value):
                    raise ModelError(
                        f"the loss is {value} at step {len(step_loss) + 1} (epoch {epoch + 1})",
                        required="a finite loss; the parameters are those before this step",
                        instead="chainrule.diagnose(model, batch, loss, optimizer) names the cause",
                    )
                optimizer.step()
                step_loss.append(value)
            if len(step_loss) == before:
                raise ModelError("the data gave no batch", given=type(data).__name__, required="at least one batch")
            epoch_loss.append(float(np.mean(step_loss[before:])))
            if scheduler is not None:
                scheduler.step()
            for callback in callbacks:
                callback(epoch + 1, epoch_loss[-1])
    except KeyboardInterrupt:
        interrupted = True
    return FitResult(tuple(epoch_loss), tuple(step_loss), "torch", reason, perf_counter() - start, interrupted)


def _batches(data: Any) -> Iterable[Any]:
    if isinstance(data, tuple) and len(data) == 2:
        return [data]
    if isinstance(data, torch.Tensor | str) or not hasattr(data, "__iter__"):
        raise ChainruleError(
            "data is neither a batch nor an iterable of batches",
            given=type(data).__name__,
            required="a DataLoader, a list of (x, y), or one pair (X, y)",
        )
    return (tuple(b) if isinstance(b, list) else b for b in data)
