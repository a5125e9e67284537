"""Batches of one size for every epoch, so that one compiled step serves full batches, the short last one, and folds.

A short batch is filled up with a sample of weight zero; a weighted mean over the rest is what it would have been. Sizes
are rounded up as well, so that data sets of nearly the same size (folds, chunks of ``partial_fit``) share code.
"""

from __future__ import annotations

import numpy as np
import torch

_ROUND = 8  # samples that a batch is rounded up to, where it has many
_MANY = 64
_RATE = 1.5e10  # multiply-adds per second
_COMPILING = 0.05  # seconds that code for another batch size takes


def rounded(size: int, coarse: bool) -> int:
    """The batch size that code is made for. ``coarse``: for data that come in pieces of many sizes."""
    step = (16 if size < _MANY else 32) if coarse else _ROUND if size >= _MANY else 1
    return -(-size // step) * step


class Batches:
    """How the samples of an epoch become equal batches.

    Args:
        tensors: ``(X, y)`` or ``(X, y, weights)``. size: samples of a batch.
        work: multiply-adds of a run per sample and epoch, times its epochs. fills: whether the loss can be weighted.
        coarse: see :func:`rounded`.
    Attributes:
        tensors: what the engine is given. size: of its batches. counts: samples of every step of an epoch.
    """

    def __init__(
        self, tensors: tuple[torch.Tensor, ...], size: int, work: float, fills: bool, coarse: bool = False
    ) -> None:
        samples = len(tensors[0])
        steps = -(-samples // size)
        self.counts = np.full(steps, float(size))
        self.counts[-1] = samples - size * (steps - 1)
        self.tensors, self.size, self._given, self._samples = tensors, size, size, samples
        self._order: np.ndarray | None = None
        if not fills:
            return
        wide = rounded(size, coarse)
        missing = steps * size - samples
        if missing * work > _COMPILING * _RATE and missing > size // 5:
            return  # computing what does not count takes longer than compiling for it
        if wide == size and not missing:
            return
        x, y, *weights = tensors
        weight = weights[0] if weights else torch.ones(samples, dtype=x.dtype)
        self.tensors = (torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), torch.cat([weight, weight.new_zeros(1)]))
        self.size = wide
        self._order = np.full((steps, wide), samples, np.int64)
        self._in_order = np.arange(samples)

    def example(self) -> tuple[torch.Tensor, ...]:
        """The first batch."""
        order = self.order(None)
        if order is None:
            return tuple(t[: self.size] for t in self.tensors)
        first = torch.from_numpy(order[: self.size])
        return tuple(t[first] for t in self.tensors)

    def order(self, order: np.ndarray | None) -> np.ndarray | None:
        """Sample numbers of an epoch, batch by batch, from those of its samples (None: as they lie)."""
        if self._order is None:
            return order
        given = self._in_order if order is None else order
        full = self._samples // self._given
        self._order[:full, : self._given] = given[: full * self._given].reshape(full, -1)
        if full < len(self._order):
            self._order[-1, : self._samples - full * self._given] = given[full * self._given :]
        return self._order.ravel()
