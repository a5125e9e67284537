"""Models that need one thing each: both passes against redrawn networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import chainrule as cr


def both(make: Callable[[], nn.Module], batch, loss=None, draws: int = 24) -> dict[str, tuple[float, ...]]:
    """Module -> (second, its measured mean, second of the gradient, its measured mean)."""
    loss = loss or nn.MSELoss()
    table = cr.moments(make(), batch, loss)
    found: dict[str, list[list[float]]] = {}
    with torch.random.fork_rng():
        for seed in range(draws):
            torch.manual_seed(1000 + seed)
            model, outputs = make(), {}

            def keep(module, inputs, output, name="", outputs=outputs):
                if isinstance(output, torch.Tensor):
                    output.retain_grad()
                    outputs[name] = output

            for name, module in model.named_modules():
                module.register_forward_hook(lambda m, i, o, name=name: keep(m, i, o, name))
            loss(model(*batch[:-1]), batch[-1]).backward()
            for name, value in outputs.items():
                row = [float(value.detach().square().mean()), float(value.grad.square().mean())]
                found.setdefault(name, []).append(row)
    means = {name: np.mean(rows, axis=0) for name, rows in found.items()}
    return {
        r.name: (r.second, means[r.name][0], r.grad_second, means[r.name][1]) for r in table.rows if r.name in means
    }


def agree(found: dict[str, tuple[float, ...]], rel: float) -> None:
    for name, (second, measured, gradient, measured_gradient) in found.items():
        assert second == pytest.approx(measured, rel=rel), name
        assert gradient == pytest.approx(measured_gradient, rel=rel), name


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class PostNorm(nn.Module):
    """A residual branch whose sum is normalised."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.g, self.n = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(x + self.g(x))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_norm_takes_away_what_lies_along_given_samples(count: int):
    """The elements of a sample differ as given numbers do; the size of the whole sample hardly does. Two percent a block are
    left, since the size of what a norm returns does not vary at all."""
    x, target = normal(64, 48), normal(48, 64).T.contiguous()
    agree(both(lambda: nn.Sequential(*(PostNorm() for _ in range(count))), (x, target)), 0.1)


def test_an_encoder_that_normalises_after_its_sums():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
            )

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    found = both(Encoder, (normal(16, 12, 32), normal(12, 16, 32).transpose(0, 1).contiguous()))
    agree({k: v for k, v in found.items() if "norm" in k or "linear" in k}, 0.3)


@pytest.mark.parametrize(
    "function",
    [
        lambda: nn.Hardtanh(0.2, 0.4),
        lambda: Between(0.2, 0.4),
        lambda: Between(-0.4, -0.2),
        lambda: nn.Threshold(1.0, 0.3),
        lambda: nn.Hardshrink(0.9),
        lambda: nn.Softshrink(0.2),
    ],
    ids=["hardtanh", "above zero", "below zero", "threshold", "hardshrink", "softshrink"],
)
def test_bounds_may_lie_anywhere(function: Callable[[], nn.Module]):
    """A function is flat on most of the law, and its kinks are where its parameters say."""
    found = both(
        lambda: nn.Sequential(nn.Linear(48, 48), function(), nn.Linear(48, 48)),
        (normal(64, 48), normal(64, 48)),
        draws=48,
    )
    agree(found, 0.12)


def test_bounds_that_nothing_reaches():
    table = cr.moments(
        nn.Sequential(nn.Linear(48, 48), Between(9.0, 12.0), nn.Linear(48, 48)),
        (normal(64, 48), normal(64, 48)),
        nn.MSELoss(),
    )
    assert table["1"].second == pytest.approx(81.0) and table["0"].grad_second == pytest.approx(0.0, abs=1e-30)


@pytest.mark.parametrize(
    "function",
    [lambda a, b: torch.maximum(a, -2 * b), lambda a, b: torch.minimum(a, 3 * b + 1)],
    ids=["maximum", "minimum"],
)
def test_the_wider_of_two_wins_where_the_gradient_is_large(function: Callable):
    """The layer behind sends its own output back: equal shares would miss the gradients by 45 % and 40 %."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.h, self.o = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 200)

        def forward(self, x):
            return self.o(function(self.g(x), self.h(x)))

    agree(both(Pair, (normal(64, 48), normal(64, 200)), draws=48), 0.12)


class Between(nn.Module):
    """Values clamped to bounds."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(self.low, self.high)
