"""Planned gradients of whole models against eager autograd: ``python -m benchmarks.checkpoint_gradients [names...]``.

Every model runs in train mode with dropout on, from one seed, by the own executor. A row says

    least         the smallest peak that a plan reaches, in parts of the unplanned one
    same bits     whether loss, gradients and buffers are those of the unplanned executor at all budgets tried
    float64       worst relative difference of a gradient from autograd's, both in float64
    float32       in float32: norm of the difference of all gradients from autograd's, over the norm of these
    worst         the same by parameter: its largest difference, over its largest entry (at least 1e-6 of the model's)
    own           the same of autograd's float32 gradient from its own float64 one: what float32 is worth there. Large
                  numbers are gradients that are zero but for rounding, such as those of the biases of attention keys
    ten steps     of SGD at the least memory, beside eager: worst relative difference of a weight in float64, and of a
                  buffer (running statistics; counters are compared exactly)

Models: the ten families of the transformers library; ``--variants``, ``--further``, ``--written``, ``--layers`` as in
``benchmarks.models``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import chainrule as cr
from benchmarks.models import FLOOR, SEED, Made, Mode, _of_dtype, objective
from chainrule.errors import ChainruleError
from chainrule.verbs.checkpoint.plan import planned

Gradients = Mapping[str, torch.Tensor | None]
PARTS = (0.75, 0.5, 0.25, 0.0)  # of the way from the least to the unplanned peak


def stepped(run: nn.Module, model: nn.Module, batch: Any) -> tuple[torch.Tensor, Gradients]:
    """Loss and gradients of one step."""
    model.zero_grad()
    torch.manual_seed(SEED)
    loss = objective(run, batch)
    loss.backward()
    return loss.detach(), {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}


def distance(found: Gradients, truth: Gradients) -> float:
    """The worst relative difference of a parameter's gradient."""
    largest = max((float(g.abs().max()) for g in truth.values() if g is not None and g.numel()), default=1.0)
    worst = 0.0
    for key, expected in truth.items():
        got = found.get(key)
        if expected is None or got is None:
            worst = worst if all(g is None or not g.any() for g in (expected, got)) else float("inf")
        elif expected.numel():
            scale = max(float(expected.abs().max()), FLOOR * largest) or 1.0
            gap = float((got.double() - expected.double()).abs().max()) / scale
            gap = 0.0 if _bits(got, expected) else gap  # where eager diverges to NaN, so have we
            worst = max(worst, gap) if gap == gap else float("inf")
    return worst


def norm(found: Gradients, truth: Gradients) -> float:
    """The relative difference of all gradients as one vector."""
    pairs = [(found[k], g) for k, g in truth.items() if g is not None and found.get(k) is not None]
    gap = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs if a is not None)
    return (gap / (sum(float(b.double().square().sum()) for _, b in pairs) or 1.0)) ** 0.5


def _start(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def planned_at(model: nn.Module, batch: Any, parts: Sequence[float]) -> tuple[float, list[nn.Module]]:
    """(least peak in parts of the unplanned, the model unplanned and at these budgets)."""
    given = batch if isinstance(batch, (tuple, Mapping)) else (batch,)
    first = cr.plan(model, given)
    plans = first.program.frontier.plans
    most, least = plans[0].peak, plans[-1].peak
    budgets = [1.0, *(float((least + part * (most - least) + 1) / most) for part in parts)]
    found = []
    for b in budgets:
        b = min(b, 1.0)
        found.append(cr.checkpoint(model, given, plan=planned(first.program, given, None, None, b, b)))
    return least / most, found


def ten_steps(run: nn.Module, model: nn.Module, batch: Any, steps: int = 10) -> dict[str, torch.Tensor]:
    """The state after some steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    torch.manual_seed(SEED)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(run, batch).backward()
        optimizer.step()
    return _start(model)


def trained(model: nn.Module, run: nn.Module, batch: Any) -> tuple[float, float]:
    """Worst relative difference of a parameter and of a buffer after ten steps, ours from eager's."""
    state = _start(model)
    truth = ten_steps(model, model, batch)
    model.load_state_dict(state)
    found = ten_steps(run, model, batch)
    model.load_state_dict(state)
    names = dict(model.named_parameters())
    parameters = distance(
        {k: v for k, v in found.items() if k in names}, {k: v for k, v in truth.items() if k in names}
    )
    buffers = 0.0
    for k, v in truth.items():
        if k not in names:
            exact = not v.is_floating_point()
            gap = float((found[k].double() - v.double()).abs().max()) if v.numel() else 0.0
            scale = float(v.double().abs().max()) if v.numel() else 0.0
            buffers = max(buffers, (float("inf") if gap else 0.0) if exact else gap / (scale or 1.0))
    return parameters, buffers


def row(name: str, make: Callable[[], Made], parts: Sequence[float] = PARTS) -> str:
    """One line of the table."""
    mode = Mode()
    wide, wide_batch = _of_dtype(make, torch.float64, mode)
    state = _start(wide)
    _, truth = stepped(wide, wide, wide_batch)
    wide.load_state_dict(state)
    _, runs = planned_at(wide, wide_batch, (0.0,))
    _, ours = stepped(runs[-1], wide, wide_batch)
    wide.load_state_dict(state)
    exact = distance(ours, truth)
    steps = trained(wide, runs[-1], wide_batch)

    model, batch = _of_dtype(make, torch.float32, mode)
    state = _start(model)
    eager_loss, eager = stepped(model, model, batch)
    model.load_state_dict(state)
    least, runs = planned_at(model, batch, parts)
    results = []
    for run in runs:
        loss, grads = stepped(run, model, batch)
        results.append((loss, grads, _start(model)))
        model.load_state_dict(state)
    whole = results[0]
    same = all(_equal(whole, other) for other in results[1:]) and torch.equal(whole[0], eager_loss)
    single, all_in_one = distance(whole[1], eager), norm(whole[1], eager)
    own = distance(eager, truth)
    return (
        f"{name:26}{least:6.2f}  {'equal' if same else 'DIFFER':9}{exact:9.1e}{all_in_one:9.1e}{single:9.1e}{own:9.1e}"
        f"   {steps[0]:8.1e} {steps[1]:8.1e}"
    )


def _equal(one: Any, other: Any) -> bool:
    same = torch.equal(one[0], other[0])
    for a, b in ((one[1], other[1]), (one[2], other[2])):
        same = same and all(
            (v is None and b[k] is None) or (v is not None and b[k] is not None and _bits(v, b[k]))
            for k, v in a.items()
        )
    return same


def _bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    for kind in ("variants", "further", "written", "layers"):
        parser.add_argument(f"--{kind}", action="store_true")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{'model':26} least  same bits  float64  float32    worst      own   ten steps  buffers")
    for name, make in models(options).items():
        if options.names and not any(part in name for part in options.names):
            continue
        try:
            print(row(name, make), flush=True)
        except ChainruleError as error:
            print(f"{name:26} {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)
        except Exception as error:  # a row of the table too
            print(f"{name:26} raised {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)


def models(options: argparse.Namespace) -> Mapping[str, Callable[[], Made]]:
    """The models asked for."""
    from benchmarks import layers
    from benchmarks import written as by_hand

    if options.layers:
        return layers.layers()
    if options.written:
        return by_hand.written()
    from benchmarks import configurations, further  # they need the transformers library

    if options.further:
        return further.further()
    return configurations.variants() if options.variants else configurations.families()


if __name__ == "__main__":
    main()
