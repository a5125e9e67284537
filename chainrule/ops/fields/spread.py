"""How far sums over many vectors differ from draw to draw: gradients of weights and biases, means over positions.

With vectors x_a (samples, positions) of n units, the products K_ab = x_a.x_b / n of one draw differ from their
expectation k_ab as a Wishart matrix does: cov(K_ab, K_cd) = (k_ac k_bd + k_ad k_bc) / n. A sum tr(M K) then has the
relative variance (2 / n) tr(M k M k) / tr(M k)^2: 2 / n of a single vector or of the sum over all vectors, and
2 / (n N) of the trace over N uncorrelated ones. Layers add such noise up (:attr:`Field.noise`), and what a sum sees of
it is the factor tr((M k)^2) / tr(M k)^2, one over the number of independent terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, with_scale
from chainrule.ir.pairs import Axis

_MOST = 192  # positions whose pairs are kept one by one, as a matrix


def summed_up(
    found: Field, fields: Sequence[Field], labels: Sequence[Sequence[Any]], summed: Sequence[Any], axes: Sequence[Axis]
) -> Field:
    """A sum over vectors of one value, or of products of two that no weight mixes, with the spread that it has.

    ``labels``: of the factors of each operand; ``summed``: those that are summed over, with their axes.
    """
    inherited = sum(e * e for f in fields for e in f.scale.values())
    lean = sum(f.lean for f in fields)
    if len(fields) == 1:
        (f,) = fields
        if not f.units:
            return found
        own = found.own_spread
        one = prod(found.shape) <= f.units  # a single vector is left, which sees all of the noise
        terms = 1.0 if one else min(own * f.units / 2.0, 1.0)
        return replace(
            found,
            own=0.0 if f.steady else own,
            scale=with_scale(found.scale, object(), max(terms * f.noise - inherited, 0.0) ** 0.5),
            lean=max(terms * f.noise_lean, lean),
            noise=f.noise,
            noise_lean=f.noise_lean,
            rough=f.rough,
            units=f.units,
        )
    if len(fields) > 2 or set(labels[0]) & set(labels[1]) - set(summed):
        return found
    kept = [
        [a for a, x in zip(f.axes, own, strict=True) if x not in summed] for f, own in zip(fields, labels, strict=True)
    ]
    sizes = [max(float(prod(a.size for a in some)), 1.0) for some in kept]
    tables = [_over_units(f, own, summed) for f, own in zip(fields, labels, strict=True)]
    terms = 1.0 / independent_terms(tables, axes)
    uneven = sum(f.noise / 2 + f.rough + 1.0 / n for f, n in zip(fields, sizes, strict=True))
    terms = min(terms + (1.0 - terms) * uneven, 1.0)
    own = sum(f.spread_of_vector(n) for f, n in zip(fields, sizes, strict=True))
    noise, noise_lean = sum(f.noise for f in fields), sum(f.noise_lean for f in fields)
    scale = with_scale(found.scale, object(), max(terms * noise - inherited, 0.0) ** 0.5)
    lean = max(terms * noise_lean, lean)
    return replace(found, own=terms * own, scale=scale, lean=lean, noise=noise, noise_lean=noise_lean, units=0.0)


def _over_units(f: Field, own: Sequence[Any], summed: Sequence[Any]) -> np.ndarray:
    """The table over pairs of the summed positions, averaged over the units."""
    table = f.pairs
    for k, (axis, x) in enumerate(zip(f.axes, own, strict=True)):
        if x not in summed:
            table = pair.resolved_one(table, k, axis).mean(axis=k, keepdims=True)
    order = [own.index(x) for x in summed if x in own]
    table = np.transpose(table, [*order, *(k for k, x in enumerate(own) if x not in summed)])
    table = table.reshape(table.shape[: len(order)])
    shape = iter(table.shape)
    return table.reshape([next(shape) if x in own else 1 for x in summed])


def independent_terms(tables: Sequence[np.ndarray], axes: Sequence[Axis]) -> float:
    """tr(M K)^2 / tr((M K)^2) of two tables over the same positions.

    Tables by distance are diagonal in one basis (waves, on a ring); those that are kept pair by pair are matrices.
    """
    fine = [k for k, a in enumerate(axes) if a.lags is None and a.size > 1]
    while prod(axes[k].size for k in fine) > _MOST:
        fine.remove(max(fine, key=lambda k: axes[k].size))
    counts = np.ones((1,) * len(axes))
    spectra = []
    for table in tables:
        for k, a in enumerate(axes):
            if k in fine:
                table = np.broadcast_to(table, [a.classes if j == k else n for j, n in enumerate(table.shape)])
                continue
            if a.lags is None:
                full = np.broadcast_to(table, [a.classes if j == k else n for j, n in enumerate(table.shape)])
                table, a = pair.regraded(full, k, a, Axis(a.size, 0)), Axis(a.size, 0)
            table, many = _waves(table, k, a)
            if not spectra:
                counts = counts * many.reshape([-1 if j == k else 1 for j in range(len(axes))])
        spectra.append(_as_matrices(table, fine, axes))
    m, k = spectra
    both = m @ k
    counts = counts.reshape([n for j, n in enumerate(counts.shape) if j not in fine])
    trace = float(np.sum(counts * np.trace(both, axis1=-2, axis2=-1)))
    square = float(np.sum(counts * np.sum(both * np.swapaxes(both, -1, -2), axis=(-2, -1))))
    return max(trace * trace / square, 1.0) if square > 0 else 1.0


def _waves(table: np.ndarray, k: int, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues along one factor in place of its classes, and how often each occurs."""
    n = axis.size
    table = np.broadcast_to(table, [axis.classes if j == k else size for j, size in enumerate(table.shape)])
    if axis.classes <= 2:
        basis = np.array([[1.0]]) if n == 1 else np.array([[1.0, 1.0], [n - 1.0, -1.0]])
        counts = np.array([1.0]) if n == 1 else np.array([1.0, n - 1.0])
    else:
        distance = np.minimum(np.arange(n), n - np.arange(n))
        wave = np.cos(2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        basis = np.stack([wave[np.minimum(distance, axis.classes - 1) == c].sum(axis=0) for c in range(axis.classes)])
        counts = np.ones(n)
    return np.moveaxis(np.moveaxis(table, k, -1) @ basis, -1, k), counts


def _as_matrices(table: np.ndarray, fine: Sequence[int], axes: Sequence[Axis]) -> np.ndarray:
    """The factors that are kept pair by pair as the last two dimensions."""
    rest = [k for k in range(len(axes)) if k not in fine]
    table = np.transpose(table, [*rest, *fine])
    sizes = [axes[k].size for k in fine]
    table = table.reshape(*table.shape[: len(rest)], *(n for size in sizes for n in (size, size)))
    start = len(rest)
    order = [*range(start), *range(start, table.ndim, 2), *range(start + 1, table.ndim, 2)]
    n = prod(sizes)
    return np.transpose(table, order).reshape(*table.shape[:start], n, n)
