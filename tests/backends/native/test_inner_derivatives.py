"""Losses with derivatives inside: fewer products, the same numbers as torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from chainrule.backends.native.inner_derivatives import _multiplications, shortened
from chainrule.backends.native.prepare import expanded, normal
from chainrule.frontends.torch import trace_case
from chainrule.ir import toposort
from tests.verbs.native.training import assert_same, trained_twice

WIDTH, BATCH = 16, 8


def grad(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]


def columns(points: torch.Tensor) -> list[torch.Tensor]:
    return [points[:, k : k + 1].detach().requires_grad_(True) for k in range(points.shape[1])]


def burgers(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    x, t = columns(points)
    u = model(torch.cat([x, t], 1))
    u_x = grad(u, x)
    return ((grad(u, t) + u * u_x - 0.01 * grad(u_x, x)) ** 2).mean()


def poisson(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The gradient by all inputs at once, as one tensor."""
    x = points.detach().requires_grad_(True)
    g = grad(model(x), x)
    second = [torch.autograd.grad(g[:, k].sum(), x, create_graph=True)[0][:, k] for k in range(2)]
    return ((second[0] + second[1] + torch.sin(x).sum(1)) ** 2).mean()


def wave(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    x, t = columns(points)
    u = model(torch.cat([x, t], 1))
    return ((grad(grad(u, t), t) - 4 * grad(grad(u, x), x)) ** 2).mean()


def mixed(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    x = points.detach().requires_grad_(True)
    g = grad(model(x), x)
    h = grad(g[:, :1], x)
    return (h[:, 0] * g[:, 1] - h[:, 1] * g[:, 0]).square().mean() + (h**2).sum(1).mean()


def third(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    x, t = columns(points)
    u = model(torch.cat([x, t], 1))
    u_x = grad(u, x)
    return ((grad(u, t) + 6 * u * u_x + grad(grad(u_x, x), x)) ** 2).mean()


def held(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """A factor through which no gradient flows."""
    x, t = columns(points)
    u = model(torch.cat([x, t], 1))
    u_x = grad(u, x)
    return ((grad(u, t) - grad(u_x.detach() * u_x, x)) ** 2).mean()


def meeting(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """Samples that see each other, inside and behind the model."""
    x, t = columns(points)
    h = model[:4](torch.cat([x, t], 1))
    u = model[4:](h - h.mean(0) * torch.softmax(h @ h.T, 0).sum(1, keepdim=True))
    u = u * torch.softmax(u.T @ torch.tanh(u) * x.sum() + u.mean(), 0)
    u_x = grad(u, x)
    return ((grad(u, t) + u * u_x - grad(u_x, x)) ** 2).mean()


def network(activation: Callable[[], nn.Module], inputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, WIDTH), activation(), nn.Linear(WIDTH, WIDTH), activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, 1))


def products(model: nn.Module, objective: Any) -> tuple[float, float]:
    """Multiplications in products of width x width before and after, in units of one."""
    case = trace_case(model, torch.randn(BATCH, 2), None, objective)
    assert case.loss is not None
    (root,) = normal(expanded([case.loss]))
    return tuple(
        _multiplications(toposort([r])) // (BATCH * WIDTH * WIDTH)
        for r in (root, shortened(root, lambda n: normal([n])[0]))
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("objective", "activation"),
    [(f, nn.Tanh) for f in (burgers, poisson, wave, mixed, third, held, meeting)] + [(burgers, nn.Softplus)],
    ids=lambda f: f.__name__,
)
def test_as_torch(objective: Any, activation: Any) -> None:
    ours, torchs = trained_twice(
        network(activation),
        (torch.randn(4 * BATCH, 2),),
        None,
        lambda p: torch.optim.Adam(p, 1e-3),
        objective=objective,
        batch=BATCH,
        steps=6,
        short=objective is not meeting,
    )
    assert_same(ours, torchs, 1e-9)


# Two products of width x width on each way: forward, back, tangents along one or two directions, and where a chain
# would go back once more.
@pytest.mark.parametrize(
    ("objective", "before", "after"),
    [(burgers, 8, 6), (poisson, 12, 8), (wave, 12, 8)],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_products_that_fall_away(objective: Any, before: int, after: int) -> None:
    assert products(network(nn.Tanh), objective) == (before, after)
