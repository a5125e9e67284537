"""What is called exact is exact: random small networks against draws, and the cases that once were wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import chainrule as cr
from benchmarks.labels import wrong
from chainrule.verbs.field_samples import sample
from chainrule.verbs.fields import Program

DRAWS = 250


@pytest.mark.parametrize("seed", [0, 7, 9, 14, 20, 30, 39, 42, 48, 1007, 1183, 1142, 2104, 2346, 5031, 7132, 7208])
def test_what_is_called_exact_agrees_with_draws(seed: int):
    found, _, _ = wrong(seed, DRAWS)
    assert not found


def test_some_moments_are_called_exact():
    assert sum(wrong(seed, 2)[1] for seed in range(20)) > 60


def test_rows_of_a_padding_number_are_zero():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    rows = cr.moments(net, torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0]])).rows
    level = float(net.table.weight.detach()[1:].square().mean())
    assert rows[0].second == pytest.approx(level / 4, rel=1e-5) and rows[0].kind == "exact"


def test_the_larger_of_two_that_share_weights_is_not_exact():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return torch.maximum(h, self.b(torch.relu(h)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = cr.moments(Net(), torch.randn(3, 4)).rows
    assert [r.kind for r in rows] == ["exact", "exact", "approximate"]


def _conv(a: int, b: int, mode: str) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, padding_mode=mode)


@pytest.mark.parametrize("name", ["learned slopes", "group norm", "circular"])
def test_what_once_was_measured_or_unknown_has_a_rule(name: str):
    def made() -> tuple[nn.Module, torch.Tensor]:
        if name == "learned slopes":
            return nn.Sequential(nn.Linear(8, 32), nn.PReLU(32), nn.Linear(32, 4)), torch.randn(8, 8)
        norm = nn.GroupNorm(4, 16) if name == "group norm" else nn.Identity()
        mode = "zeros" if name == "group norm" else "circular"
        layers = (_conv(3, 16, mode), norm, nn.ReLU(), _conv(16, 16, mode), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(16 * 36, 4)), torch.randn(8, 3, 6, 6)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = made()
        trace = cr.case(model, (x, torch.randint(0, 4, (8,))), nn.CrossEntropyLoss()).trace
    run, measured = Program.of(trace).run(), sample(trace, 48)
    for way, value in ((measured.forward, run.value), (measured.backward, run.cotangent)):
        for node, squares in way.items():
            field = value(node)
            assert field is not None and field.kind in ("exact", "approximate"), node.op.name
            logs = np.log(squares)
            error = abs(field.log_mean - logs.mean()) - 3 * logs.std() / np.sqrt(len(logs))
            assert error < (0.08 if way is measured.forward else 0.15), node.op.name
