"""``diagnose``: name the cause, the layer and the fix, and stay silent on healthy networks.

Examines one batch: the traced forward pass, every cotangent of the derived backward pass, and a few steps of gradient
descent on copies of the parameters. Nothing of the user's is touched. Kinds examined so far: nonfinite, symmetric,
vanishing, exploding; ``r.checked`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from chainrule.backends.torch import compile
from chainrule.errors import ModelError
from chainrule.frontends.torch import Trace
from chainrule.ir import Graph, Node, TensorType
from chainrule.verbs.case import Case, as_case
from chainrule.verbs.kinds import KINDS
from chainrule.verbs.model_moments import mean_of, predict

CHECKED = tuple(KINDS)
_SEVERITIES = ("info", "warning", "error")
_DECADES, _FIT = 4.0, 0.9  # range of log10 rms over depth, and R^2 of the line, of a faulty backward signal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: from the fixed vocabulary. severity: error, warning or info. where: module path, or data and position.
        cause, measured, expected, fix: one line each. consequences: what follows from it.
    """

    kind: str
    severity: str
    where: str
    cause: str
    measured: str
    expected: str
    fix: str
    consequences: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.kind} at {self.where}: {self.cause}"]
        for label in ("measured", "expected", "fix"):
            if getattr(self, label):
                lines.append(f"  {label + ':':10}{getattr(self, label)}")
        lines += [f"  {'hence:':10}{c}" for c in self.consequences]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self.__dict__ | {"consequences": list(self.consequences)}


@dataclass(frozen=True)
class DiagnoseResult:
    """Findings, root causes first. ``ok``: nothing above info. ``checked``: the kinds that were looked for."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...] = CHECKED
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing above ``info`` was found."""
        return not self.worst("warning")

    def worst(self, severity: str) -> tuple[Finding, ...]:
        """The findings at least as severe."""
        least = _SEVERITIES.index(severity)
        return tuple(f for f in self.findings if _SEVERITIES.index(f.severity) >= least)

    def __str__(self) -> str:
        if not self.findings:
            return f"nothing wrong found (checked: {', '.join(self.checked)})"
        return "\n".join(map(str, self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.diagnose/1",
            "ok": self.ok,
            "findings": [f.to_dict() for f in self.findings],
            "checked": list(self.checked),
            "notes": list(self.notes),
        }


def diagnose(model: Any, batch: Any = None, loss: Any = None, optimizer: Any = None) -> DiagnoseResult:
    """What is wrong with a model's training on one batch, if anything.

    Args:
        model, batch, loss, optimizer: the case (or a Case in place of the four). A loss is needed.

    Returns:
        DiagnoseResult: ``r.ok``, ``r.findings``.

    Raises:
        ModelError: no loss, or a model that cannot be run. UnsupportedOpError: one that cannot be traced.
    """
    case = as_case(model, batch, loss, optimizer)
    if case.trace.loss is None:
        raise ModelError("diagnose needs a loss", instead='loss=..., loss="model" or objective=...')
    # Precedence: what is not finite makes every other measurement meaningless; equal units explain small gradients.
    for examine in (_nonfinite, _symmetric, _gradient_flow):
        findings = examine(case)
        if findings:
            return DiagnoseResult(tuple(findings))
    return DiagnoseResult(())


def _gradients(case: Case, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    _, grads = case.step(parameters, case.batch)
    return {n: g for n, g in grads.items() if g is not None}


def _parameters(case: Case) -> dict[str, torch.Tensor]:
    return {n: case.trace.values[leaf].detach() for n, leaf in case.trace.parameters.items()}


# ---- nonfinite ---------------------------------------------------------------------------------------------
def _nonfinite(case: Case) -> list[Finding]:
    traced = case.trace
    for kind, leaves in (
        ("batch", traced.batch_inputs),
        ("parameter", traced.parameters),
        ("buffer", traced.buffers),
    ):
        for name, leaf in leaves.items():
            position = _first_bad(traced.values[leaf])
            if position is not None:
                value = traced.values[leaf][position].item()
                return [
                    Finding(
                        "nonfinite",
                        "error",
                        f"{kind} {name}{list(position)}",
                        f"the {kind} holds {value} before anything is computed",
                        measured=f"{_bad_count(traced.values[leaf])} of {traced.values[leaf].numel()} values",
                        expected="finite numbers",
                        fix="clean the data" if kind == "batch" else "restore or initialise it",
                        consequences=("every value computed from it is not finite either",),
                    )
                ]
    assert traced.loss is not None
    cotangents, _ = case.cotangents()
    nodes = [n for n in Graph((), (traced.loss, *cotangents.values())).nodes if isinstance(n.type, TensorType)]
    computed = [n for n in nodes if n.inputs and n.type.is_float]
    outputs = compile(Graph(traced.graph.inputs, tuple(computed)), "all_values")(
        *(traced.values[i] for i in traced.graph.inputs)
    )
    bad = {n: o for n, o in zip(computed, outputs, strict=True) if not bool(torch.isfinite(o).all())}
    ends = [traced.loss, *cotangents.values()]
    if not any(n in bad for n in ends):
        return []  # an inf on the way that does no harm, such as a mask before softmax
    producer = next(n for n in computed if n in bad and not any(i in bad for i in n.inputs))
    position = _first_bad(bad[producer])
    assert position is not None
    place = _place(traced, producer, nodes)
    backward = producer not in Graph((), (traced.loss,)).nodes
    names = {node: name for name, node in traced.graph.names.items()}
    given = ", ".join(names.get(i, i.op.name) for i in producer.inputs)
    return [
        Finding(
            "nonfinite",
            "error",
            place,
            f"{producer.op.name} gives {bad[producer][position].item()} for finite inputs"
            + (" in the backward pass" if backward else ""),
            measured=f"{_bad_count(bad[producer])} of {bad[producer].numel()} values, first at {list(position)};"
            f" inputs: {given}",
            expected="finite numbers",
            fix="keep its argument inside its domain (an epsilon, a clamp, or a stable form such as logsumexp)",
        )
    ]


def _first_bad(tensor: torch.Tensor) -> tuple[int, ...] | None:
    if not tensor.is_floating_point():
        return None
    bad = torch.nonzero(~torch.isfinite(tensor))
    return tuple(int(i) for i in bad[0]) if len(bad) else None


def _bad_count(tensor: torch.Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def _place(traced: Trace, node: Node, nodes: Sequence[Node]) -> str:
    """Where a node came from; a derivative is placed at the nearest value that it reads and that has an origin."""
    seen, queue = {node}, [node]
    while queue:
        n = queue.pop(0)
        if n in traced.graph.origins:
            return str(traced.graph.origins[n])
        for i in n.inputs:
            if i not in seen:
                seen.add(i)
                queue.append(i)
    return "the loss"


# ---- symmetric ---------------------------------------------------------------------------------------------
def _symmetric(case: Case) -> list[Finding]:
    parameters = _parameters(case)
    grads = _gradients(case, parameters)
    embeddings = {c.path for c in case.trace.calls if c.class_name.startswith("Embedding")}
    found: list[tuple[str, int, int]] = []
    for name, weight in parameters.items():
        module = name.rpartition(".")[0]
        if weight.dim() < 2 or name not in grads or module in embeddings or weight.shape[0] < 2:
            continue
        bias = name.rpartition(".")[0] + ".bias" if module else "bias"
        columns = [weight.flatten(1), grads[name].flatten(1)]
        if bias in parameters and bias in grads and parameters[bias].shape == weight.shape[:1]:
            columns += [parameters[bias][:, None], grads[bias][:, None]]
        different = len(torch.unique(torch.cat([c.to(torch.float64) for c in columns], 1), dim=0))
        if different < weight.shape[0] and _equal_weights(columns, weight.shape[0] - different):
            found.append((module or name, int(weight.shape[0]), different))
    if not found:
        return []
    first, units, different = found[0]
    movable = _movable(case, parameters)
    stuck = [n for n in grads if n not in movable]
    moved = ", ".join(movable) if movable else "no parameter"
    constant = all(float(p.to(torch.float64).std(correction=0)) == 0.0 for p in parameters.values())
    return [
        Finding(
            "symmetric",
            "error",
            ", ".join(name for name, _, _ in found),
            "units have equal weights and equal gradients, so they stay equal for ever",
            measured=f"{first}: {different} different unit{'s' if different > 1 else ''} of {units}"
            + (f"; only {moved} can ever move" if stuck else ""),
            expected="all units different",
            fix=("all parameters are constant: " if constant else "")
            + "draw the weights at random, variance 2 / fan_in",
            consequences=(f"{len(stuck)} of {len(grads)} parameters have gradient zero for ever",) if stuck else (),
        )
    ]


def _equal_weights(columns: Sequence[torch.Tensor], missing: int) -> bool:
    """Whether the weights too are equal, not only the gradients of units that are dead alike."""
    weights = columns[0].to(torch.float64)
    return weights.shape[0] - len(torch.unique(weights, dim=0)) >= missing > 0


def _movable(case: Case, parameters: Mapping[str, torch.Tensor], steps: int = 4) -> list[str]:
    """Parameters that differ after a few steps of gradient descent on copies."""
    current = {n: p.clone() for n, p in parameters.items()}
    for _ in range(steps):
        for n, g in _gradients(case, current).items():
            current[n] = current[n] - 0.1 * g
    return [n for n, p in parameters.items() if not torch.equal(p, current[n])]


# ---- vanishing and exploding -------------------------------------------------------------------------------
def _gradient_flow(case: Case) -> list[Finding]:
    """A steady change of log10 rms(dL/dz) over the layers' pre-activations, of more than four decades."""
    traced = case.trace
    _, graph = case.cotangents()
    outputs = compile(graph, "cotangents")(*(traced.values[i] for i in graph.inputs))
    rms = {n: _rms(o) for n, o in zip(graph.output_names, outputs, strict=True)}
    names = traced.graph.name_of()
    layers: list[tuple[str, str, float]] = []
    for call in traced.calls:
        node = call.outputs[0] if call.outputs else None
        name = names.get(node) if node is not None else None
        weights = [traced.parameters.get(f"{call.path}.{w}" if call.path else w) for w in ("weight", "weight_ih_l0")]
        if name in rms and rms[name] > 0 and any(w is not None and w.type.rank > 1 for w in weights):
            layers.append((call.path, name, rms[name]))  # type: ignore[arg-type]
    if len(layers) < 4:
        return []
    depth = np.arange(len(layers))
    signal = np.log10([b for _, _, b in layers])
    slope, offset = np.polyfit(depth, signal, 1)
    residual = signal - (slope * depth + offset)
    fit = 1 - residual.var() / signal.var() if signal.var() > 0 else 0.0
    if abs(signal[-1] - signal[0]) <= _DECADES or fit <= _FIT:
        return []
    kind = "vanishing" if slope > 0 else "exploding"
    predicted = _predicted_slope(case, [n for _, n, _ in layers])
    cause, fix = _flow_cause(kind, float(slope), predicted)
    first, last = layers[0], layers[-1]
    return [
        Finding(
            kind,
            "error",
            first[0] if kind == "vanishing" else last[0],
            cause,
            measured=f"rms of dL/dz {first[2]:.1e} at {first[0]} against {last[2]:.1e} at {last[0]}: "
            f"a factor {10 ** -abs(slope):.2g} per layer"
            if kind == "vanishing"
            else f"rms of dL/dz {first[2]:.1e} at {first[0]} against {last[2]:.1e} at {last[0]}: "
            f"a factor {10 ** abs(slope):.2g} per layer",
            expected="about one per layer"
            + (f"; these weights predict {10**-predicted:.2g}" if predicted is not None else ""),
            fix=fix,
        )
    ]


def _flow_cause(kind: str, slope: float, predicted: float | None) -> tuple[str, str]:
    change = "shrinks" if kind == "vanishing" else "grows"
    if predicted is not None and abs(slope - predicted) <= 0.25 * abs(slope):
        scale = "small" if kind == "vanishing" else "large"
        return (
            f"the gradient {change} steadily from the loss to the first layer, as the weights' variance predicts",
            f"weights are too {scale} for their width: torch.nn.init.kaiming_normal_ for ReLU, xavier_normal_ for tanh",
        )
    return (
        f"the gradient {change} steadily from the loss to the first layer, beyond what the weights' variance predicts",
        "look for saturated activations or reused layers; normalisation or skip connections",
    )


def _rms(tensor: torch.Tensor) -> float:
    # float64: the squares of small float32 gradients underflow.
    return float(tensor.to(torch.float64).square().mean().sqrt())


def _predicted_slope(case: Case, names: Sequence[str]) -> float | None:
    backward = predict(case).backward
    seconds = [mean_of(backward[n].second) if n in backward else None for n in names]
    known = [(k, float(np.log10(s)) / 2) for k, s in enumerate(seconds) if s]
    if len(known) < 3:
        return None
    return float(np.polyfit([k for k, _ in known], [b for _, b in known], 1)[0])
