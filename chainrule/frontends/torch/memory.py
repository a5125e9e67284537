"""What decides bits beside the numbers: where tensors lie in memory, and whether gradients are on.

Which way a matrix lies is how its products are summed, and some kernels are others where nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chainrule.ir import Node
from chainrule.ops.layout import contiguous, folded_linear
from chainrule.ops.recurrent import KINDS, without_gradients

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
    if name in KINDS and not torch.is_grad_enabled():
        return without_gradients(found)
    return found


def _taped(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()
