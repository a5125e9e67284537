"""Eleven questions of Stack Overflow, ported to PyTorch, and programs like theirs: the cause that their answers name.

A row's name is the question's number. The ports keep what the answers blame (layers, starts, losses, optimizers, scales
of the data) and make the data themselves. A program may have more than one fault: ``also`` are kinds that may be named
beside the cause, because they are there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.fault_cases.table import Setup, Size, Table, equal_units, no_gradient, not_finite, stuck, unmoved

TABLE = Table()
question = TABLE.fault
# kinds that a row's program has beside its cause
ALSO: Mapping[str, frozenset[str]] = {
    "33969059": frozenset({"input_scale"}),
    "48385830": frozenset({"linear_stack", "init_loss"}),
    "43611745": frozenset({"input_scale", "lr_too_high"}),
    "line": frozenset({"input_scale", "lr_too_high", "target_scale"}),
}


def rms_prop(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    """RMSprop over all parameters."""
    return torch.optim.RMSprop(model.parameters(), lr)


def sgd(model: nn.Module, lr: float, **more: Any) -> torch.optim.Optimizer:
    """Gradient descent over all parameters."""
    return torch.optim.SGD(model.parameters(), lr, **more)


def digits(n: int, top: float = 1.0, pixels: int = 784) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of ten kinds that are easily taken for one another, between 0 and ``top``; and their kinds."""
    common = 0.6 * (torch.rand(pixels) < 0.3)  # where strokes are in all of them
    kinds = (common + 0.3 * torch.randn(10, pixels) * (common > 0)).clamp(0, 1)
    y = torch.randint(0, 10, (n,))
    lit = (torch.rand(n, pixels) < kinds[y]).float()
    return lit * (0.5 + 0.5 * torch.rand(n, pixels)) * top, y


def diverges(setup: Setup) -> bool:
    """The loss stops being a number, or goes to ten times of where it began."""
    losses = setup.train(60)
    return not max(losses) < 10 * losses[0] or losses[-1] != losses[-1]


@question("31880720", "loss_pairing", "softmax|9", no_gradient("0.", "3."))
def ones_and_zeros(s: Size) -> Setup:
    """rows of ones against rows of zeros, softmax over the one output unit, binary cross-entropy"""
    model = nn.Sequential(
        nn.Linear(128, 50), nn.ReLU(), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, 50), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(50, 1), nn.Softmax(dim=1),
    )  # fmt: skip
    y = (torch.arange(32) % 2).float()[:, None]
    return Setup(model, (y.expand(32, 128).clone(), y), nn.BCELoss(), rms_prop(model))


@question("33969059", "loss_pairing", "softmax|7", no_gradient("0.", "3."))
def weighted_sum(s: Size) -> Setup:
    """regression of 2 x1 + x2 + x3 / 2 with a softmax over the one output unit"""
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 2), nn.Tanh(), nn.Dropout(0.5), nn.Linear(2, 1),
        nn.Softmax(dim=1),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -0.05, 0.05)
    x = torch.rand(32, 3) * 1e4
    y = x @ torch.tensor([[2.0], [1.0], [0.5]]) + 2.2
    return Setup(model, (x, y), nn.MSELoss(), sgd(model, 0.1, momentum=0.9, nesterov=True))


@question("45442843", "loss_pairing", "softmax|3", no_gradient("0.", "2."))
def one_feature(s: Size) -> Setup:
    """one feature, a sigmoid unit, then a softmax over one unit, mean absolute error"""
    model = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 1), nn.Softmax(dim=1))
    for k in (0, 2):
        nn.init.normal_(model[k].weight, 0, 0.05)  # type: ignore[arg-type]
    x = torch.rand(200, 1) * 2
    return Setup(model, (x, (x > 1).float()), nn.L1Loss(), rms_prop(model))


@question("48385830", "lr_too_high", "the optimizer", diverges)
def no_activation(s: Size) -> Setup:
    """pictures, two linear layers of N(0, 1), no activation, mean squared error, gradient descent with rate 3"""
    model = nn.Sequential(nn.Linear(784, 30), nn.Linear(30, 10))
    for p in model.parameters():
        nn.init.normal_(p)
    x, y = digits(10)
    return Setup(model, (x, F.one_hot(y, 10).float()), nn.MSELoss(), sgd(model, 3.0))


def _no_better(setup: Setup) -> bool:
    """The loss is not below that of the share of classes, the best without inputs."""
    y = setup.batch[1].mean()
    trivial = float(-(y * y.log() + (1 - y) * (1 - y).log()))
    return not sum(setup.train(60)[-10:]) / 10 < 0.9 * trivial


@question("41600519", "input_scale", "x", _no_better)
def physics(s: Size) -> Setup:
    """thirty raw features of unlike scales with -999 for what is missing, three wide layers, one sigmoid"""
    model = nn.Sequential(
        nn.Linear(30, 600), nn.ReLU(), nn.Dropout(0.5), nn.Linear(600, 400), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(400, 100), nn.ReLU(), nn.Dropout(0.5), nn.Linear(100, 1), nn.Sigmoid(),
    )  # fmt: skip
    scales = torch.tensor([80.0, 40.0, 150.0, 3.0, 1.5, 0.5] * 5)
    z = torch.randn(64, 30)
    x = torch.where(torch.rand(64, 30) < 0.15, torch.tensor(-999.0), z.abs() * scales)
    y = ((z @ torch.randn(30)) > 2).float()[:, None]
    return Setup(model, (x, y), nn.BCELoss(), rms_prop(model))


@question("48027263", "symmetric", "0|2", equal_units("0.weight"))
def equal_weights(s: Size) -> Setup:
    """a hidden layer whose weights are all zero"""
    model = nn.Sequential(nn.Linear(784, 64), nn.Sigmoid(), nn.Linear(64, 10))
    for p in model.parameters():
        nn.init.zeros_(p)
    return Setup(model, digits(64), nn.CrossEntropyLoss(), sgd(model, 0.1))


@question("35961434", "symmetric", "0|2", unmoved("0.", "2."))
def never_move(s: Size) -> Setup:
    """ReLU layers with zero weights and zero biases: the hidden parameters never move"""
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for p in model.parameters():
        nn.init.zeros_(p)
    return Setup(model, digits(64), nn.CrossEntropyLoss(), sgd(model, 0.5))


class Convolutional(nn.Module):
    """Convolutions and two layers, N(0, 1), probabilities at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4))
        self.hidden, self.head = nn.Linear(8 * 49, 64), nn.Linear(64, 10)
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.hidden(self.features(x.view(-1, 1, 28, 28)).flatten(1)))
        return torch.softmax(self.head(h), dim=1)


@question("40192728", "nonfinite", "log|mul", not_finite)
def logarithm_of_zero(s: Size) -> Setup:
    """-sum(y log p) by hand: a probability underflows, and 0 log 0 is no number"""
    model = Convolutional()
    x, y = digits(64)

    def loss(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -(t * torch.log(p)).sum()

    return Setup(model, (x, F.one_hot(y, 10).float()), loss, torch.optim.Adam(model.parameters(), 1e-4))


@question("34886605", "loss_pairing", "cross_entropy", unmoved("0.", "2."))
def one_logit(s: Size) -> Setup:
    """softmax cross-entropy on the logits of one output unit"""
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(64, 20)
    return Setup(model, (x, (x[:, :1] > 0).float()), nn.CrossEntropyLoss(), sgd(model, 0.1))


@question("59129802", "loss_pairing", "softmax|3", no_gradient("0."))
def binary_classifier(s: Size) -> Setup:
    """a ReLU layer, a softmax over one unit, binary cross-entropy"""
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(dim=-1))
    x = torch.randn(100, 2)
    return Setup(
        model, (x, (x.sum(1, keepdim=True) > 0).float()), nn.BCELoss(), torch.optim.Adam(model.parameters(), 1e-3)
    )


@question("43611745", "lr_too_high", "the optimizer", diverges)
def summed(s: Size) -> Setup:
    """one softmax layer on pixels of 0 to 255, cross-entropy summed over a batch of 100, rate .01"""
    model = nn.Linear(784, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return Setup(model, digits(100, 255.0), nn.CrossEntropyLoss(reduction="sum"), sgd(model, 0.01))


# ---- programs like theirs --------------------------------------------------------------------------------------
@question("relu last", "loss_pairing", "relu|3", lambda s: (s.model(s.batch[0]) >= 0).all().item())
def relu_last(s: Size) -> Setup:
    """the last layer is made as the hidden ones are, so its logits go through a ReLU"""
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10), nn.ReLU())
    return Setup(model, digits(64), nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 1e-3))


@question("no sigmoid", "nonfinite", "log", not_finite)
def no_sigmoid(s: Size) -> Setup:
    """-y log(z) - (1 - y) log(1 - z) on raw outputs: the logarithm of a negative number"""
    model = nn.Sequential(nn.Linear(784, 512), nn.Sigmoid(), nn.Linear(512, 10))
    for p in model.parameters():
        nn.init.normal_(p)
    x, y = digits(64)

    def loss(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -(t * torch.log(z) + (1 - t) * torch.log(1 - z)).sum()

    return Setup(model, (x, F.one_hot(y, 10).float()), loss, sgd(model, 0.1))


@question("unit normal", "exploding nonfinite init_loss", "0|2|4|6", lambda s: s.train(1)[0] > 1e3)
def unit_normal(s: Size) -> Setup:
    """three ReLU layers of 500, weights and biases N(0, 1)"""
    layers: list[nn.Module] = []
    for i, o in ((784, 500), (500, 500), (500, 500)):
        layers += [nn.Linear(i, o), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(500, 10))
    for p in model.parameters():
        nn.init.normal_(p)
    return Setup(model, digits(64), nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 3e-3))


@question("line", "lr_too_high input_scale", "the optimizer|x", diverges)
def line(s: Size) -> Setup:
    """a straight line through points at 0 to 99, gradient descent with rate .5"""
    model = nn.Linear(1, 1)
    x = torch.arange(100.0)[:, None]
    return Setup(model, (x, 3 * x + 2 + torch.randn(100, 1)), nn.MSELoss(), sgd(model, 0.5))


class Parabola(nn.Module):
    """A x^2 + B x + C."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(1)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * x**2 + self.b * x + self.c


@question("parabola", "lr_too_high", "the optimizer", diverges)
def parabola(s: Size) -> Setup:
    """a parabola through points at 0 to 3, squared differences summed, rate .01"""
    model = Parabola()
    x = torch.linspace(0, 3, 100)
    y = 2 * x**2 - 3 * x + 1

    def loss(out: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return ((out - t) ** 2).sum()

    return Setup(model, (x, y), loss, sgd(model, 0.01))


@question("one column", "broadcast", "mse_loss|loss", stuck(0.5))
def one_column(s: Size) -> Setup:
    """predictions (N, 1) against targets (N,): always the mean"""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    return Setup(model, (x, x @ torch.randn(8)), nn.MSELoss(), torch.optim.Adam(model.parameters(), 1e-2))


@question("whole pixels", "lr_too_high input_scale", "x|the optimizer", diverges)
def whole_pixels(s: Size) -> Setup:
    """pixels of 0 to 255 into three ReLU layers, gradient descent with rate .1"""
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Setup(model, digits(64, 255.0), nn.CrossEntropyLoss(), sgd(model, 0.1))


NUMBERED: tuple[str, ...] = tuple(n for n in TABLE.faults if n.isdigit())


def named(row: Any, result: Any) -> tuple[bool, bool]:
    """Whether a finding above info names the cause, and where; nothing else is claimed but what the row allows."""
    worse = [f for f in result.findings if f.severity != "info"]
    kinds = set(row.kinds) | ALSO.get(row.name, frozenset())
    right = next((f for f in worse if f.kind in row.kinds), None)
    if right is None:
        return False, False
    return all(f.kind in kinds for f in worse), any(part in f"{right.where} {right.source}" for part in row.where)
