"""Save or recompute as a minimum cut: at a price per byte, the cheapest set of storages to keep.

A task has an edge from the source of the capacity of running it again; a storage has an edge from its task of the
capacity of keeping it; running a task again needs its operands, which is an infinite edge; what the backward pass reads
is tied to the sink. A storage on the sink's side is needed: kept if its task is on the source's side, recomputed
otherwise. Sweeping the price walks down the convex hull of (bytes, cost).

Source: Picard 1976 (closure problems are minimum cuts); the flow is SciPy's (Dinic 1970).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from chainrule.planning.problem import Task

_SCALE = 2**30  # capacities are integers for SciPy; their sum stays below 2^31


class Closure:
    """The cuts of some tasks.

    Args:
        tasks: (number, task, early) in order; an early task is not charged. wanted: storages that have to be at hand.
        sizes: bytes by storage. inside: whether a storage has to be provided at all.
        unpriced: storages that cost nothing to keep.
    """

    def __init__(
        self,
        tasks: Sequence[tuple[int, Task, bool]],
        wanted: Collection[int],
        sizes: Sequence[int],
        inside: Callable[[int], bool],
        unpriced: Collection[int] = (),
    ) -> None:
        storages = [s for _, task, _ in tasks for s in task.writes if inside(s)]
        self.storages = storages
        self.number = {s: 2 + len(tasks) + i for i, s in enumerate(storages)}
        self.count = 2 + len(tasks) + len(storages)
        self.tasks = [t for t, _, _ in tasks]
        self.costs = np.array([np.inf if not task.again else 0.0 if early else task.cost for _, task, early in tasks])
        self.bytes = np.array([0 if s in unpriced else sizes[s] for s in storages], dtype=float)
        rows: list[int] = []
        columns: list[int] = []
        for i, (_, task, _) in enumerate(tasks):
            for s in task.reads:
                if s in self.number:
                    rows.append(self.number[s])
                    columns.append(2 + i)  # reversed edge below: needed task needs storage
        self.needs = (np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))
        self.maker = np.array([2 + i for i, (_, task, _) in enumerate(tasks) for s in task.writes if s in self.number])
        self.grain = 0.0
        self.wanted = np.array([self.number[s] for s in wanted if s in self.number], dtype=np.int64)

    def solve(self, price: float | np.ndarray, costs: np.ndarray | None = None) -> tuple[float, set[int], set[int]]:
        """(value, storages kept, tasks recomputed) of the cheapest choice at a price per byte (per storage)."""
        costs = self.costs if costs is None else costs
        keeping = self.bytes * price
        finite = np.where(np.isfinite(costs), costs, 0.0)
        bound = float(min(keeping.sum(), 1e300) + finite.sum()) or 1.0
        scale = _SCALE / bound / 2
        self.grain = 0.5 / scale  # what one capacity may be wrong by
        infinite = _SCALE - 1
        tasks = 2 + np.arange(len(costs))
        stored = 2 + len(costs) + np.arange(len(keeping))
        heads = np.concatenate([np.zeros(len(costs), dtype=np.int64), self.maker, self.needs[0], self.wanted])
        # Edges run source -> task -> storage -> sink; a storage that a task needs: storage -> task would be wrong way
        # round, since what is on the sink's side pulls: task on the sink's side needs its operands there: operand
        # storage has an infinite edge to the task.
        tails = np.concatenate([tasks, stored, self.needs[1], np.ones(len(self.wanted), dtype=np.int64)])
        capacity = np.concatenate(
            [
                np.where(np.isfinite(costs), np.rint(finite * scale), infinite),
                np.rint(keeping * scale),
                np.full(len(self.needs[0]), infinite),
                np.full(len(self.wanted), infinite),
            ]
        ).astype(np.int32)
        graph = csr_array((capacity, (heads, tails)), shape=(self.count, self.count), dtype=np.int32)
        flow = maximum_flow(graph, 0, 1)
        residual = csr_array(graph - flow.flow)
        residual.data = np.maximum(residual.data, 0)
        residual.eliminate_zeros()
        reached = np.zeros(self.count, bool)
        reached[breadth_first_order(residual, 0, return_predecessors=False)] = True
        needed = {s for s, n in self.number.items() if not reached[n]}
        again = {t for i, t in enumerate(self.tasks) if not reached[2 + i]}
        maker = dict(zip(self.storages, self.maker, strict=True))
        kept = {s for s in needed if reached[maker[s]]}
        return flow.flow_value / scale, kept, again

    def cost_of(self, again: Collection[int]) -> float:
        """Of running these tasks again."""
        return float(sum(self.costs[i] for i, t in enumerate(self.tasks) if t in again and np.isfinite(self.costs[i])))

    def sweep(self, steps: int) -> list[set[int]]:
        """What is kept at prices from nothing to everything."""
        finite = self.costs[np.isfinite(self.costs)]
        total, weight = float(finite.sum()), float(self.bytes.sum())
        if not total or not weight:
            return [self.solve(0.0)[1]]
        middle = total / weight
        found = [self.solve(0.0)[1]]
        found += [self.solve(middle * 10.0**e)[1] for e in np.linspace(-3.0, 3.0, steps)]
        return found
