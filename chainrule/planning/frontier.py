"""All plans worth having for a problem, from the unplanned step to the least memory: one search, whatever the budget.

A budget then picks the cheapest plan that fits. The plans do not depend on the budget that is asked for, so a smaller
budget never gives a higher peak, nor a cheaper plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chainrule.errors import BudgetError
from chainrule.planning.blocks import Chain, chain_of
from chainrule.planning.bound import Bound
from chainrule.planning.chain import ChainPlanner
from chainrule.planning.improve import filled, fitted
from chainrule.planning.problem import Problem, Schedule, unplanned
from chainrule.planning.simulate import Timeline, simulate

_PLANS = 250
_SMALL, _PINNED = 150, 0.02  # tasks, and share of the peak, from which on local search is worth its time
_TARGETS, _STARTS, _ABOVE = 24, 2, 1.2  # of the local search


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule, judged.

    Attributes:
        peak: bytes. again: cost of recomputation.
    """

    schedule: Schedule
    peak: int
    again: float


@dataclass(frozen=True, eq=False)
class Frontier:
    """Plans in order: the peak falls, the cost rises.

    Attributes:
        problem: what was planned. chain: its blocks. plans: from the unplanned step on.
    """

    problem: Problem
    chain: Chain
    plans: tuple[Plan, ...]

    def within(self, peak: float) -> Plan:
        """The cheapest plan whose peak is at most so many bytes.

        Raises:
            BudgetError: none is; carries the least.
        """
        peaks = [-p.peak for p in self.plans]
        at = next((k for k in range(len(peaks)) if -peaks[k] <= peak), None)
        if at is None:
            least = self.plans[-1].peak
            raise BudgetError(
                "no plan fits into the budget",
                given=f"{int(peak):,} bytes",
                required=f"at least {least:,} bytes",
                minimum_bytes=least,
            )
        return self.plans[at]

    @cached_property
    def bound(self) -> Bound:
        """The lower bound on recomputation, by peak."""
        backward = [t for b in reversed(self.chain.blocks) for t in b.backward]
        return Bound(self.problem, backward)


def frontier(problem: Problem) -> Frontier:
    """Searches the plans of a problem."""
    chain = chain_of(problem)
    plain = unplanned(problem)
    timeline = simulate(problem, plain)
    found = [Plan(plain, timeline.peak, 0.0)]
    if problem.backward and problem.forward:
        planner = ChainPlanner(problem, chain, timeline.peak)
        for slots in _spread(planner.levels()):
            schedule = planner.schedule(slots)
            found.append(judged(problem, schedule))
        pinned = sum(problem.sizes[s] for s in chain.pinned)
        if len(problem.tasks) <= _SMALL or pinned > _PINNED * timeline.peak:
            found += _improved(problem, front(found))
    return Frontier(problem, chain, front(found))


def _improved(problem: Problem, plans: Sequence[Plan]) -> list[Plan]:
    """Plans by local search, for a fixed ladder of peaks."""
    most, least = plans[0].peak, plans[-1].peak
    found: list[Plan] = []
    for target in np.geomspace(least, most, _TARGETS).astype(int)[:-1]:
        inside = next((p for p in plans if p.peak <= target), None)
        above = [p for p in plans if target < p.peak <= target * _ABOVE]
        starts = [above[round(i * (len(above) - 1) / (_STARTS - 1))] for i in range(_STARTS)] if above else []
        for start in dict.fromkeys(starts):
            schedule = fitted(problem, start.schedule, int(target))
            if schedule is not None:
                found.append(judged(problem, filled(problem, schedule, int(target))))
        if inside is not None:
            found.append(judged(problem, filled(problem, inside.schedule, int(target))))
    return found


def judged(problem: Problem, schedule: Schedule) -> Plan:
    """A schedule with what the simulator says of it."""
    timeline: Timeline = simulate(problem, schedule)
    return Plan(schedule, timeline.peak, timeline.again)


def front(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Those that no other plan beats, the highest peak first."""
    kept: list[Plan] = []
    best = np.inf
    for plan in sorted(plans, key=lambda p: (p.peak, p.again)):
        if plan.again < best * (1 - 1e-12) - 1e-18:
            kept.append(plan)
            best = plan.again
    return tuple(reversed(kept))


def _spread(levels: Sequence[int]) -> list[int]:
    if len(levels) <= _PLANS:
        return list(levels)
    return [levels[round(i * (len(levels) - 1) / (_PLANS - 1))] for i in range(_PLANS)]
