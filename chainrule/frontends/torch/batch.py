"""The calling convention of every verb on a model: what a batch is, and how a model is called with it.

``batch = (inputs, target)`` with a loss; inputs are a tensor, a tuple (positional) or a mapping (keywords).
With ``loss="model"`` or without a loss the batch is the inputs alone; an objective takes the batch as it is.
Everything else
in a batch than tensors is static: part of the program, not an input.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.ir import shape_text

Named = list[tuple[str, torch.Tensor]]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order, named after their place."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, part in _parts(value):
        yield from leaves(part, f"{name}_{key}" if name else str(key))


def with_leaves(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The same structure with other tensors, taken from ``tensors`` in order."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    parts = [(key, with_leaves(part, tensors)) for key, part in _parts(value)]
    if isinstance(value, Mapping):
        return dict(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{str(key): part for key, part in parts})
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(part for _, part in parts))
    return type(value)(part for _, part in parts) if isinstance(value, (tuple, list)) else value


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    if hasattr(value, "_fields"):  # a named tuple
        names: Any = value._fields  # type: ignore[union-attr]
        return [(name, getattr(value, name)) for name in names]
    return list(enumerate(value)) if isinstance(value, (tuple, list)) else []


def named_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Named:
    """The tensors of a call, called after the function's own argument names."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    found: Named = []
    for k, value in enumerate(args):
        found += leaves(value, names[k] if k < len(names) and names[k] not in ("args", "kwargs") else f"x_{k + 1}")
    return found + [pair for key, value in kwargs.items() for pair in leaves(value, str(key))]


def split(batch: Any) -> tuple[Any, Any]:
    """A batch as inputs and target.

    Raises:
        ModelError: it is not a pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise ModelError(
        "with a loss, a batch is a pair of inputs and target",
        given=describe(batch),
        required="batch = (inputs, target)",
        instead='(batch, target), or loss="model" if the model computes its own loss',
    )


def named_batch(model: Callable[..., Any], batch: Any, mode: str) -> Named:
    """The tensors of a batch with their names; ``mode`` is "loss", "model", "objective" or "none".

    One input is ``x``, the target ``y``; several inputs have the names of the model's arguments or of the
    keys.
    """
    if mode == "objective":
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        return [*leaves(batch[0], "x"), *leaves(batch[1], "y")] if pair else list(leaves(batch, "x"))
    inputs, target = split(batch) if mode == "loss" else (batch, None)
    if isinstance(inputs, Mapping):
        found = named_arguments(model, (), inputs)
    elif isinstance(inputs, tuple):
        found = named_arguments(getattr(model, "forward", model), inputs, {})
    else:
        found = list(leaves(inputs, "x"))
    if not found:
        raise ModelError(
            "the batch holds no tensor",
            given=describe(inputs),
            required="inputs as a tensor, a tuple of tensors or a dict of tensors",
            instead="torch.as_tensor(...) of it",
        )
    taken = any(re.match(r"y\b", name) for name, _ in found)
    return found + list(leaves(target, "target" if taken else "y"))


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """The model on its inputs: a tuple is positional, a mapping keywords, anything else the one argument."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def describe(value: Any) -> str:
    """A batch in one line: types and shapes."""
    if isinstance(value, torch.Tensor):
        return f"tensor ({shape_text(tuple(value.shape))}) {value.dtype}"
    parts = _parts(value)
    if not parts:
        return type(value).__name__
    shown = [f"{key}: {describe(part)}" if isinstance(value, Mapping) else describe(part) for key, part in parts[:6]]
    return f"{type(value).__name__} of {len(parts)}: {', '.join(shown)}{', ...' if len(parts) > 6 else ''}"
