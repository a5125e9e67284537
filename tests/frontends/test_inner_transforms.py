"""Derivatives that a program takes itself, by autograd, torch.func and vmap: one first-order graph, eager's gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule as cr
from chainrule.errors import UnsupportedOpError


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)).double()


X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _physics(first: torch.Tensor, second: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (first[:, 1] + u[:, 0] * first[:, 0] - 0.1 * second[:, 0]).square().mean()


def _by_autograd(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    u = m(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return _physics(first, second, u)


def _by_func(m: Any, x: torch.Tensor) -> torch.Tensor:
    first = torch.func.grad(lambda x: m(x).sum())
    return _physics(first(x), torch.func.grad(lambda x: first(x)[:, 0].sum())(x), m(x))


def _by_chainrule(m: Any, x: torch.Tensor) -> torch.Tensor:
    first = cr.grad(lambda x: m(x).sum())
    return _physics(first(x), cr.grad(lambda x: first(x)[:, 0].sum())(x), m(x))


def _by_sample(m: Any, x: torch.Tensor) -> torch.Tensor:
    first = torch.func.grad(lambda x: m(x)[0])
    second = torch.func.grad(lambda x: first(x)[0])
    return _physics(torch.vmap(first)(x), torch.vmap(second)(x), torch.vmap(m)(x))


def _values_too(m: Any, x: torch.Tensor) -> torch.Tensor:
    g, (u, (doubled,)) = torch.func.grad_and_value(lambda x: (m(x).sum(), (2 * m(x),)), has_aux=True)(x)
    return g.square().sum() + u * doubled.mean()


def _two_arguments(m: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = torch.func.grad(lambda a, b: (m(a) * b.sin() * a).sum(), argnums=(0, 1))(x, x * 2)
    return (a * b).sum()


def _a_closed_over_value_is_constant(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(lambda z: (z * x.square() * m(x)).sum())(x).square().sum()


def _per_sample_weights(m: Any, x: torch.Tensor) -> torch.Tensor:
    p = dict(m.named_parameters())
    each = torch.func.grad(lambda p, x: torch.func.functional_call(m, p, (x,)).sum())
    g = torch.vmap(each, in_dims=(None, 0))(p, x)
    return sum(v.square().sum(0).sqrt().sum() for v in g.values())  # type: ignore[return-value]


def _mapped_twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(torch.vmap(lambda a: a.sin() * a), in_dims=1)(x).matmul(x).square().sum() + m(x).sum()


def _penalty(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(m(x), x, torch.ones(5, 1, dtype=x.dtype), create_graph=True)
    return F.relu(g.norm(dim=1) - 0.1).square().mean()


OBJECTIVES = (
    _by_autograd,
    _by_func,
    _by_chainrule,
    _by_sample,
    _values_too,
    _two_arguments,
    _a_closed_over_value_is_constant,
    _per_sample_weights,
    _mapped_twice,
    _penalty,
)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_eagers(objective: Callable[[Any, Any], torch.Tensor]) -> None:
    model = _net()
    expected = objective(model, X)
    grads = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    case = cr.case(model, X, objective=objective)
    assert not case.trace.opaque
    loss, found = case.step({k: p.detach() for k, p in model.named_parameters()}, X)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-14)
    for (name, _), g in zip(model.named_parameters(), grads, strict=True):
        if g is None:
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], g, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("objective", [_by_func, _by_sample, _penalty])
def test_inside_of_our_own_transforms(objective: Callable[[Any, Any], torch.Tensor]) -> None:
    model = _net()
    x = X.clone().requires_grad_()
    if objective is _penalty:  # it cuts its argument off by itself
        assert not cr.grad(lambda x: objective(model, x))(X).any()
        return
    (expected,) = torch.autograd.grad(objective(model, x), x)
    torch.testing.assert_close(cr.grad(lambda x: objective(model, x))(X), expected, rtol=1e-10, atol=1e-12)


def test_second_order_of_convolutions_runs_on_their_kernels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.SiLU(), nn.ConvTranspose2d(4, 4, 3, groups=2), nn.Tanh(),
        nn.Conv2d(4, 2, 2, dilation=2, bias=False), nn.Flatten(), nn.LazyLinear(1),
    ).double()  # fmt: skip
    x = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    model(x)

    def objective(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        return g.square().sum()

    step = cr.case(model, x, objective=objective).step
    _, found = step({k: p.detach() for k, p in model.named_parameters()}, x)
    expected = torch.autograd.grad(objective(model, x), list(model.parameters()))
    for (name, _), g in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-9, atol=1e-10, msg=name)
    assert ".pad(" not in step.source and "convolution_backward" in step.source


def test_others_of_torch_func_are_refused_with_the_line() -> None:
    with pytest.raises(UnsupportedOpError, match=r"test_inner_transforms.py:\d+.*torch.func transform"):
        cr.case(_net(), X, objective=lambda m, x: torch.func.jvp(m, (x,), (x,))[1].sum()).trace  # noqa: B018


def test_torch_func_is_itself_again() -> None:
    import torch._functorch.eager_transforms as eager_transforms

    before = eager_transforms.grad_and_value_impl
    cr.case(_net(), X, objective=_by_func).trace  # noqa: B018
    with pytest.raises(UnsupportedOpError):
        cr.grad(lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1].sum())(X)
    assert eager_transforms.grad_and_value_impl is before


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "silu", "gelu", "softmax", "log_softmax"])
def test_third_derivatives_of_activations(name: str) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    act = getattr(torch.nn.functional, name)
    more = (-1,) if "softmax" in name else ()

    def third(grad: Any) -> Any:
        def first(x: torch.Tensor) -> torch.Tensor:
            return (act(x @ w, *more) @ w).sin().sum()

        def second(x: torch.Tensor) -> torch.Tensor:
            return grad(first)(x).square().sum()

        return lambda x: grad(second)(x).square().sum()

    expected = torch.func.grad(third(torch.func.grad))(x)
    for inner in (torch.func.grad, cr.grad):
        torch.testing.assert_close(cr.grad(third(inner))(x), expected, rtol=1e-9, atol=1e-9)
