"""What a schedule needs: bytes alive while each task runs. The only judge of a plan's peak.

While a task runs, its operands, its results and its work are alive; after it, what nobody reads any more is freed. So
it is in the emitted source: ``t = f(a)``, then ``del a``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from chainrule.errors import ModelError
from chainrule.planning.problem import Problem, Schedule


@dataclass(frozen=True, eq=False)
class Timeline:
    """Bytes alive over a schedule.

    Attributes:
        during: bytes while each task runs. peak: the largest. saved: bytes that cross from forward to backward pass.
        cost: of all runs. again: of the runs beyond the first of each task.
    """

    during: np.ndarray
    saved: int
    cost: float
    again: float

    @property
    def peak(self) -> int:
        return int(self.during.max(initial=0))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Reads and writes of all tasks, one behind the other."""

    read_start: np.ndarray
    reads: np.ndarray
    write_start: np.ndarray
    writes: np.ndarray
    cost: np.ndarray
    work: np.ndarray
    state: np.ndarray
    sizes: np.ndarray


@lru_cache(maxsize=16)
def _rows_of(problem: Problem) -> _Rows:
    counted = [[s for s in t.reads if s not in problem.resident] for t in problem.tasks]
    sizes = np.array(problem.sizes, dtype=np.int64)
    if problem.resident:
        sizes[sorted(problem.resident)] = 0
    return _Rows(
        np.cumsum([0, *map(len, counted)]),
        np.array([s for row in counted for s in row], dtype=np.int64),
        np.cumsum([0, *(len(t.writes) for t in problem.tasks)]),
        np.array([s for t in problem.tasks for s in t.writes], dtype=np.int64),
        np.array([t.cost for t in problem.tasks]),
        np.array([t.work for t in problem.tasks], dtype=np.int64),
        np.array([t.state for t in problem.tasks], dtype=np.int64),
        sizes,
    )


def _gather(order: np.ndarray, start: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(storage, time) of the reads or writes of a sequence of tasks."""
    counts = start[order + 1] - start[order]
    times = np.repeat(np.arange(len(order)), counts)
    offsets = np.arange(len(times)) - np.repeat(np.cumsum(counts) - counts, counts)
    return values[start[order][times] + offsets], times


def simulate(problem: Problem, schedule: Schedule) -> Timeline:
    """Bytes alive over a schedule.

    Raises:
        ModelError: a task reads what is not there.
    """
    rows = _rows_of(problem)
    order = np.array(schedule.order, dtype=np.int64)
    end, split = len(order), schedule.split
    read, read_at = _gather(order, rows.read_start, rows.reads)
    written, written_at = _gather(order, rows.write_start, rows.writes)
    born = sorted(problem.cotangents)
    held = [(s, end) for s in sorted(problem.returned | problem.gradients) if s not in problem.resident]
    # An event: storage, then time; a write at 2t + 1 comes behind the reads of the same task at 2t.
    storage = np.concatenate([written, born, read, [s for s, _ in held]]).astype(np.int64)
    # Cotangents come to life between the passes, before the first task of the backward pass.
    moment = np.concatenate(
        [2 * written_at + 1, np.full(len(born), 2 * split - 1), 2 * read_at, [2 * t for _, t in held]]
    ).astype(np.int64)
    makes = np.concatenate([np.ones(len(written) + len(born), bool), np.zeros(len(read) + len(held), bool)])
    key = np.lexsort((moment, storage))
    storage, moment, makes = storage[key], moment[key], makes[key]
    if len(storage) == 0:
        return Timeline(rows.work[order], 0, float(rows.cost[order].sum()), 0.0)
    first = np.concatenate([[True], storage[1:] != storage[:-1]])
    if not makes[first].all():
        bad = int(storage[first & ~makes][0])
        raise ModelError(f"the schedule reads storage {bad} before it is written")
    starts = np.flatnonzero(makes)
    last = np.concatenate([starts[1:], [len(storage)]]) - 1
    size = rows.sizes[storage[starts]]
    birth = (moment[starts] - 1) // 2  # the run that writes it
    if born:
        birth[np.isin(storage[starts], born)] = split
    death = np.where(last > starts, moment[last] // 2, birth)  # the last run that needs it
    delta = np.zeros(end + 2, dtype=np.int64)
    np.add.at(delta, birth, size)
    np.add.at(delta, np.minimum(death, end) + 1, -size)
    during = np.cumsum(delta)[:end] + rows.work[order]
    if rows.state[order].any():
        during += _states(order, rows.state)
    saved = int(size[(birth < split) & (death >= split)].sum())
    total = float(rows.cost[order].sum())
    once = float(rows.cost[np.unique(order)].sum())
    return Timeline(during, saved, total, max(total - once, 0.0))


def _states(order: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Generator states, held from the first to the last run of a draw that runs again."""
    delta = np.zeros(len(order) + 1, dtype=np.int64)
    for task in np.unique(order[state[order] > 0]):
        at = np.flatnonzero(order == task)
        if len(at) > 1:
            delta[at[0]] += state[task]
            delta[at[-1] + 1] -= state[task]
    return np.cumsum(delta)[:-1]


def lifetimes(problem: Problem, schedule: Schedule) -> list[list[int]]:
    """Per run, the storages that are freed behind it: what an emitter deletes there.

    Storages that are returned or are gradients are not among them, nor are resident ones.
    """
    kept = problem.resident | problem.returned | problem.gradients
    dead: list[list[int]] = [[] for _ in schedule.order]
    seen: dict[int, bool] = {}  # read (or written) later, before it is written again
    for at in range(len(schedule.order) - 1, -1, -1):
        task = problem.tasks[schedule.order[at]]
        for s in task.writes:
            if not seen.get(s) and s not in kept:
                dead[at].append(s)
            seen[s] = False
        for s in task.reads:
            if not seen.get(s) and s not in kept:
                dead[at].append(s)
                seen[s] = True
    return dead
