"""What single units do: equal ones, dead ones, squashed ones; dropout's noise, and stacks of linear layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.layers import Layer, label
from chainrule.verbs.diagnose.naming import container, listed
from chainrule.verbs.diagnose.patches import Patch, initialize, submodule
from chainrule.verbs.diagnose.recurrent import GATES
from chainrule.verbs.diagnose.sharding import whole
from chainrule.verbs.diagnose.torch_ops import (
    ACTIVATIONS,
    DROPOUTS,
    LINEAR_IN_VALUE,
    LOSSES,
    MOVEMENT,
    PRODUCTS,
    RECURRENT,
)
from chainrule.verbs.diagnose.values import Call, Value
from chainrule.verbs.diagnose.wide import row_sums
from chainrule.verbs.kinds import Finding

FRESH = Patch("for m in model.modules():\n    if hasattr(m, 'reset_parameters'):\n        m.reset_parameters()")
_DRAWS = 64  # of other targets, at most


# ---- symmetric -----------------------------------------------------------------------------------------------
def symmetric(e: Examination) -> list[Finding]:
    """Units with equal weights and equal gradients, for other targets and after steps too."""
    subject, parameters = e.subject, e.subject.values
    grads = {n: g for n, g in e.seen.gradients.items() if g is not None and not g.is_sparse}
    looked_up = {v.name for c in e.seen.tape.calls if c.name == "embedding" for v in c.inputs}
    layers = e.layers
    last = {x.parameter for x in layers if x.last} - {x.parameter for x in layers if not x.last}
    # Of recurrent layers, whose call names one weight, all.
    recurrent = {x.parameter.rpartition(".")[0] for x in layers if x.call.name in RECURRENT}
    weights = {x.parameter for x in layers} | {n for n in parameters if n.rpartition(".")[0] in recurrent}
    others: list[dict[str, torch.Tensor]] | None = None
    found: list[tuple[str, int, int]] = []
    for name, weight in parameters.items():
        tied = f"parameter {name}" in looked_up
        if weight.dim() < 2 or name not in grads or tied or weight.shape[0] < 2 or name not in weights:
            continue
        different = different_units(name, parameters, [grads])
        if different and name in last:
            # Units of classes that this batch does not hold have equal gradients now, and others with other targets.
            if others is None:
                others = other_targets(e, int(weight.shape[0]))
            different = different_units(name, parameters, [grads, *others]) if others else 0
            if not others:
                subject.notes.append(f"{label(name)}: no other targets could be drawn, to see whether units stay equal")
        if different and not bool(grads[name].any()):
            # Gradients of zero are equal now; those behind a zero head or a closed branch differ some steps later.
            different = different if still_equal(e.descended[1][name]) else 0
        if different:
            found.append((label(name), int(weight.shape[0]), different))
    return [_symmetric(e, found, grads)] if found else []


def _symmetric(e: Examination, found: list[tuple[str, int, int]], grads: Mapping[str, torch.Tensor]) -> Finding:
    first, units, different = found[0]
    movable = e.descended[0]
    stuck = [n for n in grads if n in e.trainable and n not in movable]
    moved = f"only {listed(movable, 6)} can ever move" if movable else "no parameter can move"
    constant = all(float(p.double().std(correction=0)) == 0.0 for p in e.subject.values.values())
    few = all(d > u / 2 for _, u, d in found)
    squashing = next((x.activation.name for x in e.layers if x.activation is not None), "relu")
    return Finding(
        "duplicate" if few else "symmetric",
        "warning" if few else "error",
        ", ".join(name for name, _, _ in found),
        "units have equal weights and equal gradients, so they stay equal for ever",
        measured=f"{first}: {different} different unit{'s' if different > 1 else ''} of {units}"
        + (f"; {moved}" if stuck else ""),
        expected="all units different",
        fix=("all parameters are constant: " if constant else "") + "draw the weights at random, variance 2 / fan_in",
        patch=_redraw(e, found, squashing),
        consequences=(f"{len(stuck)} of {len(grads)} parameters have gradient zero for ever",) if stuck else (),
    )


def _redraw(e: Examination, found: list[tuple[str, int, int]], squashing: str) -> Patch:
    owners = [container(e, name) or container(e, name.rpartition(".")[0]) for name, _, _ in found]
    if any(hasattr(m, "reset_parameters") for m in owners) and not all(
        hasattr(m, "kernel_size") or hasattr(m, "in_features") for m in owners
    ):
        return FRESH
    return initialize(squashing)


def different_units(
    name: str, parameters: Mapping[str, torch.Tensor], gradients: Sequence[Mapping[str, torch.Tensor]]
) -> int:
    """How many units of a weight differ in weights, biases or a gradient, if some have equal ones; else 0."""
    weight = parameters[name].detach()
    module, _, own = name.rpartition(".")
    bias = f"{module}.bias" if module else "bias"
    with_bias = own == "weight" and bias in parameters and parameters[bias].shape == weight.shape[:1]
    rows = weight.flatten(1)
    # Most nets end here: rows with equal sums are rare unless rows are equal.
    sums = row_sums(rows) + (parameters[bias].detach().to(torch.float64) if with_bias else 0.0)
    ordered = sums.sort().values
    if not bool((ordered[1:] == ordered[:-1]).any()):
        return 0
    own_values, slopes = [rows], [g[name].flatten(1) for g in gradients if name in g]
    if with_bias:
        own_values.append(parameters[bias].detach()[:, None])
        slopes += [g[bias][:, None] for g in gradients if bias in g]
    values, slope = (torch.cat([c.to(torch.float64) for c in columns], 1) for columns in (own_values, slopes))
    moving = (slope != 0).any(1)
    if bool(moving.any()):  # the others are off on this batch, which is no symmetry
        values, slope = values[moving], slope[moving]
    both = torch.cat([values, slope / (float(slope.abs().max()) or 1.0)], 1)
    missing = len(values) - len(torch.unique(_rounded(both), dim=0))
    return int(weight.shape[0]) - missing if missing else 0


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """Sums of the same numbers in another order differ in their last digits."""
    return torch.round(values * 2.0**18)


def other_targets(e: Examination, units: int) -> list[dict[str, torch.Tensor]]:
    """The gradients for other targets of the same kind, all classes among them; empty where there are none to draw."""
    case, subject = e.subject.case, e.subject
    if case.loss is None or case.loss == "model" or not isinstance(case.batch, (tuple, list)) or len(case.batch) != 2:
        return []
    inputs, target = case.batch
    if not isinstance(target, torch.Tensor) or target.is_complex() or not target.numel():
        return []
    generator = torch.Generator().manual_seed(0)
    drawn: list[torch.Tensor] = []
    if target.is_floating_point():
        values = torch.rand(target.shape, generator=generator)  # probabilities stay probabilities
        if target.dim() > 1 and bool(torch.isclose(target.sum(1), torch.ones_like(target.sum(1))).all()):
            values = values / values.sum(1, keepdim=True)
        drawn.append(values)
    elif target.dtype == torch.bool:
        drawn.append(torch.rand(target.shape, generator=generator) < 0.5)
    elif 0 <= int(target.min()) <= int(target.max()) < units <= _DRAWS * target.numel():
        count = target.numel()
        drawn += [(torch.arange(k, k + count) % units).reshape(target.shape) for k in range(0, units, count)]
    found = []
    try:
        with subject.safely():
            for values in drawn:
                _, grads = subject.gradients((inputs, values.to(target)))
                found.append({n: g.clone() for n, g in grads.items() if g is not None and not g.is_sparse})
    except (RuntimeError, IndexError, ModelError):  # not the kind of target that it looked like
        return []
    return found


def still_equal(weight: torch.Tensor) -> bool:
    """Whether some units are equal up to rounding."""
    rows = weight.flatten(1).to(torch.float64)[:512]
    distance = torch.cdist(rows, rows) + torch.diag(torch.full((len(rows),), float("inf"), dtype=rows.dtype)).to(rows)
    return bool(distance.min() <= 1e-4 * rows.norm(dim=1).max())


# ---- dead and saturated --------------------------------------------------------------------------------------
def activations(e: Examination) -> list[tuple[Call, Layer | None]]:
    """The calls of activations on the gradient's way, with the layer that made their input."""
    made = {x.activation: x for x in e.layers if x.activation is not None}
    made |= {x.call: x for x in e.layers if x.call.name in GATES}
    return [(c, made.get(c)) for c in e.seen.tape.calls if c.liveness is not None and c.outputs[0] in e.path]


def dead(e: Examination) -> list[Finding]:
    """Layers whose units have derivative zero for every sample, on this batch and on another."""
    suspects = [
        (c, x)
        for c, x in activations(e)
        if c.name not in GATES
        and (ACTIVATIONS[c.name].dies or not ACTIVATIONS[c.name].bounded)
        and c.liveness is not None
        and float(c.liveness.dead.float().mean()) > 0.9
    ]
    # A handful of units seen a handful of times may all be off by chance.
    suspects = [(c, x) for c, x in suspects if _seen_often(c)]
    if not suspects:
        return []
    # A clamp that no weight goes into straight is a guard, unless all that is before it gets no gradient for ever.
    suspects = [
        (c, x)
        for c, x in suspects
        if x is not None
        or not c.name.startswith("clamp")
        or (c.liveness is not None and bool(c.liveness.dead.all()) and e.zero and e.forever_zero)
    ]
    if not suspects:
        return []
    call, layer = suspects[0]
    other = e.other
    twin = other.tape.calls[call.index] if other is not None and call.index < len(other.tape.calls) else None
    assert call.liveness is not None
    gone = call.liveness.dead
    if twin is not None and twin.name == call.name and twin.liveness is not None:
        if twin.liveness.dead.shape == gone.shape:
            gone = gone & twin.liveness.dead
    share = float(gone.float().mean())
    if share <= 0.9:
        return []
    every = share == 1.0
    where = label(layer.parameter) if layer is not None else call.where
    bias, weight = _bias_and_sign(e, layer)
    source = e.seen.tape.calls[layer.call.index].inputs[0].scale if layer is not None else 0.0
    reason = (
        f"its bias is {bias:.3g} on average, below what the weights can make up for"
        if bias < -1 and not weight
        else "none of its weights is positive and none of its inputs negative, so z is never positive"
        if weight
        else "z is never positive for any sample"
    )
    before = [n for n in e.zero if n in e.forever_zero]
    return [
        Finding(
            "dead", "error" if every else "warning", where,
            f"{int(gone.sum())} of {gone.numel()} units of the {call.name} behind it pass no gradient for any sample: "
            + reason,
            measured=f"share of dead units {share:.0%} on this batch and on another; rms of its input {source:.3g}",
            expected="below half, and no unit dead for every input",
            fix="zero bias and weights of mean zero (He); centre the inputs",
            source=call.place.text,
            patch=_revived(layer),
            consequences=(f"gradient 0 for {len(before)} parameters: {listed(before)}",) if before else (),
        )
    ]  # fmt: skip


def _seen_often(call: Call) -> bool:
    assert call.liveness is not None
    units = call.liveness.dead.numel()
    return math.prod(call.outputs[0].shape) >= 16 * max(units, 1) or units >= 16


def _bias_and_sign(e: Examination, layer: Layer | None) -> tuple[float, bool]:
    if layer is None:
        return 0.0, False
    module = layer.parameter.rpartition(".")[0]
    bias = e.subject.parameters.get(f"{module}.bias" if module else "bias")
    weight = whole(e.subject.parameters[layer.parameter].detach())
    return float(whole(bias.detach()).mean()) if bias is not None else 0.0, bool((weight <= 0).all())


def _revived(layer: Layer | None) -> Patch | None:
    if layer is None or not layer.parameter.endswith("weight"):
        return None
    module = submodule(layer.parameter.rpartition(".")[0])
    return Patch(
        f"nn.init.kaiming_normal_({module}.weight)\nif {module}.bias is not None:\n    nn.init.zeros_({module}.bias)"
    )


def saturated(e: Examination) -> list[Finding]:
    """Bounded activations most of whose inputs lie where the derivative is below a thousandth of the largest."""
    found = [(c, x) for c, x in activations(e)
             if (c.name in GATES or ACTIVATIONS[c.name].bounded) and not _one_sided(c) and c.liveness.squashed > 0.5]  # type: ignore[union-attr]  # fmt: skip
    found = [(c, x) for c, x in found if not _ends_in_loss(c.outputs[0])]
    if not found:
        return []
    call, layer = found[0]
    assert call.liveness is not None
    inputs = layer.call.inputs[0].scale if layer is not None else 0.0
    gain = layer.gain if layer is not None else 0.0
    recurrent = call.name in GATES
    reason = (
        f"its inputs have rms {inputs:.3g}"
        if inputs > 5 and gain < 5
        else f"std * sqrt(fan_in) of its weights is {gain:.3g}"
    )
    where = label(layer.parameter) if layer is not None else call.where
    return [
        Finding(
            "saturated", "error", where,
            f"the {call.name} behind it is flat at most of its inputs: {reason}",
            measured=f"{call.liveness.squashed:.0%} of the derivatives are below a thousandth of the largest; rms of "
            f"{'its input' if recurrent else 'z'} {call.inputs[0].scale:.3g}"
            + (f"; {len(found)} layers alike" if len(found) > 1 else ""),
            expected="z of size about 1: weights with std 1 / sqrt(fan_in)",
            fix="torch.nn.init.xavier_normal_(layer.weight)" if gain >= 5 else "standardise the inputs",
            source=call.place.text,
            patch=None if gain < 5 else FRESH if recurrent
            else initialize("tanh" if call.name == "tanh" else "sigmoid"),
        )
    ]  # fmt: skip


def _one_sided(call: Call) -> bool:
    """A ReLU with a ceiling: half of its inputs are where it is flat, on purpose."""
    return call.name == "relu6" or (call.name == "hardtanh" and call.argument(1, "min_val", -1) == 0)


def _ends_in_loss(value: Value) -> bool:
    """Whether a value goes into a loss without another weight: an output may well be sure."""
    for _ in range(6):
        if any(c.name in LOSSES or c.name == "log" for c in value.consumers) or not value.consumers:
            return True
        following = next((c for c in value.consumers if c.name in MOVEMENT), None)
        if following is None:
            return False
        value = following.outputs[0]
    return False


# ---- noise ---------------------------------------------------------------------------------------------------
def noise(e: Examination) -> list[Finding]:
    """Dropout that keeps less than a tenth."""
    strong = []
    for call in e.seen.tape.calls:
        p, training = call.argument(1, "p"), call.argument(2, "train", False)
        if (
            call.name in DROPOUTS
            and training is True
            and isinstance(p, float)
            and p >= 0.9
            and call.outputs[0] in e.path
        ):
            strong.append((call, p))
    if not strong:
        return []
    call, p = strong[0]
    ratio = math.sqrt(p / (1 - p)) if p < 1 else math.inf
    paths = list(dict.fromkeys(c.where for c, _ in strong))
    code = "\n".join(f"{submodule(m)}.p = 0.5" for m in paths if hasattr(container(e, m), "p"))
    return [
        Finding(
            "noise", "warning", ", ".join(paths),
            f"dropout keeps {1 - p:.0%} of the units: the noise is sqrt(p / (1 - p)) = {ratio:.3g} times the signal",
            measured=f"p = {p:g}" + (f" in {len(strong)} places, one after another" if len(strong) > 1 else ""),
            expected="p between 0.1 and 0.5", fix="p=0.5 or less", source=call.place.text,
            patch=Patch(code) if code else None,
        )
    ]  # fmt: skip


# ---- linear stack --------------------------------------------------------------------------------------------
_LINEAR = MOVEMENT | LINEAR_IN_VALUE | DROPOUTS | {"mul", "div", "add"}


def linear_stack(e: Examination) -> list[Finding]:
    """Layers that are one linear map: a warning if nothing in the network is nonlinear, else info."""
    layers = [x for x in e.layers if x.value in e.path and x.call.name in PRODUCTS]
    used = [x.parameter for x in layers]
    pairs = [(a, b) for b in layers if (a := _straight_above(b, layers)) is not None]
    # The same weight again is a recurrence, and has its own name where it goes wrong.
    pairs = [
        (a, b) for a, b in pairs if not _bottleneck(a, b) and used.count(a.parameter) == used.count(b.parameter) == 1
    ]
    if not pairs:
        return []
    nonlinear = [
        c for c in e.seen.tape.calls if _bends(c) and c.outputs and c.outputs[0] in e.path and _before_loss(e, c)
    ]
    whole = not nonlinear and len(e.layers) >= 2
    _, second = pairs[0]
    chain = list(dict.fromkeys(x.name for pair in pairs for x in pair))
    return [
        Finding(
            "linear_stack", "warning" if whole else "info", ", ".join(chain),
            "nothing nonlinear is between these layers, so they are one: W2 (W1 x + b1) + b2 = (W2 W1) x + W2 b1 + b2"
            + ("; the whole network is a linear model" if whole else ""),
            measured=f"{len(chain)} linear layers in a row", expected="an activation between them",
            fix="nn.ReLU() in between, or a single layer", source=second.call.place.text,
            patch=_bent(e) if whole else None,
        )
    ]  # fmt: skip


def _bends(call: Call) -> bool:
    """Whether a call is more than linear in what depends on the batch."""
    if call.name in _LINEAR or call.name in LOSSES:
        return call.name in ("mul", "div") and sum(v.data for v in call.inputs) > 1
    if call.name in PRODUCTS or call.name == "embedding":
        return sum(v.data for v in call.inputs) > 1
    return True


def _before_loss(e: Examination, call: Call) -> bool:
    """Whether a call is part of the model: a product, or an output, depends on it."""
    outputs = set(e.seen.outputs)
    if call.module:
        return True
    return bool(outputs & set(call.outputs)) or any(x.call.index > call.index for x in e.layers)


def _straight_above(layer: Layer, layers: Sequence[Layer]) -> Layer | None:
    """The layer whose output alone, moved about or scaled by constants, goes into this one."""
    by_value = {x.value: x for x in layers}
    value = layer.call.inputs[0]
    for _ in range(12):
        if value in by_value:
            only = len([c for c in value.consumers if c.outputs]) == 1
            return by_value[value] if only else None
        call = value.producer
        if call is None or call.name not in _LINEAR:
            return None
        moving = [v for v in call.inputs if v.data]
        if len(moving) != 1 or len(value.consumers) > 1:
            return None
        value = moving[0]
    return None


def _bottleneck(a: Layer, b: Layer) -> bool:
    """Whether the width between is below both ends (a factorisation), or a step of a convolution in two."""
    if "conv" in a.call.name or "conv" in b.call.name:
        return (
            a.call.argument(6, "groups", 1) != 1 or b.call.argument(6, "groups", 1) != 1 or a.call.name != b.call.name
        )
    inside = a.value.shape[-1]
    return inside < min(a.call.inputs[0].shape[-1], b.value.shape[-1])


def _bent(e: Examination) -> Patch | None:
    """Identities between the layers become ReLUs."""
    model: Any = e.subject.model
    idle = [path for path, m in model.named_modules() if type(m).__name__ == "Identity"]
    if idle:
        return Patch("\n".join(f"model.set_submodule({path!r}, nn.ReLU())" for path in idle))
    owners = [x.parameter.rpartition(".")[0] for x in e.layers if not x.last]
    code = [f"model.set_submodule({m!r}, nn.Sequential({submodule(m)}, nn.ReLU()))" for m in dict.fromkeys(owners) if m]
    return Patch("\n".join(code)) if code else None
