"""Whether a model still is what a step was compiled for: its parts, their settings, their hooks, what is trained.

Batches, modes, options of the optimizer and memory are compared by the call itself (``step``). A model made of torch's
own layers is compared in half a microsecond, since nothing else can change what it computes; any other through
``frontends.torch.Surroundings``, which follows what its code reads.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, getitem
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle

from chainrule.frontends.torch import Surroundings

# Nothing that these hold besides their tensors and children is read by their forward pass.
_BARE = (nn.Linear, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Sequential, nn.ModuleList)
_KNOWN = frozenset(nn.Module().__dict__)  # mode, tables and hooks
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def watch(
    model: nn.Module, loss: Any, objective: Any, surroundings: Surroundings, trained: bool = True
) -> Callable[[], bool]:
    """A function that is True as long as model, loss and objective are what they are now.

    ``surroundings`` are those of the three, or of those that there are. ``trained``: which parameters are trained
    makes a difference.
    """
    modules = [*model.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())]
    own = objective is None and (loss is None or _is_torchs(loss)) and all(map(_is_torchs, modules))
    if not own or _hooked(modules):
        number = surroundings.now()
        return lambda: surroundings.now() == number
    parts = [(m._modules, [*m._modules.values()]) for m in modules if m._modules]
    settings = [
        (m.__dict__, name, value)
        for m in modules
        if type(m) not in _BARE
        for name, value in m.__dict__.items()
        if name not in _KNOWN
    ]
    holders, names = [held for held, _, _ in settings], [name for _, name, _ in settings]
    values = [value for _, _, value in settings]
    parameters, moves = list(model.parameters()) if trained else [], attrgetter("requires_grad")
    flags, handles = list(map(moves, parameters)), RemovableHandle.next_id

    def same() -> bool:
        nonlocal handles
        if list(map(moves, parameters)) != flags:
            return False
        for children, then in parts:
            if [*children.values()] != then:
                return False
        try:
            if list(map(getitem, holders, names)) != values:
                return False
        except KeyError:
            return False
        if RemovableHandle.next_id != handles:  # a hook was made somewhere
            if _hooked(modules):
                return False
            handles = RemovableHandle.next_id
        return True

    return same


def _hooked(modules: list[nn.Module]) -> bool:
    """Whether hooks run with these modules: theirs, or those of all modules."""
    return bool(_has_any_global_hook()) or any(getattr(m, name) for m in modules for name in _HOOKS)


def _is_torchs(function: Any) -> bool:
    owner = type(function) if isinstance(function, nn.Module) else function
    return (getattr(owner, "__module__", None) or "").split(".")[0] == "torch"
