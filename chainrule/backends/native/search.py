"""Block shapes by measurement: each loop nest that does much of the work is tried with a few shapes, by itself.

What is found is part of the code that the cache keeps, so that it is searched for once per program and machine. A step
that threads share is measured on one: what other threads wait for is no measure of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import get_clock_info, perf_counter, thread_time
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.backends.native import access, jit
from chainrule.backends.native.access import sizes
from chainrule.backends.native.memory import Layout
from chainrule.backends.native.plan import Kernel, Schedule
from chainrule.errors import BackendError
from chainrule.ir import Node

if TYPE_CHECKING:
    from chainrule.backends.native.program import Program

# (rows, columns), for 32 and for 16 vector registers
_SHAPES = {
    32: ((6, 4), (8, 3), (5, 5), (4, 6), (3, 6), (3, 4), (12, 2), (2, 8)),
    16: ((2, 5), (5, 2), (6, 2), (4, 3), (3, 4), (4, 2), (3, 3)),
}
_SHARE = 0.02  # of all multiplications, from which on a loop nest is tried
_WINDOW = 0.002  # seconds
_FASTER = 0.97  # of the time of the estimated shape
_LONGEST = 6.0  # seconds, by themselves and once more among the others


@dataclass(frozen=True, eq=False)
class Search:
    """For the blocks of one program: ``plan()`` gives its loops and memory, ``write(...)`` its text and memory."""

    plan: Callable[[], tuple[Schedule, Layout]]
    write: Callable[..., tuple[str, Layout]]
    target: jit.Target

    def best(self, program: Program, given_up: Callable[[], bool]) -> str | None:
        """The text with the fastest shape of each loop nest; None where the search was given up."""
        planned = self.plan()
        kernels = planned[0].kernels
        work = [_multiplications(kernel) for kernel in kernels]
        wanted: list[tuple[float, int, tuple[int, int]]] = []
        end = perf_counter() + _LONGEST
        for position in sorted(range(len(kernels)), key=lambda k: -work[k]):
            if given_up():
                return None
            if work[position] > _SHARE * sum(work) and perf_counter() < end:
                wanted += self._fastest(program, planned, position, kernels[position])
        # A loop nest by itself finds other things in the caches than among the others: each is tried there too.
        text, layout = self.write()
        held = program.layout
        if any(layout.views[n] != v for n, v in held.views.items()) or layout.copies != held.copies:
            raise BackendError("the same program was laid out in another way", required="the memory of a run under way")
        blocks: dict[int, tuple[int, int]] = {}
        kept = self._loaded(text)
        end = perf_counter() + _LONGEST
        for _, position, shape in sorted(wanted, reverse=True):
            if given_up():
                return None
            if perf_counter() > end:
                break
            trial, _ = self.write(blocks={**blocks, position: shape})
            code = self._loaded(trial)
            steps = _steps(program, layout, kept[0])
            turns = [[_measured(program, layout, c, steps) for c, _ in (kept, code)] for _ in range(2)]
            if min(t[1] for t in turns) < min(t[0] for t in turns):
                blocks[position], kept, text = shape, code, trial
        return text if program.threads == 1 else self.write(blocks=blocks, threads=program.threads)[0]

    def _fastest(
        self, program: Program, planned: tuple[Schedule, Layout], position: int, kernel: Kernel
    ) -> list[tuple[float, int, tuple[int, int]]]:
        """[(seconds saved, position, shape)] for one loop nest by itself; nothing where none is faster."""
        timed: dict[str, float] = {}

        steps = 0

        def seconds(shape: tuple[int, int] | None) -> float:
            nonlocal steps
            blocks = {} if shape is None else {position: shape}
            text, layout = self.write(only=lambda k: k is kernel, blocks=blocks, planned=planned)
            if text not in timed:
                code, _ = self._loaded(text)
                steps = steps or _steps(program, layout, code)
                timed[text] = _measured(program, layout, code, steps)
            return timed[text]

        before = seconds(None)
        shapes = _SHAPES[32 if self.target.registers >= 32 else 16]
        took, shape = min((seconds(shape), shape) for shape in shapes)
        return [(before - took, position, shape)] if took < before * _FASTER else []

    def _loaded(self, text: str) -> tuple[Callable[[int], None], Any]:
        """(the function, what owns its code)."""
        engine = jit.loaded(jit.compiled(text, self.target), self.target)
        return jit.function(engine, "call", 1), engine


def _multiplications(kernel: Kernel) -> float:
    found = access.accumulation(kernel.core) if kernel.core is not None and len(kernel.core.inputs) > 1 else None
    if found is None:
        return 0.0
    return float(math.prod(kernel.shape)) * math.prod(found.sizes)


def _measured(program: Program, layout: Layout, code: Callable[[int], None], steps: int, windows: int = 6) -> float:
    """Seconds of a step, of this thread where its clock is fine enough: other work on the machine does not count."""
    times: list[float] = []

    def timed(address: int) -> None:
        begin = _CLOCK()
        code(address)
        times.append(_CLOCK() - begin)

    random_steps(program, lambda address: [timed(address) for _ in range(windows)], steps, layout)
    return min(times) / steps


def _steps(program: Program, layout: Layout, code: Callable[[int], None]) -> int:
    """How many steps a window has."""
    return int(min(max(_WINDOW / _measured(program, layout, code, 4, 3), 4), 1000))


_CLOCK = thread_time if get_clock_info("thread_time").resolution < 1e-6 else perf_counter


def random_steps(
    program: Program, code: Callable[[int], Any], steps: int = 2, layout: Layout | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(arena, losses) of a few steps from random parameters and state on random data, the same at every call."""
    rng, layout = np.random.default_rng(0), layout or program.layout
    raw = np.zeros(layout.arena.size + 4160, np.uint8)
    shift = -raw.ctypes.data % 64
    arena = raw[shift:]
    for leaf in layout.views:
        if leaf.op.native == "constant":
            _write(program, layout, arena, leaf, leaf.params["literal"].array)
        elif leaf.op.native == "input" and leaf not in program.batch:
            _write(program, layout, arena, leaf, _random(rng, leaf, sizes(leaf)))
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


def _write(program: Program, layout: Layout, arena: np.ndarray, leaf: Node, value: Any) -> None:
    for view in (layout.views[leaf], *layout.copies.get(leaf, {}).values()):
        program.array(arena, leaf, view)[...] = value
