"""Plans against torch's activation memory budget: ``python -m benchmarks.checkpoint [names...] [--real] [--checks]``.

One joint graph (AOTAutograd's), one extraction and one simulator for all. A row is one budget of torch's:

    saved, peak   what torch keeps between the passes, and what its plan really needs
    again         time of recomputation, in percent of the unplanned step, by the same cost model
    ours          peak and recomputation of our plan whose peak is not above torch's
    bound         no schedule in that peak recomputes less
    below torch   by how much of torch's recomputation we are below it, and by how much any schedule can be at most

``--real`` runs our own executor instead: predicted against measured peak (memory events of the profiler on processors,
the allocator on CUDA: ``--device cuda``), and process time, unplanned, at a half and at a quarter
of the peak, calibrated on this machine. ``--inductor`` does the same through ``torch.compile``, not calibrated.
``--checks`` compares with brute force on random graphs, with the binomial optimum on uniform chains, and counts problem
7.11; ``--dropout`` shows torch's budget and ours on a net with dropout.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from functools import cache
from time import process_time

import torch
from torch import nn
from torch._functorch import config
from torch._functorch.compile_utils import fx_graph_cse

import chainrule as cr
from benchmarks.checkpoint_models import NAMES, joint, made
from chainrule.backends.torch.recompute.calibrate import memory_of
from chainrule.backends.torch.recompute.fx_lines import extract_fx
from chainrule.backends.torch.recompute.torch_budget import torch_schedule
from chainrule.errors import BudgetError
from chainrule.planning.frontier import frontier
from chainrule.planning.simulate import simulate

BUDGETS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.0)


def simulated(name: str) -> None:
    """The table of one model."""
    torch.manual_seed(0)
    module, fakes = joint(*made(name))
    module.graph = fx_graph_cse(module.graph)
    module.recompile()
    start = process_time()
    extraction = extract_fx(module.graph, 1)
    extracted = process_time()
    problem = extraction.problem
    found = frontier(problem)
    found.within(found.plans[0].peak / 2)
    planned = process_time()
    bound = found.bound
    bounded = process_time()
    step = problem.cost / 100
    most, least = found.plans[0].peak, found.plans[-1].peak
    print(
        f"{name}: {len(module.graph.nodes)} nodes, {len(problem.tasks)} tasks; seconds: extract "
        f"{extracted - start:.2f}, plan (all budgets, and one) {planned - extracted:.2f}, bound "
        f"{bounded - planned:.2f}; unplanned peak {most / 1e6:.1f} MB, least {least / 1e6:.1f} MB"
    )
    print("  budget  torch s   saved    peak  (part) again % |    ours  again %  bound %   below torch")
    for budget in BUDGETS:
        start = process_time()
        schedule = torch_schedule(module, fakes, 1, budget, extraction)
        seconds = process_time() - start
        theirs = simulate(problem, schedule)
        ours = found.within(theirs.peak)
        low = bound.sharpened(theirs.peak, ours.again)
        below = (
            f"{100 * (1 - ours.again / theirs.again):5.1f} % ({100 * (1 - low / theirs.again):5.1f})"
            if theirs.again > step / 100
            else ""
        )
        print(
            f"  {budget:6.2f} {seconds:8.2f} {theirs.saved / 1e6:7.1f} {theirs.peak / 1e6:7.1f} "
            f"({theirs.peak / most:5.3f}) {theirs.again / step:7.3f} | {ours.peak / 1e6:7.1f} {ours.again / step:8.3f} "
            f"{low / step:8.3f}   {below}{'' if ours.again <= theirs.again * (1 + 1e-9) else '  ABOVE TORCH'}"
        )
    for part in (0.5, 0.3, 0.25):
        limit = max(int(most * part), least)
        ours = found.within(limit)
        low = bound.sharpened(limit, ours.again)
        print(
            f"  at {limit / most:.2f} of the peak: {ours.peak / 1e6:.1f} MB, {ours.again / step:.2f} % again, bound "
            f"{low / step:.2f} %, gap {(ours.again - low) / step:.2f} points of a step"
        )


def real(name: str, device: str) -> None:
    """Predicted against measured, on real tensors."""
    torch.manual_seed(0)
    model, x, y, loss = made(name)
    model, x, y = model.to(device), x.to(device), y.to(device)
    times: list[float] = []
    for part in (1.0, 0.5, 0.25):
        try:
            p = cr.plan(model, (x, y), loss, budget=part, calibrate=True)
        except BudgetError as error:
            print(f"{name} at {part}: {' '.join(str(error).split())}")
            continue
        small = cr.checkpoint(model, x, plan=p)

        def step(small: nn.Module = small) -> None:
            out = small(x)  # held, as in most loops
            loss(out, y).backward()

        step()
        model.zero_grad()
        measured = _peak(step, device)
        took = []
        for _ in range(6):
            model.zero_grad()
            gc.collect()
            start = process_time()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            took.append(process_time() - start)
        model.zero_grad()
        times.append(min(took))
        print(
            f"{name} at {part}: predicted {p.activation_bytes / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB "
            f"({100 * (measured / p.activation_bytes - 1):+.2f} %); again {100 * p.recompute_fraction:.1f} %, "
            f"time {times[-1] / times[0]:.3f} of the unplanned step",
            flush=True,
        )


def inductor(name: str) -> None:
    """Predicted against measured peak of a compiled step, and its time."""
    from chainrule.backends.torch.recompute.compile import Partition
    from chainrule.backends.torch.recompute.inductor import compiled

    torch.manual_seed(0)
    model, x, y, loss = made(name)
    first = None
    for part in (1.0, 0.6, 0.5):
        partition = Partition(part)
        torch._dynamo.reset()
        with config.patch(enable_autograd_cache=False):  # else the partition is not called
            run = torch.compile(lambda x, y: loss(model(x), y), backend=lambda g, i, p=partition: compiled(g, i, p))

            def step(run=run) -> None:
                run(x, y).backward()

            step()
        model.zero_grad()
        measured = _peak(step, "cpu")
        took = []
        for _ in range(4):
            model.zero_grad()
            start = process_time()
            step()
            took.append(process_time() - start)
        model.zero_grad()
        assert partition.extraction is not None and partition.schedule is not None
        found = simulate(partition.extraction.problem, partition.schedule)
        first = first or min(took)
        print(
            f"{name} at {part} through Inductor: predicted {found.peak / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB "
            f"({100 * (measured / found.peak - 1):+.1f} %); again "
            f"{100 * found.again / partition.extraction.problem.cost:.1f} %, time {min(took) / first:.3f} of unplanned",
            flush=True,
        )


def _peak(step, device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        step()
    return memory_of(profile)[1]


def checks() -> None:
    """Brute force, the binomial optimum, and problem 7.11."""
    from chainrule.planning.by_hand import keeping
    from tests.planning.brute_force import cheapest, random_problem
    from tests.planning.test_planner import binomial, uniform_chain

    ratios, violations, exact, proven = [], 0, 0, 0
    for seed in range(200):
        problem = random_problem(seed)
        found = frontier(problem)
        least, most = found.plans[-1].peak, found.plans[0].peak
        for limit in (least, (2 * least + most) // 3, (least + 2 * most) // 3):
            best, ours = cheapest(problem, limit), found.within(limit).again
            assert best is not None
            ratios.append((problem.cost + ours) / (problem.cost + best))
            exact += ours <= best + 1e-9
            violations += found.bound.sharpened(limit, ours * (1 - 1e-9)) > best + 1e-6
            proven += ours - found.bound.at(limit) <= 1e-3 * problem.cost
    print(
        f"200 random graphs, 3 budgets each: {exact} of {len(ratios)} plans as cheap as brute force "
        f"({proven} known by the bound alone), the worst step {100 * (max(ratios) - 1):.1f} % dearer; "
        f"bound above brute force: {violations} times"
    )
    same = total = 0
    for steps in (4, 8, 13, 20, 30, 50):
        found = frontier(uniform_chain(steps))
        for slots in range(min(8, steps - 2)):
            total += 1
            same += found.within(slots + 3).again == binomial(steps, slots) - (steps - 1)
    print(f"uniform chains: {same} of {total} plans recompute exactly what the binomial optimum does")
    problem = uniform_chain(50)
    tenth = simulate(problem, keeping(problem, {10, 20, 30, 40}))
    best = frontier(problem).within(tenth.peak)
    print(
        f"7.11, fifty layers, every tenth kept: {tenth.again:.0f} layers run again, peak {tenth.peak} values; "
        f"the plan in the same memory: {best.again:.0f} again"
    )


def dropout() -> None:
    """Gradients of a net with dropout, compiled with torch's budget and with ours, against eager."""
    from chainrule.backends.torch.recompute.compile import chainrule as ours

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5)) for _ in range(4)))
    x = torch.randn(256, 64)

    def gradients(run) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(3)
        run(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    @cache
    def eager() -> list[torch.Tensor]:
        return gradients(model)

    def error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True))

    whole: list[torch.Tensor] = []  # torch's compiled net draws other numbers than eager: it is compared with itself

    for budget in (1.0, 0.9, 0.8):
        torch._dynamo.reset()
        with config.patch(activation_memory_budget=budget):
            found = gradients(torch.compile(model, backend="aot_eager_decomp_partition", dynamic=False))
        whole = whole or found
        theirs = error(found, whole)
        torch._dynamo.reset()
        options = {"memory_budget": budget, "compiler": "eager"}
        compiled = error(gradients(torch.compile(model, backend=ours, options=options, dynamic=False)), eager())
        own = error(gradients(cr.checkpoint(model, x, budget=budget)), eager())
        print(f"dropout, budget {budget}: worst relative error of a gradient: torch {theirs:.2g}, "
              f"torch.compile with our plan {compiled:.2g}, our executor {own:.2g}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="GPT-12, GPT-32, GPT-128, ResNet-12, U-Net, BERT-12, ViT-12, ...")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--inductor", action="store_true")
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.checks:
        checks()
    if options.dropout:
        dropout()
    if options.real:
        for name in options.names or ("GPT-4", "ResNet-3"):
            real(name, options.device)
    elif options.inductor:
        for name in options.names or ("GPT-2", "ResNet-3"):
            inductor(name)
    elif options.names or not (options.checks or options.dropout):
        for name in options.names or NAMES:
            simulated(name)


if __name__ == "__main__":
    main()
