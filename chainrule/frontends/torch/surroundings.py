"""What a function reads besides its arguments: closed-over values, globals, defaults, the modules among them.

A trace of a function holds as long as these are what they were. Tensors count by identity (their numbers are read at
every call), numbers and texts by value, modules by their mode and attributes, functions by what they read in turn.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from operator import attrgetter, getitem, is_
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import nn

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def fingerprint(function: Any) -> tuple[Any, ...]:
    """Equal for two moments at which the function would do the same ops on the same arguments.

    The objects in it are held, so that no identity is used twice.
    """
    return tuple(_parts(function, set()))


def _wants_gradient(part: Any) -> bool:
    return isinstance(part, tuple) and isinstance(part[0], _Same) and part[-1] is True


def modules_of(function: Any) -> list[nn.Module]:
    """The outermost modules that a function is or reads."""
    found = [held.value for held in _parts(function, set()) if isinstance(held, _Same) and _is_module(held.value)]
    inner = {id(m) for root in found for m in root.modules() if m is not root}
    return [m for m in dict.fromkeys(found) if id(m) not in inner]


class Surroundings:
    """Numbers for the moments of a function: two moments have one number where it reads the same.

    A glance decides first, whether every container that it reads still holds the very same objects; that takes a tenth
    of a millisecond for a model of a hundred modules, the fingerprint a hundred times as long.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._reads = (function, *_OF_ALL_MODULES)
        self._known: dict[tuple[Any, ...], int] = {}
        self._glance: _Glance | None = None
        self._now, self._wants = -1, False

    def __reduce__(self) -> Any:
        return Surroundings, (self._function,)

    def now(self) -> int:
        """The number of this moment."""
        if self._glance is None or not self._glance.same():
            reads = fingerprint(self._reads)
            self._now = self._known.setdefault(reads, len(self._known))
            self._wants = any(map(_wants_gradient, reads))
            self._glance = _Glance(self._reads)
        return self._now

    @property
    def wants_gradient(self) -> bool:
        """Whether autograd differentiates by a tensor that is read, at the latest moment."""
        return self._wants


# What every module holds besides its mode and its three tables: mappings of hooks, which are looked at themselves.
_HOOKS = frozenset(nn.Module().__dict__) - {"training", "_parameters", "_buffers", "_modules"}
_OF_ALL_MODULES = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)
_looks = attrgetter("shape", "dtype", "device", "requires_grad")


class _Glance:
    """May say that something changed where it did not (a number gave way to an equal one), never the contrary."""

    def __init__(self, function: Any) -> None:
        self._empty: list[Any] = []  # most of a module's containers: its hooks
        self._mappings: list[dict[Any, Any]] = []
        self._entries: tuple[list[dict[Any, Any]], list[Any], list[Any]] = [], [], []  # mapping, key, value
        self._tensors: list[torch.Tensor] = []
        self._others: list[tuple[Any, tuple[Any, ...]]] = []
        self._collect(function, set())
        self._lengths, self._looked = list(map(len, self._mappings)), list(map(_looks, self._tensors))

    def same(self) -> bool:
        """True: nothing that the function reads has been replaced, added or taken away."""
        mappings, keys, values = self._entries
        try:
            return (
                not any(self._empty)
                and list(map(len, self._mappings)) == self._lengths
                and all(map(is_, map(getitem, mappings, keys), values))
                and list(map(_looks, self._tensors)) == self._looked
                and all(_same_objects(tuple(_inside(value)), then) for value, then in self._others)
            )
        except KeyError:
            return False

    def _collect(self, value: Any, seen: set[int]) -> None:
        if isinstance(value, _SIMPLE) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
            return
        parts = tuple(_inside(value))
        if isinstance(value, (dict, list, set)) and not value:
            self._empty.append(value)
        elif isinstance(value, (dict, nn.Module)):
            self._watch(value.__dict__ if isinstance(value, nn.Module) else value, isinstance(value, nn.Module))
        elif not isinstance(value, tuple) and not _is_library(value):
            self._others.append((value, parts))
        for part in parts:
            self._collect(part, seen)

    def _watch(self, held: dict[Any, Any], module: bool) -> None:
        self._mappings.append(held)
        for key, value in held.items():
            if not module or key not in _HOOKS:
                for entries, entry in zip(self._entries, (held, key, value), strict=True):
                    entries.append(entry)


def _same_objects(now: tuple[Any, ...], then: tuple[Any, ...]) -> bool:
    return len(now) == len(then) and all(map(_is_same, now, then))


def _is_same(now: Any, then: Any) -> bool:
    return now is then or (isinstance(now, int) and type(now) is type(then) and now == then)  # lengths are made anew


class _Same:
    """Equal by identity, and keeps what it stands for alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, _SIMPLE):
        yield (type(value), value)
        return
    if isinstance(value, torch.Tensor):
        yield (_Same(value), tuple(value.shape), value.dtype, value.device, value.requires_grad)
        return  # see _wants_gradient
    yield _Same(value)
    if id(value) in seen:
        return
    seen.add(id(value))
    for part in _inside(value):
        yield from _parts(part, seen)


def _inside(value: Any) -> Iterator[Any]:
    """What a value is made of, as far as a program might read it."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        yield from _read_by(value)
    elif isinstance(value, nn.Module):
        yield from (type(value).forward, value.training)
        for name, held in value.__dict__.items():
            if name != "training":
                yield held
    elif isinstance(value, Mapping):
        yield len(value)
        for key, held in value.items():
            yield from (key, held)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield len(value)
        yield from value
    elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType)):
        yield from vars(value).values()


def _read_by(function: types.FunctionType) -> Iterator[Any]:
    if _is_library(function):
        return
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in sorted(_names(function.__code__)):
        held = function.__globals__.get(name)
        if held is not None and not isinstance(held, (type, types.ModuleType)) and not _is_library(held):
            yield held


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_library(value: Any) -> bool:
    """torch's and chainrule's own functions do not change."""
    module = getattr(value, "__module__", None) or ""
    return isinstance(value, (types.BuiltinFunctionType, types.FunctionType)) and (
        module.split(".")[0] in ("torch", "numpy", "math", "chainrule")
    )
