"""Limits of a function of one variable at minus and plus infinity, from its values far out.

The values along a geometric sequence of points are followed for as long as rounding leaves them meaningful (measured
by what the last bits of the argument do to them), extrapolated, and recognised as a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

_RATIO = 2.0**0.25
_STEPS = 1600  # to 1e120
_NUDGES = (2.0**-47, 3 * 2.0**-46, 5 * 2.0**-45, 7 * 2.0**-44)  # a smooth function's second difference vanishes
_NOISE = 1e-6  # relative, above which a value says nothing
_ROUNDING = 1e-13  # of the largest value on the way


def limit(function: Callable[[np.ndarray], np.ndarray], sign: int) -> float | None:
    """The limit as the argument goes to ``sign`` times infinity: a number, ``inf``, ``-inf``, or None if there is none.

    >>> limit(np.arctan, 1) == math.pi / 2, limit(np.exp, -1), limit(np.sin, 1)
    (True, 0.0, None)
    """
    x = sign * 1.1 * _RATIO ** np.arange(_STEPS)
    with np.errstate(all="ignore"):
        v = function(x)
        noise = np.max([np.abs(function(x * (1 + d)) + function(x * (1 - d)) - 2 * v) for d in _NUDGES], axis=0)
        largest = np.maximum.accumulate(np.where(np.isfinite(v), np.abs(v), 0.0))
        good = np.isfinite(v) & (noise <= np.maximum(_NOISE * np.abs(v), _ROUNDING * np.minimum(largest, 1e3)))
    count = int(np.argmin(good)) if not good.all() else _STEPS
    if count < 8:
        infinite = np.isinf(v[count:])
        return float(v[-1]) if infinite.any() and infinite[-1] else None
    beyond = v[count] if count < _STEPS else v[-1]
    v = v[:count]
    scale = max(float(np.max(np.abs(v))), 1e-300)
    if np.isinf(beyond) and abs(v[-1]) > 1e100:
        return float(beyond) if np.all(np.sign(v[-8:]) == np.sign(v[-1])) else None
    tail = v[-8:]
    steps = np.diff(v[min(count // 4, 20) :])
    if np.ptp(tail) <= 1e-11 * max(abs(tail[-1]), min(scale, 1.0)):
        return _recognised(float(tail[-1]), 1e-9, scale)
    found = _extrapolated(v)
    if found is not None:
        return _recognised(found, 1e-6, scale)
    turns = np.mean(np.sign(steps[1:]) * np.sign(steps[:-1]) < 0)
    if turns > 0.1:  # it oscillates: is the envelope closing?
        quarter = max(len(v) // 4, 4)
        envelope = np.max(np.abs(v[-quarter:])), np.max(np.abs(v[:quarter]))
        return 0.0 if envelope[0] < 1e-3 * envelope[1] else None
    half = steps[len(steps) // 2]
    if abs(steps[-1]) >= 0.4 * abs(half) or abs(v[-1]) > 10 * abs(v[len(v) // 2]) + 1e3:
        return math.copysign(math.inf, steps[-1])
    # 1 / log(x): slower than any power
    k = np.arange(count - 3, count) + math.log(1.1) / math.log(_RATIO)
    slow = float(np.polyfit(1 / k, v[-3:], 2)[-1])
    return _recognised(slow, 1e-3, scale, simple=True) if abs(slow - v[-1]) < 0.1 * scale else None


def _extrapolated(v: np.ndarray) -> float | None:
    """Aitken's step on the end of the sequence, where repeating it further back gives the same."""
    best: tuple[float, float] | None = None
    # The last values are the nearest to the limit, and the noisiest: the cut where the estimates agree best.
    for end in range(len(v), max(len(v) // 2, 20), -6):
        estimates = []
        for shift in (0, 2, 4, 8):
            a, b, c = (v[end - k - shift] for k in (9, 5, 1))
            bend = (c - b) - (b - a)
            if bend == 0 or not 0 <= (c - b) / (b - a if b != a else np.inf) < 0.97:  # slower than any power
                break
            estimates.append(float(c - (c - b) ** 2 / bend))
        if len(estimates) < 4:
            continue
        spread, size = max(estimates) - min(estimates), max(abs(estimates[0]), min(1.0, float(np.max(np.abs(v)))))
        if spread <= 1e-2 * abs(v[end - 1] - estimates[0]) or spread <= 1e-10 * size:
            error = max(spread / size, 1e-16)
            best = min(best or (math.inf, 0.0), (error, estimates[0]))
    return best[1] if best is not None and best[0] <= 1e-6 else None


# ---- numbers that have a name ------------------------------------------------------------------------------
_NAMED = {
    "": 1.0,
    "pi": math.pi,
    "sqrt(2)": math.sqrt(2),
    "sqrt(3)": math.sqrt(3),
    "sqrt(pi)": math.sqrt(math.pi),
    "log(2)": math.log(2),
    "exp(1)": math.e,
    "exp(-1)": math.exp(-1),
    "sqrt(2/pi)": math.sqrt(2 / math.pi),
}


def _recognised(x: float, tolerance: float, scale: float, simple: bool = False) -> float:
    """``x`` itself, or the named number within the tolerance of it."""
    if abs(x) <= tolerance * min(scale, 1.0):
        return 0.0
    named = _named(x, tolerance, simple)
    return named[0] if named else x


def number_text(x: float | None, digits: int = 6) -> str:
    """How a number is written: by name where it has one.

    >>> number_text(math.pi / 2), number_text(0.25), number_text(1.0998393)
    ('pi/2', '1/4', '1.09984')
    """
    if x is None:
        return "none"
    if math.isnan(x) or math.isinf(x):
        return str(x)
    named = _named(x, 1e-9)
    return named[1] if named else f"{x:.{digits}g}"


def _named(x: float, tolerance: float, simple: bool = False) -> tuple[float, str] | None:
    """The named number within the tolerance, and its name; ``simple``: with a small denominator only."""
    if not math.isfinite(x):
        return None
    if x == 0:
        return 0.0, "0"
    for name, unit in _NAMED.items():
        most = 4 if simple else 12 if name else 32
        ratio = Fraction(x / unit).limit_denominator(most)
        value = float(ratio) * unit
        if not ratio or abs(ratio.numerator) > 1000 or abs(value - x) > tolerance * abs(x):
            continue
        p, q = ratio.numerator, ratio.denominator
        short = repr(x if abs(x - value) > 1e-15 else value)
        if not name and q not in (1, 2, 3, 4, 6, 8) and len(short) <= 8:
            return value, short  # 0.05 rather than 1/20
        top = name if name and p == 1 else f"-{name}" if name and p == -1 else f"{p}*{name}" if name else str(p)
        return value, top if q == 1 else f"{top}/{q}"
    return None
