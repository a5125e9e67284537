"""What torch's own ``activation_memory_budget`` does with a step: its partitions, judged by our simulator.

The joint graph is AOTAutograd's. It is taken at the moment when it would be cut, and then compilation ends: nothing of
the user's runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch import config
from torch._functorch.compile_utils import fx_graph_cse
from torch._functorch.partitioners import min_cut_rematerialization_partition

from chainrule.backends.torch.recompute.compile import written_inputs
from chainrule.backends.torch.recompute.extract import CPU, CUDA, Extraction
from chainrule.backends.torch.recompute.fx_lines import extract_fx
from chainrule.planning.frontier import frontier
from chainrule.planning.problem import Schedule
from chainrule.planning.simulate import simulate

BUDGETS = (1.0, 0.7, 0.5, 0.3, 0.1)


class _Taken(Exception):
    """Ends a compilation."""


def torch_budgets(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], budgets: Sequence[float] = BUDGETS
) -> list[tuple[float, int, float, float]]:
    """Per budget: (budget, peak bytes on top of what is there before the step, recomputation over the step's time, that
    of our plan of the same graph in the same memory).

    Empty where torch cannot capture the function as one graph.
    """
    taken = _captured(function, args, kwargs)
    if taken is None:
        return []
    joint, inputs, outputs = taken
    values = [n.meta.get("val") for n in joint.graph.nodes if n.op == "placeholder"]
    on_cuda = any(isinstance(v, torch.Tensor) and v.is_cuda for v in values)
    extraction = extract_fx(joint.graph, outputs, CUDA if on_cuda else CPU)
    plans, cost = frontier(extraction.problem), extraction.problem.cost or 1.0
    found: list[tuple[float, int, float, float]] = []
    for budget in budgets:
        theirs = simulate(extraction.problem, torch_schedule(joint, inputs, outputs, budget, extraction))
        ours = plans.within(max(theirs.peak, plans.plans[-1].peak))
        found.append((budget, theirs.peak, theirs.again / cost, ours.again / cost))
    return found


def _captured(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, Any, int] | None:
    """(the joint graph, its inputs, how many outputs are the forward pass's), None where there is no such graph."""
    found: list[tuple[fx.GraphModule, Any, int]] = []

    def partition(joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **_: Any) -> Any:
        outputs = num_fwd_outputs + len(written_inputs(joint.graph, num_fwd_outputs))
        joint.graph.eliminate_dead_code()
        joint.graph = fx_graph_cse(joint.graph)
        joint.recompile()
        found.append((joint, inputs, outputs))
        raise _Taken

    from torch._dynamo.backends.common import aot_autograd  # heavy

    taken = aot_autograd(fw_compiler=lambda graph, _: graph, partition_fn=partition)
    torch._dynamo.reset()
    # Dynamo's errors are RuntimeErrors (ours come wrapped in one), and assertions of its own.
    with contextlib.suppress(RuntimeError, AssertionError):
        torch.compile(function, backend=taken, fullgraph=True, dynamic=False)(*args, **kwargs)
    torch._dynamo.reset()
    return found[0] if found else None


def torch_schedule(joint: fx.GraphModule, inputs: Any, outputs: int, budget: float, extraction: Extraction) -> Schedule:
    """What torch's partitioner does with a joint graph at a budget; ``outputs``: how many are the forward pass's."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(joint.graph, {}))
    with config.patch(activation_memory_budget=budget):
        ahead, behind = min_cut_rematerialization_partition(
            fx.GraphModule(joint, graph), inputs, num_fwd_outputs=outputs
        )
    task = {str(extraction.lines[at].writes[0]): t for t, at in extraction.line_at.items()}
    first = [task[n.name] for n in ahead.graph.nodes if n.op == "call_function" and n.name in task]
    second = [task[n.name] for n in behind.graph.nodes if n.op == "call_function" and n.name in task]
    return Schedule((*first, *second), len(first))
