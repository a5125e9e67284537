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
from chainrule.planning.slots import Cheapest, Table, distances, more, unit_of

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


class ChainPlanner:
    """Tables of a problem's chain."""

    def __init__(
        self, problem: Problem, chain: Chain, limit: int, slots: int | None = None, like: ChainPlanner | None = None
    ) -> None:
        """``limit``: bytes beyond which memory is no question. ``like``: a planner that knows what blocks can do."""
        self.problem, self.chain = problem, chain
        self.blocks = chain.blocks
        self.unit = unit_of(problem, limit, slots)
        self.like = like
        self.slots = int(limit / self.unit) + 1
        self.change = np.array([b.change for b in self.blocks], dtype=np.int64)
        self.enters = [self._size(b.enters) for b in self.blocks]
        self._insides: dict[tuple[int, int], Inside] = {} if like is None else like._insides
        self._choices: dict[int, Choice] = {}  # by the number of a run of kinds
        self._origin: dict[int, int] = {}  # the first block of the first such run
        self._names: dict[object, int] = {} if like is None else like._names
        self._names_of: dict[tuple[int, int], int] = {} if like is None else like._names_of
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
            known = None if self.like is None else self.like._choices.get(name)
            if known is not None:
                self._choices[name], self._origin[name] = self._in_slots(known), self.like._origin[name]  # type: ignore[union-attr]
            else:
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
        again, rerun = np.array([o.again for o in found]), np.array([cost(o) for o in found])
        return self._in_slots(Choice(tuple(found), again, again, rerun, again, again))

    def _in_slots(self, known: Choice) -> Choice:
        """The same choices in slots of this planner."""
        found = known.options
        return Choice(
            found,
            np.array([self.slot(o.held) for o in found]),
            known.again,
            known.rerun,
            np.array([self.slot(o.forward_peak) for o in found]),
            np.array([self.slot(o.backward_peak) for o in found]),
        )

    def _fill(self) -> None:
        n = len(self.blocks)
        for b in range(n):
            for a in range(b, -1, -1):
                key = (self.blocks[a].kind,) if a == b else (self.blocks[a].kind, self._names_of[a + 1, b])
                self._names_of[a, b] = self._names.setdefault(key, len(self._names))
        self._enter_slots = [self.slot(e) for e in self.enters]
        self._changed = np.concatenate([[0.0], np.cumsum(self.change)])  # by the first blocks
        for b in range(n):
            for a in range(b, -1, -1):
                key = (b == n - 1, self._names_of[a, b])
                if key not in self._by_kinds:
                    self._by_kinds[key] = self._table(a, b, b == n - 1)
                self.tables[a, b] = self._by_kinds[key]

    def _grown(self, a: int, b: int) -> int:
        """By how many slots the backward pass of blocks a to b changes what the backward pass holds."""
        return self.slot(float(self._changed[b + 1] - self._changed[a]))

    def _table(self, a: int, b: int, first: bool) -> Table:
        count = self.slots + 1
        found = Cheapest(count)
        for length in self.lengths(a):
            c = a + length - 1  # the last of those taken as one
            if c > b:
                break
            own = self.choices(a, length)
            label = length * _LABEL
            if c == b and not first:  # its output is not needed any more: its backward pass remakes what it reads
                found.constant(float(own.again[0]), int(own.backward[0]), label)
            elif c == b:
                for k in range(len(own.options)):
                    found.constant(float(own.again[k]), int(max(own.forward[k], own.backward[k])), label + k)
            else:
                rest = self.tables[c + 1, b]
                least = np.maximum(own.forward, own.backward + self._grown(c + 1, b))
                extra = own.again if first else own.again + own.rerun
                for k in range(len(own.options)):
                    found.row(rest.shifted(int(own.held[k]), count), float(extra[k]), int(least[k]), label + k)
        self._checkpoints(a, b, first, found)
        cost, choice = found.result()
        padded = np.full(2 * count, np.inf)
        padded[count:] = cost
        return Table(padded, padded[count:], choice)

    def _checkpoints(self, a: int, b: int, first: bool, found: Cheapest) -> None:
        """Running to a block and keeping its input alone, for some of the blocks behind ``a``."""
        count = self.slots + 1
        wanted = distances(b - a)
        least, extra = 0, 0.0
        for j in range(a + 1, b + 1):
            before = self.choices(j - 1)
            coming = 0 if j - 1 == a else self._enter_slots[j - 1]
            least = max(least, int(before.forward[0]) + coming)
            extra += 0.0 if first else float(before.rerun[0])
            if j - a not in wanted:
                continue
            right, left = self.tables[j, b].shifted(self._enter_slots[j], count), self.tables[a, j - 1]
            grown = self._grown(j, b)
            if grown >= 0:
                found.sum(right, left.shifted(grown, count), extra, least, a - j)
            else:
                found.sum(right, more(left.cost, -grown), extra, least, a - j)

    # ---- schedules -----------------------------------------------------------------------------------------
    def levels(self) -> list[int]:
        """Slots at which the cheapest cost changes, least memory first."""
        cost = self.tables[0, len(self.blocks) - 1].cost
        return [m for m in range(self.slots + 1) if np.isfinite(cost[m]) and (m == 0 or cost[m] < cost[m - 1])]

    def cost(self, slots: int) -> float:
        """Of recomputation in so much memory."""
        return float(self.tables[0, len(self.blocks) - 1].cost[slots])

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
