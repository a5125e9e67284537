"""The figure of an activation: value and derivative over the part of the line where they change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.verbs.notebook import axes_for

if TYPE_CHECKING:
    from chainrule.verbs.activation import ActivationResult


def plot(result: ActivationResult, path: str | None, ax: Any = None) -> Any:
    """A matplotlib figure with f and f', the saturated parts shaded; written to ``path`` if given.

    Raises:
        MissingExtraError: matplotlib is not installed. ChainruleError: the file cannot be written.
    """
    low, high = _window(result)
    z = np.linspace(low, high, 1201)
    axes = axes_for(ax, 6.4, 3.6)
    figure = axes.figure
    breaks = [k.at for k in result.kinks if k.jump] + list(result.poles)
    slope_breaks = [k.at for k in result.kinks] + list(result.poles)
    axes.plot(z, _broken(z, result.curve.value(z), breaks), label="f(z)")
    axes.plot(z, _broken(z, result.curve.slope(z), slope_breaks), "--", label="f'(z)")
    for a, b in result.saturates:
        axes.axvspan(max(a, low), min(b, high), color="0.5", alpha=0.12, linewidth=0)
    axes.axhline(0, color="0.6", linewidth=0.6)
    axes.set(xlim=(low, high), xlabel="z", title=result.name, ylim=_height(result, z))
    axes.legend(frameon=False)
    if path is not None:
        _write(figure, path)
    return figure if ax is None else axes


def _write(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
        raise ChainruleError(
            f"cannot write the plot: {error}",
            given=str(path),
            required=f"a path in a folder that exists, with one of these endings: {known}",
            instead=str(Path(path).with_suffix(".png").name),
        ) from None


def _window(result: ActivationResult) -> tuple[float, float]:
    inner = [e for i in result.saturates for e in i if math.isfinite(e)]
    reach = min(max([5.0, *(1.3 * abs(e) for e in inner)]), 20.0)
    low, high = result.domain
    return max(low, -reach), min(high, reach)


def _height(result: ActivationResult, z: np.ndarray) -> tuple[float, float]:
    values = np.concatenate([result.curve.value(z), result.curve.slope(z)])
    low, high = np.nanpercentile(values[np.isfinite(values)], [3, 97]) if np.isfinite(values).any() else (-1.0, 1.0)
    if not result.poles and np.nanmax(np.abs(values[np.isfinite(values)]), initial=0.0) < 50:
        low, high = float(np.min(values[np.isfinite(values)])), float(np.max(values[np.isfinite(values)]))
    margin = 0.08 * (high - low or 1.0)
    return low - margin, high + margin


def _broken(z: np.ndarray, y: np.ndarray, places: list[float]) -> np.ndarray:
    """The values with a gap at every jump, so that no vertical line is drawn."""
    y = np.array(y, dtype=float)
    for at in places:
        k = int(np.searchsorted(z, at))
        if 0 < k < z.size:
            y[k] = np.nan
    return y
