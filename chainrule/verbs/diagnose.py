"""``diagnose``: name the cause, the layer and the fix, and stay silent on healthy networks.

Examines one batch: the traced forward pass, every cotangent of the derived backward pass, and a few steps of gradient
descent on copies of the parameters. Nothing of the user's is touched. Kinds examined so far: nonfinite, symmetric,
vanishing, exploding; ``r.checked`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from chainrule.backends.torch import compile
from chainrule.errors import ModelError
from chainrule.frontends.torch import Trace
from chainrule.frontends.torch.batch import leaves as tensors_of
from chainrule.ir import Graph, Node, TensorType
from chainrule.verbs.case import Case, as_case
from chainrule.verbs.gradient_flow import Layer, flow, judge_flow, judge_overflow, label, layers_of
from chainrule.verbs.kinds import KINDS
from chainrule.verbs.kinds import Finding as Finding

CHECKED = tuple(KINDS)
_SEVERITIES = ("info", "warning", "error")
_DRAWS, _STEPS = 64, 200  # of other targets, and of gradient descent, at most


@dataclass(frozen=True)
class DiagnoseResult:
    """Findings, root causes first. ``ok``: nothing above info. ``checked``: the kinds that were looked for.

    ``notes``: what could not be examined.
    """

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
            return "\n".join([f"nothing wrong found (checked: {', '.join(self.checked)})", *self.notes])
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
    if case.loss is None and case.objective is None:
        raise ModelError("diagnose needs a loss", instead='loss=..., loss="model" or objective=...')
    for name, tensor in tensors_of(case.batch):
        if tensor.dim() and not tensor.shape[0]:
            raise ModelError(
                "the batch is empty",
                given=f"{name or 'a tensor'} of shape {tuple(tensor.shape)}",
                required="at least one sample",
            )
    # Precedence: what is not finite makes every other measurement meaningless; equal units explain small gradients.
    notes: list[str] = []
    for examine in (_nonfinite, _symmetric, _gradient_flow):
        findings = examine(case, notes)
        if findings:
            return DiagnoseResult(tuple(findings), notes=tuple(notes))
    return DiagnoseResult((), notes=tuple(notes))


def _gradients(case: Case, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    _, grads = case.step(parameters, case.batch, update=False)
    return {n: g for n, g in grads.items() if g is not None}


def _parameters(case: Case) -> dict[str, torch.Tensor]:
    return {n: case.trace.values[leaf].detach() for n, leaf in case.trace.parameters.items()}


# ---- nonfinite ---------------------------------------------------------------------------------------------
def _nonfinite(case: Case, notes: list[str]) -> list[Finding]:
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
    place = _place(traced, producer)
    backward = producer not in Graph((), (traced.loss,)).nodes
    names = {node: name for name, node in traced.graph.names.items()}
    given = ", ".join(names.get(i, i.op.name) for i in producer.inputs)
    grown = judge_overflow(case, flow(case), f"nonfinite at {place}: {producer.op.name} overflows")
    if grown is not None:
        return [grown]
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


def _place(traced: Trace, node: Node) -> str:
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
def _symmetric(case: Case, notes: list[str]) -> list[Finding]:
    parameters = _parameters(case)
    grads = _gradients(case, parameters)
    embeddings = {c.path for c in case.trace.calls if c.class_name.startswith("Embedding")}
    layers = layers_of(case)
    last = {layer.parameter for layer in layers if layer.last}
    last -= {layer.parameter for layer in layers if not layer.last}
    others: list[dict[str, torch.Tensor]] | None = None
    descended: tuple[list[str], dict[str, torch.Tensor]] | None = None
    found: list[tuple[str, int, int]] = []
    for name, weight in parameters.items():
        module = name.rpartition(".")[0]
        if weight.dim() < 2 or name not in grads or module in embeddings or weight.shape[0] < 2:
            continue
        different = _different_units(name, parameters, [grads])
        if different and name in last:
            # Units of classes that this batch does not hold have equal gradients now, and others with other targets.
            if others is None:
                others = _other_targets(case, parameters, int(weight.shape[0]))
            different = _different_units(name, parameters, [grads, *others]) if others else 0
            if not others:
                notes.append(f"{label(name)}: no other targets could be drawn, to see whether equal units stay equal")
        if different and not bool(grads[name].any()):
            # Gradients of zero are equal now; those behind a zero head or a closed branch differ some steps later.
            descended = descended or _descend(case, parameters, len(layers) + 2)
            different = different if _still_equal(descended[1][name]) else 0
        if different:
            found.append((label(name), int(weight.shape[0]), different))
    if not found:
        return []
    first, units, different = found[0]
    movable, _ = descended or _descend(case, parameters, len(layers) + 2)
    stuck = [n for n in grads if n not in movable]
    moved = f"only {', '.join(movable)} can ever move" if movable else "no parameter can move"
    constant = all(float(p.to(torch.float64).std(correction=0)) == 0.0 for p in parameters.values())
    return [
        Finding(
            "symmetric",
            "error",
            ", ".join(name for name, _, _ in found),
            "units have equal weights and equal gradients, so they stay equal for ever",
            measured=f"{first}: {different} different unit{'s' if different > 1 else ''} of {units}"
            + (f"; {moved}" if stuck else ""),
            expected="all units different",
            fix=("all parameters are constant: " if constant else "")
            + "draw the weights at random, variance 2 / fan_in",
            consequences=(f"{len(stuck)} of {len(grads)} parameters have gradient zero for ever",) if stuck else (),
        )
    ]


def _different_units(
    name: str, parameters: Mapping[str, torch.Tensor], gradients: Sequence[Mapping[str, torch.Tensor]]
) -> int:
    """How many units of a weight differ in weights, biases or a gradient, if some have equal ones; else 0."""
    weight = parameters[name]
    module, _, own = name.rpartition(".")
    bias = f"{module}.bias" if module else "bias"
    with_bias = own == "weight" and bias in parameters and parameters[bias].shape == weight.shape[:1]
    own_values, slopes = [weight.flatten(1)], [g[name].flatten(1) for g in gradients]
    if with_bias:
        own_values.append(parameters[bias][:, None])
        slopes += [g[bias][:, None] for g in gradients if bias in g]
    values, slope = (torch.cat([c.to(torch.float64) for c in columns], 1) for columns in (own_values, slopes))
    moving = (slope != 0).any(1)
    if bool(moving.any()):  # the others are off on this batch, which is no symmetry
        values, slope = values[moving], slope[moving]
    missing = len(values) - len(torch.unique(torch.cat([values, slope], 1), dim=0))
    return int(weight.shape[0]) - missing if missing else 0


def _other_targets(case: Case, parameters: Mapping[str, torch.Tensor], units: int) -> list[dict[str, torch.Tensor]]:
    """The gradients for other targets of the same kind, all classes among them; empty where there are none to draw."""
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
        for values in drawn:
            _, grads = case.step(parameters, (inputs, values.to(target)), update=False)
            found.append({n: g for n, g in grads.items() if g is not None})
    except (RuntimeError, IndexError, ModelError):  # not the kind of target that it looked like
        return []
    return found


def _still_equal(weight: torch.Tensor) -> bool:
    """Whether some units are equal up to rounding."""
    rows = weight.flatten(1).to(torch.float64)
    distance = torch.cdist(rows, rows) + torch.diag(torch.full((len(rows),), float("inf"), dtype=rows.dtype)).to(rows)
    return bool(distance.min() <= 1e-4 * rows.norm(dim=1).max())


def _descend(
    case: Case, parameters: Mapping[str, torch.Tensor], patience: int
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Parameters with a gradient at some step of descent on copies, until no new one has for long enough; the copies.

    Steps have length 0.1 whatever the gradient: the question is what is zero for ever, not what is small.
    """
    current = {n: p.clone() for n, p in parameters.items()}
    moved: set[str] = set()
    quiet = 0
    for _ in range(_STEPS):
        grads = _gradients(case, current)
        new = {n for n, g in grads.items() if bool((g != 0).any())} - moved
        moved |= new
        quiet = 0 if new else quiet + 1
        for n, g in grads.items():
            largest = g.abs().max() if g.numel() else 0.0
            if largest > 0:
                current[n] = current[n] - 0.1 * (g / largest)
        if quiet >= patience or len(moved) == len(grads):
            break
    return [n for n in parameters if n in moved], current


# ---- vanishing and exploding -------------------------------------------------------------------------------
def _gradient_flow(case: Case, notes: list[str]) -> list[Finding]:
    layers: list[Layer] = flow(case)
    if len(layers) < 2:
        count = "no weight layer" if not layers else "one weight layer"
        notes.append(f"{count} between batch and loss: too few to judge vanishing or exploding")
        return []
    finding = judge_flow(case, layers)
    return [finding] if finding is not None else []
