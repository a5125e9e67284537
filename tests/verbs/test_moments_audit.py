"""The audit of predicted moments on planted faults: the place is named, and what is healthy is left alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import chainrule as cr


class Attention(nn.Module):
    """Written out; ``scale`` of the logits as given."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(width), scale
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        for layer in (self.q, self.k, self.v, self.o):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        logits = self.q(h) @ self.k(h).transpose(1, 2) * self.scale
        return x + self.o(logits.softmax(-1) @ self.v(h))


def language(scale: float) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 64), Attention(64, scale), Attention(64, scale), nn.Linear(64, 50))
    return cr.moments(net, (torch.randint(0, 50, (4, 12)), torch.randint(0, 50, (4, 12))), Loss())


class Loss(nn.Module):
    def forward(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())


def test_logits_without_their_scale_name_the_queries() -> None:
    (found,) = [d for d in language(1.0).findings if d.kind == "saturated"]
    assert found.where == "1.q" and "standard deviation 8" in str(found).replace("7.9", "8").replace("8.0", "8")
    assert not [d for d in language(64**-0.5).findings if d.kind == "saturated"]


def test_logits_of_the_fused_kernel() -> None:
    class Fused(nn.Module):
        def __init__(self, scale: float | None) -> None:
            super().__init__()
            self.qkv, self.scale = nn.Linear(32, 96), scale
            nn.init.normal_(self.qkv.weight, std=32**-0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)

    torch.manual_seed(0)
    x = torch.randn(4, 12, 32)
    loud, quiet = (cr.moments(Fused(s), (x, x), nn.MSELoss()).findings for s in (1.0, None))
    assert [d.where for d in loud if d.kind == "saturated"] == ["qkv"]
    assert not [d for d in quiet if d.kind == "saturated"]


def test_a_norm_after_a_small_embedding_is_no_explosion() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 64), nn.LayerNorm(64), nn.Linear(64, 50))
    nn.init.normal_(net[0].weight, std=0.02)
    t = cr.moments(net, (torch.randint(0, 50, (4, 12)), torch.randint(0, 50, (4, 12))), Loss())
    assert not [d for d in t.findings if d.kind == "exploding"]


def test_data_that_were_not_standardised_are_named_rather_than_the_last_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
    for layer in (net[0], net[2]):
        nn.init.kaiming_normal_(layer.weight)
    kinds = [
        d.kind
        for d in cr.moments(net, (30 * torch.randn(32, 16), torch.arange(32) % 10), nn.CrossEntropyLoss()).findings
    ]
    assert "input_scale" in kinds and "logits" not in kinds


def test_packed_projections_inside_self_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.attention, self.out = (
                nn.Embedding(50, 32),
                nn.MultiheadAttention(32, 4, batch_first=True),
                nn.Linear(32, 50),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.emb(x)
            return self.out(h + self.attention(h, h, h, need_weights=False)[0])

    torch.manual_seed(0)
    t = cr.moments(Net(), (torch.randint(0, 50, (4, 12)), torch.randint(0, 50, (4, 12))), Loss())
    assert [d.where for d in t.findings if d.kind == "gain"] == ["attention.in_proj_weight"]
