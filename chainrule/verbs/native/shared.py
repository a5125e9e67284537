"""What engines of one architecture share in a process, and what each has looked through."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from chainrule.backends.native.prepare import Limit
from chainrule.backends.native.program import Program, build
from chainrule.backends.native.threads import ONE, Threads
from chainrule.errors import ModelError
from chainrule.ir import Node
from chainrule.verbs.native.traced import Traced


class Checked:
    """Integer tensors whose numbers were found to be allowed: looked through once, and again after a write."""

    def __init__(self) -> None:
        self._seen: dict[Node, tuple[weakref.ref[torch.Tensor], int, int]] = {}

    def check(self, leaf: Node, tensor: torch.Tensor, limit: Limit) -> None:
        """Raises ModelError for a position or class number outside of its range."""
        seen = self._seen.get(leaf)
        known = seen is not None and seen[0]() is tensor and seen[1:] == (tensor._version, tensor.numel())
        if known or not tensor.numel():
            return
        wrong = (tensor < 0) | (tensor >= limit.size)
        for number in limit.ignored:
            wrong &= tensor != number
        if bool(wrong.any()):
            raise ModelError(
                f"{leaf.params['name']} holds a number outside of its range",
                given=str(int(tensor[wrong].flatten()[0])),
                required=f"0 to {limit.size - 1}",
            )
        self._seen[leaf] = weakref.ref(tensor), tensor._version, tensor.numel()


class Compiled:
    """The programs of one architecture, by batch size. Holds no tensor of a model, so that models share it."""

    def __init__(self, size: int, replicas: int = 1, threads: Threads = ONE) -> None:
        self.size, self.replicas, self.threads = size, replicas, threads
        self.programs: dict[int, tuple[Program, Traced]] = {}
        self.lock = threading.RLock()

    def program(self, size: int, trace: Callable[[int], Traced], longest: int | None = None) -> tuple[Program, Traced]:
        """The program for batches of a size; the first one made decides where parameters lie.

        ``longest``: see :func:`chainrule.backends.native.program.build`.
        """
        with self.lock:
            if size not in self.programs:
                with _uncollected():
                    self.programs[size] = self._made(trace(size), longest)
            return self.programs[size]

    def _made(self, traced: Traced, longest: int | None) -> tuple[Program, Traced]:
        fixed = self.programs[self.size][0].layout if self.programs else None
        rates = traced.rule.rates if traced.rule is not None else ()
        how: dict[str, Any] = {"replicas": self.replicas}
        if self.replicas == 1:
            how = {"quick": True, "threads": self.threads.of(traced.graph), "steady": self.threads.exact}
        return build(traced.graph, traced.batch, rates, fixed, longest=longest, **how), traced


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection while many small things are made that all stay: it takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_KEPT = 64
_COMPILED: OrderedDict[Hashable, Compiled] = OrderedDict()
_LOCK = threading.Lock()


def shared(key: Hashable | None, size: int, replicas: int = 1, threads: Threads = ONE) -> Compiled:
    """What was compiled for this architecture in this process; a new one where there is no key."""
    if key is None:
        return Compiled(size, replicas, threads)
    key = (key, replicas, threads)
    with _LOCK:
        found = _COMPILED.pop(key, None) or Compiled(size, replicas, threads)
        _COMPILED[key] = found
        while len(_COMPILED) > _KEPT:
            _COMPILED.popitem(last=False)
    return found
