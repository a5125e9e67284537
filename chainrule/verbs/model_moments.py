"""Predicted moments of a model, module by module and weight by weight, without running it; and measured ones.

The expectation is over redraws of the weights with each tensor's own mean and mean square (or declared ones); the data
are as given. Constant tensors (zero biases) stay what they are. On the meta device, matrices without values are taken
as drawn with variance 1 / fan_in, and data as standard normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import ModelError
from chainrule.ir import TensorType
from chainrule.ir.field import Field, worst
from chainrule.verbs.case import Case, as_case
from chainrule.verbs.field_samples import sample
from chainrule.verbs.fields import Program, Propagation
from chainrule.verbs.moments import MomentsResult, ParameterRow, Row
from chainrule.verbs.moments_audit import audited


@dataclass(frozen=True)
class Predicted:
    """Fields of values and of cotangents by name of the graph."""

    forward: Mapping[str, Field]
    backward: Mapping[str, Field]


def predict(case: Case) -> Predicted:
    """The fields of every named value of a case, both ways."""
    run = case.propagation
    trace = run.trace
    named = {**trace.graph.names, **{leaf.params["name"]: leaf for leaf in trace.batch_inputs.values()}}
    forward = {name: run.value(node) for name, node in named.items() if isinstance(node.type, TensorType)}
    backward = {name: run.cotangent(node) for name, node in named.items()}
    return Predicted(
        {n: f for n, f in forward.items() if f is not None}, {n: f for n, f in backward.items() if f is not None}
    )


def mean_of(array: Any) -> float | None:
    """The mean over all elements, None where unknown."""
    if array is None:
        return None
    found = float(np.mean(array))
    return found if np.isfinite(found) else None


# ---- measured ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Measured:
    """Mean squares over redraws: ``forward[name]`` and ``backward[name]`` are arrays with one entry per seed."""

    forward: Mapping[str, np.ndarray]
    backward: Mapping[str, np.ndarray]
    seeds: int


def measure(case: Case, seeds: int = 16) -> Measured:
    """Mean squares of every named value and cotangent over ``seeds`` redraws of the weights."""
    trace = case.trace
    named = {n: node for n, node in trace.graph.names.items() if node.type.is_float}
    found = sample(trace, seeds, [n for n in named.values() if n.inputs])
    leaves = {leaf.params["name"]: leaf for leaf in [*trace.parameters.values(), *trace.batch_inputs.values()]}
    forward = {name: found.forward[node] for name, node in named.items() if node in found.forward}
    backward = {name: found.backward[n] for name, n in {**named, **leaves}.items() if n in found.backward}
    return Measured(forward, backward, seeds)


def measured(case: Case, seeds: int = 16) -> Measured:
    """:func:`measure`, once for a case and a number of redraws."""
    if seeds not in case.samples:
        case.samples[seeds] = measure(case, seeds)
    return case.samples[seeds]


# ---- the verb on models ------------------------------------------------------------------------------------
def model_moments(
    model: Any,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    source: str | Mapping[str, tuple[float, float]] = "weights",
) -> MomentsResult:
    """Rows of predicted moments, one per module call, in execution order; the model itself last.

    Args:
        source: ``"weights"``, each tensor redrawn with its own mean and mean square, or a mapping from names of
            parameters to other ``(mean, mean square)``.

    Raises:
        ModelError: no batch, or a name that is no parameter. UnsupportedOpError: an op that cannot be traced.
    """
    case = as_case(model, batch, loss, optimizer)
    trace = case.trace
    weights = {} if isinstance(source, str) else dict(source)
    if isinstance(source, str) and source != "weights":
        raise ModelError(
            "the source of the moments is not understood",
            given=repr(source),
            required='"weights", or {parameter: (mean, mean square)}',
        )
    for name in weights:
        if name not in trace.parameters:
            raise ModelError(f"the model has no parameter {name!r}", required=f"one of {', '.join(trace.parameters)}")
    run = Program.of(trace).run(weights) if weights else case.propagation
    rows = tuple(_rows(trace, run))
    if not rows:
        raise ModelError("the model has no module calls to report on", given=type(case.model).__name__)
    parameters = tuple(_parameters(trace, run))
    return MomentsResult(
        rows=rows,
        given=(),
        steps=(),
        values={},
        parameters=parameters,
        findings=audited(trace, run),
    )


def _rows(trace: Any, run: Propagation) -> Sequence[Row]:
    rows = []
    for call in trace.calls:
        node = next((o for o in call.outputs if isinstance(o.type, TensorType) and o.type.is_float), None)
        state = run.value(node) if node is not None else None
        if node is None or state is None or call.path == "loss":
            continue
        back = run.cotangent(node)
        batched, placed = _places(state)
        rows.append(
            Row(
                name=call.path,
                module=call.kind,
                op=node.op.name,
                mean=mean_of(state.mean) if state.known else None,
                second=mean_of(state.second) if state.known else None,
                grad_second=mean_of(back.second) if back is not None and back.known else None,
                band=band(state),
                kind=state.kind_of_both if back is None else worst(state.kind_of_both, back.kind),
                samples=state.correlation(*batched) if state.known and batched else None,
                positions=state.correlation(*placed) if state.known and placed else None,
                grad_band=None if back is None else band(back),
                why=state.why,
            )
        )
    return rows


def _places(state: Field) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the dimension of samples, those of positions): channels are the second of four and more, else the last."""
    rank = len(state.dims)
    if rank < 2:
        return (), ()
    positions = tuple(range(2, rank)) if rank > 3 else tuple(range(1, rank - 1))
    return (0,), positions


def band(state: Field) -> tuple[float, float] | None:
    """Where the mean square of one draw of the weights lies in nine draws of ten (log-normal)."""
    return state.band if state.known else None


def _parameters(trace: Any, run: Propagation) -> Sequence[ParameterRow]:
    rows = []
    for name, leaf in trace.parameters.items():
        state, back = run.forward.get(leaf), run.backward.get(leaf)
        if not isinstance(state, Field):
            continue
        known = isinstance(back, Field) and back.known
        rows.append(
            ParameterRow(
                name=name,
                shape=state.shape,
                mean=mean_of(state.mean) if state.known else None,
                second=mean_of(state.second) if state.known else None,
                grad_second=mean_of(back.second) if known else None,  # type: ignore[union-attr]
                grad_band=band(back) if known else None,  # type: ignore[arg-type]
                kind=worst(state.kind, back.kind) if isinstance(back, Field) else state.kind,
            )
        )
    return rows


def gains(backward: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    """rms(cotangent of the first) / rms(cotangent of the second) for each pair of names."""
    result: list[float | None] = []
    for to, of in pairs:
        a, b = (mean_of(backward[n].second) if n in backward else None for n in (to, of))
        result.append(float(np.sqrt(a / b)) if a is not None and b else None)
    return result
