"""Which blocks keep what: dynamic programming over the chain, for every amount of memory at once.

Finishing blocks a to b with the input of a at hand and m bytes is one of

    run a (or a few blocks from a on as one) with one of its options, finish what is behind, run it backwards, or
    run a to j - 1 keeping nothing, keep the input of j, finish j to b, and then finish a to j - 1, whose forward pass
    runs once more: this nests.

Gradients add up while the backward pass goes on, so that what is available shrinks from block to block. Sub-chains of
the same kinds have one table. The result is the cheapest schedule among those that keep a checkpoint until its blocks
are done.

Source: Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova 2019 ("Optimal checkpointing for heterogeneous chains"), with
recomputation inside a block and growing gradients added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chainrule.planning.blocks import Block, Chain
from chainrule.planning.options import Inside, Option, missing, options
from chainrule.planning.problem import Problem, Schedule

_SLOTS = 1000
_TOGETHER, _TASKS_TOGETHER, _MAX_CHOICES = 6, 48, 80  # blocks taken as one
_LABEL = 1000  # of a choice: length times this, plus the option; -d for a checkpoint d blocks on


@dataclass(frozen=True)
class Choice:
    """What the blocks of one kind can do, in slots of memory."""

    options: tuple[Option, ...]  # of the first block of this kind
    held: np.ndarray
    again: np.ndarray
    rerun: np.ndarray  # cost of running it forwards again so that the option's storages are there
    forward: np.ndarray
    backward: np.ndarray


@dataclass(frozen=True, eq=False)
class Table:
    """Cost by slots of memory, and what was chosen (see ``_LABEL``)."""

    cost: np.ndarray
    choice: np.ndarray


class ChainPlanner:
    """Tables of a problem's chain."""

    def __init__(self, problem: Problem, chain: Chain, limit: int, slots: int = _SLOTS) -> None:
        """``limit``: bytes beyond which memory is no question."""
        self.problem, self.chain = problem, chain
        self.blocks = chain.blocks
        self.unit = _unit(problem, limit, slots)
        self.slots = int(limit / self.unit) + 1
        self.change = np.array([b.change for b in self.blocks], dtype=np.int64)
        self.enters = [self._size(b.enters) for b in self.blocks]
        self._insides: dict[tuple[int, int], Inside] = {}
        self._choices: dict[int, Choice] = {}  # by the number of a run of kinds
        self._origin: dict[int, int] = {}  # the first block of the first such run
        self._names: dict[object, int] = {}
        self._names_of: dict[tuple[int, int], int] = {}
        self.tables: dict[tuple[int, int], Table] = {}
        self._by_kinds: dict[object, Table] = {}
        self._lengths: dict[int, list[int]] = {}
        self._orders: dict[tuple[int, int, frozenset[int]], list[int]] = {}
        self._images: dict[tuple[int, int], dict[int, int]] = {}
        self._fill()

    def inside(self, a: int, length: int = 1) -> Inside:
        """Blocks a to a + length - 1 as one."""
        if (a, length) not in self._insides:
            self._insides[a, length] = Inside(self.problem, merged(self.blocks[a : a + length]), self.chain.pinned)
        return self._insides[a, length]

    def choices(self, a: int, length: int = 1) -> Choice:
        """What blocks a to a + length - 1 can do as one; runs of the same kinds share it."""
        name = self._names_of[a, a + length - 1]
        if name not in self._choices:
            self._choices[name] = self._choice(self.inside(a, length), self._parts(a, length))
            self._origin[name] = a
        return self._choices[name]

    def lengths(self, a: int) -> list[int]:
        """How many blocks from a on are worth taking as one."""
        if a not in self._lengths:
            found = [1]
            tasks = len(self.blocks[a].forward)
            for length in range(2, min(_TOGETHER, len(self.blocks) - a) + 1):
                tasks += len(self.blocks[a + length - 1].forward)
                if tasks > _TASKS_TOGETHER:
                    break
                name = self._names_of.get((a, a + length - 1))
                if name not in self._choices and len(self._choices) >= _MAX_CHOICES:
                    break
                found.append(length)
            self._lengths[a] = found
        return self._lengths[a]

    def _size(self, s: int | None) -> int:
        free = s is None or s in self.problem.resident or s in self.chain.pinned
        return 0 if free else self.problem.sizes[s]  # type: ignore[index]

    def slot(self, size: float) -> int:
        """Bytes in slots, to the nearest: the simulator judges the outcome."""
        return round(size / self.unit)

    def _parts(self, a: int, length: int) -> list[frozenset[int]]:
        """Choices of the pieces put together, with and without what goes from one to the other."""
        if length == 1:
            return []
        one, two = self.choices(a, length - 1), self.choices(a + length - 1)
        between = self.blocks[a + length - 1].enters
        ends = [frozenset[int]()] if between is None else [frozenset[int](), frozenset({between})]
        return [
            self.saved(a, length - 1, j) | self.saved(a + length - 1, 1, k) | end
            for j in range(len(one.options))
            for k in range(len(two.options))
            for end in ends
        ]

    def _choice(self, inside: Inside, parts: Sequence[frozenset[int]]) -> Choice:
        found = options(inside, parts)
        nothing = min(range(len(found)), key=lambda k: (len(found[k].saved), found[k].held))
        found = [found[nothing], *(o for k, o in enumerate(found) if k != nothing)]
        cost = lambda o: sum(inside.whole.tasks[t].cost for t in inside.rerun(o.saved))  # noqa: E731
        return Choice(
            tuple(found),
            np.array([self.slot(o.held) for o in found]),
            np.array([o.again for o in found]),
            np.array([cost(o) for o in found]),
            np.array([self.slot(o.forward_peak) for o in found]),
            np.array([self.slot(o.backward_peak) for o in found]),
        )

    def _fill(self) -> None:
        n = len(self.blocks)
        for b in range(n):
            for a in range(b, -1, -1):
                key = (self.blocks[a].kind,) if a == b else (self.blocks[a].kind, self._names_of[a + 1, b])
                self._names_of[a, b] = self._names.setdefault(key, len(self._names))
        for b in range(n):
            for a in range(b, -1, -1):
                key = (b == n - 1, self._names_of[a, b])
                if key not in self._by_kinds:
                    self._by_kinds[key] = self._table(a, b, b == n - 1)
                self.tables[a, b] = self._by_kinds[key]

    def _table(self, a: int, b: int, first: bool) -> Table:
        m = np.arange(self.slots + 1)
        cost = np.full(self.slots + 1, np.inf)
        choice = np.zeros(self.slots + 1, dtype=np.int32)
        for length in self.lengths(a):
            c = a + length - 1  # the last of those taken as one
            if c > b:
                break
            own = self.choices(a, length)
            label = length * _LABEL
            if c == b and not first:  # its output is not needed any more: its backward pass remakes what it reads
                _better(cost, choice, np.where(m >= own.backward[0], own.again[0], np.inf), label)
            elif c == b:
                needs = np.maximum(own.forward, own.backward)
                for k in range(len(own.options)):
                    _better(cost, choice, np.where(m >= needs[k], own.again[k], np.inf), label + k)
            else:
                rest = self.tables[c + 1, b].cost
                later = self.slot(float(self.change[c + 1 : b + 1].sum()))
                least = np.maximum(own.forward, own.backward + later)
                extra = own.again + (0.0 if first else own.rerun)
                for k in range(len(own.options)):
                    found = _shifted(rest, int(own.held[k])) + extra[k]
                    found[: max(0, min(int(least[k]), len(found)))] = np.inf
                    _better(cost, choice, found, label + k)
        least_forward, extra_forward, grown = 0, 0.0, float(self.change[a : b + 1].sum())
        for j in range(a + 1, b + 1):
            before = self.choices(j - 1)
            coming = 0 if j - 1 == a else self.slot(self.enters[j - 1])
            least_forward = max(least_forward, int(before.forward[0]) + coming)
            extra_forward += 0.0 if first else float(before.rerun[0])
            grown -= float(self.change[j - 1])
            right = self.tables[j, b].cost
            left = self.tables[a, j - 1].cost
            total = _shifted(right, self.slot(self.enters[j])) + _shifted(left, self.slot(grown)) + extra_forward
            if least_forward > 0:
                total[: min(least_forward, len(total))] = np.inf
            _better(cost, choice, total, a - j)
        return Table(cost, choice)

    # ---- schedules -----------------------------------------------------------------------------------------
    def levels(self) -> list[int]:
        """Slots at which the cheapest cost changes, least memory first."""
        cost = self.tables[0, len(self.blocks) - 1].cost
        return [m for m in range(self.slots + 1) if np.isfinite(cost[m]) and (m == 0 or cost[m] < cost[m - 1])]

    def schedule(self, slots: int) -> Schedule:
        """The schedule that was found for so much memory."""
        return Writer(self).write(slots)

    def backward_order(self, a: int, length: int, saved: frozenset[int]) -> list[int]:
        """The backward pass of blocks a to a + length - 1 with its recomputation."""
        key = (a, length, saved)
        if key not in self._orders:
            self._orders[key] = self.inside(a, length).backward_order(saved)
        return self._orders[key]

    def saved(self, a: int, length: int, option: int) -> frozenset[int]:
        """The storages of an option of blocks a to a + length - 1."""
        chosen = self.choices(a, length).options[option].saved
        origin = self._origin[self._names_of[a, a + length - 1]]
        if origin == a:
            return chosen
        if (a, length) not in self._images:
            one, other = self.inside(origin, length).block, self.inside(a, length).block
            self._images[a, length] = corresponding(self.problem, one, other)
        image = self._images[a, length]
        return frozenset(image[s] for s in chosen)


def _unit(problem: Problem, limit: int, slots: int) -> float:
    """Bytes of a slot: about ``limit / slots``, such that most storages are whole numbers of slots."""
    sizes, counts = np.unique([s for s in problem.sizes if s * slots > limit] or [1], return_counts=True)
    units = max(limit, 1) / np.arange(slots * 0.7, slots * 1.3, max(slots / 500, 1.0))
    parts = sizes[None, :] / units[:, None]
    wrong = (np.abs(parts - np.rint(parts)) / parts) @ (counts * sizes)
    return float(units[int(wrong.argmin())])


def merged(blocks: Sequence[Block]) -> Block:
    """Blocks in a row as one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        tuple(t for b in blocks for t in b.forward),
        tuple(t for b in blocks for t in b.early),
        tuple(t for b in reversed(blocks) for t in b.backward),
        blocks[0].enters,
        blocks[-1].leaves,
        -1,
        sum(b.change for b in blocks),
    )


class Writer:
    """A schedule from the choices of the tables: tasks in order, repetitions included."""

    def __init__(self, planner: ChainPlanner) -> None:
        self.planner, self.problem = planner, planner.problem
        self.have: set[int] = set(self.problem.resident)
        self.order: list[int] = []
        self.split = 0

    def write(self, slots: int) -> Schedule:
        n = len(self.planner.blocks)
        todo: list[tuple] = [("solve", 0, n - 1, slots)]
        while todo:
            what, *rest = todo.pop()
            if what == "solve":
                todo += reversed(self._solve(*rest))
            else:
                getattr(self, what)(*rest)
        return Schedule(tuple(self.order), self.split)

    def _solve(self, a: int, b: int, m: int) -> list[tuple]:
        p = self.planner
        first = b == len(p.blocks) - 1
        chosen = int(p.tables[a, b].choice[m])
        if chosen > 0:
            length, option = divmod(chosen, _LABEL)
            saved = p.saved(a, length, option)
            if a + length - 1 == b:
                if not first:
                    return [("backward", a, length, frozenset())]
                return [("forward", a, length, saved, True), ("turn",), ("backward", a, length, saved)]
            held = int(p.choices(a, length).held[option])
            return [
                ("forward", a, length, saved, first),
                ("solve", a + length, b, m - held),
                ("backward", a, length, saved),
            ]
        j = a - chosen
        grown = p.slot(float(p.change[j : b + 1].sum()))
        steps: list[tuple] = []
        for i in range(a, j):
            steps.append(("forward", i, 1, frozenset(), first))
            if i > a:
                steps.append(("drop", p.blocks[i].enters))
        kept = m - p.slot(p.enters[j])
        steps += [("solve", j, b, kept), ("drop", p.blocks[j].enters)]
        steps.append(("solve", a, j - 1, min(m - grown, p.slots)))
        return steps

    def turn(self) -> None:
        """Where the forward pass ends."""
        self.split = len(self.order)
        self.have |= self.problem.cotangents

    def drop(self, storage: int) -> None:
        """A storage is not kept any more."""
        if storage not in self.planner.chain.pinned and storage not in self.problem.resident:
            self.have.discard(storage)

    def forward(self, k: int, length: int, saved: frozenset[int], first: bool) -> None:
        """Runs ``length`` blocks from k on forwards; ``saved`` and its output are kept."""
        inside, pinned = self.planner.inside(k, length), self.planner.chain.pinned
        tasks = list(inside.block.forward) if first else inside.rerun(saved)
        early = [t for t in inside.ahead(saved) if not self._there(t)]
        kept = saved | pinned | ({inside.block.leaves} if inside.block.leaves is not None else set())
        for t in [*tasks, *early]:
            self.order.append(t)
            self.have.update(s for s in self.problem.tasks[t].writes if s in kept)

    def _there(self, t: int) -> bool:
        return all(s in self.have for s in self.problem.tasks[t].writes)

    def backward(self, k: int, length: int, saved: frozenset[int]) -> None:
        """Runs ``length`` blocks from k on backwards, recomputing what is not at hand just before it is needed."""
        inside, pinned = self.planner.inside(k, length), self.planner.chain.pinned
        made = inside.made
        if all(s in self.have for s in made if s in pinned):
            self.order += self.planner.backward_order(k, length, saved)
            self.have.update(s for t in inside.block.backward for s in self.problem.tasks[t].writes)
        else:
            for t in inside.block.backward:
                roots = [s for s in self.problem.tasks[t].reads if s in made]
                for again in missing(self.problem, roots, self.have.__contains__, self.problem.writer):
                    self.order.append(again)
                    self.have.update(self.problem.tasks[again].writes)
                self.order.append(t)
                self.have.update(self.problem.tasks[t].writes)
        for s in made:
            if s not in pinned:
                self.have.discard(s)


def corresponding(problem: Problem, one: Block, other: Block) -> dict[int, int]:
    """storage of one block -> the storage in its place in another of the same kind."""
    image: dict[int, int] = {}
    for part in ("forward", "early", "backward"):
        for t, u in zip(getattr(one, part), getattr(other, part), strict=True):
            for x, y in zip(problem.tasks[t].writes, problem.tasks[u].writes, strict=True):
                image[x] = y
    if one.enters is not None and other.enters is not None:
        image[one.enters] = other.enters
    return image


def _shifted(cost: np.ndarray, by: int) -> np.ndarray:
    """``cost`` at ``by`` slots less."""
    if by == 0:
        return cost.copy()
    out = np.full_like(cost, np.inf)
    if by > 0:
        if by < len(cost):
            out[by:] = cost[:-by]
    else:
        by = min(-by, len(cost) - 1)
        out[: len(cost) - by] = cost[by:]
        out[len(cost) - by :] = cost[-1]
    return out


def _better(cost: np.ndarray, choice: np.ndarray, found: np.ndarray, label: int) -> None:
    wins = found < cost - 1e-15
    cost[wins] = found[wins]
    choice[wins] = label
