"""Patches of images as columns, and columns added up into images: torch's unfold and fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.ir import Node, apply, constant, lowering, product
from chainrule.ops.gathering import PUT_SUM, TAKE
from chainrule.ops.movement import reshape
from chainrule.ops.padding import padded_by_number


def _positions(
    size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> np.ndarray:
    """Positions in the padded image: (kernel elements x patches)."""
    whole = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    rows, columns = (
        np.arange(k)[:, None] * d + np.arange((n - d * (k - 1) - 1) // s + 1)[None] * s
        for n, k, d, s in zip(whole, kernel, dilation, stride, strict=True)
    )
    flat = rows[:, None, :, None] * whole[1] + columns[None, :, None, :]
    return flat.reshape(kernel[0] * kernel[1], -1)


@lowering("im2col")
def columns_of(
    x: Node, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Node:
    """``(..., C, H, W)`` as ``(..., C k, patches)``."""
    *batch, channels, height, width = map(int, x.shape)
    places = _positions((height, width), kernel, dilation, padding, stride)
    padded = padded_by_number(x, (padding[1], padding[1], padding[0], padding[0]))
    flat = reshape(padded, (*batch, channels, product(padded.shape[-2:])))
    taken = apply(TAKE, flat, constant(places), axis=len(batch) + 1)
    return reshape(taken, (*batch, channels * places.shape[0], places.shape[1]))


@lowering("col2im")
def image_of(
    x: Node,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Node:
    """The transpose: patches that overlap are added."""
    *batch, rows, patches = map(int, x.shape)
    places = _positions(size, kernel, dilation, padding, stride)
    channels = rows // places.shape[0]
    whole = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    parts = reshape(x, (*batch, channels, places.shape[0], patches))
    flat = apply(PUT_SUM, parts, constant(places), axis=len(batch) + 1, size=whole[0] * whole[1])
    image = reshape(flat, (*batch, channels, *whole))
    return padded_by_number(image, (-padding[1], -padding[1], -padding[0], -padding[0]))
