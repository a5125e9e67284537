"""Autocast: its casts are part of the graph, so loss and gradients are eager autograd's bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import chainrule as cr

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4


def _objective(dtype: torch.dtype) -> Callable[[Any, Any], torch.Tensor]:
    def objective(model: Any, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return objective


class _Shared(nn.Module):
    """One weight read three times, once with autocast off."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x @ self.weight).relu() @ self.weight
        with torch.autocast("cpu", enabled=False):
            y = y.float() @ self.weight
        return self.head(y)


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


def _dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.Dropout(0.2), nn.GroupNorm(4, 16),
        nn.Linear(16, 4), nn.Softmax(-1),
    )  # fmt: skip


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(4, 4, 8)
        return self.head(self.attention(y, y, y, need_weights=False)[0].reshape(16, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [_dense, _conv, _Shared, _Attention])
def test_step_is_eagers(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, objective = make(), _objective(dtype)
    case = cr.case(model, (X, LABELS), objective=objective)
    assert case.trace.bit_equal and not case.trace.opaque
    torch.manual_seed(1)
    loss, grads = case.step({k: p.detach() for k, p in model.named_parameters()}, (X, LABELS), update=False)
    torch.manual_seed(1)
    expected = objective(model, (X, LABELS))
    expected.backward()
    assert torch.equal(loss, expected)
    for name, parameter in model.named_parameters():
        assert grads[name].dtype is torch.float32
        assert torch.equal(grads[name], parameter.grad), name


def test_transforms_see_the_mode_at_the_call() -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x @ weight).tanh().sum().float()

    gradient = cr.grad(function)
    plain = gradient(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gradient(X)
        assert torch.equal(low, torch.func.grad(function)(X))
    assert not torch.equal(low, plain) and torch.equal(gradient(X), plain)


def test_a_weight_that_was_cast_before_is_still_a_weight() -> None:
    layer, x = nn.Linear(8, 4), X
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)  # torch now holds the cast weight
        case = cr.case(layer, (x, torch.zeros(16, 4)), nn.MSELoss())
        loss, grads = case.step(dict(layer.named_parameters()), (x, torch.zeros(16, 4)))
        expected = nn.MSELoss()(layer(x), torch.zeros(16, 4))
    expected.backward()
    assert torch.equal(loss, expected) and torch.equal(grads["weight"], layer.weight.grad)


def test_a_custom_function_runs_under_the_same_autocast() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            x, w = ctx.saved_tensors
            return g.float() @ w.T, x.T @ g.float()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Double.apply(x, self.weight)

    model, objective = Model(), _objective(torch.bfloat16)
    case = cr.case(model, (X, LABELS), objective=objective)
    assert case.trace.bit_equal
    loss, grads = case.step(dict(model.named_parameters()), (X, LABELS))
    expected = objective(model, (X, LABELS))
    expected.backward()
    assert torch.equal(loss, expected) and torch.equal(grads["weight"], model.weight.grad)
