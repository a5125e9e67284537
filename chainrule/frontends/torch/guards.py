"""Values that Python read while the program was traced: the graph is right as long as they are the same.

A branch on ``mask.all()`` is followed as the example took it. What was read is part of the trace, so that whoever
runs the graph on other numbers can ask whether the program would have gone the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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


class OutsideDraws:
    """Draws from NumPy's or Python's global generator while a program was traced (masks of time, layer drop).

    They are no ops of the graph, which has their results as numbers. It is the program from the same states only; a
    run of it then leaves the generators where the program leaves them.
    """

    def __init__(self) -> None:
        self._before = self._after = _outside()

    def end(self) -> bool:
        """The program has run; whether it drew."""
        self._after = _outside()
        return not _equal(self._before, self._after)

    def guard(self) -> Guard:
        """Holds where the program would draw the same."""
        return Guard((), self._again, True, "a draw from NumPy's or Python's random generator")

    def _again(self) -> bool:
        if not _equal(_outside(), self._before):
            return False
        np.random.set_state(self._after[0])
        random.setstate(self._after[1])
        return True


def _outside() -> tuple[Any, Any]:
    return np.random.get_state(), random.getstate()


def _equal(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    (a, own), (b, others) = one, other
    return own == others and a[0] == b[0] and bool((a[1] == b[1]).all()) and a[2:] == b[2:]
