"""Memory of a process over many fits, and of two threads that fit at once.

    python -m benchmarks.fit_memory [fits]

Resident memory after every tenth of the fits: four architectures in turn, new objects each time, native and torch.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from time import perf_counter

import torch
from torch import nn

import chainrule as cr
from benchmarks.timing import machine

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :2] * X[:, 2:4]
WIDTHS = (4, 8, 13, 32)


def train(number: int, backend: str) -> tuple[float, ...]:
    """One short fit of a new model; deterministic in its number."""
    generator = torch.Generator().manual_seed(number)
    width = WIDTHS[number % len(WIDTHS)]
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2))
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    h = cr.fit(model, (X, Y), nn.MSELoss(), optimizer, epochs=3, batch_size=16, generator=generator, backend=backend)
    assert h.backend == backend
    return h.loss


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def threads(pairs: int) -> int:
    """Pairs of fits that ran at once in two threads; raises if one differs from the same fit alone."""
    found: dict[int, tuple[float, ...]] = {}
    for k in range(pairs):
        numbers = (2 * k, 2 * k + 1)
        both = [threading.Thread(target=lambda n=n: found.update({n: train(n, "native")})) for n in numbers]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        for n in numbers:
            assert found[n] == train(n, "native"), f"fit {n} differs when another one runs"
    return pairs


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(machine())
    print(f"{threads(100)} pairs of fits in two threads at once: every loss equal to the same fit alone, bit for bit")
    for backend, fits in (("native", count), ("torch", count // 50)):
        for k in range(max(40, fits // 10)):  # what is compiled once is there
            train(k, backend)
        start, first = perf_counter(), resident()
        sizes = []
        for tenth in range(10):
            for k in range(fits // 10):
                train(tenth * fits + k, backend)
            sizes.append(resident() - first)
        grown = ", ".join(f"{s:+.2f}" for s in sizes)
        spent = perf_counter() - start
        print(f"{backend}: {fits} fits in {spent:.0f} s; MiB beyond {first:.1f} after each tenth: {grown}")


if __name__ == "__main__":
    main()
