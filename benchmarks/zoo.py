"""Freshly initialised models of the libraries: findings above info, passes and time of diagnose.

    python -m benchmarks.zoo [--variants] [--atlas] [--only NAME,...] [--optimizer]

Each model is built by its own library from a configuration and diagnosed on a small batch. A finding above info is
printed with its sentence; ``docs/zoo-findings.md`` says why each is right. ``--atlas``: the networks of
``benchmarks.moments`` as well. passes: forward and backward passes
made; ratio: time of the diagnosis in passes of the model as it is.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import torch

import chainrule as cr
from benchmarks.architectures import ARCHITECTURES
from benchmarks.configurations import families, variants
from chainrule.errors import ChainruleError


def scalar(model, batch):
    """A loss for any output: the model's own, or the mean square of its first tensor."""
    output = model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
    loss = getattr(output, "loss", None)
    if loss is not None:
        return loss
    if isinstance(output, torch.Tensor):
        return output.float().square().mean()
    tensors = [t for t in (output.values() if hasattr(output, "values") else output) if isinstance(t, torch.Tensor)]
    return torch.stack([t.float().square().mean() for t in tensors if t.is_floating_point()]).sum()


def of_atlas(name: str, optimizer: bool):
    """The same for a network of the atlas, with its own loss."""
    case = ARCHITECTURES[name]()
    adam = torch.optim.AdamW(case.model.parameters(), 1e-4) if optimizer else None

    def plain() -> float:
        start = time.perf_counter()
        if case.objective is not None:
            case.objective(case.model, case.batch).backward()
        elif case.loss == "model":
            case.model(**case.batch).loss.backward()
        else:
            inputs, target = case.batch
            assert callable(case.loss)
            case.loss(case.model(*inputs) if isinstance(inputs, tuple) else case.model(inputs), target).backward()
        seconds = time.perf_counter() - start
        case.model.zero_grad(set_to_none=True)
        return seconds

    passes = sorted(plain() for _ in range(5))[2]
    start = time.perf_counter()
    result = cr.diagnose(case.model, case.batch, case.loss, adam, objective=case.objective)
    return result, time.perf_counter() - start, passes


def one(name: str, make, optimizer: bool):
    """(result, seconds, seconds of one plain pass)."""
    torch.manual_seed(0)
    if make is None:
        return of_atlas(name, optimizer)
    model, batch = make()
    model.train()
    own = "model" if isinstance(batch, dict) else None
    if own is not None:
        try:
            with torch.no_grad():
                if getattr(model(**batch), "loss", None) is None:
                    own = None
        except Exception:
            own = None

    def plain() -> float:
        start = time.perf_counter()
        scalar(model, batch).backward()
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return seconds

    passes = sorted(plain() for _ in range(5))[2]
    adam = torch.optim.AdamW(model.parameters(), 1e-4) if optimizer else None
    start = time.perf_counter()
    if own is not None:
        result = cr.diagnose(model, batch, "model", adam)
    else:
        result = cr.diagnose(model, batch, None, adam, objective=scalar)
    return result, time.perf_counter() - start, passes


def main() -> None:
    """Prints one line per model, and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", action="store_true", help="all configurations, not one per family")
    parser.add_argument("--atlas", action="store_true", help="the networks of benchmarks.moments as well")
    parser.add_argument("--only", default="")
    parser.add_argument("--optimizer", action="store_true", help="with AdamW: trial steps too")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    models: dict[str, Any] = {**families(), **(variants() if given.variants else {})}
    models |= {n: None for n in ARCHITECTURES} if given.atlas else {}
    only = given.only.split(",") if given.only else list(models)
    ratios, passes, seconds, found, failed = [], [], [], 0, 0
    small = torch.nn.Linear(3, 2)  # the first diagnosis of a process imports what all of them need
    cr.diagnose(small, (torch.randn(4, 3), torch.randn(4, 2)), torch.nn.functional.mse_loss)
    for name in only:
        try:
            result, taken, plain = one(name, models[name], given.optimizer)
        except (ChainruleError, Exception) as error:
            failed += 1
            print(f"{name:34} {type(error).__name__}: {str(error).splitlines()[0][:110]}")
            continue
        ratios.append(taken / plain)
        passes.append(result.passes)
        seconds.append(taken)
        serious = result.worst("warning")
        found += len(serious)
        print(f"{name:34} {len(serious):3} findings {result.passes:4} passes {taken / plain:7.1f}x {taken:6.2f} s")
        for f in serious:
            print(f"      {f.severity} {f.kind} at {f.where} {f.source}: {f.cause[:150]} [{f.measured[:100]}]")
    print(
        f"\n{len(ratios)} models ({failed} did not run): {found} findings above info; passes median "
        f"{statistics.median(passes):.0f}, time median {statistics.median(ratios):.1f} plain passes, at most "
        f"{max(seconds):.1f} s"
    )


if __name__ == "__main__":
    main()
