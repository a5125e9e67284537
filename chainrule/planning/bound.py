"""A lower bound on recomputation in a given peak: what no schedule can beat.

Take any instant of the backward pass, and a schedule that needs at most M bytes. Of what is read later, a part is
resident at that instant, and everything else has to be made after it: each task at least once. By weak duality, for any
price per byte p

    extra cost  >=  min over residents R of  cost(remaking the rest) + p bytes(R)   -   p (M - what is there anyway)

and the minimum is a minimum cut. So the largest right side over instants and prices is a certificate: it holds for
schedules with any number of recomputations, whose backward tasks run in the same order. Operands and results of the
task that runs at that instant, and gradients that are finished, are there anyway.

Some lines (one per instant and price) are made at once, and bound every peak; ``sharpened`` adds those that matter at
one peak. Small problems with a gap are bounded at several instants together (see ``windows``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chainrule.planning.instants import Instants
from chainrule.planning.mincut import Closure
from chainrule.planning.problem import Problem
from chainrule.planning.windows import windowed

_INSTANTS, _PRICES = 24, 8
_SOLVES, _TASKS = 8, 150_000  # cuts for one instant and peak; tasks in all cuts of one peak
_CLOSE = 0.002  # of the step: near enough


@dataclass(frozen=True, eq=False)
class _Line:
    """A cut at a price: the bound at a peak is ``cut - price (peak - there)``."""

    cut: float
    price: float
    there: float
    cost: float  # of the cut's recomputations alone
    kept: float  # bytes that it keeps

    def at(self, peak: float) -> float:
        return self.cut - self.price * (peak - self.there)

    def rises(self, peak: float) -> bool:
        """Whether a higher price bounds better."""
        return self.kept > peak - self.there


class Bound:
    """Cuts at some instants and prices, made once: ``at(peak)`` is then a maximum over lines."""

    def __init__(
        self, problem: Problem, backward: Sequence[int], instants: int = _INSTANTS, prices: int = _PRICES
    ) -> None:
        """``backward``: the tasks of the backward pass that need a cotangent, in the order in which they run."""
        self.problem = problem
        self.instants = Instants(problem, backward)
        early = problem.early
        self._makers = [(t, problem.tasks[t], t in early) for t in self.instants.makers]
        self._lines: dict[int, list[_Line]] = {}
        self._closures: dict[int, Closure] = {}
        self._points: list[tuple[float, float]] = []  # (peak, bound): below the peak too
        for at in self.instants.spread(instants):
            closure = self._closure(at)
            if closure is None:
                continue
            self._closures[at] = closure
            costs = closure.costs[np.isfinite(closure.costs)]
            middle = float(costs.sum()) / float(closure.bytes.sum())
            self._lines[at] = [self._line(at, middle * 10.0**e) for e in np.linspace(-2.0, 1.5, prices)]

    def at(self, peak: float) -> float:
        """No schedule with at most so many bytes recomputes less than this."""
        cuts = max((line.at(peak) for lines in self._lines.values() for line in lines), default=0.0)
        return max(0.0, cuts, *(bound for limit, bound in self._points if peak <= limit), 0.0)

    def sharpened(self, peak: float, enough: float = float("inf")) -> float:
        """The same with more cuts where they matter at this peak, until it reaches ``enough``."""
        close = _CLOSE * self.problem.cost
        left = _TASKS
        for at in sorted(self._lines, key=lambda at: -max(line.at(peak) for line in self._lines[at])):
            if left <= 0 or self.at(peak) >= enough - close / 10:
                break
            left -= self._sharpen(at, peak) * len(self._makers)
        found = self.at(peak)
        if found < enough - close and peak not in {limit for limit, _ in self._points}:
            self._points.append((peak, windowed(self.instants, peak)))
        return self.at(peak)

    def _sharpen(self, at: int, peak: float) -> int:
        """Cuts at the price where the two nearest ones meet, until they meet on a cut; returns how many."""
        lines = self._lines[at]
        for count in range(_SOLVES):
            low = max((x for x in lines if x.rises(peak)), key=lambda x: x.price, default=None)
            high = min((x for x in lines if not x.rises(peak)), key=lambda x: x.price, default=None)
            if low is None or high is None or low.kept <= high.kept:
                return count
            price = (high.cost - low.cost) / (low.kept - high.kept)
            if not low.price * (1 + 1e-9) < price < high.price * (1 - 1e-9):
                return count
            meeting = low.cost + price * (low.kept - peak + low.there)
            lines.append(self._line(at, price))
            if lines[-1].at(peak) >= meeting - _CLOSE / 10 * self.problem.cost:
                return count + 1
        return _SOLVES

    def _closure(self, at: int) -> Closure | None:
        found = self.instants
        free = found.operands[at] | self.problem.returned
        made = found.made
        closure = Closure(
            self._makers,
            found.wanted(at) - free,
            self.problem.sizes,
            lambda s: s in made and s not in free,
            unpriced=(),
        )
        usable = len(closure.wanted) and closure.costs[np.isfinite(closure.costs)].sum() and closure.bytes.sum()
        return closure if usable else None

    def _line(self, at: int, price: float) -> _Line:
        closure = self._closures[at]
        value, kept, again = closure.solve(price)
        # Capacities are rounded to integers: what that can be worth is taken off.
        slack = (len(closure.costs) + len(closure.bytes)) * closure.grain
        held = float(sum(self.problem.sizes[s] for s in kept))
        return _Line(max(value - slack, 0.0), price, float(self.instants.there[at]), closure.cost_of(again), held)
