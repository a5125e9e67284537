"""Fields measured: the model run over redraws of its weights, every value's and cotangent's mean square recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.backends.torch import compile
from chainrule.frontends.torch import seeded
from chainrule.interpreters.differentiate import vjp_all
from chainrule.ir import Graph, Node, TensorType, constant
from chainrule.verbs.fields import leaf_fields


@dataclass(frozen=True, eq=False)
class Sampled:
    """Mean squares by node of the trace, one entry per redraw; ``mean_forward``: mean squares' means."""

    forward: Mapping[Node, np.ndarray]
    backward: Mapping[Node, np.ndarray]


def redraw(trace: Any, seed: int) -> dict[Node, torch.Tensor]:
    """leaf -> new values, with the means and mean squares that predictions use; the model is not touched."""
    generator = torch.Generator().manual_seed(seed)
    fields = leaf_fields(trace, strata=False)
    drawn: dict[Node, torch.Tensor] = dict(trace.values)
    for leaf in dict.fromkeys(trace.parameters.values()):
        state, own = fields[leaf], trace.values[leaf]
        if state.array is not None:
            continue
        noise = torch.randn(own.shape, generator=generator, dtype=torch.float64)
        std = torch.from_numpy(np.broadcast_to(np.sqrt(state.variance), own.shape).copy())
        mean = torch.from_numpy(np.broadcast_to(state.mean, own.shape).copy())
        drawn[leaf] = (noise * std + mean).to(own.dtype).to(own.device)
    return drawn


def sample(trace: Any, seeds: int, nodes: Sequence[Node] | None = None) -> Sampled:
    """Mean squares of float values and, with a loss, of their cotangents and of the gradients of the parameters."""
    floats = [n for n in trace.graph.nodes if isinstance(n.type, TensorType) and n.type.is_float]
    wanted = [n for n in (nodes or floats) if not n.is_leaf]
    back: dict[Node, Node] = {}
    if trace.loss is not None:
        leaves = [
            n for n in dict.fromkeys([*trace.parameters.values(), *trace.batch_inputs.values()]) if n.type.is_float
        ]
        _, flowing = vjp_all([trace.loss], [constant(1.0, trace.loss.type.dtype)], leaves, whole=True)
        back = {n: flowing[n] for n in [*wanted, *leaves] if n in flowing and n is not trace.loss}
    program = Graph(trace.graph.inputs, (*wanted, *back.values()))
    compiled = compile(program)
    rows = []
    for seed in range(seeds):
        with seeded(seed):
            tensors = redraw(trace, seed)
            outputs = compiled(*(tensors[i] for i in program.inputs))
        rows.append([float(o.detach().to(torch.float64).pow(2).mean()) for o in outputs])
    table = np.array(rows).reshape(seeds, len(program.outputs))
    return Sampled(
        {n: table[:, k] for k, n in enumerate(wanted)},
        {n: table[:, len(wanted) + k] for k, n in enumerate(back)},
    )
