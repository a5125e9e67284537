"""All plans worth having for a problem, from the unplanned step to the least memory: one search, whatever the budget.

A budget then picks the cheapest plan that fits. Plans are first searched at steps of memory; where a budget falls
between two of them, all that lie between are written, and improved. What is found there depends on the two alone, is no
cheaper than the larger and no larger than the smaller: a smaller budget never gives a higher peak, nor a cheaper plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np

from chainrule.errors import BudgetError
from chainrule.planning.blocks import Chain, chain_of
from chainrule.planning.bound import Bound
from chainrule.planning.chain import ChainPlanner
from chainrule.planning.improve import dropped, filled, trimmed
from chainrule.planning.problem import Problem, Schedule, unplanned
from chainrule.planning.simulate import Timeline, simulate

T = TypeVar("T")
_PLANS, _LEAST = 100, 12  # of the first search; of which at the least memory, one by one
_BETWEEN = 40  # plans between two of them
_SMALL, _PINNED = 200, 0.02  # tasks, and share of the peak that is pinned: then the chain is a poor picture
_DEEP, _RANGE = 60, 3.0  # slots, below which the least peak is searched again with finer ones, up to so many times it
_FINE = 1000  # slots there
_STARTS, _STEPS = 40, 20  # of the local search where the chain is a poor picture
_FEW_STARTS, _FEW_STEPS = 20, 2  # and elsewhere
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
class Search:
    """What a planner of the chain can write: ``levels`` are slots of memory, some of which have been written.

    Attributes:
        sampled: (index of a level, peak of its plan), in order.
    """

    planner: ChainPlanner
    levels: tuple[int, ...]
    sampled: tuple[tuple[int, int], ...]

    def below(self, peak: int) -> int | None:
        """The last level with at most so many bytes."""
        i = bisect_right(self.levels, peak / self.planner.unit) - 1
        return i if i >= 0 else None

    def cost(self, i: int) -> float:
        """Of recomputation at a level."""
        return self.planner.cost(self.levels[i])

    def between(self, low: int, high: int) -> list[int]:
        """Levels not written yet whose peaks may lie between."""
        found: list[int] = []
        for (i, one), (j, other) in pairwise(self.sampled):
            if j > i + 1 and max(one, other) >= low and min(one, other) <= high:
                found += self.levels[i + 1 : j]
        return found


@dataclass(frozen=True, eq=False)
class Frontier:
    """Plans in order: the peak falls, the cost rises.

    Attributes:
        problem: what was planned. chain: its blocks. plans: from the unplanned step on. searches: where more are.
    """

    problem: Problem
    chain: Chain
    plans: tuple[Plan, ...]
    searches: tuple[Search, ...] = field(default=(), repr=False)

    def within(self, peak: float) -> Plan:
        """The cheapest plan whose peak is at most so many bytes.

        Raises:
            BudgetError: none is; carries the least.
        """
        at = next((k for k, p in enumerate(self.plans) if p.peak <= peak), None)
        if at is None:
            least = self.plans[-1].peak
            raise BudgetError(
                "no plan fits into the budget",
                given=f"{int(peak):,} bytes",
                required=f"at least {least:,} bytes",
                minimum_bytes=least,
            )
        return next(p for p in self.between(at) if p.peak <= peak)

    def between(self, k: int) -> tuple[Plan, ...]:
        """Plans above the k-th, up to the one before it, and itself: the peak falls, the cost rises."""
        if k == 0:
            return self.plans[:1]
        if k not in self._between:
            above, plan = self.plans[k - 1], self.plans[k]
            fits = lambda p: plan.peak <= p.peak < above.peak and above.again <= p.again <= plan.again  # noqa: E731
            found = [p for p in self._written(plan.peak, above.peak) if fits(p)]
            few = max(6, _WORK // (4 * len(self.problem.tasks)))
            starts = _spread(front([*found, plan, above]), few)
            more = [judged(self.problem, s) for p in starts for s in self._variants(p, above)]
            self._between[k] = front([plan, *found, *filter(fits, more)])
        return self._between[k]

    @cached_property
    def _between(self) -> dict[int, tuple[Plan, ...]]:
        return {}

    def _written(self, low: int, high: int) -> Iterator[Plan]:
        for search in self.searches:
            for slots in _spread(search.between(low, high), _BETWEEN):
                yield judged(self.problem, search.planner.schedule(slots))

    def _variants(self, plan: Plan, above: Plan) -> Iterator[Schedule]:
        """A little less memory; in small problems, what is left of the memory put to use."""
        yield from dropped(self.problem, plan.schedule, _FEW_STEPS)
        yield from trimmed(self.problem, plan.schedule, _FEW_STEPS)
        if len(self.problem.tasks) <= _SMALL:
            yield filled(self.problem, plan.schedule, above.peak - 1)

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
    searches: list[Search] = []
    if problem.backward and problem.forward:
        planner = ChainPlanner(problem, chain, timeline.peak)
        searches.append(_searched(problem, planner, found))
        least = min(p.peak for p in found)
        if least < _DEEP * planner.unit:  # a slot is too much memory there: once more, with finer ones
            planner = ChainPlanner(problem, chain, int(_RANGE * least), _FINE, planner)
            searches.append(_searched(problem, planner, found))
        found += _improved(problem, chain, front(found))
        searches = [_filled_in(problem, search, found) for search in searches]
    return Frontier(problem, chain, front(found), tuple(searches))


def _searched(problem: Problem, planner: ChainPlanner, found: list[Plan]) -> Search:
    """Writes some plans of the chain."""
    levels = planner.levels()
    sampled = []
    for i in sorted({*range(min(_LEAST, len(levels))), *_spread(range(len(levels)), _PLANS)}):
        plan = judged(problem, planner.schedule(levels[i]))
        found.append(plan)
        sampled.append((i, plan.peak))
    return Search(planner, tuple(levels), tuple(sampled))


def _filled_in(problem: Problem, search: Search, found: list[Plan]) -> Search:
    """Writes levels in whose memory there is a plan on the front that the planner knows to be too dear."""
    sampled = dict(search.sampled)
    for plan in front(found):
        i = search.below(plan.peak)
        if i is not None and i not in sampled and search.cost(i) < plan.again * (1 - 1e-9):
            found.append(judged(problem, search.planner.schedule(search.levels[i])))
            sampled[i] = found[-1].peak
    return replace(search, sampled=tuple(sorted(sampled.items())))


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
