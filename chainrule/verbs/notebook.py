"""Results in a notebook: tables as HTML, and matplotlib axes, one's own or new ones.

matplotlib is optional and slow to load, so it is imported where something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from chainrule.errors import MissingExtraError


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table; every cell is text.

    >>> html_table(["a"], [["<b>"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    top = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    heading = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(c))}</td>' for c in row)}</tr>" for row in rows)
    return f"<table>{top}<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"


def number(value: float | None) -> str:
    """Three digits; nothing for what is not known."""
    return "" if value is None else f"{value:.3g}"


def axes_for(ax: Any, width: float = 6.4, height: float = 3.4) -> Any:
    """The axes given, or those of a new figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("plot", "matplotlib", "report") from error
    return Figure(figsize=(width, height), layout="constrained").subplots()


def over_depth(
    ax: Any,
    names: Sequence[str],
    values: Sequence[float | None],
    label: str,
    colour: str,
    bands: Sequence[tuple[float, float] | None] = (),
    style: str = ".-",
) -> None:
    """One quantity over the layers on a logarithmic axis, with the band of each where there is one."""
    shown = [(k, v) for k, v in enumerate(values) if v is not None and math.isfinite(v) and v > 0]
    if shown:
        ax.plot(*zip(*shown, strict=True), style, color=colour, label=label, linewidth=1.2)
    ranges = [(k, *b) for k, b in enumerate(bands) if b and b[0] > 0 and math.isfinite(b[1])]
    if ranges:
        at, low, high = zip(*ranges, strict=True)
        ax.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.set_yscale("log")
    step = max(-(-len(names) // 12), 1)
    ticks = list(range(0, len(names), step))
    crowded = sum(len(names[k]) for k in ticks) > 40
    ax.set_xticks(ticks, [names[k] or "(model)" for k in ticks], parse_math=False, rotation=40 * crowded,
                  ha="right" if crowded else "center")  # fmt: skip


def svg_of(axes: Any) -> str:
    """The figure of some axes as SVG."""
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
