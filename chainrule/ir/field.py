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
from math import gcd, prod
from typing import Any

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.moments import KINDS
from chainrule.ir.pairs import Axis

Dims = tuple[tuple[Axis, ...], ...]

_BUDGET = 120_000  # entries of a table
_FULL_MERGED = 64  # positions of merged factors whose pairs are still kept one by one


def worst(*kinds: str) -> str:
    """The least certain of several kinds."""
    return max(kinds, key=KINDS.index)


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
        sources: names of the parameters that it depends on. odd: those whose change of sign changes its sign.
        fresh: it is a parameter itself, as drawn.
        array: the numbers, where they are given. law: (its pairs, function, argument): it is
            function(argument), element by element, as long as its pairs are still these.
        focus: of a cotangent, (its pairs, count, correlation): it is zero except where its value is the largest of so
            many correlated ones. through: (its pairs, cotangent, slope, argument, breaks) that it is the product of.
        alignment: of a cotangent g of a value y, E[g_i y_i g_j y_j] over E[g^2] E[y^2] for two units of one vector: 0
            where they are independent, 1 where g is a multiple of y. local: variance of the logarithm of one vector's
            mean square (``scale`` is that of all of them together).
        visible: of scores, which elements a mask leaves (a tensor that broadcasts); the moments are those of them.
        kind: exact, approximate, probe or unknown. why: the assumption of the last step.
    """

    dims: Dims
    mean: np.ndarray
    second: np.ndarray
    pairs: np.ndarray
    normal: bool = False
    kurtosis: float = 3.0
    scale: Mapping[Any, float] = field(default_factory=dict)
    own: float | None = None
    sources: frozenset[str] = frozenset()
    odd: frozenset[str] = frozenset()
    fresh: bool = False
    kind: str = "exact"
    why: str = ""
    array: np.ndarray | None = None
    law: tuple[np.ndarray, Any, Any] | None = None
    focus: tuple[np.ndarray, int, float] | None = None
    through: tuple[Any, ...] | None = None
    alignment: float = 0.0
    local: float = 0.0
    visible: np.ndarray | None = None

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
        """E[v^2] / E[v]^2 of a vector's mean square v, over draws and over the vectors of the tensor."""
        q = self.mean_square
        return (1.0 + self.local) * float(np.mean(self.second**2)) / q**2 if q > 0 else 1.0

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
        return np.clip(values * (self.own / average), 0.0, None) if average > 0 else np.full_like(values, self.own)

    @cached_property
    def own_spread(self) -> float:
        """Relative variance of the mean square of all elements through the value's own randomness."""
        if self.own is not None:
            return self.own
        if self.array is not None or not self.known or self.mean_square == 0.0:
            return 0.0
        share = float(np.mean(self.variance)) / self.mean_square
        extra = (self.kurtosis - 3.0) * share * share / max(self.independent_units, 1.0)
        return max(0.0, pair_average(self.excess, self.axes) + extra)

    @property
    def independent_units(self) -> float:
        """The number of elements over the largest number that are alike."""
        c = self.centred
        v = np.mean(self.variance)
        if v <= 0:
            return 1.0
        share = pair_average((c / v) ** 2, self.axes)
        return 1.0 / max(share, 1e-12)

    @property
    def log_spread(self) -> float:
        """Variance of the logarithm of the mean square over draws of the weights."""
        return sum(e * e for e in self.scale.values()) + float(np.log1p(self.own_spread))

    def correlation(self, *dims: int) -> float | None:
        """Mean of E[x_i x_j] / E[x^2] over pairs that differ along exactly these dimensions; None without such."""
        table, weight = self.pairs, 1.0
        wanted = {d % len(self.dims) for d in dims}
        k, count = 0, 1.0
        for d, factors in enumerate(self.dims):
            if d in wanted and prod(a.size for a in factors) < 2:
                return None
            k += len(factors)
        same = np.array(1.0)
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
        del weight, same
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


def with_scale(scale: Mapping[Any, float], key: Any, exponent: float) -> dict[Any, float]:
    """One more source of the scale; of very many the oldest are taken together."""
    found = dict(scale)
    if len(found) >= _MOST_SCALES:
        old = list(found)[: _MOST_SCALES // 2]
        found = {("together", key): float(np.sqrt(sum(found.pop(k) ** 2 for k in old))), **found}
    found[key] = exponent
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
    """Given numbers: no randomness."""
    array = np.asarray(array, dtype=float)
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
    return replace(value, dims=_with_axis(value.dims, k, (new,)), pairs=table)


def _with_axis(dims: Dims, k: int, new: Sequence[Axis]) -> Dims:
    result, position = [], 0
    for dim in dims:
        inner: list[Axis] = []
        for a in dim:
            inner += list(new) if position == k else [a]
            position += 1
        result.append(tuple(inner))
    return tuple(result)


# ---- factors -----------------------------------------------------------------------------------------------
def split(value: Field, k: int, sizes: Sequence[int]) -> Field:
    """Factor k as several, outermost first."""
    old = value.axes[k]
    if len(sizes) == 1:
        return value
    grade = old.lags
    if grade not in (0, None):
        fine = old.size <= _FULL_MERGED
        value = regraded(value, k, Axis(old.size, None if fine else 0))
        old, grade = value.axes[k], None if fine else 0
    new = [Axis(int(n), grade) for n in sizes]
    table = value.pairs
    if table.shape[k] == 1:
        table = table.reshape(*table.shape[:k], *(1,) * len(sizes), *table.shape[k + 1 :])
    elif grade is None:
        inner = [d for n in sizes for d in (n,)]
        laid = table.reshape(*table.shape[:k], *inner, *inner, *table.shape[k + 1 :])
        m = len(sizes)
        order = [*range(k), *(k + d for p in range(m) for d in (p, m + p)), *range(k + 2 * m, laid.ndim)]
        laid = np.transpose(laid, order)
        table = laid.reshape(*table.shape[:k], *(n * n for n in sizes), *table.shape[k + 1 :])
    else:
        index = np.ones([a.classes for a in new], dtype=int)
        index[(0,) * len(new)] = 0
        if old.classes == 1:
            index[...] = 0
        table = np.moveaxis(np.moveaxis(table, k, -1)[..., index], range(-len(new), 0), range(k, k + len(new)))
    return replace(
        value,
        dims=_with_axis(value.dims, k, new),
        mean=_split_array(value.mean, k, sizes),
        second=_split_array(value.second, k, sizes),
        pairs=table,
        array=None if value.array is None else _split_array(value.array, k, sizes),
    )


def _split_array(array: np.ndarray, k: int, sizes: Sequence[int]) -> np.ndarray:
    inner = sizes if array.shape[k] > 1 else (1,) * len(sizes)
    return array.reshape(*array.shape[:k], *inner, *array.shape[k + 1 :])


def merged(value: Field, k: int, count: int) -> Field:
    """Factors k ... k + count - 1 as one; pairs are kept one by one where the result is small."""
    if count == 1:
        return value
    axes = value.axes[k : k + count]
    n = prod(a.size for a in axes)
    fine = n <= _FULL_MERGED and any(a.lags != 0 for a in axes if a.size > 1)
    if fine:
        for j in range(count):
            value = regraded(value, k + j, Axis(axes[j].size, None))
        axes = value.axes[k : k + count]
    table = np.broadcast_to(
        value.pairs, [*value.pairs.shape[:k], *(a.classes for a in axes), *value.pairs.shape[k + count :]]
    )
    if fine:
        inner = [d for a in axes for d in (a.size, a.size)]
        laid = table.reshape(*table.shape[:k], *inner, *table.shape[k + count :])
        order = [*range(k), *(k + 2 * p for p in range(count)), *(k + 2 * p + 1 for p in range(count))]
        laid = np.transpose(laid, [*order, *range(k + 2 * count, laid.ndim)])
        new, table = Axis(n, None), laid.reshape(*table.shape[:k], n * n, *table.shape[k + count :])
    else:
        new = Axis(n, 0)
        same, every = table, table
        for j, a in enumerate(axes):
            same, every = pair.traced(same, k + j, a), pair.total(every, k + j, a)
        flat = (*table.shape[:k], 1, *table.shape[k + count :])
        same, every = same.reshape(flat) / n, every.reshape(flat)
        far = (every - n * same) / max(n * (n - 1.0), 1.0)
        table = np.concatenate([same, far], axis=k) if n > 1 else same
    return replace(
        value,
        dims=_with_merged(value.dims, k, count, new),
        mean=_merge_array(value.mean, k, axes),
        second=_merge_array(value.second, k, axes),
        pairs=table,
        array=None if value.array is None else _merge_array(value.array, k, axes),
    )


def _merge_array(array: np.ndarray, k: int, axes: Sequence[Axis]) -> np.ndarray:
    inner = array.shape[k : k + len(axes)]
    if prod(inner) > 1:
        shape = [*array.shape[:k], *(a.size for a in axes), *array.shape[k + len(axes) :]]
        array = np.broadcast_to(array, shape)
        return array.reshape(*array.shape[:k], -1, *array.shape[k + len(axes) :])
    return array.reshape(*array.shape[:k], 1, *array.shape[k + len(axes) :])


def _with_merged(dims: Dims, k: int, count: int, new: Axis) -> Dims:
    """Factors replaced by one, within one dimension."""
    result, position = [], 0
    for dim in dims:
        inner: list[Axis] = []
        for a in dim:
            if position == k:
                inner.append(new)
            elif not k < position < k + count:
                inner.append(a)
            position += 1
        result.append(tuple(inner))
    return tuple(result)


def common(lists: Sequence[Sequence[int]]) -> list[int] | None:
    """The sizes into which every list of sizes (of one product) can be split; None where there are none."""
    rests = [[n for n in sizes if n != 1] for sizes in lists]
    result: list[int] = []
    while all(rests):
        step = rests[0][-1]
        for r in rests[1:]:
            step = gcd(step, r[-1])
        smallest = min(r[-1] for r in rests)
        if any(r[-1] % smallest for r in rests) and step != smallest:
            return None
        for r in rests:
            if r[-1] == smallest:
                r.pop()
            else:
                r[-1] //= smallest
        result.append(smallest)
    return None if any(rests) else result[::-1]


def refined(value: Field, dim: int, sizes: Sequence[int]) -> Field:
    """The field with dimension ``dim`` made of factors of these sizes (merged first where they do not divide)."""
    start = sum(len(d) for d in value.dims[:dim])
    own = [a.size for a in value.dims[dim]]
    if own == list(sizes):
        return value
    if not sizes:  # a dimension of size 1 without factors
        return without_ones(value, dim)
    value = without_ones(value, dim) if 1 in own and 1 not in sizes else value
    own = [a.size for a in value.dims[dim]]
    if not own:
        return with_factor(value, dim, Axis(1))
    # merge groups of own factors that make one wanted factor; split the others
    wanted, k = list(sizes), start
    while wanted and k - start < len(value.dims[dim]):
        n = value.axes[k].size
        if n == wanted[0]:
            k, wanted = k + 1, wanted[1:]
            continue
        taken, product_ = [], 1
        while wanted and product_ < n:
            product_ *= wanted[0]
            taken, wanted = [*taken, wanted[0]], wanted[1:]
        if product_ == n:
            value = split(value, k, taken)
            k += len(taken)
        else:
            whole = merged(value, start, len(value.dims[dim]))
            return split(whole, start, list(sizes))
    return value


def without_ones(value: Field, dim: int) -> Field:
    """Factors of size 1 taken out of a dimension."""
    start = sum(len(d) for d in value.dims[:dim])
    ones = [start + j for j, a in enumerate(value.dims[dim]) if a.size == 1]
    if not ones:
        return value
    dims = list(value.dims)
    dims[dim] = tuple(a for a in dims[dim] if a.size != 1)
    take = lambda array: None if array is None else np.squeeze(array, tuple(ones))  # noqa: E731
    return replace(
        value,
        dims=tuple(dims),
        mean=take(value.mean),
        second=take(value.second),
        pairs=take(value.pairs),
        array=take(value.array),
    )


def with_factor(value: Field, dim: int, axis: Axis) -> Field:
    """One more factor in front of a dimension's own, along which everything is alike (the same value repeated)."""
    start = sum(len(d) for d in value.dims[:dim])
    dims = list(value.dims)
    dims[dim] = (axis, *dims[dim])
    put = lambda array: None if array is None else np.expand_dims(array, start)  # noqa: E731
    return replace(
        value,
        dims=tuple(dims),
        mean=put(value.mean),
        second=put(value.second),
        pairs=put(value.pairs),
        array=put(value.array),
    )


def regrouped(value: Field, shape: Sequence[int]) -> Field:
    """The field in another shape with the same elements in the same order."""
    wanted = [int(n) for n in shape]
    own = [a.size for a in value.axes if a.size != 1]
    for d in range(len(value.dims)):
        value = without_ones(value, d)
    flat = replace(value, dims=(value.axes,))
    both = common([own, [n for n in wanted if n != 1]])
    if both is None:  # merge as little as possible: everything
        flat = refined(flat, 0, [prod(own)] if own else [])
        both = [n for n in wanted if n != 1]
    flat = refined(flat, 0, both)
    axes, k, dims = list(flat.axes), 0, []
    ones: list[int] = []
    for n in wanted:
        inner, size = [], 1
        while size < n:
            inner.append(axes[k])
            size *= axes[k].size
            k += 1
        if not inner:
            ones.append(len(dims))
        dims.append(tuple(inner))
    value = replace(flat, dims=tuple(dims))
    for d in ones:
        value = with_factor(value, d, Axis(1))
    return value
