"""Plans against torch's activation memory budget, on one joint graph, with one extraction and one simulator.

    python -m benchmarks.checkpoint [names...]
"""

from __future__ import annotations

import sys
from time import process_time

import torch
from torch import fx
from torch._functorch import config
from torch._functorch.compile_utils import fx_graph_cse
from torch._functorch.partitioners import min_cut_rematerialization_partition

from benchmarks.checkpoint_models import NAMES, joint, made
from chainrule.backends.torch.recompute.extract import Extraction
from chainrule.backends.torch.recompute.fx_lines import extract_fx
from chainrule.planning.frontier import frontier
from chainrule.planning.problem import Schedule
from chainrule.planning.simulate import simulate

BUDGETS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.0)


def torch_schedule(module: fx.GraphModule, fakes: list, budget: float, extraction: Extraction) -> tuple[Schedule, float]:
    """What torch's partitioner does with a budget, as a schedule, and its seconds."""
    copy = fx.GraphModule(module, _copied(module.graph))
    start = process_time()
    with config.patch(activation_memory_budget=budget):
        forward, backward = min_cut_rematerialization_partition(copy, fakes, num_fwd_outputs=1)
    seconds = process_time() - start
    task = {str(line.writes[0]): t for t, at in extraction.line_at.items() for line in [extraction.lines[at]]}
    ahead = [task[n.name] for n in forward.graph.nodes if n.op == "call_function" and n.name in task]
    behind = [task[n.name] for n in backward.graph.nodes if n.op == "call_function" and n.name in task]
    return Schedule((*ahead, *behind), len(ahead)), seconds


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    out = new.graph_copy(graph, {})
    new.output(out)
    return new


def main(names: list[str]) -> None:
    for name in names or NAMES:
        torch.manual_seed(0)
        module, fakes = joint(*made(name))
        module.graph = fx_graph_cse(module.graph)
        module.recompile()
        start = process_time()
        extraction = extract_fx(module.graph, 1)
        extracted = process_time()
        problem = extraction.problem
        found = frontier(problem)
        planned = process_time()
        bound = found.bound
        bounded = process_time()
        step = problem.cost
        print(
            f"{name}: {len(module.graph.nodes)} nodes, {len(problem.tasks)} tasks, extracted {extracted - start:.2f} s, "
            f"planned {planned - extracted:.2f} s, bound {bounded - planned:.2f} s, unplanned peak {found.plans[0].peak / 1e6:.1f} MB, least {found.plans[-1].peak/1e6:.1f}"
        )
        for budget in BUDGETS:
            schedule, seconds = torch_schedule(module, fakes, budget, extraction)
            theirs = simulate(problem, schedule)
            ours = found.within(theirs.peak)
            low = bound.at(theirs.peak)
            print(
                f"  {budget:5.2f} torch {seconds:5.2f} s saved {theirs.saved / 1e6:7.1f} peak {theirs.peak / 1e6:7.1f} MB "
                f"again {100 * theirs.again / step:6.2f} %   ours {ours.peak / 1e6:7.1f} MB {100 * ours.again / step:6.2f} %  bound {100 * low / step:6.2f} %"
            )
        for part in (0.5, 0.25):
            ours = found.within(max(found.plans[0].peak * part, found.plans[-1].peak))
            print(f"  at {part}: {ours.peak/1e6:.1f} MB {100*ours.again/step:.2f} bound {100*bound.at(found.plans[0].peak*part)/step:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
