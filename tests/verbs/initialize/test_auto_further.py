"""``initialize_`` on networks with stacked recurrences, padding, parametrizations and odd widths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import chainrule as cr


def tokens(count: int = 16, length: int = 12, words: int = 50) -> torch.Tensor:
    return torch.randint(1, words, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_stacked_recurrences_pass_the_gradient_on(kind: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.core, self.out = nn.Embedding(50, 32), kind(32, 32, 3, batch_first=True), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.core(self.emb(x))[0][:, -1])

    torch.manual_seed(0)
    r = cr.initialize_(Net(), (tokens(), torch.arange(16) % 4), nn.CrossEntropyLoss())
    assert "makes E[f^2] = 1" in r["core.weight_ih_l2"].why  # it reads small values of the layer below
    assert r["core.weight_ih_l2"].std > 1.5 * r["core.weight_ih_l0"].std
    for rows, low, high in ((r.before, 50.0, math.inf), (r.after, 0.0, 8.0)):
        energy = {row.name: row.elements * (row.grad_second or 0.0) for row in rows}
        assert low < energy["core"] / energy["emb"] < high


def test_rows_of_padding_count_as_zeros() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.up, self.out = nn.Embedding(50, 32, padding_idx=0), nn.Linear(32, 64), nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.up(self.emb(x).mean(1)).relu())

    x = tokens()
    x[:, 5:] = 0
    torch.manual_seed(0)
    net = Mean()
    r = cr.initialize_(net, (x, torch.arange(16) % 4), nn.CrossEntropyLoss())
    after = {row.name: row.second for row in r.after}
    assert 0.6 < after["up"] < 1.6, after
    assert math.isclose(r.predicted[0].second, after["emb"], rel_tol=0.1)
