"""Arguments of a call: tensors in nested lists, and lists with something else in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors, in order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def flat(values: Sequence[Any]) -> Iterator[Any]:
    """Everything that is no list, in order."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value


def mapped(value: Any, one: Callable[[Any], Any]) -> Any:
    """The same lists with ``one`` of everything in them."""
    return [mapped(v, one) for v in value] if isinstance(value, (list, tuple)) else one(value)
