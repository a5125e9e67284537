"""Figures of a start: the scale of values and gradients over depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainrule.errors import ChainruleError, MissingExtraError

if TYPE_CHECKING:
    from chainrule.verbs.initialize.result import InitializeResult

_WHAT = (("second", "E[x^2] of values"), ("grad_second", "E[g^2] of cotangents"))


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("plot", "matplotlib", "report") from error
    return Figure(figsize=(width, height), layout="constrained")


def written(drawn: Any, path: str | None) -> Any:
    """The figure, also in a file if a path is given.

    Raises:
        ChainruleError: the file cannot be written.
    """
    if path is not None:
        try:
            drawn.savefig(path)
        except (OSError, ValueError) as error:
            raise ChainruleError(
                f"the figure cannot be written to {path}",
                given=str(error),
                required="a path whose folder exists, ending in .svg, .png or .pdf",
                instead=f"{Path(path).stem or 'scale'}.svg",
            ) from error
    return drawn


def scale_plot(result: InitializeResult, path: str | None = None) -> Any:
    """Mean squares over depth, two panels: measured before (hollow) and after (filled), predicted with its band.

    The band holds nine draws of ten.
    """
    if not result.after and not result.predicted:
        raise ChainruleError(
            "there is nothing to plot",
            given="a start without an example",
            required="mean squares of values, for which a batch is needed",
            instead="chainrule.initialize_(model, batch, loss).plot()",
        )
    drawn = figure(9, 3.6)
    panels = drawn.subplots(1, 2)
    order = [row.name for row in (result.after or result.predicted)]
    place = {name: k for k, name in enumerate(order)}
    for axes, (what, label) in zip(panels, _WHAT, strict=True):
        _band(axes, result, what, place)
        for rows, style in ((result.before, {"mfc": "none", "label": "before"}), (result.after, {"label": "after"})):
            points = [(place[r.name], getattr(r, what)) for r in rows if getattr(r, what) and r.name in place]
            if points:
                colour = "tab:gray" if rows is result.before else "tab:blue"
                axes.plot(*zip(*points, strict=True), "o", ms=3.5, color=colour, **style)
        axes.set_yscale("log")
        axes.set_xlabel("module, in the order of the program")
        axes.set_title(label)
        if len(order) <= 24:
            axes.set_xticks(range(len(order)), [n or "(model)" for n in order], rotation=90, fontsize=6)
        axes.legend(frameon=False, fontsize=8)
    return written(drawn, path)


def _band(axes: Any, result: InitializeResult, what: str, place: dict[str, int]) -> None:
    rows: Sequence[Any] = [r for r in result.predicted if r.name in place and getattr(r, what)]
    if not rows:
        return
    rows = sorted(rows, key=lambda r: place[r.name])
    at = [place[r.name] for r in rows]
    band = "band" if what == "second" else "grad_band"
    axes.plot(at, [getattr(r, what) for r in rows], "-", lw=1, color="tab:orange", label="predicted")
    ranges = [(k, getattr(r, band)) for k, r in zip(at, rows, strict=True) if getattr(r, band)]
    if ranges:
        low, high = zip(*(r for _, r in ranges), strict=True)
        axes.fill_between([k for k, _ in ranges], low, high, color="tab:orange", alpha=0.2, lw=0)
