"""Attention over more positions than pairs are laid out for: the same attention over fewer, and what that changes.

What attention passes on has a part that all pairs of positions share and one of the keys that two sums have in common,
which is one over the number of keys that a row sees. So the fields are those of two shorter lengths, continued as a
straight line in the mean of one over the numbers of visible keys. Pairs of positions are exchangeable then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir.factors import merged, with_factor
from chainrule.ir.field import Field, fixed, regraded, worst
from chainrule.ir.pairs import Axis

_MOST, _FEWER = 1024, (256, 512)
_WHY = "softmax attention over fewer positions, continued"


@dataclass(frozen=True)
class Shortened:
    """The inputs over fewer rows and keys; (long, short) numbers; the mean of 1 / visible keys of both."""

    inputs: tuple[Any, ...]
    rows: tuple[int, int]
    keys: tuple[int, int]
    inverse: tuple[float, float]


def continued(parts: Sequence[Shortened], values: Sequence[Field], rows: bool) -> Field:
    """A result over all positions from those of two lengths; ``rows``: its positions are rows, not keys."""
    long, short = parts[-1].rows if rows else parts[-1].keys
    full = [v if long == short else _resized(v, long) for v in values]
    if any(not f.known for f in full):
        return full[-1]
    a, b = full
    wanted, near = parts[-1].inverse
    way = (wanted - near) / (parts[0].inverse[1] - near)
    second = np.maximum(b.second + way * (a.second - b.second), b.second * (wanted / near))
    pairs = b.pairs + way * (a.pairs - b.pairs)
    kind = worst(b.kind, "approximate")
    return replace(b, pairs=pairs, second=second, kind=kind, why=_WHY, law=None, through=None)


def shortened(node: Node, inputs: Sequence[Any]) -> list[Shortened]:
    """The attention at two shorter lengths; none where there are few enough positions."""
    if max(inputs[0].shape[-2], inputs[1].shape[-2]) <= _MOST:
        return []
    return [_shortened(node, inputs, few) for few in _FEWER]


def _shortened(node: Node, inputs: Sequence[Any], few: int) -> Shortened:
    q, k, v, *rest = inputs
    rows, keys = q.shape[-2], k.shape[-2]
    fewer_rows, fewer_keys = (max(few * n // max(rows, keys), 1) for n in (rows, keys))
    causal = bool(node.params.get("is_causal"))
    long = np.minimum(np.arange(rows) + 1.0, keys) if causal else np.full(rows, float(keys))
    short = np.minimum(np.arange(fewer_rows) + 1.0, fewer_keys) if causal else np.full(fewer_rows, float(fewer_keys))
    masks = [_mask(m, (rows, fewer_rows), (keys, fewer_keys)) for m in rest]
    return Shortened(
        (_resized(q, fewer_rows), _resized(k, fewer_keys), _resized(v, fewer_keys), *masks),
        (rows, fewer_rows),
        (keys, fewer_keys),
        (float(np.mean(1.0 / long)), float(np.mean(1.0 / short))),
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
