"""Plain networks and data that the tests of ``initialize_`` start."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def data(features: int = 16, classes: int = 4, count: int = 64, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=generator) * scale
    return x, torch.randint(0, classes, (count,), generator=generator)
