"""``initialize_`` with ``scheme="auto"`` and ``"critical"``: both passes keep their scale, whatever the architecture."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import chainrule as cr
from tests.verbs.initialize.networks import data, mlp

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.Softplus, nn.Mish, nn.LeakyReLU)


def per_layer(rows: Any, what: str) -> list[float]:
    return [getattr(r, what) for r in rows if r.module.startswith("Linear")]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [4, 30])
def test_both_passes_keep_their_scale(activation: type[nn.Module], depth: int) -> None:
    net = mlp(16, *[64] * depth, 4, activation=activation)
    r = cr.initialize_(net, data(scale=3.0), nn.CrossEntropyLoss())
    for what in ("second", "grad_second"):
        hidden = per_layer(r.after, what)[:-1]
        assert max(hidden) / min(hidden) < (2.6 if depth == 4 else 1.6), (what, hidden)


def test_any_callable_is_an_activation() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(1.7 * x) + 0.1 * torch.sin(x)

    r = cr.initialize_(mlp(16, *[64] * 20, 4, activation=Own), data(), nn.CrossEntropyLoss())
    assert "mirrored orthogonal" in r["4.weight"].rule
    hidden = per_layer(r.after, "grad_second")[:-1]
    assert max(hidden) / min(hidden) < 1.6


class Residual(nn.Module):
    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_branches_of_a_residual_stream_share() -> None:
    torch.manual_seed(0)
    net = Residual(24)
    r = cr.initialize_(net, data(count=256), nn.CrossEntropyLoss())
    assert "ends a branch, 3 of 24" in r["blocks.2.2.weight"].why
    assert "ends a branch" not in r["blocks.2.0.weight"].why
    out = {row.name: row.second for row in r.after}
    # Twenty-four branches add, together, half of what the stream began with.
    added = sum(out[f"blocks.{k}"] for k in range(24))
    assert 0.35 < added / out["stem"] < 0.7


def test_refine_meets_the_target_on_the_batch() -> None:
    net, batch = mlp(16, 8, 8, 8, 4), data(count=512)
    r = cr.initialize_(net, batch, nn.CrossEntropyLoss(), refine=True)
    for row in r.after:
        if row.module == "Linear(8, 8)" or row.name == "0":
            assert abs(row.second - 1) < 0.02, row
    assert "on the batch" in r["0.weight"].why


def test_the_result_prints_and_is_plain_data() -> None:
    import json

    net = mlp(16, 32, 4)
    r = cr.initialize_(net, data(), nn.CrossEntropyLoss())
    text = str(r)
    assert "0.weight" in text and "normal" in text and "reads E[h^2]" in text
    assert json.loads(json.dumps(r.to_dict()))["parameters"][0]["name"] == "0.weight"
    assert copy.copy(r).parameters == r.parameters


# ---- architectures -----------------------------------------------------------------------------------------
def test_normalised_chains_keep_the_gradient_too() -> None:
    # Independent weights lose a factor pi / (pi - 1) per layer through batch norm and relu (Yang et al. 2019).
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k in range(6):
        layers += [nn.Linear(16 if k == 0 else 64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    r = cr.initialize_(nn.Sequential(*layers, nn.Linear(64, 4)), data(), nn.CrossEntropyLoss())
    for rows, low, high in ((r.before, 3.0, 30.0), (r.after, 1.0, 1.5)):
        gradients = [row.grad_second for row in rows if row.module.startswith("BatchNorm")]
        assert low < max(gradients) / min(gradients) < high


def test_padded_convolutions_and_deep_ones() -> None:
    def stack(depth: int) -> nn.Sequential:
        torch.manual_seed(0)
        body = [m for _ in range(depth) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.Tanh())]
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), *body, nn.Flatten(), nn.Linear(16 * 64, 4))

    batch = (torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4)
    deep = cr.initialize_(stack(20), batch, nn.CrossEntropyLoss())
    assert "delta-orthogonal" in deep["10.weight"].rule
    for what in ("second", "grad_second"):
        hidden = [getattr(row, what) for row in deep.after if row.module.startswith("Conv2d(16")]
        assert max(hidden) / min(hidden) < 1.5
    # Zero padding: the law knows how many taps lie inside, 11 of 12 along each side of 8 (notes of He et al. do not).
    shallow = cr.initialize_(stack(1), batch, nn.CrossEntropyLoss(), scheme={"": "he", "2.weight": "auto"})
    assert shallow["2.weight"].std > (1 / 144) ** 0.5


def test_attention_logits_stay_at_most_one() -> None:
    class Unscaled(nn.Module):
        """Attention without 1 / sqrt(d), as in T5."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.q(x) @ self.k(x).transpose(1, 2)
            return torch.softmax(logits, -1) @ self.v(x)

    torch.manual_seed(0)
    net, x = Unscaled(), torch.randn(4, 12, 64)
    r = cr.initialize_(net, x)
    assert "queries" in r["q.weight"].why
    logits = (net.q(x) @ net.k(x).transpose(1, 2)).detach()
    assert 0.5 < float(logits.square().mean()) < 1.6


def test_layers_written_by_hand_are_known_by_what_they_do() -> None:
    class Own(nn.Module):
        """Weights as x @ W, a table of positions, a scale, a bias, all without modules."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 96))
            self.places = nn.Parameter(torch.randn(10, 96))
            self.shift = nn.Parameter(torch.randn(96))
            self.experts = nn.Parameter(torch.randn(3, 96, 24))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(x @ self.w + self.shift) + self.places
            return torch.einsum("bpd,edh->bpeh", h, self.experts)

    torch.manual_seed(0)
    net, x = Own(), torch.randn(8, 10, 16)
    r = cr.initialize_(net, x)
    assert "fan_in 16" in r["w"].why and "fan_in 96" in r["experts"].why
    assert r["shift"].rule == "constant 0" and "added to" in r["places"].why
    assert 0.7 < float(net(x).detach().square().mean()) < 1.4


def test_a_weight_that_is_used_many_times() -> None:
    class Shared(nn.Module):
        def __init__(self, residual: bool) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 4)
            self.residual = residual

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for _ in range(8):
                x = x + self.body(x).tanh() if self.residual else self.body(x).relu()
            return self.head(x)

    torch.manual_seed(0)
    plain, stream = Shared(False), Shared(True)
    r = cr.initialize_(plain, data(), nn.CrossEntropyLoss())
    assert "over its 8 uses" in r["body.weight"].why
    out = {row.name: row.second for row in r.after}
    assert 0.05 < out["body"] < 1.5 and 0.005 < out["head"] < 0.5  # the draws of one weight are not independent
    r = cr.initialize_(stream, data(), nn.CrossEntropyLoss())
    assert "ends a branch" in r["body.weight"].why and r["body.weight"].std > 0.005


def test_an_activation_that_reads_a_multiple() -> None:
    class Sine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(30 * x)

    r = cr.initialize_(mlp(16, *[64] * 10, 4, activation=Sine), data(), nn.CrossEntropyLoss())
    for what in ("second", "grad_second"):
        hidden = per_layer(r.after, what)[:-1]
        assert max(hidden) / min(hidden) < 1.6


def test_recurrent_layers_and_gates() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.core(x)[0][:, -1])

    torch.manual_seed(0)
    net = Net()
    r = cr.initialize_(net, (torch.randn(4, 5, 8), torch.arange(4)), nn.CrossEntropyLoss())
    hidden = net.core.weight_hh_l0.detach()
    for gate in hidden.chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)
    assert net.core.bias_ih_l0[16:32].eq(1).all() and not net.core.bias_ih_l0[:16].any()
    assert not net.core.bias_hh_l0.any() and "gate by gate" in r["core.weight_hh_l0"].why


@pytest.mark.parametrize("depth", [20, 60])
def test_critical_points_are_those_of_the_literature(depth: int) -> None:
    from chainrule.verbs.initialize.gains import critical_point

    def gelu(x: Any) -> Any:
        return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()

    import numpy as np

    # (gain, bias variance) with chi = 1, from an independent quadrature.
    for phi, q, gain, bias in (
        (gelu, 0.03, 1.9316, 0.00049),
        (gelu, 1.0, 1.4811, 0.0672),
        (np.tanh, 1.0, 1.4674, 0.151),
    ):
        found = critical_point(phi, q)
        assert math.isclose(found[0], gain, rel_tol=2e-4) and math.isclose(found[1], bias, rel_tol=2e-2)
    r = cr.initialize_(mlp(16, *[64] * depth, 4, activation=nn.GELU), data(), nn.CrossEntropyLoss(), scheme="critical")
    gradients = per_layer(r.after, "grad_second")[:-1]
    assert max(gradients) / min(gradients) < 4 and r["6.bias"].rule == "normal"


@pytest.mark.parametrize("scheme", ["auto", "he"])
def test_weights_written_as_lengths_times_directions(scheme: str) -> None:
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Linear(16, 64)), nn.ReLU(), norm(nn.Conv1d(64, 32, 1)), nn.Flatten(), nn.Linear(32, 4))
    batch = data()
    net.insert(2, nn.Unflatten(1, (64, 1)))
    r = cr.initialize_(net, batch, nn.CrossEntropyLoss(), scheme=scheme)
    expected = {"auto": 1 / float(batch[0].square().mean()) / 16, "he": 2 / 16}[scheme]
    assert abs(float(net[0].weight.detach().square().mean()) / expected - 1) < 0.05
    assert "the length of 64" in r["3.parametrizations.weight.original0"].why
