"""Pools as comparisons, padded convolutions without their padding, recurrences written out: the numbers of torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from chainrule.verbs.native import native_engine
from tests.verbs.native.training import assert_same, trained_twice

POOLS: dict[str, Callable[[], list[nn.Module]]] = {
    "side by side": lambda: [nn.MaxPool2d(2), nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1))],
    "an edge is left": lambda: [nn.MaxPool2d(3)],
    "overlapping": lambda: [nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 1, padding=1)],
    "apart": lambda: [nn.MaxPool2d(2, 3)],
    "ceiling": lambda: [nn.MaxPool2d(3, ceil_mode=True)],
    "spread": lambda: [nn.MaxPool2d(2, dilation=2)],
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), *POOLS[name](), nn.Flatten()]
    wide = nn.Sequential(*layers)(torch.zeros(1, 1, 10, 10)).shape[1]
    ours, torchs = trained_twice(
        nn.Sequential(*layers, nn.Linear(wide, 4)),
        (torch.rand(24, 1, 10, 10), torch.randint(0, 4, (24,))),
        nn.CrossEntropyLoss(),
        lambda p: torch.optim.Adam(p, 1e-3),
        steps=4,
        short=True,
    )
    assert_same(ours, torchs, 1e-10)


def test_the_first_of_equal_elements_gets_the_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 2, (16, 1, 6, 6)).double()  # windows full of equal elements
    scale = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    ours, torchs = trained_twice(
        nn.Sequential(scale, nn.Hardtanh(-0.1, 0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 2)),
        (x, torch.randn(16, 2)),
        nn.MSELoss(),
        lambda p: torch.optim.SGD(p, 0.1),
        steps=3,
    )
    assert_same(ours, torchs, 1e-10)


def test_no_gather_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4))
    example = torch.rand(8, 1, 10, 10), torch.randint(0, 4, (8,))
    engine = native_engine(model, example, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    names = {n.op.name for n in engine.traced.graph.order if n.type.rank > 2}
    assert "max_pool_place" in names and not names & {"gather", "scatter_sum"}


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM], ids=lambda c: c.__name__)
def test_recurrent_layers(cell: type[nn.Module]) -> None:
    torch.manual_seed(0)
    more = {"bidirectional": cell is nn.GRU, "num_layers": 2 if cell is nn.RNN else 1}
    layer = cell(3, 5, batch_first=True, **more)
    ours, torchs = trained_twice(
        Last(layer, 10 if cell is nn.GRU else 5),
        (torch.randn(24, 4, 3), torch.randn(24, 2)),
        nn.MSELoss(),
        lambda p: torch.optim.Adam(p, 1e-2),
        steps=4,
        short=True,
    )
    assert_same(ours, torchs, 1e-10)
