"""Costs by slots of memory: what the dynamic programming over a chain fills, and how large a slot is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from chainrule.planning.problem import Problem

_SLOTS, _MOST_SLOTS = 1000, 4000  # the second where storages are whole numbers of slots only then
_WRONG = 0.01  # of all bytes, that rounding to slots may be wrong by
_NEAR, _STEP = 50, 1.12  # checkpoints are tried at every block so far on, and from there on at growing distances


@dataclass(frozen=True, eq=False)
class Table:
    """Cost by slots of memory, and what was chosen (see ``_LABEL``); ``padded``: the cost, behind room for a shift."""

    padded: np.ndarray
    cost: np.ndarray
    choice: np.ndarray

    def shifted(self, by: int, count: int) -> np.ndarray:
        """The cost at ``by`` slots less, no copy; none where there are none."""
        start = len(self.padded) - count - min(by, len(self.padded) - count)
        return self.padded[start : start + count]


class Cheapest:
    """The cheapest of some rows of costs, by slots of memory."""

    def __init__(self, count: int) -> None:
        self.rows = np.full((32, count), np.inf)
        self.labels = [0]  # row 0: the cheapest so far
        self.choice = np.zeros(count, dtype=np.int32)

    def _next(self, label: int) -> np.ndarray:
        if len(self.labels) == len(self.rows):
            self._settle()
        self.labels.append(label)
        return self.rows[len(self.labels) - 1]

    def _settle(self) -> None:
        used = self.rows[: len(self.labels)]
        best = used.argmin(axis=0)
        new = np.flatnonzero(best)
        self.choice[new] = np.array(self.labels)[best[new]]
        self.rows[0, new] = used[best[new], new]
        self.labels = [0]

    def constant(self, cost: float, least: int, label: int) -> None:
        """The same cost from so many slots on."""
        row = self._next(label)
        row[: max(least, 0)] = np.inf
        row[max(least, 0) :] = cost

    def row(self, cost: np.ndarray, extra: float, least: int, label: int) -> None:
        """``cost + extra`` from so many slots on."""
        row = self._next(label)
        np.add(cost, extra, out=row)
        row[: max(least, 0)] = np.inf

    def sum(self, one: np.ndarray, other: np.ndarray, extra: float, least: int, label: int) -> None:
        """``one + other + extra`` from so many slots on."""
        row = self._next(label)
        np.add(one, other, out=row)
        row += extra
        row[: max(least, 0)] = np.inf

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(costs, labels)."""
        self._settle()
        return self.rows[0], self.choice


def unit_of(problem: Problem, limit: int, slots: int | None) -> float:
    """Bytes of a slot: about ``limit / slots``, such that most storages are whole numbers of slots.

    Without ``slots``: about a thousand; more, where storages are whole numbers of slots then, and are not with fewer.
    """
    if slots is None:
        most, wrong = _fitting(problem, limit, _SLOTS)
        finer = 2 * _SLOTS
        while wrong > _WRONG and finer <= _MOST_SLOTS:
            unit, left = _fitting(problem, limit, finer)
            if left < wrong / 2:
                most, wrong = unit, left
            finer *= 2
        return most
    return _fitting(problem, limit, slots)[0]


def _fitting(problem: Problem, limit: int, slots: int) -> tuple[float, float]:
    """(bytes of a slot, what rounding to it is wrong by, in parts of all bytes)."""
    sizes, counts = np.unique([s for s in problem.sizes if s * slots > limit / 16] or [1], return_counts=True)
    units = max(limit, 1) / np.arange(slots * 0.7, slots * 1.3, max(slots / 500, 1.0))
    parts = sizes[None, :] / units[:, None]
    wrong = (np.abs(parts - np.rint(parts)) / parts) @ (counts * sizes)
    best = int(wrong.argmin())
    return float(units[best]), float(wrong[best] / (counts @ sizes))


@cache
def distances(most: int) -> frozenset[int]:
    """How far on checkpoints are tried."""
    found, at = set(range(1, min(_NEAR, most) + 1)), float(_NEAR)
    while at < most:
        found.add(int(at))
        at *= _STEP
    return frozenset(found | ({most} if most > 0 else set()))


def more(cost: np.ndarray, by: int) -> np.ndarray:
    """``cost`` at so many slots more."""
    by = min(by, len(cost) - 1)
    return np.concatenate([cost[by:], np.full(by, cost[-1])])
