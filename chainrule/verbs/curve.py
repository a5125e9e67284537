"""A function of one variable as a curve: its domain, kinks, poles, largest slope, and where it is flat.

Everything is found from values and slopes at points: a grid that is fine around 0 and reaches far out, and bisection
where something changes between two points of it. ``verbs/limits.py`` follows the curve to its ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray
_FAR = 1e7  # how far out the grid reaches
_KINKS_WITHIN = 100.0
_SAME = 1e-12


@dataclass(frozen=True)
class Corner:
    """A point where slope or value jumps.

    Attributes:
        at: the point. left, right: slopes on both sides. declared: slope at the point. jump: of the value.
    """

    at: float
    left: float
    right: float
    declared: float
    jump: float


def _grid() -> Array:
    near = np.arange(0, 16, 1 / 128)
    far = np.geomspace(16, _FAR, 600)
    half = np.concatenate([near, far])
    return np.concatenate([-half[:0:-1], half])


@dataclass(frozen=True, eq=False)
class Curve:
    """``value`` and ``slope`` map arrays to arrays, elementwise; both may give nan and inf.

    >>> curve = Curve(np.abs, np.sign)
    >>> curve.corners[0].at, curve.steepest
    (0.0, 1.0)
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]

    # ---- on the grid ---------------------------------------------------------------------------------------
    @cached_property
    def grid(self) -> Array:
        """The points that are looked at first."""
        return _grid()

    @cached_property
    def values(self) -> Array:
        """On the grid."""
        return self.value(self.grid)

    @cached_property
    def slopes(self) -> Array:
        """On the grid, nan where the curve is not defined."""
        return np.where(np.isnan(self.values), np.nan, self.slope(self.grid))

    @cached_property
    def domain(self) -> tuple[float, float]:
        """The interval between the first and the last defined point; nan beyond 100 is overflow, not an edge."""
        defined = np.flatnonzero(~np.isnan(self.values))
        if not defined.size:
            return (np.nan, np.nan)
        edges = []
        for inside, outside, end in ((defined[0], defined[0] - 1, -np.inf), (defined[-1], defined[-1] + 1, np.inf)):
            if not 0 <= outside < self.grid.size or abs(self.grid[inside]) > 100:
                edges.append(end)
                continue
            a, b = self.grid[inside], self.grid[outside]
            for _ in range(100):
                middle = (a + b) / 2
                a, b = (a, middle) if np.isnan(self.value(np.array([middle]))[0]) else (middle, b)
            edges.append(rounded(float(a)))
        return edges[0], edges[1]

    # ---- corners and poles ---------------------------------------------------------------------------------
    @cached_property
    def _jumps(self) -> tuple[tuple[Corner, ...], tuple[float, ...]]:
        found: list[Corner] = []
        poles: list[float] = []
        near = self.grid[np.abs(self.grid) <= _KINKS_WITHIN]
        for at in sorted({*_jump_places(self.slope, near), *_jump_places(self.value, near)}):
            step = 1e-9 * max(1.0, abs(at))
            x = np.array([at - step, at, at + step])
            f, s = self.value(x), self.slope(x)
            if np.isnan(f[[0, 2]]).any():
                continue  # the edge of the domain
            if np.abs(f[[0, 2]]).max() > 1e6 or not np.isfinite(s[[0, 2]]).all():
                if np.abs(self.value(np.array([at - 0.01, at + 0.01]))).min() < 1e12:  # else an overflow
                    poles.append(at)
                continue
            # What is smooth shrinks with the step, a jump stays.
            close = np.array([at - step / 64, at + step / 64])
            jump, turn = float(np.diff(self.value(close))[0]), abs(float(np.diff(self.slope(close))[0]))
            jump = 0.0 if abs(jump) <= max(1e-7, 0.5 * abs(f[2] - f[0]), 1e-7 * abs(s[1])) else rounded(jump)
            turn = 0.0 if turn <= 0.5 * abs(s[2] - s[0]) else turn
            if jump == 0 and turn <= 1e-6 * max(abs(s[0]), abs(s[2])) + 1e-8:
                continue
            found.append(Corner(at, rounded(s[0]), rounded(s[2]), rounded(s[1]), jump))
        return tuple(sorted(found, key=lambda c: abs(c.at))), tuple(sorted(poles, key=abs))

    @property
    def corners(self) -> tuple[Corner, ...]:
        """Where slope or value jumps, the nearest to 0 first."""
        return self._jumps[0]

    @property
    def poles(self) -> tuple[float, ...]:
        """Where the value is infinite on a side, the nearest to 0 first."""
        return self._jumps[1]

    @cached_property
    def bends(self) -> tuple[float, ...]:
        """Points around places where the slope of the slope jumps: quadrature takes small steps there."""
        near = np.abs(self.grid) <= 16
        x, s = self.grid[near], self.slopes[near]
        with np.errstate(all="ignore"):
            second = np.abs(np.diff(s, 2))
            beside = np.maximum(np.roll(second, 3), np.roll(second, -3))
            third = np.abs(np.diff(s, 3))
            usual = np.minimum(np.roll(third, 3), np.roll(third, -3))
            spikes = np.flatnonzero((second > 8 * beside) & (second > 1e-9))
            spikes = np.union1d(spikes, np.flatnonzero((third > 30 * usual) & (third > 1e-7)))
        if not 0 < spikes.size <= 24:
            return ()
        return tuple(np.unique([np.linspace(x[k], x[min(k + 3, x.size - 1)], 13) for k in spikes]).tolist())

    # ---- the largest slope ---------------------------------------------------------------------------------
    @cached_property
    def _peak(self) -> tuple[float, float]:
        """(largest \\|slope\\| at a point, the point); inf where it grows without bound."""
        size = np.abs(self.slopes)
        size = np.where(np.isnan(size), -1.0, size)
        if self.poles:
            return np.inf, self.poles[0]
        low, high = self.domain
        for edge in (low, high):  # a root starts with an infinite slope
            if np.isfinite(edge):
                inward = 1.0 if edge == low else -1.0
                close = np.abs(self.slope(edge + inward * np.geomspace(1e-12, 1e-3, 4)))
                if close[0] > 10 * close[1] > 100 * close[2]:
                    return np.inf, edge
                if np.isfinite(close[0]) and close[0] > 1e3 * (close[-1] + 1e-300):
                    return np.inf, edge
        if np.any(np.isinf(size)):
            at = self.grid[np.flatnonzero(np.isinf(size))]
            return np.inf, float(at[np.argmin(np.abs(at))])
        best = (-1.0, 0.0)
        tops = np.flatnonzero((size[1:-1] >= size[:-2]) & (size[1:-1] >= size[2:])) + 1
        tops = tops[np.argsort(-size[tops], kind="stable")][:12]
        for k in [*tops, int(np.argmax(size))]:
            around = (self.grid[max(k - 1, 0)], self.grid[k], self.grid[min(k + 1, size.size - 1)])
            value, at = self._refined(*map(float, around))
            nearer = abs(value - best[0]) <= _SAME * value and abs(at) < abs(best[1])
            if value > best[0] * (1 + _SAME) or nearer:
                best = (max(value, best[0]), at)
        for corner in self.corners:
            value = max(abs(corner.left), abs(corner.right), abs(corner.declared))
            if np.isfinite(value) and value >= best[0] * (1 - 1e-9):
                best = (max(value, best[0]), corner.at)
        return best

    def _refined(self, low: float, start: float, high: float) -> tuple[float, float]:
        """The highest \\|slope\\| between two points."""
        top, at = float(np.abs(self.slope(np.array([start]))[0])), float(start)
        for _ in range(30):
            x = np.linspace(low, high, 17)
            y = np.nan_to_num(np.abs(self.slope(x)), nan=-1.0)
            k = int(np.argmax(y))
            if y[k] > top:
                top, at = float(y[k]), float(x[k])
            low, high = x[max(k - 1, 0)], x[min(k + 1, 16)]
            if high - low < 1e-7 * max(1.0, abs(at)):  # below this the top is flat to rounding
                break
        level = self._stationary(at, top)
        return top, level if np.abs(self.slope(np.array([level]))[0]) >= top * (1 - 1e-12) else rounded(at, 7)

    def _stationary(self, at: float, top: float) -> float:
        """The point where the slope is level, by the symmetry of a top; ``at`` itself where there is no such point."""
        for width in (1e-3, 1e-4):
            x = at + width * np.array([-1.0, 0.0, 1.0])
            y = np.abs(self.slope(x))
            bend = y[0] - 2 * y[1] + y[2]
            if not bend < -1e-13 * top or abs(y[0] - y[2]) > -10 * bend:
                return rounded(at, 7)
            at = at + width * (y[0] - y[2]) / (2 * bend)
        return rounded(at, 7)

    @property
    def steepest(self) -> float:
        """The largest \\|slope\\| found at a point."""
        return self._peak[0]

    @property
    def steepest_at(self) -> float:
        """A point where it is found, the one nearest to 0."""
        return self._peak[1]

    def plateau(self, level: float) -> tuple[float, float] | None:
        """The interval around the steepest point where \\|slope\\| is ``level`` exactly; None if it is a point."""
        on = np.abs(self.slopes) >= level * (1 - 1e-13)
        on[1:-1] |= on[:-2] & on[2:] & np.isin(self.grid[1:-1], [c.at for c in self.corners])  # abs has a hole at 0
        runs = [r for r in _runs(on) if r[1] - r[0] >= 2]
        if not runs:
            return None
        first, last = min(reversed(runs), key=lambda r: min(abs(self.grid[r[0]]), abs(self.grid[r[1]])))
        edges = []
        for inside, outside, end in ((first, first - 1, -np.inf), (last, last + 1, np.inf)):
            if not 0 <= outside < self.grid.size:
                edges.append(end)
                continue
            strict = self._crossing(inside, outside, lambda s: np.abs(s) >= level * (1 - 1e-13))
            loose = self._crossing(inside, outside, lambda s: np.abs(s) >= level * (1 - 1e-9))
            if abs(strict - loose) > 1e-3 or abs(self._step_at(strict)) < 1e-9 * level:
                return None  # the slope comes close to it, and is never there
            edges.append(rounded(strict))
        return edges[0], edges[1]

    def _step_at(self, at: float) -> float:
        near = np.abs(self.slope(np.array([at - 1e-4, at + 1e-4])))
        return float(near[1] - near[0])

    def _crossing(self, inside: int, outside: int, holds: Callable[[Array], Array]) -> float:
        """Between two points of the grid: where ``holds(slope)`` ends."""
        a, b = float(self.grid[inside]), float(self.grid[outside])
        for _ in range(80):
            middle = (a + b) / 2
            a, b = (middle, b) if holds(self.slope(np.array([middle])))[0] else (a, middle)
        return a

    # ---- flat parts ----------------------------------------------------------------------------------------
    def flat(self, level: float, ends: tuple[float | None, float | None]) -> tuple[tuple[float, float], ...]:
        """Where \\|slope\\| < ``level`` up to an end of the domain, and inner intervals where it is exactly zero.

        Args:
            level: usually one percent of the largest. ends: limits of the slope at both ends, None where there is none.
        """
        size = np.abs(self.slopes)
        # Far out a slope may be inf/inf in floats: its limit stands for it.
        inside = (self.grid > self.domain[0]) & (self.grid < self.domain[1])
        for end, side in zip(ends, (self.grid < 0, self.grid > 0), strict=True):
            if end is not None and np.isfinite(end):
                beyond = np.isnan(size) & side & (np.abs(self.grid) > 100) & inside
                size = np.where(beyond, abs(end), size)
        defined = np.flatnonzero(~np.isnan(size))
        if not defined.size:
            return ()
        low, high = self.domain
        first, last = int(defined[0]), int(defined[-1])
        found = []
        for a, b in _runs(size < level):
            at_low, at_high = a == first, b == last
            is_end = (at_low and ends[0] is not None and abs(ends[0]) < level) or (
                at_high and ends[1] is not None and abs(ends[1]) < level
            )
            if not is_end:
                found += [(self._zero_edge(p, p - 1), self._zero_edge(q, q + 1)) for p, q in _runs(size[a : b + 1] == 0)
                          for p, q in [(p + a, q + a)] if q - p >= 3]  # fmt: skip
                continue
            left = low if at_low else rounded(self._crossing(a, a - 1, lambda s: np.abs(s) < level))
            right = high if at_high else rounded(self._crossing(b, b + 1, lambda s: np.abs(s) < level))
            found.append((left, right))
        return tuple(found)

    def _zero_edge(self, inside: int, outside: int) -> float:
        return rounded(self._crossing(inside, outside, lambda s: s == 0))


def rounded(x: float, digits: int = 9) -> float:
    """The number without the noise of a bisection: fewer digits where they hardly move it."""
    x = float(x)
    if not np.isfinite(x):
        return x
    for d in range(digits):
        short = round(x, d)
        if abs(short - x) <= 10.0**-digits * max(1.0, abs(x)):
            return short + 0.0
    return x


def _runs(mask: Array) -> list[tuple[int, int]]:
    """(first, last) of every run of true entries."""
    padded = np.concatenate([[False], mask, [False]]).astype(int)
    starts, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1) - 1
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def _jump_places(function: Callable[[Array], Array], grid: Array) -> list[float]:
    """Where a function jumps: the half of an interval with the larger step, until its ends are neighbours.

    The step of a smooth function shrinks with the interval; that of a jump stays.
    """
    values = function(grid)
    with np.errstate(all="ignore"):
        finite = np.abs(values[np.isfinite(values)])
        floor = 1e-12 * min(1.0, float(np.max(finite, initial=0.0))) + 1e-300
        scale = np.maximum(np.abs(values[:-1]), np.abs(values[1:]))
    low, high, at_low, at_high = grid[:-1], grid[1:], values[:-1], values[1:]
    for _ in range(56):
        with np.errstate(all="ignore"):
            step = np.abs(at_high - at_low)
            keep = (step > 1e-7 * np.minimum(scale, 1e300) + floor) & ~np.isnan(step)
        low, high, at_low, at_high, scale = (a[keep] for a in (low, high, at_low, at_high, scale))
        if not low.size:
            return []
        middle = (low + high) / 2
        value = function(middle)
        with np.errstate(all="ignore"):
            left = ~(np.abs(value - at_low) < np.abs(at_high - value))
        low, at_low = np.where(left, low, middle), np.where(left, at_low, value)
        high, at_high = np.where(left, middle, high), np.where(left, value, at_high)
    return list(dict.fromkeys(rounded(float(x)) for x in (low + high) / 2))
