"""Predicted moments of a model, module by module, without running it; and measured ones, over redrawn weights.

The expectation is over redraws of the weights with each tensor's own mean and variance; the data are as given.
Constant tensors (zero biases) stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chainrule.backends.torch import compile
from chainrule.errors import ModelError
from chainrule.interpreters import moments as propagation
from chainrule.ir import Graph, Node
from chainrule.ir.moments import UNKNOWN, CotangentMoments, Moments
from chainrule.verbs.case import Case, as_case
from chainrule.verbs.moments import MomentsResult, Row


def weight_moments(name: str, tensor: torch.Tensor) -> Moments:
    """The law of a tensor redrawn with its own mean and variance: constant tensors are given, others normal."""
    values = tensor.detach().to(torch.float64)
    mean, second = float(values.mean()), float((values * values).mean())
    one = (1,) * tensor.dim()
    if tensor.numel() < 2 or float(values.var(unbiased=False)) == 0.0:
        return Moments(np.full(one, mean), np.full(one, mean**2), law="given")
    # A sample mean within four standard errors of zero is that of a zero-mean law.
    centred = abs(mean) <= 4 * np.sqrt(second / tensor.numel())
    mean = 0.0 if centred else mean
    source = frozenset({name})
    return Moments(
        np.full(one, mean),
        np.full(one, second),
        law="normal",
        sources=source,
        odd=source if centred else frozenset(),
        fresh=True,
    )


def given_moments(case: Case) -> dict[Node, Moments]:
    """The moments of every leaf of a case: weights by their statistics, data and buffers as they are."""
    traced = case.trace
    random = {leaf: name for name, leaf in traced.parameters.items()}
    states: dict[Node, Moments] = {}
    for leaf, tensor in traced.values.items():
        if leaf in random:
            states[leaf] = weight_moments(random[leaf], tensor)
        else:
            array = tensor.detach().to(torch.float64).cpu().numpy()
            finite = bool(np.isfinite(array).all())
            given = Moments(array, array**2, law="given", kurtosis=1.0)
            states[leaf] = given if finite else replace(UNKNOWN, why="the data hold nan or inf")
    return states


@dataclass(frozen=True)
class Predicted:
    """Forward moments and cotangent moments by name of the graph."""

    forward: Mapping[str, Moments]
    backward: Mapping[str, CotangentMoments]


def predict(case: Case) -> Predicted:
    """The moments of every named value of a case, both ways."""
    traced = case.trace
    named = {**traced.graph.names, **{leaf.params["name"]: leaf for leaf in traced.batch_inputs.values()}}
    roots = [traced.loss] if traced.loss is not None else list(traced.outputs)
    image = propagation.expanded([*roots, *named.values()])
    states = propagation.forward([image[r] for r in roots], given_moments(case))
    states = propagation.forward([image[n] for n in named.values()], states)
    forward = {name: states[image[node]] for name, node in named.items()}
    backward: dict[str, CotangentMoments] = {}
    if traced.loss is not None:
        leaves = [image[leaf] for leaf in traced.batch_inputs.values() if leaf.type.is_float]
        found = propagation.backward(image[traced.loss], states, leaves)
        backward = {name: found[image[node]] for name, node in named.items() if image[node] in found}
    return Predicted(forward, backward)


def mean_of(array: Any) -> float | None:
    """The mean over all elements, None where unknown."""
    return None if array is None else float(np.mean(array))


# ---- measured ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Measured:
    """Mean squares over redraws: ``forward[name]`` and ``backward[name]`` are arrays with one entry per seed."""

    forward: Mapping[str, np.ndarray]
    backward: Mapping[str, np.ndarray]
    seeds: int


def redraw(case: Case, seed: int) -> dict[str, torch.Tensor]:
    """New parameters with each tensor's own mean and variance, by dotted name; the model is not touched."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[Node, torch.Tensor] = {}
    result = {}
    for name, leaf in case.trace.parameters.items():
        if leaf not in drawn:
            own = case.trace.values[leaf].detach()
            state = weight_moments(name, own)
            if state.law == "given":
                drawn[leaf] = own
            else:
                noise = torch.randn(own.shape, generator=generator, dtype=torch.float64)
                std = float(np.sqrt(max(state.variance.item(), 0.0)))
                drawn[leaf] = (noise * std + float(state.mean.item())).to(own.dtype).to(own.device)
        result[name] = drawn[leaf]
    return result


def measure(case: Case, seeds: int = 16, first_seed: int = 0) -> Measured:
    """Mean squares of every named value and cotangent over ``seeds`` redraws of the weights."""
    traced = case.trace
    cotangents, _ = case.cotangents() if traced.loss is not None else ({}, None)
    names = [n for n, node in traced.graph.names.items() if node.inputs and node.type.is_float]
    values = Graph(traced.graph.inputs, (*(traced.graph.names[n] for n in names), *cotangents.values()))
    compiled = compile(values)
    rows = []
    for seed in range(first_seed, first_seed + seeds):
        tensors = case.tensors(redraw(case, seed))
        outputs = compiled(*(tensors[i] for i in values.inputs))
        rows.append([float((o.to(torch.float64) ** 2).mean()) for o in outputs])
    table = np.array(rows).reshape(seeds, len(values.outputs))
    forward = {n: table[:, k] for k, n in enumerate(names)}
    backward = {n: table[:, len(names) + k] for k, n in enumerate(cotangents)}
    return Measured(forward, backward, seeds)


# ---- the verb on models ------------------------------------------------------------------------------------
def model_moments(model: Any, batch: Any = None, loss: Any = None, optimizer: Any = None) -> MomentsResult:
    """Rows of predicted moments, one per module call, in execution order; the model itself last.

    Raises:
        ModelError: no batch. UnsupportedOpError: an op that cannot be traced.
    """
    case = as_case(model, batch, loss, optimizer)
    traced, predicted = case.trace, predict(case)
    names = traced.graph.name_of()
    rows = []
    for call in traced.calls:
        node = next((o for o in call.outputs if o.type.is_float), None)
        name = names.get(node) if node is not None else None
        if name is None or call.path == "loss":
            continue
        state = predicted.forward[name]
        back = predicted.backward.get(name)
        rows.append(
            Row(
                name=call.path,
                module=call.kind,
                op=node.op.name,  # type: ignore[union-attr]
                mean=mean_of(state.mean),
                second=mean_of(state.second),
                grad_second=mean_of(back.second) if back is not None else None,
                band=_band(state, node),  # type: ignore[arg-type]
                kind=state.kind if back is None else max((state.kind, back.kind), key=_KIND_ORDER.index),
            )
        )
    if not rows:
        raise ModelError("the model has no module calls to report on", given=type(case.model).__name__)
    return MomentsResult(rows=tuple(rows), given=(), steps=(), values={})


_KIND_ORDER = ("exact", "approximate", "probe", "unknown")


def _band(state: Moments, node: Node) -> tuple[float, float] | None:
    """Where the mean square of one draw of the weights lies in nine draws of ten (log-normal around the median)."""
    if state.second is None or state.kind in ("approximate", "unknown"):
        return None
    mean, spread = float(np.mean(state.second)), float(np.mean(state.unit_spread))
    units = node.type.shape[-1] if node.type.shape else 1
    within = (float(np.mean(state.kurtosis)) - 1.0) / max(int(units), 1) if state.law != "given" else 0.0
    variance = np.log(max(spread * (1 + within), 1.0))
    width = 1.645 * np.sqrt(variance)
    centre = np.log(mean) - variance / 2 if mean > 0 else -np.inf
    return (float(np.exp(centre - width)), float(np.exp(centre + width)))


def gains(backward: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    """rms(cotangent of the first) / rms(cotangent of the second) for each pair of names."""
    result: list[float | None] = []
    for to, of in pairs:
        a, b = (mean_of(backward[n].second) if n in backward else None for n in (to, of))
        result.append(float(np.sqrt(a / b)) if a is not None and b else None)
    return result
