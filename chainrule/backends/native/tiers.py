"""Machine code in two qualities: what LLVM makes at once runs first, and what takes it longer replaces that later.

Both compute the same bits, for nothing in the text lets LLVM reorder or fuse arithmetic; the second is held against
the first on random numbers before it is used. It is made beside the run, once the first has been busy for a while.
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
from chainrule.backends.native.access import sizes
from chainrule.errors import BackendError
from chainrule.ir import Node

if TYPE_CHECKING:
    from chainrule.backends.native.program import Program

_BUSY = 0.002  # seconds that quick code runs, in more than one call, before better code is asked for
_LONG = 0.05  # the same within one call
_PIECE = 0.005  # seconds between looks whether it is there


class Improving:
    """Quick code of a program that better code takes over from."""

    def __init__(self, program: Program, text: str, target: jit.Target, description: Mapping[str, Any]) -> None:
        self.program, self.text, self.target, self.description = program, text, target, dict(description)
        self.better: Any = None
        self.error: BaseException | None = None
        self._asked = False
        self._spent = self._step = 0.0
        self._calls = 0
        self._engine: Any = None

    def run(self, arguments: np.ndarray, size: int, groups: int) -> None:
        """Runs the steps of one call, in pieces until the better code is there.

        Args:
            arguments: seven numbers, see ``program.emit``. size: samples of a step. groups: learning rates of a step.
        """
        if self.better is not None:
            self.better(arguments.__array_interface__["data"][0])
            return
        if self.error is not None:
            raise self.error
        given, steps = arguments.copy(), int(arguments[3])
        self._calls += 1
        done = 0
        while done < steps:
            code = self.better
            piece = steps - done
            if code is None:
                piece = min(piece, max(1, int(_PIECE / self._step))) if self._step else 1
            for position, number in ((2, done * size), (4, done * groups), (5, done)):
                given[position] = int(arguments[position]) + 8 * number
            given[3] = piece
            if code is not None:
                code(given.ctypes.data)
                return
            begin = perf_counter()
            self.program.code(given.ctypes.data)
            took = perf_counter() - begin
            self._step, self._spent = took / piece, self._spent + took
            done += piece
            if not self._asked and self._spent > (_BUSY if self._calls > 1 else _LONG):
                self._asked = True
                BACKGROUND.add(self.improve)

    def improve(self) -> None:
        """Makes the better code; on any failure the next ``run`` raises it."""
        try:
            code = jit.compiled(self.text, self.target)
            self._engine = jit.loaded(code, self.target)
            better = jit.function(self._engine, "call", 1)
            if not self._same(better):
                raise BackendError(
                    "optimized machine code computes something else than plain machine code of the same program",
                    required="equal bits",
                    instead='backend="torch"',
                )
            jit.write(self.program.key, self.description, code)
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


def random_steps(program: Program, code: Callable[[int], None], steps: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(arena, losses) of a few steps from random parameters and state on random data, the same at every call."""
    rng = np.random.default_rng(0)
    raw = np.zeros(program.layout.arena.size + 4160, np.uint8)
    shift = -raw.ctypes.data % 64
    arena = raw[shift:]
    for leaf in program.layout.views:
        if leaf.op.native == "constant":
            _write(program, arena, leaf, leaf.params["literal"].array)
        elif leaf.op.native == "input" and leaf not in program.batch:
            _write(program, arena, leaf, _random(rng, leaf, sizes(leaf)))
    count = max([sizes(leaf)[0] for leaf in program.batch if sizes(leaf)], default=1)
    data = [np.ascontiguousarray(_random(rng, leaf, (count * steps, *sizes(leaf)[1:]))) for leaf in program.batch]
    order, rates = np.arange(count * steps), np.full((steps, max(1, len(program.rates))), 1e-3)
    pointers, losses = np.array([a.ctypes.data for a in data], dtype=np.uint64), np.zeros(steps)
    addresses = [a.ctypes.data for a in (arena, pointers, order)], [a.ctypes.data for a in (rates, losses)]
    arguments = np.array([*addresses[0], steps, *addresses[1], 0], dtype=np.uint64)
    code(arguments.ctypes.data)
    return arena, losses


def _random(rng: np.random.Generator, leaf: Node, shape: tuple[int, ...]) -> np.ndarray:
    """Positive floats (what is a second moment has a root), zeros for integers, which may be positions."""
    dtype = np.dtype(leaf.type.dtype)
    return rng.uniform(0.1, 1.0, shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def _write(program: Program, arena: np.ndarray, leaf: Node, value: Any) -> None:
    program.array(arena, leaf)[...] = value
    for view in program.layout.copies.get(leaf, {}).values():
        program.array(arena, leaf, view)[...] = value


class Background:
    """One thread that works off a queue and ends with it; the interpreter waits for it at its end."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

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


BACKGROUND = Background()
if hasattr(os, "register_at_fork"):  # a child would wait for ever for a lock that the thread holds here
    os.register_at_fork(before=BACKGROUND.wait)
