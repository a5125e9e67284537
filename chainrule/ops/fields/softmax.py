"""Fields through softmax and attention, by the exact integral for the sum of squared probabilities.

For T independent normal logits of variance s^2, ``E[sum p^2] = T int t L''(t) L(t)^(T-1) dt`` with
``L(t) = E exp(-t exp(s z))`` (write 1/Z^2 as an integral). What all logits of a row have in common cancels, so s^2 is
their variance less their covariance. Two rows with covariance c of their logits take the same integral at s^2 = c,
which is exact for equal rows and for small s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.factors import merged, with_factor
from chainrule.ir.field import Field, fixed, iid, regraded, unknown, within_budget, worst
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.contraction import contracted
from chainrule.ops.fields.elementwise import added, multiplied
from chainrule.ops.fields.layers import put_back
from chainrule.ops.fields.registry import rule
from chainrule.ops.fields.standardised import centred_along

_SMALL = 0.16  # variance of logits up to which the closed form is within a percent


# ---- the integral ------------------------------------------------------------------------------------------
@lru_cache(maxsize=4)
def _gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    z, w = np.polynomial.hermite_e.hermegauss(count)
    return z, w / w.sum()


@lru_cache(maxsize=256)
def _laplace(variance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log t, log L(t), L''(t)) on a grid."""
    s = np.sqrt(variance)
    z, w = _gauss(121)
    x = np.exp(np.minimum(s * z, 300.0))
    log_t = np.linspace(-18.0 - 4 * s, 6.0 + 5 * s, 500)
    t = np.exp(log_t)[:, None]
    decay = np.exp(-t * x)
    return log_t, np.log(np.maximum(decay @ w, 1e-300)), decay @ (w * x * x)


def concentration(counts: np.ndarray, variance: float) -> np.ndarray:
    """``T E[sum p^2]`` for each number of keys T: 1 where all are equal, T where one takes all."""
    counts = np.asarray(counts, dtype=float)
    if variance < _SMALL:
        return _nearly_equal(counts, variance)
    log_t, log_l, second = _laplace(_three_digits(variance))
    step = log_t[1] - log_t[0]
    integrand = np.exp(2 * log_t + (counts[..., None] - 1) * log_l) * second
    return np.clip(counts**2 * integrand.sum(axis=-1) * step, 1.0, np.maximum(counts, 1.0))


def third_power(counts: np.ndarray, variance: float) -> np.ndarray:
    """``E[sum p^3]`` for each number of keys, by the same integral one power on."""
    counts = np.asarray(counts, dtype=float)
    if variance < 1e-3:
        return 1.0 / counts**2
    log_t, log_l, _ = _laplace(_three_digits(variance))
    z, w = _gauss(121)
    x = np.exp(np.minimum(np.sqrt(_three_digits(variance)) * z, 200.0))
    third = np.exp(-np.exp(log_t)[:, None] * x) @ (w * x**3)
    step = log_t[1] - log_t[0]
    integrand = np.exp(3 * log_t + (counts[..., None] - 1) * log_l) * third / 2.0
    return np.clip(counts * integrand.sum(axis=-1) * step, 1.0 / counts**2, 1.0)


def responses(counts: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """E[(sum dS s)^2] over what it would be if dS were independent of the scores s, over keys and over queries.

    For T normal scores of this variance and cotangents G of p that are independent of them: dS = p (G - sum p G), and
    its sum with s over keys is sum p (s - sum p s) G. By a fixed set of draws, interpolated over ln T.
    """
    counts = np.asarray(counts, dtype=float)
    if variance < 1e-3:
        return np.ones_like(counts), np.ones_like(counts)
    top = int(np.searchsorted(_RESPONSE_COUNTS, counts.max()))
    grid = _RESPONSE_COUNTS[: min(top + 1, len(_RESPONSE_COUNTS))]
    table = np.array([_response(n, float(f"{variance:.2g}")) for n in grid])
    at = np.log(np.clip(counts, grid[0], grid[-1]))
    keys, queries = (np.interp(at, np.log(grid), table[:, k]) for k in range(2))
    return keys, queries


_RESPONSE_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)


@lru_cache(maxsize=1024)
def _response(count: int, variance: float) -> tuple[float, float]:
    draws = max(100_000 // count, 1000)
    s = np.sqrt(variance) * np.random.default_rng(count).standard_normal((draws // 2, count))
    s = np.concatenate([s, -s])
    p = np.exp(s - s.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)
    square = p**2 * (1.0 - 2.0 * p + (p**2).sum(axis=1, keepdims=True))
    level = variance * float(square.sum(axis=1).mean())
    if level <= 0:
        return 1.0, 1.0
    centred = s - (p * s).sum(axis=1, keepdims=True)
    return float((p**2 * centred**2).sum(axis=1).mean()) / level, float((square * s**2).sum(axis=1).mean()) / level


def _nearly_equal(counts: np.ndarray, variance: Any) -> np.ndarray:
    """The closed form for small variances."""
    e = np.exp(np.maximum(variance, 0.0))
    return np.minimum(e / (1 + (e - 1) / np.maximum(counts, 1)), np.maximum(counts, 1.0))


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def concentrations(counts: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The same for many variances of each count: interpolated over a grid of deviations."""
    counts, variances = np.broadcast_arrays(np.asarray(counts, dtype=float), np.maximum(variances, 0.0))
    top = float(variances.max()) if variances.size else 0.0
    if top < _SMALL:
        return _nearly_equal(counts, variances)
    grid = np.linspace(0, np.sqrt(_three_digits(top) * 1.005), 14)
    several, back = np.unique(counts, return_inverse=True)
    table = np.log(np.stack([concentration(several, v) for v in grid**2], axis=1))  # (counts, grid)
    place = np.sqrt(variances) / grid[1]
    low = np.minimum(place.astype(int), len(grid) - 2)
    share = place - low
    row = back.reshape(counts.shape)
    return np.exp(table[row, low] * (1 - share) + table[row, low + 1] * share)


@lru_cache(maxsize=512)
def _overlap(count: int, variance: float, c: float) -> float:
    """``T E[sum p p']`` of two rows of logits with this variance and correlation.

    With w the part of exp(logit) that a row has alone and x what both share, 1/(Z Z') as a double integral:
    ``T^2 int int N(t, t') M(t, t')^(T-1) dt dt'``, M = E exp(-x (t w + t' w')), N = E x^2 w w' exp(-x (t w + t' w')).
    """
    own, both = np.sqrt((1 - c) * variance), np.sqrt(c * variance)
    z, weight = _gauss(61)
    x, w = (np.exp(np.minimum(size * z, 150.0)) for size in (both, own))
    s = np.sqrt(variance)
    log_t = np.linspace(-10.0 - 3.5 * s, 5.0 + 4.0 * s, 110)
    tau = np.exp(log_t)[:, None] * x  # (t, z)
    decay = np.exp(-tau[:, :, None] * w)
    alone, lifted = decay @ weight, x * (decay @ (weight * w))
    m = (alone * weight) @ alone.T
    n = (lifted * weight) @ lifted.T
    t = np.exp(log_t)
    step = log_t[1] - log_t[0]
    integrand = n * np.maximum(m, 1e-300) ** (count - 1) * np.outer(t, t)
    return float(np.clip(count * count * integrand.sum() * step * step, 1.0, count))


def overlaps(count: int, variance: float, covariances: np.ndarray) -> np.ndarray:
    """``T E[sum p p']`` for pairs of rows of one variance: interpolated over a grid of their covariance."""
    covariances = np.asarray(covariances, dtype=float)
    c = np.clip(covariances / max(variance, 1e-300), -1.0, 1.0)
    if variance < _SMALL:
        return concentrations(np.array(float(count)), np.maximum(covariances, 0.0)) + np.minimum(
            np.expm1(np.minimum(covariances, 0.0)), 0.0
        )
    grid = np.linspace(0.0, 0.96, 7)
    table = [_overlap(count, _three_digits(variance), float(g)) for g in grid]
    grid = np.append(grid, 1.0)
    table.append(float(concentration(np.array(float(count)), variance)))
    found = np.interp(np.maximum(c, 0.0), grid, table)
    slope = (table[1] - table[0]) / (grid[1] - grid[0])
    return np.where(c < 0, np.maximum(1.0 + slope * c, 0.0), found)


def expected_logsumexp(count: int, variance: float) -> float:
    """``E ln sum exp(z)`` of independent normal logits: ``int (exp(-t) - L(t)^T) / t dt``."""
    if variance < 1e-4:
        return float(np.log(count) + variance / 2)
    log_t, log_l, _ = _laplace(_three_digits(variance))
    low = np.linspace(log_t[0] - np.log(count) - 4, log_t[0], 40, endpoint=False)
    every = np.concatenate([low, log_t])
    powers = np.exp(np.concatenate([np.zeros(40) - np.exp(low) * np.exp(min(variance / 2, 600.0)), log_l]) * count)
    return float(np.trapezoid(np.exp(-np.exp(every)) - powers, every))


# ---- softmax -----------------------------------------------------------------------------------------------
def softmaxed(x: Field, axis: int) -> Field:
    """Probabilities along a dimension of exchangeable logits."""
    if not x.known:
        return unknown(x.shape, "the logits are unknown", x.sources)
    n = x.shape[axis]
    start = sum(len(d) for d in x.dims[:axis])
    count = len(x.dims[axis])
    x = merged(x, start, count) if count else with_factor(x, axis, Axis(1))
    x = regraded(x, start, Axis(n, 0))
    centred = x.centred
    if centred.shape[start] == 1 and n > 1:
        centred = np.repeat(centred, 2, axis=start)
    cov = np.take(centred, [0], axis=start) - (np.take(centred, [1], axis=start) if n > 1 else 0.0)
    variance = float(np.mean(pair.resolved(cov, x.axes)))
    if x.visible is not None and not bool(np.all(x.visible)):
        return _masked(x, axis, start, variance)
    rho = overlaps(n, variance, cov) if n > 1 else np.ones_like(cov)
    same = rho / n**2
    far = (1.0 - rho / n) / max(n * (n - 1.0), 1.0)
    table = np.concatenate([same, far], axis=start) if n > 1 else same
    axes = x.axes
    second = pair.resolved(table, axes)
    one = np.full((1,) * len(axes), 1.0 / n)
    average = float(np.mean(pair.resolved(rho, axes)))
    return within_budget(
        Field(
            x.dims,
            one,
            second,
            table,
            kurtosis=max(average, 1.0) ** 3,
            scale={},
            own=0.0,
            sources=x.sources,
            kind=worst(x.kind, "approximate"),
            why="the integral for E[sum p^2] of normal logits",
        )
    )


def _masked(x: Field, axis: int, start: int, variance: float) -> Field:
    """Probabilities over what a mask leaves of each row; rows are taken as unrelated beyond their means."""
    assert x.visible is not None
    seen = np.broadcast_to(x.visible, (*(1,) * (len(x.dims) - x.visible.ndim), *x.visible.shape)).astype(float)
    counts = np.maximum(seen.sum(axis=axis, keepdims=True), 1.0)
    if seen.shape[axis] == 1:
        counts = np.full_like(counts, float(x.shape[axis]))
    rho = concentration(counts, variance)
    grades = [d[0].lags if len(d) == 1 and d[0].size <= 64 else 0 for d in x.dims]
    uniform = fixed(np.broadcast_to(seen / counts, [max(n, 1) for n in seen.shape]), grades)
    (base, _), dims = _stretched_to(uniform, x)
    second = base.second * _in_factors(rho, dims)
    axes = [a for dim in dims for a in dim]
    table = np.broadcast_to(base.pairs, np.broadcast_shapes(base.pairs.shape, (1,) * len(axes))).copy()
    lift = float(np.mean(second)) / max(float(np.mean(base.second)), 1e-300)
    full = (
        np.broadcast_to(table, [a.classes for a in axes]).copy()
        if np.prod([a.classes for a in axes]) < 400_000
        else None
    )
    if full is not None:
        grid = np.ix_(*(a.same for a in axes))
        full[grid] = full[grid] * lift
        table = full
    return within_budget(
        Field(
            dims,
            base.mean,
            second,
            table,
            kurtosis=3.0,
            own=0.0,
            sources=x.sources,
            kind=worst(x.kind, "approximate"),
            why="softmax over what a mask leaves",
        )
    )


def _stretched_to(value: Field, x: Field) -> Any:
    return broadcasted([value, replace(x, array=None)], len(x.dims), x.shape)


def _in_factors(array: np.ndarray, dims: Any) -> np.ndarray:
    """An array over the tensor's dimensions (of their size or 1) as one over its factors."""
    shape: list[int] = []
    for n, factors in zip(array.shape, dims, strict=True):
        shape += [a.size for a in factors] if n > 1 else [1] * len(factors)
    return array.reshape(shape)


def _softmax_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    """p (g - sum p g): the cotangent less its weighted mean, times the probabilities."""
    (x,) = inputs
    axis = int(node.params["axis"]) % len(x.dims)
    return [through_softmax(g, y, axis)]


def through_softmax(g: Field, p: Field, axis: int) -> Field:
    """The cotangent of logits from that of probabilities; along the dimension it sums to zero."""
    n = p.shape[axis]
    centred, _ = centred_along(g, [axis])
    found = multiplied([replace(centred, scale=g.scale), p], p.shape)
    share = float(np.mean(p.second)) * n  # E[sum p^2]
    factor = max(1.0 - share, 0.0) / max(1.0 - 1.0 / n, 1e-12) if n > 1 else 0.0
    return replace(
        found,
        pairs=found.pairs * factor,
        second=found.second * factor,
        scale=g.scale,
        kind=worst(found.kind, "approximate"),
        mean_kind="",
    )


@rule("softmax", backward=_softmax_back)
def _softmax(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    return softmaxed(x, int(node.params["axis"]) % len(x.dims))


def _log_softmax_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    """g - p sum(g)."""
    (x,) = inputs
    axis = int(node.params["axis"]) % len(x.dims)
    p = softmaxed(x, axis)
    kept = [d for d in range(len(x.dims)) if d != axis]
    total = contracted([g], [list(range(len(x.dims)))], kept, "sum")
    part = multiplied([put_back(total, [axis]), p], x.shape)
    return [added([g, part], (1.0, -1.0), x.shape)]


@rule("log_softmax", backward=_log_softmax_back)
def _log_softmax(node: Node, inputs: Sequence[Field]) -> Field:
    """x - logsumexp(x): the common part cancels, the level is -log n - half the variance, nearly certain."""
    (x,) = inputs
    axis = int(node.params["axis"]) % len(x.dims)
    if not x.known:
        return unknown(x.shape, "the logits are unknown", x.sources)
    n = x.shape[axis]
    centred, level = _free_variance(x, axis)
    constant = -expected_logsumexp(n, level)
    offset = iid((1,) * len(x.dims), float(constant), float(constant) ** 2)
    return replace(added([centred, offset], (1.0, 1.0), x.shape), kind=worst(x.kind, "approximate"), mean_kind="")


def _free_variance(x: Field, axis: int) -> tuple[Field, float]:
    centred, spread = centred_along(x, [axis])
    return centred, float(np.mean(spread))
