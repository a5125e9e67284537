"""Best of many short windows, interleaved: what every timing table here uses.

Machines are noisy, so the contestants take turns, and the best window of each counts.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np


def best_times(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 30, window: float = 0.02, seconds: float = math.inf
) -> dict[str, float]:
    """name -> seconds per call: the best of ``rounds`` windows of about ``window`` seconds each, taken in turns.

    No turn begins when ``seconds`` are over; each contestant has the two calls with which it was warmed up at least.
    """
    calls, best = {}, {}
    end = perf_counter() + seconds
    for name, run in contestants.items():
        run()
        start = perf_counter()
        run()
        best[name] = perf_counter() - start
        calls[name] = max(1, int(window / max(best[name], 1e-7)))
    for _ in range(rounds):
        if perf_counter() > end:
            break
        for name, run in contestants.items():
            start = perf_counter()
            for _ in range(calls[name]):
                run()
            best[name] = min(best[name], (perf_counter() - start) / calls[name])
    return best


def machine() -> str:
    """Machine and versions, for the head of a table."""
    parts = [f"Python {platform.python_version()}", f"NumPy {np.__version__}", platform.machine()]
    try:
        import torch

        parts.insert(1, f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    except ModuleNotFoundError:
        pass
    return ", ".join(parts)
