"""Threads that run compiled steps together: they wait between runs, and are taken by one run at a time.

They are Python's, so that they exist wherever Python has threads; compiled code releases the interpreter's lock, and a
run of many steps is one call for each.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from chainrule.backends.native import jit
from chainrule.backends.native.meetings import BEGIN
from chainrule.errors import BackendError

_WORDS = 24  # two lines of the cache, wherever the first begins
_IDLE: list[Worker] = []


class Worker:
    """A thread that runs what it is given, one thing after the other."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._work, name="chainrule step", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            enter, address, place, number, *_ = job
            enter(address, place, number)
            del job, _  # what it keeps alive


class Team:
    """Compiled code that several threads enter, called like that of one.

    Args:
        enter: ``call`` of a program, see ``program.emit``. engine: what owns its code.
    """

    def __init__(self, enter: Callable[[int, int, int], None], threads: int, engine: Any) -> None:
        self.enter, self.threads, self.engine = enter, threads, engine

    def __call__(self, address: int) -> None:
        """Runs the steps; returns when the last is done, whatever the other threads still do on their way out.

        Raises:
            BackendError: a thread could not be started.
        """
        # Of its own for every run: a thread that is still leaving the last one looks at that of the last one.
        words = (ctypes.c_int64 * _WORDS)()
        place = -(-ctypes.addressof(words) // 64) * 64
        begun = ctypes.c_int64.from_address(place + 8 * BEGIN)
        workers: list[Worker] = []
        try:
            for number in range(1, self.threads):
                workers.append(_worker())
                workers[-1].jobs.put((self.enter, address, place, number, words, self.engine))
            self.enter(address, place, 0)
        finally:
            if not begun.value:  # an exception on the way: nobody has begun
                begun.value = 2
            _IDLE.extend(workers)


def entrance(engine: Any, threads: int) -> Callable[[int], None]:
    """What runs the steps of loaded code: a function of the address of its seven numbers."""
    return jit.function(engine, "call", 1) if threads == 1 else Team(jit.function(engine, "call", 3), threads, engine)


def _worker() -> Worker:
    try:
        return _IDLE.pop()
    except IndexError:
        pass
    try:
        return Worker()
    except RuntimeError as error:
        raise BackendError(f"no thread could be started: {error}", instead="threads=1") from None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_IDLE.clear)  # a child has none of its parent's threads
