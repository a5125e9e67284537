"""Values less their mean over their deviation, and the cotangents that come back through that.

The mean over many elements is taken as certain (law of large numbers); how far it varies enters spreads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, consistent, pair_average, unknown, with_sources, within_budget, worst
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.contraction import contracted
from chainrule.ops.fields.drift import reaching
from chainrule.ops.fields.elementwise import multiplied
from chainrule.ops.fields.functions import weighted
from chainrule.ops.fields.tied import echo_share

_LAID = 64  # positions whose pairs are laid out as a matrix


def _factors(value: Field, dims: Sequence[int]) -> list[int]:
    start = np.cumsum([0, *(len(d) for d in value.dims)])
    return [k for d in dims for k in range(start[d], start[d + 1])]


def _pair_means(table: np.ndarray, value: Field, dims: Sequence[int]) -> np.ndarray:
    """The table averaged over all pairs along these dimensions."""
    for k in _factors(value, dims):
        table = pair.total(table, k, value.axes[k]) / float(value.axes[k].size) ** 2
    return table


def _means(array: np.ndarray, value: Field, dims: Sequence[int]) -> np.ndarray:
    axes = tuple(_factors(value, dims))
    return np.mean(array, axis=axes, keepdims=True)


def _same(table: np.ndarray, value: Field, dims: Sequence[int]) -> np.ndarray:
    """The table over positions with themselves along these dimensions, averaged; resolved elsewhere is left alone."""
    for k in _factors(value, dims):
        table = pair.traced(table, k, value.axes[k]) / value.axes[k].size
    return table


def centred_along(x: Field, dims: Sequence[int]) -> tuple[Field, np.ndarray]:
    """(x less its mean along these dimensions, the mean of its square there)."""
    others = [d for d in range(len(x.dims)) if d not in dims]
    level = _resolved_over(_pair_means(x.pairs, x, dims), x, others)  # E[mean^2]
    spread = np.maximum(_means(x.second, x, dims) - level, 0.0)
    table = _doubly_centred(x, dims)
    second = np.maximum(x.second - 2.0 * _row_level(x, table, level, dims) + level, 0.0)
    mean = x.mean - _means(x.mean, x, dims)
    return replace(x, mean=mean, second=second, pairs=table, array=None, fresh=False, own=None), spread


def _row_level(x: Field, centred: np.ndarray, level: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """E[x_i mean(x)]: as the pairs say where they are kept one by one, else in proportion to the deviations."""
    rows = (pair.resolved(x.pairs, x.axes) - pair.resolved(centred, x.axes) + level) / 2.0
    coarse = [k for k in _factors(x, dims) if x.axes[k].lags is not None and x.second.shape[k] > 1]
    if not coarse:
        return rows
    size = np.sqrt(np.maximum(x.second, 0.0))
    return rows * size / np.maximum(np.mean(size, axis=tuple(coarse), keepdims=True), 1e-300)


def _doubly_centred(x: Field, dims: Sequence[int]) -> np.ndarray:
    """E[(x_i - mean x)(x_j - mean x)] for the mean over all of these dimensions together, by class."""
    table = x.pairs
    factors = _factors(x, dims)
    level = table
    for k in factors:
        level = pair.total(level, k, x.axes[k]) / float(x.axes[k].size) ** 2
    fine = [k for k in factors if x.axes[k].lags != 0 and 1 < x.axes[k].size <= _LAID and table.shape[k] > 1]
    if not fine:
        return table - level
    # rows: the mean of a row differs from row to row, at the border by its distances alone
    rows = table
    for k in factors:
        a = x.axes[k]
        if k in fine:
            full = pair.lay_out(rows, k, a)
            row = np.broadcast_to(full.mean(axis=-1, keepdims=True), full.shape)
            rows = pair.average(row, k, a)
        else:
            rows = pair.total(rows, k, a) / float(a.size) ** 2
    columns = rows
    for k in fine:
        a = x.axes[k]
        columns = pair.average(np.swapaxes(pair.lay_out(columns, k, a), -1, -2), k, a)
    return table - rows - columns + level


def _resolved_over(table: np.ndarray, value: Field, dims: Sequence[int]) -> np.ndarray:
    """Diagonal entries along the given dimensions (the others have size 1 already)."""
    for k in _factors(value, dims):
        table = pair.resolved_one(table, k, value.axes[k])
    return table


def divided(x: Field, spread: np.ndarray, eps: float) -> Field:
    """x over the root of a certain positive array."""
    inverse = 1.0 / np.sqrt(spread + eps)
    both = pair.outer(inverse, inverse, x.axes)
    return replace(
        x,
        mean=x.mean * inverse,
        second=x.second * inverse**2,
        pairs=x.pairs * both,
        echo=None if x.echo is None else replace(x.echo, factor=x.echo.factor * float(np.mean(inverse))),
        scale={},
        kind=worst(x.kind, "approximate"),
        mean_kind="",
        array=None,
    )


def standardised(x: Field, dims: Sequence[int], eps: float, centre: bool = True) -> tuple[Field, np.ndarray]:
    """(x with mean 0 and mean square 1 along these dimensions, the mean square that it was divided by)."""
    if not x.known:
        return unknown(x.shape, "its argument is unknown", x.sources), np.ones((1,) * len(x.axes))
    if centre:
        moved, spread = centred_along(x, dims)
    else:
        moved, spread = replace(x, array=None, fresh=False), _means(x.second, x, dims)
    found = divided(moved, spread, eps)
    shares = float(np.mean(spread / (spread + eps)))
    # one vector's mean square is spread / (spread + eps) for certain
    own = 0.0 if shares > 0.999 else None
    scale = {k: e * (1 - shares) for k, e in x.scale.items()}
    normal = x.normal
    return within_budget(
        replace(
            found,
            own=own,
            scale=scale,
            lean=x.lean * (1 - shares),
            degree=1.0,
            noise=x.noise * (1 - shares * _in_common(x, moved, dims)) ** 2,
            noise_lean=x.noise_lean * (1 - shares * _in_common(x, moved, dims)),
            local=x.local * (1 - shares),
            normal=normal,
            why="its deviation taken as certain",
        )
    ), spread


def _in_common(x: Field, moved: Field, dims: Sequence[int]) -> float:
    """The mean correlation of different normalised vectors: how much of what they add up to their sizes decide."""
    others = [d for d in range(len(x.dims)) if d not in dims]
    table = _same(_pair_means(moved.pairs, moved, others), moved, dims)
    level = moved.mean_square
    return float(np.clip(np.mean(table) / level, 0.0, 1.0)) if level > 0 else 0.0


def _spread_of_size(x: Field, g: Field, dims: Sequence[int]) -> float:
    """Relative variance of the vectors' mean squares, averaged with the shares of a cotangent that they divide."""
    if x.array is not None or not x.known:
        return 0.0
    size, part = (np.mean(f.second, axis=tuple(_factors(f, dims)), keepdims=True) for f in (x, g))
    if [a.size for a in g.axes] != [a.size for a in x.axes] or np.min(size) <= 0:
        return x.own_spread
    share = part / size
    if share.size == 1 or not np.mean(share) > 0:
        return x.own_spread
    share = share / np.mean(share) / size * x.mean_square
    both = pair.outer(share, share, x.axes)
    table = np.broadcast_to(x.excess, np.broadcast_shapes(x.excess.shape, both.shape)) * both
    return pair_average(table, x.axes) + x.uneven_products


def back_through_norm(
    g: Field,
    normal: Field,
    x: Field,
    spread: np.ndarray,
    dims: Sequence[int],
    eps: float,
    centre: bool,
    effective: float,
    along: float | None = None,
    across_units: bool = False,
) -> Field:
    """The cotangent through x -> normal: less its mean and its part along the value, over the deviation.

    ``along``: the share of g's square that lies along the value; one over the count, where nothing is said.
    ``across_units``: a vector is normalised, not a unit over samples.
    ``effective``: independent elements that the deviation is taken over; E[1 / s^2] exceeds 1 / E[s^2] accordingly.
    """
    removed = g
    if centre:
        moved, _ = centred_along(g, dims)
        removed = replace(moved, scale=g.scale, normal=g.normal)
    count = float(np.prod([x.shape[d] for d in dims]))
    share = np.mean(spread / (spread + eps))
    along_value = (1.0 / count if along is None else along) * float(share)
    lift = effective / (effective - 2.0) if effective > 4 else 1.0
    inverse = np.sqrt(lift / (spread + eps))
    given = Field(
        x.dims, inverse, inverse**2, pair.outer(inverse, inverse, x.axes), array=inverse, own=0.0, kurtosis=1.0
    )
    found = multiplied([removed, given], x.shape)
    echo = echo_share(x)
    # of the part along x that is taken away, what lies along the echo is in no other vector
    others = g.drift - (g.echo_drift / (1.0 - echo) if echo < 0.99 else 0.0)
    steady = g.drift * (2.0 * others - g.drift) * float(share)
    scale = dict(removed.scale)
    for k, e in x.scale.items():
        scale[k] = scale.get(k, 0.0) - e * float(share)
    factor = max(1.0 - along_value, 0.0)
    found = consistent(found) if centre and not across_units else found
    pairs = found.pairs * factor
    if steady and found.known and normal.mean_square > 0:
        (found, same), _ = broadcasted([found, multiplied([normal, given], x.shape)], len(x.dims), x.shape)
        same = reaching(same, found)
        pairs = found.pairs * min(factor + steady, 1.0) - same.pairs * (
            steady * found.mean_square / max(same.mean_square, 1e-300)
        )
    kept = 0.0
    if g.echo_drift and found.mean_square * factor * x.mean_square > 0:  # sum(g_x x) is zero, along the echo it is not
        kept = g.echo_drift * float(
            np.sqrt(g.mean_square * normal.mean_square / (found.mean_square * factor * x.mean_square))
        )
    spread_of_size = float(share) ** 2 * float(np.log1p(_spread_of_size(x, g, dims)))
    scale = with_sources(scale, x.own_sources or {object(): 1.0}, -float(np.sqrt(spread_of_size)))
    return within_budget(
        replace(
            found,
            second=found.second * factor,
            pairs=pairs,
            scale=scale,
            lean=removed.lean - float(share) * x.lean - spread_of_size / 2,
            noise=g.noise + spread_of_size,
            noise_lean=g.noise_lean - spread_of_size / 2,
            rough=g.rough,
            units=g.units,
            alignment=-float(share) / (count + 1.0) if across_units else 0.0,  # nothing is left along the value
            own_alignment=1.0,
            drift=0.0,
            echo_drift=kept,
            kind=worst(g.kind, x.kind, "approximate"),
            mean_kind="",
        )
    )


def share_along(g: Field, normal: Field, dims: Sequence[int], product: Field | None = None) -> float:
    """The share of a cotangent's square that lies along the normalised value: E[(g.x)^2] / (E[g.g] E[x.x]).

    One over the number of elements where their products are unrelated; more where they agree, as after a pool.
    ``product``: theirs, where it is known better than from both.
    """
    count = float(np.prod([normal.shape[d] for d in dims]))
    kept = [d for d in range(len(normal.dims)) if d not in dims]
    product = weighted(g, normal, normal.shape) if product is None else product
    part = contracted([product], [list(range(len(normal.dims)))], kept, "sum")
    level = g.mean_square * normal.mean_square * count**2
    return float(np.clip(part.mean_square / level, 1.0 / count, 1.0)) if level > 0 and part.known else 1.0 / count


def along_vector(g: Field, shape: Sequence[int], dims: Sequence[int]) -> float:
    """The share of a vector's cotangent along the vector itself, from its alignment."""
    count = float(np.prod([shape[d] for d in dims]))
    return min(g.pull(count) / count, 1.0)


def effective_count(x: Field, dims: Sequence[int]) -> float:
    """The number of independent elements that a mean square along these dimensions is taken over."""
    table = _doubly_centred(x, dims)
    own = _same(table, x, dims)
    square = table * table
    for k in _factors(x, dims):
        square = pair.total(square, k, x.axes[k]) / float(x.axes[k].size) ** 2
    others = [k for k in range(len(x.axes)) if k not in _factors(x, dims)]
    for k in others:
        own, square = (pair.resolved_one(t, k, x.axes[k]).mean(axis=k, keepdims=True) for t in (own, square))
    top, bottom = float(np.mean(own)) ** 2, float(np.mean(square))
    return top / bottom if bottom > 0 else np.inf
