"""The depth strip of a diagnosis as SVG: both signals over the layers, the predicted band behind, where it is cut.

Plain markup in the page's own colours; no script and nothing to load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _TOP, _HEIGHT, _LEFT = 960.0, 16.0, 150.0, 56.0
_MOST = 400  # layers that are drawn


def depth_strip(strip: Sequence[Any], bands: Mapping[str, tuple[float, float]] | None = None) -> str:
    """The SVG; empty where there are fewer than two layers.

    Args:
        strip: LayerSignals in order. bands: layer -> where nine draws of ten of its forward rms lie.
    """
    rows = list(strip)[:_MOST]
    bands = bands or {}
    numbers = [n for r in rows for n in (r.forward, r.backward, *bands.get(r.name, ())) if 0 < n < math.inf]
    if len(rows) < 2 or not numbers:
        return ""
    low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    high = max(high, low + 1)
    step = (_WIDTH - _LEFT - 10) / (len(rows) - 1)

    def x(k: float) -> float:
        return _LEFT + k * step

    def y(n: float) -> float:
        return _TOP + _HEIGHT * (high - math.log10(n)) / (high - low)

    parts = [_axis(low, high)]
    shaded = [(x(k), *map(y, bands[r.name])) for k, r in enumerate(rows) if r.name in bands and min(bands[r.name]) > 0]
    if len(shaded) > 1:
        outline = [(a, up) for a, _, up in shaded] + [(a, down) for a, down, _ in shaded[::-1]]
        parts.append(f'<polygon points="{_points(outline)}" fill="var(--forward)" opacity=".16"/>')
    for which in ("forward", "backward"):
        line = [(x(k), y(n)) for k, r in enumerate(rows) if 0 < (n := getattr(r, which)) < math.inf]
        parts.append(f'<polyline points="{_points(line)}" fill="none" stroke="var(--{which})" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="var(--{which})"/>' for a, b in line[:120]]
    below = _TOP + _HEIGHT + 10
    for k, r in enumerate(rows):
        share = max(r.dead or 0.0, r.squashed or 0.0)
        left, right = max(x(k) - step / 2, _LEFT - 6), min(x(k) + step / 2, _WIDTH - 4)
        parts.append(
            f'<rect x="{left:.1f}" y="{below:.0f}" width="{max(right - left - 1, 1):.1f}" height="10" '
            f'fill="var(--bad)" opacity="{0.06 + 0.9 * share:.2f}"><title>{escape(r.name)}: {_said(r)}</title></rect>'
        )
        if r.finding:
            parts.append(_mark(x(k), escape(f"{r.finding} at {r.name}"), dashed=False))
    for k in range(1, len(rows)):
        if rows[k].reached and not rows[k - 1].reached:
            parts.append(_mark((x(k) + x(k - 1)) / 2, "the gradient ends here", dashed=True))
    first, last = escape(_short(rows[0].name)), escape(_short(rows[-1].name))
    text = below + 26
    parts.append(_text(_LEFT, text, "start", first))
    parts.append(_text(_WIDTH, text, "end", last))
    legend = "rms of z (blue) and of dL/dz (orange) over the layers; below, the share of dead or flat units"
    parts.append(_text(_WIDTH / 2, text, "middle", legend))
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH + 10:.0f} {text + 10:.0f}" role="img" aria-label="signal over depth">{body}</svg>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"


def _axis(low: int, high: int) -> str:
    lines = []
    every = max((high - low) // 5, 1)
    for decade in range(low, high + 1, every):
        at = _TOP + _HEIGHT * (high - decade) / (high - low)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>')
        lines.append(_text(_LEFT - 8, at + 4, "end", f"1e{decade}"))
    return "".join(lines)


def _text(x: float, y: float, anchor: str, said: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" fill="currentColor" text-anchor="{anchor}">{said}</text>'


def _mark(at: float, said: str, dashed: bool) -> str:
    style = ' stroke-dasharray="5 4"' if dashed else ""
    ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_TOP + _HEIGHT}"'
    line = f'<line {ends} stroke="var(--bad)" stroke-width="2"{style}>'
    label = f'<text x="{at + 4:.1f}" y="{_TOP + 4}" font-size="12" fill="var(--bad)">{said}</text>' if dashed else ""
    return f"{line}<title>{said}</title></line>{label}"


def _said(row: Any) -> str:
    said = f"z {row.forward:.2e}, dL/dz {row.backward:.2e}"
    if row.dead is not None:
        said += f", {row.dead:.0%} dead"
    return said + (f", {row.squashed:.0%} flat" if row.squashed is not None else "")


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)
