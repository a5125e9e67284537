"""The weight layers of a recorded run: products of a value that depends on the batch with a parameter.

A layer is where the program computes one, whatever module it is in; its output is a pre-activation z.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from chainrule.verbs.diagnose.sharding import whole
from chainrule.verbs.diagnose.torch_ops import ACTIVATIONS, CONVOLUTIONS, MOVEMENT, PRODUCTS, RECURRENT
from chainrule.verbs.diagnose.values import Call, Value
from chainrule.verbs.diagnose.wide import norm

_KEEPS = MOVEMENT | {"mul", "div", "add", "dropout", "neg"}


@dataclass(frozen=True)
class Layer:
    """One weight layer.

    Attributes:
        name: for messages. parameter: dotted name of the weight. call: the product.
        last: whether its value reaches the loss without another weight. gain: rms(W) sqrt(fan_in).
        back: rms(W) sqrt(fan_out), what the gradient is scaled by. forward, backward: rms of z and of dL/dz.
        activation: the call that squashes z, if the next thing that happens to it is one.
    """

    name: str
    parameter: str
    call: Call
    last: bool
    gain: float
    back: float
    forward: float
    backward: float
    activation: Call | None

    @property
    def value(self) -> Value:
        """z."""
        return self.call.outputs[0]


def label(parameter: str) -> str:
    """What a weight's layer is called: its module where the parameter is the module's ``weight``, else itself."""
    module, _, own = parameter.rpartition(".")
    return (
        module if (module and own.startswith(("weight_ih", "weight_hh"))) or (own == "weight" and module) else parameter
    )


def layers_of(subject: Any, seen: Any) -> list[Layer]:
    """All weight layers in the order in which they ran."""
    names = {v: n for n, v in seen.parameters.items()}
    products: list[tuple[Call, str]] = []
    for call in seen.tape.calls:
        name = weight_of(call, names)
        if name is not None and call.outputs:
            products.append((call, name))
    outputs = {call.outputs[0] for call, _ in products}
    inner = set()
    for call, _ in products:
        inner |= _nearest_above(call, outputs)
    used: dict[str, int] = {}
    sizes: dict[str, float] = {}
    found = []
    for call, name in products:
        used[name] = used.get(name, 0) + 1
        weight = subject.parameters[name]
        if name not in sizes:
            sizes[name] = rms(weight)
        fan_in, fan_out = fans(call, tuple(weight.shape))
        z = call.outputs[0]
        found.append(
            Layer(
                name=label(name) + (f" (use {used[name]})" if used[name] > 1 else ""),
                parameter=name,
                call=call,
                last=z not in inner,
                gain=sizes[name] * fan_in**0.5,
                back=sizes[name] * fan_out**0.5,
                forward=z.scale,
                backward=z.slope,
                activation=activation_of(z),
            )
        )
    return found


def weight_of(call: Call, names: dict[Value, str]) -> str | None:
    """The parameter of rank two or more that a call multiplies a value of the batch with."""
    if call.name in RECURRENT:
        return next((names[v] for v in call.inputs if v in names and len(v.shape) == 2), None)
    places = PRODUCTS.get(call.name)
    if places is None or not any(v.data for v in call.inputs):
        return None
    for value in call.inputs:
        source = value
        while source.producer is not None and source.producer.name in _KEEPS and not source.data:
            source = next((v for v in source.producer.inputs if v.learned), source.producer.inputs[0])
        if source in names and len(source.shape) >= 2 and not value.data:
            return names[source]
    return None


def fans(call: Call, shape: tuple[int, ...]) -> tuple[float, float]:
    """How many terms an entry of the output, and of the gradient of the input, is the sum of."""
    total, outputs = prod(shape), call.outputs[0].shape
    if call.name in RECURRENT:
        return float(shape[-1]), float(shape[0])
    if call.name in CONVOLUTIONS:
        out, window = shape[0], prod(shape[2:])
        return total / max(out, 1), float(out * window)
    last = outputs[-1] if outputs and outputs[-1] in shape else shape[0]
    return total / max(last, 1), float(last)


def _nearest_above(call: Call, stops: set[Value]) -> set[Value]:
    found, seen, stack = set(), set(), list(call.inputs)
    while stack:
        v = stack.pop()
        if v in seen:
            continue
        seen.add(v)
        if v in stops:
            found.add(v)
        elif v.producer is not None and v.data:
            stack.extend(v.producer.inputs)
    return found


_BETWEEN = MOVEMENT | {"add", "batch_norm", "layer_norm", "group_norm", "instance_norm", "dropout"}


def activation_of(value: Value) -> Call | None:
    """The activation that a value goes into next, through shifts and normalisation."""
    for _ in range(6):
        following = next((c for c in value.consumers if c.outputs), None)
        if following is None:
            return None
        if following.name in ACTIVATIONS:
            return following
        if following.name not in _BETWEEN:
            return None
        value = following.outputs[0]
    return None


def rms(tensor: torch.Tensor) -> float:
    """Root mean square, in float64."""
    t = whole(tensor.detach())
    return norm(t) / max(t.numel(), 1) ** 0.5


def name_of(dtype: torch.dtype) -> str:
    """``float32``."""
    return str(dtype).removeprefix("torch.")
