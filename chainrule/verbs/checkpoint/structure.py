"""What a model returns, taken apart into tensors and put together again as the same kinds of objects.

Tuples, lists, named tuples, mappings, dataclasses, and other objects that hold tensors in their attributes (caches,
distributions) are containers; tensors in the last kind are *inner*: gradients seldom go through them.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_PLAIN = (str, bytes, int, float, bool, complex, type(None), type, types.FunctionType, types.ModuleType, nn.Module)


@dataclass(frozen=True)
class Place:
    """Where tensor number ``index`` goes."""

    index: int


@dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """A return value without its tensors.

    Attributes:
        template: the value with places in the tensors' stead. inner: per tensor, whether an opaque object holds it.
        names: per tensor, the last name or number on the way to it.
    """

    template: Any
    inner: tuple[bool, ...]
    names: tuple[str, ...]

    def filled(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The value with these tensors."""
        return _map(self.template, lambda place, *_: tensors[place.index], {}, False, "")


def taken_apart(value: Any) -> tuple[Structure, list[torch.Tensor]]:
    """(the structure, the tensors in order; one that occurs twice is there twice)."""
    tensors: list[torch.Tensor] = []
    inner: list[bool] = []
    names: list[str] = []

    def place(tensor: torch.Tensor, hidden: bool, name: str) -> Place:
        tensors.append(tensor)
        inner.append(hidden)
        names.append(name)
        return Place(len(tensors) - 1)

    template = _map(value, place, {}, False, "")
    return Structure(template, tuple(inner), tuple(names)), tensors


def _map(value: Any, leaf: Any, seen: dict[int, Any], hidden: bool, name: str) -> Any:
    """The value with tensors and places replaced; containers are new ones of their own kind."""
    if isinstance(value, (torch.Tensor, Place)):
        return leaf(value, hidden, name)
    if isinstance(value, _PLAIN):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    step = lambda v, n: _map(v, leaf, seen, hidden, str(n))  # noqa: E731
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields: Any = value
        return type(value)(*(step(v, n) for n, v in zip(fields._fields, value, strict=True)))
    if isinstance(value, tuple):
        return type(value)(step(v, n) for n, v in enumerate(value))
    if isinstance(value, list):
        return type(value)(step(v, n) for n, v in enumerate(value))
    if isinstance(value, Mapping):
        made: Any = {} if type(value) is dict else copy.copy(value)
        seen[id(value)] = value, made
        for key, part in value.items():
            made[key] = step(part, key)
        return made
    if dataclasses.is_dataclass(value):
        made = copy.copy(value)
        seen[id(value)] = value, made
        for f in dataclasses.fields(value):
            object.__setattr__(made, f.name, step(getattr(value, f.name), f.name))
        return made
    if not _holds(value, set()):
        return value
    made = copy.copy(value)
    seen[id(value)] = value, made
    made.__dict__.update({k: _map(v, leaf, seen, True, k) for k, v in vars(value).items()})
    return made


def _holds(value: Any, seen: set[int]) -> bool:
    """Whether there is a tensor, or a place for one, somewhere in it."""
    if isinstance(value, (torch.Tensor, Place)):
        return True
    if isinstance(value, _PLAIN) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_holds(part, seen) for part in _inside(value))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield from value
    else:
        yield from getattr(value, "__dict__", {}).values()


def likely(structure: Structure, tensors: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """Which outputs a backward pass probably starts from: the scalar called loss alone, else all that are not inner."""
    able = [t.requires_grad for t in tensors]
    losses = [n == "loss" and t.dim() == 0 and a for n, t, a in zip(structure.names, tensors, able, strict=True)]
    if sum(losses) == 1:
        return tuple(losses)
    found = tuple(a and not hidden for a, hidden in zip(able, structure.inner, strict=True))
    return found if any(found) else tuple(able)
