"""Local search on whole schedules: what the chain cannot express, and slack that it left.

Two moves. *Drop*: a storage that is alive but idle at the peak is let go, and its task runs again just before the next
reader in the backward pass. *Keep*: a task that runs again does not, and its storages stay alive from their last reader
on. Drops make a cheap plan smaller; keeps use what room is left. The simulator judges.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chainrule.planning.options import missing
from chainrule.planning.problem import Problem, Schedule
from chainrule.planning.simulate import simulate

_KEEPS = 24
_SMALL = 1 / 500  # of the peak: not worth a move


@dataclass
class _Life:
    """One stay of a storage in memory: positions of its writer and of its readers."""

    storage: int
    born: int
    reads: list[int]


def dropped(problem: Problem, schedule: Schedule, steps: int) -> Iterator[Schedule]:
    """The schedule with one, two, ... idle storages let go, each where the peak then is, the cheapest per byte."""
    for _ in range(steps):
        during = simulate(problem, schedule).during
        found = _drop(problem, schedule, int(during.argmax()), int(during.max() * _SMALL))
        if found is None:
            return
        schedule = found
        yield schedule


def trimmed(problem: Problem, schedule: Schedule, steps: int) -> Iterator[Schedule]:
    """The schedule with one, two, ... small idle storages let go: where a plan is above a budget by next to nothing."""
    for _ in range(steps):
        during = simulate(problem, schedule).during
        found = _drop(problem, schedule, int(during.argmax()), 1, int(during.max() * _SMALL))
        if found is None:
            return
        schedule = found
        yield schedule


def filled(problem: Problem, schedule: Schedule, limit: int) -> Schedule:
    """The schedule with recomputations left out as long as the peak stays within ``limit``, the dearest first."""
    refused: set[tuple[int, int]] = set()
    for _ in range(_KEEPS):
        timeline = simulate(problem, schedule)
        found = _keep(problem, schedule, timeline.during, limit, refused)
        if found is None:
            break
        position, candidate = found
        again = simulate(problem, candidate)
        if again.peak <= limit and again.again < timeline.again:
            schedule = candidate
        else:
            refused.add(position)
    return schedule


def _lives(problem: Problem, schedule: Schedule) -> list[_Life]:
    now: dict[int, _Life] = {}
    found: list[_Life] = []
    for at, t in enumerate(schedule.order):
        task = problem.tasks[t]
        for s in task.reads:
            if s in now:
                now[s].reads.append(at)
        for s in task.writes:
            if s not in problem.resident:
                now[s] = _Life(s, at, [])
                found.append(now[s])
    end = len(schedule.order)
    for s in problem.returned | problem.gradients:
        if s in now:
            now[s].reads.append(end)
    return found


def _drop(problem: Problem, schedule: Schedule, worst: int, least: int, most: float = float("inf")) -> Schedule | None:
    """Of the storages of so many bytes that are idle at ``worst``, the one that is cheapest to remake."""
    lives = _lives(problem, schedule)
    late = set(problem.backward)
    found: list[tuple[float, int, int]] = []
    for life in lives:
        size, maker = problem.sizes[life.storage], problem.writer[life.storage]
        if life.born >= worst or not life.reads or life.reads[-1] <= worst or maker in late:
            continue
        if not max(least, 1) <= size <= most:
            continue
        at = bisect_left(life.reads, worst)
        then = life.reads[at]
        if then != worst and schedule.split <= then < len(schedule.order):
            found.append((problem.tasks[maker].cost / size, then, life.storage))
    found.sort()
    best: tuple[float, int, list[int]] | None = None
    stays: dict[int, list[tuple[int, int]]] = {}
    for life in lives:
        if life.reads:
            stays.setdefault(life.storage, []).append((life.born, life.reads[-1]))
    given = problem.resident | problem.cotangents
    for optimistic, then, storage in found:
        if best is not None and best[0] <= optimistic:
            break

        def there(s: int, then: int = then, gone: int = storage) -> bool:
            return s in given or (s != gone and any(born < then <= last for born, last in stays.get(s, ())))

        tasks = missing(problem, [storage], there, problem.writer)
        if any(t in late or not problem.tasks[t].again for t in tasks):
            continue
        score = sum(problem.tasks[t].cost for t in tasks) / problem.sizes[storage]
        if best is None or score < best[0]:
            best = score, then, tasks
    if best is None:
        return None
    _, then, tasks = best
    return Schedule((*schedule.order[:then], *tasks, *schedule.order[then:]), schedule.split)


def _keep(
    problem: Problem, schedule: Schedule, during: np.ndarray, limit: int, refused: set[tuple[int, int]]
) -> tuple[tuple[int, int], Schedule] | None:
    """The dearest rerun that may be left out, going by the bytes alive in between."""
    lives = _lives(problem, schedule)
    by: dict[int, list[_Life]] = {}
    for life in lives:
        by.setdefault(life.storage, []).append(life)
    seen: dict[int, int] = {}
    candidates: list[tuple[float, int, int, int]] = []
    for at, t in enumerate(schedule.order):
        if t in seen:
            candidates.append((-problem.tasks[t].cost, at, t, seen[t]))
        seen[t] = seen.get(t, -1) + 1
    candidates.sort()
    for cost, at, t, runs in candidates:
        if cost == 0.0:
            break
        if (t, runs) in refused:
            continue
        room = True
        for s in problem.tasks[t].writes:
            here = next((i for i, x in enumerate(by.get(s, ())) if x.born == at), None)
            if here is None or not by[s][here].reads:
                continue
            before = by[s][here - 1]
            until = before.reads[-1] if before.reads else before.born
            if during[until + 1 : at + 1].max(initial=0) + problem.sizes[s] > limit:
                room = False
                break
        if room:
            split = schedule.split - (1 if at < schedule.split else 0)
            return (t, runs), Schedule((*schedule.order[:at], *schedule.order[at + 1 :]), split)
    return None
