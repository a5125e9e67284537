"""Losses with derivatives inside: the step as one first-order graph against eager double backward, side by side.

    python -m benchmarks.second_order [names...] [--threads 1] [--rounds 8] [--compile]

Force matching (energy and forces of an interatomic network), a gradient penalty on the shape of ResNet-18, a
physics-informed network of four hidden layers of 128. The objectives are written with ``torch.autograd.grad(...,
create_graph=True)``; results are compared first. With ``--compile`` our source goes to ``torch.compile`` and is held
against ``torch.compile`` of the same objective written with ``torch.func.grad``, where that compiles. Ratios below 1
are in our favour.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import chainrule as cr
from benchmarks.timing import best_times, machine


@dataclass(frozen=True)
class Problem:
    """A model, a batch, and the objective written with autograd and with torch.func (parameters -> loss)."""

    name: str
    model: nn.Module
    batch: Any
    objective: Callable[[Any, Any], torch.Tensor]
    functional: Callable[[Any, Any], torch.Tensor] | None = None


class Energy(nn.Module):
    """Sum over atoms of a network of their distances to all others."""

    centers: torch.Tensor

    def __init__(self, width: int = 64, features: int = 16) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, 4.0, features))
        self.net = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        d = (positions[:, :, None] - positions[:, None]).square().sum(-1) + torch.eye(positions.shape[1])
        near = torch.exp(-(d.sqrt()[..., None] - self.centers).square()).sum(2)
        return self.net(near).sum((1, 2))


def forces() -> Problem:
    """16 structures of 12 atoms."""

    def objective(model: Any, batch: Any) -> torch.Tensor:
        positions, energies, wanted = batch
        x = positions.detach().requires_grad_()
        e = model(x)
        (f,) = torch.autograd.grad(e.sum(), x, create_graph=True)
        return (e - energies).square().mean() + (f + wanted).square().mean()

    def functional(call: Any, batch: Any) -> torch.Tensor:
        positions, energies, wanted = batch
        f = torch.func.grad(lambda x: call(x).sum())(positions)
        return (call(positions) - energies).square().mean() + (f + wanted).square().mean()

    batch = torch.randn(16, 12, 3), torch.randn(16), torch.randn(16, 12, 3)
    return Problem("force matching", Energy(), batch, objective, functional)


def penalty() -> Problem:
    """A critic of the shape of ResNet-18 at a quarter of its width, 8 images of 32 x 32; softplus, so that it bends."""

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.a = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.b = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.silu(self.b(nn.functional.silu(self.a(x))) + self.skip(x))

    widths = [16, 16, 32, 64, 128]
    blocks = [
        b
        for k in range(4)
        for b in (Block(widths[k], widths[k + 1], 1 + (k > 0)), Block(widths[k + 1], widths[k + 1], 1))
    ]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.SiLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 1)
    )

    def objective(model: Any, batch: Any) -> torch.Tensor:
        x = batch.detach().requires_grad_()
        score = model(x)
        (g,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return score.mean() + 10 * (g.flatten(1).norm(dim=1) - 1).square().mean()

    def functional(call: Any, batch: Any) -> torch.Tensor:
        g = torch.func.grad(lambda x: call(x).sum())(batch)
        return call(batch).mean() + 10 * (g.flatten(1).norm(dim=1) - 1).square().mean()

    return Problem("gradient penalty", model, torch.randn(8, 3, 32, 32), objective, functional)


def physics() -> Problem:
    """Burgers' equation on 512 points: u_t + u u_x = 0.01 u_xx."""
    layers: list[nn.Module] = [nn.Linear(2, 128), nn.Tanh()]
    for _ in range(3):
        layers += [nn.Linear(128, 128), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(128, 1))

    def objective(model: Any, batch: Any) -> torch.Tensor:
        x = batch.detach().requires_grad_()
        u = model(x)
        (g,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g[:, 0].sum(), x, create_graph=True)
        return (g[:, 1] + u[:, 0] * g[:, 0] - 0.01 * h[:, 0]).square().mean()

    def functional(call: Any, batch: Any) -> torch.Tensor:
        first = torch.func.grad(lambda x: call(x).sum())
        g, h = first(batch), torch.func.grad(lambda x: first(x)[:, 0].sum())(batch)
        return (g[:, 1] + call(batch)[:, 0] * g[:, 0] - 0.01 * h[:, 0]).square().mean()

    return Problem("physics-informed", model, torch.rand(512, 2), objective, functional)


PROBLEMS = (forces, penalty, physics)


def row(problem: Problem, rounds: int, compiled: bool) -> float:
    """Measures one problem, prints its line, and returns the ratio."""
    model, batch = problem.model, problem.batch
    parameters = dict(model.named_parameters())
    values = {k: p.detach() for k, p in parameters.items()}
    step = cr.case(model, batch, objective=problem.objective, compile=compiled).step

    def eager() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(problem.objective(model, batch), list(parameters.values()), allow_unused=True)

    peer, name = eager, "eager"
    if compiled and problem.functional is not None:
        functional = problem.functional

        def loss(p: Any, batch: Any) -> torch.Tensor:
            return functional(lambda x: torch.func.functional_call(model, p, (x,)), batch)

        theirs = torch.compile(torch.func.grad(loss))
        peer, name = lambda: tuple(theirs(values, batch).values()), "torch.compile"
    expected = eager()
    _, found = step(values, batch)
    scale = max(float(g.abs().max()) for g in expected if g is not None)
    gap = max(
        float((found[k] - g).abs().max()) / scale  # type: ignore[operator]
        for k, g in zip(parameters, expected, strict=True)
        if g is not None and found[k] is not None
    )
    if gap > 1e-5:
        raise AssertionError(f"{problem.name}: gradients differ by {gap:.1e} of the largest")
    try:
        peer()
    except Exception as error:  # what the peer cannot do is part of the table
        print(f"{problem.name:20} {name} refuses: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        return math.nan
    times = best_times({"ours": lambda: step(values, batch), name: peer}, rounds=rounds, window=0.1)
    ratio = times["ours"] / times[name]
    print(
        f"{problem.name:20} {ratio:6.3f} {times['ours'] * 1e3:10.3f} {times[name] * 1e3:10.3f} {gap:9.1e}  {name}",
        flush=True,
    )
    return ratio


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    print(f"{'problem':20} {'ratio':>6} {'ours ms':>10} {'theirs ms':>10} {'differ':>9}  against")
    ratios = []
    for make in PROBLEMS:
        torch.manual_seed(0)
        problem = make()
        if not options.names or any(part in problem.name for part in options.names):
            ratios.append(row(problem, options.rounds, options.compile))
    known = [r for r in ratios if r == r]
    if known:
        print(f"geometric mean of the ratios: {math.exp(sum(map(math.log, known)) / len(known)):.3f}")


if __name__ == "__main__":
    main()
