"""Progress of long jobs, on stderr, and only where somebody is watching: a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


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
