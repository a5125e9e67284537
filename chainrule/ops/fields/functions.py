"""Fields through functions of one normal value, element by element, and the cotangents that come back through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, pair_average, unknown, worst
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.drift import reaching
from chainrule.ops.fields.elementwise import multiplied, scaled
from chainrule.ops.fields.integrals import Function, Series, derivative, nodes, of_largest

_MOST_LAWS = 256  # different (mean, variance) that an integral is taken for; more are grouped by size


@dataclass(frozen=True)
class Integrals:
    """What a function does to a normal value: by law (mean, second), and at the average law everything else.

    Attributes:
        first, second: E[f], E[f^2], like the value's own arrays. fourth: E[f^4]. series: of E[f f'] by correlation.
        squares: of E[f^2 f'^2]. growth: d ln E[f^2] / d ln(scale). affine: (slope, intercept) of a straight line.
    """

    first: np.ndarray
    second: np.ndarray
    fourth: float
    series: Series
    squares: Series
    growth: float


def average_law(u: Field) -> tuple[float, float]:
    """(mean, deviation) of all elements taken together."""
    mean = float(np.mean(u.mean))
    return mean, float(np.sqrt(max(np.mean(u.variance), 0.0)))


def laws_of(u: Field) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """(means, deviations, index of each element's law, shape) of the different laws of the elements."""
    mean, variance = np.broadcast_arrays(u.mean, u.variance)
    pairs = np.stack([mean.ravel(), variance.ravel()])
    if pairs.shape[1] == 1:
        return pairs[0], np.sqrt(pairs[1]), np.zeros(1, dtype=int), mean.shape
    found, back = np.unique(pairs, axis=1, return_inverse=True)
    if found.shape[1] > _MOST_LAWS:
        order = np.lexsort((pairs[1], pairs[0]))
        groups = np.array_split(order, _MOST_LAWS)
        found = np.stack([pairs[:, g].mean(axis=1) for g in groups], axis=1)
        back = np.empty(pairs.shape[1], dtype=int)
        for k, g in enumerate(groups):
            back[g] = k
    return found[0], np.sqrt(found[1]), back.ravel(), mean.shape


def integrated(f: Function, u: Field, breaks: Sequence[float]) -> Integrals:
    """The expectations of f over the laws of a field."""
    means, stds, back, shape = laws_of(u)
    points, _, weights = nodes(means, stds, breaks)
    with np.errstate(all="ignore"):
        values = np.broadcast_to(f(points), points.shape)
        first = np.sum(weights * values, axis=1)[back].reshape(shape)
        second = np.sum(weights * values * values, axis=1)[back].reshape(shape)
    m, s = average_law(u)
    points, z, weights = nodes(np.array([m]), np.array([s]), breaks)
    points, z, weights = points[0], z[0], weights[0]
    with np.errstate(all="ignore"):
        values = np.broadcast_to(f(points), points.shape)
        slopes = derivative(f, points, s)
        q = float(np.sum(weights * values**2))
        growth = float(np.sum(weights * values * slopes * points)) / q if q > 0 else 0.0
        growth = growth if np.isfinite(growth) else 0.0  # it has no value somewhere, which the caller sees
        return Integrals(
            first,
            second,
            float(np.sum(weights * values**4)),
            Series.of(values, z, weights, slopes * s),
            Series.of(values**2, z, weights),
            growth,
        )


def of_logarithm(f: Function, log: Field, u: Field) -> Field:
    """f(u) for a log-normal u; a change of its scale moves the logarithm."""

    def inner(x: np.ndarray) -> np.ndarray:
        return np.asarray(f(np.exp(x)), dtype=float)

    m, s = average_law(log)
    points, _, weights = (a[0] for a in nodes(np.array([m]), np.array([s]), ()))
    values, slopes = np.broadcast_to(inner(points), points.shape), derivative(inner, points, max(s, 1e-3))
    growth = float(np.sum(weights * values * slopes) / np.sum(weights * values**2))
    found = applied(inner, log, ())
    return replace(
        found,
        scale={k: e * growth for k, e in u.scale.items()},
        lean=u.lean * growth,
        kind=worst(u.kind, "approximate"),
        mean_kind="",
        law=None,
    )


def logarithm(u: Field) -> Field:
    """The normal logarithm of a positive value with this mean and these covariances."""
    ratio = u.variance / u.mean**2
    spread = np.log1p(ratio)
    mean = np.log(u.mean) - spread / 2
    level = pair.outer(u.mean, u.mean, u.axes)
    both = np.log1p(np.maximum(u.centred / level, -0.9))
    return replace(
        u, mean=mean, second=spread + mean**2, pairs=both + pair.outer(mean, mean, u.axes), normal=True, array=None
    )


def correlations(u: Field) -> np.ndarray:
    """Correlation coefficients by class of pair."""
    std = np.sqrt(u.variance)
    spread = pair.outer(std, std, u.axes)
    return np.clip(
        np.divide(
            u.centred, spread, out=np.zeros(np.broadcast_shapes(u.centred.shape, spread.shape)), where=spread > 1e-300
        ),
        -1.0,
        1.0,
    )


def applied(f: Function, u: Field, breaks: Sequence[float], exact: bool = True) -> Field:
    """f(u) for a field of normal values (others are taken as normal, which is then approximate)."""
    if not u.known:
        return unknown(u.shape, "its argument is unknown", u.sources)
    line = _straight(f, u, breaks)
    if line is not None:
        slope, intercept = line
        moved = scaled(u, slope)
        if intercept:
            axes = u.axes
            constant = intercept * intercept + intercept * (
                pair.outer(moved.mean, np.ones_like(moved.mean), axes)
                + pair.outer(np.ones_like(moved.mean), moved.mean, axes)
            )
            square = moved.second + 2 * intercept * moved.mean + intercept**2
            share = float(np.mean(moved.second)) / max(float(np.mean(square)), 1e-300)
            moved = replace(
                moved,
                mean=moved.mean + intercept,
                second=square,
                pairs=moved.pairs + constant,
                scale={k: e * min(share, 1.0) for k, e in moved.scale.items()},
                lean=moved.lean * min(share, 1.0),
                array=None if moved.array is None else moved.array + intercept,
                fresh=False,
                odd=frozenset(),
                own=None if moved.array is None else 0.0,
                kind=moved.kind_of_both,
                mean_kind=moved.kind_of_mean,
                mixed=2 if moved.mixed else 0,
            )
        return moved
    c = correlations(u)
    found = integrated(f, u, breaks)
    if not np.all(np.isfinite(found.second)) and np.all(u.mean > 0):  # positive, so not normal: log-normal
        return of_logarithm(f, logarithm(u), u)
    if not np.all(np.isfinite(found.second)):
        return unknown(u.shape, "the function has no value on part of a normal law", u.sources)
    variance = np.maximum(found.second - found.first**2, 0.0)
    std = np.sqrt(variance)
    axes = u.axes
    base = float(found.series(np.zeros(1))[0])
    whole = found.series.at_one - base
    rho = (found.series(c) - base) / whole if whole > 1e-12 * max(found.series.at_one, 1e-300) else np.zeros_like(c)
    pairs = pair.outer(found.first, found.first, axes) + rho * pair.outer(std, std, axes)
    q = found.series.at_one
    own = pair_average(found.squares(c), axes) / q**2 - 1 if q > 0 else 0.0
    kurtosis = found.fourth / q**2 if q > 0 else 1.0
    level = pair_average(found.series(c), axes)
    turned = 1.0 - base / level if level > 0 else 1.0  # the part of the products that depends on directions
    response = max(abs(found.growth), turned) ** 2
    law = "a normal law" if u.normal else "a law taken as normal"
    exact = exact and not _at_a_break(u, breaks)
    exact = exact and len(laws_of(u)[0]) < _MOST_LAWS  # of more, similar ones are taken together
    kind = mean_kind = u.kind_of_both if u.normal and not u.mixed and exact else worst(u.kind, "approximate")
    if u.normal and exact and u.mixed == 1 and not np.any(u.mean):
        kind = u.kind if _homogeneous(f, u) else kind  # the square of a size that is not certain
        mean_kind = u.kind_of_mean if _odd(f, u) else mean_kind
    return Field(
        u.dims,
        found.first,
        found.second,
        pairs,
        kurtosis=kurtosis,
        scale={k: e * found.growth for k, e in u.scale.items()},
        lean=u.lean * found.growth,
        degree=u.degree * found.growth,
        noise_lean=u.noise_lean * max(found.growth, turned),
        local=u.local * found.growth**2,
        noise=u.noise * response,
        rough=u.rough * response,
        units=u.units,
        own=max(own, 0.0),
        own_sources={object(): 1.0},
        strata=u.strata,
        law=(pairs, f, u),
        sources=u.sources,
        odd=u.odd if u.odd and _odd(f, u) else frozenset(),
        kind=kind,
        mean_kind=mean_kind,
        why=f"quadrature under {law}",
    )


def _odd(f: Function, u: Field) -> bool:
    """Whether f changes sign with its argument."""
    x = average_law(u)[1] * np.array([0.1, 0.4, 1.1, 1.9])
    with np.errstate(all="ignore"):
        return bool(np.allclose(f(x), -f(-x), rtol=1e-9, atol=0))


def _at_a_break(u: Field, breaks: Sequence[float]) -> bool:
    """Whether some elements are a number for certain at which the function, or its slope, jumps."""
    certain = np.broadcast_to(u.mean, np.broadcast_shapes(u.mean.shape, u.variance.shape))[u.variance == 0]
    return any(np.any(certain == b) for b in breaks)


def _homogeneous(f: Function, u: Field) -> bool:
    """Whether f(a x) = a f(x) for a > 0."""
    x = average_law(u)[1] * np.array([-1.7, -0.6, -0.1, 0.1, 0.6, 1.7])
    with np.errstate(all="ignore"):
        return bool(np.allclose(f(3.0 * x), 3.0 * np.asarray(f(x), dtype=float), rtol=1e-9, atol=0))


_FAR = 8.0  # deviations: what lies farther has a share of 1e-15


def _straight(f: Function, u: Field, breaks: Sequence[float]) -> tuple[float, float] | None:
    """(slope, intercept) where f is a straight line over the field's law, between all breaks."""
    m, s = average_law(u)
    s = s or 1.0
    edges = np.unique([m - _FAR * s, *(b for b in breaks if abs(b - m) < _FAR * s), m + _FAR * s])
    between = (edges[1:] + edges[:-1]) / 2 if edges.size > 2 else []
    x = np.unique([*(m + s * np.array([-2.9, -1.3, -0.2, 0.0, 0.7, 2.1])), *between])
    with np.errstate(all="ignore"):
        y = np.broadcast_to(np.asarray(f(x), dtype=float), x.shape)
    if not np.all(np.isfinite(y)):
        return None
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    intercept = y[0] - slope * x[0]
    size = np.max(np.abs(y)) + np.abs(slope) * s
    return (float(slope), float(intercept)) if np.all(np.abs(y - slope * x - intercept) <= 1e-11 * size) else None


def passed(g: Field, f: Function, u: Field, breaks: Sequence[float], shape: Sequence[int]) -> Field:
    """``g f'(u)``, the cotangent g independent of u."""
    line = _straight(f, u, breaks)
    if line is not None:
        moved = scaled(g, line[0])
        if line[1] and g.alignment:
            share = _share(line, u)
            moved = replace(moved, alignment=g.alignment * share, drift=g.drift * float(np.sqrt(share)))
        return moved
    s = average_law(u)[1]

    def slope(x: np.ndarray) -> np.ndarray:
        return derivative(f, x, s)

    inner = applied(slope, u, breaks)
    if g.focus is not None and g.focus[0] is g.pairs:  # only where its argument is the largest of a window
        _, count, rho = g.focus
        m, std = average_law(u)
        _, square, _ = of_largest(slope, m, std, rho, count)
        inner = replace(
            inner, second=inner.second * 0 + square, pairs=inner.pairs * (square / max(inner.mean_square, 1e-300))
        )
    found = multiplied([g, inner], shape)
    alignment, lift, own, drift = _alignment(g, f, slope, u, breaks)
    if lift != 1.0:
        found = replace(found, second=found.second * lift, pairs=found.pairs * lift)
    if g.drift and g.array is None:
        found = _bent(found, g, f, slope, inner, u, breaks)
    through = (found.pairs, g, _times(slope, u, breaks, g))
    return replace(
        found, normal=False, through=through, alignment=max(alignment, drift**2), own_alignment=own, drift=drift
    )


def _bent(
    found: Field, g: Field, f: Function, slope: Function, inner: Field, u: Field, breaks: Sequence[float]
) -> Field:
    """The cotangent g f'(u) where g = a f(u) + h: the first part is the function a f f' of u."""

    def both(x: np.ndarray) -> np.ndarray:
        return np.asarray(f(x), dtype=float) * slope(x)

    value = applied(f, u, breaks)
    if (
        not value.mean_square > 0
        or not found.mean_square > 0
        or [a.size for a in found.axes] != [a.size for a in value.axes]
    ):
        return found
    square = g.drift**2 * g.mean_square / value.mean_square
    one, two = (applied(both, u, breaks), multiplied([value, inner], found.shape))
    (found, one, two), _ = broadcasted([found, one, two], len(found.dims), found.shape)
    one, two = reaching(one, found), reaching(two, found)
    more = square * (one.mean_square - two.mean_square)
    rest = 1.0 - more / found.mean_square
    return replace(found, pairs=found.pairs * rest + square * (one.pairs - two.pairs))


def _share(line: tuple[float, float], u: Field) -> float:
    """The part of the mean square of a line's value that is not its intercept."""
    moving = line[0] ** 2 * u.mean_square
    return moving / max(moving + line[1] ** 2, 1e-300)


def _alignment(
    g: Field, f: Function, slope: Function, u: Field, breaks: Sequence[float]
) -> tuple[float, float, float, float]:
    """(alignment of g f'(u) with u from that of g with f(u), what it adds to the mean square, that of a unit alone,
    the drift).

    The part of g along f(u) meets the slope where f(u) is large. A given g is a certain function of u, and then the
    two vectors have their size in common.
    """
    m, s = average_law(u)
    if s == 0:
        return 0.0, 1.0, 1.0, 0.0
    points, _, weights = (a[0] for a in nodes(np.array([m]), np.array([s]), breaks))
    with np.errstate(all="ignore"):
        value, rise = np.broadcast_to(f(points), points.shape), slope(points)
    square, steep = float(np.sum(weights * value**2)), float(np.sum(weights * rise**2))
    level = m * m + s * s
    if steep <= 0 or square <= 0:
        return 0.0, 1.0, 1.0, 0.0
    # another factor of the product that g comes from moves with u as well
    both = float(np.sum(weights * rise * points * value)) * (g.own_alignment - 1.0) if g.array is None else 0.0
    own = (float(np.sum(weights * (rise * points) ** 2)) + both) / (steep * level)
    if g.array is not None:
        along = float(np.sum(weights * rise * points)) / float(np.sqrt(steep * level))
        steady = g.mean_value / float(np.sqrt(g.mean_square)) if g.mean_square > 0 else 0.0
        return u.unevenness * along**2, 1.0, 1.0, along * steady
    if g.alignment == 0.0 and g.drift == 0.0:
        return 0.0, 1.0, own, 0.0
    growth = float(np.sum(weights * rise * points * value)) / square
    both = float(np.sum(weights * (value * rise) ** 2)) / (square * steep)
    lift = 1.0 + g.alignment / (1.0 + u.local) * (both - 1.0)
    turn = growth * float(np.sqrt(square / (steep * level * max(lift, 1e-12))))
    return g.alignment * turn**2, lift, own, float(np.clip(g.drift * turn, -1.0, 1.0))


def _times(slope: Function, u: Field, breaks: Sequence[float], g: Field) -> Any:
    """(level, size) -> the field of slope(u) times the standardised u, scaled to this size about this level."""
    m, s = average_law(u)

    def made(level: float, size: float) -> Field:
        def factor(x: np.ndarray) -> np.ndarray:
            return slope(x) * (level + size * (x - m) / (s or 1.0))

        part = applied(factor, u, breaks)
        if g.focus is not None and g.focus[0] is g.pairs:
            _, count, rho = g.focus
            _, square, _ = of_largest(factor, m, s, rho, count)
            lift = square / max(part.mean_square, 1e-300)
            part = replace(part, second=part.second * 0 + square, pairs=part.pairs * lift)
        return part

    return made


def weighted(g: Field, normal: Field, shape: Sequence[int]) -> Field:
    """``g x`` for the cotangent g of an affine function of a normal x: where g has come through a function of that,
    the two are one function of x."""
    if not normal.normal or g.through is None or g.through[0] is not g.pairs:
        found = multiplied([g, normal], shape)
    else:
        _, outer, made = g.through
        found = multiplied([outer, made(*average_law(normal))], shape)
    if not g.drift or not found.known:
        return found
    mean = g.drift * float(np.sqrt(g.mean_square * normal.mean_square))
    return replace(found, mean=found.mean + mean, pairs=found.pairs + mean**2)
