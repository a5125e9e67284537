"""The loop over epochs: what is the same whatever engine runs the steps.

An epoch's samples are drawn, its steps run in pieces that are short enough to be interrupted, and after it the
schedule moves, validation and callbacks run. The torch objects are brought up to date (``sync``) whenever somebody may
look at them: before validation, callbacks, saving and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch

from chainrule.backends.engine import Engine
from chainrule.errors import ModelError
from chainrule.frontends.torch import Surroundings, generator_states, restore_generators
from chainrule.frontends.torch.batch import leaves
from chainrule.verbs.fit.data import Arrays, Source
from chainrule.verbs.fit.evaluate import evaluate
from chainrule.verbs.fit.fingerprint import check_same_data, fingerprint
from chainrule.verbs.fit.interrupt import Interruptible
from chainrule.verbs.fit.progress import Progress
from chainrule.verbs.fit.saving import (
    Saver,
    check_objects,
    check_same_kinds,
    kinds,
    objects_state,
    random_state,
    restore_objects,
    restore_random,
)
from chainrule.verbs.fit.schedule import Schedule
from chainrule.verbs.fit.stopping import Best

_PIECE = 0.1  # seconds that a run of steps may take before Ctrl-C, saving and the progress bar are looked at
_SYNC = 1.0  # seconds of training that are run again, at most, to find the step at which a loss was not finite
_EARLY = "stopped early"  # which a resumed run stays; other ends were somebody's wish at that time
_FIRST_PIECE = 32  # steps, while nothing is known about their time

Callback = Callable[[int, float], Any]


class EngineChoice(Protocol):
    """Makes the engine of a run from its first batch; ``seed`` is that of its stream of random draws, if any.

    ``misfits`` counts the batches that an engine could not take.
    """

    seed: int | None
    misfits: int

    def __call__(self, batch: Any) -> Engine: ...


@dataclass(eq=False)
class Loop:
    """A training run.

    Args:
        model: one module. loss, objective: as everywhere. source, validation: the data.
        engine: makes the engine from the first batch; asked again when what it has compiled in has changed.
        schedule, best, saver, progress, interruptible, callbacks, epochs: see :func:`chainrule.fit`.
    """

    model: Any
    loss: Any
    objective: Any
    source: Source
    validation: Source | None
    engine: EngineChoice
    schedule: Schedule
    epochs: int
    best: Best
    saver: Saver | None
    progress: Progress
    interruptible: Interruptible
    callbacks: Sequence[Callback] = ()
    called: Any = None  # what is called in place of the model, where something wraps it
    running: Engine | None = field(default=None, init=False)
    epoch_loss: list[float] = field(default_factory=list, init=False)
    validation_loss: list[float] = field(default_factory=list, init=False)
    learning_rate: list[float] = field(default_factory=list, init=False)
    losses: list[np.ndarray] = field(default_factory=list, init=False)
    steps: int = field(default=0, init=False)
    stopped: str = field(default="", init=False)
    interrupted: bool = field(default=False, init=False)
    resumed: int = field(default=0, init=False)
    # Of the epoch that is running: steps done, the losses before them, and the generators when it began.
    _position: int = field(default=0, init=False)
    _before: int = field(default=0, init=False)
    _began: dict[str, Any] | None = field(default=None, init=False)
    _middle: dict[str, Any] | None = field(default=None, init=False)
    _seconds: float = field(default=0.0, init=False)
    _whole: bool = field(default=True, init=False)  # no step was interrupted halfway
    _compiled_in: tuple[Any, ...] = field(default=(), init=False)
    _looks: int | None = field(default=None, init=False)
    _data: dict[str, Any] | None = field(default=None, init=False)  # the fingerprint of the data at the start
    # Steps since the torch objects were brought up to date, to run them again if a loss is not finite.
    _since: list[tuple[Any, ...]] = field(default_factory=list, init=False)
    _surroundings: Surroundings | None = field(default=None, init=False)
    _synced: tuple[float, Any] = field(default=(0.0, None), init=False)

    # ---- the run -----------------------------------------------------------------------------------------
    def run(self) -> None:
        """Trains until the last epoch, an early end, or Ctrl-C; the torch objects are up to date afterwards."""
        self._compiled_in = self.schedule.hyperparameters()
        self._looks = self._read()
        try:
            while len(self.epoch_loss) < self.epochs and not self.stopped:
                together = self._together()
                if together > 1:
                    self._epochs(together)
                else:
                    self._epoch()
        except KeyboardInterrupt:
            self.interrupted, self.stopped = True, "interrupted"
        self.sync()
        if self.saver is not None and self.steps and self._whole:
            self.save()
        self.best.restore(self.model)

    def sync(self) -> None:
        """Brings the torch objects up to date."""
        if self.running is not None and self._since:
            self.running.store()
        self._mark()

    def _mark(self) -> None:
        self._since.clear()
        self._synced = (perf_counter(), generator_states())

    def _epoch(self) -> None:
        done = len(self.epoch_loss)
        if self._middle is not None:  # the saved run was in the middle of this epoch: draw its order again
            self._began = self._middle["began"]
            self._restore_random(self._began)
        elif self.saver is not None:
            self._began = self._random()
        if not self._position:
            self._before = len(self.losses)
            self.learning_rate.append(self.schedule.rates()[0])
        if isinstance(self.source, Arrays):
            self._steps_of(self.source)
        else:
            self._steps_through(self.source.batches())
        if not self._position:
            raise ModelError("the data gave no batch", required="at least one batch in every epoch")
        mean = float(np.concatenate(self.losses[self._before :]).mean())
        metric = mean
        if self.validation is not None:
            self.sync()
            metric = evaluate(self.called or self.model, self.validation, self.loss, self.objective)
            self.validation_loss.append(metric)
        if self.best.keep and self.best.improves(metric):
            self.sync()
        if self.best.see(done + 1, metric, self.model):
            self.stopped = f"{_EARLY}: no improvement in {self.best.patience} epochs"
        self.schedule.end_epoch(metric)
        self.epoch_loss.append(mean)
        self._position = 0
        # The epoch is complete: whatever ends the run from here on, a saved run begins with the next one.
        self._end_epoch(done + 1, mean)
        if self.saver is not None and self._save_due() and len(self.epoch_loss) < self.epochs:
            self.save()
        if self.progress.shown:
            self.progress.update(done + 1, mean, self.validation_loss[-1] if self.validation_loss else None)
        if self.callbacks or self.schedule.schedulers:
            self._renew()

    # ---- several epochs in one call ----------------------------------------------------------------------
    def _together(self) -> int:
        """How many of the next epochs nobody needs to look into: compiled code runs them in one call."""
        source, engine = self.source, self.running
        if engine is None or engine.name == "torch" or not isinstance(source, Arrays) or self._position:
            return 1
        if self.callbacks or self.validation is not None or self.best.patience is not None or self.best.keep:
            return 1
        if self.schedule.needs_metric or self.schedule.moves_more_than_rates or not source.whole_batches:
            return 1
        return min(self.epochs - len(self.epoch_loss), self._piece() // source.steps)

    def _epochs(self, count: int) -> None:
        source, engine = self.source, self.running
        assert isinstance(source, Arrays) and engine is not None
        orders, rates = [], []
        for _ in range(count):
            self.learning_rate.append(self.schedule.rates()[0])
            order = source.order()
            orders.append(np.arange(source.steps * source.batch_size) if order is None else order)
            rates.append(self.schedule.ahead(source.steps))
            self.schedule.end_epoch(None)
            if self.schedule.schedulers and self.schedule.hyperparameters() != self._compiled_in:
                break
        self._before = len(self.losses)
        self._run(engine, source.tensors, np.concatenate(orders), source.batch_size, np.concatenate(rates))
        self._position = 0
        for mean in self.losses[-1].reshape(len(orders), -1).mean(1).tolist():
            self.epoch_loss.append(mean)
            self.best.see(len(self.epoch_loss), mean)
        self._look_up(False, None)
        if self.saver is not None and self._save_due() and len(self.epoch_loss) < self.epochs:
            self.save()
        if self.progress.shown:
            self.progress.update(len(self.epoch_loss), self.epoch_loss[-1])
        if self.schedule.schedulers:
            self._renew()

    # ---- the steps of an epoch ---------------------------------------------------------------------------
    def _steps_of(self, source: Arrays) -> None:
        order = source.order()
        self._continue()
        size = source.batch_size
        total = -(-(source.samples if order is None else len(order)) // size)
        while self._position < total:
            engine = self.running or self._start(source.example())
            first = self._position
            count = min(total - first, self._piece())
            part = order
            if count < total:
                part = np.arange(source.samples) if order is None else order
                part = part[first * size : (first + count) * size]
            rates = self.schedule.ahead(count)
            self._run(engine, source.tensors, part, size, rates)
            self._look_up(first + count < total, total)

    def _steps_through(self, batches: Iterator[Any]) -> None:
        for _ in range(self._position):
            next(batches, None)
        self._continue()
        for batch in batches:
            engine = self.running or self._start(batch)
            tensors = tuple(tensor for _, tensor in leaves(batch))
            if any(t.ndim and not len(t) for t in tensors):
                raise ModelError("a batch without samples", given=f"batch {self._position + 1} of an epoch")
            if hasattr(engine, "takes") and not engine.takes(tensors):  # type: ignore[attr-defined]
                self.sync()
                self.engine.misfits += 1
                engine = self._start(batch)
            rates = self.schedule.ahead(1)
            if hasattr(engine, "run_batch"):
                self._run(engine, batch, None, None, rates)
            else:
                self._run(engine, tensors, None, len(tensors[0]), rates)
            self._look_up(True, getattr(self.source, "steps", None))

    def _continue(self) -> None:
        """After the order of a half-done epoch has been drawn again: the generators as they were in its middle."""
        if self._middle is not None:
            self._restore_random(self._middle["now"])
            self._middle = None

    def _run(self, engine: Engine, *arguments: Any) -> None:
        rates = arguments[-1]
        start = perf_counter()
        self._whole = False
        losses = _run(engine, arguments)
        self._whole = True
        self._seconds = (perf_counter() - start) / len(losses)
        if engine.name != "torch":  # which takes no step whose loss is not finite: nothing is run again
            self._since.append(arguments)
        if not np.isfinite(losses).all():
            self._not_finite(engine, losses)
        self.losses.append(losses)
        if getattr(engine, "took_step", True):
            self.schedule.end_steps()
        self.steps += len(rates)
        self._position += len(rates)

    def _piece(self) -> int:
        if self.schedule.moves_more_than_rates:
            return 1
        return _FIRST_PIECE if not self._seconds else max(1, int(_PIECE / self._seconds))

    def _look_up(self, inside: bool, total: int | None) -> None:
        """Between two runs of steps: is Ctrl-C asked for, is it time to save, does the bar move?"""
        if self.interruptible.requested:
            raise KeyboardInterrupt
        if perf_counter() - self._synced[0] > _SYNC:
            self.sync()
        if inside and self.saver is not None and self._save_due():
            self.save()
        if self.progress.shown and total and inside:
            done = len(self.epoch_loss)
            self.progress.update(done + self._position / total, float(self.losses[-1][-1]))

    def _not_finite(self, engine: Engine, losses: np.ndarray) -> None:
        """Leaves the torch objects as they were before the step whose loss is not finite, and raises."""
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        if engine.name != "torch":  # which does not take such a step
            restore_generators(self._synced[1])
            if hasattr(engine, "steps_before"):
                engine.steps_before = self.steps - sum(len(a[-1]) for a in self._since[:-1])  # type: ignore[attr-defined]
            engine.load()
            *whole, last = self._since
            for arguments in whole:
                _run(engine, arguments)
            if bad:
                *kept, size, rates = last
                kept[1] = None if kept[1] is None else kept[1][: bad * size]
                _run(engine, (*kept, size, rates[:bad]))
            engine.store()
        self._mark()
        raise ModelError(
            f"the loss is {losses[bad]} at step {self.steps + bad + 1} (epoch {len(self.epoch_loss) + 1})",
            required="a finite loss; the parameters are those before this step",
            instead="chainrule.diagnose(model, batch, loss, optimizer) names the cause",
        )

    def _read(self) -> int | None:
        """A number for what the program reads besides tensors' values, which callbacks may change."""
        if self.callbacks and self._surroundings is None:
            self._surroundings = Surroundings((self.model, self.loss, self.objective))
        return self._surroundings.now() if self._surroundings is not None else None

    # ---- the engine --------------------------------------------------------------------------------------
    def _start(self, batch: Any) -> Engine:
        self.running = self.engine(batch)
        self._load()
        self._mark()
        return self.running

    def _end_epoch(self, epoch: int, loss: float) -> None:
        if not self.callbacks:
            return
        self.sync()
        for callback in self.callbacks:
            if callback(epoch, loss) is True and not self.stopped:
                self.stopped = "stopped by a callback"
        if self.running is not None:  # what a callback wrote (through .data too) leaves no trace: read all of it
            self._load()

    def _load(self) -> None:
        """Reads the torch objects; a stream of random draws goes on after the steps that were taken."""
        assert self.running is not None
        if hasattr(self.running, "steps_before"):
            self.running.steps_before = self.steps  # type: ignore[attr-defined]
        self.running.load()

    def _renew(self) -> None:
        """Asks for another engine if a schedule or a callback changed what this one has compiled in."""
        looks = self._read()
        hyperparameters = self.schedule.hyperparameters()
        if looks == self._looks and hyperparameters == self._compiled_in:
            return
        if self.running is not None and (looks != self._looks or self.running.name != "torch"):
            self.sync()
            self.running = None
        self._looks, self._compiled_in = looks, hyperparameters

    # ---- saving ------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Writes the state of the run."""
        assert self.saver is not None
        self.sync()
        self._write(self.state())

    def _write(self, state: dict[str, Any]) -> None:
        assert self.saver is not None
        self.saver.save(state)

    def _save_due(self) -> bool:
        return self.saver is not None and self.saver.due

    def _objects(self) -> dict[str, Any]:
        return objects_state(self.model, self.schedule.optimizers, self.schedule.schedulers)

    def _kinds(self) -> dict[str, list[str]]:
        return kinds(self.schedule.optimizers, self.schedule.schedulers)

    def _check(self, state: dict[str, Any]) -> None:
        check_objects(state, self.model, self.schedule.optimizers, self.schedule.schedulers)

    def _restore(self, state: dict[str, Any]) -> None:
        restore_objects(state, self.model, self.schedule.optimizers, self.schedule.schedulers)

    def _fingerprint(self) -> dict[str, Any]:
        if self._data is None:
            self._data = fingerprint(self.source)
        return self._data

    def _random(self) -> Any:
        return random_state(self.source.generators())

    def _restore_random(self, state: Any) -> None:
        restore_random(state, self.source.generators())

    def state(self) -> dict[str, Any]:
        """Everything that decides what comes next, as data."""
        inside = self._position > 0
        return {
            **self._objects(),
            "kinds": self._kinds(),
            "data": self._fingerprint(),
            "random": self._random(),
            "began": self._began if inside else None,
            "position": self._position,
            "steps": self.steps,
            "epoch_loss": list(self.epoch_loss),
            "validation_loss": list(self.validation_loss),
            "learning_rate": list(self.learning_rate),
            "step_loss": torch.from_numpy(np.concatenate([*self.losses, np.zeros(0)])),
            "before": sum(map(len, self.losses[: self._before])),
            "best": self.best.state(),
            "stopped": self.stopped if self.stopped.startswith(_EARLY) else "",
            "stream": self.engine.seed,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from a saved run.

        Raises:
            ModelError: the saved run is of another training, or of other data.
        """
        check_same_kinds(state.get("kinds"), self._kinds())
        self._check(state)
        check_same_data(state.get("data"), self._fingerprint())
        self._restore(state)
        self._restore_random(state["random"])
        self.epoch_loss, self.validation_loss = list(state["epoch_loss"]), list(state["validation_loss"])
        self.learning_rate, self.steps = list(state["learning_rate"]), state["steps"]
        before, losses = state["before"], state["step_loss"].numpy()
        self.losses = [part for part in (losses[:before], losses[before:]) if len(part)]
        self._before = 1 if before else 0
        self._position, self.resumed = state["position"], len(self.epoch_loss)
        self.stopped = state["stopped"]
        self.best.set_state(state["best"])
        self.engine.seed = state["stream"]
        if state["position"]:
            self._middle = {"began": state["began"], "now": state["random"]}


def _run(engine: Engine, arguments: tuple[Any, ...]) -> np.ndarray:
    data, order, size, rates = arguments
    if size is None:
        return np.asarray([engine.run_batch(data)], np.float64)  # type: ignore[attr-defined]
    return engine.run(data, order, size, rates)
