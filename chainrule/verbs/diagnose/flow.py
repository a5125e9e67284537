"""How the signal changes from layer to layer, forward and backward: vanishing and exploding.

The gradient of a weight is the product of what came forward and what comes back, so it stays flat where both grow
alike, and its size says nothing across shapes. What is compared here is dL/dz, the gradient of the pre-activations,
against depth; and its slope against the one that the weights' own variance predicts: back through a layer, mean squares
are multiplied by n_out Var(W) E[phi'^2], with E[phi'^2] as it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chainrule.verbs.diagnose.examination import BOOST, Examination
from chainrule.verbs.diagnose.layers import Layer, label, name_of
from chainrule.verbs.diagnose.optimizers import is_adaptive
from chainrule.verbs.diagnose.patches import INITIALIZE, Patch, initialize, submodule
from chainrule.verbs.diagnose.recurrent import over_time
from chainrule.verbs.diagnose.torch_ops import RECURRENT
from chainrule.verbs.diagnose.unrolled import through_steps
from chainrule.verbs.kinds import Finding

DECADES, FIT = 4.0, 0.9  # range of log10 rms over depth, and R^2 of the line, of a faulty signal
SERIOUS = 6.0  # decades that no optimizer copes with: below, networks were seen to train with Adam
FACTOR = 100.0  # per layer, of short nets; and of every weight against 1 / sqrt(fan_in)
LARGE = 5.0  # of every weight, where the layers together make a thousand and more of it
_HUGE = 1e18  # the square overflows float32


def reached(e: Examination) -> list[Layer]:
    """The layers on the gradient's way; where a gradient is 0 below another that is not, seen with a larger loss."""
    layers = [x for x in e.layers if x.value in e.path]
    if not layers or all(x.backward > 0 for x in layers) or not any(x.backward > 0 for x in layers):
        return layers
    boosted = e.boosted_slopes
    if boosted is None:
        return layers
    return [replace(x, backward=x.backward or boosted.get(x.call.index, 0.0) / BOOST) for x in layers]


def trend(signal: Sequence[float]) -> tuple[float, bool]:
    """Slope of log10 of the signal over depth, and whether it is steady and of several decades."""
    if len(signal) < 4:
        return 0.0, False
    depth, logs = np.arange(len(signal)), np.log10(signal)
    slope, offset = np.polyfit(depth, logs, 1)
    residual = logs - (slope * depth + offset)
    fit = 1 - residual.var() / logs.var() if logs.var() > 0 else 0.0
    return float(slope), bool(abs(logs[-1] - logs[0]) > DECADES and fit > FIT)


def flow(e: Examination) -> list[Finding]:
    """vanishing and exploding."""
    steps = through_time(e)
    if steps:
        return steps
    layers = reached(e)
    if len(layers) < 2:
        count = "no weight layer" if not layers else "one weight layer"
        e.subject.notes.append(f"{count} between batch and loss: too few to judge vanishing or exploding")
        return []
    if not all(math.isfinite(x.backward) for x in layers) or layers[-1].backward == 0.0:
        return []
    if all(0 < x.gain < 1 / FACTOR for x in layers):
        slope = _per_layer(layers)
        if slope >= math.log10(FACTOR):
            return [_finding(e, layers, slope, by_scale=True)]
    if all(x.gain > FACTOR for x in layers):
        slope = _per_layer(layers)
        if slope <= -math.log10(FACTOR):
            return [_finding(e, layers, slope, by_scale=True)]
    # A layer with signal zero says nothing about a trend: a zero head, a branch that is off, dead units.
    alive = [x for x in layers if x.backward > 0]
    slope, steady = trend([x.backward for x in alive])
    if steady:
        steps = unrolled(alive) if slope > 0 else []
        return steps or [_finding(e, alive, slope, by_scale=False)]
    if len(alive) == len(layers) and all(x.gain > LARGE for x in layers):
        slope = _per_layer(layers)
        grown = max(layers[-1].forward / (layers[0].forward or 1.0), layers[0].backward / layers[-1].backward)
        if slope <= -math.log10(LARGE) and grown > 1e3:
            return [_finding(e, layers, slope, by_scale=True)]
    return []


def through_time(e: Examination) -> list[Finding]:
    """Recurrent layers over whole sequences: how the gradient changes from step to step."""
    for layer in e.layers:
        if layer.call.again is None or layer.value not in e.path:
            continue
        signal = over_time(layer.call)
        kept = [s for s in signal if s > 0 and math.isfinite(s)]
        if len(kept) < 4 or len(kept) < len(signal) / 2:
            continue
        slope, steady = trend(kept)
        if steady:
            return [_over_steps(label(layer.parameter), kept, slope, "dh/dx")]
    return []


def unrolled(layers: Sequence[Layer]) -> list[Finding]:
    """The same of a recurrence that is written as a loop, where every weight has a use with a gradient of its size."""
    steps = through_steps(layers)
    if not steps:
        return []
    largest: dict[str, float] = {}
    for x in layers:
        largest[x.parameter] = max(largest.get(x.parameter, 0.0), x.backward)
    if min(largest.values()) < 10**-DECADES * layers[-1].backward:
        return []  # a weight before the recurrence, or beside it, gets next to nothing
    signal = [x.backward for x in steps]
    slope, _ = trend(signal)
    return [_over_steps(label(steps[0].parameter), signal, slope, "dL/dz")] if slope > 0 else []


def _over_steps(module: str, signal: Sequence[float], slope: float, what: str) -> Finding:
    grows = slope < 0
    factor, cell = 10 ** abs(slope), submodule(module)
    return Finding(
        "exploding" if grows else "vanishing", "error" if grows else "info", module,
        f"the gradient {'grows' if grows else 'shrinks'} by a factor {factor:.2g} with every step back in "
        "time: " + ("the recurrent weight's gain is raised to the power of the length" if grows
            else f"what is more than {6 / abs(slope):.0f} steps back is not learned from"),
        measured=f"rms of {what} {signal[0]:.1e} at the first of {len(signal)} steps, {signal[-1]:.1e} at the last",
        expected="about one per step",
        fix="nn.init.orthogonal_ of the recurrent weights, an LSTM or GRU, or shorter sequences"
        + ("; clipping of the norm" if grows else ""),
        patch=Patch(f"for n, p in {cell}.named_parameters():\n    if 'weight_hh' in n:\n        "
                    "nn.init.orthogonal_(p)") if grows else None,
    )  # fmt: skip


def _per_layer(layers: Sequence[Layer]) -> float:
    """Decades of dL/dz that each layer costs, over the layers where there is something left to see."""
    seen = [k for k, layer in enumerate(layers) if layer.backward > 0]
    if len(seen) < 2:
        return float("inf") if len(layers) > 1 and seen == [len(layers) - 1] else 0.0
    first, last = layers[seen[0]], layers[seen[-1]]
    return float((math.log10(last.backward) - math.log10(first.backward)) / (seen[-1] - seen[0]))


def predicted_slope(layers: Sequence[Layer]) -> float | None:
    """The slope that Var(W) and the measured E[phi'^2] predict; None with convolutions or recurrences in between."""
    logs = []
    for layer, before in zip(layers[1:], layers[:-1], strict=True):
        if layer.call.name in RECURRENT or layer.back == 0.0:
            return None
        second = before.activation.liveness.second if before.activation and before.activation.liveness else 1.0
        if second == 0.0:
            return None
        logs.append(math.log10(layer.back) + math.log10(second) / 2)
    return float(np.mean(logs)) if logs else None


def _finding(e: Examination, layers: Sequence[Layer], slope: float, by_scale: bool) -> Finding:
    kind = "vanishing" if slope > 0 else "exploding"
    change = "shrinks" if kind == "vanishing" else "grows"
    first, last = layers[0], layers[-1]
    predicted = predicted_slope(layers)
    cause = f"the gradient {change} steadily from the loss to the first layer"
    scale = "small" if kind == "vanishing" else "large"
    fix = f"weights are too {scale} for their width: torch.nn.init.kaiming_normal_ for ReLU, xavier_normal_ for tanh"
    used = {x.parameter for x in layers}
    if by_scale:
        cause += f": std * sqrt(fan_in) of every weight is {_range([x.gain for x in layers])}, so every layer scales "
        cause += "the signal by that"
    elif len(used) < len(layers) / 2:
        cause += ": the same weight is applied again and again, and its gain is raised to that power"
        fix = "gain 1 (nn.init.orthogonal_), a gate, normalisation between the uses, or fewer of them"
    elif predicted is not None and abs(-slope - predicted) <= 0.25 * abs(slope):
        cause += ", as the weights' variance predicts"
    else:
        cause += ", beyond what the weights' variance predicts"
        fix = "look for saturated activations or reused layers; normalisation or skip connections"
    squashing = next((x.activation.name for x in layers if x.activation is not None), "identity")
    if squashing == "sigmoid" and kind == "vanishing":
        cause += "; the derivative of a sigmoid is at most 1/4"
        fix = "ReLU or GELU with He initialisation, or normalisation or skip connections"
    if _residual(e, layers) and kind == "exploding":
        fix = "smaller branches: variance 1 / (fan_in * layers), a norm in front of each, or a zero last layer in each"
    lost = [x for x in e.layers if x.value in e.path and x.value.slope == 0.0]
    repeated = len(used) < len(layers) / 2
    where = most_used(layers) if repeated else first.name if kind == "vanishing" else last.name
    decades = abs(math.log10(last.backward / first.backward)) if first.backward > 0 else math.inf
    mild = kind == "vanishing" and not by_scale and decades < SERIOUS
    steps_by_size = e.optimizer is None or is_adaptive(e.optimizer)
    if mild:
        cause += "; Adam, whose steps do not depend on the size of the gradient, copes with that much"
    return Finding(
        kind,
        ("info" if steps_by_size else "warning") if mild else "error",
        where,
        cause,
        measured=f"rms of dL/dz {first.backward:.1e} at {first.name} against {last.backward:.1e} at {last.name}: "
        f"a factor {10**-slope:.2g} per layer",
        expected="about one per layer"
        + (f"; these weights predict {10**predicted:.2g}" if predicted is not None else ""),
        fix=fix,
        patch=_patch(e, layers, squashing, repeated=repeated),
        consequences=(
            f"in {name_of(first.value.dtype)} the gradient is exactly 0 at {len(lost)} of {len(e.layers)} layers",
        )
        if lost
        else (),
    )


def _patch(e: Examination, layers: Sequence[Layer], squashing: str, repeated: bool) -> Patch | None:
    if repeated:
        used = submodule(most_used(layers))
        if any(x.call.name in RECURRENT for x in layers):
            return Patch(f"for n, p in {used}.named_parameters():\n    if 'weight_hh' in n:\n        "
                         "nn.init.orthogonal_(p)")  # fmt: skip
        return Patch(f"nn.init.orthogonal_({used}.weight)")
    if _residual(e, layers):
        rule = f"nn.init.normal_(m.weight, 0, (m.weight[0].numel() * {len(layers)}) ** -0.5)"
        return Patch(INITIALIZE.format(rule=rule))
    patch = initialize(squashing)
    if squashing == "sigmoid":
        swap = "for path, m in list(model.named_modules()):\n    if isinstance(m, nn.Sigmoid):\n        "
        swap += "model.set_submodule(path, nn.ReLU())\n"
        return Patch(swap + initialize("relu").code)
    return patch


def _residual(e: Examination, layers: Sequence[Layer]) -> bool:
    """Whether values are added up along the depth: then every branch has to be the smaller, the more there are."""
    own = {x.value for x in layers}
    sums = [c for c in e.seen.tape.calls if c.name == "add" and sum(v.data and v.learned for v in c.inputs) > 1]
    return sum(1 for c in sums if any(v in own for v in c.inputs)) >= len(layers) // 4 and bool(sums)


def most_used(layers: Sequence[Layer]) -> str:
    """The layer that is applied most often."""
    names = [label(x.parameter) for x in layers]
    return max(dict.fromkeys(names), key=names.count)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1e}", f"{max(values):.1e}"
    return low if low == high else f"{low} to {high}"


def overflow(e: Examination, consequence: str) -> Finding | None:
    """Whether values that are not finite are where a steady growth over the layers ends."""
    layers = e.layers
    if not layers:
        return None
    finite: list[Layer] = []
    for layer in layers:
        if not layer.value.finite or not math.isfinite(layer.forward):
            break
        finite.append(layer)
    numbers = [value for x in layers for value in (x.forward, x.backward)]
    if all(math.isfinite(n) and n < _HUGE for n in numbers) and len(finite) == len(layers):
        return None
    signal = [x.forward for x in finite if x.forward > 0]
    slope, steady = trend(signal)
    by_scale = all(x.gain > FACTOR for x in layers)
    if not by_scale and not (steady and slope > 0):
        return None
    growth = f"a factor {(signal[-1] / signal[0]) ** (1 / (len(signal) - 1)):.2g} per layer" if len(signal) > 1 else ""
    values = f"rms of z {signal[0]:.1e} at {finite[0].name}" if signal else ""
    if len(signal) > 1:
        values += f" against {signal[-1]:.1e} at {finite[-1].name}: {growth}"
    squashing = next((x.activation.name for x in layers if x.activation is not None), "identity")
    repeated = len({x.parameter for x in layers}) < len(layers) / 2
    return Finding(
        "exploding",
        "error",
        most_used(layers) if repeated else finite[-1].name if finite else layers[0].name,
        f"the values grow steadily from layer to layer until they overflow {name_of(layers[0].value.dtype)}",
        measured=f"{values}; std * sqrt(fan_in) of the weights {_range([x.gain for x in layers])}".removeprefix("; "),
        expected="about one per layer",
        fix="weights are too large for their width: torch.nn.init.kaiming_normal_ for ReLU, xavier_normal_ for tanh",
        patch=_patch(e, layers, squashing, repeated),
        consequences=(consequence,),
    )
