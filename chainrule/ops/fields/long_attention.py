"""Attention over more positions than pairs are laid out for: the same attention over fewer, and what that changes.

Beyond what all pairs of positions share, what attention passes on comes from keys that two sums have in common, which
is one over the number of keys that a row sees. So the fields are those of ``_FEWER`` positions, with that part scaled
by the ratio of the mean of one over the numbers of visible keys. Pairs of positions are exchangeable then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.factors import merged, with_factor
from chainrule.ir.field import Field, fixed, regraded, worst
from chainrule.ir.pairs import Axis

_MOST, _FEWER = 1024, 512
_WHY = "softmax attention over fewer positions, scaled"


@dataclass(frozen=True)
class Shortened:
    """The inputs over fewer rows and keys; ``ratio``: of the mean of 1 / visible keys, long over short."""

    inputs: tuple[Any, ...]
    rows: tuple[int, int]
    keys: tuple[int, int]
    ratio: float

    def regrown(self, value: Field, rows: bool) -> Field:
        """A result over all positions again; ``rows``: its positions are rows, not keys."""
        short, long = (self.rows if rows else self.keys)[::-1]
        found = _resized(value, long) if short != long else value
        k = _position(found)
        axis = found.axes[k]
        every = pair.total(found.pairs, k, axis)
        own = pair.traced(found.pairs, k, axis)
        far = (every - own) / max(axis.size * (axis.size - 1), 1)
        table = far + (found.pairs - far) * self.ratio
        before, after = _level(found.pairs, found), _level(table, found)
        second = found.second * (after / before if before > 0 else 1.0)
        return replace(
            found, pairs=table, second=second, kind=worst(found.kind, "approximate"), why=_WHY, law=None, through=None
        )


def shortened(node: Node, inputs: Sequence[Any]) -> Shortened | None:
    """None where there are few enough positions."""
    q, k, v, *rest = inputs
    rows, keys = q.shape[-2], k.shape[-2]
    if max(rows, keys) <= _MOST:
        return None
    fewer_rows, fewer_keys = (_FEWER if n > _MOST else n for n in (rows, keys))
    causal = bool(node.params.get("is_causal"))
    long = np.minimum(np.arange(rows) + 1.0, keys) if causal else np.full(rows, float(keys))
    short = np.minimum(np.arange(fewer_rows) + 1.0, fewer_keys) if causal else np.full(fewer_rows, float(fewer_keys))
    masks = [_mask(m, (rows, fewer_rows), (keys, fewer_keys)) for m in rest]
    return Shortened(
        (_resized(q, fewer_rows), _resized(k, fewer_keys), _resized(v, fewer_keys), *masks),
        (rows, fewer_rows),
        (keys, fewer_keys),
        float(np.mean(1.0 / long) / np.mean(1.0 / short)),
    )


def like_rows(value: Field, count: int) -> Field:
    """A cotangent over so many rows."""
    return _resized(value, count)


def _position(value: Field) -> int:
    return sum(len(x) for x in value.dims[:-2])


def _resized(value: Field, size: int) -> Field:
    """The positions (second last dimension) exchangeable, and of another number."""
    if value.shape[-2] == size:
        return value
    start, factors = _position(value), len(value.dims[-2])
    value = merged(value, start, factors) if factors else with_factor(value, len(value.dims) - 2, Axis(1))
    value = regraded(value, start, Axis(value.axes[start].size, 0))
    new = Axis(size, 0)
    mean, second = (np.mean(a, axis=start, keepdims=True) for a in (value.mean, value.second))
    dims = (*value.dims[:-2], (new,), value.dims[-1])
    array = None if value.array is None else np.mean(value.array, axis=start, keepdims=True)
    return replace(value, dims=dims, mean=mean, second=second, array=array, law=None, through=None, focus=None)


def _level(table: np.ndarray, like: Field) -> float:
    """The mean over positions with themselves."""
    for k, axis in enumerate(like.axes):
        table = pair.resolved_one(table, k, axis).mean(axis=k, keepdims=True)
    return float(table.ravel()[0])


def _mask(mask: Any, rows: tuple[int, int], keys: tuple[int, int]) -> Any:
    """Every so many rows and keys of a mask."""
    if not isinstance(mask, Field) or not mask.known:
        return mask
    picks = []
    for (long, short), n in zip((rows, keys), mask.shape[-2:], strict=True):
        picks.append(np.linspace(0, long - 1, short).round().astype(int) if n == long else np.arange(n))
    visible = mask.visible
    if visible is not None:
        whole = np.broadcast_to(visible, mask.shape)
        visible = whole[..., picks[0], :][..., picks[1]]
    if mask.array is not None and prod(mask.shape) <= 64_000_000:
        whole = np.broadcast_to(mask.array, [a.size for a in mask.axes]).reshape(mask.shape)
        return replace(fixed(whole[..., picks[0], :][..., picks[1]]), visible=visible)
    return replace(mask, visible=visible)
