"""A lower bound on recomputation in a given peak: what no schedule can beat.

Take any instant of the backward pass, and a schedule that needs at most M bytes. Of what is read later, a part is
resident at that instant, and everything else has to be made after it: each task at least once. By weak duality, for any
price per byte p

    extra cost  >=  min over residents R of  cost(remaking the rest) + p bytes(R)   -   p (M - what is there anyway)

and the minimum is a minimum cut. So the largest right side over instants and prices is a certificate: it holds for
schedules with any number of recomputations, whose backward tasks run in the same order. Operands and results of the
task that runs at that instant, and gradients that are finished, are there anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.planning.mincut import Closure
from chainrule.planning.problem import Problem

_INSTANTS = 8
_PRICES = 22


class Bound:
    """Cuts at some instants and prices, made once: ``at(peak)`` is then a maximum over lines."""

    def __init__(
        self, problem: Problem, backward: Sequence[int], instants: int = _INSTANTS, prices: int = _PRICES
    ) -> None:
        """``backward``: the tasks of the backward pass that need a cotangent, in the order in which they run."""
        self.problem = problem
        early = problem.early
        makers = [t for t in range(len(problem.tasks)) if t < problem.forward or t in early]
        self._makers = [(t, problem.tasks[t], t in early) for t in makers]
        self._made = {s for _, task, _ in self._makers for s in task.writes} - problem.resident
        self.lines: list[tuple[float, float, float]] = []  # (cut, price, there anyway)
        if not backward:
            return
        for at in self._instants(backward, instants):
            self._add(backward, at, prices)

    def at(self, peak: float) -> float:
        """No schedule with at most so many bytes recomputes less than this."""
        return max(0.0, *(float(cut - price * (peak - there)) for cut, price, there in self.lines), 0.0)

    def _instants(self, backward: Sequence[int], count: int) -> list[int]:
        """Early in the backward pass most is still needed: more instants there."""
        n = len(backward)
        spots = {min(n - 1, round((n - 1) * (i / max(count - 1, 1)) ** 2)) for i in range(count)}
        return sorted(spots | {0})

    def _add(self, backward: Sequence[int], at: int, prices: int) -> None:
        p = self.problem
        task = p.tasks[backward[at]]
        operands = {s for s in task.reads if s in self._made}
        wanted = {s for t in backward[at + 1 :] for s in p.tasks[t].reads if s in self._made}
        there = self._late(backward, at) + task.work + sum(p.sizes[s] for s in operands - p.returned)
        held = p.returned - p.gradients
        there += sum(p.sizes[s] for s in held)
        free = operands | p.returned
        closure = Closure(
            self._makers, wanted - free, p.sizes, lambda s: s in self._made and s not in free, unpriced=()
        )
        costs = closure.costs[np.isfinite(closure.costs)]
        total, size = float(costs.sum()), float(closure.bytes.sum())
        if not total or not size or not len(closure.wanted):
            return
        middle = total / size
        for price in middle * 10.0 ** np.linspace(-2.5, 2.0, prices):
            value, _, _ = closure.solve(float(price))
            # Capacities are rounded to integers: what that can be worth is taken off.
            slack = (len(closure.costs) + len(closure.bytes)) * closure.grain
            self.lines.append((max(value - slack, 0.0), float(price), float(there)))

    def _late(self, backward: Sequence[int], at: int) -> int:
        """Bytes of the backward pass's own storages while task ``at`` runs."""
        p = self.problem
        there = set(p.cotangents)
        for t in backward[: at + 1]:
            there.update(p.tasks[t].writes)
        read = {s for t in backward[at:] for s in p.tasks[t].reads}
        now = set(p.tasks[backward[at]].writes)
        return sum(p.sizes[s] for s in there if s not in p.resident and (s in read or s in now or s in p.gradients))
