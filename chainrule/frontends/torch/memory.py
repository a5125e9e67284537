"""What decides bits beside the numbers: where tensors lie in memory, and whether gradients are on.

Which way a matrix lies is how its products are summed, and some kernels are others where nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch.aliases import elements
from chainrule.ir import Node
from chainrule.ops.attention import by_formula
from chainrule.ops.elements import take_elements
from chainrule.ops.layout import contiguous, folded_linear
from chainrule.ops.recurrent import KINDS, without_gradients
from chainrule.ops.whole_calls import tracked

_COPIES = ("contiguous", "clone")


def of_the_same_bits(
    name: str, given: Sequence[Any], args: Sequence[Any], found: list[Node], out: torch.Tensor
) -> list[Node]:
    """The nodes of a call, where its place in memory is a part of what it does.

    Args:
        name: of the op. given: its arguments as the program gave them; args: with nodes for tensors.
        found: what it was lowered to. out: its result.
    """
    if name in _COPIES and out.is_contiguous() and not given[0].is_contiguous():
        return [contiguous(found[0])]
    if name == "linear" and given[0].dim() > 2 and not given[0].is_contiguous() and _taped(given[1]):
        return [folded_linear(*args)]
    if name == "matmul" and _taped(min(given[:2], key=lambda t: t.dim())):
        return [tracked(found[0])]
    if name == "scaled_dot_product_attention" and len(given) > 3 and given[3] is not None and _taped(given[3]):
        return [by_formula(found[0])]
    if name in KINDS and not torch.is_grad_enabled():
        return without_gradients(found)
    return found


def strided(name: str, given: Sequence[Any], args: Sequence[Any], out: torch.Tensor) -> list[Node] | None:
    """The elements that ``as_strided`` reads, counted in the tensor that it is given; None for other ops.

    Raises:
        UnsupportedOpError: it reaches for memory outside of its tensor.
    """
    if name not in ("as_strided", "as_strided_copy"):
        return None
    x = given[0]
    sizes, strides, start = (*given[1:], None)[:3]
    window = x.as_strided(sizes, strides, x.storage_offset() if start is None else start)
    own, wanted = elements(x).reshape(-1), elements(window)
    place = dict(zip(own.tolist(), range(own.size), strict=True))
    found = [place.get(k, -1) for k in wanted.reshape(-1).tolist()]
    if len(place) < own.size or -1 in found:
        raise UnsupportedOpError(f"{name} of memory outside of its tensor, or that the tensor has twice")
    return [take_elements(args[0], np.asarray(found, dtype=np.int64).reshape(wanted.shape))]


def _taped(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()
