"""A lower bound that sees several instants of the backward pass together, for small problems: an integer program.

Between two instants lies a window. A storage that is read there, or resident at the window's end, was resident at its
start or is made in it, and a task that runs in it needs its operands so too. At every instant what is resident fits.
Every schedule is a solution (its tasks counted at most once per window), so that the least cost of a solution bounds
its recomputation; and so does the solver's own bound, wherever it stops. Small storages count as always there.

Source: Jain et al. 2020 ("Checkmate") for the constraints, with windows in place of single steps.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from chainrule.planning.instants import Instants

_WINDOWS = 8
_SMALL = 1 / 500  # of the peak
_INTEGERS, _VARIABLES = 1600, 12_000  # beyond: fractions, nothing
_NODES = 1  # of the search tree: the bound at its root is the same on every machine
_SECONDS = 20.0  # a problem whose root takes longer has the bound that the solver has by then
_SURE = 1e-6  # relative tolerance of the solver


class _Rows:
    """Linear constraints, row by row."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, columns: list[int], values: list[float], low: float, high: float) -> None:
        self.rows += [len(self.low)] * len(columns)
        self.columns += columns
        self.values += values
        self.low.append(low)
        self.high.append(high)

    def constraint(self, count: int) -> LinearConstraint:
        matrix = csr_array((self.values, (self.rows, self.columns)), shape=(len(self.low), count))
        return LinearConstraint(matrix, self.low, self.high)  # type: ignore[arg-type]


def windowed(instants: Instants, peak: float, count: int = _WINDOWS) -> float:
    """No schedule with at most so many bytes recomputes less than this; 0 for problems that are too large."""
    problem = instants.problem
    tasks, sizes = problem.tasks, problem.sizes
    storages = [s for s in instants.made if sizes[s] > peak * _SMALL and s not in problem.returned]
    makers = sorted({instants.made[s] for s in storages})
    spots = instants.evenly(count)
    width, windows = len(storages) + len(makers), len(spots)
    if not storages or not windows or width * windows > _VARIABLES:
        return 0.0
    resident = {s: i for i, s in enumerate(storages)}
    made = {t: len(storages) + i for i, t in enumerate(makers)}
    maker = {s: made[instants.made[s]] for s in storages}
    scale = problem.cost or 1.0
    early = problem.early
    cost = np.zeros(width)
    for t, i in made.items():
        cost[i] = 0.0 if t in early else tasks[t].cost / scale
    once = [i for t, i in made.items() if not tasks[t].again]
    low, high = np.zeros((windows, width)), np.ones((windows, width))
    high[:, once] = 0.0
    rows = _Rows()
    unit = max(peak, 1.0)
    for j, at in enumerate(spots):
        start, operands = j * width, instants.operands[at]
        low[j, [resident[s] for s in operands if s in resident]] = 1.0
        counted = [s for s in storages if s not in operands]
        rows.add(
            [start + resident[s] for s in counted],
            [sizes[s] / unit for s in counted],
            -np.inf,
            (peak - float(instants.there[at])) / unit,
        )
        until = spots[j + 1] if j + 1 < windows else len(instants.backward)
        read = {s for k in range(at + 1, until) for s in instants.operands[k]}
        read |= instants.operands[until] if until < len(instants.backward) else set()
        for s in read:
            if s in resident:
                rows.add([start + resident[s], start + maker[s]], [1.0, 1.0], 1.0, np.inf)
        for t, i in made.items():
            for s in set(tasks[t].reads):
                if s in resident:
                    rows.add([start + i, start + resident[s], start + maker[s]], [1.0, -1.0, -1.0], -np.inf, 0.0)
        if j + 1 < windows:
            for s, i in resident.items():
                rows.add([start + width + i, start + i, start + maker[s]], [1.0, -1.0, -1.0], -np.inf, 0.0)
    total = width * windows
    whole = total <= _INTEGERS
    found = milp(
        np.tile(cost, windows),
        integrality=np.full(total, int(whole)),
        bounds=Bounds(low.ravel(), high.ravel()),  # type: ignore[arg-type]
        constraints=rows.constraint(total),
        options={"node_limit": _NODES, "time_limit": _SECONDS, "mip_rel_gap": 1e-3},
    )
    bound = found.mip_dual_bound if whole else found.fun if found.status == 0 else None
    if bound is None or not np.isfinite(bound):
        return 0.0
    return max(float(bound) * (1 - _SURE) - _SURE, 0.0) * scale
