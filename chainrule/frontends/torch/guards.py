"""Values that Python read while the program was traced: the graph is right as long as they are the same.

A branch on ``mask.all()`` is followed as the example took it. What was read is part of the trace, so that whoever
runs the graph on other numbers can ask whether the program would have gone the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
