"""How the signal changes from layer to layer, forward and backward: vanishing and exploding.

A layer is a product of a value that depends on the batch with a parameter of rank 2 or more, wherever the program
computes it; its output is a pre-activation z. Values are evaluated in float64, where that is possible, so that what
underflows or overflows in the model's own dtype is still seen as small or large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from chainrule.backends.torch import compile
from chainrule.interpreters.differentiate import vjp_all
from chainrule.ir import Graph, Node, constant
from chainrule.verbs.case import Case
from chainrule.verbs.fields import Program
from chainrule.verbs.kinds import Finding
from chainrule.verbs.model_moments import mean_of

_DECADES, _FIT = 4.0, 0.9  # range of log10 rms over depth, and R^2 of the line, of a faulty signal
_FACTOR = 100.0  # per layer, of short nets; and of every weight against 1 / sqrt(fan_in)
_PRODUCTS = frozenset({"multilinear", "composite"})  # families of ops: products with a weight are of these
_HUGE = 1e18  # the square overflows float32


@dataclass(frozen=True)
class Layer:
    """One weight layer.

    Attributes:
        name: for messages. parameter: dotted name of the weight. node: the pre-activation.
        last: whether its value reaches the loss without another weight. gain: rms(W) sqrt(fan_in).
        forward, backward: rms of z and of dL/dz. lost: whether dL/dz is 0 in the model's own dtype.
    """

    name: str
    parameter: str
    node: Node
    last: bool
    gain: float
    forward: float = 0.0
    backward: float = 0.0
    lost: bool = False


def label(parameter: str) -> str:
    """What a weight's layer is called: its module where the parameter is the module's ``weight``, else itself."""
    module, _, own = parameter.rpartition(".")
    return module if module and own == "weight" else parameter


def layers_of(case: Case) -> list[Layer]:
    """The weight layers between batch and loss, in the order in which they are computed; nothing is measured."""
    traced = case.trace
    assert traced.loss is not None
    names: dict[Node, str] = {}
    for name, leaf in traced.parameters.items():
        if leaf.type.rank >= 2:
            names.setdefault(leaf, name)
    from_batch = set(traced.batch_inputs.values())
    products: list[tuple[Node, Node]] = []
    for node in Graph((), (traced.loss,)).nodes:
        if not any(i in from_batch for i in node.inputs):
            continue
        from_batch.add(node)
        if node.op.family in _PRODUCTS and len(node.inputs) > 1 and getattr(node.type, "rank", 0) >= 2:
            weight = next((w for w in map(_source, node.inputs) if w in names), None)
            if weight is not None:
                products.append((node, weight))
    inner = {w for node, _ in products for w in _above(node, {n for n, _ in products})}
    used: dict[Node, int] = {}
    layers = []
    for node, weight in products:
        used[weight] = used.get(weight, 0) + 1
        name = label(names[weight]) + (f" (use {used[weight]})" if used[weight] > 1 else "")
        gain = _rms(traced.values[weight]) * _fan_in(node, weight) ** 0.5
        layers.append(Layer(name, names[weight], node, node not in inner, gain))
    return layers


def _source(node: Node) -> Node:
    """The leaf that a node only rearranges or scales."""
    while len(node.inputs) == 1:
        node = node.inputs[0]
    return node


def _above(node: Node, stops: set[Node]) -> set[Node]:
    """Those of ``stops`` that a node depends on, nearest ones only."""
    found, seen, stack = set(), set(), list(node.inputs)
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n in stops:
            found.add(n)
        else:
            stack.extend(n.inputs)
    return found


def _fan_in(node: Node, weight: Node) -> float:
    shape = [int(n) for n in weight.shape]
    outputs = int(node.shape[-1]) if len(shape) == 2 and node.shape[-1] in weight.shape else shape[0]
    return float(np.prod(shape)) / max(outputs, 1)


def flow(case: Case) -> list[Layer]:
    """The weight layers that a gradient reaches, with what was measured on the batch."""
    traced, layers = case.trace, layers_of(case)
    assert traced.loss is not None
    seed = constant(1.0, traced.loss.type.dtype)
    floats = [leaf for leaf in dict.fromkeys([*traced.parameters.values()]) if leaf.type.is_float]
    _, flowing = vjp_all([traced.loss], [seed], floats)
    layers = [layer for layer in layers if layer.node in flowing]
    if not layers:
        return []
    nodes = [layer.node for layer in layers]
    compiled = compile(Graph(traced.graph.inputs, (*nodes, *(flowing[n] for n in nodes))), "flow")
    tensors = [traced.values[i] for i in traced.graph.inputs]
    own = compiled(*tensors)
    try:
        wide = compiled(*(t.to(torch.float64) if t.is_floating_point() else t for t in tensors))
    except RuntimeError:  # the program mixes in a dtype of its own
        wide = own
    count = len(layers)
    return [
        replace(
            layer,
            forward=_rms(wide[k]),
            backward=_rms(wide[count + k]),
            lost=not bool(own[count + k].any()),
        )
        for k, layer in enumerate(layers)
    ]


def _rms(tensor: torch.Tensor) -> float:
    """Scaled by the largest entry, so that no square underflows or overflows."""
    values = tensor.detach().to(torch.float64)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float((values / largest).square().mean().sqrt())


def _trend(signal: Sequence[float]) -> tuple[float, bool]:
    """Slope of log10 of the signal over depth, and whether it is steady and of several decades."""
    if len(signal) < 4:
        return 0.0, False
    depth, logs = np.arange(len(signal)), np.log10(signal)
    slope, offset = np.polyfit(depth, logs, 1)
    residual = logs - (slope * depth + offset)
    fit = 1 - residual.var() / logs.var() if logs.var() > 0 else 0.0
    return float(slope), bool(abs(logs[-1] - logs[0]) > _DECADES and fit > _FIT)


def judge_flow(case: Case, layers: Sequence[Layer]) -> Finding | None:
    """Whether rms(dL/dz) shrinks or grows from the loss to the first layer as it does in no healthy net."""
    if not all(np.isfinite([layer.backward for layer in layers])) or layers[-1].backward == 0.0:
        return None
    if all(0 < layer.gain < 1 / _FACTOR for layer in layers):
        slope = _per_layer(layers)
        if slope >= np.log10(_FACTOR):
            return _finding(layers, slope, None, by_scale=True)
    if all(layer.gain > _FACTOR for layer in layers):
        slope = _per_layer(layers)
        if slope <= -np.log10(_FACTOR):
            return _finding(layers, slope, None, by_scale=True)
    # A layer with signal zero says nothing about a trend: a zero head, a branch that is off, dead units.
    alive = [layer for layer in layers if layer.backward > 0]
    slope, steady = _trend([layer.backward for layer in alive])
    if not steady:
        return None
    return _finding(alive, slope, _predicted_slope(case, [layer.node for layer in alive]), by_scale=False)


def _per_layer(layers: Sequence[Layer]) -> float:
    """Decades of dL/dz that each layer costs, over the layers where there is something left to see."""
    seen = [k for k, layer in enumerate(layers) if layer.backward > 0]
    if len(seen) < 2:
        return float("inf") if len(layers) > 1 and seen == [len(layers) - 1] else 0.0
    first, last = layers[seen[0]], layers[seen[-1]]
    return float((np.log10(last.backward) - np.log10(first.backward)) / (seen[-1] - seen[0]))


def _finding(layers: Sequence[Layer], slope: float, predicted: float | None, by_scale: bool) -> Finding:
    kind = "vanishing" if slope > 0 else "exploding"
    change = "shrinks" if kind == "vanishing" else "grows"
    first, last = layers[0], layers[-1]
    cause = f"the gradient {change} steadily from the loss to the first layer"
    scale = "small" if kind == "vanishing" else "large"
    fix = f"weights are too {scale} for their width: torch.nn.init.kaiming_normal_ for ReLU, xavier_normal_ for tanh"
    if by_scale:
        gains = [layer.gain for layer in layers]
        cause += f": std * sqrt(fan_in) of every weight is {_range(gains)}, so every layer scales the signal by that"
    elif predicted is not None and abs(slope - predicted) <= 0.25 * abs(slope):
        cause += ", as the weights' variance predicts"
    else:
        cause += ", beyond what the weights' variance predicts"
        fix = "look for saturated activations or reused layers; normalisation or skip connections"
    lost = [layer for layer in layers if layer.lost]
    dtype = first.node.type.dtype
    return Finding(
        kind,
        "error",
        first.name if kind == "vanishing" else last.name,
        cause,
        measured=f"rms of dL/dz {first.backward:.1e} at {first.name} against {last.backward:.1e} at {last.name}: "
        f"a factor {10**-slope:.2g} per layer",
        expected="about one per layer"
        + (f"; these weights predict {10**-predicted:.2g}" if predicted is not None else ""),
        fix=fix,
        consequences=(f"in {dtype} the gradient is exactly 0 at {len(lost)} of {len(layers)} layers",) if lost else (),
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1e}", f"{max(values):.1e}"
    return low if low == high else f"{low} to {high}"


def judge_overflow(case: Case, layers: Sequence[Layer], consequence: str) -> Finding | None:
    """Whether values that are not finite are where a steady growth over the layers ends."""
    finite: list[Layer] = []
    for layer in layers:
        if not np.isfinite(layer.forward):
            break
        finite.append(layer)
    numbers = [value for layer in layers for value in (layer.forward, layer.backward)]
    if all(np.isfinite(n) and n < _HUGE for n in numbers):
        return None
    signal = [layer.forward for layer in finite if layer.forward > 0]
    slope, steady = _trend(signal)
    by_scale = all(layer.gain > _FACTOR for layer in layers)
    if not by_scale and not (steady and slope > 0):
        return None
    growth = f"a factor {(signal[-1] / signal[0]) ** (1 / (len(signal) - 1)):.2g} per layer" if len(signal) > 1 else ""
    values = f"rms of z {signal[0]:.1e} at {finite[0].name}" if signal else ""
    if len(signal) > 1:
        values += f" against {signal[-1]:.1e} at {finite[-1].name}: {growth}"
    gains = [layer.gain for layer in layers]
    return Finding(
        "exploding",
        "error",
        finite[-1].name if finite else layers[0].name,
        f"the values grow steadily from layer to layer until they overflow {layers[0].node.type.dtype}",
        measured=f"{values}; std * sqrt(fan_in) of the weights {_range(gains)}".removeprefix("; "),
        expected="about one per layer",
        fix="weights are too large for their width: torch.nn.init.kaiming_normal_ for ReLU, xavier_normal_ for tanh",
        consequences=(consequence,),
    )


def _predicted_slope(case: Case, nodes: Sequence[Node]) -> float | None:
    traced = case.trace
    assert traced.loss is not None
    run = Program.of(traced).run()
    fields = [run.cotangent(n) for n in nodes]
    seconds = [mean_of(f.second) if f is not None and f.known else None for f in fields]
    known = [(k, float(np.log10(s)) / 2) for k, s in enumerate(seconds) if s]
    if len(known) < 3:
        return None
    return float(np.polyfit([k for k, _ in known], [b for _, b in known], 1)[0])
