"""Machine code in three qualities: what LLVM makes at once, what takes it longer, and that with searched blocks.

All compute the same bits, for nothing in the text lets LLVM reorder or fuse arithmetic and blocks of accumulators do
not change the order of a sum; what comes later is held against the first on random numbers before it is used. It is
made beside the run, once that has been busy for so long that it would have paid: a short run never pays for it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.backends.native import jit
from chainrule.backends.native.search import Search, random_steps
from chainrule.backends.native.team import entrance
from chainrule.errors import BackendError

if TYPE_CHECKING:
    from chainrule.backends.native.program import Program

_COST = 5e-7  # seconds that better code takes to be made, per character of its text
_WORTH_A_SEARCH = 10.0  # seconds that good code runs before better blocks are looked for
_PIECE = 0.005  # seconds between looks whether it is there


class Improving:
    """Code of a program that better code takes over from.

    Args:
        text: of the better code, where ``program.code`` is quick code; None: it is good. search: for better blocks.
    """

    def __init__(
        self,
        program: Program,
        text: str | None,
        target: jit.Target,
        description: Mapping[str, Any],
        search: Search | None,
    ) -> None:
        self.program, self.text, self.target, self.description = program, text, target, dict(description)
        self.search = search
        self.better: Any = program.code if text is None else None
        self.error: BaseException | None = None
        self._asked = text is None
        self._spent = self._step = 0.0
        self._pays = _COST * len(text or "") / jit.quick_loses(target)
        self._engines: list[Any] = []

    def run(self, arguments: np.ndarray, size: int, groups: int) -> None:
        """Runs the steps of one call, in pieces until the better code is there.

        Args:
            arguments: seven numbers, see ``program.emit``. size: samples of a step. groups: learning rates of a step.
        """
        if self.error is not None:
            raise self.error
        if self.better is not None:
            self._run_better(arguments)
            return
        given, steps = arguments.copy(), int(arguments[3])
        done = 0
        while done < steps:
            better = self.better is not None
            piece = steps - done
            if not better:
                piece = min(piece, max(1, int(_PIECE / self._step))) if self._step else 1
            for position, number in ((2, done * size), (4, done * groups), (5, done)):
                given[position] = int(arguments[position]) + 8 * number
            given[3] = piece
            if better:
                self._run_better(given)
                return
            begin = perf_counter()
            self.program.code(given.ctypes.data)
            took = perf_counter() - begin
            self._step, self._spent = took / piece, self._spent + took
            done += piece
            if not self._asked and self._spent > self._pays:
                self._asked, self._spent = True, 0.0
                BACKGROUND.add(self.improve)

    def _run_better(self, arguments: np.ndarray) -> None:
        address = arguments.__array_interface__["data"][0]
        if self.search is None:
            self.better(address)
            return
        begin = perf_counter()
        self.better(address)
        self._spent += perf_counter() - begin
        if self._spent > _WORTH_A_SEARCH:
            search, self.search = self.search, None
            BACKGROUND.add(lambda: self.tune(search))

    def settle(self) -> None:
        """Makes the best code now."""
        if self.better is None and not self._asked:
            self._asked = True
            BACKGROUND.add(self.improve)
        search, self.search = self.search, None
        if search is not None:
            BACKGROUND.add(lambda: self.tune(search))
        BACKGROUND.wait()
        if self.error is not None:
            raise self.error

    def improve(self) -> None:
        """Makes the better code; on any failure the next ``run`` raises it."""
        assert self.text is not None
        self._take_over(self.text)

    def tune(self, search: Search) -> None:
        """Searches for blocks and makes code with them."""
        try:
            text = search.best(self.program, lambda: BACKGROUND.hurried)
        except BaseException as error:
            self.error = error
            return
        if text is None:
            return
        self.description["searched"] = True
        self._take_over(text)

    def _take_over(self, text: str) -> None:
        try:
            code = jit.compiled(text, self.target)
            engine = jit.loaded(code, self.target)
            better = entrance(engine, self.program.threads, self.program.steady)
            if not self._same(better):
                raise BackendError(
                    "optimized machine code computes something else than plain machine code of the same program",
                    required="equal bits",
                    instead='backend="torch"',
                )
            jit.write(self.program.key, self.description, code)
            self._engines.append(engine)  # earlier ones may be running
            self.better = better
        except BaseException as error:
            jit.forget(self.program.key)
            self.error = error

    def _same(self, better: Callable[[int], None]) -> bool:
        """Whether both give the same bits on random numbers."""
        program = self.program
        read = [*program.graph.updates, *program.graph.results]
        found = []
        for code in (program.code, better):
            arena, losses = random_steps(program, code)
            found.append([losses, *(np.array(program.array(arena, leaf)) for leaf in read)])
        return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*found, strict=True))


class Background:
    """One thread that works off a queue and ends with it; the interpreter waits for it at its end."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._fork = False

    @property
    def hurried(self) -> bool:
        """Whether somebody waits for the end of the queue who would rather not: the interpreter, or a fork."""
        return self._fork or not threading.main_thread().is_alive()

    def add(self, job: Callable[[], None]) -> None:
        """Queues a job."""
        with self._lock:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="chainrule compiler")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job()

    def wait(self) -> None:
        """Returns once the queue is empty."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def before_fork(self) -> None:
        """As ``wait``, without searches: a child would wait for ever for a lock that the thread holds here."""
        self._fork = True
        self.wait()
        self._fork = False


BACKGROUND = Background()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=BACKGROUND.before_fork)
