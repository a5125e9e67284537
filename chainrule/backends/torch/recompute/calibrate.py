"""What each distinct line costs on this machine: seconds, and bytes beside its results, measured once.

Every distinct line (its text apart from names, and the kinds of its operands) runs a few times on made-up operands of
the same shapes, strides and dtypes. The work of convolutions and the like is seen in no other way.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
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
_MARK = "line of a plan "


def measured_prices(joint: Joint, values: Mapping[Node, torch.Tensor]) -> Prices:
    """Prices with the seconds and the work of every distinct line of a program, by the line's number."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            operands = _operands(joint.again(), {k: _fake(mode, v) for k, v in values.items()})
    except (RuntimeError, IndexError):  # ops that look at values
        with kept_generators():
            operands = _operands(joint.again(), {k: v.detach() for k, v in values.items()})
    base = CUDA if any(v.is_cuda for v in values.values()) else CPU
    joint = joint.again()  # on real tensors from here on
    kinds = [
        (_kind(text), tuple(_signature(t) for t in tensors_in(given)))
        for text, given in zip(joint.texts, operands, strict=True)
    ]
    runs = {kind: _Run(line.run, given) for kind, line, given in zip(kinds, joint.lines, operands, strict=True)}
    seconds: dict[Any, float] = {}
    with torch.random.fork_rng(), torch.no_grad():
        for kind, run in runs.items():
            with contextlib.suppress(RuntimeError, IndexError, ValueError):  # an op that refuses made-up values
                seconds[kind] = run.seconds()
        worked = _work([runs[kind] for kind in seconds])
    work = dict(zip(seconds, worked, strict=True))
    known = [at for at, kind in enumerate(kinds) if kind in seconds]
    return Prices(
        base.flops,
        base.bytes,
        base.call,
        {at: seconds[kinds[at]] for at in known},
        {at: work[kinds[at]] for at in known},
    )


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


@dataclass(frozen=True, eq=False)
class _Run:
    """A line and operands without data."""

    run: Callable[[Sequence[Any]], Sequence[Any]]
    given: Sequence[Any]

    def real(self) -> list[Any]:
        """Made-up operands."""
        return [tree_map(_real, g) for g in self.given]

    def seconds(self) -> float:
        """The shortest of a few runs."""
        real = self.real()
        best, spent = float("inf"), 0.0
        for _ in range(_RUNS + 1):
            start = perf_counter()
            self.run(real)
            took = perf_counter() - start
            best, spent = min(best, took), spent + took
            if spent > _ENOUGH:
                break
        return best


def _work(runs: Sequence[_Run]) -> list[int]:
    """Bytes at the worst moment of each line, beyond what it leaves.

    All lines of the processor are in one profile: torch writes to the standard error when one starts and ends.
    """
    found: dict[int, int] = {}
    profile: Any  # torch's own type says that there may be none
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        for k, line in enumerate(runs):
            real = line.real()
            if any(t.is_cuda for t in tensors_in(real)):
                found[k] = _work_on_device(line, real)
                continue
            with torch.autograd.profiler.record_function(f"{_MARK}{k}"):
                left = line.run(real)
            del left
    events = sorted(_memory_events(profile), key=itemgetter(0))
    at = [when for when, _ in events]
    for event in profile.kineto_results.events():
        if event.name().startswith(_MARK):
            start = bisect_left(at, event.start_ns())
            until = bisect_right(at, event.start_ns() + event.duration_ns())
            sums = list(accumulate(size for _, size in events[start:until]))
            found[int(event.name().removeprefix(_MARK))] = max([0, *sums]) - (sums[-1] if sums else 0)
    return [found[k] for k in range(len(runs))]


def _work_on_device(line: _Run, real: Sequence[Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = line.run(real)
    torch.cuda.synchronize()
    left, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    del found
    return max(peak - left, 0)


def _memory_events(profile: Any) -> Iterator[tuple[int, int]]:
    """(moment, bytes more or less) of the processor."""
    return ((e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]")


def memory_of(profile: Any) -> tuple[int, int]:
    """(bytes at the end, bytes at the worst moment) by the memory events of a profile of the processor."""
    sums = list(accumulate(size for _, size in sorted(_memory_events(profile), key=itemgetter(0))))
    return (sums[-1], max(0, *sums)) if sums else (0, 0)
