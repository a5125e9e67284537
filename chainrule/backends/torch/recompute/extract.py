"""The planner's problem, from the lines of a program: every line runs once on fake tensors, which have no data.

What a line allocates, what its results share with its operands, how many operations it makes and how many bytes it
moves are read off the run; nothing about an op has to be known. Lines come from our own joint graph or from a graph of
torch.fx; both are the same to the planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from chainrule.planning.problem import Problem, Task

Value = Any  # a node of a graph: what a variable of the emitted source holds


@dataclass(frozen=True, eq=False)
class Line:
    """One statement.

    Attributes:
        name: for tables. reads: values it refers to. writes: values it assigns. run: the statement on tensors.
        module: dotted path of the module that it belongs to, where known.
        again: whether it may run twice. state: bytes of generator state that a second run needs.
    """

    name: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    run: Callable[[Sequence[Any]], Sequence[Any]]
    module: str = ""
    again: bool = True
    state: int = 0


@dataclass(frozen=True)
class Prices:
    """Seconds of a line: the slower of arithmetic and memory traffic, and what a call costs.

    Attributes:
        flops: operations per second of products (two per multiplication). bytes: moved per second. call: seconds.
        known: seconds measured on this machine, by line; they win. work: bytes beside the results, by line.
    """

    flops: float
    bytes: float
    call: float = 0.0
    known: Mapping[int, float] = field(default_factory=dict)
    work: Mapping[int, int] = field(default_factory=dict)

    def seconds(self, flops: float, moved: float) -> float:
        return max(flops / self.flops, moved / self.bytes) + self.call


# One core of a server processor in float32: products near 50 GFlop/s, memory near 10 GB/s.
CPU = Prices(5e10, 1e10, 3e-6)
CUDA = Prices(1e14, 1.5e12, 5e-6)


@dataclass(frozen=True, eq=False)
class Extraction:
    """A problem and where its tasks and storages come from.

    Attributes:
        lines: those of the program. line_at: task -> line; the loss's tasks have none. made_by: value -> its line.
        storage_of: value -> its storages; needs: with those that its views read. views: lines that make views alone.
    """

    problem: Problem
    lines: tuple[Line, ...]
    line_at: Mapping[int, int]
    made_by: Mapping[Value, int]
    storage_of: Mapping[Value, tuple[int, ...]]
    views: frozenset[int]
    needs: Mapping[Value, tuple[int, ...]]
    flops: tuple[float, ...]  # per task
    moved: tuple[float, ...]
    constants: int = 0  # bytes of what is made once and stays, and of buffers as they were before their update


def extract(
    lines: Sequence[Line],
    forward: int,
    given: Mapping[Value, Any],
    cotangents: Sequence[Value],
    returned: Sequence[Value],
    gradients: Sequence[Value],
    prices: Prices = CPU,
    loss: Loss | None = None,
) -> Extraction:
    """The problem of a program.

    Args:
        lines: in order; the first ``forward`` are the forward pass. given: value -> fake tensor of every input.
        cotangents: inputs of the backward pass. returned, gradients: what leaves the passes.
        loss: what runs between the passes: it reads what is returned and gives the cotangents.
    """
    meter = Meter()
    held: dict[Value, Any] = dict(given)
    numbers: dict[Any, int] = {}
    sizes: list[int] = []
    keep: list[Any] = []  # storages stay alive here, so that no two have one address

    def storages(value: Any) -> tuple[int, ...]:
        found: list[int] = []
        for tensor in tensors_in(value):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in numbers:
                numbers[key] = len(sizes)
                sizes.append(storage.nbytes())
                keep.append(storage)
            found.append(numbers[key])
        return tuple(dict.fromkeys(found))

    storage_of = {v: storages(t) for v, t in held.items()}
    needs = dict(storage_of)  # value -> storages that have to be there to have it: views may read more than their own
    resident = {s for v, t in storage_of.items() if v not in set(cotangents) for s in t}
    tasks: list[Task] = []
    modules: list[str] = []
    line_at: dict[int, int] = {}
    made_by: dict[Value, int] = {}
    views: set[int] = set()
    flops: list[float] = []
    moved: list[float] = []
    first_backward = None
    for at, line in enumerate(lines):
        if at == forward:
            first_backward = len(tasks)
        before = len(sizes)
        with meter:
            results = line.run([held[v] for v in line.reads])
        for value, result in zip(line.writes, results, strict=True):
            held[value] = result
            storage_of[value] = storages(result)
            made_by[value] = at
        count, traffic, hidden = meter.take(keep)
        reads = tuple(dict.fromkeys(s for v in line.reads for s in needs[v]))
        for value in line.writes:
            if not storage_of[value]:  # no tensor: what it holds inside is a storage of its own
                storage_of[value] = (len(sizes),)
                sizes.append(hidden)
                hidden = 0
        if hidden and line.writes:  # beside tensors, what a tape keeps
            storage_of[line.writes[-1]] += (len(sizes),)
            sizes.append(hidden)
        fresh = tuple(range(before, len(sizes)))
        for value in line.writes:
            needs[value] = storage_of[value]
        if not fresh:
            views.add(at)
            for value in line.writes:
                needs[value] = tuple(dict.fromkeys((*storage_of[value], *reads)))
            continue
        seconds = prices.known.get(at, prices.seconds(count, traffic))
        tasks.append(Task(line.name, reads, fresh, seconds, prices.work.get(at, 0), line.again, line.state))
        modules.append(line.module)
        line_at[len(tasks) - 1] = at
        flops.append(count)
        moved.append(traffic)

    def of(values: Sequence[Value]) -> frozenset[int]:
        return frozenset(s for v in values for s in storage_of.get(v, ())) - frozenset(resident)

    ahead = len(tasks) if first_backward is None else first_backward
    given_back = of(cotangents)
    if loss is not None:
        tasks, modules, flops, moved, line_at, ahead, given_back = _with_loss(
            loss, tasks, modules, flops, moved, line_at, ahead, sizes, of(returned), given_back, prices
        )
    problem = Problem(
        tuple(tasks),
        tuple(sizes),
        ahead,
        frozenset(resident),
        given_back,
        of(returned),
        of(gradients),
        tuple(modules),
    )
    return Extraction(
        problem, tuple(lines), line_at, made_by, storage_of, frozenset(views), needs, tuple(flops), tuple(moved)
    )


@dataclass(frozen=True)
class Loss:
    """What a loss needs between the passes, as it is run: bytes.

    Attributes:
        saved: kept from its forward to its backward pass. forward, backward: peaks beside the model's outputs, the
            cotangents that come out included. flops, moved: operations and bytes of both.
    """

    saved: int
    forward: int
    backward: int
    moved: float = 0.0


def _with_loss(
    loss: Loss,
    tasks: list[Task],
    modules: list[str],
    flops: list[float],
    moved: list[float],
    line_at: dict[int, int],
    ahead: int,
    sizes: list[int],
    returned: frozenset[int],
    cotangents: frozenset[int],
    prices: Prices,
) -> tuple[list[Task], list[str], list[float], list[float], dict[int, int], int, frozenset[int]]:
    """The loss as two tasks that run once: it saves something, and makes the cotangents out of it and a seed."""
    saved, seed = len(sizes), len(sizes) + 1
    sizes += [loss.saved, 0]
    seconds = prices.seconds(0.0, loss.moved / 2)
    out = sum(sizes[s] for s in cotangents)
    reads = tuple(sorted(returned))
    first = Task("loss", reads, (saved,), seconds, max(loss.forward - loss.saved, 0), again=False)
    work = max(loss.backward - loss.saved - out, 0)
    second = Task("loss backward", (*reads, saved, seed), tuple(sorted(cotangents)), seconds, work)
    at = {t if t < ahead else t + 2: line for t, line in line_at.items()}
    put = lambda items, x, y: [*items[:ahead], x, y, *items[ahead:]]  # noqa: E731
    return (
        put(tasks, first, second),
        put(modules, "loss", "loss"),
        put(flops, 0.0, 0.0),
        put(moved, loss.moved / 2, loss.moved / 2),
        at,
        ahead + 1,
        frozenset({seed}),
    )


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples and lists."""
    return (t for t in tree_leaves(value) if isinstance(t, torch.Tensor))


class Meter(TorchDispatchMode):
    """Operations and bytes moved by what runs below it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = 0.0
        self.made: dict[int, tuple[Any, int]] = {}

    def take(self, known: Sequence[Any]) -> tuple[float, float, int]:
        """Operations and bytes since the last time, and bytes of what was made, is alive, and is not ``known``."""
        there = {s._cdata for s in known[-len(self.made) - 8 :]} if self.made else set()
        hidden = sum(size for key, (ref, size) in self.made.items() if key not in there and not ref.expired())
        found = self.flops, self.moved, hidden
        self.flops = self.moved = 0.0
        self.made = {}
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        found = list(tensors_in(out))
        old = {t.untyped_storage()._cdata for t in given}
        if found and all(t.untyped_storage()._cdata in old for t in found) and not func._schema.is_mutable:
            return out  # a view
        count = flop_registry.get(func._overloadpacket) or _ATTENTION.get(func._overloadpacket.__name__)
        if count is not None:
            self.flops += float(count(*args, **kwargs, out_val=out))
        for t in found:
            storage = t.untyped_storage()
            if storage._cdata not in old:
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.moved += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in (*given, *found))
        return out


def _attention(factor: float) -> Callable[..., float]:
    def flops(*args: Any, **_: Any) -> float:
        q, k, v = (t for t in list(tensors_in(args))[:3])
        b, h, s, d = q.shape
        return factor * b * h * s * k.shape[2] * (d + v.shape[3])

    return flops


def _attention_backward(grad: Any, *args: Any, **_: Any) -> float:
    return _attention(5.0)(*args)


# torch's own counter does not know its attention kernels for processors: 2 products forward, 5 backward.
_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention(2.0),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}
