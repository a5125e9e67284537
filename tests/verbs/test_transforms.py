"""The transforms against torch.func, on random compositions and on what makes a cached function stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_flatten

import chainrule as cr
from chainrule.errors import ModelError, ShapeError, UnsupportedOpError


def same(ours: Any, theirs: Any) -> None:
    """Equal trees of equal tensors: float64, sums may be taken in another order."""
    (a, spec), (b, other) = tree_flatten(ours), tree_flatten(theirs)
    assert spec == other
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- random compositions -----------------------------------------------------------------------------------
# x has shape (3, 4), w (4, 4), v (4,): each step keeps the shape of what it is given.
STEPS: list[Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]] = [
    lambda h, p: torch.tanh(h),
    lambda h, p: h @ p["w"],
    lambda h, p: h * p["v"],
    lambda h, p: torch.sin(h) + h,
    lambda h, p: F.softmax(h, -1),
    lambda h, p: h / (1 + h.square().sum(-1, keepdim=True)),
    lambda h, p: F.gelu(h),
    lambda h, p: h - h.mean(0),
    lambda h, p: F.linear(h, p["w"], p["v"]),
    lambda h, p: torch.sigmoid(h).t().t() * h,
    lambda h, p: torch.einsum("ij,jk->ik", h, p["w"]) * 0.5,
    lambda h, p: torch.cat([h[:, 2:], h[:, :2]], 1),
    lambda h, p: F.layer_norm(h, (4,), p["v"]),
    lambda h, p: torch.where(p["w"][:3] > 0, h, h * h),
    lambda h, p: _written(h, p),
    lambda h, p: h.clamp(-0.7, 0.9) + F.leaky_relu(h, 0.1),
    lambda h, p: torch.linalg.solve(p["w"] @ p["w"].T + 3 * torch.eye(4, dtype=h.dtype), h.T).T,
    lambda h, p: h.cumsum(1) - h.flip(0).roll(1, 1),
    lambda h, p: torch.stack(h.unbind(1), 1) * h.amax(1, keepdim=True),
    lambda h, p: F.conv1d(h[None], p["w"][:3, None, :3].expand(3, 3, 3), p["v"][:3], padding=1)[0],
    lambda h, p: h[:, torch.tensor([1, 1, 3, 0])] + h.gather(1, torch.tensor([[3, 2, 1, 0]] * 3)),
    lambda h, p: h / h.std(1, keepdim=True).add(1) + h.logsumexp(0),
    lambda h, p: F.scaled_dot_product_attention(h[None], (h @ p["w"])[None], h[None])[0],
    lambda h, p: torch.atan2(h, 1 + h.square()) + h.abs().sqrt().detach(),
    lambda h, p: F.pad(h, (1, 2)).unfold(1, 4, 1)[:, 1] * p["v"].exp(),
    lambda h, p: torch.baddbmm(h[None], h[None], p["w"][None], beta=0.5, alpha=2.0)[0],
    lambda h, p: h.sort(1)[0] + torch.topk(h, 4, 1)[0],
    lambda h, p: torch.linalg.norm(h, dim=1, keepdim=True) * h - h.prod(1, keepdim=True),
    lambda h, p: F.group_norm(h.t()[None], 2)[0].t() + F.softplus(h) * F.silu(h),
    lambda h, p: h.reshape(2, 6).transpose(0, 1).reshape(3, 4) ** 3,
    lambda h, p: torch.index_add(h, 0, torch.tensor([0, 0, 2]), h.log_softmax(1)),
    lambda h, p: F.cross_entropy(h, torch.tensor([1, 3, 0])) * h.tril(),
]


def _written(h: torch.Tensor, p: dict[str, torch.Tensor]) -> torch.Tensor:
    """Writes in place, into a copy and into a view of it."""
    y = h.clone()
    y[:, 1] *= 2.0
    y[0].add_(p["v"])
    return y.mul_(h)


ENDS: list[Callable[[torch.Tensor], Any]] = [
    lambda h: {"rows": h.sum(1), "all": [h.square().sum()]},
    lambda h: (h[0], h.sum()),
    lambda h: h.mean(0),
]


COMPOSED = (st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=4), st.integers(0, len(ENDS) - 1))
IN_THE_SAME_ORDER = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's vmap of torch.func's own derivative
@settings(IN_THE_SAME_ORDER, max_examples=40)
@given(*COMPOSED)
def test_random_compositions(steps: list[int], end: int) -> None:
    _agrees(steps, end)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's vmap of torch.func's own derivative
@settings(IN_THE_SAME_ORDER, max_examples=400)
@given(*COMPOSED)
def test_many_random_compositions(steps: list[int], end: int) -> None:
    _agrees(steps, end)


def _agrees(steps: list[int], end: int) -> None:
    def body(x: torch.Tensor, p: dict[str, torch.Tensor]) -> torch.Tensor:
        for k in steps:
            x = STEPS[k](x, p)
        return x

    def function(x: torch.Tensor, p: dict[str, torch.Tensor]) -> Any:
        return ENDS[end](body(x, p))

    x, p = tensor(3, 4), {"w": tensor(4, 4, seed=1), "v": tensor(4, seed=2)}
    value, back = cr.vjp(function, x, p)
    expected, expected_back = torch.func.vjp(function, x, p)
    same(value, expected)
    g = torch.utils._pytree.tree_map(torch.cos, expected)
    same(back(g), expected_back(g))
    same(cr.jvp(function, (x, p), (x.cos(), p)), torch.func.jvp(function, (x, p), (x.cos(), p)))
    same(cr.jacrev(function, (0, 1))(x, p), torch.func.jacrev(function, (0, 1))(x, p))
    same(cr.jacfwd(function, 1)(x, p), torch.func.jacfwd(function, 1)(x, p))

    def scalar(x: torch.Tensor, p: dict[str, torch.Tensor]) -> torch.Tensor:
        return body(x, p).cos().sum()

    same(cr.grad(scalar, (0, 1))(x, p), torch.func.grad(scalar, (0, 1))(x, p))


@pytest.mark.parametrize("steps", [[0, 1], [4, 2], [5], [9, 8], [12], [13, 3], [7, 10, 0]])
def test_hessians(steps: list[int]) -> None:
    p = {"w": tensor(4, 4, seed=1), "v": tensor(4, seed=2)}

    def function(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        for k in steps:
            x = STEPS[k](x, {**p, "v": v})
        return x.square().sum()

    x, v = tensor(3, 4), tensor(4, seed=2)

    def plain(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        for k in steps:
            x = _PLAIN.get(k, STEPS[k])(x, {**p, "v": v})
        return x.square().sum()

    same(cr.hessian(function)(x, v), torch.func.hessian(plain)(x, v))
    same(cr.hessian(function, (0, 1))(x, v), torch.func.hessian(plain, (0, 1))(x, v))


# torch's second derivative of layer_norm by input and weight is wrong (torch 2.13; differences of its first derivative
# agree with ours), so layer_norm is written out for it.
_PLAIN: dict[int, Any] = {
    12: lambda h, p: (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt() * p["v"],
}


# ---- signatures of torch.func ------------------------------------------------------------------------------
def with_aux(x: torch.Tensor, scale: float = 2.0) -> Any:
    return (scale * x**2).sum(), {"half": x / 2}


def with_text(x: torch.Tensor) -> Any:
    return (2.0 * x**2).sum(), {"half": x / 2, "name": "aux"}


def test_aux_keywords_and_values() -> None:
    x = tensor(3)
    same(cr.grad(with_aux, has_aux=True)(x, scale=3.0), torch.func.grad(with_aux, has_aux=True)(x, scale=3.0))
    ours, theirs = cr.grad_and_value(with_aux, has_aux=True)(x), torch.func.grad_and_value(with_aux, has_aux=True)(x)
    same(ours, theirs)
    value, back, aux = cr.vjp(with_text, x, has_aux=True)
    assert aux["name"] == "aux" and torch.equal(aux["half"], x / 2) and torch.equal(value, (2.0 * x**2).sum())
    same(back(torch.tensor(1.0, dtype=torch.float64)), (4 * x,))
    assert cr.jvp(with_text, (x,), (x,), has_aux=True)[2]["name"] == "aux"
    assert cr.jacrev(with_text, has_aux=True)(x)[1]["name"] == "aux"
    assert cr.grad(with_aux, has_aux=True).__name__ == "with_aux"


def test_transforms_nest_and_close_over_outer_values() -> None:
    x, y = tensor(3, 4), tensor(4, seed=1)

    def penalty(transform: Any) -> Callable[..., torch.Tensor]:
        return lambda x, y: (transform(lambda z: (torch.tanh(z) * y).pow(3).sum())(x) ** 2).sum()

    ours, theirs = penalty(cr.grad), penalty(torch.func.grad)
    same(cr.grad(ours, (0, 1))(x, y), torch.func.grad(theirs, (0, 1))(x, y))
    same(cr.grad(cr.grad(torch.sin))(y[0]), -torch.sin(y[0]))


def test_autograd_differentiates_what_a_transform_returns() -> None:
    x = tensor(3).requires_grad_()
    cr.grad(lambda z: (z**3).sum())(x).sum().backward()
    same(x.grad, 6 * x.detach())


def test_modules_and_functional_call() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.LayerNorm(3)).double(), tensor(5, 4)
    parameters, weights = {n: p.detach() for n, p in model.named_parameters()}, tensor(3)

    def loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, p, (x,)).pow(2).mul(weights).sum()

    same(cr.grad(loss)(parameters), torch.func.grad(loss)(parameters))


def test_running_statistics_are_written_back_once() -> None:
    ours, theirs, x = nn.BatchNorm1d(4).double(), nn.BatchNorm1d(4).double(), tensor(5, 4)
    cr.grad(lambda z: ours(z).square().mean())(x)
    theirs(x)
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_the_cotangent_function_repeats_the_draws() -> None:
    x = tensor(50)
    value, back = cr.vjp(lambda z: F.dropout(z, 0.5), x)
    (g,) = back(torch.ones_like(x))
    assert torch.equal(g * x, value)
    torch.manual_seed(1)
    ours = cr.grad(lambda z: F.dropout(z, 0.5).sum())(x)
    torch.manual_seed(1)
    same(ours, F.dropout(torch.ones_like(x), 0.5))


# ---- nothing stale -----------------------------------------------------------------------------------------
def test_shapes_dtypes_and_static_arguments() -> None:
    f = cr.grad(lambda x, n: (x**n).sum())
    for x in (tensor(3), tensor(2, 2), tensor(3).float(), tensor(4, 3).t()):
        for n in (2, 3):
            same(f(x, n), n * x ** (n - 1))


def test_what_a_function_reads_may_change() -> None:
    scale, table, weight, layer = 2.0, {"k": [1.0]}, tensor(3), nn.Dropout(0.5)

    def f(x: torch.Tensor) -> torch.Tensor:
        return (layer(x) * scale * table["k"][0] * weight).sum()

    g, x = cr.grad(f), tensor(3, seed=4)
    layer.eval()
    same(g(x), 2.0 * weight)
    scale = 3.0
    same(g(x), 3.0 * weight)
    table["k"][0] = 2.0
    same(g(x), 6.0 * weight)
    weight.mul_(2)
    same(g(x), 6.0 * weight)
    weight = tensor(3, seed=9)
    same(g(x), 6.0 * weight)
    layer.p = 0.25
    layer.train()
    torch.manual_seed(0)
    ours = g(x)
    torch.manual_seed(0)
    same(ours, F.dropout(torch.ones_like(x), 0.25) * 6.0 * weight)


def test_compilations_are_visible(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CHAINRULE_LOG", "1")
    f = cr.grad(lambda x: x.sum())
    f(tensor(3))
    f(tensor(3, seed=1))
    f(tensor(2))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "float64[3]" in said[0] and "signature 2" in said[1]


# ---- refusals ----------------------------------------------------------------------------------------------
def branch(x: torch.Tensor) -> torch.Tensor:
    return x.sum() if x.sum() > 0 else -x.sum()


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "branch": (lambda: cr.grad(branch)(tensor(3)), UnsupportedOpError, "test_transforms.py.*Python reads"),
    "not a scalar": (lambda: cr.grad(lambda x: x)(tensor(3)), ModelError, "not a scalar"),
    "no such argument": (lambda: cr.grad(torch.sum, 2)(tensor(3)), ModelError, "no argument 2"),
    "an integer": (lambda: cr.grad(lambda x: x.double().sum())(torch.arange(3)), ModelError, "argument 0 is int64"),
    "not a tensor": (lambda: cr.grad(lambda x, y: x.sum() * y, 1)(tensor(3), 2.0), ModelError, "not a tensor"),
    "no tensor out": (lambda: cr.grad(lambda x: 1.0)(tensor(3)), ModelError, "tensors alone"),
    "not a function": (lambda: cr.grad(3)(tensor(3)), ModelError, "takes a function"),  # type: ignore[arg-type]
    "cotangent": (lambda: cr.vjp(torch.sin, tensor(3))[1](tensor(2)), ShapeError, "cotangents do not fit"),
    "tangent": (lambda: cr.jvp(torch.sin, (tensor(3),), (tensor(2),)), ShapeError, "tangents do not fit"),
    "tuples": (lambda: cr.jvp(torch.sin, tensor(3), tensor(3)), ModelError, "as tuples"),
    "written": (lambda: cr.grad(lambda x: x.mul_(2).sum())(tensor(3)), UnsupportedOpError, "writes into"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call()
