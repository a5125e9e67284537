"""Learning rates over time: torch's own schedulers, stepped when they are due.

Engines are told the learning rate of every step; the schedulers stay the truth, and are left as they would be after the
same training in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from chainrule.errors import ModelError

# Made to be stepped after every batch, as their documentation says; the others after every epoch.
_PER_STEP = (OneCycleLR, CyclicLR)


class Schedule:
    """The schedulers of a run.

    Args:
        schedulers: torch's own. optimizers: whose groups they drive.
        every: "epoch", "step", or "auto": after every step for OneCycleLR and CyclicLR, else after every epoch.

    Raises:
        ModelError: a scheduler is of another optimizer, or ``every`` is none of these.
    """

    def __init__(
        self, schedulers: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer], every: str = "auto"
    ) -> None:
        if every not in ("auto", "epoch", "step"):
            raise ModelError(f"scheduler_every={every!r}", required='"auto", "epoch" or "step"')
        for scheduler in schedulers:
            held = getattr(scheduler, "optimizer", None)
            if not hasattr(scheduler, "step") or (held is not None and all(held is not o for o in optimizers)):
                raise ModelError(
                    "the scheduler does not drive the optimizer",
                    given=f"a {type(scheduler).__name__}" + (" of another optimizer" if held is not None else ""),
                    required="a scheduler from torch.optim.lr_scheduler, made with this optimizer",
                    instead="scheduler=StepLR(optimizer, step_size=10)",
                )
        self.schedulers, self.optimizers = tuple(schedulers), tuple(optimizers)
        per_step = [every == "step" or (every == "auto" and isinstance(s, _PER_STEP)) for s in schedulers]
        self._per_step = [s for s, p in zip(schedulers, per_step, strict=True) if p]
        self._per_epoch = [s for s, p in zip(schedulers, per_step, strict=True) if not p]
        self.follows = False  # schedulers are stepped after a step, never ahead of it
        for scheduler in self._per_step:
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ModelError(
                    "ReduceLROnPlateau cannot be stepped after every batch: it follows the loss of an epoch",
                    instead='scheduler_every="epoch"',
                )

    @property
    def _groups(self) -> list[dict[str, Any]]:
        # Asked for anew each time: load_state_dict puts other dicts in their place.
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def moves_more_than_rates(self) -> bool:
        """Whether a scheduler that is due after every step may change momentum as well: then it cannot run ahead."""
        return self.follows or any(
            getattr(scheduler, "cycle_momentum", False) or type(scheduler).__module__ != OneCycleLR.__module__
            for scheduler in self._per_step
        )

    @property
    def needs_metric(self) -> bool:
        """Whether a scheduler follows the loss."""
        return any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in self._per_epoch)

    def hyperparameters(self) -> tuple[Any, ...]:
        """Everything in the optimizers' groups but learning rates and parameters: what an engine has compiled in."""
        return tuple(
            tuple((key, _plain(group[key])) for key in optimizer.defaults if key != "lr" and key in group)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
        )

    def rates(self) -> list[float]:
        """The learning rate of every group, now."""
        return [float(group["lr"]) for group in self._groups]

    def ahead(self, steps: int) -> np.ndarray:
        """The rates of the next steps: (steps,), or (steps, groups) where there are several groups.

        Schedulers that are due after every step are stepped so far, unless they move more than rates: these wait for
        ``end_steps``.
        """
        if not self._per_step or self.moves_more_than_rates:
            rates = self.rates()
            return np.full(steps, rates[0]) if len(rates) == 1 else np.tile(rates, (steps, 1))
        rows = []
        for _ in range(steps):
            rows.append(self.rates())
            self._step(self._per_step, None)
        table = np.asarray(rows, np.float64)
        return table[:, 0] if table.shape[1] == 1 else table

    def end_steps(self) -> None:
        """After a step that schedulers could not run ahead of."""
        if self._per_step and self.moves_more_than_rates:
            self._step(self._per_step, None)

    def end_epoch(self, metric: float | None) -> None:
        """Steps the schedulers that are due after an epoch; ``metric`` is what ReduceLROnPlateau follows."""
        self._step(self._per_epoch, metric)

    def _step(self, schedulers: list[Any], metric: float | None) -> None:
        for scheduler in schedulers:
            # torch warns when a scheduler moves before its optimizer did; an engine's steps count as the optimizer's.
            optimizer = getattr(scheduler, "optimizer", None)
            if optimizer is not None:
                optimizer._opt_called = True
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(metric)  # type: ignore[arg-type]
            else:
                scheduler.step()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value
