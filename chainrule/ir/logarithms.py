"""The logarithm of a mean square with a given relative variance: how far its mean lies below, and its variance.

A mean square of few independent normal values has a gamma law: of relative variance 1 / k, the logarithm has the mean
psi(k) - log k and the variance psi'(k). Beyond that of a single square (2) the value is taken as a product of squares.
"""

from __future__ import annotations

from math import log

_SQUARE = 2.0  # relative variance of one normal value's square


def log_variance(relative: float) -> float:
    """Variance of the logarithm.

    >>> round(log_variance(0.01), 5), round(log_variance(2.0), 3)  # nearly the variance itself; pi^2 / 2
    (0.01005, 4.935)
    """
    if not relative > 0:
        return 0.0
    if relative > _SQUARE:
        return log_variance(_SQUARE) * log(1.0 + relative) / log(1.0 + _SQUARE)
    x, found = 1.0 / relative, 0.0
    while x < 6.0:
        found, x = found + 1.0 / x**2, x + 1.0
    return found + 1.0 / x + 1.0 / (2 * x**2) + 1.0 / (6 * x**3) - 1.0 / (30 * x**5) + 1.0 / (42 * x**7)


def log_shortfall(relative: float) -> float:
    """How far the mean of the logarithm lies below the logarithm of the mean: about half the variance.

    >>> round(log_shortfall(0.01), 5), round(log_shortfall(2.0), 4)  # log 2 + Euler's constant
    (0.00501, 1.2704)
    """
    if not relative > 0:
        return 0.0
    if relative > _SQUARE:
        return log_shortfall(_SQUARE) * log(1.0 + relative) / log(1.0 + _SQUARE)
    x = 1.0 / relative
    found = log(x)
    while x < 6.0:
        found, x = found + 1.0 / x, x + 1.0
    return found - log(x) + 1.0 / (2 * x) + 1.0 / (12 * x**2) - 1.0 / (120 * x**4) + 1.0 / (252 * x**6)
