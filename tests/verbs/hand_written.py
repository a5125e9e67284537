"""Hand-written backwards as people write them, with a place for each of the mistakes that people make.

Every maker returns ``(function, reference, inputs)``; ``mistake=""`` is the right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def function(forward: Callable, backward: Callable) -> Callable:
    """An autograd.Function of ``forward(ctx, *inputs)`` and ``backward(ctx, *gradients)``."""
    return type(
        "Hand", (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    ).apply


def softmax_ce(mistake: str = "") -> tuple[Callable, Callable, Any]:
    def forward(ctx, x, t):
        lse = torch.logsumexp(x, 1)
        ctx.save_for_backward(x, t, lse)
        return t.sum(1) * lse - (t * x).sum(1)

    def backward(ctx, g):
        x, t, lse = ctx.saved_tensors
        p, total, g = torch.exp(x - lse[:, None]), t.sum(1, keepdim=True), g[:, None]
        dx = {
            "no target": p * total,
            "sign": t - total * p,
            "target sign": p * total + t,
            "target assumed normalised": p - t,
            "mean": (total * p - t) / len(x),
        }.get(mistake, total * p - t)
        dt = lse[:, None] - x
        if mistake == "cotangent ignored":
            return dx, g * dt
        if mistake == "rows":
            dx = torch.cat([dx[:64], 0 * dx[64:]])
        if mistake == "nan":
            dx = dx * torch.where(dx.abs() < 0.02, math.nan, 1.0)
        return g * dx, None if mistake == "none" else g * dt

    def plain(x, t):
        return -(t * F.log_softmax(x, 1)).sum(1)

    generator = torch.Generator().manual_seed(1)
    inputs = (torch.randn(128, 12, generator=generator), torch.rand(128, 12, generator=generator))
    return function(forward, backward), plain, inputs


def layer_norm(mistake: str = "") -> tuple[Callable, Callable, Any]:
    def forward(ctx, x, w, b):
        y = x.float() if x.dtype != torch.float64 else x
        rstd = torch.rsqrt(y.var(1, unbiased=False, keepdim=True) + 1e-5)
        h = (y - y.mean(1, keepdim=True)) * rstd
        ctx.save_for_backward(h, w, rstd)
        return (h * w + b).to(x.dtype)

    def backward(ctx, g):
        h, w, rstd = ctx.saved_tensors
        dtype, g = w.dtype, g.to(h.dtype)
        u = g if mistake == "no weight" else g * w
        first, second = u.mean(1, keepdim=True), (u * h).mean(1, keepdim=True)
        if mistake == "sum for mean":
            second = (u * h).sum(1, keepdim=True)
        dx = {
            "no mean": u - h * second,
            "no projection": u - first,
            "projection sign": u - first + h * second,
        }.get(mistake, u - first - h * second)
        dx = dx if mistake == "no rstd" else dx * rstd
        dw, db = (g * h).sum(0), g.sum(0)
        if mistake == "last column":
            dw = torch.cat([dw[:-1], 2 * dw[-1:]])
        if mistake == "swapped":
            dw, db = db, dw
        if mistake == "shape":
            dw = dw[:-1]
        return dx.to(dtype), dw.to(dtype), db.to(dtype)

    def plain(x, w, b):
        mean = x.mean(1, keepdim=True)
        var = ((x - mean) ** 2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-5) * w + b

    generator = torch.Generator().manual_seed(2)
    inputs = tuple(torch.randn(s, generator=generator) for s in ((96, 24), (24,), (24,)))
    return function(forward, backward), plain, inputs


def rms_norm(mistake: str = "") -> tuple[Callable, Callable, Any]:
    def forward(ctx, x, w):
        rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x, w, rstd)
        return x * rstd * w

    def backward(ctx, g):
        x, w, rstd = ctx.saved_tensors
        u = g * w
        inner = (u * x).mean(-1, keepdim=True)
        power = 2 if mistake == "rstd power" else 3
        projection = x * inner * rstd**power
        dx = {"no projection": u * rstd, "projection half": u * rstd - projection / 2}.get(
            mistake, u * rstd - projection
        )
        dw = (g * x * rstd).sum(0)
        return dx, dw.mean().expand(dw.shape) if mistake == "averaged" else dw

    def plain(x, w):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w

    generator = torch.Generator().manual_seed(3)
    return (
        function(forward, backward),
        plain,
        (torch.randn(64, 32, generator=generator), torch.randn(32, generator=generator)),
    )


def attention(mistake: str = "") -> tuple[Callable, Callable, Any]:
    def forward(ctx, q, k, v):
        scale = q.shape[-1] ** -0.5
        p = torch.softmax(q @ k.mT * scale, -1)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    def backward(ctx, g):
        q, k, v, p = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dp = g @ v.mT
        delta = (p * dp).sum(-1, keepdim=True)
        ds = {"no delta": p * dp, "delta sign": p * (dp + delta), "no p": dp - delta}.get(mistake, p * (dp - delta))
        dq, dk, dv = ds @ k, ds.mT @ q, p.mT @ g
        if mistake != "no scale":
            dq, dk = dq * scale, dk * scale
        if mistake == "second block":
            dk = torch.cat([dk[:, :16], dk[:, 16:] * 0], 1)
        if mistake == "transposed":
            dv = p @ g
        if mistake == "swapped":
            dq, dk = dk, dq
        return dq, dk, dv

    def plain(q, k, v):
        return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v

    generator = torch.Generator().manual_seed(4)
    return function(forward, backward), plain, tuple(torch.randn(2, 32, 8, generator=generator) for _ in range(3))


def swiglu(mistake: str = "") -> tuple[Callable, Callable, Any]:
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return F.silu(a) * b

    def backward(ctx, g):
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        slope = {"no product rule": s, "slope sign": s * (1 - a * (1 - s))}.get(mistake, s * (1 + a * (1 - s)))
        da, db = g * b * slope, g * a * s
        if mistake == "no other factor":
            da = g * slope
        if mistake == "twice":
            db = 2 * db
        if mistake == "contiguous":
            g = g.as_strided(g.shape, torch.empty(g.shape).stride()) if g.stride()[0] else g
            da, db = g * b * slope, g * a * s
        return (db, da) if mistake == "swapped" else (da, db)

    def plain(a, b):
        return a * torch.sigmoid(a) * b

    generator = torch.Generator().manual_seed(5)
    return function(forward, backward), plain, tuple(torch.randn(48, 20, generator=generator) for _ in range(2))


_STALE: list[torch.Tensor] = []
_CALLS = [0]


def leaky_relu(mistake: str = "") -> tuple[Callable, Callable, Any]:
    def forward(ctx, x):
        y = torch.where(x > 0, x, 0.1 * x)
        if mistake == "in place":
            x.mul_(1.5)
        ctx.save_for_backward(x)
        _STALE[:] = [x]
        if mistake == "wrong forward":
            return torch.where(x > 0, x, 0.2 * x)
        return y

    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if mistake == "stale":
            x = _STALE[0]
        dx = torch.where(x > 0, g, 0.0 * g if mistake == "negative side" else 0.1 * g)
        if mistake == "random":
            _CALLS[0] += 1
            dx = dx + 0.1 * _CALLS[0]
        if mistake == "accumulates":
            ctx.seen = getattr(ctx, "seen", 0) + 1
            dx = dx * ctx.seen
        if mistake == "cotangent in place":
            g.mul_(2.0)
        if mistake == "raises":
            raise ValueError("no kernel for this shape")
        return dx

    def plain(x):
        return F.leaky_relu(x, 0.1)

    generator = torch.Generator().manual_seed(6)
    return function(forward, backward), plain, torch.randn(40, 10, generator=generator)
