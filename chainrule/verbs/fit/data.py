"""What is trained on, in the order in which a DataLoader would give it.

    Arrays    whole tensors in memory and, for each epoch, the indices of its samples: an engine gathers the batches
    Batches   anything else that can be run through once per epoch: the batches as they come

A DataLoader over a ``TensorDataset`` becomes Arrays: its sampler is asked for indices exactly as the loader would ask
it, draw for draw from the same generators, so the samples are the same and so is every later draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from chainrule.errors import ModelError
from chainrule.frontends.torch.batch import describe, leaves, with_leaves


@dataclass(eq=False)
class Arrays:
    """Data in memory.

    Attributes:
        tensors: samples first, all equally many. batch_size: samples in a step; the last of an epoch may be short.
        structure: how a batch nests its tensors; None is a tuple of them.
        loader: whose order is followed; without it the samples come in sequence, or shuffled by ``generator``.
        rows: indices into ``tensors`` of a Subset, in its order.
    """

    tensors: tuple[torch.Tensor, ...]
    batch_size: int
    structure: Any
    loader: DataLoader[Any] | None = None
    rows: np.ndarray | None = None
    shuffle: bool = False
    generator: torch.Generator | None = None
    _workers_started: bool = field(default=False, init=False)

    @property
    def samples(self) -> int:
        """Samples in the data, before a sampler or ``drop_last`` leaves some out."""
        return len(self.tensors[0]) if self.rows is None else len(self.rows)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.samples // self.batch_size) if self.loader is None else len(self.loader)

    @property
    def whole_batches(self) -> bool:
        """Whether no batch of an epoch is short."""
        drops = self.loader is not None and self.loader.drop_last
        samples = self.samples if self.loader is None else len(self.loader.sampler)  # type: ignore[arg-type]
        return drops or samples % self.batch_size == 0

    def order(self) -> np.ndarray | None:
        """The indices of the next epoch's samples; None is in sequence. Draws what the loader would draw."""
        if self.loader is None:
            if not self.shuffle:
                return None
            return torch.randperm(self.samples, generator=self.generator).numpy()
        if not (self.loader.persistent_workers and self._workers_started):
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)  # the workers' seed
            self._workers_started = True
        order = _indices(self.loader.sampler)
        if order is not None and self.loader.drop_last:
            order = order[: len(order) // self.batch_size * self.batch_size]
        elif order is None and self.loader.drop_last and self.samples % self.batch_size:
            order = np.arange(self.samples // self.batch_size * self.batch_size)
        if self.rows is not None:
            order = self.rows if order is None else self.rows[order]
        return order

    def batch(self, indices: Any) -> Any:
        """The batch of these samples (indices or a slice)."""
        return self.rebuilt([tensor[indices] for tensor in self.tensors])

    def rebuilt(self, tensors: Sequence[torch.Tensor]) -> Any:
        """A batch of these tensors, in the structure that the model is called with."""
        return tuple(tensors) if self.structure is None else with_leaves(self.structure, iter(tensors))

    def example(self) -> Any:
        """A batch like those of training; nothing is drawn."""
        rows = slice(0, self.batch_size) if self.rows is None else self.rows[: self.batch_size]
        return self.batch(rows)

    def batches(self) -> Iterator[Any]:
        """The batches of the next epoch."""
        order = self.order()
        if order is None:
            for start in range(0, self.samples, self.batch_size):
                yield self.batch(slice(start, start + self.batch_size))
            return
        indices = torch.from_numpy(order)
        for start in range(0, len(order), self.batch_size):
            yield self.batch(indices[start : start + self.batch_size])

    def generators(self) -> list[torch.Generator]:
        """What order is drawn from, besides the global generator."""
        return _generators(self.loader, self.generator)


@dataclass(eq=False)
class Batches:
    """Batches as an iterable gives them, one pass per epoch."""

    iterable: Any
    single: bool = False

    @property
    def steps(self) -> int | None:
        """Steps in an epoch, where the iterable knows."""
        try:
            return len(self.iterable)
        except TypeError:
            return None

    def batches(self) -> Iterator[Any]:
        """The batches of the next epoch; lists (what a DataLoader collates to) become tuples."""
        for batch in self.iterable:
            yield tuple(batch) if type(batch) is list else batch

    def generators(self) -> list[torch.Generator]:
        """What order is drawn from, besides the global generator."""
        return _generators(self.iterable if isinstance(self.iterable, DataLoader) else None, None)


Source = Arrays | Batches


def source_of(
    data: Any, batch_size: int | None = None, shuffle: bool = True, generator: torch.Generator | None = None
) -> Source:
    """Data in any of the accepted forms.

    Args:
        data: a DataLoader, a list (or other iterable) of batches, or one pair ``(X, y)`` of tensors or arrays; an
            objective may take more than two.
        batch_size: for a pair: samples in a step, shuffled in every epoch; all of them if None, in sequence.

    Raises:
        ModelError: it is none of these, or it is empty.
    """
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, tuple) and _is_data(data):
        return _of_pair(data, batch_size, shuffle, generator)
    if isinstance(data, torch.Tensor | str | np.ndarray) or not hasattr(data, "__iter__"):
        raise ModelError(
            "data is neither a batch nor an iterable of batches",
            given=describe(data),
            required="a DataLoader, a list of (x, y), or one pair (X, y)",
        )
    if hasattr(data, "__next__"):
        raise ModelError(
            "the data can be run through only once",
            given=type(data).__name__,
            required="an iterable that starts again in every epoch",
            instead="list(data), or a DataLoader",
        )
    if batch_size is not None:
        raise ModelError(
            "batch_size is for data given as one pair (X, y)",
            given=f"batch_size={batch_size} with a {type(data).__name__}",
            instead="batches of that size, or (X, y)",
        )
    return Batches(data)


def _is_data(value: tuple[Any, ...]) -> bool:
    """Whether a tuple is the data themselves, ``(X, y)`` or ``(X, y, weights)``, and not several batches."""
    if len(value) == 2:
        return not all(map(_is_batch, value))
    return len(value) > 2 and all(isinstance(part, torch.Tensor | np.ndarray) for part in value)


def _is_batch(value: Any) -> bool:
    """Whether it is itself a pair of tensors: a tuple of two such is a sequence of two batches."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, torch.Tensor) for v in value)


def _of_pair(data: Any, batch_size: int | None, shuffle: bool, generator: torch.Generator | None) -> Source:
    data = tuple(_as_tensors(part) for part in data)
    tensors = tuple(tensor for _, tensor in leaves(data))
    if not tensors:
        raise ModelError("the data holds no tensor", given=describe(data), required="(X, y) of tensors or arrays")
    if any(not t.dim() or len(t) != len(tensors[0]) for t in tensors):
        if batch_size is not None:
            raise ModelError(
                "the data cannot be cut into batches",
                given=describe(data),
                required="tensors with the samples in their first dimension, equally many",
                instead="batch_size=None for one batch as it is",
            )
        return Batches([data], single=True)
    if not len(tensors[0]):
        raise ModelError("the data is empty", given=describe(data), required="at least one sample")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ModelError(f"batch_size={batch_size!r}", required="a whole number of samples, at least 1")
    size = min(batch_size or len(tensors[0]), len(tensors[0]))
    structure = None if all(isinstance(part, torch.Tensor) for part in data) else data
    return Arrays(tensors, size, structure, shuffle=batch_size is not None and shuffle, generator=generator)


def _as_tensors(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(part))
    if isinstance(part, dict):
        return {key: _as_tensors(value) for key, value in part.items()}
    return tuple(_as_tensors(value) for value in part) if type(part) is tuple else part


def _of_loader(loader: DataLoader[Any]) -> Source:
    """Arrays where the loader does nothing but cut tensors in memory, else its batches."""
    dataset, rows = loader.dataset, None
    if type(dataset) is Subset:
        dataset, rows = dataset.dataset, np.asarray(dataset.indices, np.int64)
    plain = (
        type(loader) is DataLoader
        and type(dataset) is TensorDataset
        and loader.collate_fn is default_collate
        and type(loader.batch_sampler) is BatchSampler
        and isinstance(loader.sampler, Sampler)
        and loader.batch_size is not None
        and not (loader.persistent_workers and loader._iterator is not None)
    )
    if not plain:
        return Batches(loader)
    tensors: tuple[torch.Tensor, ...] = dataset.tensors  # type: ignore[attr-defined]
    count = len(tensors[0]) if rows is None else len(rows)
    if not count:
        raise ModelError("the data is empty", given=f"a {type(dataset).__name__} of no samples")
    return Arrays(tensors, int(loader.batch_size or 1), None, loader, rows)


def _indices(sampler: Any) -> np.ndarray | None:
    """What torch's two standard samplers give, without the way through lists; None is in sequence."""
    if type(sampler) is SequentialSampler:
        return None
    if type(sampler) is not RandomSampler:
        return np.fromiter(sampler, np.int64)
    size, generator = len(sampler.data_source), sampler.generator
    if sampler.replacement or sampler.num_samples != size:
        return np.fromiter(sampler, np.int64)
    if generator is None:  # as RandomSampler does: a generator of its own, seeded from the global one
        own = torch.Generator()
        own.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        return torch.randperm(size, generator=own).numpy()
    order = torch.randperm(size, generator=generator).numpy()
    torch.randperm(size, generator=generator)  # RandomSampler's own end: the first `num_samples % size` of another one
    return order


def _generators(loader: DataLoader[Any] | None, own: torch.Generator | None) -> list[torch.Generator]:
    found = [own]
    if loader is not None:
        inner = getattr(loader.batch_sampler, "sampler", None)
        found += [getattr(held, "generator", None) for held in (loader, loader.sampler, inner)]
    return list(dict.fromkeys(g for g in found if isinstance(g, torch.Generator)))
