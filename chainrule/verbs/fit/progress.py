"""A progress bar on stderr, where somebody is watching: a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from time import perf_counter

_FIRST, _AGAIN = 0.3, 0.1  # seconds before the bar appears, and between two drawings


class Progress:
    """One line that is drawn over itself; nothing at all without a terminal or with ``shown=False``.

    Args:
        total: epochs. shown: None is where stderr is a terminal.
    """

    def __init__(self, total: int, shown: bool | None = None) -> None:
        self.shown = _watched() if shown is None else shown
        self._total, self._start = total, perf_counter()
        self._due = self._start + _FIRST
        self._width = 0

    def update(self, epochs: float, loss: float | None, validation: float | None = None) -> None:
        """Draws the line, if it is time to."""
        if not self.shown or perf_counter() < self._due:
            return
        now = perf_counter()
        self._due = now + _AGAIN
        left = (now - self._start) / epochs * (self._total - epochs) if epochs else float("inf")
        said = f" loss {loss:.4g}" if loss is not None else ""
        said += f" validation {validation:.4g}" if validation is not None else ""
        self._draw(f"{_bar(epochs / self._total)} {int(epochs)}/{self._total}{said}{_remaining(left)}")

    def close(self) -> None:
        """Takes the line away."""
        if self._width:
            self._draw("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _bar(share: float, cells: int = 24) -> str:
    full = min(cells, int(share * cells))
    signs = "█░" if (sys.stderr.encoding or "").lower().startswith("utf") else "#."
    return signs[0] * full + signs[1] * (cells - full)


def _remaining(seconds: float) -> str:
    if seconds == float("inf"):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f", {minutes} min {rest} s left" if minutes else f", {rest} s left"
