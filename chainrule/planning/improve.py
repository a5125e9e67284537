"""Local search on whole schedules: what the chain cannot express, and slack that it left.

Two moves. *Drop*: a storage that is alive but idle at the peak is let go, and its task runs again just before the next
reader in the backward pass. *Keep*: a task that runs again does not, and its storages stay alive from their last reader
on. Plans that are a little too large are made to fit by drops; then keeps use what room there is. The simulator judges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chainrule.planning.options import missing
from chainrule.planning.problem import Problem, Schedule
from chainrule.planning.simulate import simulate

_DROPS, _KEEPS = 24, 24


@dataclass
class _Life:
    """One stay of a storage in memory: positions of its writer and of its readers."""

    storage: int
    born: int
    reads: list[int]


def fitted(problem: Problem, schedule: Schedule, limit: int) -> Schedule | None:
    """A schedule whose peak is at most ``limit``, by drops; None where they do not lead there."""
    for _ in range(_DROPS):
        during = simulate(problem, schedule).during
        worst = int(during.argmax())
        if during[worst] <= limit:
            return schedule
        found = _drop(problem, schedule, worst, int(during[worst]) - limit)
        if found is None:
            return None
        schedule = found
    return None


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


def _alive(lives: list[_Life], at: int) -> set[int]:
    """Storages that are there just before position ``at`` and are still read at or behind it."""
    return {x.storage for x in lives if x.born < at and x.reads and x.reads[-1] >= at}


def _drop(problem: Problem, schedule: Schedule, worst: int, excess: int) -> Schedule | None:
    lives = _lives(problem, schedule)
    late = set(problem.backward)
    best: tuple[float, int, list[int]] | None = None
    for life in lives:
        if life.born >= worst or not life.reads or life.reads[-1] <= worst or worst in life.reads:
            continue
        then = next(r for r in life.reads if r > worst)
        maker = problem.writer[life.storage]
        if then < schedule.split or then >= len(schedule.order) or maker in late:
            continue
        there = _alive(lives, then) - {life.storage} | problem.resident
        if then > schedule.split:
            there |= problem.cotangents
        tasks = missing(problem, [life.storage], there.__contains__, problem.writer)
        if not all(problem.tasks[t].again for t in tasks) or any(t in late for t in tasks):
            continue
        cost = sum(problem.tasks[t].cost for t in tasks)
        useful = min(problem.sizes[life.storage], excess)
        if useful <= 0:
            continue
        score = cost / useful
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
