"""Hessians against torch.func: closed form, parts, products with vectors, solutions; and where there is no closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule as cr
from chainrule.errors import ModelError, ShapeError
from chainrule.interpreters.diagonals import _scaled_inside
from chainrule.interpreters.evaluate import evaluate
from chainrule.ir import TensorType, variable
from chainrule.ops.contraction import einsum


def _t(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


N = 6
A, X, MASK = _t(N, N), _t(2 * N, N, seed=1), (_t(N, N, seed=2) > 0).double()
SIGNS, LABELS = _t(2 * N, seed=3).sign(), torch.arange(2 * N) % 3
WEIGHTS = [_t(N, N, seed=10 + k) for k in range(12)]
OFF = 1 - torch.eye(N, dtype=torch.float64)


def _net(W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    h = torch.relu(W @ x)
    for w in WEIGHTS:  # more products than all orders of which are compared
        h = torch.relu(w @ h)
    return h.square().sum()


def _distances(P: torch.Tensor) -> torch.Tensor:
    d = P[:, None] - P[None]
    return (((d**2).sum(-1) + 1 - OFF).sqrt() * OFF).sum()


# name -> (function, arguments, ties of the parts)
CLOSED: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], list[tuple[Any, ...]]]] = {
    "quadratic": (lambda x: x @ A @ x, (_t(N),), [()]),
    "logistic": (lambda w: torch.log1p(torch.exp(-SIGNS * (X @ w))).sum(), (_t(N),), [()]),
    "factorization": (lambda U, V: ((A - U @ V.T) ** 2).sum(), (_t(N, 2), _t(N, 2, seed=4)), [((0, 2),)]),
    "masked": (lambda U, V: (MASK * (A - U @ V.T) ** 2).sum(), (_t(N, 2), _t(N, 2, seed=4)), [((0, 2),)]),
    "softmax": (lambda W: F.cross_entropy(X @ W, LABELS), (_t(N, 3),), [(), ((1, 3),)]),
    "logsumexp": (lambda x: torch.logsumexp(x, 0) + (x**2).sum(), (_t(N),), [(), ((0, 1),)]),
    "network": (_net, (_t(N, N, seed=5), _t(N, seed=6)), [()]),
    "distances": (_distances, (_t(N, 3),), [(), ((0, 2),), ((0, 2), (1, 3)), ((1, 3),)]),
    "deep linear": (lambda W, V: ((V @ W @ X.T) ** 2).sum(), (_t(4, N), _t(9, 4, seed=7)), [()]),
    "elementwise": (lambda x: (x.exp() * x.sin()).sum(), (_t(2, 3),), [((0, 2), (1, 3))]),
    "linear": (lambda x: (x * 3).sum(), (_t(4),), []),
    "log determinant": (lambda S: torch.logdet(S @ S.T + torch.eye(N, dtype=S.dtype)), (_t(N, N),), None),  # type: ignore[dict-item]
}


def _close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form(name: str) -> None:
    f, args, ties = CLOSED[name]
    H = cr.hessian(f)
    expected = torch.func.hessian(f)(*args)
    _close(H(*args), expected)
    parts = H.factored(*args)
    if ties is not None:
        assert sorted(p.ties for p in parts.parts) == sorted(ties)
    _close(parts.dense(), expected)
    v = _t(*args[0].shape, seed=9)
    product = torch.tensordot(expected, v, v.dim())
    _close(parts.matvec(v), product)
    _close(H.matvec(*args, v), product)


@pytest.mark.parametrize(
    "name, bytes_kept",
    [("factorization", 8 * 4), ("masked", 8 * N * 4), ("logsumexp", 8 * 3 * N), ("deep linear", 8 * (16 + N * N))],
)
def test_nothing_is_multiplied_out(name: str, bytes_kept: int) -> None:
    f, args, _ = CLOSED[name]
    assert cr.hessian(f).factored(*args).nbytes == bytes_kept


@pytest.mark.parametrize(
    "name", ["quadratic", "logistic", "factorization", "masked", "logsumexp", "deep linear", "elementwise", "distances"]
)
def test_solve(name: str) -> None:
    f, args, _ = CLOSED[name]
    ridge = (lambda *a: f(*a) + (a[0] ** 2).sum() * 5) if name in ("distances",) else f
    b = _t(*args[0].shape, seed=8)
    s = cr.hessian(ridge).solve(*args, b)
    back = torch.tensordot(torch.func.hessian(ridge)(*args), s, s.dim())
    torch.testing.assert_close(back, b, rtol=1e-7, atol=1e-7)  # condition numbers up to 1e4


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1,)])
def test_blocks(order: tuple[int, ...]) -> None:
    f, args, _ = CLOSED["masked"]
    for mine, theirs in zip(cr.hessian(f, order)(*args), torch.func.hessian(f, order)(*args), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            _close(a, b)


def test_trees() -> None:
    def f(p: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((X @ p["w"] + p["b"]).tanh() ** 2).sum()

    p = {"w": _t(N), "b": _t(1)}
    ours, theirs = cr.hessian(f)(p), torch.func.hessian(f)(p)
    for a in p:
        for b in p:
            _close(ours[a][b], theirs[a][b])
    with pytest.raises(ModelError, match="one tensor"):
        cr.hessian(f).factored(p)
    product = cr.hessian(f).matvec(p, p)
    _close(product["b"], theirs["b"]["w"] @ p["w"] + theirs["b"]["b"] @ p["b"])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.sin() * x.sum(),  # a vector
        lambda x: {"a": x.prod(), "b": x.square().sum()},  # several results
        lambda x: x.sort()[0].cumsum(0).prod(),  # no matrix form
        lambda x: F.conv1d(x[None, None], x[None, None, :2]).square().sum(),
    ],
)
def test_without_a_closed_form(f: Callable[[torch.Tensor], Any]) -> None:
    x = _t(5)
    ours, theirs = cr.hessian(f)(x), torch.func.hessian(f)(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_it_nests() -> None:
    f = lambda x: (x**4).sum()  # noqa: E731
    x = _t(3)
    trace = cr.grad(lambda x: torch.trace(cr.hessian(f)(x)))(x)
    _close(trace, 24 * x)
    rows = torch.vmap(cr.hessian(f))(torch.stack([x, 2 * x]))
    _close(rows, torch.stack([torch.diag(12 * x**2), torch.diag(48 * x**2)]))
    y = x.clone().requires_grad_()
    (third,) = torch.autograd.grad(cr.hessian(f)(y).sum(), y)
    _close(third, 24 * x)


@pytest.mark.parametrize("name", ["quadratic", "logsumexp", "linear", "factorization"])
def test_the_result_is_the_callers(name: str) -> None:
    """Writing into a result changes neither the next one nor what the function reads."""
    f, args, _ = CLOSED[name]
    H = cr.hessian(f)
    first = H(*args)
    kept, before = first.clone(), [a.clone() for a in (*args, A, X)]
    first.fill_(7.0)
    _close(H(*args), kept)
    assert all(torch.equal(a, b) for a, b in zip((*args, A, X), before, strict=True))


def test_a_constant_hessian_and_one_that_is_an_argument() -> None:
    S = A + A.T
    H = cr.hessian(lambda x, S: 0.5 * x @ S @ x)
    first = H(_t(N), S)
    _close(first, S)
    first.zero_()
    _close(H(_t(N), S), S)
    assert not S.eq(0).any()


def test_what_it_reads_may_change() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    H = cr.hessian(lambda x: scale * (model(x) ** 2).sum())
    x = _t(3)
    _close(H(x), 4 * model.weight.T @ model.weight)
    with torch.no_grad():
        model.weight.mul_(3)
    scale.fill_(1.0)
    _close(H(x), 2 * model.weight.T @ model.weight)
    _close(H(x.float().double()[None])[0, :, 0], 2 * model.weight.T @ model.weight)


def test_running_statistics_move_once() -> None:
    norm = nn.BatchNorm1d(3).double()
    H = cr.hessian(lambda x: (norm(x) ** 3).sum())
    H(_t(5, 3))
    assert norm.num_batches_tracked == 1


def test_refusals() -> None:
    f, (x, V), _ = CLOSED["factorization"]
    H = cr.hessian(f)
    with pytest.raises(ShapeError, match="does not fit"):
        H.solve(x, V, _t(3))
    with pytest.raises(ShapeError, match="does not fit"):
        H.matvec(x, V, _t(3))
    with pytest.raises(ModelError, match="singular"):
        cr.hessian(lambda x: torch.logsumexp(x, 0)).solve(torch.zeros(2), torch.ones(2))
    with pytest.raises(ModelError, match="int64"):
        H(torch.ones(3, 2, dtype=torch.int64), V)


def test_it_shows_what_it_is() -> None:
    f, args, _ = CLOSED["masked"]
    parts = cr.hessian(f).factored(*args)
    assert str(parts).splitlines() == ["6 x 2 x 6 x 2, 192 bytes in 1 parts", "  (6, 2, 2) over (0, 1, 3) [0 = 2]"]
    assert parts.to_dict()["parts"] == [{"ties": [(0, 2)], "axes": [0, 1, 3], "factors": [[6, 2, 2]]}]


def test_a_number_moves_into_a_product_and_a_square_does_not() -> None:
    p, q = (variable(name, TensorType((5,))) for name in "pq")
    outer = einsum("i,j->ij", p, q)
    values = {p: np.arange(5.0) + 1, q: np.arange(5.0) - 2.5}
    for node in (outer * -3.0, -outer, outer**2.0, 2.0 / outer, outer / 4.0):
        assert np.allclose(evaluate([_scaled_inside(node)], values)[0], evaluate([node], values)[0])
    assert _scaled_inside(-outer) is not -outer and _scaled_inside(outer**2.0) is outer**2.0
