"""What a traced model was specialised to besides its tensors' values, to notice that a callback changed it."""

from __future__ import annotations

from typing import Any

from torch import nn

_SIMPLE = (bool, int, float, str, type(None))


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Modes, plain attributes and hooks of every module, and which parameters are trained."""
    modules = tuple(
        (
            id(module),
            tuple((k, v) for k, v in module.__dict__.items() if isinstance(v, _SIMPLE)),
            tuple(module._forward_hooks) + tuple(module._forward_pre_hooks),
        )
        for module in model.modules()
    )
    return modules, tuple((id(p), p.requires_grad) for p in model.parameters())
