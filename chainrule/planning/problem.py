"""What there is to plan: the tasks of a forward and a backward pass, the storages they read and write, their prices.

A *task* runs one op (and whatever makes views of its results: views cost nothing and share the storage). A *storage* is
a piece of memory with a size. The forward pass is the first ``forward`` tasks, in the order of the program; the tasks
behind it are the backward pass. A task of the backward pass that depends on no cotangent is *early*: it could as well
run in the forward pass (the mask of a relu), at no extra cost.

A *schedule* is a sequence of tasks with repetitions. Running a task again makes its storages again; a storage lives
from the run that wrote it to its last reader before it is written again. So a schedule says what is kept and what is
recomputed, and nothing else has to be said. Pure data: no torch, no names of ops.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from chainrule.errors import ModelError


@dataclass(frozen=True)
class Task:
    """One step of a program.

    Attributes:
        name: for tables. reads, writes: storages. cost: seconds, or any unit that adds.
        work: bytes beside its results while it runs.
        again: whether it may run a second time. state: bytes kept so that it draws the same numbers again.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    cost: float
    work: int = 0
    again: bool = True
    state: int = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """A forward and a backward pass.

    Attributes:
        tasks: in the order of the program. sizes: bytes of each storage. forward: how many tasks are the forward pass.
        resident: storages that are there all the time and are not counted (parameters, inputs).
        cotangents: storages that are given at the start of the backward pass and are counted from there on.
        returned: storages that leave the forward pass and are held from there on (outputs, new buffers).
        gradients: storages that leave the backward pass.
    """

    tasks: tuple[Task, ...]
    sizes: tuple[int, ...]
    forward: int
    resident: frozenset[int] = frozenset()
    cotangents: frozenset[int] = frozenset()
    returned: frozenset[int] = frozenset()
    gradients: frozenset[int] = frozenset()
    # Where tasks come from, for tables: an index into names of modules.
    modules: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def writer(self) -> dict[int, int]:
        """storage -> the task that writes it."""
        return {s: t for t, task in enumerate(self.tasks) for s in task.writes}

    @cached_property
    def early(self) -> frozenset[int]:
        """Tasks of the backward pass that depend on no cotangent."""
        late: set[int] = set(self.cotangents)
        found = set()
        for t in range(self.forward, len(self.tasks)):
            if any(s in late for s in self.tasks[t].reads):
                late.update(self.tasks[t].writes)
            else:
                found.add(t)
        return frozenset(found)

    @cached_property
    def backward(self) -> tuple[int, ...]:
        """Tasks that depend on a cotangent, in order: each runs once."""
        return tuple(t for t in range(self.forward, len(self.tasks)) if t not in self.early)

    @property
    def cost(self) -> float:
        """Of every task once."""
        return sum(t.cost for t in self.tasks)

    @cached_property
    def digest(self) -> str:
        """The same in every process for the same problem: ranks and saved plans are compared by it."""
        body = repr(
            [(t.reads, t.writes, t.work, t.again, t.state) for t in self.tasks]
            + [self.sizes, self.forward]
            + [sorted(x) for x in (self.resident, self.cotangents, self.returned, self.gradients)]
        )
        return hashlib.blake2b(body.encode(), digest_size=12).hexdigest()

    def check(self) -> None:
        """Raises ModelError where a storage is written twice, or read before it is there."""
        there: set[int] = set(self.resident)
        for t, task in enumerate(self.tasks):
            if t == self.forward:
                there |= self.cotangents
            missing = [s for s in task.reads if s not in there]
            if missing:
                raise ModelError(f"task {task.name!r} reads storage {missing[0]} before it is written")
            twice = [s for s in task.writes if s in there]
            if twice:
                raise ModelError(f"task {task.name!r} writes storage {twice[0]} a second time")
            there.update(task.writes)


@dataclass(frozen=True)
class Schedule:
    """A sequence of tasks: ``order[:split]`` is run by the forward pass, the rest by the backward pass."""

    order: tuple[int, ...]
    split: int


def unplanned(problem: Problem) -> Schedule:
    """Every task once, in the order of the program."""
    return Schedule(tuple(range(len(problem.tasks))), problem.forward)
