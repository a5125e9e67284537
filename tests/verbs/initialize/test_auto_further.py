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


def deep(width: int, depth: int, act: type[nn.Module], wrap: Any = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k in range(depth):
        layer = nn.Linear(16 if k == 0 else width, width)
        layers += [wrap(layer) if wrap else layer, act()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def vectors(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 4


PARAMETRIZE = nn.utils.parametrizations


@pytest.mark.parametrize("wrap", [PARAMETRIZE.spectral_norm, PARAMETRIZE.orthogonal, nn.utils.spectral_norm])
def test_computed_weights_are_known_by_their_values(wrap: Any) -> None:
    net = deep(32, 5, nn.Tanh, wrap)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    r = cr.initialize_(net, vectors(), nn.CrossEntropyLoss())
    after = {row.name: row.second for row in r.after}
    assert 0.04 < after[""] < 0.25, after  # the head is to be at 0.1
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    if wrap is not PARAMETRIZE.orthogonal:  # the largest a layer of norm 1 can keep: all of it
        weight = net[2](torch.eye(32)) - net[2](torch.zeros(32))
        assert torch.allclose(weight @ weight.T, torch.eye(32), atol=1e-4)


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("width", [63, 3])
def test_an_odd_number_of_units_is_mirrored_too(act: type[nn.Module], width: int) -> None:
    r = cr.initialize_(deep(width, 30, act), vectors(), nn.CrossEntropyLoss())
    assert "mirrored" in r["4.weight"].rule
    for what in ("second", "grad_second"):
        hidden = [getattr(row, what) for row in r.after if row.module.startswith("Linear")][1:-1]
        assert max(hidden) / min(hidden) < 1.6, (what, hidden)


def test_a_projection_with_a_norm_misses_both_passes_alike() -> None:
    class Block(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.first, self.n1 = nn.Linear(a, b), nn.BatchNorm1d(b)
            self.second, self.n2 = nn.Linear(b, b), nn.BatchNorm1d(b)
            self.skip = nn.Identity() if a == b else nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.skip(x) + self.n2(self.second(self.n1(self.first(x)).relu()))).relu()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), Block(64, 64), Block(64, 128), nn.Linear(128, 4))
    r = cr.initialize_(net, vectors(256), nn.CrossEntropyLoss())
    assert "over this norm" in r["3.skip.1.weight"].why
    rows = {row.name: row for row in r.after}
    values = rows["3"].second / rows["2"].second
    energy = [rows[n].grad_second * rows[n].elements for n in ("2", "3")]
    assert 0.6 < values * energy[0] / energy[1] < 1.7, (values, energy)


def test_branches_beside_each_other_share_a_stream() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(32)
            self.a, self.b = (nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(x)
            return x + self.a(h) + self.b(h)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), *(Parallel() for _ in range(6)), nn.Linear(32, 4))
    r = cr.initialize_(net, vectors(256), nn.CrossEntropyLoss())
    assert "ends a branch" in r["2.a.2.weight"].why and "ends a branch" in r["2.b.2.weight"].why
    assert 0.8 < r["2.a.2.weight"].std / r["2.b.2.weight"].std < 1.25
    for what in ("second", "grad_second"):
        blocks = [getattr(row, what) for row in r.after if row.module.startswith("Parallel")]
        assert max(blocks) / min(blocks) < 2.0, (what, blocks)  # 14 where the second was taken for a peer


def test_a_branch_that_cannot_be_predicted_does_not_hide_what_follows() -> None:
    class Experts(nn.Module):
        """The two best of four, chosen by a router."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.router = nn.LayerNorm(32), nn.Linear(32, 4)
            self.up, self.down = nn.Parameter(torch.randn(4, 32, 64)), nn.Parameter(torch.randn(4, 64, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.norm(x)
            p = self.router(h).softmax(-1)
            best, which = p.topk(2, -1)
            p = torch.zeros_like(p).scatter(-1, which, best / best.sum(-1, keepdim=True))
            y = torch.einsum("bef,efd->bed", torch.einsum("bd,edf->bef", h, self.up).relu(), self.down)
            return x + (p.unsqueeze(-1) * y).sum(-2)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), *(Experts() for _ in range(5)), nn.Linear(32, 4))
    r = cr.initialize_(net, vectors(256), nn.CrossEntropyLoss())
    for what in ("second", "grad_second"):
        blocks = [getattr(row, what) for row in r.after if row.module.startswith("Experts")]
        assert max(blocks) / min(blocks) < 1.7, (what, blocks)


@pytest.mark.parametrize("form", ["each", "after"])
def test_a_damped_stream_keeps_its_size(form: str) -> None:
    class Damped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            f = self.b(self.a(x).relu())
            return 0.7 * x + 0.7 * f if form == "each" else (x + f) / 2**0.5

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), *(Damped() for _ in range(10)), nn.Linear(64, 4))
    r = cr.initialize_(net, vectors(256), nn.CrossEntropyLoss())
    assert form == "after" or "damped" in r["3.b.weight"].why  # its branch has the size as it is
    for rows, low, high in ((r.before, 8.0, math.inf), (r.after, 1.0, 2.5)):  # 0.5 per block lost, before
        for what in ("second", "grad_second"):
            blocks = [getattr(row, what) for row in rows if row.module.startswith("Damped")]
            assert low < max(blocks) / min(blocks) < high, (what, blocks)
