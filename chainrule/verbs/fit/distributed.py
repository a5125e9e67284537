"""``fit`` in several processes, through Accelerate: DDP, FSDP2, mixed precision, gradient accumulation.

Every process runs the same loop on its share of the batches. What they must agree on (a loss that is not finite,
Ctrl-C, when to save, whether a callback ends training) goes through one small reduction per step. Gradients are
autograd's there: DDP and FSDP do their part in hooks of it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from chainrule.errors import BackendError, MissingExtraError, ModelError
from chainrule.frontends.torch import loss_value
from chainrule.verbs.fit.data import Arrays, Batches, Source
from chainrule.verbs.fit.fingerprint import fingerprint
from chainrule.verbs.fit.loop import Loop
from chainrule.verbs.fit.saving import random_state, restore_random


def accelerator_for(given: Any) -> Any:
    """The accelerator of this run: the one that is given, a new one under ``torchrun``, else None.

    Raises:
        MissingExtraError: several processes without accelerate.
    """
    if given is not None:
        return given
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return None
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("training in several processes", "accelerate", "distributed")
    from accelerate import Accelerator

    return Accelerator()


@dataclass(eq=False)
class Prepared:
    """What Accelerate made of model, optimizers and data."""

    accelerator: Any
    model: Any
    optimizers: list[Any]
    source: Source
    # What was reduced last: gloo's threads may still hold it.
    recent: deque[torch.Tensor] = field(default_factory=lambda: deque(maxlen=8))

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        total = self.accelerator.reduce(tensor, "sum")
        self.recent.append(total)
        return total

    def settle(self, seconds: float = 5.0) -> None:
        """Waits until nobody else holds what was reduced.

        A thread of gloo's lets go of a tensor after the reduction has returned, and needs the interpreter for that:
        if the interpreter ends first, the process is aborted ("terminate called without an active exception").
        """
        end = monotonic() + seconds
        while self.recent and monotonic() < end:
            if self.recent[0]._use_count() <= 1:  # type: ignore[attr-defined]
                self.recent.popleft()
            else:
                sleep(0.001)
        self.recent.clear()


def prepare(accelerator: Any, model: Any, optimizers: Sequence[Any], source: Source, backend: str) -> Prepared:
    """Wraps and shards for this process.

    Raises:
        BackendError: the native back end was asked for. ModelError: data that cannot be shared out.
    """
    if backend == "native":
        raise BackendError("native code trains in one process", instead='backend="torch" under torchrun')
    loader = _loader(source)
    if _is_sharded(model):  # by torch's fully_shard, which leaves nothing to wrap
        prepared = accelerator.prepare(*optimizers, loader)
    else:
        model, *prepared = accelerator.prepare(model, *optimizers, loader)
    return Prepared(accelerator, model, list(prepared[:-1]), Batches(prepared[-1]))


def _is_sharded(model: Any) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _loader(source: Source) -> DataLoader[Any]:
    if isinstance(source, Batches) and isinstance(source.iterable, DataLoader):
        return source.iterable
    if isinstance(source, Arrays) and source.loader is not None:
        return source.loader
    if isinstance(source, Arrays) and source.structure is None:
        return DataLoader(
            TensorDataset(*source.tensors),
            source.batch_size,
            shuffle=source.shuffle,
            generator=source.generator,
        )
    raise ModelError(
        "these data cannot be shared out among processes",
        given="batches from an iterable" if isinstance(source, Batches) else "nested inputs",
        required="a DataLoader, or (X, y) of tensors",
    )


class AcceleratedEngine:
    """Steps through Accelerate; ``took_step`` says whether the last batch ended with an update.

    Args:
        prepared: see :func:`prepare`. stop, due: whether this process wants to end, or to save; after every batch
            ``stop_asked`` and ``save_asked`` say what all agreed on.
    """

    name = "torch"

    def __init__(
        self, prepared: Prepared, loss: Any, objective: Any, stop: Callable[[], bool], due: Callable[[], bool]
    ) -> None:
        self._prepared, self._loss, self._objective, self._stop, self._due = prepared, loss, objective, stop, due
        self.took_step, self.stop_asked, self.save_asked = True, False, False
        accelerator = prepared.accelerator
        kind = str(accelerator.distributed_type).rpartition(".")[2].lower().replace("multi_cpu", "ddp")
        kind = "fsdp2" if _is_sharded(prepared.model) else kind.replace("multi_gpu", "ddp")
        more = f", {accelerator.mixed_precision}" if accelerator.mixed_precision not in (None, "no") else ""
        steps = accelerator.gradient_accumulation_steps
        more += f", gradients of {steps} batches a step" if steps > 1 else ""
        self.reason = f"{accelerator.num_processes} processes through Accelerate ({kind}{more}), gradients by autograd"

    def load(self) -> None:
        """Nothing: the torch objects are what is trained."""

    def store(self) -> None:
        """Nothing: the torch objects are what is trained."""

    def run(self, arrays: tuple, order: Any, batch_size: int, learning_rates: Any) -> Any:
        """Batches come from the prepared loader, one by one."""
        raise BackendError("batches are shared out by the loader", instead="run_batch")

    def run_batch(self, batch: Any) -> float:
        """One batch of every process: the mean loss over them. No update if that is not finite."""
        prepared = self._prepared
        accelerator = prepared.accelerator
        with accelerator.accumulate(prepared.model):
            with accelerator.autocast(), torch.enable_grad():
                value = loss_value(prepared.model, batch, self._loss, self._objective)
            said = torch.stack([
                value.detach().float(),
                torch.tensor(float(self._stop()), device=value.device),
                torch.tensor(float(self._due() and accelerator.is_main_process), device=value.device),
            ])  # fmt: skip
            loss, stop, save = prepared.summed(said).tolist()
            loss /= accelerator.num_processes
            self.stop_asked, self.save_asked = bool(stop), bool(save)
            accelerator.backward(value)  # even of a loss that is not finite: all processes take part
            self.took_step = accelerator.sync_gradients
            if math.isfinite(loss):
                for optimizer in prepared.optimizers:
                    optimizer.step()
            for optimizer in prepared.optimizers:
                optimizer.zero_grad()
        return loss


def distribute(loop: Loop, prepared: Prepared, loss: Any, objective: Any) -> None:
    """Lets a loop run on what Accelerate prepared."""
    assert isinstance(loop, DistributedLoop)
    loop.prepared, loop.called = prepared, prepared.model
    loop.schedule.follows = True  # a batch may end without an update
    due = (lambda: loop.saver.due) if loop.saver is not None else (lambda: False)  # type: ignore[union-attr]
    engine = AcceleratedEngine(prepared, loss, objective, lambda: loop.interruptible.requested, due)
    loop.engine = _Only(engine)


@dataclass(eq=False)
class _Only:
    """In place of a choice: there is one engine."""

    engine: AcceleratedEngine
    seed: int | None = None
    misfits: int = 0

    def __call__(self, batch: Any) -> AcceleratedEngine:
        return self.engine


class DistributedLoop(Loop):
    """The loop of one of several processes; made ready by :func:`distribute`."""

    prepared: Prepared

    def run(self) -> None:
        """As in one process; afterwards the process may end at any time."""
        try:
            super().run()
        finally:
            self.prepared.settle()

    def _any(self, flag: bool) -> bool:
        device = self.prepared.accelerator.device
        return bool(self.prepared.summed(torch.tensor(float(flag), device=device)))

    def _look_up(self, inside: bool, total: int | None) -> None:
        assert isinstance(self.running, AcceleratedEngine)
        if self.running.stop_asked:
            self.interruptible.requested = True
        super()._look_up(inside, total)

    def _save_due(self) -> bool:
        return isinstance(self.running, AcceleratedEngine) and self.running.save_asked

    def _end_epoch(self, epoch: int, loss: float) -> None:
        super()._end_epoch(epoch, loss)
        if self._any(bool(self.stopped)) and not self.stopped:
            self.stopped = "stopped by a callback"

    # ---- saving: the whole state on the first process, the generators of every one -------------------------
    def _write(self, state: dict[str, Any]) -> None:
        assert self.saver is not None
        if self.prepared.accelerator.is_main_process:
            self.saver.save(state)
        self.prepared.accelerator.wait_for_everyone()

    def _objects(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizers = [getattr(o, "optimizer", o) for o in self.prepared.optimizers]
        model, state = get_state_dict(self.prepared.model, optimizers, options=whole)
        return {"model": model, "optimizers": state, "schedulers": [s.state_dict() for s in self.schedule.schedulers]}

    def _check(self, state: dict[str, Any]) -> None:
        """Nothing: whole states are taken apart, and held against each process's own, as they are restored."""

    def _restore(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        options = StateDictOptions(full_state_dict=True)
        optimizers = [getattr(o, "optimizer", o) for o in self.prepared.optimizers]
        try:
            set_state_dict(
                self.prepared.model,
                optimizers,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizers"],
                options=options,
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise ModelError(
                "the saved run is of another training",
                given=str(error).splitlines()[0],
                required="the model, optimizer and scheduler that the run was started with",
                instead="another save_dir",
            ) from None
        for scheduler, held in zip(self.schedule.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(held)

    def _fingerprint(self) -> dict[str, Any]:
        if self._data is None:
            self._data = fingerprint(self.source, shared=True)
        return self._data

    def _random(self) -> Any:
        from accelerate.utils import gather_object

        return gather_object([random_state(self.source.generators())])

    def _restore_random(self, state: Any) -> None:
        rank = self.prepared.accelerator.process_index
        if rank >= len(state):
            raise ModelError(
                "the saved run was of fewer processes",
                given=f"{self.prepared.accelerator.num_processes} processes",
                required=f"{len(state)} processes",
            )
        restore_random(state[rank], self.source.generators())
