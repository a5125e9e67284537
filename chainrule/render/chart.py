"""Charts for the page: lines, dots and bands over a linear or logarithmic axis, as SVG in the page's own colours.

Plain markup: no script, nothing to load, text that follows the page's font and both colour schemes. A point says its
numbers when the mouse rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 14.0, 38.0
_MOST_DOTS = 140

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One thing that is drawn.

    Attributes:
        label: for the legend. colour: one of the page's (``forward``, ``backward``, ``good``, ``bad``, ``quiet``).
        points: (x, y); what the axis cannot show leaves a gap. style: ``line``, ``dots``, ``rings``, ``steps`` or
            ``area``. band: (x, low, high). titles: what a point says, in place of its numbers.
    """

    label: str
    colour: str
    points: Sequence[Point] = ()
    style: str = "line"
    band: Sequence[tuple[float, float, float]] = ()
    titles: Sequence[str] = ()


def chart(
    series: Sequence[Series],
    *,
    name: str,
    x_label: str = "",
    y_text: Callable[[float], str] | None = None,
    x_text: Callable[[float], str] | None = None,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    level: tuple[float, str] | None = None,
) -> str:
    """The SVG with its legend; empty where no point can be shown.

    Args:
        name: for screen readers. x_label: below the axis. y_text, x_text: how numbers are written on the axes.
        log: a logarithmic y axis. marks: labelled places on the x axis in place of numbers. level: a labelled
            horizontal line.
    """
    y_text = y_text or _plain
    x_text = x_text or _plain
    shown = [(s, [p for p in s.points if _fits(p[1], log)]) for s in series]
    bands = [(s, [b for b in s.band if _fits(b[1], log) and _fits(b[2], log)]) for s in series]
    ys = [y for _, points in shown for _, y in points] + ([level[0]] if level and _fits(level[0], log) else [])
    if not any(points for _, points in shown):
        return ""
    xs = [x for _, points in shown for x, _ in points]
    if log and ys:
        low, high = min(ys), max(ys)
        within = [e for _, band in bands for _, *ends in band for e in ends if low / 30 < e < high * 30]
        ys += within
    scale = _Scale.of(xs, ys, log)
    parts = [_axes(scale, y_text, x_text, x_label, marks)]
    for s, band in bands:
        if len(band) > 1:
            outline = [(scale.x(x), scale.y(h)) for x, _, h in band] + [(scale.x(x), scale.y(b)) for x, b, _ in band[::-1]]
            parts.append(f'<polygon points="{_points(outline)}" fill="var(--{s.colour})" class="band"/>')
    if level and _fits(level[0], log):
        at = scale.y(level[0])
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="level"/>')
        parts.append(_text(_WIDTH - _RIGHT, at - 5, "end", escape(level[1])))
    for s, points in shown:
        parts.append(_drawn(s, points, scale, x_text, y_text))
    body = "".join(parts)
    svg = (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(name, quote=True)}">{body}</svg>'
    )
    return f'{svg}<p class="legend">{"".join(_key(s) for s in series if s.label)}</p>'


def spark(values: Sequence[float | None], *, reach: float, name: str) -> str:
    """Gains over blocks as a small line around no change; ``reach``: the gain at the top, its inverse at the bottom."""
    usable = [(k, v) for k, v in enumerate(values) if v is not None and v > 0 and math.isfinite(v)]
    if not usable or reach <= 1:
        return ""
    span = max(len(values) - 1, 1)

    def at(k: int, v: float) -> Point:
        share = max(-1.0, min(1.0, math.log10(v) / math.log10(reach)))
        return 2 + 96 * k / span, 12 - 10 * share

    line = _points([at(k, v) for k, v in usable])
    return (
        f'<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label="{escape(name)}">'
        f'<line x1="0" x2="100" y1="12" y2="12"/><polyline points="{line}"/></svg>'
    )


# ---- scales ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, xs: Sequence[float], ys: Sequence[float], log: bool) -> _Scale:
        x_low, x_high = min(xs), max(xs)
        low, high = min(ys), max(ys)
        if log:
            room = max((high / low) ** 0.06, 1.15)
            low, high = low / room, high * room
        else:
            low = min(low, 0.0)
            high = high * 1.06 if high > low else low + 1.0
        return cls(x_low, x_high if x_high > x_low else x_low + 1, low, high, log)

    def x(self, x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - self.x_low) / (self.x_high - self.x_low)

    def y(self, y: float) -> float:
        if self.log:
            share = math.log(y / self.low) / math.log(self.high / self.low)
        else:
            share = (y - self.low) / (self.high - self.low)
        share = max(-0.02, min(1.02, share))
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def y_ticks(self) -> list[float]:
        if not self.log:
            return _round_numbers(self.low, self.high, 5)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        if len(decades) > 3:
            step = max(-(-len(decades) // 7), 1)
            ticks = [10.0**d for d in decades if d % step == 0]
        else:
            ticks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        return [t for t in ticks if self.low <= t <= self.high]


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _fits(y: float | None, log: bool) -> bool:
    return y is not None and math.isfinite(y) and (y > 0 or not log)


# ---- drawing -----------------------------------------------------------------------------------------------
def _axes(
    scale: _Scale,
    y_text: Callable[[float], str],
    x_text: Callable[[float], str],
    x_label: str,
    marks: Sequence[tuple[float, str]],
) -> str:
    parts = []
    for tick in scale.y_ticks():
        at = scale.y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(_text(_LEFT - 7, at + 4, "end", escape(y_text(tick))))
    bottom = _HEIGHT - _BOTTOM
    parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    if marks:
        first, last = scale.x(marks[0][0]), scale.x(marks[-1][0])
        parts.append(_text(first, bottom + 16, "start", escape(marks[0][1])))
        if len(marks) > 1 and last - first > 60:
            parts.append(_text(last, bottom + 16, "end", escape(marks[-1][1])))
    else:
        for tick in _round_numbers(scale.x_low, scale.x_high, 6):
            parts.append(_text(scale.x(tick), bottom + 16, "middle", escape(x_text(tick))))
    if x_label:
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, "middle", escape(x_label)))
    return "".join(parts)


def _drawn(
    s: Series,
    points: Sequence[Point],
    scale: _Scale,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> str:
    at = [(scale.x(x), scale.y(y)) for x, y in points]
    if not at:
        return ""
    parts = []
    if s.style == "steps":
        at_steps = [at[0]]
        for a, b in zip(at, at[1:], strict=False):
            at_steps += [(b[0], a[1]), b]
        parts.append(f'<polyline points="{_points(at_steps)}" class="line" stroke="var(--{s.colour})"/>')
    elif s.style == "area":
        floor = _HEIGHT - _BOTTOM
        outline = [(at[0][0], floor), *at, (at[-1][0], floor)]
        parts.append(f'<polygon points="{_points(outline)}" fill="var(--{s.colour})" class="band"/>')
        parts.append(f'<polyline points="{_points(at)}" class="line" stroke="var(--{s.colour})"/>')
    elif s.style == "line":
        parts.append(f'<polyline points="{_points(at)}" class="line" stroke="var(--{s.colour})"/>')
    if s.style in ("dots", "rings", "line") and len(at) <= _MOST_DOTS:
        fill = f'fill="var(--{s.colour})"' if s.style != "rings" else 'fill="var(--paper)"'
        size = 3.2 if s.style != "line" else 1.6
        for k, ((x, y), (a, b)) in enumerate(zip(at, points, strict=True)):
            said = s.titles[k] if k < len(s.titles) else f"{x_text(a)}: {y_text(b)}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {fill} stroke="var(--{s.colour})" stroke-width="1.5">'
                f"<title>{escape(said)}</title></circle>"
            )
    return "".join(parts)


def _key(s: Series) -> str:
    return f'<span><i class="key {s.style}" style="--c: var(--{s.colour})"></i>{escape(s.label)}</span>'


def _text(x: float, y: float, anchor: str, said: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{said}</text>'


def _points(pairs: Sequence[Point]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def _plain(value: float) -> str:
    return f"{value:.3g}"
