"""Multi-layer perceptrons as torch modules, and arrays in scikit-learn's layout in and out of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# scikit-learn's names; any other is one of torch.nn.functional
NAMES: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "celu": nn.CELU,
    "softsign": nn.Softsign,
}


class _Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def activation_module(activation: Any) -> nn.Module:
    """An activation by name, as a module, as a class of modules, or as a function of a tensor.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(activation, nn.Module):
        return activation
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        return activation()
    if callable(activation):
        function: Any = activation
        return _Function(function)
    if activation in NAMES:
        return NAMES[activation]()
    function = getattr(F, activation, None) if isinstance(activation, str) else None
    if function is None:
        raise ValueError(
            f"activation={activation!r} is not known: one of {', '.join(NAMES)}, a function of "
            "torch.nn.functional, an nn.Module, or a function of a tensor"
        )
    return _Function(function)


def own_activation(activation: Any) -> nn.Module | None:
    """A copy of a module, or a class of modules made: what may be trained, one for all layers; None for functions."""
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation)
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        return activation()
    return None


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))


def perceptron(sizes: Sequence[int], activation: Any, dropout: float, dtype: torch.dtype) -> nn.Sequential:
    """Linear layers with the activation (and dropout) between them; weights are not drawn here."""
    layers: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear.__new__(nn.Linear)  # its __init__ would draw numbers from the global generator
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = inputs, outputs
        layer.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        layer.bias = nn.Parameter(torch.empty(outputs, dtype=dtype))
        layers.append(layer)
        if k < len(sizes) - 2:
            between = activation_module(activation)
            layers.append(between.to(dtype) if _has_state(between) else between)
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The layers with weights, first to last."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def set_weights(module: nn.Module, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]) -> None:
    """scikit-learn's arrays, (inputs, outputs), into the layers."""
    with torch.no_grad():
        for layer, coef, intercept in zip(linear_layers(module), coefs, intercepts, strict=True):
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T)))
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(intercept)))


def get_weights(module: nn.Module, dtype: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The layers as scikit-learn's arrays, copied."""
    layers = linear_layers(module)
    coefs = [np.array(layer.weight.detach().numpy().T, dtype=dtype, order="C") for layer in layers]
    return coefs, [np.array(layer.bias.detach().numpy(), dtype=dtype) for layer in layers]


def forward(
    x: np.ndarray, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray], activation: Any, out: str
) -> np.ndarray:
    """What the network with these arrays predicts, computed in the dtype of ``x``."""
    between = activation_module(activation)
    with torch.no_grad():
        h = torch.from_numpy(np.ascontiguousarray(x))
        if isinstance(activation, nn.Module):
            between = copy.deepcopy(between).to(h.dtype).eval()
        for k, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
            w, b = (torch.from_numpy(np.asarray(a)).to(h.dtype) for a in (coef, intercept))
            h = torch.addmm(b, h, w)
            h = between(h) if k < len(coefs) - 1 else h
        return OUTPUTS[out](h).numpy()


# what the last layer goes through to be a prediction
OUTPUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda h: h,
    "softmax": lambda h: h.softmax(1),
    "logistic": lambda h: h.sigmoid(),
    "exp": lambda h: h.exp(),
}
