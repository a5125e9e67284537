"""The 25 healthy networks and near misses: nothing above info may be found in them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.fault_cases.faulty import TABLE, Recurrent, sequences
from benchmarks.fault_cases.table import Setup, Size, adam, blobs, classified, he, linear_data, mlp

healthy = TABLE.healthy


@healthy("H01")
def h01(s: Size) -> Setup:
    """5 ReLU layers, He"""
    return classified(mlp(5, 64 * s.wide, nn.ReLU, init=he))


@healthy("H02")
def h02(s: Size) -> Setup:
    """5 tanh layers, Xavier"""
    return classified(mlp(5, 64 * s.wide, nn.Tanh, init=nn.init.xavier_normal_))


@healthy("H04")
def h04(s: Size) -> Setup:
    """5 leaky ReLU layers, He"""
    return classified(mlp(5, 64 * s.wide, nn.LeakyReLU, init=he))


@healthy("H05")
def h05(s: Size) -> Setup:
    """3 hidden layers, PyTorch's default"""
    return classified(mlp(3, 64 * s.wide, nn.ReLU))


@healthy("H07")
def h07(s: Size) -> Setup:
    """30 ReLU layers of 256, He, zero bias: a third of the units are dead on one batch"""
    return classified(mlp(30, 256 * min(s.wide, 2), nn.ReLU, init=he))


@healthy("H08")
def h08(s: Size) -> Setup:
    """one hidden sigmoid layer"""
    return classified(mlp(1, 64 * s.wide, nn.Sigmoid))


@healthy("H09")
def h09(s: Size) -> Setup:
    """10 layers with BatchNorm"""
    width, layers, last = 64 * s.wide, [], 32
    for _ in range(10):
        layers += [nn.Linear(last, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        last = width
    return classified(nn.Sequential(*layers, nn.Linear(last, 10)))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright square per class."""
    x, y = torch.randn(32, 1, 12, 12), torch.arange(32) % 4
    for k in range(32):
        r, c = divmod(int(y[k]), 2)
        x[k, 0, 6 * r : 6 * r + 6, 6 * c : 6 * c + 6] += 1.5
    return (x - x.mean()) / x.std(), y


@healthy("H11")
def h11(s: Size) -> Setup:
    """small convolutional network, default initialisation"""
    net = nn.Sequential(
        nn.Conv2d(1, 8 * s.wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8 * s.wide, 16 * s.wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * s.wide * 9, 4),
    )  # fmt: skip
    return classified(net, data=images())


class ZeroGamma(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.na, self.nb = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        nn.init.zeros_(self.nb.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


@healthy("H12")
def h12(s: Size) -> Setup:
    """residual network whose branches are closed at first (zero gamma)"""
    w = 8 * s.wide
    net = nn.Sequential(
        nn.Conv2d(1, w, 3, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU(),
        *(ZeroGamma(w) for _ in range(4)), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * w, 4),
    )  # fmt: skip
    return classified(net, data=images())


class ReZero(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.alpha = nn.Linear(width, width), nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.alpha * F.relu(self.body(x))


@healthy("H14")
def h14(s: Size) -> Setup:
    """12 ReZero blocks"""
    w = 64 * s.wide
    return classified(nn.Sequential(nn.Linear(32, w), *(ReZero(w) for _ in range(12)), nn.Linear(w, 10)))


@healthy("H15")
def h15(s: Size) -> Setup:
    """head of zeros"""
    net = mlp(3, 64 * s.wide, nn.ReLU, init=he)
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    return classified(net)


class LoRA(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.base = nn.Linear(a, b).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(4, a) / a**0.5), nn.Parameter(torch.zeros(b, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


@healthy("H16")
def h16(s: Size) -> Setup:
    """LoRA, second factor zero"""
    w = 64 * s.wide
    net = nn.Sequential(LoRA(32, w), nn.ReLU(), LoRA(w, w), nn.ReLU(), LoRA(w, 10))
    return classified(net, torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-3))


@healthy("H17")
def h17(s: Size) -> Setup:
    """frozen backbone, on purpose"""
    net = nn.Sequential(mlp(2, 64 * s.wide, nn.ReLU, out=64), nn.ReLU(), nn.Linear(64, 10))
    net[0].requires_grad_(False)
    return classified(net, torch.optim.Adam(net[2].parameters(), 1e-3))


class Block(nn.Module):
    def __init__(self, width: int, pre: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.n1, self.n2, self.pre = nn.LayerNorm(width), nn.LayerNorm(width), pre

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (m.view(b, t, 4, d // 4).transpose(1, 2) for m in self.qkv(x).chunk(3, -1))
        if self.pre:
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // 4)
        mask = torch.triu(torch.full((t, t), -math.inf), 1)
        return self.out((F.softmax(scores + mask, -1) @ v).transpose(1, 2).reshape(b, t, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre:
            x = x + self.attend(self.n1(x))
            return x + self.down(F.gelu(self.up(self.n2(x))))
        x = self.n1(x + self.attend(x))
        return self.n2(x + self.down(F.gelu(self.up(x))))


class Causal(nn.Module):
    def __init__(self, width: int, pre: bool, vocabulary: int = 50, blocks: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(12, width)
        self.blocks = nn.Sequential(*(Block(width, pre) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if pre:
            for m in self.modules():
                if isinstance(m, (nn.Linear, nn.Embedding)):
                    nn.init.normal_(m.weight, 0, 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places(torch.arange(x.shape[1])))))


def next_token(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over all positions."""
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences in which each token follows from the one before."""
    x = (torch.randint(50, (16, 1)) + 7 * torch.arange(13)) % 50
    return x[:, :-1], x[:, 1:]


@healthy("H18")
def h18(s: Size) -> Setup:
    """causal transformer, pre-LN, N(0, .02)"""
    net = Causal(64 * s.wide, True)
    return Setup(net, tokens(), next_token, adam(net))


@healthy("H20")
def h20(s: Size) -> Setup:
    """causal transformer, post-LN, with a mask of -inf"""
    net = Causal(64 * s.wide, False)
    return Setup(net, tokens(), next_token, adam(net))


class Bag(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5000, width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(x)).mean(1))


@healthy("H21")
def h21(s: Size) -> Setup:
    """embedding of 5000 rows, 768 tokens in the batch"""
    net = Bag(32 * s.wide)
    return Setup(net, (torch.randint(5000, (64, 12)), torch.arange(64) % 10), F.cross_entropy, adam(net))


@healthy("H23")
def h23(s: Size) -> Setup:
    """GRU, last step"""
    return classified(Recurrent(nn.GRU, 32 * s.wide), data=sequences())


@healthy("H24")
def h24(s: Size) -> Setup:
    """Sigmoid and BCELoss"""
    net = nn.Sequential(*mlp(2, 64 * s.wide, nn.ReLU, out=1), nn.Sigmoid())
    x, y = blobs()
    return Setup(net, (x, (y % 2).float()[:, None]), nn.BCELoss(), adam(net))


@healthy("H27")
def h27(s: Size) -> Setup:
    """regression with mse_loss"""
    net = mlp(2, 64 * s.wide, nn.ReLU, out=1)
    return Setup(net, linear_data(), F.mse_loss, adam(net))


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g


class Binary(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(Through.apply(self.a(x)))


@healthy("H29")
def h29(s: Size) -> Setup:
    """sign with a straight-through estimator"""
    return classified(Binary(64 * s.wide))


@healthy("H30")
def h30(s: Size) -> Setup:
    """Dropout .5"""
    w = 64 * s.wide
    net = nn.Sequential(
        nn.Linear(32, w), nn.ReLU(), nn.Dropout(0.5), nn.Linear(w, w), nn.ReLU(), nn.Dropout(0.5), nn.Linear(w, 10)
    )
    return classified(net)


@healthy("H33")
def h33(s: Size) -> Setup:
    """SGD .1 with momentum .9"""
    net = mlp(2, 64 * s.wide, nn.ReLU)
    return classified(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))


@healthy("H38")
def h38(s: Size) -> Setup:
    """LogSoftmax, then cross_entropy: harmless"""
    return classified(nn.Sequential(*mlp(2, 64 * s.wide, nn.ReLU), nn.LogSoftmax(dim=1)))


@healthy("H40")
def h40(s: Size) -> Setup:
    """LayerNorm, then BatchNorm: redundant"""
    w = 64 * s.wide
    net = nn.Sequential(nn.Linear(32, w), nn.LayerNorm(w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, 10))
    return classified(net)


@healthy("H41")
def h41(s: Size) -> Setup:
    """bias before BatchNorm: its gradient is zero"""
    w = 64 * s.wide
    net = nn.Sequential(nn.Linear(32, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, 10))
    return classified(net)
