"""Draws by counter against torch's own initialisers: millions of elements per second on one thread.

The contestants take turns; the best of many short windows counts.

Run: python -m benchmarks.generator [elements]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

import chainrule as cr
from benchmarks.timing import machine
from chainrule.verbs.initialize.generator import fill, key_of
from chainrule.verbs.initialize.held import held
from chainrule.verbs.initialize.laws import Layout, Normal, Orthogonal, Uniform

ROUNDS = 15


def rates(count: int, contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Elements per second of each, in turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            begin = perf_counter()
            run()
            best[name] = min(best[name], perf_counter() - begin)
    return {name: count / seconds for name, seconds in best.items()}


def main() -> None:
    """Prints the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 22
    torch.set_num_threads(1)
    print(machine())
    rows = max(count // 1024, 1)
    weight = nn.Parameter(torch.empty(rows, 1024))
    narrow = nn.Parameter(torch.empty(rows, 1024, dtype=torch.bfloat16))
    model = nn.Sequential(nn.Linear(1024, rows, bias=False))
    flat = torch.empty(rows * 1024)

    def ours(parameter: torch.Tensor, law: Normal | Uniform) -> None:
        with torch.no_grad():
            parameter.copy_(law.elements(held("w", parameter), 0, "w"))  # type: ignore[arg-type]

    table = {
        "normal": (lambda: fill(flat, "normal", key_of(0, "w"), 0, 0.02), lambda: nn.init.normal_(weight, 0.0, 0.02)),
        "normal, written": (lambda: ours(weight, Normal(0.02)), lambda: nn.init.normal_(weight, 0.0, 0.02)),
        "normal, bfloat16": (lambda: ours(narrow, Normal(0.02)), lambda: nn.init.normal_(narrow, 0.0, 0.02)),
        "uniform, written": (lambda: ours(weight, Uniform(0.02)), lambda: nn.init.uniform_(weight, -0.02, 0.02)),
        "initialize_ he": (lambda: cr.initialize_(model, scheme="he"), lambda: nn.init.kaiming_normal_(weight)),
        "truncated": (lambda: ours(weight, Normal(0.02)), lambda: nn.init.trunc_normal_(weight, 0.0, 0.02)),
    }
    print(f"{rows * 1024:,} elements{'':14}{'chainrule':>12}{'torch.nn.init':>15}{'ratio':>8}   (millions a second)")
    for name, (mine, theirs) in table.items():
        found = rates(rows * 1024, {"mine": mine, "theirs": theirs})
        a, b = found["mine"] / 1e6, found["theirs"] / 1e6
        print(f"{name:32}{a:12.0f}{b:15.0f}{a / b:8.2f}")
    square = nn.Parameter(torch.empty(512, 512))
    law = Orthogonal(1.0, Layout((0,), (1,)), (512, 512))
    found = rates(512 * 512, {"mine": lambda: ours(square, law), "theirs": lambda: nn.init.orthogonal_(square)})  # type: ignore[arg-type]
    a, b = found["mine"] / 1e6, found["theirs"] / 1e6
    print(f"{'orthogonal 512 x 512 (float64)':32}{a:12.1f}{b:15.1f}{a / b:8.2f}")


if __name__ == "__main__":
    main()
