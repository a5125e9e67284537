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
from time import perf_counter
from typing import Any

from chainrule.backends.native import jit
from chainrule.backends.native.meetings import BEGIN
from chainrule.errors import BackendError

_WORDS = 24  # two lines of the cache, wherever the first begins
_STEPS = 3  # place of their number among the seven
_FIRST_TRIAL, _BETWEEN = 0.05, 0.5  # seconds of steps before one thread is tried, and again
_LONGEST_TRIAL = 0.2  # seconds
_FASTER = 0.95  # of the time of those that do the steps
_IDLE: list[Worker] = []


class Worker:
    """A thread that runs what it is given, one thing after the other."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._work, name="chainrule step", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            job[0](*job[1])
            del job  # and what it keeps alive


class Team:
    """Compiled code that several threads enter, called like that of one.

    Where other programs take turns on the cores, threads that wait for each other are slower than one. So one alone is
    tried now and then, on the same shares, and does the steps as long as it is faster.

    Args:
        enter: ``call`` of a program, see ``program.emit``. shares: that its steps are divided into, one per thread.
        engine: what owns its code. steady: never try fewer threads.
    """

    def __init__(self, enter: Callable[..., None], shares: int, engine: Any, steady: bool = True) -> None:
        self.enter, self.shares, self.engine, self.steady = enter, shares, engine, steady
        self.threads = shares
        self._step: dict[int, float] = {}  # threads -> seconds of a step when they were last used
        self._until_trial = _FIRST_TRIAL

    def __call__(self, address: int) -> None:
        """Runs the steps; returns when the last is done, whatever the other threads still do on their way out.

        Raises:
            BackendError: a thread could not be started, of a number that is fixed.
        """
        if self.steady:
            self.run(address, self.shares)
            return
        steps = ctypes.c_int64.from_address(address + 8 * _STEPS).value
        other = 1 if self.threads > 1 else self.shares
        trial = self._until_trial <= 0 and self._step.get(self.threads, 0.0) * steps < _LONGEST_TRIAL
        threads = other if trial else self.threads
        begin = perf_counter()
        try:
            self.run(address, threads)
        except BackendError:  # this process has no more threads
            threads = self.threads = 1
            self.run(address, threads)
        took = perf_counter() - begin
        self._step[threads] = took / steps
        self._until_trial -= took
        if trial:
            self._until_trial = max(_BETWEEN, 20 * took)
            if self._step[other] < _FASTER * self._step[self.threads]:
                self.threads = other

    def run(self, address: int, threads: int) -> None:
        """Runs the steps on so many threads."""
        # Of its own for every run: a thread that is still leaving the last one looks at that of the last one.
        words = (ctypes.c_int64 * _WORDS)()
        place = -(-ctypes.addressof(words) // 64) * 64
        begun = ctypes.c_int64.from_address(place + 8 * BEGIN)
        shares = [self.shares * k // threads for k in range(threads + 1)]
        workers: list[Worker] = []
        try:
            for k in range(1, threads):
                workers.append(_worker())
                given = address, place, threads, shares[k], shares[k + 1]
                workers[-1].jobs.put((self.enter, given, words, self.engine))
            self.enter(address, place, threads, 0, shares[1])
        finally:
            if not begun.value:  # an exception on the way: nobody has begun
                begun.value = 2
            _IDLE.extend(workers)


def entrance(engine: Any, threads: int, steady: bool = True) -> Callable[[int], None]:
    """What runs the steps of loaded code: a function of the address of its seven numbers."""
    if threads == 1:
        return jit.function(engine, "call", 1)
    return Team(jit.function(engine, "call", 5), threads, engine, steady)


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
