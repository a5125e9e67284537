"""Best of many short windows, interleaved: what every timing table here uses.

Machines are noisy, so the contestants take turns, and the best window of each counts.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np


def best_times(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 30, window: float = 0.02
) -> dict[str, float]:
    """name -> seconds per call: the best of ``rounds`` windows of about ``window`` seconds each, taken in turns."""
    calls = {}
    for name, run in contestants.items():
        run()
        start = perf_counter()
        run()
        calls[name] = max(1, int(window / max(perf_counter() - start, 1e-7)))
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
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
