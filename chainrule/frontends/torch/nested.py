"""Arguments of aten calls: values, and lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def tensors_in(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors among values, in lists and tuples too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def flat(values: Sequence[Any]) -> Iterator[Any]:
    """The values, those in lists and tuples one by one."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value


def mapped(value: Any, one: Callable[[Any], Any]) -> Any:
    """The value with ``one`` applied to everything in its lists and tuples."""
    return [mapped(v, one) for v in value] if isinstance(value, (list, tuple)) else one(value)
