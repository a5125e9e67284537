"""What the verbs do on a CUDA device: ``python -m benchmarks.cuda [sections...]``.

    plan        predicted (calibrated) and allocated peak, unplanned and at budgets; gradients and time beside eager's
    verbs       diagnose, initialize_, monitor, moments, chain and fit on a network there, against the same on the CPU
    precision   autocast to float16 with a GradScaler and to bfloat16: gradients against eager's under the same autocast
    compile     the emitted step through ``torch.compile``, and ``torch.compile(backend="chainrule")`` with a budget

Steps of whole models there are timed by ``benchmarks.step_time --device cuda`` and compared with autograd by
``benchmarks.models --device cuda``.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from benchmarks.checkpoint_models import made
from chainrule.errors import BudgetError

DEVICE = "cuda"
PLANNED = ("GPT-12", "ResNet-12", "U-Net")


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes of the allocator above what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def best(run: Callable[[], Any], times: int = 8) -> float:
    """Seconds of the fastest of several calls, the device's work included."""
    found = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def distance(model: nn.Module, other: nn.Module) -> float:
    """Largest difference of two models' gradients, relative to the largest gradient entry."""
    theirs = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in theirs.values())
    ours = dict(model.named_parameters())
    return max(float((g - ours[n].grad).abs().max()) for n, g in theirs.items()) / largest  # type: ignore[operator]


# ---- plan ----------------------------------------------------------------------------------------------------
def plan() -> None:
    """Predicted and allocated peaks."""
    for name in PLANNED:
        torch.manual_seed(0)
        model, x, y, loss = made(name)
        model, x, y = model.to(DEVICE), x.to(DEVICE), y.to(DEVICE)
        twin = made(name)[0].to(DEVICE)
        twin.load_state_dict(model.state_dict())

        def eager(twin: nn.Module = twin, x: Any = x, y: Any = y, loss: Any = loss) -> None:
            loss(twin(x), y).backward()

        eager()
        twin.zero_grad()
        eager_peak, eager_time = peak_of(eager), best(eager)
        twin.zero_grad()
        torch.manual_seed(1)
        eager()
        print(f"{name}: eager peak {eager_peak / 1e6:.1f} MB, {eager_time * 1e3:.2f} ms")
        for part in (1.0, 0.5, 0.25):
            try:
                p = cr.plan(model, (x, y), loss, budget=part, calibrate=True)
            except BudgetError as error:
                print(f"  at {part}: {' '.join(str(error).split())[:150]}")
                continue
            small = cr.checkpoint(model, x, plan=p)

            def step(small: nn.Module = small, x: Any = x, y: Any = y, loss: Any = loss) -> None:
                out = small(x)
                loss(out, y).backward()

            step()
            model.zero_grad()
            peak, took = peak_of(step), best(step)
            model.zero_grad()
            torch.manual_seed(1)
            step()
            print(
                f"  at {part}: predicted {p.activation_bytes / 1e6:.1f} MB, allocated {peak / 1e6:.1f} MB "
                f"({100 * (peak / p.activation_bytes - 1):+.1f} %); again {100 * p.recompute_fraction:.1f} %; "
                f"{took * 1e3:.2f} ms, {took / eager_time:.2f} of eager; gradients within {distance(model, twin):.1e}"
            )
            model.zero_grad()


# ---- verbs ---------------------------------------------------------------------------------------------------
def network(device: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A convolutional network with normalisation and dropout, and its batch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(16 * 64, 64), nn.GELU(), nn.Linear(64, 10),
    )  # fmt: skip
    return model.to(device), (torch.randn(32, 3, 16, 16).to(device), torch.randint(10, (32,)).to(device))


def report_moves(verb: str, model: nn.Module, before: dict[str, torch.Tensor], states: list[torch.Tensor]) -> None:
    """One line if looking at a model changed it or a generator of the device."""
    same = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    drew = not all(torch.equal(a, b) for a, b in zip(states, torch.cuda.get_rng_state_all(), strict=False))
    if drew or not same:
        print(f"{verb}: {'' if same else 'values changed '}{'generators moved' if drew else ''}")


def verbs() -> None:
    """The same questions on both devices."""
    answers: dict[str, dict[str, Any]] = {}
    for device in ("cpu", DEVICE):
        found: dict[str, Any] = {}
        model, batch = network(device)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        states = torch.cuda.get_rng_state_all() if device == DEVICE else []
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        case = cr.case(model, batch, nn.CrossEntropyLoss(), optimizer)

        found["findings"] = [(f.kind, f.where) for f in cr.diagnose(case).findings]
        report_moves("diagnose", model, before, states)
        found["chain"] = [f"{link.gain_predicted:.3f}" if link.gain_predicted else None for link in case.chain.links]
        report_moves("chain", model, before, states)
        found["moments"] = [f"{row.second:.4f}" for row in case.moments.rows if isinstance(row.second, float)][-3:]
        report_moves("moments", model, before, states)
        cr.initialize_(model, batch, nn.CrossEntropyLoss(), seed=3)
        found["initialized"] = [round(float(p.detach().double().pow(2).sum()), 9) for p in model.parameters()]
        with cr.monitor(model, optimizer, every=2) as watch:
            for _ in range(6):
                optimizer.zero_grad()
                F.cross_entropy(model(batch[0]), batch[1]).backward()
                optimizer.step()
        found["monitor"] = [f.kind for f in watch.findings]
        model, batch = network(device)
        model = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.Tanh(), nn.Linear(32, 10)).to(device)
        torch.manual_seed(5)
        for p in model.parameters():
            p.data.copy_(torch.randn(p.shape) * 0.05)
        history = cr.fit(model, batch, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1, 0.9), epochs=20)
        found["fit"] = f"{history.loss[-1]:.5f}"
        answers[device] = found
    for key, value in answers["cpu"].items():
        other = answers[DEVICE][key]
        print(f"{key:12} {'equal' if value == other else f'cpu {value}; cuda {other}'}")


# ---- precision -----------------------------------------------------------------------------------------------
def precision() -> None:
    """Autocast on the device."""
    for dtype in (torch.float16, torch.bfloat16):
        model, (x, y) = network(DEVICE)
        twin, _ = network(DEVICE)
        scaler = torch.amp.GradScaler(DEVICE, enabled=dtype is torch.float16)

        def objective(model: nn.Module, batch: Any, dtype: torch.dtype = dtype) -> torch.Tensor:
            with torch.autocast(DEVICE, dtype):
                return F.cross_entropy(model(batch[0]), batch[1])

        torch.manual_seed(1)
        scaler.scale(objective(twin, (x, y))).backward()
        step = cr.case(model, (x, y), objective=objective).step
        torch.manual_seed(1)
        value, grads = step({n: p.detach() for n, p in model.named_parameters()}, (x, y))
        scale = scaler.get_scale() if scaler.is_enabled() else 1.0
        theirs = {n: p.grad / scale for n, p in twin.named_parameters() if p.grad is not None}
        largest = max(float(g.abs().max()) for g in theirs.values())
        gap = max(float((grads[n] - g).abs().max()) for n, g in theirs.items()) / largest
        print(f"{dtype}: loss {float(value):.5f}, gradients within {gap:.1e} of eager's")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        small = cr.checkpoint(model, x, budget=0.8)
        with torch.autocast(DEVICE, dtype):
            out = F.cross_entropy(small(x), y)
        scaler.scale(out).backward()
        scaler.step(optimizer)
        scaler.update()
        print(f"{dtype}: checkpoint under autocast and GradScaler took a step, loss {float(out):.5f}")


# ---- compile -------------------------------------------------------------------------------------------------
def compiled() -> None:
    """The emitted step through Inductor, and our partition under it."""
    torch.manual_seed(0)
    model, x, y, loss = made("GPT-4")
    model, x, y = model.to(DEVICE), x.to(DEVICE), y.to(DEVICE)
    values = {n: p.detach() for n, p in model.named_parameters()}
    plain = cr.case(model, (x, y), loss).step
    fused = cr.case(model, (x, y), loss, compile=True).step
    theirs = torch.compile(model)

    def eager(run: Any = model) -> None:
        model.zero_grad()
        loss(run(x), y).backward()

    _, a = plain(values, (x, y))
    _, b = fused(values, (x, y))
    largest = max(float(g.abs().max()) for g in a.values() if g is not None)
    gap = max(float((g - b[n]).abs().max()) for n, g in a.items() if g is not None) / largest
    eager(theirs)
    print(
        f"GPT-4: eager {best(eager) * 1e3:.2f} ms, ours {best(lambda: plain(values, (x, y))) * 1e3:.2f}, "
        f"torch.compile {best(lambda: eager(theirs)) * 1e3:.2f}, ours compiled "
        f"{best(lambda: fused(values, (x, y))) * 1e3:.2f}; compiled within {gap:.1e} of ours"
    )
    torch._dynamo.reset()
    model.zero_grad()
    eager()
    peak = peak_of(eager)
    for budget in (1.0, 0.5):
        torch._dynamo.reset()
        ours = torch.compile(model, backend="chainrule", options=dict[str, Any](memory_budget=budget), dynamic=False)
        eager(ours)
        share = peak_of(partial(eager, ours)) / peak
        print(f"backend='chainrule', budget {budget}: {share:.3f} of eager's peak")


SECTIONS = {"plan": plan, "verbs": verbs, "precision": precision, "compile": compiled}


def main() -> int:
    """Runs the sections; the exit status is the number that raised."""
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    failed = 0
    for name in sys.argv[1:] or SECTIONS:
        print(f"---- {name}", flush=True)
        try:
            SECTIONS[name]()
        except Exception:  # the other sections are still of interest
            failed += 1
            traceback.print_exc(limit=-6, file=sys.stdout)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
