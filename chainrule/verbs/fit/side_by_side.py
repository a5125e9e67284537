"""Replicas of a tiny network trained by one compiled loop, where nobody looks at them in between."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.verbs.fit.choice import Choice
from chainrule.verbs.fit.data import Arrays, Source
from chainrule.verbs.fit.interrupt import Interruptible
from chainrule.verbs.fit.replicas import Part
from chainrule.verbs.fit.result import FitResult
from chainrule.verbs.fit.schedule import Schedule

_TINY = 600  # parameters: vectors of wider layers are full by themselves, and stay in the first cache
_LANES = 8  # replicas in one loop
_PIECE = 0.1  # seconds of a call


def is_tiny(model: Any, optimizers: Sequence[Any], source: Source, backend: str, replicas: int) -> bool:
    """Whether one loop for several replicas is worth a try."""
    if backend == "torch" or not isinstance(source, Arrays) or len(optimizers) != 1 or replicas < _LANES // 2:
        return False
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters) <= _TINY and all(p.device.type == "cpu" for p in parameters)


def side_by_side(
    parts: Sequence[Part], loss: Any, objective: Any, backend: str, epochs: int, every: str
) -> list[FitResult] | None:
    """What training did for each part; None where parts made anew have to be trained one after the other."""
    results: list[FitResult] = []
    for first in range(0, len(parts), _LANES):
        found = _together(parts[first : first + _LANES], loss, objective, backend, epochs, every)
        if found is None:
            return None
        results += found
    return results


def _together(
    parts: Sequence[Part], loss: Any, objective: Any, backend: str, epochs: int, every: str
) -> list[FitResult] | None:
    start = perf_counter()
    schedules = [Schedule(schedulers, optimizers, every) for _, optimizers, schedulers, _ in parts]
    sources: list[Arrays] = [source for *_, source in parts]
    one = schedules[0]
    if one.needs_metric or one.moves_more_than_rates:
        return None
    try:
        Choice(backend, parts[0][0], loss, objective, parts[0][1], one, sources[0]).check()
        from chainrule.verbs.native.side_by_side import SideBySide

        # Vectors are full whatever the number of replicas: the last is repeated.
        spare = _LANES - len(parts)
        models, optimizers = [m for m, *_ in parts], [o[0] for _, o, *_ in parts]
        engine = SideBySide(
            models + models[-1:] * spare, loss, objective, optimizers + optimizers[-1:] * spare, sources[0].example()
        )
    except (ChainruleError, ModuleNotFoundError):
        return None  # what it is will be said by the engine of a single replica
    engine.load()
    kept = one.hyperparameters()
    losses: list[np.ndarray] = []
    learning_rates: list[list[float]] = [[] for _ in parts]
    stopped, seconds, done, size, steps = "", 0.0, 0, sources[0].batch_size, sources[0].steps
    with Interruptible() as interruptible:
        while done < epochs:
            count = min(epochs - done, max(1, int(_PIECE / seconds)) if seconds else 1)
            orders, rates = [], []
            for source, schedule, shown in zip(sources, schedules, learning_rates, strict=True):
                own_orders, own_rates = [], []
                ahead = schedule.ahead(steps).reshape(steps, -1)
                for k in range(count if source.whole_batches else 1):
                    if k and schedule.schedulers:
                        ahead = schedule.ahead(steps).reshape(steps, -1)
                    shown.append(float(ahead[0, 0]))
                    order = source.order()
                    own_orders.append(np.arange(source.samples) if order is None else order)
                    own_rates.append(ahead)
                    schedule.end_epoch(None)
                if schedule.hyperparameters() != kept:
                    return None
                orders.append(np.concatenate(own_orders))
                rates.append(np.concatenate(own_rates))
            columns = [*range(len(parts)), *[len(parts) - 1] * spare]
            begin = perf_counter()
            piece = engine.run(
                sources[0].tensors, np.stack(orders, 1)[:, columns], size, np.stack(rates, 2)[:, :, columns]
            )[:, : len(parts)]
            taken = len(piece) // steps
            seconds, done = (perf_counter() - begin) / taken, done + taken
            if not np.isfinite(piece).all():
                return None
            losses.append(piece)
            if interruptible.requested:
                stopped = "interrupted"
                break
    engine.store()
    whole = np.concatenate([*losses, np.zeros((0, len(parts)))])
    means = whole.reshape(done, steps, len(parts)).mean(1) if done else np.zeros((0, len(parts)))
    return [
        FitResult(
            loss=tuple(means[:, k].tolist()),
            step_loss=tuple(whole[:, k].tolist()),
            backend="native",
            reason=engine.reason,
            seconds=perf_counter() - start,
            interrupted=bool(stopped),
            stopped=stopped,
            learning_rate=tuple(learning_rates[k]),
            best_epoch=int(np.argmin(means[:, k])) + 1 if done else None,
            model=parts[k][0],
        )
        for k in range(len(parts))
    ]
