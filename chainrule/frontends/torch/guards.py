"""Values that Python read while the program was traced: the graph is right as long as they are the same.

A branch on ``mask.all()`` is followed as the example took it. What was read is part of the trace, so that whoever
runs the graph on other numbers can ask whether the program would have gone the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.frontends.torch import lower as lowering
from chainrule.frontends.torch.nested import tensors_in
from chainrule.ir import Node


@dataclass(frozen=True, eq=False)
class Guard:
    """One reading.

    Attributes:
        nodes: what was read. read: the function of their tensors that Python called. expected: what it gave.
        where: line and module.
    """

    nodes: tuple[Node, ...]
    read: Callable[..., Any]
    expected: Any
    where: str

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the program would read the same on these values of ``nodes``."""
        return bool(self.read(*tensors) == self.expected)


def number(tensor: torch.Tensor) -> Any:
    """``item()``"""
    return tensor.item()


def truth(tensor: torch.Tensor) -> bool:
    """``bool(tensor)``"""
    return bool(tensor)


def numbers(tensor: torch.Tensor) -> Any:
    """``tolist()``"""
    return tensor.tolist()


# Ops whose result Python sees as a number -> how their operands are read again.
READS: dict[str, Callable[..., Any]] = {
    "item": number,
    "_local_scalar_dense": number,
    "is_nonzero": truth,
    "equal": torch.equal,
    "allclose": torch.allclose,
}
VERDICTS = ("equal", "allclose")
# Ops whose result is a number known now once it is guarded that their operand is what it is.
KNOWN_THEN = ("nonzero", "nonzero_numpy", "bincount", "repeat_interleave")
# Ops whose result has a size that depends on values -> which operand decides.
_SIZED_BY_VALUES = {
    "nonzero": 0,
    "nonzero_numpy": 0,
    "masked_select": 1,
    "unique_dim": 0,
    "_unique2": 0,
    "unique_consecutive": 0,
    "bincount": 0,
    "_pack_padded_sequence": 1,
}


def deciding(func: Any, args: Sequence[Any]) -> list[torch.Tensor]:
    """The operands whose numbers decide how large the result is, or which places are written."""
    name, overload = lowering.key_of(func)
    if name == "repeat_interleave":
        return [args[0]] if overload == "Tensor" else []
    if name in ("ctc_loss", "_ctc_loss") and overload == "Tensor":
        return [args[2], args[3]]
    if name == "tensor_split" and overload == "tensor_indices_or_sections":
        return [args[1]]
    if name in _SIZED_BY_VALUES:
        return [args[_SIZED_BY_VALUES[name]]]
    if name == "index" or (name in ("index_put", "index_put_") and args[2].numel() != 1):
        return [t for t in tensors_in(args[1]) if t.dtype in (torch.bool, torch.uint8)]
    return []
