"""Whole trainings of figure 7.8 (100 epochs, 1,000 steps): ``fit`` against the book's PyTorch loop.

    python -m benchmarks.fit

The loop is the one of the figure: DataLoader, zero_grad, backward, step, scheduler. ``fit`` gets the same objects.
"again" is another model object of the same architecture in a process that fitted one before; "first" is a fresh
process, imports not counted, with the compiled code on the disk or without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter

import torch

import chainrule as cr
from benchmarks.timing import machine

ROUNDS = 12


def loop(case: cr.examples.Case) -> list[float]:
    """Mean loss per epoch, trained as the figure does."""
    model, criterion, optimizer, scheduler = case.model, case.loss, case.optimizer, case.scheduler
    curve = []
    for _ in range(case.epochs or 0):
        total, batches = 0.0, 0
        for x, y in case.data:
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss = criterion(model(x), y)  # type: ignore[operator]
            loss.backward()
            optimizer.step()  # type: ignore[union-attr]
            total, batches = total + loss.item(), batches + 1
        scheduler.step()
        curve.append(total / batches)
    return curve


def seconds(run: Callable[[cr.examples.Case], object]) -> float:
    """Of one training of a new model; making the objects is not counted."""
    case = cr.examples.figure_7_8()
    start = perf_counter()
    run(case)
    return perf_counter() - start


FIRST = """
import torch, chainrule as cr
from time import perf_counter
torch.set_num_threads(1)
case = cr.examples.figure_7_8()
start = perf_counter()
h = cr.fit(case)
print(perf_counter() - start, h.backend)
"""


def first(cache: str) -> float:
    """Of the first fit in a new process."""
    environment = os.environ | {"CHAINRULE_CACHE": cache, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", FIRST], env=environment, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[0])


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    history, by_hand = cr.fit(cr.examples.figure_7_8()), loop(cr.examples.figure_7_8())
    worst = max(abs(a - b) / b for a, b in zip(history.loss, by_hand, strict=True))
    fitted = lambda backend: lambda case: cr.fit(case, backend=backend)  # noqa: E731
    contestants = {
        "the book's loop": loop,
        "fit, torch": fitted("torch"),
        "fit, native, again": fitted("native"),
    }
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            for _ in range(1 if name == "the book's loop" else 3):
                best[name] = min(best[name], seconds(run))
    with tempfile.TemporaryDirectory() as cache:
        best["fit, first in a process, nothing on the disk"] = first(cache)
        best["fit, first in a process, code on the disk"] = min(first(cache) for _ in range(3))
    print(machine())
    print(f"largest relative difference of the two loss curves: {worst:.0e}; {history.backend}: {history.reason}")
    print(f"{'100 epochs of figure 7.8':46} {'ms':>8} {'times as fast':>14}")
    for name, value in best.items():
        print(f"{name:46} {value * 1e3:8.1f} {best[next(iter(best))] / value:14.1f}")


if __name__ == "__main__":
    main()
