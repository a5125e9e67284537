"""Expectations of a function of one normal value, and of a pair of them, in numbers.

One value: composite Gauss-Legendre quadrature split at the function's kinks. A pair with correlation c: the function's
Hermite coefficients a_k at the same law, since ``E[f(u) f(u')] = sum over k of a_k^2 c^k`` (Mehler). Near c = 1 the
series of a function with kinks converges slowly; there a cubic in the angle arccos(c) takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

_REACH, _SEGMENTS, _POINTS = 9.0, 8, 16
_APART = 0.05  # deviations
_TERMS, _NEAR = 80, 0.85


@lru_cache(maxsize=8)
def _legendre(points: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(points)


def nodes(mean: np.ndarray, std: np.ndarray, breaks: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points u, their standardised z, weights) for each of several normal laws: (laws, nodes)."""
    mean, std = np.atleast_1d(mean).astype(float), np.atleast_1d(std).astype(float)
    base = np.broadcast_to(np.linspace(-_REACH, _REACH, _SEGMENTS + 1), (mean.size, _SEGMENTS + 1))
    if len(breaks):
        safe = np.where(std > 0, std, 1.0)[:, None]
        inside = np.clip((np.asarray(breaks)[None, :] - mean[:, None]) / safe, -_REACH, _REACH)
        # no short segments beside a break, where a numerical slope would reach across it
        gap = np.abs(base[:, :, None] - inside[:, None, :])
        nearest = np.take_along_axis(inside, gap.argmin(axis=2), axis=1)
        base = np.where(gap.min(axis=2) < _APART, nearest, base)
        base = np.sort(np.concatenate([base, inside], axis=1), axis=1)
    x, w = _legendre(_POINTS)
    left, right = base[:, :-1, None], base[:, 1:, None]
    z = ((right - left) * x + (right + left)) / 2
    weights = (right - left) / 2 * w * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    z, weights = z.reshape(mean.size, -1), weights.reshape(mean.size, -1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return mean[:, None] + std[:, None] * z, z, weights


def hermite(z: np.ndarray, terms: int) -> np.ndarray:
    """Orthonormal Hermite polynomials, (terms, nodes)."""
    table = np.empty((terms, z.size))
    table[0], table[1] = 1.0, z
    for k in range(1, terms - 1):
        table[k + 1] = (z * table[k] - np.sqrt(k) * table[k - 1]) / np.sqrt(k + 1)
    return table


@dataclass(frozen=True)
class Series:
    """``E[f(u) f(u')]`` as a function of the correlation of u and u'."""

    squares: np.ndarray
    at_one: float
    steepness: float | None = None

    @classmethod
    def of(cls, values: np.ndarray, z: np.ndarray, weights: np.ndarray, slopes: np.ndarray | None = None) -> Series:
        """From the function's values (and slopes by z) at the nodes of one law."""
        coefficients = hermite(z, _TERMS) @ (weights * values)
        at_one = float(np.sum(weights * values * values))
        steep = None if slopes is None else float(np.sum(weights * slopes**2))
        # of a function that jumps, the numerical slope is very large at the jump
        return cls(coefficients**2, at_one, steep if steep is not None and steep < 1e3 * at_one else None)

    def __call__(self, c: np.ndarray) -> np.ndarray:
        """At correlations between -1 and 1."""
        c = np.clip(np.asarray(c, dtype=float), -1.0, 1.0)
        found = np.polynomial.polynomial.polyval(c, self.squares)
        missing = self.at_one - float(self.squares.sum())
        if missing <= 1e-9 * abs(self.at_one) or not np.any(c > _NEAR):
            return found
        k = np.arange(_TERMS)
        a, s = self.squares, np.sqrt(1 - _NEAR**2)
        value = float(np.sum(a * _NEAR**k))
        slope = float(np.sum((a * k)[1:] * _NEAR ** (k[1:] - 1)))
        bend = float(np.sum((a * k * (k - 1))[2:] * _NEAR ** (k[2:] - 2)))
        t = float(np.arccos(_NEAR))
        first, second = -s * slope, s * s * bend - _NEAR * slope
        theta = np.arccos(np.maximum(c, _NEAR))
        if self.steepness is not None:  # E[f f'] = E[f^2] - (1 - c) E[slope^2] + ...
            q = -self.steepness / 2
            matrix = np.array([[t**3, t**4], [3 * t * t, 4 * t**3]])
            r, u = np.linalg.solve(matrix, [value - self.at_one - q * t * t, first - 2 * q * t])
            near = self.at_one + theta * theta * (q + theta * (r + theta * u))
        else:
            matrix = np.array([[t, t * t, t**3], [1, 2 * t, 3 * t * t], [0, 2, 6 * t]])
            p, q, r = np.linalg.solve(matrix, [value - self.at_one, first, second])
            near = self.at_one + theta * (p + theta * (q + theta * r))
        return np.where(c > _NEAR, near, found)


def derivative(f: Function, u: np.ndarray, std: np.ndarray | float) -> np.ndarray:
    """f' by central differences, at points away from the kinks."""
    if not np.any(std):  # one point, where torch takes the derivative from the left
        step = 1e-7 * np.maximum(np.abs(u), 1.0)
        return (f(u) - f(u - step)) / step
    step = 1e-5 * np.abs(std)
    return (f(u + step) - f(u - step)) / (2 * step)


@lru_cache(maxsize=512)
def _largest_nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights under the law of the largest of ``count`` independent standard normal values."""
    z = np.linspace(-8.5, 8.5, 400)
    phi = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    step = z[1] - z[0]
    cdf = np.clip(np.cumsum(phi) * step - phi * step / 2, 0, 1)
    weights = count * phi * cdf ** (count - 1)
    return z, weights / weights.sum()


def of_largest(function: Function, mean: float, std: float, rho: float, count: int) -> tuple[float, float, float]:
    """(E, E of the square, variance given the common part) of function(largest of equally correlated values)."""
    z, w = _largest_nodes(count)
    z0, w0 = np.polynomial.hermite_e.hermegauss(41)
    w0 = w0 / w0.sum()
    grid = mean + std * (np.sqrt(rho) * z0[:, None] + np.sqrt(1 - rho) * z[None, :])
    with np.errstate(all="ignore"):
        values = np.broadcast_to(np.asarray(function(grid), dtype=float), grid.shape)
    inner = values @ w
    first, second = float(w0 @ inner), float(w0 @ (values**2 @ w))
    return first, second, float(w0 @ inner**2) - first**2
