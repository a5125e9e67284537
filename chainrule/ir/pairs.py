"""Pairs of positions along one factor of a value's shape, sorted into classes.

The expectation ``E[x_i x_j]`` over all pairs of elements is too large to keep. Along one factor of size n, pairs are
kept one by one (n * n classes, for small factors), or by distance: the same position, distance 1, ..., distance
``lags``, all others. With ``lags=0`` there are two classes, a position with itself and with another, which is all
there is to say of exchangeable things: hidden units, samples. A table over pairs has one dimension per factor.

Neighbours: ``ir.field`` carries tables, ``ops.fields`` say how ops change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

_LARGEST_MATRIX = 1024  # positions of a factor that pairs are still laid out for as a matrix


@dataclass(frozen=True)
class Axis:
    """One factor of a shape, and how finely its pairs of positions are told apart.

    Attributes:
        size: the number of positions. lags: the largest distance that is a class of its own; None: every pair is.
    """

    size: int
    lags: int | None = 0

    @cached_property
    def classes(self) -> int:
        """The number of classes of pairs."""
        if self.lags is None:
            return self.size * self.size
        return min(self.lags + 2, self.size)

    @cached_property
    def weights(self) -> np.ndarray:
        """The number of ordered pairs in each class."""
        if self.lags is None:
            return np.ones(self.classes)
        n = self.size
        near = [float(n), *(2.0 * (n - d) for d in range(1, min(self.lags, n - 1) + 1))]
        return np.array([*near, float(n) * n - sum(near)][: self.classes])

    @cached_property
    def same(self) -> np.ndarray:
        """The classes of a position with itself."""
        return np.arange(self.size) * (self.size + 1) if self.lags is None else np.zeros(1, dtype=int)

    @cached_property
    def matrix(self) -> np.ndarray:
        """The class of every pair, (size, size)."""
        n = self.size
        if n > _LARGEST_MATRIX:
            raise ValueError(f"pairs of {n} positions are not laid out")
        if self.lags is None:
            return np.arange(n * n).reshape(n, n)
        distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        return np.minimum(distance, self.classes - 1)

    @property
    def laid_out(self) -> bool:
        """Whether its pairs may be laid out as a matrix."""
        return self.size <= _LARGEST_MATRIX

    def resized(self, size: int) -> Axis:
        """The same fineness for another size."""
        return Axis(size, self.lags)


def finer(a: Axis, b: Axis) -> Axis:
    """The axis of the same size that tells apart what either does."""
    if a.lags is None or b.lags is None:
        return Axis(a.size, None)
    return Axis(a.size, max(a.lags, b.lags))


def lay_out(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """The table with dimension k as two, (size, size)."""
    moved = np.moveaxis(table, k, -1)
    return moved[..., axis.matrix]  # (..., n, n)


def average(full: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """Undoes :func:`lay_out`: the last two dimensions become dimension k, averaged over each class."""
    n = axis.size
    flat = full.reshape(*full.shape[:-2], n * n)
    if axis.lags is None:
        return np.moveaxis(flat, -1, k)
    sums = np.zeros((*flat.shape[:-1], axis.classes))
    labels = axis.matrix.ravel()
    for c in range(axis.classes):
        sums[..., c] = flat[..., labels == c].mean(axis=-1)
    return np.moveaxis(sums, -1, k)


def regraded(table: np.ndarray, k: int, old: Axis, new: Axis) -> np.ndarray:
    """The table by the classes of another axis of the same size: finer (each class's value) or coarser (averages)."""
    if old == new or old.classes == 1 or table.shape[k] == 1:
        return table
    if old.lags is not None and new.lags is not None:
        if new.lags >= old.lags:
            index = np.minimum(np.arange(new.classes), old.classes - 1)
            return np.take(table, index, axis=k)
        kept = new.classes - 1
        w = old.weights[kept:]
        shape = [1] * table.ndim
        shape[k] = -1
        far = np.sum(np.take(table, np.arange(kept, old.classes), axis=k) * w.reshape(shape), axis=k, keepdims=True)
        return np.concatenate([np.take(table, np.arange(kept), axis=k), far / w.sum()], axis=k)
    if old.lags is not None:
        return np.moveaxis(np.moveaxis(table, k, -1)[..., old.matrix.ravel()], -1, k)
    return average(lay_out(table, k, old), k, new)


def total(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """The sum over all pairs, dimension k kept with size 1."""
    if table.shape[k] == 1:
        return table * float(axis.size) ** 2
    shape = [1] * table.ndim
    shape[k] = -1
    return np.sum(table * axis.weights.reshape(shape), axis=k, keepdims=True)


def traced(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """The sum over all positions with themselves, dimension k kept with size 1."""
    if table.shape[k] == 1:
        return table * float(axis.size)
    return np.mean(np.take(table, axis.same, axis=k), axis=k, keepdims=True) * float(axis.size)


def resolved(table: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The values of positions with themselves, resolved where pairs are kept one by one."""
    for k, axis in enumerate(axes):
        table = np.take(table, axis.same, axis=k) if table.shape[k] > 1 else table
    return table


def resolved_one(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """The entries of positions with themselves along one factor."""
    return np.take(table, axis.same, axis=k) if table.shape[k] > 1 else table


@lru_cache(maxsize=4096)
def _transfer(old: Axis, new: Axis, left: bytes, right: bytes) -> np.ndarray:
    a = np.frombuffer(left).reshape(new.size, old.size)
    b = np.frombuffer(right).reshape(new.size, old.size)
    columns = []
    for c in range(old.classes):
        image = a @ (old.matrix == c).astype(float) @ b.T
        columns.append(average((image + image.T)[None] / 2, 0, new).ravel())
    return np.stack(columns, axis=1)


def mapped(table: np.ndarray, k: int, old: Axis, new: Axis, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The table of (left x, right x) from that of x, the maps acting on factor k: (new size, old size) each."""
    if table.shape[k] == 1 and old.size > 1:
        table = np.repeat(table, old.classes, axis=k)
    if old.lags is None or new.lags is None:
        full = lay_out(table, k, old)
        image = np.einsum("ij,...jl,ml->...im", left, full, right, optimize=True)
        return average(image, k, new)
    left, right = np.ascontiguousarray(left, dtype=float), np.ascontiguousarray(right, dtype=float)
    transfer = _transfer(old, new, left.tobytes(), right.tobytes())
    return np.moveaxis(np.moveaxis(table, k, -1) @ transfer.T, -1, k)


def outer(array: np.ndarray, other: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The table of ``array_i other_j``, averaged over each class; arrays have a dimension per axis (1: all alike)."""
    array, other = np.broadcast_arrays(np.asarray(array, dtype=float), np.asarray(other, dtype=float))
    resolved_axes = [k for k in range(array.ndim) if array.shape[k] > 1]
    if not resolved_axes:
        return array * other
    single = [k for k in resolved_axes if axes[k].lags is None]
    lagged = [k for k in resolved_axes if axes[k].lags is not None]
    x = np.transpose(array.reshape([array.shape[k] for k in resolved_axes]), _order(resolved_axes, single, lagged))
    y = np.transpose(other.reshape([other.shape[k] for k in resolved_axes]), _order(resolved_axes, single, lagged))
    sums = _pair_sums(x, y, len(single), [axes[k] for k in lagged])
    for position, k in enumerate(lagged):
        shape = [1] * sums.ndim
        shape[2 * len(single) + position] = -1
        sums = sums / axes[k].weights.reshape(shape)
    # (single..., single..., lagged...) -> one dimension per pair of a single axis
    s = len(single)
    order = [d for p in range(s) for d in (p, s + p)] + list(range(2 * s, sums.ndim))
    sums = np.transpose(sums, order)
    sums = sums.reshape([*(array.shape[k] ** 2 for k in single), *sums.shape[2 * s :]])
    back = np.argsort([*single, *lagged])
    sums = np.transpose(sums, back)
    shape = [1] * array.ndim
    for position, k in enumerate(resolved_axes):
        shape[k] = sums.shape[position]
    return sums.reshape(shape)


def _order(resolved_axes: Sequence[int], single: Sequence[int], lagged: Sequence[int]) -> list[int]:
    return [resolved_axes.index(k) for k in (*single, *lagged)]


def _pair_sums(x: np.ndarray, y: np.ndarray, singles: int, lagged: Sequence[Axis]) -> np.ndarray:
    """Sums of products over the pairs of each class; the first ``singles`` dimensions are kept for x and y apart."""
    if not lagged:
        letters = "abcdefghij"
        left, right = letters[:singles], letters[singles : 2 * singles]
        x, y = x.reshape(*x.shape[:singles], -1), y.reshape(*y.shape[:singles], -1)
        return np.einsum(f"{left}z,{right}z->{left}{right}", x, y, optimize=True)
    axis, d = lagged[0], singles
    # dimension d moves behind as one more summed dimension, shifted against each other
    x, y = np.moveaxis(x, d, -1), np.moveaxis(y, d, -1)
    parts: list[np.ndarray] = []
    near = axis.classes if axis.lags is not None and axis.lags + 1 >= axis.size else axis.classes - 1
    for lag in range(near):
        if lag == 0:
            parts.append(_pair_sums(x, y, singles, lagged[1:]))
        else:
            one = _pair_sums(x[..., :-lag], y[..., lag:], singles, lagged[1:])
            two = _pair_sums(x[..., lag:], y[..., :-lag], singles, lagged[1:])
            parts.append(one + two)
    if near < axis.classes:
        every = _pair_sums(x.sum(-1, keepdims=True), y.sum(-1, keepdims=True), singles, lagged[1:])
        parts.append(every - sum(parts))
    return np.stack(parts, axis=2 * singles)


def as_table(value: Any, axes: Sequence[Axis]) -> np.ndarray:
    """An array with one dimension per axis."""
    array = np.asarray(value, dtype=float)
    return array.reshape((1,) * (len(axes) - array.ndim) + array.shape)
