"""``fit(..., seeds=range(8))`` of tiny networks: in the lanes of one compiled loop, and one after the other.

    python -m benchmarks.replicas [epochs]

Processor time of whole calls (copies, orders of samples and results included), the best of three, one thread, batches
of 10 of 100 samples, Adam, float32. The losses of both are compared first.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import nn

import chainrule as cr
from benchmarks.timing import machine
from chainrule.verbs.fit import side_by_side

NETWORKS = {
    "10-3-5 ReLU": ((10, 3, 5), nn.ReLU),
    "10-16-5 ReLU": ((10, 16, 5), nn.ReLU),
    "10-16-16-5 ReLU": ((10, 16, 16, 5), nn.ReLU),
    "2-8-1 tanh": ((2, 8, 1), nn.Tanh),
    "10-32-5 tanh": ((10, 32, 5), nn.Tanh),
}


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    print(machine())
    print(f"{'ms of processor time':18}{'parameters':>11}{'lanes':>8}{'in turn':>9}{'ratio':>7}")
    tiny = side_by_side._TINY
    for name, (sizes, activation) in NETWORKS.items():
        torch.manual_seed(0)
        x, y = torch.randn(100, sizes[0]), torch.randn(100, sizes[-1])
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), activation()]
        model = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

        def run(count: int, limit: int, *, model: Any = model, data: Any = (x, y), by: Any = optimizer) -> Any:
            side_by_side._TINY = limit
            return cr.fit(model, data, nn.MSELoss(), by, epochs=count, batch_size=10, seeds=range(8))

        best, first = {}, np.zeros(0)
        for limit in (tiny, 0):
            losses = np.array([r.step_loss for r in run(3, limit).replicas])
            assert limit or np.abs(losses / first - 1).max() < 1e-4, name
            first = losses
            best[limit] = np.inf
            for _ in range(3):
                begin = process_time()
                run(epochs, limit)
                best[limit] = min(best[limit], process_time() - begin)
        side_by_side._TINY = tiny
        count = sum(p.numel() for p in model.parameters())
        print(f"{name:20}{count:9}{best[tiny] * 1e3:8.0f}{best[0] * 1e3:9.0f}{best[0] / best[tiny]:7.1f}")


if __name__ == "__main__":
    main()
