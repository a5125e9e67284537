"""``fit``: train a model with torch's own objects, its steps run by the fastest engine that covers them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any, NoReturn

import numpy as np
import torch

from chainrule.errors import ModelError
from chainrule.verbs.case import Case
from chainrule.verbs.fit.choice import Choice
from chainrule.verbs.fit.data import Source, source_of
from chainrule.verbs.fit.distributed import DistributedLoop, accelerator_for, distribute, prepare
from chainrule.verbs.fit.interrupt import Interruptible
from chainrule.verbs.fit.loop import Callback, Loop
from chainrule.verbs.fit.progress import Progress
from chainrule.verbs.fit.replicas import replicas
from chainrule.verbs.fit.result import FitResult
from chainrule.verbs.fit.saving import Saver
from chainrule.verbs.fit.schedule import Schedule
from chainrule.verbs.fit.several import as_one
from chainrule.verbs.fit.side_by_side import is_tiny, side_by_side
from chainrule.verbs.fit.stopping import Best


def fit(
    model: Any,
    data: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    *,
    epochs: int | None = None,
    scheduler: Any = None,
    scheduler_every: str = "auto",
    objective: Any = None,
    validation: Any = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    patience: int | None = None,
    min_delta: float = 0.0,
    best_weights: bool = False,
    save_dir: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    resume: bool = False,
    seeds: Sequence[int] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    accelerator: Any = None,
    threads: int | None = None,
) -> FitResult:
    """Trains a model in place; parameters, buffers and optimizer state stay torch's, so training can go on there.

    Args:
        model: an ``nn.Module`` (or several, as tuple, list or dict, with an objective), or a Case that knows its data,
            optimizer and epochs. Its training mode is left as it is.
        data: a DataLoader, a list of batches, or one pair ``(X, y)`` of tensors or arrays. The samples come in the
            order in which the DataLoader would give them, drawn from the same generators.
        loss: torch's own, or any ``(output, target) -> scalar``, or ``"model"``. objective: ``(model, batch) ->
            scalar`` in its place, with several calls and derivatives inside if need be.
        optimizer: torch's own, or a list of them.
        epochs: passes over the data, those of a resumed run included.
        scheduler: torch's own, or a list. scheduler_every: "epoch", "step", or "auto": OneCycleLR and CyclicLR are
            stepped after every batch, all others after every epoch, ReduceLROnPlateau with the validation loss (the
            training loss without validation data).
        validation: data, as above, whose mean loss is taken after every epoch in evaluation mode.
        batch_size, shuffle, generator: for ``(X, y)``: shuffled batches of this size; one batch of everything if None.
        backend: "native" (compiled machine code), "torch", or "auto": native where it covers the training, else torch;
            ``h.reason`` says why.
        patience: ends after so many epochs without an improvement of more than ``min_delta``, in the validation loss
            if there is one, else the training loss. best_weights: leave the model with the weights of the best epoch.
        save_dir: where the state of the run is saved, at most every ``save_every`` seconds and at the end. resume: go
            on from what is there, bit for bit; start where nothing is.
        seeds: train a copy per seed, each drawn anew by ``reset_parameters``; ``h.replicas`` holds them, and the model
            stays as it is.
        callbacks: called with (epoch, mean loss) after each epoch; one that returns True ends training.
        progress: a bar on stderr; None is where that is a terminal.
        accelerator: an ``accelerate.Accelerator`` (DDP, FSDP2, mixed precision, gradient accumulation). Without one,
            a program under ``torchrun`` gets a plain one. Every process trains on its share of the batches.
        threads: that share a native step; the numbers do not depend on it, to the last bit. None: as many as the step
            is worth, at most ``torch.get_num_threads()``, and one while that is faster; with ``seeds``, one each.

    Returns:
        FitResult: ``h.loss``, ``h.step_loss``, ``h.validation``, ``h.backend``, ``h.reason``, ``h.plot()``. Ctrl-C
        ends training after the step it is in and returns the history so far; a second one does not wait.

    Raises:
        ModelError: something is missing or does not fit, or the loss is not finite (the parameters are those before
            that step). BackendError, UnsupportedOpError: with ``backend="native"``, what it does not cover.

    >>> import torch, chainrule as cr
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    >>> h = cr.fit(net, (x, x**2), torch.nn.MSELoss(), torch.optim.Adam(net.parameters(), 0.01), epochs=50)
    >>> len(h.loss), h.loss[-1] < h.loss[0]
    (50, True)
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
    if loss is not None and objective is not None:
        raise ModelError("both loss and objective are given", required="one of them")
    if not isinstance(epochs, int) or epochs < 0:
        raise ModelError(f"epochs={epochs!r}", required="a whole number of passes over the data")
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper shares its parameters; steps are compiled here
    given = model
    model, objective = as_one(model, objective)
    optimizers, schedulers = _listed(optimizer), _listed(scheduler)
    _check_optimizers(model, optimizers)
    source = source_of(data, batch_size, shuffle, generator)
    held = None if validation is None else source_of(validation)
    if resume and save_dir is None:
        raise ModelError("there is nothing to resume from", instead="save_dir=... as well")
    if seeds is not None and (save_dir is not None or callbacks):
        raise ModelError("seeds cannot be combined with save_dir or callbacks", instead="one fit per seed")

    def train(
        model: Any, optimizers: Any, schedulers: Any, source: Source, bar: Progress, prepared: Any = None
    ) -> FitResult:
        start = perf_counter()
        schedule = Schedule(schedulers, optimizers, scheduler_every)
        saver = Saver(save_dir, save_every) if save_dir is not None else None
        with Interruptible() as interruptible:
            loop = (Loop if prepared is None else DistributedLoop)(
                model=model,
                loss=loss,
                objective=objective,
                source=source,
                validation=held,
                engine=Choice(backend, model, loss, objective, optimizers, schedule, source, threads),
                schedule=schedule,
                epochs=epochs,
                best=Best(patience, min_delta, best_weights),
                saver=saver,
                progress=bar,
                interruptible=interruptible,
                callbacks=tuple(callbacks),
            )
            if prepared is not None:
                distribute(loop, prepared, loss, objective)
            state = saver.load(resume) if saver is not None else None
            if state is not None:
                loop.resume(state)
            elif saver is not None:
                saver.check(loop.state())
            try:
                loop.run()
            finally:
                bar.close()
        return result_of(loop, perf_counter() - start)

    accelerator = accelerator_for(accelerator)
    if accelerator is not None:
        if seeds is not None or (objective is not None and not isinstance(given, torch.nn.Module)):
            raise ModelError("seeds and several modules are for one process", instead="one module, under torchrun")
        return _distributed(accelerator, train, model, optimizers, schedulers, source, backend, epochs, progress)
    if seeds is not None:
        threads = 1 if threads is None else threads  # replicas have the cores
        seeds = list(seeds) if isinstance(seeds, Iterable) else _no_seeds(seeds)
        silent = Progress(epochs, shown=False)
        run = lambda m, o, s, d: train(m, o, s, d, silent)  # noqa: E731
        looked_at = held is not None or patience is not None or best_weights
        alone = looked_at or not is_tiny(model, optimizers, source, backend, len(seeds))
        beside = None if alone else lambda parts: side_by_side(parts, loss, objective, backend, epochs, scheduler_every)
        return replicas(run, model, optimizers, schedulers, source, seeds, beside)
    return train(model, optimizers, schedulers, source, Progress(epochs, progress))


def _distributed(
    accelerator: Any,
    train: Any,
    model: Any,
    optimizers: Any,
    schedulers: Any,
    source: Source,
    backend: str,
    epochs: int,
    progress: bool | None,
) -> FitResult:
    prepared = prepare(accelerator, model, optimizers, source, backend)
    line = Progress(epochs, progress if accelerator.is_main_process else False)
    return train(model, optimizers, schedulers, prepared.source, line, prepared)


def result_of(loop: Loop, seconds: float) -> FitResult:
    """What a run did."""
    engine = loop.running
    done = len(loop.epoch_loss)
    return FitResult(
        loss=tuple(loop.epoch_loss),
        step_loss=tuple(np.concatenate(loop.losses).tolist()) if loop.losses else (),
        backend=engine.name if engine is not None else "none",
        reason=engine.reason if engine is not None else "nothing was left to do",
        seconds=seconds,
        interrupted=loop.interrupted,
        stopped=loop.stopped,
        validation=tuple(loop.validation_loss),
        learning_rate=tuple(loop.learning_rate[:done]),
        best_epoch=loop.best.epoch,
        resumed=loop.resumed,
    )


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _no_seeds(given: Any) -> NoReturn:
    raise ModelError(
        "seeds is not a sequence of numbers",
        given=f"seeds={given!r}",
        required="whole numbers, one for each copy",
        instead=f"seeds=range({given})" if isinstance(given, int) and given > 0 else "seeds=range(16)",
    )


def _check_optimizers(model: Any, optimizers: Sequence[Any]) -> None:
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ModelError(
                "the optimizer is not one of torch's",
                given=type(optimizer).__name__,
                required="a torch.optim.Optimizer, or a list of them",
                instead="torch.optim.SGD(model.parameters(), lr=0.1)",
            )
    if not isinstance(model, torch.nn.Module):
        raise ModelError("the model is not a torch module", given=type(model).__name__, required="an nn.Module")
    own = {id(p) for p in model.parameters() if p.requires_grad}
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if not own & held:
        raise ModelError(
            "the optimizer updates none of the model's parameters",
            given=f"{len(held)} tensors in the optimizer, {len(own)} trainable parameters in the model",
            required="an optimizer made from this model's parameters",
            instead="torch.optim.SGD(model.parameters(), lr=0.1)",
        )
