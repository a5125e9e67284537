"""All plans worth having for a problem, from the unplanned step to the least memory: one search, whatever the budget.

A budget then picks the cheapest plan that fits. The plans do not depend on the budget that is asked for, so a smaller
budget never gives a higher peak, nor a cheaper plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np

from chainrule.errors import BudgetError
from chainrule.planning.blocks import Chain, chain_of
from chainrule.planning.bound import Bound
from chainrule.planning.chain import ChainPlanner
from chainrule.planning.improve import dropped, filled
from chainrule.planning.problem import Problem, Schedule, unplanned
from chainrule.planning.simulate import Timeline, simulate

T = TypeVar("T")
_PLANS = 250
_SMALL, _PINNED = 200, 0.02  # tasks, and share of the peak that is pinned: then the chain is a poor picture
_DEEP, _RANGE = 8.0, 3.0  # where the least peak is so small a part of the unplanned one, up to so many times the least
_STARTS, _STEPS = 40, 20  # of the local search there
_FEW_STARTS, _FEW_STEPS = 60, 2  # and elsewhere
_WORK = 60_000  # tasks to go through there, all starts together


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
        found += _by_chain(problem, chain, timeline.peak, _PLANS)
        least = min(p.peak for p in found)
        if least * _DEEP < timeline.peak:  # a slot is too much memory there: once more, with finer ones
            found += _by_chain(problem, chain, int(_RANGE * least), _PLANS // 2)
        found += _improved(problem, chain, front(found))
    return Frontier(problem, chain, front(found))


def _by_chain(problem: Problem, chain: Chain, limit: int, count: int) -> list[Plan]:
    """Plans of the chain up to so many bytes."""
    planner = ChainPlanner(problem, chain, limit)
    return [judged(problem, planner.schedule(slots)) for slots in _spread(planner.levels(), count)]


def _improved(problem: Problem, chain: Chain, plans: Sequence[Plan]) -> list[Plan]:
    """Plans by local search from some of those of the chain; more of it where the chain is a poor picture."""
    pinned = sum(problem.sizes[s] for s in chain.pinned - chain.fixed)
    poor = len(problem.tasks) <= _SMALL or pinned > _PINNED * plans[0].peak
    few = min(_FEW_STARTS, max(2, _WORK // len(problem.tasks)))
    starts, steps = (_STARTS, _STEPS) if poor else (few, _FEW_STEPS)
    found: list[Plan] = []
    for plan in _spread(plans, starts):
        for schedule in dropped(problem, plan.schedule, steps):
            found.append(judged(problem, schedule))
            if found[-1].again > 2.0 * plans[-1].again:
                break
    if poor:
        better = front([*plans, *found])
        for plan, above in pairwise(reversed(_spread(better, _STARTS))):
            found.append(judged(problem, filled(problem, plan.schedule, above.peak - 1)))
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


def _spread(items: Sequence[T], limit: int) -> list[T]:
    """At most so many of them, evenly."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]
