"""Training steps as compiled loops against eager PyTorch and JAX: ``python -m benchmarks.native [names]``.

One thread, float32, everything included (gather of the batch, forward, backward, optimizer). The contestants take turns
in short windows on one core, the best window counts. Peers at their best: JAX runs a ``lax.scan`` of many steps in one
call (see ``jax_peer``; ``CHAINRULE_JAX=/path/to/python`` names an environment that has it), eager torch has its fused
optimizer, no DataLoader and its batches ready. The floor is the arithmetic of the step at the multiply-add rate that is
measured in the same run. Ours is the code that a run has after ten seconds (``settle``). Before anything is timed,
losses are checked against eager ones in float64.

``--threads N`` shows what further threads give: the same loops on one and on N, beside eager torch with N; the numbers
of both are checked to be equal to the last bit.

``--calls`` times single calls in place of loops: ``compile_step`` and ``compile_forward``, and the first call: emit,
compile, and from the cache.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import nn

import chainrule as cr
from chainrule.backends.native import jit
from chainrule.backends.native import program as programs
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.values import Affine
from chainrule.verbs.native import NativeEngine, native_engine

ROUNDS, WINDOWS = 6, 25


@dataclass
class Workload:
    """A training step. ``flops``: multiplications and additions of its products. ``steps``: per window."""

    name: str
    model: nn.Module
    data: tuple[torch.Tensor, ...]
    batch: int
    loss: Any
    objective: Any
    optimizer: Callable[[Any], torch.optim.Optimizer]
    flops: float
    steps: int


def dense(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def dense_flops(batch: int, *sizes: int) -> float:
    """Forward, weight gradients, and input gradients of all layers but the first."""
    products = [2.0 * batch * a * b for a, b in pairwise(sizes)]
    return 3 * sum(products) - products[0]


def burgers(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The residual of u_t + u u_x - 0.01 u_xx, as tutorials write it."""
    x, t = (points[:, k : k + 1].detach().requires_grad_(True) for k in range(2))
    u = model(torch.cat([x, t], 1))
    one = torch.ones_like(u)
    u_x = torch.autograd.grad(u, x, one, create_graph=True)[0]
    u_t = torch.autograd.grad(u, t, one, create_graph=True)[0]
    u_xx = torch.autograd.grad(u_x, x, one, create_graph=True)[0]
    return ((u_t + u * u_x - 0.01 * u_xx) ** 2).mean()


def workloads() -> Iterator[Workload]:
    torch.manual_seed(0)

    def momentum(p: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True)

    def adam(p: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(p, lr=1e-3, fused=True)

    classes = torch.randint(0, 10, (640,))
    yield Workload(
        "figure 7.8", dense(10, 40, 40, 5), (torch.randn(100, 10), torch.randn(100, 5)), 10, nn.MSELoss(), None,
        momentum, dense_flops(10, 10, 40, 40, 5), 1000,
    )  # fmt: skip
    yield Workload(
        "784-128-10", dense(784, 128, 10), (torch.rand(640, 784), classes), 64, nn.CrossEntropyLoss(), None, momentum,
        dense_flops(64, 784, 128, 10), 5,
    )  # fmt: skip
    sizes = (2, 64, 64, 64, 64, 1)
    points = torch.randn(2560, 2)
    yield Workload(
        "tanh", dense(*sizes, activation=nn.Tanh), (points, torch.randn(2560, 1)), 256, nn.MSELoss(), None, adam,
        dense_flops(256, *sizes), 5,
    )  # fmt: skip
    # Nine products of 64 x 64 for u and its derivatives (forward, back, tangents), and two for each on the way back.
    yield Workload(
        "physics", dense(*sizes, activation=nn.Tanh), (points,), 256, None, burgers, adam, 27 * 2.0 * 256 * 64 * 64, 1
    )
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    yield Workload(
        "lenet", lenet, (torch.rand(640, 1, 28, 28), classes), 128, nn.CrossEntropyLoss(), None, adam, 194e6, 1
    )


# ---- contestants -------------------------------------------------------------------------------------------
def peak(threads: int = 1) -> float:
    """Multiply-adds per second times two, float32, of one core: twelve independent chains of vectors.

    ``threads``: at once, the rates added up.
    """
    target = jit.host()
    e = Emitter(target.bytes // 4)

    def body() -> None:
        one = e.vector(e.load("%x", "f32", Affine()))
        chains = e.loop("%n", lambda _, held: [e.fma(v, one, one) for v in held], [one] * 12)
        total = chains[0]
        for v in chains[1:]:
            total = total + v
        e.store(e.total(total), "%x", Affine())

    e.function("f", "ptr %x, i64 %n", body)
    engine = jit.loaded(jit.compiled(e.module(), target), target)
    run, turns = jit.function(engine, "f", 2), 20_000
    gate, best = threading.Barrier(threads), [float("inf")] * threads

    def measured(k: int) -> None:
        x = np.zeros(64, np.float32)
        for _ in range(200):
            gate.wait()
            begin = perf_counter()
            run(x.ctypes.data, turns)
            best[k] = min(best[k], perf_counter() - begin)

    started = [threading.Thread(target=measured, args=(k,)) for k in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(2.0 * e.lanes * 12 * turns / seconds for seconds in best)


def order_of(w: Workload) -> np.ndarray:
    rng, count = np.random.default_rng(1), len(w.data[0])
    epochs = -(-w.steps * w.batch // count)
    return np.concatenate([rng.permutation(count) for _ in range(epochs)])[: w.steps * w.batch]


def eager(w: Workload, model: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], list[torch.Tensor]]:
    """One window of eager steps."""
    data = tuple(d.to(dtype) if d.is_floating_point() else d for d in w.data)
    order, optimizer = torch.from_numpy(order_of(w)), w.optimizer(model.parameters())
    batches = [tuple(d[at] for d in data) for at in order.split(w.batch)]

    def run() -> list[torch.Tensor]:
        found = []
        for batch in batches[: max(1, min(len(batches), 20))]:
            optimizer.zero_grad()
            value = w.objective(model, *batch) if w.loss is None else w.loss(model(batch[0]), batch[1])
            value.backward()
            optimizer.step()
            found.append(value.detach())
        return found

    return run


class Jax:
    """The peer in its own process, on the same core."""

    def __init__(self) -> None:
        python = os.environ.get("CHAINRULE_JAX", sys.executable)
        script = Path(__file__).with_name("jax_peer.py")
        probe = subprocess.run([python, "-c", "import jax"], capture_output=True)
        self.process = None
        if probe.returncode == 0:
            self.process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def seconds(self, name: str, budget: float) -> float:
        """Seconds per step; infinity where there is no JAX."""
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            return float("inf")
        self.process.stdin.write(f"{name} {budget}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline().rsplit(" ", 1)[1])


def row(w: Workload, jax: Jax, rate: float) -> str:
    start = copy.deepcopy(w.model)
    example = tuple(d[: w.batch] for d in w.data)
    order = order_of(w)
    # Right before fast: a window of losses against float64.
    model = copy.deepcopy(start)
    engine = native_engine(
        model, example if w.loss is not None else example[0], w.loss, w.optimizer(model.parameters()),
        objective=w.objective,
    )  # fmt: skip
    assert isinstance(engine, NativeEngine)  # L-BFGS has another one
    engine.load()
    rates = np.full(w.steps, engine.optimizer.param_groups[0]["lr"])
    losses = engine.run(w.data, order, w.batch, rates)
    engine.settle()
    expected = np.array([v.item() for v in eager(w, copy.deepcopy(start).double(), torch.float64)()])
    error = float(np.abs(losses[: len(expected)] / expected - 1).max())
    assert error < 1e-5, (w.name, error)
    torch_run = eager(w, copy.deepcopy(start))
    ours, theirs, peer = float("inf"), float("inf"), float("inf")
    for _ in range(ROUNDS):
        for _ in range(WINDOWS):
            begin = perf_counter()
            engine.run(w.data, order, w.batch, rates)
            ours = min(ours, (perf_counter() - begin) / w.steps)
        for _ in range(WINDOWS):
            begin = perf_counter()
            count = len(torch_run())
            theirs = min(theirs, (perf_counter() - begin) / count)
        peer = min(peer, jax.seconds(w.name, 0.5))
    floor = w.flops / rate
    return (
        f"{w.name:12} {floor * 1e6:9.2f} {ours * 1e6:9.2f} {ours / floor:6.2f} {theirs * 1e6:10.1f}"
        f" {theirs / ours:7.1f} {peer * 1e6:10.1f} {peer / ours:7.2f}   {error:.0e}"
    )


# ---- several threads ---------------------------------------------------------------------------------------
def scaling(w: Workload, threads: int) -> str:
    """One row: a step on one thread and on several."""
    start = copy.deepcopy(w.model)
    example = tuple(d[: w.batch] for d in w.data)
    engines, found = [], []
    order, rates = order_of(w), np.full(w.steps, 1e-3)
    for count in (1, threads):
        model = copy.deepcopy(start)
        engine = native_engine(
            model, example if w.loss is not None else example[0], w.loss, w.optimizer(model.parameters()),
            objective=w.objective, threads=count,
        )  # fmt: skip
        assert isinstance(engine, NativeEngine)
        losses = engine.run(w.data, order, w.batch, rates)
        engine.store()
        found.append([losses, *(p.detach().numpy() for p in model.parameters())])
        engine.settle()
        engines.append(engine)
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True)), w.name
    torch_run = eager(w, copy.deepcopy(start))
    begin = perf_counter()
    engines[0].run(w.data, order, w.batch, rates)
    turns = max(1, int(5e-3 / (perf_counter() - begin)))  # calls are taken together: this is about the steps
    order, rates = np.tile(order, turns), np.tile(rates, turns)
    ours, theirs = [float("inf")] * 2, float("inf")
    for _ in range(ROUNDS):
        for k, engine in enumerate(engines):
            for _ in range(2 * WINDOWS):
                begin = perf_counter()
                engine.run(w.data, order, w.batch, rates)
                ours[k] = min(ours[k], (perf_counter() - begin) / len(rates))
        for _ in range(WINDOWS):
            begin = perf_counter()
            count = len(torch_run())
            theirs = min(theirs, (perf_counter() - begin) / count)
    return (
        f"{w.name:12} {ours[0] * 1e6:9.1f} {ours[1] * 1e6:10.1f} {ours[0] / ours[1]:7.2f} {theirs * 1e6:10.1f}"
        f" {theirs / ours[1]:7.2f}"
    )


# ---- single calls ------------------------------------------------------------------------------------------
def best_of(run: Callable[[], Any], count: int = 50, windows: int = 400) -> float:
    best = float("inf")
    for _ in range(windows):
        begin = perf_counter()
        for _ in range(count):
            run()
        best = min(best, (perf_counter() - begin) / count)
    return best


def calls() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 10), torch.randn(10, 5)

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = dense(10, 40, 40, 5)
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHAINRULE_CACHE"] = folder
        jit.host(), jit.version()
        times: dict[str, tuple[float, float]] = {}
        wrapped = {name: getattr(programs, name) for name in ("build",)}

        def timed(*arguments: Any, **options: Any) -> Any:
            begin, busy = perf_counter(), process_time()
            found = wrapped["build"](*arguments, **options)
            kind, seconds = "from the cache" if found.cached else "emit and compile", perf_counter() - begin
            times[kind] = min((seconds, process_time() - busy), times.get(kind, (seconds, process_time() - busy)))
            return found

        from chainrule.verbs.native import shared as engines

        engines.build = timed  # type: ignore[attr-defined]
        for attempt in range(3):
            os.environ["CHAINRULE_CACHE"] = str(Path(folder) / str(attempt))
            for _ in range(2):
                engines._COMPILED.clear()
                model, optimizer = made()
                native_engine(model, (x, y), nn.MSELoss(), optimizer)
        engines.build = wrapped["build"]  # type: ignore[attr-defined]
        for name, (seconds, busy) in times.items():
            print(f"first call, {name:18} {seconds * 1e3:8.1f} ms, {busy * 1e3:.1f} ms of processor time")
        model, optimizer = made()
        step = cr.compile_step(model, nn.MSELoss(), optimizer)
        step(x, y)
        assert step.backend == "native"
        whole = best_of(lambda: step(x, y))
        memory = step._run.entry.memory  # type: ignore[attr-defined]
        loss = torch.empty(())
        memory.arguments[5] = loss.data_ptr()
        inside = best_of(lambda: memory.program.code(memory.address))
        print(f"compile_step, one call       {whole * 1e6:8.2f} us, of which compiled code {inside * 1e6:.2f} us")
        print(f"             overhead        {(whole - inside) * 1e6:8.2f} us")
        forward = cr.compile_forward(model)
        one = x[:1]
        torch.testing.assert_close(forward(one), model(one))
        print(f"compile_forward, one sample  {best_of(lambda: forward(one)) * 1e6:8.2f} us", end="")
        with torch.no_grad():
            print(f" (model(x): {best_of(lambda: model(one), 20) * 1e6:.1f} us)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.threads > 1:
        one, several = peak(), peak(arguments.threads)
        print(f"multiply-add rate {one / 1e9:.1f} GFLOP/s, of {arguments.threads} threads at once {several / one:.2f}x")
        print(f"{'':12} {'1 thread':>9} {f'{arguments.threads} threads':>10} {'ratio':>7} {'eager':>10} {'ratio':>7}")
        for w in workloads():
            if (not arguments.names and w.steps <= 100) or w.name in arguments.names:
                print(scaling(w, arguments.threads), flush=True)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if arguments.calls:
        calls()
        return
    rate = peak()
    print(f"multiply-add rate {rate / 1e9:.1f} GFLOP/s; times in microseconds per step; ratios are times of ours")
    print(
        f"{'':12} {'floor':>9} {'native':>9} {'/floor':>6} {'eager':>10} {'ratio':>7} {'JAX':>10} {'ratio':>7}   error"
    )
    jax = Jax()
    for w in workloads():
        if not arguments.names or w.name in arguments.names:
            print(row(w, jax, rate), flush=True)


if __name__ == "__main__":
    main()
