"""A table of rows that is used twice: to look tokens up, and as the weights that score them at the end.

What a token's row has passed on without a mixing by other weights (residual streams, norms, factors) is still in the
value that the table multiplies: x = a e(token) + rest. The score of the token itself then has the mean a |e|^2, all
others have none: one score stands out of each vector, and softmax sees it (:class:`Spike`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from chainrule.ir.field import Dims, Field, Spike, within_budget
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.lookup import alike


@dataclass(frozen=True)
class Peak:
    """What one score with mean ``mu`` among n others does to softmax: E[p] and E[p^2] of it, what the others keep."""

    first: float
    second: float
    rest: float


def scored(found: Field, x: Field, table: Field) -> Field:
    """The scores ``x @ table'``, with the one that stands out where x holds rows of this table."""
    echo = x.echo
    if echo is None or echo.source not in table.sources or x.shape[-1] != table.shape[-1] or not found.known:
        return found
    if x.shape[:-1] != echo.rows.shape and x.shape[:-1] != (echo.rows.size,):
        return found
    mu = echo.factor * table.shape[1] * table.mean_square
    share = mu * mu / table.shape[0]
    rows = Field(
        x.dims[:-1],
        np.array(0.0),
        np.array(0.0),
        np.array(0.0),
        array=echo.rows.reshape([a.size for d in x.dims[:-1] for a in d]),
    )
    same = alike(rows, rows.dims, table.shape[0])
    return replace(within_budget(_with_same(found, same * share, share)), spike=Spike(mu, echo.rows))


def spike_share(x: Field) -> float:
    """The part of the scores' mean square that the mean of those that stand out is."""
    return min(x.spike.mean**2 / x.shape[-1] / x.mean_square, 1.0) if x.spike is not None else 0.0


def echo_share(x: Field) -> float:
    """The part of a value's mean square that the rows are that were looked up."""
    return min(x.echo.mean_square / x.mean_square, 1.0) if x.echo is not None else 0.0


def _with_same(value: Field, added: np.ndarray, share: float) -> Field:
    """More on pairs of equal units of the last dimension: a table over the leading factors."""
    lead, last = sum(len(d) for d in value.dims[:-1]), value.dims[-1]
    inside = np.zeros([a.classes for a in last])
    inside[np.ix_(*(a.same for a in last))] = 1.0
    more = added.reshape(*added.shape[:lead], *(1,) * len(last)) * inside.reshape(*(1,) * lead, *inside.shape)
    pairs = np.broadcast_to(value.pairs, np.broadcast_shapes(value.pairs.shape, more.shape)) + more
    return replace(value, pairs=pairs, second=value.second + share)


def peak(spike: Spike, count: int, variance: float) -> Peak:
    """Softmax of count - 1 normal scores of this variance and one with a mean (their sum taken as certain)."""
    z, w = np.polynomial.hermite_e.hermegauss(41)
    w = w / w.sum()
    log_others = np.log(max(count - 1, 1)) + variance / 2
    p = 1.0 / (1.0 + np.exp(log_others - spike.mean - np.sqrt(variance) * z))
    return Peak(float(w @ p), float(w @ p**2), float(w @ (1 - p) ** 2))


def with_peak(p: Field, found: Peak, spike: Spike, axis: int) -> Field:
    """Probabilities of which one in each vector is the peak's."""
    if axis != len(p.dims) - 1:
        return p
    n = p.shape[axis]
    dims = p.dims[:-1]
    less = replace(p, pairs=p.pairs * found.rest, second=p.second * found.rest)
    same = alike(_numbers(spike.rows, dims), dims, n)
    axes = [a for dim in dims for a in dim]
    square = np.where(_equal(same, axes), found.second, found.first**2)  # one vector with itself, or two
    return _with_same(less, same * square / n, found.second / n)


def _numbers(rows: np.ndarray, dims: Dims) -> Field:
    """Tokens as a field of given numbers."""
    nothing = np.array(0.0)
    return Field(dims, nothing, nothing, nothing, array=rows.reshape([a.size for dim in dims for a in dim]))


def _equal(table: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """Which classes of pairs are of a place with itself."""
    shape = [a.classes for a in axes]
    found = np.zeros(shape, dtype=bool)
    found[np.ix_(*(a.same for a in axes))] = True
    return found
