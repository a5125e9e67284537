"""Fields of losses, and of the cotangents that they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, fixed, iid, pair_average, unknown, with_own, worst
from chainrule.ir.logarithms import log_shortfall
from chainrule.ops.fields.align import aligned
from chainrule.ops.fields.elementwise import added, multiplied, scaled
from chainrule.ops.fields.lookup import alike
from chainrule.ops.fields.registry import rule
from chainrule.ops.fields.softmax import expected_logsumexp, softmaxed
from chainrule.ops.fields.standardised import centred_along
from chainrule.ops.fields.tied import peak, spike_share, with_peak


def _class_axis(x: Field) -> int:
    return 1 if len(x.dims) > 1 else 0


def hot(target: Field, scores: Field, axis: int) -> Field:
    """Class numbers as rows of the identity, beside the scores."""
    n = scores.shape[axis]
    same = alike(target, target.dims, n)
    dims = (*target.dims[:axis], scores.dims[axis], *target.dims[axis:])
    start = sum(len(d) for d in target.dims[:axis])
    factors = scores.dims[axis]
    shape = (*same.shape[:start], *(1,) * len(factors), *same.shape[start:])
    share = same.reshape(shape)
    grid = np.zeros([a.classes for a in factors], dtype=bool)
    grid[np.ix_(*(a.same for a in factors))] = True
    grid = grid.reshape((*(1,) * start, *grid.shape, *(1,) * (same.ndim - start)))
    table = np.where(grid, share / n, (1 - share) / max(n * (n - 1.0), 1.0))
    one = np.full((1,) * table.ndim, 1.0 / n)
    return Field(
        dims, one, one, table, kurtosis=float(n), own=0.0, kind="exact" if target.array is not None else "approximate"
    )


def _beside(x: Field, axis: int) -> list[Any]:
    return [() if d == axis else factors for d, factors in enumerate(x.dims)]


_MOST = 400_000  # elements of class numbers written out as rows


def _rows(target: Field, x: Field, axis: int, ignored: int) -> Field:
    """The identity's rows as given numbers where that is small, else by how often classes are alike."""
    n = x.shape[axis]
    if target.array is None or np.prod(x.shape) > _MOST:
        return hot(target, x, axis)
    values = np.broadcast_to(target.array, [a.size for a in target.axes]).reshape(target.shape).astype(int)
    rows = np.moveaxis((values[..., None] == np.arange(n)).astype(float), -1, axis)
    grades = [x.dims[d][0].lags if len(x.dims[d]) == 1 else 0 for d in range(len(x.dims))]
    if ignored >= 0:
        rows = rows * np.expand_dims(values != ignored, axis)
    return fixed(rows, grades)


def _counted(node: Node, target: Field) -> tuple[float, float]:
    """(samples that take part, all of them)."""
    count = float(np.prod(target.shape)) if target.shape else 1.0
    if target.array is None:
        return count, count
    values = np.broadcast_to(target.array, [a.size for a in target.axes])
    return float(np.sum(values != node.params.get("ignore_index", -100))), count


def _cross_entropy_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    """(p - onehot) over the samples that take part."""
    x, target, *_ = inputs
    x = _with_fitting_spike(x)
    if not x.known:
        return [unknown(x.shape, "the scores are unknown"), *[None] * (len(inputs) - 1)]
    axis = _class_axis(x)
    p, stands_out = softmaxed(x, axis), 0.0
    if node.inputs[1].type.is_float:
        found = added([p, target], (1.0, -1.0), x.shape)
        counted, count = 1.0, 1.0
        each = float(np.prod(x.shape)) / x.shape[axis]
    else:
        counted, count = _counted(node, target)
        given = _rows(target, x, axis, int(node.params.get("ignore_index", -100)))
        right = _names_itself(x, target)
        if x.spike is not None:
            found_peak = peak(x.spike, x.shape[axis], _own_variance(x, axis))
            p = with_peak(p, found_peak, x.spike, axis)
            stands_out = found_peak.first * x.spike.mean * (1.0 - right)
        found = replace(added([p, given], (1.0, -1.0), x.shape), kurtosis=3.0, sources=x.sources, why="p - onehot")
        if x.spike is not None:
            found = replace(found, own=0.0)  # one score of each vector holds most of it, and it has a mean
        if x.spike is not None and right:
            less = 2.0 * found_peak.first * right / x.shape[axis]
            share = max(1.0 - less / found.mean_square, 0.0)
            found = replace(found, second=found.second * share, pairs=found.pairs * share)
        if counted < count and target.array is not None:
            ignored = int(node.params.get("ignore_index", -100))
            kept = np.broadcast_to(target.array, [a.size for a in target.axes]).reshape(target.shape) != ignored
            beside = _beside(x, axis)
            factors = [a for factors in beside for a in factors]
            mask = fixed(kept.reshape([a.size for a in factors]), [a.lags for a in factors])
            mask = replace(mask, dims=tuple(tuple(factors) for factors in beside))
            found = replace(multiplied([found, mask], x.shape), own=found.own)
        each = counted
    aligned_part, drift = _alignment(x, p, found, axis, stands_out)
    found = replace(found, alignment=aligned_part, drift=drift, **_response(x, p, found, axis))
    if x.spike is not None and found.mean_square > 0:
        size = x.shape[axis] * float(np.sqrt(found.mean_square * x.mean_square))
        found = replace(found, echo_drift=stands_out / size - spike_share(x) * drift)
    factor = 1.0 / each if node.params["reduction"] == "mean" else 1.0
    found = scaled(found, factor)
    if node.params["reduction"] == "none":
        kept = replace(g, dims=(*g.dims[:axis], (), *g.dims[axis:]))
        return [multiplied([found, kept], x.shape), *[None] * (len(inputs) - 1)]
    return [
        multiplied([found, replace(g, dims=((),) * len(x.dims))], x.shape) if g.mean_square != 1.0 else found,
        *[None] * (len(inputs) - 1),
    ]


def _response(x: Field, p: Field, g: Field, axis: int) -> dict[str, Any]:
    """How the size of p - onehot follows that of the scores: of single elements, and of the sum over samples."""
    if x.array is not None:
        return {}
    step = 0.01
    moved = softmaxed(scaled(x, 1.0 + step), axis)
    growth = np.log1p((moved.mean_square - p.mean_square) / g.mean_square) / (2 * step) if g.mean_square > 0 else 0.0
    others = [d for d in range(len(x.dims)) if d != axis]
    together = [_pairs_over(f, others) for f in (g, p, moved)]
    turned = np.log1p((together[2] - together[1]) / together[0]) / (2 * step) if together[0] > 0 else 0.0
    sources = x.scale if x.own_spread == 0 else with_own(x.scale, x, object())
    # the sum over samples is s + d, s the classes' frequencies and d random in n - 1 directions: var |s + d|^2
    n = x.shape[axis]
    random = float(np.clip((together[1] - 1.0 / n**2) / together[0], 0.0, 1.0)) if together[0] > 0 else 0.0
    turns = (4.0 * random * (1.0 - random) + 2.0 * random**2) / max(n - 1, 1)
    response = max(float(turned), float(growth), 0.0)
    return {
        "scale": {k: e * growth for k, e in sources.items()},
        "lean": (x.lean + log_shortfall(x.own_spread)) * growth,
        "noise": x.noise * response**2 + turns,
        "noise_lean": x.noise_lean * response + turns / 2.0,
        "units": float(x.shape[axis]),
        "steady": True,
    }


def _pairs_over(f: Field, dims: Sequence[int]) -> float:
    """The mean of the table over all pairs along these dimensions, positions with themselves elsewhere."""
    start = np.cumsum([0, *(len(d) for d in f.dims)])
    table = f.pairs
    for d in range(len(f.dims)):
        for k in range(start[d], start[d + 1]):
            a = f.axes[k]
            table = pair.total(table, k, a) / a.size**2 if d in dims else pair.traced(table, k, a) / a.size
    return float(table.ravel()[0])


def _with_fitting_spike(x: Field) -> Field:
    """The scores, without a spike that was of other vectors."""
    fits = x.spike is None or x.spike.rows.size * x.shape[-1] == np.prod(x.shape)
    return x if fits else replace(x, spike=None)


def _own_variance(x: Field, axis: int) -> float:
    """The variance of scores that do not stand out, within a vector."""
    _, spread = centred_along(x, [axis])
    n = x.shape[axis]
    more = x.spike.mean**2 / n if x.spike is not None else 0.0
    return max(float(np.mean(spread)) * n / max(n - 1, 1) - more, 0.0)


def _names_itself(x: Field, target: Field) -> float:
    """How often the right class is the one whose score stands out."""
    if x.spike is None or target.array is None or target.array.size != x.spike.rows.size:
        return 0.0
    numbers = np.broadcast_to(target.array, [a.size for a in target.axes]).ravel()
    return float(np.mean(numbers == x.spike.rows.ravel()))


def _alignment(x: Field, p: Field, g: Field, axis: int, stands_out: float = 0.0) -> tuple[float, float]:
    """The alignment of p - onehot with the scores: E[(g.z)^2] = v + (sum E[p z])^2, E[z p] = v E[p (1 - p)] (Stein).

    The second part is the same for all samples: its drift.
    """
    n = x.shape[axis]
    _, spread = centred_along(x, [axis])
    v = float(np.mean(spread)) * n / max(n - 1, 1)
    if v <= 0 or n < 2:
        return 0.0, 0.0
    pull = v * (1.0 - p.mean_square * n) + stands_out
    whole = v + pull**2
    q = n * g.mean_square * max(x.mean_square, 1e-300)
    drift = pull / (n * np.sqrt(g.mean_square * max(x.mean_square, 1e-300)))
    return float(np.clip((whole / q - 1.0) / (n + 1), -1.0 / n, 1.0)), float(np.clip(drift, -1.0, 1.0))


def _noise(x: Field, target: Field, axis: int, node: Node, variance: float) -> float:
    """The variance of the mean of the scores of the right classes."""
    if node.params["reduction"] == "none":
        return variance
    if node.inputs[1].type.is_float:
        return variance / max(float(np.prod(x.shape)) / x.shape[axis], 1.0)
    start = sum(len(d) for d in x.dims[:axis])
    count = len(x.dims[axis])
    table = x.centred
    for j in range(count):
        table = pair.traced(table, start + j, x.axes[start + j]) / x.axes[start + j].size
    table = np.squeeze(table, tuple(range(start, start + count)))
    rest = replace(
        x,
        dims=(*x.dims[:axis], *x.dims[axis + 1 :]),
        mean=np.zeros((1,) * table.ndim),
        second=np.zeros((1,) * table.ndim),
        pairs=table,
        array=None,
    )
    labels = replace(
        target,
        mean=np.zeros((1,) * len(target.axes)),
        second=np.zeros((1,) * len(target.axes)),
        pairs=alike(target, target.dims, x.shape[axis]),
        array=None,
    )
    a, b = aligned([rest, labels], [range(len(rest.dims))] * 2)
    return max(pair_average(a.pairs * b.pairs, a.axes), 0.0)


@rule("cross_entropy", backward=_cross_entropy_back)
def _cross_entropy(node: Node, inputs: Sequence[Field]) -> Field:
    """log n + half the variance of the scores within a sample, nearly certain over many samples."""
    x, target, *_ = inputs
    x = _with_fitting_spike(x)
    if not x.known:
        return unknown((), "the scores are unknown", x.sources)
    axis = _class_axis(x)
    _, spread = centred_along(x, [axis])
    variance = float(np.mean(spread))
    n = x.shape[axis]
    level = expected_logsumexp(n, variance)
    if x.spike is not None:
        level = expected_logsumexp(n, _own_variance(x, axis))
        level = float(np.logaddexp(level, x.spike.mean)) - _names_itself(x, target) * x.spike.mean
    counted, _ = _counted(node, target) if not node.inputs[1].type.is_float else (float(np.prod(x.shape)) / n, 0.0)
    if node.params["reduction"] == "sum":
        level = level * counted
    noise = _noise(x, target, axis, node, variance)
    if node.params["reduction"] == "sum":
        noise = noise * counted**2
    shape = target.shape if node.params["reduction"] == "none" else ()
    return iid(
        shape,
        float(level),
        float(level**2 + noise),
        sources=x.sources,
        kind=worst(x.kind, "approximate"),
        own=4.0 * noise / max(level**2, 1e-300),
        scale={},
        why="the logarithm of the sum of normal exponentials",
    )
