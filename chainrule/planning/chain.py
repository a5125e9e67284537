"""Which blocks keep what: dynamic programming over the chain, for every amount of memory at once.

Finishing blocks a to b with the input of a at hand and m bytes is one of

    run a with one of its options, finish a + 1 to b, run a backwards, or
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

_SLOTS = 640


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
    """Cost by slots of memory, and what was chosen: an option (>= 0) or ``-d`` for a checkpoint d blocks on."""

    cost: np.ndarray
    choice: np.ndarray


class ChainPlanner:
    """Tables of a problem's chain."""

    def __init__(self, problem: Problem, chain: Chain, limit: int, slots: int = _SLOTS) -> None:
        """``limit``: bytes beyond which memory is no question."""
        self.problem, self.chain = problem, chain
        self.blocks = chain.blocks
        self.unit = max(limit, 1) / slots
        self.slots = slots
        self.inside = [Inside(problem, b, chain.pinned) for b in self.blocks]
        self.first_of: dict[int, int] = {}
        self.choices: dict[int, Choice] = {}
        for k, block in enumerate(self.blocks):
            if block.kind not in self.choices:
                self.first_of[block.kind] = k
                self.choices[block.kind] = self._choice(self.inside[k])
        self.change = np.array([b.change for b in self.blocks], dtype=np.int64)
        self.enters = [self._size(b.enters) for b in self.blocks]
        self.tables: dict[tuple[int, int], Table] = {}
        self._by_kinds: dict[object, Table] = {}
        self._names: dict[object, int] = {}
        self._names_of: dict[tuple[int, int], int] = {}
        self._fill()

    def _size(self, s: int | None) -> int:
        free = s is None or s in self.problem.resident or s in self.chain.pinned
        return 0 if free else self.problem.sizes[s]  # type: ignore[index]

    def _slot(self, size: float) -> int:
        return round(size / self.unit)

    def _choice(self, inside: Inside) -> Choice:
        found = options(inside)
        nothing = min(range(len(found)), key=lambda k: (found[k].held, -found[k].again))
        found = [found[nothing], *(o for k, o in enumerate(found) if k != nothing)]
        cost = lambda o: sum(inside.whole.tasks[t].cost for t in inside.rerun(o.saved))  # noqa: E731
        return Choice(
            tuple(found),
            np.array([self._slot(o.held) for o in found]),
            np.array([o.again for o in found]),
            np.array([cost(o) for o in found]),
            np.array([self._slot(o.forward_peak) for o in found]),
            np.array([self._slot(o.backward_peak) for o in found]),
        )

    def _fill(self) -> None:
        n = len(self.blocks)
        for b in range(n):
            for a in range(b, -1, -1):
                first = b == n - 1
                key = (first, self._name(a, b))
                table = self._by_kinds.get(key)
                if table is None:
                    table = self._by_kinds[key] = self._table(a, b, first)
                self.tables[a, b] = table

    def _name(self, a: int, b: int) -> int:
        """A number for the kinds of blocks a to b."""
        kind = self.blocks[a].kind
        key = (kind,) if a == b else (kind, self._names_of[a + 1, b])
        name = self._names.setdefault(key, len(self._names))
        self._names_of[a, b] = name
        return name

    def _table(self, a: int, b: int, first: bool) -> Table:
        m = np.arange(self.slots + 1)
        cost = np.full(self.slots + 1, np.inf)
        choice = np.zeros(self.slots + 1, dtype=np.int32)
        own = self.choices[self.blocks[a].kind]
        if a == b:
            if first:
                needs = np.maximum(own.forward, own.backward)
                for k in range(len(own.options)):
                    _better(cost, choice, np.where(m >= needs[k], own.again[k], np.inf), k)
            else:
                _better(cost, choice, np.where(m >= own.backward[0], own.again[0], np.inf), 0)
            return Table(cost, choice)
        rest = self.tables[a + 1, b].cost
        later = self._slot(float(self.change[a + 1 : b + 1].sum()))
        for k in range(len(own.options)):
            least = max(own.forward[k], own.backward[k] + later)
            extra = own.again[k] + (0.0 if first else own.rerun[k])
            _better(cost, choice, np.where(m >= least, _shifted(rest, int(own.held[k])) + extra, np.inf), k)
        least, extra, grown = 0, 0.0, float(self.change[a : b + 1].sum())
        for j in range(a + 1, b + 1):
            before = self.choices[self.blocks[j - 1].kind]
            coming = 0 if j - 1 == a else self._slot(self.enters[j - 1])
            least = max(least, int(before.forward[0]) + coming)
            extra += 0.0 if first else float(before.rerun[0])
            grown -= float(self.change[j - 1])
            right = self.tables[j, b].cost
            left = self.tables[a, j - 1].cost
            total = _shifted(right, self._slot(self.enters[j])) + _shifted(left, self._slot(grown)) + extra
            if least:
                total[: min(least, len(total))] = np.inf
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

    def saved(self, k: int, option: int) -> frozenset[int]:
        """The storages of an option in block k."""
        kind = self.blocks[k].kind
        chosen = self.choices[kind].options[option].saved
        origin = self.first_of[kind]
        if origin == k:
            return chosen
        image = corresponding(self.problem, self.blocks[origin], self.blocks[k])
        return frozenset(image[s] for s in chosen)


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
        if a == b:
            saved = p.saved(a, chosen)
            if not first:
                return [("backward", a, frozenset())]
            return [("forward", a, saved, True), ("turn",), ("backward", a, saved)]
        if chosen >= 0:
            saved = p.saved(a, chosen)
            kind = p.choices[p.blocks[a].kind]
            return [
                ("forward", a, saved, first),
                ("solve", a + 1, b, m - int(kind.held[chosen])),
                ("backward", a, saved),
            ]
        j = a - chosen
        grown = p._slot(float(p.change[j : b + 1].sum()))
        steps: list[tuple] = []
        for i in range(a, j):
            steps.append(("forward", i, frozenset(), first))
            if i > a:
                steps.append(("drop", p.blocks[i].enters))
        kept = m - p._slot(p.enters[j])
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

    def forward(self, k: int, saved: frozenset[int], first: bool) -> None:
        """Runs block k forwards; ``saved`` and its output are kept."""
        inside, pinned = self.planner.inside[k], self.planner.chain.pinned
        tasks = list(inside.block.forward) if first else inside.rerun(saved)
        early = [t for t in inside.ahead(saved) if not self._there(t)]
        kept = saved | pinned | ({inside.block.leaves} if inside.block.leaves is not None else set())
        for t in [*tasks, *early]:
            self.order.append(t)
            self.have.update(s for s in self.problem.tasks[t].writes if s in kept)

    def _there(self, t: int) -> bool:
        return all(s in self.have for s in self.problem.tasks[t].writes)

    def backward(self, k: int, saved: frozenset[int]) -> None:
        """Runs block k backwards, recomputing what is not at hand just before it is needed."""
        inside, pinned = self.planner.inside[k], self.planner.chain.pinned
        made = inside.made
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
