"""The page's figures: matplotlib draws them, as SVG that belongs to the page.

``_svg`` makes a figure fit to stand in an HTML page: no prolog, no links, ids of its own, text as text, and the page's
colours (``currentColor`` and CSS variables) in place of matplotlib's, so that a figure follows light and dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders that matplotlib draws with -> what the page's style sheet defines.
_COLOURS = {
    "#010203": "currentColor",
    "#010204": "var(--forward)",
    "#010205": "var(--backward)",
    "#010206": "var(--line)",
}
_INK, _FORWARD, _BACKWARD, _LINE = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.bottom": False,
    "ytick.minor.size": 0,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Signal:
    """Mean squares over depth: one entry per layer, None where unknown.

    Attributes:
        predicted, measured: the mean square, as predicted and as measured. bands: where nine draws of ten lie.
    """

    predicted: Sequence[float | None]
    measured: Sequence[float | None]
    bands: Sequence[tuple[float, float] | None]


def moments_figure(layers: Sequence[str], forward: Signal, backward: Signal | None) -> str:
    """Mean squares of outputs, and of their gradients, over depth: lines predicted, dots measured, bands 90 %.

    Args:
        layers: names, from the input to the loss. forward: of the outputs. backward: of their gradients, if any.

    Returns:
        SVG for an HTML page.
    """
    shown = [(forward, _FORWARD, "outputs, mean square")]
    shown += [(backward, _BACKWARD, "their gradients, mean square")] if backward is not None else []

    def draw(figure: Figure) -> None:
        for k, (signal, colour, title) in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), k + 1)
            axes.set_title(title)
            _signal(axes, signal, colour)
            _depth_axis(axes, layers)

    return _svg(draw, (4.6 * len(shown), 3.2), "moments")


def loss_figure(loss: Sequence[float]) -> str:
    """The mean loss of each epoch, on a logarithmic axis if it allows one.

    Args:
        loss: one value per epoch; those that are not finite leave a gap.

    Returns:
        SVG for an HTML page.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        epochs = range(1, len(loss) + 1)
        axes.plot(epochs, [v if math.isfinite(v) else math.nan for v in loss], color=_FORWARD)
        positive = _positive(loss)
        if positive:
            _log_axis(axes, min(positive) / 1.3, max(positive) * 1.3)
        axes.set_xlabel("epoch")
        axes.set_title("loss, mean of each epoch")
        axes.margins(x=0.01)

    return _svg(draw, (9.2, 2.8), "loss")


# ---- drawing ---------------------------------------------------------------------------------------------
def _signal(axes: Axes, signal: Signal, colour: str) -> None:
    predicted = [(k, v) for k, v in enumerate(signal.predicted) if _positive([v])]
    measured = [(k, v) for k, v in enumerate(signal.measured) if _positive([v])]
    bands = [(k, *b) for k, b in enumerate(signal.bands) if b and len(_positive(b)) == 2]
    if bands:
        at, low, high = zip(*bands, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0, label="nine draws of ten")
    if predicted:
        axes.plot(*zip(*predicted, strict=True), color=colour, label="predicted")
    if measured:
        axes.plot(*zip(*measured, strict=True), "o", color=colour, markersize=5, label="measured")
    values = _positive([v for _, v in [*predicted, *measured]])
    if values:
        _log_axis(axes, min(values) / 4, max(values) * 4)  # what stays near 1 looks like what it is: flat
        axes.legend(loc="best", fontsize=9)
    else:
        axes.text(0.5, 0.5, "zero or unknown everywhere", transform=axes.transAxes, ha="center")


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with a few round numbers on it, written as plain text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low, high)
    within = (1.0, 2.0, 5.0) if math.log10(high / low) < 2.5 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=within, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _positive(values: Sequence[float | None]) -> list[float]:
    """Those that a logarithmic axis can show."""
    return [v for v in values if v is not None and math.isfinite(v) and v > 0]


def _depth_axis(axes: Axes, layers: Sequence[str]) -> None:
    step = -(-len(layers) // 14)  # at most 14 names
    at = list(range(0, len(layers), step))
    axes.set_xlim(-0.4, len(layers) - 0.6)
    names = [_short(layers[k]) for k in at]
    crowded = sum(map(len, names)) > 40
    # A name is shown as it is: a dollar sign in it is no formula.
    axes.set_xticks(at, names, parse_math=False, rotation=35 * crowded, ha="right" if crowded else "center")


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return name if len(name) <= 18 else "…" + name[-17:]


def _svg(draw: Any, inches: tuple[float, float], name: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in a script that the font lacks: the browser has another font
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(file.getvalue(), name)


def _for_page(text: str, name: str) -> str:
    """SVG without what only a file of its own needs: prolog, metadata, namespaces, and ids that others may have."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    head, end, body = text.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    head = f'<svg role="img" aria-label="{name}" {view[0] if view else ""}'
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    for placeholder, colour in _COLOURS.items():
        body = body.replace(placeholder, colour)
    return head + end + body
