"""What a write in place does to other tensors on the same memory.

In a graph every value is a value: after ``y[:, 1:] = z`` the tensor ``y``, and every view of it that is read later,
mean something new. What that is follows from the strides alone: each element of a tensor on the memory either was
written, and is then found in the written value, or is what it was.
"""

from __future__ import annotations

import numpy as np
import torch

from chainrule.errors import UnsupportedOpError
from chainrule.ir import OPS, Node, apply, constant
from chainrule.ops.elements import take_elements
from chainrule.ops.movement import reshape


def elements(tensor: torch.Tensor) -> np.ndarray:
    """Which elements of its memory a tensor has: their numbers, in the shape of the tensor."""
    found = np.full((), tensor.storage_offset(), dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = found[..., None] + np.arange(size, dtype=np.int64) * stride
    return found


def after_write(tensor: torch.Tensor, before: Node, written: torch.Tensor, value: Node) -> Node | None:
    """What ``tensor`` means once ``written``, on the same memory, has got ``value``; None if it is not concerned.

    Args:
        before: what it meant.
    """
    if tensor.dtype != written.dtype:
        return None if tensor.numel() == 0 else _reinterpreted(tensor, written)
    own, theirs = elements(tensor).reshape(-1), elements(written).reshape(-1)
    if not own.size or not theirs.size:
        return None
    at = np.full(max(own.max(), theirs.max()) + 1, -1, dtype=np.int64)
    at[theirs] = np.arange(theirs.size)
    source = at[own]
    hit = source >= 0
    if not hit.any():
        return None
    shape = tuple(tensor.shape)
    if hit.all():
        if np.array_equal(source, np.arange(theirs.size)):
            return reshape(value, shape)
        return take_elements(value, source.reshape(shape))
    new = take_elements(value, np.maximum(source, 0).reshape(shape))
    return apply(OPS["where"], constant(hit.reshape(shape)), new, before)


def _reinterpreted(tensor: torch.Tensor, written: torch.Tensor) -> Node:
    raise UnsupportedOpError(
        "a write into memory that is also read in another dtype",
        given=f"{written.dtype} written, {tensor.dtype} read",
        required="one dtype",
    )
