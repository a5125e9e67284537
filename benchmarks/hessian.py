"""Hessians in float32 against torch.func.hessian and jax.jit(jax.hessian), side by side, results compared first.

    python -m benchmarks.hessian [names...] [--threads 1] [--small | --sizes N,N] [--seconds S] [--memory]

Times are of a call after warm-up (tracing, derivation and compilation are in ``first s``), the best of many windows in
turns. Columns behind a peer's name are its time over ours: larger is better for us. A peer that would need more than
``--limit`` bytes (the memory of a batch of all columns through its largest intermediate) is left out, and says so.
``--seconds`` limits the windows of one row: no turn begins after them, and a call of ``torch.func`` that takes a
quarter of them is made once. ``--memory`` measures the energy of pairwise distances of 2,483 points by the peak of
the process.
JAX is optional (extra ``bench``).
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import chainrule as cr
from benchmarks.timing import best_times, machine


@dataclass(frozen=True)
class Problem:
    """One function in two languages: ``build(np_like) -> f``; ``xp`` is torch or a module of the same words for JAX."""

    name: str
    sizes: tuple[int, ...]
    arrays: Callable[[int, np.random.Generator], tuple[np.ndarray, ...]]
    function: Callable[[Any], Callable[..., Any]]
    widest: Callable[[int], int]  # elements of the largest intermediate of a peer, all columns at once


def _normal(g: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (g.standard_normal(shape) * scale).astype(np.float32)


def _masked(xp: Any) -> Callable[..., Any]:
    return lambda U, V, T, M: (M * (T - U @ V.T) ** 2).sum()


def _softmax_regression(xp: Any) -> Callable[..., Any]:
    def f(W: Any, X: Any, Y: Any) -> Any:
        z = X @ W
        return (xp.logsumexp(z, 1) - (z * Y).sum(1)).sum()

    return f


def _net(xp: Any) -> Callable[..., Any]:
    def f(W1: Any, x: Any, *rest: Any) -> Any:
        h = xp.relu(W1 @ x)
        for W in rest:
            h = xp.relu(W @ h)
        return (h**2).sum()

    return f


def _distances(xp: Any) -> Callable[..., Any]:
    def f(P: Any, off: Any) -> Any:
        d = P[:, None] - P[None]
        return (xp.sqrt((d**2).sum(-1) + (1 - off)) * off).sum()

    return f


def _points(n: int, g: np.random.Generator) -> tuple[np.ndarray, ...]:
    return _normal(g, n, 3), 1 - np.eye(n, dtype=np.float32)


def _factorization(k: int, masked: bool) -> Problem:
    def arrays(n: int, g: np.random.Generator) -> tuple[np.ndarray, ...]:
        mask = (g.random((n, n)) > 0.5).astype(np.float32)
        return (_normal(g, n, k), _normal(g, n, k), _normal(g, n, n), *((mask,) if masked else ()))

    name = f"{'masked ' if masked else ''}factorization k={k}"
    plain = lambda xp: lambda U, V, T: ((T - U @ V.T) ** 2).sum()  # noqa: E731
    return Problem(name, (32, 128, 512), arrays, _masked if masked else plain, lambda n: n * k * n * n)


PROBLEMS = (
    Problem(
        "x'Ax",
        (64, 512, 2048, 4096),
        lambda n, g: (_normal(g, n), _normal(g, n, n)),
        lambda xp: lambda x, A: x @ A @ x,
        lambda n: n * n,
    ),
    Problem(
        "logistic regression m=2n",
        (64, 256, 1024, 2048),
        lambda n, g: (_normal(g, n), _normal(g, 2 * n, n, scale=n**-0.5), np.sign(_normal(g, 2 * n))),
        lambda xp: lambda w, X, y: xp.log1p(xp.exp(-y * (X @ w))).sum(),
        lambda n: 2 * n * n,
    ),
    _factorization(5, False),
    _factorization(10, False),
    _factorization(5, True),
    _factorization(10, True),
    Problem(
        "softmax regression, 10 classes",
        (16, 64, 128),
        lambda n, g: (
            _normal(g, n, 10, scale=0.3),
            _normal(g, 4 * n, n, scale=n**-0.5),
            np.eye(10, dtype=np.float32)[g.integers(0, 10, 4 * n)],
        ),
        _softmax_regression,
        lambda n: 10 * n * 4 * n * 10,
    ),
    Problem(
        "logsumexp",
        (64, 512, 2048, 4096),
        lambda n, g: (_normal(g, n),),
        lambda xp: lambda x: xp.logsumexp(x, 0),
        lambda n: n * n,
    ),
    Problem(
        "10-layer ReLU network by its first layer",
        (16, 32, 64, 128),
        lambda n, g: (
            _normal(g, n, n, scale=n**-0.5),
            _normal(g, n),
            *(_normal(g, n, n, scale=(2 / n) ** 0.5) for _ in range(9)),
        ),
        _net,
        lambda n: n**4,
    ),
    Problem("pairwise distances", (32, 128, 512), _points, _distances, lambda n: 3 * n * n * n * 3),
)


class _Jax:
    """The words of the problems in JAX."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        self.relu, self.logsumexp = jax.nn.relu, jax.scipy.special.logsumexp
        self.log1p, self.exp, self.sqrt = jnp.log1p, jnp.exp, jnp.sqrt
        self.hessian = lambda f: jax.jit(jax.hessian(f))
        self.version = jax.__version__


def row(
    problem: Problem, n: int, jax: _Jax | None, limit: int, rounds: int, seconds: float
) -> tuple[float | None, float | None]:
    """Measures one size, prints its line, and returns the ratios to torch.func and JAX."""
    arrays = problem.arrays(n, np.random.default_rng(0))
    tensors = [torch.from_numpy(a) for a in arrays]
    f = problem.function(torch)
    ours = cr.hessian(f)
    start = time.perf_counter()
    result = ours(*tensors)
    first = time.perf_counter() - start
    contestants: dict[str, Callable[[], Any]] = {"ours": lambda: ours(*tensors)}
    took = 0.0
    fits = 4 * problem.widest(n) <= limit
    if fits:
        theirs = torch.func.hessian(f)
        start = time.perf_counter()
        expected = theirs(*tensors)
        took = time.perf_counter() - start
        worst = _difference(result, expected)
        del expected
        if took < seconds / 4:
            contestants["torch"] = lambda: theirs(*tensors)
    else:
        worst = _difference(result[0] if result.dim() == 2 else result[0, 0], _one_row(f, tensors))
    if jax is not None and fits:
        compiled = jax.hessian(problem.function(jax))
        worst = max(worst, _difference(result, torch.from_numpy(np.array(compiled(*arrays)))))
        contestants["jax"] = lambda: compiled(*arrays).block_until_ready()
    del result
    if worst > 2e-4:
        raise AssertionError(f"{problem.name}, n={n}: results differ by {worst:.1e} of the largest element")
    times = best_times(contestants, rounds=rounds, window=0.05, seconds=seconds)
    if fits:
        times.setdefault("torch", took)  # nothing is compiled for it: its first call is as good as any
    ratios = [times[k] / times["ours"] if k in times else None for k in ("torch", "jax")]
    shown = [f"{r:10.2f}" if r is not None else f"{'left out':>10}" for r in ratios]
    print(
        f"{problem.name:41} {n:5} {times['ours'] * 1e3:10.3f} {shown[0]} {shown[1]} {worst:9.1e} {first:8.2f}",
        flush=True,
    )
    return ratios[0], ratios[1]


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


def _one_row(f: Callable[..., Any], tensors: list[torch.Tensor]) -> torch.Tensor:
    """The first row of the Hessian, by autograd twice."""
    x = tensors[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x, *tensors[1:]), x, create_graph=True)
    return torch.autograd.grad(gradient.reshape(-1)[0], x)[0]


def memory(points: int = 2483) -> None:
    """The energy of pairwise distances: what the process grows by while its Hessian is made, beside its size."""
    tensors = [torch.from_numpy(a) for a in _points(points, np.random.default_rng(0))]
    small = [torch.from_numpy(a) for a in _points(8, np.random.default_rng(0))]
    H = cr.hessian(_distances(torch))
    H(*small)  # what tracing itself takes is not the Hessian's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = H(*tensors)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    size = result.numel() * result.element_size()
    worst = _difference(result[0, 0], _one_row(_distances(torch), tensors))
    print(
        f"pairwise distances of {points} points: Hessian {size / 1e6:.0f} MB, process grew by {grown / 1e6:.0f} MB "
        f"({grown / size:.2f} times), {seconds:.2f} s with tracing, first row differs by {worst:.1e}; "
        f"torch.func and JAX ask for {4 * 3 * points * points * points * 3 / 1e9:.0f} GB"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="the two smallest sizes of each")
    parser.add_argument("--sizes", default="", help="these sizes of each, separated by commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the windows of one row, about")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--limit", type=int, default=2 * 10**9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        return memory()
    multi = "true" if options.threads > 1 else "false"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={multi} intra_op_parallelism_threads={options.threads}"
    try:
        jax = _Jax()
    except ModuleNotFoundError:
        jax = None
    print(machine() + (f", JAX {jax.version}" if jax else ", without JAX (pip install jax)"))
    print(f"{'problem':41} {'n':>5} {'ours ms':>10} {'torch.func':>10} {'JAX':>10} {'differ':>9} {'first s':>8}")
    found: list[tuple[float | None, float | None]] = []
    for problem in PROBLEMS:
        if not options.names or any(part in problem.name for part in options.names):
            wanted = {int(n) for n in options.sizes.split(",") if n}
            sizes = problem.sizes[:2] if options.small else problem.sizes
            for n in (n for n in sizes if not wanted or n in wanted):
                found.append(row(problem, n, jax, options.limit, options.rounds, options.seconds))
    for name, column in zip(("torch.func", "JAX"), zip(*found, strict=True), strict=False):
        ratios = [r for r in column if r is not None]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"{name}: geometric mean {mean:.1f} times our time, least {min(ratios):.2f}, {len(ratios)} rows")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
