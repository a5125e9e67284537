"""What a row of the table is: how a case is built, what should be found in it, and that its fault manifests.

``manifests`` looks at the training itself and asks no part of chainrule: losses of a few hundred steps, gradients of
torch, outputs. It must be true of the case as built and false of the repaired one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Size:
    """Seed, and factors of depth and width."""

    seed: int = 0
    deep: int = 1
    wide: int = 1


@dataclass
class Setup:
    """One training case. ``step``: one step of training as the user wrote it, where it is not the usual one."""

    model: nn.Module
    batch: Any
    loss: Any
    optimizer: torch.optim.Optimizer | None = None
    step: Callable[[], Any] | None = None

    def forward(self) -> torch.Tensor:
        """The loss now."""
        if self.loss == "model":
            output = self.model(**self.batch) if isinstance(self.batch, dict) else self.model(self.batch)
            return output if isinstance(output, torch.Tensor) else output.loss
        inputs, target = self.batch
        return self.loss(self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs), target)

    def train(self, steps: int = 200) -> list[float]:
        """Losses before each step and after the last."""
        losses = []
        assert self.optimizer is not None
        for _ in range(steps):
            if self.step is not None:
                losses.append(float(self.step()))
                continue
            self.optimizer.zero_grad()
            loss = self.forward()
            losses.append(float(loss.detach()))
            if loss.requires_grad:
                loss.backward()
                self.optimizer.step()
        with torch.no_grad():
            losses.append(float(self.forward()))
        return losses


@dataclass(frozen=True)
class Fault:
    """One row: kinds that name the fault, places that name its layer or op (substrings of where and source)."""

    name: str
    what: str
    build: Callable[[Size], Setup]
    kinds: tuple[str, ...]
    where: tuple[str, ...]
    manifests: Callable[[Setup], bool]
    severity: str = "warning"  # at least


@dataclass(frozen=True)
class Healthy:
    """One row of the healthy networks."""

    name: str
    what: str
    build: Callable[[Size], Setup]


@dataclass
class Table:
    """Rows in order; ``fault`` and ``healthy`` are decorators that add one."""

    faults: dict[str, Fault] = field(default_factory=dict)
    sound: dict[str, Healthy] = field(default_factory=dict)

    def fault(
        self, name: str, kinds: str, where: str, manifests: Callable[[Setup], bool], severity: str = "warning"
    ) -> Callable[[Any], Any]:
        """``kinds`` and ``where`` are lists separated by spaces (``where``: by ``|``)."""

        def add(build: Callable[[Size], Setup]) -> Callable[[Size], Setup]:
            what = (build.__doc__ or "").strip()
            self.faults[name] = Fault(
                name, what, seeded(build), tuple(kinds.split()), tuple(where.split("|")), manifests, severity
            )
            return build

        return add

    def healthy(self, name: str) -> Callable[[Any], Any]:
        """A network in which nothing above info is to be found."""

        def add(build: Callable[[Size], Setup]) -> Callable[[Size], Setup]:
            self.sound[name] = Healthy(name, (build.__doc__ or "").strip(), seeded(build))
            return build

        return add


def seeded(build: Callable[[Size], Setup]) -> Callable[[Size], Setup]:
    """The builder, from its size's seed."""

    def built(size: Size) -> Setup:
        torch.manual_seed(size.seed)
        return build(size)

    return built


# ---- data and networks ---------------------------------------------------------------------------------------
def blobs(n: int = 64, d: int = 32, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised clusters, one a class."""
    centres = torch.randn(classes, d) * 2
    y = torch.arange(n) % classes
    y = y[torch.randperm(n)]
    x = centres[y] + torch.randn(n, d)
    return (x - x.mean(0)) / x.std(0), y


def linear_data(n: int = 64, d: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised regression data: a noisy linear function."""
    x = torch.randn(n, d)
    y = x @ torch.randn(d, 1) / d**0.5 + 0.1 * torch.randn(n, 1)
    return x, (y - y.mean()) / y.std()


def mlp(
    depth: int, width: int, activation: Callable[[], nn.Module], d: int = 32, out: int = 10, init: Any = None
) -> nn.Sequential:
    """``depth`` hidden layers; ``init`` is applied to every weight, biases are then zero."""
    layers: list[nn.Module] = []
    last = d
    for _ in range(depth):
        layers += [nn.Linear(last, width), activation()]
        last = width
    net = nn.Sequential(*layers, nn.Linear(last, out))
    if init is not None:
        for layer in net:
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                nn.init.zeros_(layer.bias)
    return net


def he(weight: torch.Tensor) -> None:
    """Variance 2 / fan_in."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    """Adam over all parameters."""
    return torch.optim.Adam(model.parameters(), lr)


def classified(net: nn.Module, optimizer: Any = None, data: Any = None) -> Setup:
    """Cross-entropy on blobs with Adam."""
    return Setup(net, data or blobs(), F.cross_entropy, optimizer or adam(net))


# ---- what a fault looks like from outside ----------------------------------------------------------------------
def stuck(fraction: float = 0.8, steps: int = 200) -> Callable[[Setup], bool]:
    """The loss after training is still above a fraction of the first, or is not a number."""

    def check(setup: Setup) -> bool:
        losses = setup.train(steps)
        return not losses[-1] < fraction * losses[0]

    return check


def above(floor: float, steps: int = 300) -> Callable[[Setup], bool]:
    """The loss stays above a number that the repaired network goes below."""

    def check(setup: Setup) -> bool:
        return not setup.train(steps)[-1] < floor

    return check


def no_gradient(*names: str) -> Callable[[Setup], bool]:
    """These parameters (prefixes) have no gradient, or zero, now and after ten steps."""

    def dead(setup: Setup) -> bool:
        setup.model.zero_grad()
        loss = setup.forward()
        if not loss.requires_grad:
            return True
        loss.backward()
        mine = [p for n, p in setup.model.named_parameters() if n.startswith(names)]
        return bool(mine) and all(p.grad is None or not bool(p.grad.any()) for p in mine)

    def check(setup: Setup) -> bool:
        if not dead(setup):
            return False
        if setup.forward().requires_grad:
            setup.train(10)
        return dead(setup)

    return check


def unmoved(*names: str) -> Callable[[Setup], bool]:
    """Training does not move these parameters (prefixes)."""

    def check(setup: Setup) -> bool:
        mine = {n: p for n, p in setup.model.named_parameters() if n.startswith(names)}
        before = {n: p.detach().clone() for n, p in mine.items()}
        setup.train(5)
        return all(torch.equal(before[n], p) for n, p in mine.items())

    return check


def not_finite(setup: Setup) -> bool:
    """Loss or gradients are not finite."""
    setup.model.zero_grad()
    loss = setup.forward()
    if not bool(torch.isfinite(loss)):
        return True
    loss.backward()
    return any(p.grad is not None and not bool(torch.isfinite(p.grad).all()) for p in setup.model.parameters())


def equal_units(*names: str, share: float = 0.5) -> Callable[[Setup], bool]:
    """After training most rows of these weights are still equal."""

    def check(setup: Setup) -> bool:
        setup.train(50)
        found = dict(setup.model.named_parameters())
        for name in names:
            rows = found[name].detach().flatten(1)
            different = len(torch.unique(torch.round(rows * 1e4), dim=0))
            if different <= share * len(rows):
                return True
        return False

    return check
