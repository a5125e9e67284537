"""Progress of long jobs, on stderr, and only where somebody is watching: a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


def watched() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Says what takes a while, while it does."""
    if not watched():
        yield
        return
    from rich.console import Console

    with Console(file=sys.stderr).status(what):
        yield


@contextlib.contextmanager
def count_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over things that are done; the value is the callback ``(done, total)`` that moves it."""
    if not watched():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
