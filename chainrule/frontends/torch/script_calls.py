"""What a call of a torch function in a script is: one that only asks, one that writes over a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch.batch import leaves


def writes_a_leaf(func: Any, out: Any, given: Any) -> bool:
    """Whether a call wrote over a parameter, as initialisation and moving averages do: it is not to be made again."""
    own = {id(t) for _, t in leaves(given)}
    written = [t for _, t in leaves(out) if id(t) in own]
    drawn = getattr(func, "__module__", "") == "torch.nn.init"
    # A view that was made without gradients may not be asked whether it is a leaf.
    return any(
        isinstance(t, nn.Parameter) or drawn or (t.requires_grad and not torch.is_grad_enabled() and not t._is_view())
        for t in written
    )


def spelled(func: Callable[..., Any]) -> str:
    """The name of a torch function; of the getter of an attribute, the attribute's."""
    owner = getattr(func, "__self__", None)  # the getter of an attribute
    name = getattr(func, "__name__", str(func))
    return str(getattr(owner, "__name__", name)) if name == "__get__" else name


_QUESTIONS = frozenset(
    "shape dtype device is_leaf requires_grad grad grad_fn size dim numel __len__ is_floating_point layout is_sparse "
    "ndim __repr__ __format__ retain_grad register_hook is_cuda is_complex stride names zero_ _backward_hooks".split()
)


def asks(func: Callable[..., Any]) -> bool:
    """Whether a function only asks something of a tensor, rather than taking its numbers."""
    return spelled(func) in _QUESTIONS
