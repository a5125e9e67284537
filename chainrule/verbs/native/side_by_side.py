"""Replicas of one small model trained by one compiled loop, each in a lane of its vectors.

Every replica is an engine of its own where memory is read and written; the steps are one call for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chainrule.backends.native import jit
from chainrule.errors import BackendError, UnsupportedOpError
from chainrule.frontends.torch import batch as convention
from chainrule.verbs.native import verify
from chainrule.verbs.native.engine import NativeEngine


class SideBySide:
    """Trains ``models`` with ``optimizers``, which are alike, on the same data.

    Args:
        loss, objective, example: as for :func:`chainrule.verbs.native.native_engine`.
    Raises:
        UnsupportedOpError: an op that native code cannot do side by side.
    """

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        loss: Any,
        objective: Any,
        optimizers: Sequence[torch.optim.Optimizer],
        example: Any,
    ) -> None:
        count = len(models)
        first = NativeEngine(models[0], loss, objective, optimizers[0], example, 0, beside=(count, None))
        if first.draws:
            raise UnsupportedOpError("random draws of replicas side by side", instead="one after the other")
        rest = [
            NativeEngine(model, loss, objective, optimizer, example, 0, beside=(count, first.compiled))
            for model, optimizer in zip(models[1:], optimizers[1:], strict=True)
        ]
        self.lanes = [first, *rest]
        for k, lane in enumerate(self.lanes):
            lane.replica, lane._arena = k, first._memory()
        self.size = first.size
        self.reason = f"{first.reason}, {count} replicas side by side in its vectors"
        if first.case is not None:
            self._verify()

    def load(self) -> None:
        """Parameters, buffers and optimizer state of all replicas from the torch objects."""
        self.lanes[0]._memory()[:] = 0
        for lane in self.lanes:
            lane.load_leaves()

    def store(self) -> None:
        """And back."""
        for lane in self.lanes:
            lane.store()

    def run(self, arrays: tuple, orders: np.ndarray, size: int, rates: np.ndarray) -> np.ndarray:
        """Losses, (steps, replicas).

        Args:
            arrays: the full data as torch tensors. orders: sample numbers, (steps * size, replicas); the last batch
                may be short. rates: (steps, groups, replicas).
        """
        orders = np.ascontiguousarray(orders, dtype=np.int64)
        if orders.size and orders.view(np.uint64).max() >= len(arrays[0]):
            raise BackendError("sample numbers outside of the data", given=f"{orders.min()} to {orders.max()}")
        rates, steps = np.ascontiguousarray(rates, dtype=np.float64), len(rates)
        losses = np.zeros((steps, len(self.lanes)))
        full = min(steps, len(orders) // size)
        if full:
            self._call(size, arrays, orders, full, rates, losses)
        if steps > full:
            short = len(orders) - full * size
            self._call(short, arrays, orders[full * size :], 1, rates[full:], losses[full:])
        for lane in self.lanes:
            lane._taken += steps
        return losses

    def _call(
        self, size: int, arrays: tuple, orders: np.ndarray, steps: int, rates: np.ndarray, losses: np.ndarray
    ) -> None:
        first = self.lanes[0]
        program, traced = first._program(size)
        for lane in self.lanes:  # a further program may need more memory
            lane._arena = first._memory()
            lane._fill(size)
        tensors = first._tensors(program, traced, arrays)
        pointers = np.array([t.data_ptr() for t in tensors], dtype=np.uint64)
        held = [first._memory(), pointers, orders, rates, losses]
        start, data, numbers, rate, out = [a.__array_interface__["data"][0] for a in held]
        arguments = np.array([start, data, numbers, steps, rate, out, 0], dtype=np.uint64)
        program.run(arguments, size)

    def _verify(self) -> None:
        """Holds one step of the first replica against torch; see ``verify``."""
        first = self.lanes[0]
        assert first.case is not None
        expected = verify.expected_step(first.case, first.model, first.optimizer, first.example)
        first.case = None
        if expected is None:
            return
        self.load()
        tensors = tuple(t for _, t in convention.leaves(first.example))
        rates = np.array([float(group["lr"]) for group in first.optimizer.param_groups])
        columns = np.ones(len(self.lanes), dtype=np.int64)
        (losses,) = self.run(
            tensors, np.arange(self.size)[:, None] * columns, self.size, rates[None, :, None] * columns.astype(float)
        )
        named = {path: leaf for leaf, path in first.traced.parameters.items() if leaf in first.first.graph.updates}
        try:
            verify.compare(losses[0], {path: first._read(leaf) for path, leaf in named.items()}, expected)
        except BackendError:
            jit.forget(first.first.key)
            first.compiled.programs.clear()
            raise
