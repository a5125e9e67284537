"""Predicted against measured second moments, forward and backward, over redrawn weights.

Run: python -m benchmarks.moments [seeds]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from benchmarks.timing import machine
from chainrule import examples
from chainrule.verbs.case import Case, case
from chainrule.verbs.model_moments import measure, predict


def network(activation: nn.Module, gain: float | None, width: int = 64, depth: int = 6) -> Case:
    """A plain network with normal weights of variance gain^2 / fan_in, or PyTorch's default initialisation."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Linear(16 if k == 0 else width, width), activation]
    model = nn.Sequential(*layers, nn.Linear(width, 8))
    for layer in model:
        if isinstance(layer, nn.Linear) and gain is not None:
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)
    return case(model, (torch.randn(32, 16), torch.randn(32, 8)), nn.MSELoss())


def table(name: str, example: Case, seeds: int) -> tuple[float, float]:
    """Prints one network's ratios; returns the worst deviation each way."""
    predicted, measured = predict(example), measure(example, seeds)
    print(f"\n{name} ({seeds} redraws)")
    print(
        f"{'value':10} {'E[x^2]':>10} {'pred/meas':>10} {'s.e.':>6}   {'E[g^2]':>10} {'pred/meas':>10} {'s.e.':>6} kind"
    )
    worst = [0.0, 0.0]
    for value in (v for v in measured.backward if v in predicted.backward):
        cells = []
        for k, (mine, theirs) in enumerate(
            ((predicted.forward, measured.forward), (predicted.backward, measured.backward))
        ):
            if value not in theirs or value not in mine or mine[value].second is None:
                cells.append(f"{'':10} {'':10} {'':6}")
                continue
            own, seen = float(np.mean(mine[value].second)), theirs[value]
            error = float(seen.std() / seen.mean() / len(seen) ** 0.5)
            worst[k] = max(worst[k], abs(own / seen.mean() - 1))
            cells.append(f"{own:10.3e} {own / seen.mean():10.3f} {error:6.3f}")
        print(f"{value:10} {cells[0]}   {cells[1]}  {predicted.backward[value].kind}")
    print(f"largest deviation: forward {worst[0]:.1%}, backward {worst[1]:.1%}")
    return worst[0], worst[1]


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print(machine())
    table("figure 7.8", examples.figure_7_8(), seeds)
    table("tanh, gain 1", network(nn.Tanh(), 1.0), seeds)
    table("GELU, gain 1.53", network(nn.GELU(), 1.5335), seeds)
    table("ReLU, PyTorch's default", network(nn.ReLU(), None), seeds)


if __name__ == "__main__":
    main()
