"""Replicas in the lanes of one compiled loop against each replica trained alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as rates
from torch.utils.data import DataLoader, TensorDataset

import chainrule as cr
from chainrule.errors import ModelError
from chainrule.verbs.fit import side_by_side

X = torch.linspace(-2, 2, 46, dtype=torch.float64)[:, None] ** torch.arange(3)
Y = torch.sin(X[:, 1:2]) + 0.1


def dense(activation: Callable[[], nn.Module] = nn.Tanh, outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 7), activation(), nn.Linear(7, outputs)).double()


class Skips(nn.Module):
    """A norm, a skip connection, a concatenation and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(10, 1)
        self.norm = nn.LayerNorm(5)
        self.register_buffer("scale", torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        h = h + self.norm(self.second(h)) * self.scale
        return self.last(torch.cat([h, torch.sigmoid(h)], 1))


CLASSES = (X[:, 1] > 0).long() + (X[:, 1] > 1).long()
CASES: dict[str, tuple[Callable[[], nn.Module], Any, torch.Tensor, Callable[[Any], torch.optim.Optimizer]]] = {
    "momentum": (dense, nn.MSELoss(), Y, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01)),
    "adam": (lambda: dense(nn.GELU), nn.SmoothL1Loss(), Y, lambda p: torch.optim.Adam(p, 0.02)),
    "classes": (lambda: dense(nn.ELU, 3), nn.CrossEntropyLoss(), CLASSES, lambda p: torch.optim.AdamW(p, 0.02)),
    "skips": (lambda: Skips().double(), nn.MSELoss(), Y, lambda p: torch.optim.RMSprop(p, 0.005)),
    "images": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double(),
        nn.MSELoss(), Y, lambda p: torch.optim.SGD(p, 0.05),
    ),
}  # fmt: skip


def both(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Any, Any]:
    """(side by side, one after the other)."""
    together = run()
    monkeypatch.setattr(side_by_side, "_TINY", 0)
    alone = run()
    assert "side by side" in together.replicas[0].reason and "side by side" not in alone.replicas[0].reason
    return together, alone


def assert_alike(together: Any, alone: Any) -> None:
    for a, b in zip(together.replicas, alone.replicas, strict=True):
        np.testing.assert_allclose(a.step_loss, b.step_loss, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-8, atol=1e-12)
        assert a.learning_rate == b.learning_rate and a.best_epoch == b.best_epoch
        for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)
    assert len({r.loss for r in together.replicas}) == len(together.replicas)
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, loss, target, optimizer_of = CASES[name]
    torch.manual_seed(0)
    model = make()
    optimizer = optimizer_of(model.parameters())
    scheduler = rates.StepLR(optimizer, 2, 0.5)

    def run() -> Any:  # 46 samples in batches of 8: the last is short; eleven replicas: one and a half loops
        return cr.fit(model, (X, target), loss, optimizer, epochs=5, batch_size=8, scheduler=scheduler, seeds=range(11))

    assert_alike(*both(monkeypatch, run))
    assert not optimizer.state and scheduler.last_epoch == 0


def test_a_loader_and_a_schedule_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def run() -> Any:
        scheduler = rates.OneCycleLR(optimizer, 0.02, total_steps=25, cycle_momentum=False)
        loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True, drop_last=True)
        return cr.fit(model, loader, nn.MSELoss(), optimizer, epochs=5, scheduler=scheduler, seeds=range(8))

    assert_alike(*both(monkeypatch, run))


def test_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def slope(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0].detach().requires_grad_(True)
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return ((model(x) - batch[1]) ** 2).mean() + 0.1 * g.square().mean()

    def run() -> Any:
        return cr.fit(model, (X, Y), objective=slope, optimizer=optimizer, epochs=4, batch_size=8, seeds=range(8))

    assert_alike(*both(monkeypatch, run))


def test_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth values take a byte in torch's memory and in each lane's."""
    torch.manual_seed(0)
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def masked(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y, kept = batch
        return torch.where(kept, model(x) - y, torch.zeros_like(y)).square().mean()

    data = X, Y, Y > Y.median()
    assert_alike(
        *both(
            monkeypatch,
            lambda: cr.fit(model, data, objective=masked, optimizer=optimizer, epochs=4, batch_size=8, seeds=range(8)),
        )
    )


@pytest.mark.parametrize("why", ["dropout", "embedding", "validation", "few"])
def test_what_is_trained_one_after_the_other(why: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    x: torch.Tensor = X
    if why == "embedding":
        model, x = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1)).double(), CLASSES
    elif why != "dropout":
        model = dense()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    held = {"validation": (X, Y)} if why == "validation" else {}
    seeds = range(3 if why == "few" else 8)
    h = cr.fit(model, (x, Y), nn.MSELoss(), optimizer, epochs=2, batch_size=8, seeds=seeds, **held)
    assert len(h.replicas) == len(seeds) and "side by side" not in h.replicas[0].reason


def test_a_replica_that_diverges_is_named_as_alone() -> None:
    model = dense(nn.Identity)
    optimizer = torch.optim.SGD(model.parameters(), 1e3)
    with pytest.raises(ModelError, match="the loss is"):
        cr.fit(model, (X, Y), nn.MSELoss(), optimizer, epochs=200, batch_size=8, seeds=range(8))
