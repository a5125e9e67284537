"""When two models are the same program: a key for what a trace would find, without tracing.

Only for modules whose forward is torch's own, without hooks: what they do follows from their class, their plain
attributes and the shapes of their tensors. Everything else has no key, and is traced.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import is_lazy

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_TORCH = ("torch", "torch.nn.functional", "torch._C._nn")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_HELD = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook")


def key_of(model: Any) -> Hashable | None:
    """What determines the trace of a module besides its batch; None where only a trace can tell."""
    if not isinstance(model, nn.Module) or _has_any_global_hook():
        return None
    tensors: dict[int, int] = {}  # identity -> number: parameters that are tied
    return _module(model, tensors)


def key_of_loss(loss: Any) -> Hashable | None:
    """The same for a loss: one of torch's without tensors of its own, or a function of torch's."""
    if isinstance(loss, nn.Module):
        key = key_of(loss)
        return None if any(True for _ in loss.parameters()) or any(True for _ in loss.buffers()) else key
    module = getattr(loss, "__module__", "")
    return (module, loss.__qualname__) if module == "torch.nn.functional" else None


def _module(module: nn.Module, tensors: dict[int, int]) -> Hashable | None:
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules.") or "forward" in module.__dict__:
        return None
    if any(module.__dict__.get(name) for name in _HOOKS):
        return None
    own: list[Hashable] = []
    for name, value in module.__dict__.items():
        if name in _HOOKS or name in _HELD or name.startswith(("_state_dict", "_load_state_dict")):
            continue
        plain = _plain(value)
        if plain is None:
            return None
        own.append((name, plain))
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is None:
                own.append((name, None))
                continue
            if is_lazy(tensor) or type(tensor) not in (torch.Tensor, nn.Parameter) or tensor._backward_hooks:
                return None
            number = tensors.setdefault(id(tensor), len(tensors))
            own.append((name, tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad, number))
    for name, child in module._modules.items():
        inner = None if child is None else _module(child, tensors)
        if child is not None and inner is None:
            return None
        own.append((name, inner))
    return kind, tuple(own)


def _plain(value: Any) -> Hashable | None:
    """A value that code may depend on, as a key; None if it cannot be one."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, tuple | list):
        parts = tuple(_plain(v) for v in value)
        return None if None in parts else (type(value), parts)
    if getattr(value, "__module__", "") in ("torch", "torch.nn.functional", "torch._C._nn") and hasattr(
        value, "__name__"
    ):
        return value.__module__, value.__name__
    return None
