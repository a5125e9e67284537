"""Fields through sums and products, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.field import Echo, Field, consistent, fixed, pair_average, unknown, with_own, within_budget, worst
from chainrule.ir.logarithms import log_shortfall
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.align import broadcasted


# ---- sums and products of independent values ---------------------------------------------------------------
def shared_scale(parts: Sequence[tuple[Field, float]]) -> dict[Any, float]:
    """Exponents of a sum, from each term's and its share of the mean square."""
    found: dict[Any, float] = {}
    for value, share in parts:
        for key, e in value.scale.items():
            found[key] = found.get(key, 0.0) + share * e
    return found


def added(
    fields: Sequence[Field], signs: Sequence[float], shape: Sequence[int], cross: np.ndarray | None = None
) -> Field:
    """A signed sum of uncorrelated fields (the product of their means apart); ``cross``: pairs that they share."""
    if any(not f.known for f in fields):
        return unknown(shape, "a term is unknown", frozenset().union(*(f.sources for f in fields)))
    fields, visible = unmasked(fields)
    parts, dims = broadcasted(fields, len(shape), shape)
    axes = [a for dim in dims for a in dim]
    mean = sum(s * f.mean for f, s in zip(parts, signs, strict=True))
    pairs: Any = sum(f.pairs for f in parts)
    second: Any = sum(f.second for f in parts)
    for k, (a, s) in enumerate(zip(parts, signs, strict=True)):
        for b, t in zip(parts[k + 1 :], signs[k + 1 :], strict=True):
            if np.any(a.mean) and np.any(b.mean):
                pairs = pairs + s * t * (pair.outer(a.mean, b.mean, axes) + pair.outer(b.mean, a.mean, axes))
                second = second + 2 * s * t * a.mean * b.mean
    if cross is not None:
        pairs = pairs + cross
        second = second + pair.resolved(cross, axes)
    random = [f for f in parts if f.array is None]
    if len(random) == 1 and len(parts) == 2 and all(not np.any(f.array) for f in parts if f.array is not None):
        (only,) = random
        sign = signs[next(k for k, f in enumerate(parts) if f is only)]
        return replace(only if sign == 1.0 else scaled(only, sign), visible=visible)
    normal = all(f.normal for f in random)
    variances = [float(np.mean(f.variance)) for f in parts]
    whole = sum(variances)
    excess = (
        sum((f.kurtosis - 3.0) * (v / whole) ** 2 for f, v in zip(parts, variances, strict=True) if f.array is None)
        if whole > 0
        else 0.0
    )
    q = float(np.mean(second))
    parts, together = _with_own_in_common(parts)
    own = _own_of_sum(parts, axes, q) if q > 0 and (together or any(f.own for f in random)) else None
    shares = [(f, f.mean_square / q if q > 0 else 0.0) for f in parts]
    return within_budget(
        Field(
            dims,
            np.asarray(mean, dtype=float),
            np.maximum(second, 0.0),
            pairs,
            normal=normal and bool(random),
            kurtosis=3.0 + excess,
            scale=shared_scale(shares),
            local=sum(f.local * min(share, 1.0) ** 2 for f, share in shares),
            noise=_noise_of_sum(shares),
            noise_lean=sum(f.noise_lean * min(share, 1.0) for f, share in shares),
            echo=_one_echo(parts, signs),
            lean=sum(f.lean * share for f, share in shares),
            degree=sum(f.degree * share for f, share in shares if f.array is None and not f.fresh),
            rough=sum(f.rough * min(share, 1.0) ** 2 for f, share in shares),
            units=max(f.units for f in parts),
            visible=visible,
            own=own,
            own_sources=_sources_of_sum(shares, axes),
            strata=max(f.strata for f in parts),
            sources=frozenset().union(*(f.sources for f in parts)),
            odd=frozenset.intersection(*(f.odd for f in parts if f.mean_square > 0)) if q > 0 else frozenset(),
            kind=_kind_of_sum(parts, cross is not None),
            mean_kind=worst(*(f.kind_of_mean for f in parts)),
            mixed=_mixed_sum(parts),
            why="uncorrelated terms",
        )
    )


def _with_own_in_common(parts: Sequence[Field]) -> tuple[list[Field], bool]:
    """The terms, those of whose own spread another term's scale knows with it in their scale, and if there are any.

    A stream and what layers have made of it grow together.
    """
    found, some = list(parts), False
    for k, f in enumerate(parts):
        keys = f.own_sources or {}
        if f.array is not None or not any(p.scale.get(key) for key in keys for p in parts if p is not f):
            continue
        own = f.own_spread
        if own > 0:
            scale, some = with_own(f.scale, f, None), True
            found[k] = replace(f, scale=scale, lean=f.lean + log_shortfall(own), own=0.0)
    return found, some


def _noise_of_sum(shares: Sequence[tuple[Field, float]]) -> float:
    """Terms that are made of the same values have their noise in common."""
    some = [f.sources for f, _ in shares if f.noise]
    if some and frozenset.intersection(*some):
        return sum(f.noise**0.5 * min(share, 1.0) for f, share in shares) ** 2
    return sum(f.noise * min(share, 1.0) ** 2 for f, share in shares)


_MOST_SOURCES = 24


def _sources_of_sum(shares: Sequence[tuple[Field, float]], axes: Sequence[Axis]) -> dict[Any, float]:
    """What a sum's own spread is made of: that of its terms, and their products."""
    found: dict[Any, float] = {}
    products = 0.0
    for k, (f, share) in enumerate(shares):
        own = f.own_spread**0.5 * share if f.array is None else 0.0
        for key, e in (f.own_sources or {object(): 1.0}).items():
            found[key] = found.get(key, 0.0) + own * e
        for b, other in shares[k + 1 :]:
            level = f.mean_square * b.mean_square
            products += 4.0 * share * other * max(pair_average(f.pairs * b.pairs, axes), 0.0) / level if level else 0.0
    largest = sorted(found, key=lambda key: -abs(found[key]))
    rest = sum(found.pop(key) ** 2 for key in largest[_MOST_SOURCES:])
    found[object()] = (products + rest) ** 0.5
    whole = sum(e * e for e in found.values()) ** 0.5
    return {key: e / whole for key, e in found.items() if e} if whole > 0 else {object(): 1.0}


def uncorrelated(a: Field, b: Field) -> bool:
    """Whether E[ab] = E[a]E[b]: no common source, or one changes its sign with a source that the other lacks."""
    return not a.sources & b.sources or bool(a.odd - b.sources) or bool(b.odd - a.sources)


def _kind_of_sum(parts: Sequence[Field], known: bool) -> str:
    kinds = [f.kind for f in parts]
    random = [f for f in parts if f.array is None]
    if sum(bool(np.any(f.mean)) for f in parts) > 1:  # the product of the means
        kinds += [f.kind_of_mean for f in parts]
    if known or not all(uncorrelated(a, b) for k, a in enumerate(random) for b in random[k + 1 :]):
        kinds.append("approximate")
    return worst(*kinds)


def _mixed_sum(parts: Sequence[Field]) -> int:
    """How far a sum of normal values is normal."""
    random = [f for f in parts if f.array is None]
    if any(a.sources & b.sources for k, a in enumerate(random) for b in random[k + 1 :]):
        return 2
    found = max((f.mixed for f in random), default=0)
    return 2 if found and any(np.any(f.mean) for f in parts) else found


def _own_of_sum(parts: Sequence[Field], axes: Sequence[Axis], q: float) -> float:
    """Relative variance of a sum's mean square: that of each term's, and of twice the terms' products."""
    found = sum(f.own_spread * (f.mean_square / q) ** 2 for f in parts)
    for k, a in enumerate(parts):
        for b in parts[k + 1 :]:
            found += 4.0 * max(pair_average(a.pairs * b.pairs, axes), 0.0) / q**2
    return found


def _one_echo(parts: Sequence[Field], signs: Sequence[float]) -> Echo | None:
    found = [(f.echo, s) for f, s in zip(parts, signs, strict=True) if f.echo is not None]
    if len(found) != 1:
        return None
    ((echo, sign),) = found
    return replace(echo, factor=echo.factor * sign)


def _times_given(value: Field, factor: Field) -> Echo | None:
    """What is left of looked-up rows in a multiple by given numbers."""
    if value.echo is None or factor.array is None:
        return None
    return replace(value.echo, factor=value.echo.factor * factor.mean_value)


_MASKED = -1e6  # numbers below are a mask's


def unmasked(fields: Sequence[Field]) -> tuple[list[Field], np.ndarray | None]:
    """The fields without the mask that one of them adds to scores, and what it leaves visible."""
    found, visible = [], None
    for f in fields:
        seen = f.visible
        if f.array is not None and f.array.size and float(np.min(f.array)) < _MASKED:
            whole = np.broadcast_to(f.array, [a.size for a in f.axes]).reshape(f.shape)
            seen = whole > _MASKED
            f = fixed(np.where(seen, whole, 0.0), [d[0].lags if len(d) == 1 else 0 for d in f.dims])
        if seen is not None:
            visible = seen if visible is None else visible & seen
        found.append(f)
    return found, visible


def multiplied(fields: Sequence[Field], shape: Sequence[int]) -> Field:
    """A product of independent fields."""
    if any(not f.known for f in fields):
        return unknown(shape, "a factor is unknown", frozenset().union(*(f.sources for f in fields)))
    parts, dims = broadcasted(fields, len(shape), shape)
    a, b = parts
    random = [f for f in parts if f.array is None]
    scale = shared_scale([(f, 1.0) for f in parts])
    kurtosis = a.kurtosis * b.kurtosis if len(random) == 2 else random[0].kurtosis if random else 1.0
    own = None
    if len(random) == 2:
        axes = [x for dim in dims for x in dim]
        own = max(0.0, pair_average((1 + a.excess) * (1 + b.excess), axes) - 1)
    elif random:
        own = random[0].own
    doubt = ["approximate"] if len(random) == 2 and a.sources & b.sources else []
    found = within_budget(
        Field(
            dims,
            a.mean * b.mean,
            a.second * b.second,
            a.pairs * b.pairs,
            normal=len(random) == 1 and random[0].normal,
            kurtosis=kurtosis,
            scale=scale,
            own=own,
            own_sources={object(): 1.0},
            noise=a.noise + b.noise,
            noise_lean=a.noise_lean + b.noise_lean,
            echo=_times_given(a, b) or _times_given(b, a),
            lean=a.lean + b.lean,
            degree=sum(f.degree for f in random if not f.fresh),
            rough=a.rough + b.rough,
            units=max(a.units, b.units),
            sources=frozenset().union(*(f.sources for f in parts)),
            odd=a.odd ^ b.odd,
            kind=worst(*(f.kind for f in parts), *doubt),
            mean_kind=worst(*(f.kind_of_mean for f in parts), *doubt),
            mixed=max((f.mixed for f in random), default=0),
            why="independent factors" if len(random) == 2 else "a given factor",
            strata=max(a.strata, b.strata),
        )
    )
    return consistent(found) if a.strata and b.strata else found


def scaled(value: Field, factor: float) -> Field:
    """A multiple by a number."""
    if factor == 1.0:
        return value
    square = factor * factor
    pairs = value.pairs * square
    through = None
    if value.through is not None and value.through[0] is value.pairs:
        through = (pairs, scaled(value.through[1], factor), *value.through[2:])
    return replace(
        value,
        mean=value.mean * factor,
        second=value.second * square,
        pairs=pairs,
        through=through,
        echo=None if value.echo is None else replace(value.echo, factor=value.echo.factor * factor),
        array=None if value.array is None else value.array * factor,
        fresh=value.fresh and factor != 0,
    )
