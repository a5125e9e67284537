"""A schedule of a joint program as two Python functions: what runs forwards, and what runs backwards.

``forward(*inputs)`` returns the outputs, the new buffers and the list of what is kept; ``backward(inputs, kept)``
empties that list into local names, so that whatever is deleted is free. A line that runs again is written again, under
the same names; a draw that runs again is given the generator's state from before its first run.
"""

from __future__ import annotations

import builtins
import hashlib
import linecache
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.backends.torch.recompute.extract import Extraction
from chainrule.backends.torch.recompute.joint import Joint
from chainrule.planning.problem import Schedule
from chainrule.planning.simulate import lifetimes

_HEAD = "        "


@dataclass(frozen=True, eq=False)
class Passes:
    """The two functions.

    Attributes:
        forward: ``(*inputs) -> (outputs, buffers and checks, kept)``.
        backward: ``(inputs, kept) -> gradients``, with the
            cotangents of the outputs at the end of ``kept``. source: what runs.
        read: indices of inputs that the backward pass reads.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    source: str
    read: tuple[int, ...]


def passes_of(joint: Joint, extraction: Extraction, schedule: Schedule) -> Passes:
    """The functions that run a schedule. The loss is the caller's, and no part of them."""
    writer = _Schedule(joint, extraction, schedule)
    source = writer.source()
    forward, backward = _compiled(source, joint)
    return Passes(forward, backward, source, writer.read_behind)


class _Schedule:
    def __init__(self, joint: Joint, extraction: Extraction, schedule: Schedule) -> None:
        self.joint, self.extraction, self.problem = joint, extraction, extraction.problem
        order, split = schedule.order, schedule.split
        dead = lifetimes(self.problem, schedule)
        ahead = [at for at in range(split) if order[at] in extraction.line_at]
        behind = [at for at in range(split, len(order)) if order[at] in extraction.line_at]
        self.order, self.dead = order, dead
        self.ahead, self.behind = ahead, behind
        self.lines, self.texts, self.names = joint.lines, joint.texts, joint.names
        self.inputs = set(joint.inputs)
        self.cotangents = [g for g in joint.cotangents if g is not None]
        self.given = (self.inputs - set(self.cotangents)) | joint.fixed
        self.runs_twice = {t for t in set(order) if order.count(t) > 1} if len(order) > len(set(order)) else set()
        self.live: set[Any] = set()
        self.by_storage: dict[int, set[Any]] = {}
        self.body: list[str] = []
        self.states: dict[int, str] = {}
        self.read_behind: tuple[int, ...] = ()
        self._used: set[Any] = set()

    def source(self) -> str:
        args = [i for i in self.joint.inputs if i not in self.cotangents]
        names = [self.names[i] for i in args]
        kept = self._kept()
        for at in self.ahead:
            self._run(at, keep=kept)
        for value in [*self.joint.outputs, *self.joint.updates.values(), *self.joint.checks, *kept]:
            self._ensure(value)
        forward = self.body
        outs = self._tuple(self.joint.outputs)
        news = self._tuple([*self.joint.updates.values(), *self.joint.checks])
        states = [n for n in self.states.values()]
        held = ", ".join([*(self._name(v) for v in kept), *states])
        forward.append(f"return {outs}, {news}, [{held}]")
        # ---- backward
        self.body, self.live, self.by_storage = [], set(), {}
        self._used = set()
        for value in [*kept, *self.cotangents]:
            self._born(value)
        unpack = [*(self._name(v) for v in kept), *states, *(self._name(g) for g in self.cotangents)]
        if unpack:
            self.body.append(f"({', '.join(unpack)},) = kept")
        self.body.append("kept.clear()")
        first = {s for g in self.cotangents for s in self.extraction.storage_of[g]}
        unread = first - {s for at in self.behind for s in self.problem.tasks[self.order[at]].reads}
        for s in unread - self._gradient_storages():
            self._free(s)
        for at in self.behind:
            self._run(at, keep=())
        for g in self.joint.gradients:
            if g is not None:
                self._ensure(g)
        grads = ", ".join("None" if g is None else self._name(g) for g in self.joint.gradients)
        self.body.append(f"return ({grads},)" if grads else "return ()")
        backward = self.body
        used = self._used
        self.read_behind = tuple(k for k, i in enumerate(args) if i in used)
        read = "".join(f"{self.names[i]} = inputs[{k}]\n" for k, i in enumerate(args) if i in used)
        lines = [self.joint.above, "", f"def forward({', '.join(names)}):"]
        lines += [f"    {x}" for b in forward for x in b.splitlines()]
        lines += ["", "def backward(inputs, kept):"]
        lines += [f"    {x}" for x in read.splitlines()]
        lines += [f"    {x}" for b in backward for x in b.splitlines()]
        return "\n".join([*lines, ""])

    def _gradient_storages(self) -> frozenset[int]:
        return self.problem.gradients

    def _tuple(self, values: Any) -> str:
        names = [self._name(v) for v in values]
        return f"({', '.join(names)}{',' if len(names) == 1 else ''})"

    def _name(self, value: Any) -> str:
        self._used.add(value)
        return self.names[value]

    def _kept(self) -> list[Any]:
        """Values that cross from the forward to the backward pass: what is read there and not made there before."""
        written: set[Any] = set(self.cotangents)
        found: dict[Any, None] = {}

        def reads(values: Sequence[Any]) -> None:
            stack = list(values)
            while stack:
                v = stack.pop()
                if v in self.given or v in written or v.number is not None:
                    continue
                at = self.extraction.made_by[v]
                if at in self.extraction.views:
                    stack += self.lines[at].reads
                else:
                    found[v] = None

        for at in self.behind:
            line = self.lines[self.extraction.line_at[self.order[at]]]
            reads(line.reads)
            written.update(line.writes)
        reads([g for g in self.joint.gradients if g is not None])
        return list(found)

    # ---- one run -------------------------------------------------------------------------------------------
    def _run(self, at: int, keep: Sequence[Any]) -> None:
        task = self.order[at]
        number = self.extraction.line_at[task]
        line, text = self.lines[number], self.texts[number]
        for value in line.reads:
            self._ensure(value)
        if number in self.joint.draws and task in self.runs_twice:
            text = self._replayed(task, text)
        self.body.append(text)
        for value in line.writes:
            self._born(value)
        stays = {s for v in keep for s in self.extraction.storage_of[v]}
        stays |= self.problem.returned | self.problem.gradients
        gone = ["_"] if re.search(r"(^|, )_(,| =)", text.split(" = ")[0] + " =") else []
        for s in self.dead[at]:
            if s not in stays:
                gone += self._names_on(s)
        if gone:
            self.body.append(f"del {', '.join(gone)}")

    def _replayed(self, task: int, text: str) -> str:
        """A draw that runs more than once: the first run notes the generator's state, the others start from it."""
        device = self._device(task)
        if task not in self.states:
            self.states[task] = f"state_{len(self.states)}"
            return f"{self.states[task]} = get_state({device!r})\n{text}"
        return f"with replay({device!r}, {self.states[task]}):\n    {text}"

    def _device(self, task: int) -> str:
        (value, *_) = self.lines[self.extraction.line_at[task]].writes
        return getattr(value.type, "device", "cpu")

    def _ensure(self, value: Any) -> None:
        """Makes a view again where it was not carried along."""
        stack = [value]
        while stack:
            v = stack[-1]
            if v in self.live or v in self.given or v.number is not None:
                if v in self.given:
                    self._used.add(v)
                stack.pop()
                continue
            number = self.extraction.made_by.get(v)
            if number is None or number not in self.extraction.views:
                raise AssertionError(f"{self.names[v]} is not there")
            line = self.lines[number]
            waiting = [r for r in line.reads if r not in self.live and r not in self.given]
            if waiting:
                stack += waiting
                continue
            self._used.update(line.reads)
            self.body.append(self.texts[number])
            for w in line.writes:
                self._born(w)
            stack.pop()

    def _born(self, value: Any) -> None:
        self.live.add(value)
        self._used.add(value)
        for s in self.extraction.needs[value]:
            self.by_storage.setdefault(s, set()).add(value)

    def _names_on(self, storage: int) -> list[str]:
        values = [v for v in self.by_storage.pop(storage, ()) if v in self.live]
        self.live -= set(values)
        return sorted(self.names[v] for v in values)

    def _free(self, storage: int) -> None:
        gone = self._names_on(storage)
        if gone:
            self.body.append(f"del {', '.join(gone)}")


def _compiled(source: str, joint: Joint) -> tuple[Callable[..., Any], Callable[..., Any]]:
    file = f"<chainrule plan {hashlib.blake2b(source.encode(), digest_size=6).hexdigest()}>"
    namespace: dict[str, Any] = {"torch": torch, "get_state": get_state, "replay": replay}
    for name, held in joint.held.items():
        namespace[name] = torch.from_numpy(held.copy()) if isinstance(held, np.ndarray) else held
    exec(builtins.compile(source, file, "exec"), namespace)  # our own text, made from the graph alone
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    weakref.finalize(namespace["forward"], linecache.cache.pop, file, None)
    return namespace["forward"], namespace["backward"]


def get_state(device: str) -> torch.Tensor:
    """The state of the generator that draws on this device."""
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)


class replay:
    """Draws from an earlier state of the generator, and puts the present one back."""

    def __init__(self, device: str, state: torch.Tensor) -> None:
        self.device, self.state = device, state

    def __enter__(self) -> None:
        self.now = get_state(self.device)
        self._set(self.state)

    def __exit__(self, *_: Any) -> None:
        self._set(self.now)

    def _set(self, state: torch.Tensor) -> None:
        if self.device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, self.device)
