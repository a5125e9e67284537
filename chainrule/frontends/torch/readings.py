"""Numbers that Python, or a kernel's sizes, take from tensors: which ops read, and which of their operands.

What is read of a tensor that depends on the inputs is refused, or guarded (``guards``): the graph is then right as
long as the same is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from chainrule.frontends.torch import guards
from chainrule.frontends.torch.lower import key_of
from chainrule.frontends.torch.nesting import tensors

# Ops whose result Python sees as a number -> how their operands are read again.
READS: dict[str, Callable[..., Any]] = {
    "item": guards.number,
    "_local_scalar_dense": guards.number,
    "is_nonzero": guards.truth,
    "equal": torch.equal,
    "allclose": torch.allclose,
}
VERDICTS = ("equal", "allclose")
# Ops whose result is a number known now once it is guarded that their operand is what it is.
KNOWN_THEN = ("nonzero", "nonzero_numpy", "bincount", "repeat_interleave")
# Ops whose result has a size that depends on values -> which operand decides.
SIZED_BY_VALUES = {
    "nonzero": 0,
    "nonzero_numpy": 0,
    "masked_select": 1,
    "unique_dim": 0,
    "_unique2": 0,
    "unique_consecutive": 0,
    "bincount": 0,
    "_pack_padded_sequence": 1,
}


def deciding_operands(func: Any, args: Sequence[Any]) -> list[torch.Tensor]:
    """The operands whose numbers decide how large the result is, or which places are written."""
    name, overload = key_of(func)
    if name == "repeat_interleave":
        return [args[0]] if overload == "Tensor" else []
    if name in ("ctc_loss", "_ctc_loss") and overload == "Tensor":
        return [args[2], args[3]]
    if name == "tensor_split" and overload == "tensor_indices_or_sections":
        return [args[1]]
    if name in SIZED_BY_VALUES:
        return [args[SIZED_BY_VALUES[name]]]
    if name == "index" or (name in ("index_put", "index_put_") and args[2].numel() != 1):
        return [t for t in tensors(args[1]) if t.dtype in (torch.bool, torch.uint8)]
    return []
