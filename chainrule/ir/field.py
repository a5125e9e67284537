"""What is known of a tensor before anything runs: a random field over redraws of the weights.

``mean`` and ``second`` hold E[x] and E[x^2] of every element, ``pairs`` holds E[x_i x_j] by class of pair
(:mod:`chainrule.ir.pairs`): how alike samples, positions and units are. A dimension of the tensor is a product of
factors, so that a reshape only regroups them and loses nothing. In all three arrays a dimension of size 1 says that
all positions (or classes) along that factor are alike.

The network is one draw of its weights, and its mean squares differ from their expectation by a factor that is nearly
log-normal. ``scale`` holds that factor as exponents of independent standard normal variables, one per layer, so that a
norm cancels what came before it; ``own`` is what the value's own units add.

Neighbours: ``ops.fields`` say what ops do to fields, ``interpreters.fields`` takes them through a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.logarithms import log_shortfall, log_variance
from chainrule.ir.moments import KINDS
from chainrule.ir.pairs import Axis

Dims = tuple[tuple[Axis, ...], ...]

_BUDGET = 120_000  # entries of a table
FULL_MERGED = 64  # positions of merged factors whose pairs are still kept one by one


def worst(*kinds: str) -> str:
    """The least certain of several kinds."""
    return max(kinds, key=KINDS.index)


@dataclass(frozen=True, eq=False)
class Echo:
    """Rows of a table that are part of a value as they were looked up: ``factor`` times row ``rows`` of ``source``.

    ``level``: the table's mean square.
    """

    source: str
    factor: float
    rows: np.ndarray
    level: float = 0.0

    @property
    def mean_square(self) -> float:
        """Of the rows' part in the value."""
        return self.factor**2 * self.level


@dataclass(frozen=True, eq=False)
class Spike:
    """One score of each vector, that of number ``rows``, has a mean."""

    mean: float
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Field:
    """Expectations over redraws of the random sources, by element and by pair of elements.

    Attributes:
        dims: per dimension of the tensor its factors, outermost first.
        mean, second: E[x], E[x^2]; one dimension per factor, of its size or 1.
        pairs: E[x_i x_j]; one dimension per factor, of its number of classes or 1.
        normal: the elements are jointly normal, given their scale.
        kurtosis: E[x^4] / E[x^2]^2 of an element, given its scale.
        scale: source -> exponent: the mean square is multiplied by exp(sum of exponent * z), z independent normal.
        own: relative variance of the mean square through the value's own units; None: as for a normal value.
        own_sources: what that variance is made of: independent sources with exponents whose squares add up to one, as
            which ``scale`` counts it in what weights make of the value; None: one of its own.
        sources: names of the parameters that it depends on. odd: those whose change of sign changes its sign.
        fresh: it is a parameter itself, as drawn.
        array: the numbers, where they are given. law: (its pairs, function, argument): it is
            function(argument), element by element, as long as its pairs are still these.
        focus: of a cotangent, (its pairs, count, correlation): it is zero except where its value is the largest of so
            many correlated ones. through: (its pairs, cotangent, slope, argument, breaks) that it is the product of.
        alignment: of a cotangent g of a value y, E[g_i y_i g_j y_j] over E[g^2] E[y^2] for two units of one vector: 0
            where they are independent, 1 where g is a multiple of y. own_alignment: the same of a unit with itself, as
            far as it is no consequence of that: E[g_i y_i (g y)_i] over E[g^2] E[y^2]. degree: d ln E[y^2] / d ln of
            the mean square of what it was last normalised to, through weights and functions.
        drift: of a cotangent g of a value y, E[g_i y_i] over the root of E[g^2] E[y^2]: the part of g that is the same
            multiple of y in every vector, so that sums over vectors add it up (``ops.fields.drift``). echo_drift: what
            g has more of it along the echo in y than that is of y's mean square.
        local: variance of the logarithm of one vector's mean square (``scale`` is that of all of them together).
        echo, spike: where a table is used twice (``ops.fields.tied``).
        noise: variance of the logarithm of one entry, or of the sum, of the table of products of vectors, as layers
            have added it up (``scale`` is that of the trace, over which much averages out); it outlives norms, since
            directions stay random. rough: how far single products of given data differ from their class's mean,
            squared. units: independent elements of a vector. steady: its vectors' sizes are nearly certain,
            apart from ``noise``. lean, noise_lean: how far the mean of the logarithm lies
            below the logarithm of the mean through ``scale`` and through ``noise``: half the variance where a factor
            enters as it is, less where a bounded function has flattened it, negative where it divides.
        strata: the number of units of a vector at whose quantiles it was taken, 0 without one: the moments are
            resolved by unit, and another draw of the units has other means over them.
        visible: of scores, which elements a mask leaves (a tensor that broadcasts); the moments are those of them.
        kind: how good ``second`` is: exact, approximate, probe or unknown. mean_kind: how good ``mean`` is, and what is
            known of pairs, where that differs. why: the assumption of the last step.
        mixed: how far ``normal`` holds: 0 at any width; 1 given the size of what weights of mean zero were multiplied
            with, which differs from draw to draw; 2 for wide layers only.
    """

    dims: Dims
    mean: np.ndarray
    second: np.ndarray
    pairs: np.ndarray
    normal: bool = False
    kurtosis: float = 3.0
    scale: Mapping[Any, float] = field(default_factory=dict)
    own: float | None = None
    own_sources: Mapping[Any, float] | None = None
    sources: frozenset[str] = frozenset()
    odd: frozenset[str] = frozenset()
    fresh: bool = False
    kind: str = "exact"
    mean_kind: str = ""
    mixed: int = 0
    why: str = ""
    array: np.ndarray | None = None
    law: tuple[np.ndarray, Any, Any] | None = None
    focus: tuple[np.ndarray, int, float] | None = None
    through: tuple[Any, ...] | None = None
    alignment: float = 0.0
    own_alignment: float = 1.0
    degree: float = 1.0
    drift: float = 0.0
    echo_drift: float = 0.0
    local: float = 0.0
    visible: np.ndarray | None = None
    echo: Echo | None = None
    spike: Spike | None = None
    noise: float = 0.0
    rough: float = 0.0
    units: float = 0.0
    steady: bool = False
    lean: float = 0.0
    noise_lean: float = 0.0
    strata: int = 0

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All factors in order."""
        return tuple(a for dim in self.dims for a in dim)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(prod(a.size for a in dim) for dim in self.dims)

    @property
    def known(self) -> bool:
        """Whether the moments are known."""
        return self.kind != "unknown"

    @property
    def kind_of_mean(self) -> str:
        """How good ``mean`` is."""
        return self.mean_kind or self.kind

    @property
    def kind_of_both(self) -> str:
        """The worse of both moments' kinds."""
        return worst(self.kind, self.kind_of_mean)

    @property
    def composed(self) -> tuple[Any, Field] | None:
        """(function, argument) where the field is a function of a normal one, element by element."""
        return self.law[1:] if self.law is not None and self.law[0] is self.pairs else None

    @property
    def variance(self) -> np.ndarray:
        """E[x^2] - E[x]^2 of every element."""
        return np.maximum(self.second - self.mean * self.mean, 0.0)

    @cached_property
    def mean_square(self) -> float:
        """The mean of E[x^2] over all elements."""
        return float(np.mean(self.second))

    @cached_property
    def mean_value(self) -> float:
        """The mean of E[x] over all elements."""
        return float(np.mean(self.mean))

    @cached_property
    def unevenness(self) -> float:
        """E[v^2] / E[v]^2 of a vector's mean square v, over draws and over the vectors of the tensor.

        A vector lies along the last dimension, of images along the channels. Its elements may differ as they like,
        as given numbers do.
        """
        q = self.mean_square
        if not q > 0:
            return 1.0
        unit = 1 if len(self.dims) > 3 else len(self.dims) - 1
        start = sum(len(d) for d in self.dims[: max(unit, 0)])
        inside = tuple(range(start, start + len(self.dims[unit]))) if self.dims else ()
        return (1.0 + self.local) * float(np.mean(np.mean(self.second, axis=inside) ** 2)) / q**2

    @cached_property
    def centred(self) -> np.ndarray:
        """Covariances by class: E[x_i x_j] - E[x_i] E[x_j]."""
        return self.pairs - pair.outer(self.mean, self.mean, self.axes)

    @cached_property
    def excess(self) -> np.ndarray:
        """E[x_i^2 x_j^2] / q^2 - 1 by class of pair, as for normal values with this kurtosis and own spread."""
        q = self.mean_square
        if self.array is not None or not self.known or q == 0.0:
            return np.zeros((1,) * len(self.axes))
        c, m = self.centred, pair.outer(self.mean, self.mean, self.axes)
        values = (2.0 * c * c + 4.0 * m * c) / q**2
        if self.own is None:
            return np.clip(values, 0.0, None)
        average = pair_average(values, self.axes)
        if average <= 0 or self.own > average:  # what exceeds the elements' own is a factor of all of them
            return np.clip(values, 0.0, None) + max(self.own - max(average, 0.0), 0.0)
        return np.clip(values * (self.own / average), 0.0, None)

    @cached_property
    def own_spread(self) -> float:
        """Relative variance of the mean square of all elements through the value's own randomness."""
        if self.own is not None:
            return self.own + (self.uneven_products if self.own > 0 else 0.0) + self.uneven_strata
        if self.array is not None or not self.known or self.mean_square == 0.0:
            return 0.0
        share = float(np.mean(self.variance)) / self.mean_square
        extra = (self.kurtosis - 3.0) * share * share / max(self.independent_units, 1.0)
        return (
            max(0.0, pair_average(self.excess, self.axes) + extra) + self.uneven_products * share + self.uneven_strata
        )

    @property
    def uneven_strata(self) -> float:
        """What another draw of the units, which the moments are resolved by, adds to the spread.

        Of the largest of n, the number of units above it is 1 on average and varies as an exponential law does, which
        the quantiles do not show: its logarithm varies by pi^2 / 6 times the square of the tail's slope.
        """
        found = 0.0
        for k, a in enumerate(self.axes if self.strata else ()):
            if a.size == self.strata and self.second.shape[k] == a.size:
                by_unit = np.sort(np.mean(self.second, axis=tuple(j for j in range(self.second.ndim) if j != k)))[::-1]
                if not by_unit[1] > 0:
                    continue
                share = float(by_unit[0] / by_unit.sum())
                tail = np.log(by_unit[0] / by_unit[1]) / np.log(3.0)
                largest = share**2 * max(float(np.exp(min(tail**2 * np.pi**2 / 6.0, 3.0))) - 2.0, 0.0)
                found = float(np.mean(by_unit**2) / np.mean(by_unit) ** 2 - 1.0) / a.size + largest
        return found

    @property
    def uneven_products(self) -> float:
        """What products of single vectors that differ from their class's mean add to the spread: E[c^2] > E[c]^2."""
        vectors = prod(self.shape) / self.units if self.units else 1.0
        return (self.noise + 2.0 * self.rough) * (1.0 - 1.0 / vectors) / self.units if vectors > 1 else 0.0

    @property
    def independent_units(self) -> float:
        """The number of elements over the largest number that are alike."""
        c = self.centred
        v = np.mean(self.variance)
        if v <= 0:
            return 1.0
        share = pair_average((c / v) ** 2, self.axes)
        return 1.0 / max(share, 1e-12)

    def pull(self, units: float) -> float:
        """E[(g.y)^2] over E[g.g] E[y.y], times the number of units, of a cotangent: 1 where it is unrelated to y."""
        return max(self.own_alignment + (units + 1.0) * self.alignment, 0.0)

    def spread_of_vector(self, units: float) -> float:
        """Relative variance of the mean square of one vector of so many elements through its own randomness."""
        return 0.0 if self.array is not None or self.steady else max(self.kurtosis - 1.0, 0.0) / max(units, 1.0)

    @property
    def log_spread(self) -> float:
        """Variance of the logarithm of the mean square over draws of the weights."""
        return sum(e * e for e in self.scale.values()) + log_variance(self.own_spread)

    @property
    def log_mean(self) -> float:
        """The mean of the logarithm of the mean square over draws of the weights."""
        return float(np.log(self.mean_square)) - self.lean - log_shortfall(self.own_spread)

    @property
    def band(self) -> tuple[float, float]:
        """Where the mean square of one draw of the weights lies in nine draws of ten (log-normal)."""
        if not self.mean_square > 0:
            return self.mean_square, self.mean_square
        centre, width = self.log_mean, _NINE_OF_TEN * float(np.sqrt(self.log_spread))
        return float(np.exp(centre - width)), float(np.exp(centre + width))

    def correlation(self, *dims: int) -> float | None:
        """Mean of E[x_i x_j] / E[x^2] over pairs that differ along exactly these dimensions; None without such."""
        table, count = self.pairs, 1.0
        wanted = {d % len(self.dims) for d in dims}
        if any(d in wanted and prod(a.size for a in factors) < 2 for d, factors in enumerate(self.dims)):
            return None
        # sum over all pairs of the wanted dimensions, less those that agree in one of them
        total = _over(table, self.dims, {d: "all" for d in wanted})
        for mask in range(1, 2 ** len(wanted)):
            picked = [d for b, d in enumerate(sorted(wanted)) if mask >> b & 1]
            ways = {d: ("same" if d in picked else "all") for d in wanted}
            total = total + (-1) ** len(picked) * _over(table, self.dims, ways)
        for d in wanted:
            n = prod(a.size for a in self.dims[d])
            count *= n * (n - 1)
        q = self.mean_square
        return float(total / count / q) if q > 0 else None


def _over(table: np.ndarray, dims: Dims, ways: Mapping[int, str]) -> Any:
    k = 0
    value = table
    for d, factors in enumerate(dims):
        for a in factors:
            if ways.get(d) == "all":
                value = pair.total(value, k, a)
            elif ways.get(d) == "same":
                value = pair.traced(value, k, a)
            else:
                value = pair.traced(value, k, a) / a.size
            k += 1
    return float(value.ravel()[0])


def pair_average(table: np.ndarray, axes: Sequence[Axis]) -> float:
    """The mean of a table over all pairs."""
    for k, a in enumerate(axes):
        table = pair.total(table, k, a) / float(a.size) ** 2
    return float(table.ravel()[0])


_MOST_SCALES = 96
_NINE_OF_TEN = 1.645  # standard deviations


def with_scale(scale: Mapping[Any, float], key: Any, exponent: float) -> dict[Any, float]:
    """One more source of the scale; of very many the oldest are taken together."""
    found = dict(scale)
    if len(found) >= _MOST_SCALES:
        old = list(found)[: _MOST_SCALES // 2]
        found = {("together", key): float(np.sqrt(sum(found.pop(k) ** 2 for k in old))), **found}
    found[key] = exponent
    return found


def with_own(scale: Mapping[Any, float], value: Field, key: Any) -> dict[Any, float]:
    """The scale of what weights make of a value: its own spread is one more source, the same for all of them."""
    exponent = float(np.sqrt(log_variance(value.own_spread)))
    return with_sources(scale, value.own_sources or {key: 1.0}, exponent)


def with_sources(scale: Mapping[Any, float], sources: Mapping[Any, float], exponent: float) -> dict[Any, float]:
    """The scale with so much of these sources."""
    found = dict(scale)
    for k, e in sources.items():
        found = with_scale(found, k, found.get(k, 0.0) + e * exponent)
    return found


# ---- making fields -----------------------------------------------------------------------------------------
def plain(shape: Sequence[int], lags: Sequence[int | None] | None = None) -> Dims:
    """One factor per dimension, exchangeable if nothing else is said."""
    lags = lags or [0] * len(shape)
    return tuple((Axis(int(n), grade),) for n, grade in zip(shape, lags, strict=True))


def unknown(shape: Sequence[int], why: str, sources: frozenset[str] = frozenset()) -> Field:
    """A field of which nothing is known."""
    nothing = np.full((1,) * len(shape), np.nan)
    return Field(plain(shape), nothing, nothing, nothing, kind="unknown", why=why, sources=sources)


def iid(shape: Sequence[int], mean: float, second: Any, lags: Sequence[int | None] | None = None, **more: Any) -> Field:
    """Independent elements of one mean and one second moment (a number, or an array by position)."""
    if 0 in shape:
        return _empty(shape)
    dims = plain(shape, lags)
    axes = [a for dim in dims for a in dim]
    second = pair.as_table(second, axes)
    average = float(np.mean(second))
    table = np.full([a.classes for a in axes], mean * mean)
    grid = np.ix_(*(a.same for a in axes)) if axes else ()
    if all(a.lags is not None for a in axes):
        table[(0,) * len(axes)] = average
    else:
        full = np.zeros([a.classes for a in axes], dtype=bool)
        full[grid] = True
        table[full] = average
    one = np.full((1,) * len(axes), float(mean))
    return Field(dims, one, second, table, **more)


def fixed(array: Any, lags: Sequence[int | None] | None = None, why: str = "given numbers") -> Field:
    """Given numbers: no randomness. Minus infinity, a mask's, is a number that a mask may have."""
    array = np.asarray(array, dtype=float)
    if np.isneginf(array).any():
        array = np.where(np.isneginf(array), -1e9, array)
    if 0 in array.shape:
        return _empty(array.shape)
    dims = plain(array.shape, lags)
    axes = [a for dim in dims for a in dim]
    if array.size and array.ndim and array.min() == array.max():
        one = np.full((1,) * array.ndim, float(array.ravel()[0]))
        return Field(dims, one, one * one, one * one, array=one, kurtosis=1.0, own=0.0, why=why)
    return Field(
        dims, array, array * array, pair.outer(array, array, axes), array=array, kurtosis=1.0, own=0.0, why=why
    )


def _empty(shape: Sequence[int]) -> Field:
    """A tensor without elements."""
    nothing = np.zeros((1,) * len(shape))
    return Field(plain(shape), nothing, nothing, nothing, array=nothing, own=0.0, why="no elements")


def consistent(value: Field) -> Field:
    """The field with its table rescaled so that positions with themselves have the mean square.

    Sums over windows know the second moment position by position, the table only by distance.
    """
    own = value.pairs
    for k, axis in enumerate(value.axes):
        own = pair.resolved_one(own, k, axis).mean(axis=k, keepdims=True)
    level = float(own.ravel()[0])
    return replace(value, pairs=value.pairs * (value.mean_square / level)) if level > 0 else value


def within_budget(value: Field) -> Field:
    """The field with its finest factors graded more coarsely until its table is small."""
    while value.pairs.size > _BUDGET:
        axes = value.axes
        k = max(range(len(axes)), key=lambda k: value.pairs.shape[k] if axes[k].lags != 0 else 0)
        if value.pairs.shape[k] <= 2:
            return value
        value = regraded(value, k, Axis(axes[k].size, 0))
    return value


def regraded(value: Field, k: int, new: Axis) -> Field:
    """The field with factor k graded otherwise."""
    old = value.axes[k]
    if old == new:
        return value
    table = pair.regraded(value.pairs, k, old, new)
    return replace(value, dims=with_axis(value.dims, k, (new,)), pairs=table)


def with_axis(dims: Dims, k: int, new: Sequence[Axis]) -> Dims:
    result, position = [], 0
    for dim in dims:
        inner: list[Axis] = []
        for a in dim:
            inner += list(new) if position == k else [a]
            position += 1
        result.append(tuple(inner))
    return tuple(result)
