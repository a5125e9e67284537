"""Padding beyond zeros: by a number, by reflection, by the edge, around in a circle. Each dimension is gathered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.ir import Node, apply, constant, lowering
from chainrule.ops.arithmetic import where
from chainrule.ops.gathering import TAKE
from chainrule.ops.slicing import PAD, SLICE


def _amounts(x: Node, pad: Sequence[int]) -> list[tuple[int, int, int]]:
    """(dimension, before, after) of torch's list, which starts with the last dimension."""
    return [(x.type.rank - 1 - k, pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)]


@lowering("constant_pad_nd")
def padded_by_number(x: Node, pad: Sequence[int], value: Any = 0) -> Node:
    """Negative amounts cut."""
    rank = x.type.rank
    low, high = [0] * rank, [0] * rank
    starts, stops = [0] * rank, [int(n) for n in x.shape]
    for axis, before, after in _amounts(x, pad):
        low[axis], high[axis] = max(before, 0), max(after, 0)
        starts[axis], stops[axis] = max(-before, 0), int(x.shape[axis]) - max(-after, 0)
    if any(starts) or tuple(stops) != x.shape:
        x = apply(SLICE, x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * rank)
    if not any(low) and not any(high):
        return x
    zeros = (0,) * rank
    result = apply(PAD, x, low=tuple(low), high=tuple(high), interior=zeros)
    if value == 0:
        return result
    inside = np.zeros(tuple(int(n) for n in result.shape), dtype=bool)
    inside[tuple(slice(a, a + int(n)) for a, n in zip(low, x.shape, strict=True))] = True
    return where(constant(inside), result, constant(value, x.type.dtype))


def _gathered(x: Node, pad: Sequence[int], position: Any) -> Node:
    for axis, before, after in _amounts(x, pad):
        size = int(x.shape[axis])
        if before or after:
            x = apply(TAKE, x, constant(position(np.arange(-before, size + after), size)), axis=axis)
    return x


@lowering("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def reflected(x: Node, pad: Sequence[int]) -> Node:
    """Mirrored at the edge, which is not repeated."""
    return _gathered(x, pad, lambda i, n: (n - 1) - np.abs((n - 1) - np.abs(i)))


@lowering("replication_pad1d", "replication_pad2d", "replication_pad3d")
def replicated(x: Node, pad: Sequence[int]) -> Node:
    """The edge repeated."""
    return _gathered(x, pad, lambda i, n: np.clip(i, 0, n - 1))


@lowering("_pad_circular")
def circular(x: Node, pad: Sequence[int]) -> Node:
    """The other side continued; negative amounts cut first."""
    cut = padded_by_number(x, [min(p, 0) for p in pad])
    return _gathered(cut, [max(p, 0) for p in pad], lambda i, n: i % n)
