"""A plan as lines of text: the breakdown, the modules, the memory over the step, and what less memory costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.render.terminal import LEVELS, size

_WIDTH, _HEIGHT = 64, 10
_ROWS = 24


def plan_lines(plan: Any, offers: Sequence[Any] = ()) -> list[str]:
    """What the terminal shows of a plan; with what torch itself offers among the plans, where that is given."""
    lines = [str(plan), ""]
    for what, held in plan.breakdown.items():
        lines.append(f"  {what:18}{size(held):>10}")
    if plan.recompute_fraction:
        lines += ["", f"  {'module':32}{'kept':>10}{'again':>7}{'bytes':>11}{'seconds':>10}"]
        rows = sorted(plan.table(), key=lambda r: -r.kept_bytes - r.recomputed_bytes)
        for row in rows[:_ROWS]:
            lines.append(
                f"  {row.module[-32:]:32}{size(row.kept_bytes):>10}{row.recomputed:>7}"
                f"{size(row.recomputed_bytes):>11}{row.seconds:>10.2g}"
            )
        if len(rows) > _ROWS:
            lines.append(f"  ... and {len(rows) - _ROWS} more modules")
    lines += ["", "  memory over forward and backward pass, this plan", *_curve(plan.curve(), plan.baseline_bytes)]
    lines += ["", f"  {'peak':>10}{'more time':>11}{'at least':>10}   what less memory costs"]
    points = plan.trade_off()
    shown = {*_some(points, 12), *(p for p in points if p[0] == plan.peak_bytes)}
    rows = [(p[0], p[1], f"{100 * p[2]:>9.1f}%", "  <- this plan" * (p[0] == plan.peak_bytes)) for p in shown]
    for offer in offers:
        ours = "none" if offer.ours is None else f"{100 * offer.ours:.1f}%"
        rows.append((offer.peak_bytes, offer.recompute_fraction, " " * 10, f"  torch: {offer.what} (ours: {ours})"))
    for peak, again, bound, note in sorted(rows, key=lambda r: (-r[0], r[1])):
        lines.append(f"  {size(peak):>10}{100 * again:>10.1f}%{bound}{note}".rstrip())
    return lines


def _curve(values: Sequence[int], top: int) -> list[str]:
    """The largest value per column, as bars; the scale ends at the unplanned peak."""
    if not values:
        return []
    columns = [
        max(values[len(values) * k // _WIDTH : max(len(values) * (k + 1) // _WIDTH, len(values) * k // _WIDTH + 1)])
        for k in range(_WIDTH)
    ]
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        cells = [min(max(round((c / top * _HEIGHT - row) * 8), 0), 8) for c in columns]
        label = size(top * (row + 1) / _HEIGHT) if row in (0, _HEIGHT - 1) else ""
        lines.append(f"  {label:>10} |{''.join(LEVELS[c] for c in cells).rstrip()}")
    return lines


def _some(points: Sequence[Any], count: int) -> list[Any]:
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]
