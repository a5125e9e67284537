"""What each distinct line costs on this machine: seconds, and bytes beside its results, measured once.

Every distinct line (its text apart from names, and the kinds of its operands) runs a few times on made-up operands of
the same shapes, strides and dtypes. The work of convolutions and the like is seen in no other way.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from chainrule.backends.torch.recompute.extract import CPU, CUDA, Prices, tensors_in
from chainrule.backends.torch.recompute.joint import Joint, _fake, kept_generators
from chainrule.ir import Node

_RUNS = 3
_ENOUGH = 0.2  # seconds, after which a line is not run again


def measured_prices(joint: Joint, values: Mapping[Node, torch.Tensor]) -> Prices:
    """Prices with the seconds and the work of every distinct line of a program, by the line's number."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            operands = _operands(joint.again(), {k: _fake(mode, v) for k, v in values.items()})
    except (RuntimeError, NotImplementedError, IndexError):  # ops that look at values
        with kept_generators():
            operands = _operands(joint.again(), {k: v.detach() for k, v in values.items()})
    base = CUDA if any(v.is_cuda for v in values.values()) else CPU
    by_kind: dict[Any, tuple[float, int]] = {}
    seconds: dict[int, float] = {}
    work: dict[int, int] = {}
    joint = joint.again()  # on real tensors from here on
    for at, (line, text, given) in enumerate(zip(joint.lines, joint.texts, operands, strict=True)):
        kind = (_kind(text), tuple(_signature(t) for t in tensors_in(given)))
        if kind not in by_kind:
            with contextlib.suppress(RuntimeError, IndexError, ValueError):
                by_kind[kind] = _measured(line.run, given)
        if kind in by_kind:
            seconds[at], work[at] = by_kind[kind]
    return Prices(base.flops, base.bytes, base.call, seconds, work)


def _operands(joint: Joint, values: Mapping[Node, torch.Tensor]) -> list[list[Any]]:
    """What every line reads."""
    held: dict[Any, Any] = {}
    operands = []
    with torch.no_grad():
        joint.start()
        for leaf in joint.inputs:
            kind = leaf.type
            made = values[leaf] if leaf in values else None
            if made is None:
                made = torch.zeros(kind.shape, dtype=getattr(torch, kind.dtype), device=kind.device)
            held[leaf] = made
        for line in joint.lines:
            given = [held[v] for v in line.reads]
            operands.append(given)
            held.update(zip(line.writes, line.run(given), strict=True))
    return operands


def _kind(text: str) -> str:
    return re.sub(r"\s*#.*", "", re.sub(r"\b[A-Za-z_]\w*\b(?![(.])", "x", text.split(" = ", 1)[1]))


def _signature(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _real(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    with torch.no_grad():
        return made.fill_(0.5) if made.is_floating_point() else made.zero_()


def _measured(run: Any, given: Sequence[Any]) -> tuple[float, int]:
    real = [tree_map(_real, g) for g in given]
    best, spent = float("inf"), 0.0
    with torch.random.fork_rng(), torch.no_grad():
        for _ in range(_RUNS + 1):
            start = perf_counter()
            found = run(real)
            took = perf_counter() - start
            best, spent = min(best, took), spent + took
            if spent > _ENOUGH:
                break
        del found
        work = _work(run, real)
    return best, work


def _work(run: Any, real: Sequence[Any]) -> int:
    """Bytes at the worst moment of a line, beyond what it leaves."""
    if any(t.is_cuda for t in tensors_in(real)):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = run(real)
        torch.cuda.synchronize()
        left = torch.cuda.memory_allocated() - before
        peak = torch.cuda.max_memory_allocated() - before
        del found
        return max(peak - left, 0)
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        found = run(real)
    left, peak = memory_of(profile)
    del found
    return max(peak - left, 0)


def memory_of(profile: Any) -> tuple[int, int]:
    """(bytes at the end, bytes at the worst moment) by the memory events of a profile of the processor."""
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return now, peak
