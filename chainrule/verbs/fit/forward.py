"""``compile_forward``: a model's forward pass as compiled code, for small networks that are asked often."""

from __future__ import annotations

from typing import Any

import torch

from chainrule.errors import BackendError, MissingExtraError, ModelError


def compile_forward(model: torch.nn.Module) -> Any:
    """``f(x)``: what ``model(x)`` returns, without gradients, by native code on the model's own parameters.

    Compiled once for each shape of inputs, and again where the model changes. Parameters are read where they
    are: training goes on beside it.

    Raises:
        ModelError: not a torch module.
        UnsupportedOpError, BackendError: at the first call, where native code does not cover the model.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).eval()
    >>> f = cr.compile_forward(net)
    >>> torch.allclose(f(torch.ones(1, 3)), net(torch.ones(1, 3)), atol=1e-6)
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise ModelError("compile_forward takes a torch module", given=type(model).__name__)
    try:
        from chainrule.verbs.native.forward import NativeForward
    except ModuleNotFoundError as error:
        raise MissingExtraError("compile_forward", error.name or "llvmlite", "torch") from error
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise BackendError("native code runs on the CPU", given="parameters on another device")
    return NativeForward(model)
