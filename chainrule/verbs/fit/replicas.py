"""The same training from several seeds: one copy of the model per seed, drawn anew, trained side by side."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from chainrule.errors import ModelError
from chainrule.verbs.fit.data import Arrays, Source
from chainrule.verbs.fit.result import FitResult

Part = tuple[Any, Any, Any, Any]  # (model, optimizers, schedulers, source)
Train = Callable[[Any, Any, Any, Any], FitResult]  # (model, optimizers, schedulers, source) -> what training did


def replicas(
    train: Train,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[Any],
    source: Source,
    seeds: Sequence[int],
    beside: Callable[[list[Part]], list[FitResult] | None] | None = None,
) -> FitResult:
    """Trains a copy per seed; the model, its optimizers and their schedules stay as they are.

    A copy's parameters are drawn by ``reset_parameters`` of its modules under ``torch.manual_seed(seed)``, which also
    decides the order of its samples. Replica k is what training alone from seed k gives; up to rounding where
    ``beside`` trains them in one loop, which it may decline to (None).

    Raises:
        ModelError: no seeds, or a module with parameters that cannot be drawn anew.
    """
    if not seeds or any(isinstance(s, bool) or not isinstance(s, int | np.integer) for s in seeds):
        raise ModelError(f"seeds={seeds!r}", required="whole numbers, at least one", instead="seeds=range(16)")
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)) and not hasattr(module, "reset_parameters"):
            raise ModelError(
                f"module {path or type(module).__name__!r} cannot be drawn anew",
                given=f"a {type(module).__name__} with parameters and without reset_parameters",
                required="modules that know how they are initialised",
                instead="def reset_parameters(self): ... in it",
            )
    together = beside(_parts(model, optimizers, schedulers, source, seeds)) if beside is not None else None
    if together is not None:
        return _summary(together)
    parts = _parts(model, optimizers, schedulers, source, seeds)

    def one(part: Any) -> FitResult:
        with torch.random.fork_rng():
            result = train(*part)
        object.__setattr__(result, "model", part[0])
        return result

    # Compiled code runs without the interpreter's lock; everything else takes turns, and draws from the global
    # generator, which threads share.
    if isinstance(source, Arrays) and not any(_draws(module) for module in model.modules()):
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) as pool:
            results = list(pool.map(one, parts))
    else:
        results = []
        for seed, part in zip(seeds, parts, strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(int(seed))
                results.append(one(part))
    return _summary(results)


def _parts(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[Any],
    source: Source,
    seeds: Sequence[int],
) -> list[Part]:
    """What each replica is trained with: copies, drawn anew."""
    parts: list[Part] = []
    for seed in seeds:
        own_model, own_optimizers, own_schedulers = copy.deepcopy((model, list(optimizers), list(schedulers)))
        for optimizer in own_optimizers:
            optimizer.state.clear()
            _known_to_schedulers(optimizer)
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            for module in own_model.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        parts.append((own_model, own_optimizers, own_schedulers, _seeded(source, int(seed))))
    return parts


def _known_to_schedulers(optimizer: torch.optim.Optimizer) -> None:
    """Marks ``step`` as a scheduler does when it is made, which a copy loses: else the scheduler warns."""
    step = optimizer.step

    def marked(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    marked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = marked  # type: ignore[method-assign]


def _seeded(source: Source, seed: int) -> Source:
    """The same data in an order that the seed decides."""
    source = copy.copy(source)
    if isinstance(source, Arrays):
        source.generator = torch.Generator().manual_seed(seed)
        if source.loader is not None:
            source.loader = _reseeded(source.loader, source.generator)
    elif isinstance(source.iterable, DataLoader):
        source.iterable = _reseeded(source.iterable, torch.Generator().manual_seed(seed))
    return source


def _reseeded(loader: DataLoader[Any], generator: torch.Generator) -> DataLoader[Any]:
    loader = copy.copy(loader)
    sampler = copy.copy(loader.sampler)
    batch_sampler = copy.copy(loader.batch_sampler)
    if hasattr(sampler, "generator"):
        sampler.generator = generator  # type: ignore[union-attr]
    if batch_sampler is not None and hasattr(batch_sampler, "sampler"):
        batch_sampler.sampler = sampler  # type: ignore[union-attr]
    for name, value in (("generator", generator), ("sampler", sampler), ("batch_sampler", batch_sampler)):
        object.__setattr__(loader, name, value)  # a DataLoader refuses to have its sampler replaced
    return loader


def _draws(module: nn.Module) -> bool:
    """Whether a module may draw random numbers while it runs."""
    return not type(module).__module__.startswith("torch.nn.modules") or bool(getattr(module, "p", 0.0))


def _summary(results: Sequence[FitResult]) -> FitResult:
    epochs = min(len(r.loss) for r in results)
    mean = np.mean([r.loss[:epochs] for r in results], axis=0).tolist()
    steps = [r.step_loss for r in results]
    count = min(map(len, steps))
    held = [r.validation for r in results if r.validation]
    return FitResult(
        loss=tuple(mean),
        step_loss=tuple(np.mean([s[:count] for s in steps], axis=0).tolist()),
        backend=results[0].backend,
        reason=results[0].reason,
        seconds=max(r.seconds for r in results),
        interrupted=any(r.interrupted for r in results),
        stopped=next((r.stopped for r in results if r.interrupted), ""),
        validation=tuple(np.mean([v[:epochs] for v in held], axis=0).tolist()) if held else (),
        learning_rate=results[0].learning_rate[:epochs],
        replicas=tuple(results),
    )
