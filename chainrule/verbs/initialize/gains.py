"""Gains of plain chains: which weights keep values and gradients through many layers of one activation.

A layer whose outputs come in pairs u, -u (a mirrored one) sees any activation phi as the odd function
psi(u) = phi(u) - phi(-u): u itself for relu, gelu, silu and softplus, tanh(u / 2) for the sigmoid. Where psi is odd and
nearly linear at the size of its input, keeping the mean square also keeps the gradient, and orthogonal weights keep
every direction of both.

Sources: criticality, Schoenholz et al. 2017; dynamical isometry, Pennington et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chainrule.ops.quadrature import normal_nodes

Phi = Callable[[np.ndarray], np.ndarray]
_STEP = 1e-5


@dataclass(frozen=True)
class Averages:
    """E[phi], E[phi^2] and E[phi'^2] for a normal argument of mean zero and mean square ``q``."""

    q: float
    mean: float
    second: float
    slope: float

    @property
    def finite(self) -> bool:
        """Whether they are numbers with which a gain can be made."""
        return all(map(math.isfinite, (self.mean, self.second, self.slope))) and self.second > 0


def averages(phi: Phi, q: float) -> Averages:
    """The averages of an activation at a mean square, its kink (if it has one) at zero."""
    x, w = normal_nodes((0.0,), 0.0, math.sqrt(q))
    with np.errstate(all="ignore"):
        y = phi(x)
        step = _STEP * math.sqrt(q)
        slope = (phi(x + step) - phi(x - step)) / (2 * step)
    return Averages(q, float(np.sum(w * y)), float(np.sum(w * y * y)), float(np.sum(w * slope**2)))


def mirrored(phi: Phi) -> Phi:
    """psi(u) = phi(u) - phi(-u)."""
    return lambda u: phi(u) - phi(-u)


def is_odd(phi: Phi) -> bool:
    """Whether phi(-u) = -phi(u)."""
    x = np.array([0.05, 0.37, 0.9, 1.7, 3.1])
    with np.errstate(all="ignore"):
        y, mirror = phi(x), phi(-x)
    scale = float(np.max(np.abs(y))) if np.all(np.isfinite(y)) else math.nan
    return bool(scale > 0 and np.all(np.abs(y + mirror) <= 1e-6 * scale))


def is_linear(phi: Phi) -> bool:
    """Whether phi(u) = c u for c > 0."""
    x = np.array([-3.0, -1.1, -0.2, 0.4, 1.6, 2.5])
    with np.errstate(all="ignore"):
        ratio = phi(x) / x
    return bool(np.all(np.isfinite(ratio)) and ratio[0] > 0 and np.ptp(ratio) <= 1e-6 * ratio[0])


def stable_size(phi: Phi, depth: int, drift: float = 1.5) -> float:
    """The largest of a few mean squares at whose critical point deviations grow by less than ``drift`` over the depth.

    A slope of the map of mean squares above 1 (gelu, silu) drives a chain away from its fixed point: the smaller the
    mean square, the nearer is the slope to 1.
    """
    for q in (0.1, 0.03, 0.01, 0.003):
        gain, bias = critical_point(phi, q)
        step = 0.01 * q
        up, down = (gain**2 * averages(phi, q + s).second + bias for s in (step, -step))
        if max((up - down) / (2 * step), 1e-12) ** depth <= drift:
            return q
    return 0.001


def is_critical(phi: Phi, q: float) -> bool:
    """Whether :func:`critical_point` at ``q`` is one: sigmoid and softplus have none at small mean squares.

    >>> is_critical(np.tanh, 0.1), is_critical(lambda u: np.logaddexp(u, 0.0), 0.1)
    (True, False)
    """
    return abs(critical_point(phi, q)[0] ** 2 * averages(phi, q).slope - 1.0) < 1e-6


def critical_point(phi: Phi, q: float) -> tuple[float, float]:
    """(gain, variance of the bias) with chi = 1 at the fixed point ``q`` of the mean square.

    gain^2 E[phi'^2] = 1 and gain^2 E[phi^2] + bias = q. Where that would need a negative bias variance there is no
    critical point at ``q``: the gain is then the one that keeps the mean square, without a bias.

    >>> gain, bias = critical_point(np.tanh, 0.1)
    >>> round(gain, 4), round(bias, 5)
    (1.0852, 0.00083)
    """
    a = averages(phi, q)
    gain = 1 / math.sqrt(a.slope) if a.slope > 0 else math.inf
    bias = q - gain**2 * a.second
    if not math.isfinite(gain) or bias < -1e-9 * q:
        return math.sqrt(q / a.second), 0.0
    return gain, max(bias, 0.0)
