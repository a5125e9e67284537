"""The factors of a field's dimensions: split, merged, put in, so that two fields meet or a reshape regroups.

A dimension of a tensor is a product of factors (:mod:`chainrule.ir.field`). Splitting one loses nothing; merging two
whose pairs are not kept one by one averages over what can no longer be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.field import FULL_MERGED, Dims, Field, regraded, with_axis
from chainrule.ir.pairs import Axis


def split(value: Field, k: int, sizes: Sequence[int]) -> Field:
    """Factor k as several, outermost first."""
    old = value.axes[k]
    if len(sizes) == 1:
        return value
    grade = old.lags
    if grade not in (0, None):
        fine = old.size <= FULL_MERGED
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
        dims=with_axis(value.dims, k, new),
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
    fine = n <= FULL_MERGED and any(a.lags != 0 for a in axes if a.size > 1)
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
