"""Expectations under a normal law, by composite Gauss-Legendre quadrature split at declared kinks.

A plain Gauss-Hermite rule straddles kinks and is wrong by percents (relu's slope by 9 %, selu's by the same).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from chainrule.ir import Node

_SEGMENTS, _POINTS, _REACH = 8, 24, 10.0


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Points and weights on [-1, 1]; finding them takes longer than using them."""
    return np.polynomial.legendre.leggauss(_POINTS)


def normal_nodes(kinks: Sequence[float], mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for expectations under N(mean, std^2), with a segment border at every kink.

    Composite Gauss-Legendre on mean +- 10 std: exact to rounding for functions that are smooth between the kinks.
    """
    if std == 0:
        return np.array([mean]), np.array([1.0])
    borders = np.linspace(-_REACH, _REACH, _SEGMENTS + 1)
    inside = [(k - mean) / std for k in kinks if abs(k - mean) < _REACH * std]
    borders = np.unique(np.concatenate([borders, inside]))
    x, w = _legendre()
    left, right = borders[:-1, None], borders[1:, None]
    z = ((right - left) * x + (right + left)) / 2
    weights = (right - left) / 2 * w * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return (mean + std * z).ravel(), weights.ravel()


def expectations(
    functions: Sequence[Callable[[np.ndarray], np.ndarray]], mean: Any, variance: Any, kinks: Sequence[float]
) -> list[np.ndarray]:
    """E[f(u)] for each function, u ~ N(mean, variance), elementwise over arrays of means and variances."""
    mean, variance = np.broadcast_arrays(np.asarray(mean, dtype=float), np.asarray(variance, dtype=float))
    pairs, back = np.unique(np.stack([mean.ravel(), variance.ravel()]), axis=1, return_inverse=True)
    values = np.empty((len(functions), pairs.shape[1]))
    for k, (m, v) in enumerate(pairs.T):
        u, w = normal_nodes(kinks, m, np.sqrt(max(v, 0.0)))
        for f, function in enumerate(functions):
            values[f, k] = np.sum(w * function(u))
    return [row[back.ravel()].reshape(mean.shape) for row in values]


# ---- any function of one value -----------------------------------------------------------------------------
_WIDE = 14.0  # standard deviations: far enough for exp(4 u)


def law_range(law: str, mean: float, std: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Where the law has its mass."""
    if law == "uniform" and bounds is not None:
        return bounds
    return mean - _WIDE * std, mean + _WIDE * std


def law_nodes(
    law: str, mean: float, std: float, bounds: tuple[float, float] | None, breaks: Sequence[float], fine: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights under a normal or uniform law, with segments that shrink towards every break.

    ``fine`` is a second rule (farther out, closer to the breaks): where the two differ there is no expectation.
    """
    if std == 0:
        return np.array([mean]), np.array([1.0])
    if law == "uniform" and bounds is not None:
        low, high = bounds
        ends = [low, high]
    else:
        reach = _WIDE + 4.0 if fine else _WIDE
        low, high, ends = mean - reach * std, mean + reach * std, []
    borders = np.linspace(low, high, 24 if fine else 15)
    inner = [b for b in breaks if low < b < high]
    graded = [
        b + s * (high - low) * 10.0**-p for b in (*inner, *ends) for s in (-1, 1) for p in range(2, 14 if fine else 11)
    ]
    borders = np.unique(np.concatenate([borders, inner, [g for g in graded if low < g < high]]))
    x, w = _legendre()
    left, right = borders[:-1, None], borders[1:, None]
    points = ((right - left) * x + (right + left)) / 2
    weights = (right - left) / 2 * w
    if law == "uniform":
        return points.ravel(), (weights / (high - low)).ravel()
    z = (points - mean) / std
    return points.ravel(), (weights * np.exp(-z * z / 2) / (std * np.sqrt(2 * np.pi))).ravel()


def kinks_of(node: Node) -> list[float]:
    """Where an op of one argument has kinks: as declared, and at its bounds, which are parameters (either sign)."""
    declared = {float(kink.at) for kink in node.op.kinks}
    if not declared:
        return []
    bounds = {float(v) for v in node.params.values() if isinstance(v, int | float) and np.isfinite(v)}
    return sorted(declared | bounds | {-b for b in bounds})


def breaks_of(
    ops: Sequence[Node],
    table: Callable[[np.ndarray], Mapping[Node, Any]],
    grid: np.ndarray,
    most: int = 12,
    halvings: int = 40,
    apart: float = 1e-9,
) -> list[float]:
    """Where an operand passes zero or a declared kink of its op, or two operands of an op meet: in order.

    Args:
        ops: elementwise nodes. table: the values of them and of their operands at points. grid: points, rising.
        most: what changes sign more often is left out. halvings: of the interval of a change.
        apart: two changes nearer than this part of the grid's width are one.
    """

    def arguments(x: np.ndarray) -> list[np.ndarray]:
        values, found = table(x), []
        for n in ops:
            operands = [np.broadcast_to(np.asarray(values[i], dtype=float), x.shape) for i in n.inputs]
            found += operands
            found += [operands[0] - kink for kink in kinks_of(n) if kink]
            found += [a - b for k, a in enumerate(operands) for b in operands[k + 1 :]]
        return found

    breaks: list[float] = []
    with np.errstate(all="ignore"):
        for k, values in enumerate(arguments(grid)):
            for sign in (1.0, -1.0):
                beyond = sign * values > 0
                (at,) = np.nonzero(beyond[1:] != beyond[:-1])
                if not 0 < at.size <= most:
                    continue
                left, right, side = grid[at], grid[at + 1], beyond[at]
                for _ in range(halvings):
                    middle = (left + right) / 2
                    same = (sign * arguments(middle)[k] > 0) == side
                    left, right = np.where(same, middle, left), np.where(same, right, middle)
                breaks += [float(x) for x in right]
    breaks.sort()
    width = (grid[-1] - grid[0]) * apart
    return [b for k, b in enumerate(breaks) if k == 0 or b - breaks[k - 1] > width]
