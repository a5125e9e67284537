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
from chainrule.ir.field import Field, fixed, iid, merged, refined, regraded, unknown, with_factor, within_budget, worst
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import aligned, broadcasted
from chainrule.ops.fields.contraction import contracted
from chainrule.ops.fields.elementwise import added, multiplied
from chainrule.ops.fields.layers import put_back
from chainrule.ops.fields.movement import repeated
from chainrule.ops.fields.norms import centred_along
from chainrule.ops.fields.registry import rule, sizes

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
        return concentrations(np.array(float(count)), np.maximum(covariances, 0.0)) + np.minimum(np.expm1(np.minimum(covariances, 0.0)), 0.0)
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
    powers = np.exp(np.concatenate([np.zeros(40) - np.exp(low) * np.exp(variance / 2), log_l]) * count)
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
    full = np.broadcast_to(table, [a.classes for a in axes]).copy() if np.prod([a.classes for a in axes]) < 400_000 else None
    if full is not None:
        grid = np.ix_(*(a.same for a in axes))
        full[grid] = full[grid] * lift
        table = full
    return within_budget(
        Field(dims, base.mean, second, table, kurtosis=3.0, own=0.0, sources=x.sources, kind=worst(x.kind, "approximate"), why="softmax over what a mask leaves")
    )


def _stretched_to(value: Field, x: Field) -> Any:
    return broadcasted([value, replace(x, array=None)], len(x.dims), x.shape)


def _in_factors(array: np.ndarray, dims: Any) -> np.ndarray:
    """An array over the tensor's dimensions (of their size or 1) as one over its factors."""
    shape: list[int] = []
    for n, factors in zip(array.shape, dims, strict=True):
        shape += [a.size for a in factors] if n > 1 else [1] * len(factors)
    return array.reshape(shape)


def _softmax_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
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
    return replace(found, pairs=found.pairs * factor, second=found.second * factor, scale=g.scale, kind=worst(found.kind, "approximate"))


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
    return replace(added([centred, offset], (1.0, 1.0), x.shape), kind=worst(x.kind, "approximate"))


def _free_variance(x: Field, axis: int) -> tuple[Field, float]:
    centred, spread = centred_along(x, [axis])
    return centred, float(np.mean(spread))


# ---- attention ---------------------------------------------------------------------------------------------
def _laid(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """A table with one factor's pairs as the last two dimensions, whatever its grading."""
    if table.shape[k] == 1:
        moved = np.moveaxis(table, k, -1)
        return np.broadcast_to(moved[..., None], (*moved.shape[:-1], axis.size, axis.size))
    return pair.lay_out(table, k, axis)


class _Attention:
    """Everything that forward and backward of one attention read.

    Tables are arranged as (classes of the leading factors ..., width classes, i, i'), positions laid out.
    """

    def __init__(self, node: Node, inputs: Sequence[Field]) -> None:
        q, k, v, *rest = inputs
        given = node.params.get("given", ())
        mask = rest[0] if "attn_mask" in given else None
        self.scale = float(node.params.get("scale") or 1.0 / np.sqrt(q.shape[-1]))
        if node.params.get("enable_gqa"):
            k, v = (shared_heads(x, q.shape[-3]) for x in (k, v))
        self.lead = len(q.dims) - 2
        fields = _common_lead([q, k, v], self.lead)
        self.q, self.k, self.v = (_one_position_factor(f) for f in fields)
        self.rows, self.keys = self.q.shape[-2], self.k.shape[-2]
        self.width = self.q.shape[-1]
        seen = np.ones((self.rows, self.keys))
        if node.params.get("is_causal"):
            seen = np.tril(seen)
        self.bias = 0.0
        if mask is not None and mask.array is not None:
            seen = seen * _visible(mask)
        elif mask is not None and mask.known:
            self.bias = float(np.mean(mask.variance))  # of scores by position, the same for all samples
            if mask.visible is not None:
                rows = mask.visible.reshape(-1, *mask.visible.shape[-2:]).mean(axis=0) if mask.visible.ndim > 1 else mask.visible
                seen = seen * (np.broadcast_to(rows, seen.shape) > 0.5)
        self.seen = seen
        self.counts = np.maximum(seen.sum(axis=1), 1.0)
        self.u = seen / self.counts[:, None]

    @property
    def norm(self) -> np.ndarray:
        """Sum over keys of the products of two rows' equal probabilities: (i, i')."""
        return np.maximum(self.u @ self.u.T, 1e-300)

    def at_keys(self, table: np.ndarray) -> np.ndarray:
        """Sum over pairs of rows of a table times both rows' equal probabilities at a key: (..., j)."""
        return ((table @ self.u) * self.u).sum(axis=-2)

    def tables(self, f: Field) -> np.ndarray:
        """(lead classes..., width classes, i, i')."""
        k = len(f.axes) - 1 - len(f.dims[-1])
        return _laid(f.pairs, k, f.axes[k])

    def over_width(self, f: Field) -> np.ndarray:
        """The pairs of equal positions of the width, averaged: (lead classes..., i, i')."""
        table = self.tables(f)
        for j in range(len(f.dims[-1])):
            a = f.dims[-1][j]
            d = table.ndim - 3
            table = np.take(table, a.same, axis=d).mean(axis=d) if table.shape[d] > 1 else np.take(table, 0, axis=d)
        return table

    def logit_covariance(self) -> np.ndarray:
        """Covariance of two rows' logits at one key less that at different keys: (lead classes..., i, i')."""
        qq, kk = self.over_width(self.q), self.over_width(self.k)
        n = self.keys
        same = np.trace(kk, axis1=-2, axis2=-1) / n
        every = kk.sum(axis=(-2, -1))
        far = (every - n * same) / max(n * (n - 1), 1)
        by_content = self.scale**2 * self.width * qq * (same - far)[..., None, None]
        return by_content + self.bias * np.eye(self.rows) if self.bias else by_content

    def shares(self) -> np.ndarray:
        """How much of E[p_ij p_i'j'] lies on equal keys beyond what equal probabilities have: (lead..., i, i')."""
        common = np.minimum((self.seen @ self.seen.T), np.minimum.outer(self.counts, self.counts))
        s = common / np.outer(self.counts, self.counts)
        cov = np.clip(self.logit_covariance(), 0.0, None)
        n = np.broadcast_to(np.maximum(np.minimum.outer(self.counts, self.counts), 1.0), cov.shape)
        rho = concentrations(n, cov)
        e = rho * s
        return np.clip((e - s) / np.maximum(1.0 - s, 1e-12), 0.0, 1.0) * (s < 1 - 1e-9)


def _visible(mask: Field) -> np.ndarray:
    assert mask.array is not None
    values = np.broadcast_to(mask.array, [a.size for a in mask.axes]).reshape(mask.shape)
    values = values.reshape(-1, *values.shape[-2:]).mean(axis=0) if values.ndim > 2 else values
    if values.min() < -1e3:
        return (values > -1e3).astype(float)
    if set(np.unique(values)) <= {0.0, 1.0} and values.max() > 0:
        return values
    return np.ones_like(values)


def shared_heads(x: Field, heads: int) -> Field:
    """Each head for several others: copies, inside of the head dimension."""
    d = len(x.dims) - 3
    times = heads // x.shape[d]
    return repeated(x, d, times) if times > 1 else x


def _common_lead(fields: Sequence[Field], lead: int) -> list[Field]:
    return aligned(fields, [[*range(lead), f"position {k}", f"width {k}"] for k in range(len(fields))])


def _one_position_factor(f: Field) -> Field:
    d = len(f.dims) - 2
    start = sum(len(x) for x in f.dims[:d])
    f = merged(f, start, len(f.dims[d])) if f.dims[d] else with_factor(f, d, Axis(1))
    return f if f.dims[-1] else with_factor(f, d + 1, Axis(1))


def _attention_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    if any(not f.known for f in (*inputs[:3], g)):
        return [unknown(i.shape, "attention of what is unknown") if w else None for i, w in zip(inputs, wanted, strict=True)]
    gqa = bool(node.params.get("enable_gqa"))
    a = _Attention(node, inputs)
    g = _one_position_factor(_common_lead([g, a.q, a.k], a.lead)[0])
    u, s = a.u, a.shares()
    n = a.keys
    gg = a.tables(g)  # (lead, width, i, i')
    w = np.expand_dims(s, -3)
    norm = a.norm
    # values
    spread = u.T @ ((1 - w) * gg) @ u
    peaks = a.at_keys(w * gg / norm)
    gv = spread + peaks[..., None] * np.eye(n)
    # logits: dS_ij = p_ij g_i (v_j - sum of p_il v_l), the probabilities as equal as ``s`` leaves them
    vv, kk, qq = a.over_width(a.v), a.over_width(a.k), a.over_width(a.q)
    gd = a.scale**2 * a.v.shape[-1] * a.over_width(g)  # (lead, i, i')
    ut = np.swapaxes(u, -1, -2)
    vu, ku = vv @ ut, kk @ ut
    mixed = u @ vu
    once = u @ (vu * ku)
    even = u @ (vv * kk) @ ut - once - np.swapaxes(once, -1, -2) + mixed * (u @ ku)
    dv, dk = _differences(vv), _differences(kk)
    both = (1 - s) * norm + s  # sum over keys of E[p_ij p_i'j]
    peaked = both * np.clip(1.0 - both, 0.0, 1.0) * dv * dk
    gq = gd * np.where(s > 0, (1 - s) * even + s * peaked, even)
    h = gd * qq
    hu = ut @ h
    part = (hu * vu) @ u
    even = vv * (hu @ u) - part - np.swapaxes(part, -1, -2) + ut @ (h * mixed) @ u
    key = a.at_keys(h * dv * np.clip(1.0 - both, 0.0, 1.0) * s / norm)
    share = float(np.mean(np.diagonal(s, axis1=-2, axis2=-1)))
    gk = (1 - share) * even + key[..., None] * (np.eye(n) - (1 - np.eye(n)) / max(n - 1, 1))
    base = gd / a.scale**2 * dv * np.clip(1.0 - both, 0.0, 1.0)
    found: list[Field | None] = [None] * len(inputs)
    if wanted[0]:
        found[0] = _cotangent(a.q, gq, g)
    if wanted[1]:
        found[1] = _cotangent(a.k, gk, g)
    if wanted[2]:
        found[2] = _back_to(a, a.v, gv, g)
    if len(inputs) > 3 and wanted[3]:
        share = np.diagonal(s, axis1=-2, axis2=-1)[..., None]
        mass = np.diagonal(norm)[:, None]
        square = np.diagonal(base, axis1=-2, axis2=-1)[..., None] * ((1 - share + share / mass) * u * u)
        found[3] = _of_scores(square, a, inputs[3], g)
    if gqa:
        for j in (1, 2):
            if found[j] is not None:
                found[j] = gathered_heads(found[j], inputs[j].shape)  # type: ignore[arg-type]
    return found


def _differences(table: np.ndarray) -> np.ndarray:
    """The mean of equal positions less that of different ones, (lead, 1, 1)."""
    n = table.shape[-1]
    same = np.trace(table, axis1=-2, axis2=-1) / n
    far = (table.sum(axis=(-2, -1)) - n * same) / max(n * (n - 1), 1)
    return np.clip(same - far, 0.0, None)[..., None, None]


def _of_scores(square: np.ndarray, a: _Attention, mask: Field, g: Field) -> Field:
    """The cotangent of what is added to the scores, (lead classes..., i, j), summed over what shares it."""
    for k in range(square.ndim - 2):
        axis = a.q.axes[k]
        square = pair.resolved_one(square, k, axis).mean(axis=k, keepdims=True)
    square = square.reshape(square.shape[-2:])
    repeats = float(np.prod(g.shape[:-2])) / max(float(np.prod(mask.shape[:-2])), 1.0)
    shape = mask.shape
    second = (square * repeats).reshape((1,) * (len(shape) - 2) + square.shape)
    second = second if shape[-2:] == square.shape else np.mean(second, axis=(-2, -1), keepdims=True)
    return replace(iid(shape, 0.0, second), scale=g.scale, kind=worst(g.kind, "approximate"), why="scores' cotangent")


def gathered_heads(g: Field, shape: Sequence[int]) -> Field:
    """The cotangents of copies of a head, summed."""
    d = len(shape) - 3
    times = g.shape[d] // shape[d]
    if times <= 1:
        return g
    g = refined(g, d, [shape[d], times])
    start = sum(len(x) for x in g.dims[:d])
    total = pair.total(g.pairs, start + 1, g.axes[start + 1])
    dims = list(g.dims)
    dims[d] = (g.axes[start],)
    table = np.squeeze(total, start + 1)
    axes = [a for dim in dims for a in dim]
    return replace(g, dims=tuple(dims), mean=np.zeros((1,) * len(axes)), second=np.maximum(pair.resolved(table, axes), 0.0), pairs=table)


def _cotangent(like: Field, table: np.ndarray, g: Field) -> Field:
    """A cotangent whose width elements are uncorrelated, from its table (lead..., i, i')."""
    axis = _position_axis(like)
    inner = pair.average(table, table.ndim - 2, axis)
    for a in like.dims[-1]:
        first = np.expand_dims(inner, -1)
        rest = np.zeros((*inner.shape, a.classes))
        rest[..., a.same] = first
        inner = rest
    return _made(like, inner, g)


def _back_to(a: _Attention, like: Field, table: np.ndarray, g: Field) -> Field:
    """A cotangent of the values: (lead..., width classes, j, j')."""
    axis = _position_axis(like)
    width = table.ndim - 3
    inner = pair.average(table, width, axis)  # position classes at the width's place, width behind
    return _made(like, inner, g)


def _position_axis(like: Field) -> Axis:
    return like.axes[len(like.axes) - 1 - len(like.dims[-1])]


def _made(like: Field, table: np.ndarray, g: Field) -> Field:
    axes = like.axes
    return within_budget(
        Field(
            like.dims,
            np.zeros((1,) * len(axes)),
            np.maximum(pair.resolved(table, axes), 0.0),
            table,
            kurtosis=4.0,
            scale=g.scale,
            sources=like.sources,
            kind=worst(g.kind, "approximate"),
            why="softmax attention by its integral",
        )
    )


@rule("attention", backward=_attention_back)
def _attention(node: Node, inputs: Sequence[Field]) -> Field:
    if any(not f.known for f in inputs[:3]):
        return unknown(sizes(node.shape), "attention of what is unknown")
    a = _Attention(node, inputs)
    s = np.expand_dims(a.shares(), -3)
    vv = a.tables(a.v)  # (lead..., width classes, j, j')
    u = a.u
    spread = u @ vv @ u.T
    diagonal = np.diagonal(vv, axis1=-2, axis2=-1)
    peaks = (u * diagonal[..., None, :]) @ u.T / a.norm
    table = (1 - s) * spread + s * peaks
    like = replace(a.v, dims=(*a.v.dims[:-2], a.q.dims[-2], a.v.dims[-1]))
    axis = _position_axis(like)
    inner = pair.average(table, table.ndim - 3, axis)
    axes = like.axes
    mean = np.broadcast_to(np.mean(a.v.mean, axis=len(axes) - 1 - len(a.v.dims[-1]), keepdims=True), [1 if n == 1 else n for n in np.mean(a.v.mean, axis=len(axes) - 1 - len(a.v.dims[-1]), keepdims=True).shape])
    return within_budget(
        Field(
            like.dims,
            mean,
            np.maximum(pair.resolved(inner, axes), 0.0),
            inner,
            normal=a.v.normal,
            scale=a.v.scale,
            sources=a.q.sources | a.k.sources | a.v.sources,
            odd=a.v.odd,
            kind=worst(*(f.kind for f in inputs[:3]), "approximate"),
            why="softmax attention by its integral",
        )
    )

