"""What one block can keep between its forward and its backward pass: the choices worth having.

Keeping a set of storages costs their bytes; what the backward pass needs beyond them is recomputed within the block,
just before it is needed. Where few storages matter all sets are tried at once, as columns of bits; in larger blocks
they come from minimum cuts at a range of prices per byte, and from the neighbours of those. The exact simulator then
says what each choice needs while the block runs forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chainrule.planning.blocks import Block
from chainrule.planning.mincut import Closure
from chainrule.planning.problem import Problem, Schedule, Task
from chainrule.planning.simulate import simulate

_ENUMERATED = 13  # storages, up to which all sets are tried
_KEPT = 40  # choices per block
_SMALL = 1 / 400  # of a block's bytes: kept without asking
_PRICES = 8


@dataclass(frozen=True)
class Option:
    """One choice.

    Attributes:
        saved: storages kept besides the block's input. held: their bytes, the block's output included.
        again: cost of what the backward pass recomputes.
        forward_peak, backward_peak: bytes while the passes run, beyond the input and what the backward pass held
            before; the block's output is held through its forward pass.
    """

    saved: frozenset[int]
    held: int
    again: float
    forward_peak: int
    backward_peak: int


class Inside:
    """One block by itself: a small problem, and the order in which its backward pass recomputes."""

    def __init__(self, problem: Problem, block: Block, pinned: frozenset[int]) -> None:
        self.whole, self.block = problem, block
        self.first = [*block.forward, *block.early]
        self.made = {s: t for t in self.first for s in problem.tasks[t].writes}
        self.free = problem.resident | pinned | ({block.enters} if block.enters is not None else set())
        self.wanted = [s for t in block.backward for s in problem.tasks[t].reads if s in self.made]
        self.id_of = {t: i for i, t in enumerate(self.first)}
        self.end = len(self.first)
        self.backward_ids = {t: self.end + 1 + i for i, t in enumerate(block.backward)}

    @cached_property
    def local(self) -> Problem:
        """The block as a problem: what comes from outside is resident or a cotangent."""
        p, block = self.whole, self.block
        tasks = [p.tasks[t] for t in self.first]
        end = Task("end", (block.leaves,) if block.leaves is not None else (), (), 0.0)
        tasks = [*tasks, end, *(p.tasks[t] for t in block.backward)]
        written = {s for t in tasks for s in t.writes}
        backward_made = {s for t in block.backward for s in p.tasks[t].writes}
        outside = {s for t in tasks for s in t.reads} - written
        late = self._late()
        cotangents = frozenset(outside & late)
        lasting = frozenset(s for s in backward_made if s in p.gradients or self._read_below(s))
        return Problem(
            tuple(tasks),
            p.sizes,
            len(self.first) + 1,
            frozenset(outside - cotangents) | (self.free & written),
            cotangents,
            frozenset(),
            lasting,
        )

    @property
    def entering(self) -> int:
        """Bytes that the backward pass held before, of what this block reads."""
        return sum(self.whole.sizes[s] for s in self.local.cotangents)

    def _late(self) -> set[int]:
        return _late_storages(self.whole)

    def _read_below(self, s: int) -> bool:
        inside = set(self.block.backward)
        return any(t not in inside for t in _readers(self.whole).get(s, ()))

    def closure(self, saved: frozenset[int] | set[int]) -> list[int]:
        """Tasks that the backward pass recomputes when ``saved`` is kept, in order."""
        return missing(self.whole, self.wanted, lambda s: s in saved or s not in self.made or s in self.free, self.made)

    def again(self, saved: frozenset[int] | set[int]) -> float:
        """What that costs: early tasks run once anyway."""
        early = set(self.block.early)
        return sum(self.whole.tasks[t].cost for t in self.closure(saved) if t not in early)

    def backward_order(self, saved: frozenset[int] | set[int]) -> list[int]:
        """The backward pass with recomputation just before it is needed."""
        have = set(saved)
        order: list[int] = []
        for t in self.block.backward:
            reads = [s for s in self.whole.tasks[t].reads if s in self.made]
            for again in missing(
                self.whole, reads, lambda s: s in have or s not in self.made or s in self.free, self.made
            ):
                order.append(again)
                have.update(self.whole.tasks[again].writes)
            order.append(t)
        return order

    def ahead(self, saved: frozenset[int] | set[int]) -> list[int]:
        """Early tasks that the forward pass runs, because what they make is kept."""
        early = set(self.block.early)
        roots = [s for s in saved if self.made.get(s) in early]
        return missing(self.whole, roots, lambda s: self.made.get(s) not in early, self.made)

    def rerun(self, saved: frozenset[int] | set[int]) -> list[int]:
        """Tasks that make the block's output, and ``saved``, from its input."""
        early = set(self.block.early)
        roots = [s for s in saved if self.made.get(s) not in early]
        roots += [self.block.leaves] if self.block.leaves is not None else []
        return missing(self.whole, roots, lambda s: s not in self.made or s in self.free, self.made)

    def option(self, saved: frozenset[int]) -> Option:
        """The choice of ``saved``, simulated."""
        p, block = self.whole, self.block
        early = self.ahead(saved)
        ahead = [self.id_of[t] for t in (*block.forward, *early)] + [self.end]
        back = [self.backward_ids[t] if t in self.backward_ids else self.id_of[t] for t in self.backward_order(saved)]
        during = simulate(self.local, Schedule((*ahead, *back), len(ahead))).during
        out = block.leaves
        kept = set(saved) | ({out} if out is not None else set())
        counted = [s for s in kept if s not in self.free]
        return Option(
            saved,
            sum(p.sizes[s] for s in counted),
            self.again(saved),
            int(during[: len(ahead)].max(initial=0)),
            int(during[len(ahead) :].max(initial=0)) - self.entering,
        )

    def candidates(self) -> tuple[list[int], frozenset[int]]:
        """Storages that it may be worth to keep, and those that are kept without asking."""
        p = self.whole
        need: set[int] = set()
        for t in self.closure(frozenset()):
            need.update(p.tasks[t].writes)
        useful = {s for s in self.wanted} | {
            s for t in self.closure(frozenset()) for s in p.tasks[t].reads if s in self.made
        }
        found = [s for s in need & useful if s not in self.free]
        total = sum(p.sizes[s] for s in found)
        always = {s for s in found if not p.tasks[self.made[s]].again}
        always |= {s for s in found if p.sizes[s] < total * _SMALL and s in self.wanted and s != self.block.leaves}
        return sorted(set(found) - always), frozenset(always)


def options(inside: Inside, parts: Sequence[frozenset[int]] = ()) -> list[Option]:
    """The choices of a block, from nothing kept to nothing recomputed, none worse than another in every way.

    ``parts``: sets to try as well, where the block consists of others whose choices are known.
    """
    free, always = inside.candidates()
    sets = _all_sets(free) if len(free) <= _ENUMERATED else [*parts, *_cut_sets(inside, free, always)]
    nothing = frozenset(s for s in always if not inside.whole.tasks[inside.made[s]].again)
    found: dict[frozenset[int], Option] = {}
    for saved in [nothing, *_cheapest(inside, free, always, sets)]:
        trimmed = _trimmed(inside, saved)
        if trimmed not in found:
            found[trimmed] = inside.option(trimmed)
    return _best(list(found.values()))


def _trimmed(inside: Inside, saved: frozenset[int]) -> frozenset[int]:
    """Without what nobody reads when the rest is kept, or what is made again beside something else."""
    again = inside.closure(saved)
    read = set(inside.wanted)
    for t in again:
        read.update(inside.whole.tasks[t].reads)
    return frozenset(s for s in saved if s in read and inside.made[s] not in set(again))


def _all_sets(free: Sequence[int]) -> list[frozenset[int]]:
    return [frozenset(s for i, s in enumerate(free) if k >> i & 1) for k in range(1 << len(free))]


def _cheapest(
    inside: Inside, free: Sequence[int], always: frozenset[int], sets: Sequence[frozenset[int]]
) -> list[frozenset[int]]:
    """The front of (bytes, cost) of the sets, thinned; all are priced at once, as columns of bits."""
    p = inside.whole
    count = len(sets)
    column = {s: i for i, s in enumerate(free)}
    bits = np.zeros((count, len(free)), bool)
    pairs = [(k, column[s]) for k, chosen in enumerate(sets) for s in chosen if s in column]
    if pairs:
        bits[tuple(np.array(pairs).T)] = True
    kept = {s: bits[:, i] for i, s in enumerate(free)} | {s: np.ones(count, bool) for s in always}
    need = {s: np.ones(count, bool) for s in inside.wanted}
    cost = np.zeros(count)
    early = set(inside.block.early)
    nothing = np.zeros(count, bool)
    for t in reversed(inside.first):
        task = p.tasks[t]
        runs = nothing.copy()
        for s in task.writes:
            if s not in inside.free:
                runs |= need.get(s, nothing) & ~kept.get(s, nothing)
        if not task.again:
            cost += np.where(runs, np.inf, 0.0)
        elif t not in early:
            cost += task.cost * runs
        for s in task.reads:
            if s in inside.made:
                need[s] = need.get(s, nothing) | runs
    size = bits @ np.array([0 if s == inside.block.leaves else p.sizes[s] for s in free], dtype=float)
    chosen = _front(size, cost, _KEPT)
    return [frozenset([*always, *(s for i, s in enumerate(free) if bits[k, i])]) for k in chosen]


def _front(size: np.ndarray, cost: np.ndarray, limit: int) -> list[int]:
    """Indices that nothing beats in both, at most about ``limit``, evenly over the sizes."""
    order = np.lexsort((cost, size))
    front: list[int] = []
    best = np.inf
    for k in order:
        if cost[k] < best * (1 - 1e-9):
            front.append(int(k))
            best = cost[k]
    if len(front) <= limit:
        return front
    return [front[round(i * (len(front) - 1) / (limit - 1))] for i in range(limit)]


def _cut_sets(inside: Inside, free: Sequence[int], always: frozenset[int]) -> list[frozenset[int]]:
    """Cuts at a range of prices, and the same with one storage more or less."""
    p = inside.whole
    early = set(inside.block.early)
    closure = Closure(
        [(t, p.tasks[t], t in early) for t in inside.first],
        {s for s in inside.wanted},
        p.sizes,
        lambda s: s in inside.made and s not in inside.free,
        unpriced=always | ({inside.block.leaves} if inside.block.leaves is not None else set()),
    )
    allowed = set(free) | always
    found: dict[frozenset[int], None] = {}
    for saved in closure.sweep(_PRICES):
        found[frozenset(saved & allowed)] = None
    for saved in list(found):
        for s in free:
            found[saved ^ {s}] = None
    return list(found)


def _best(found: list[Option]) -> list[Option]:
    """Without those that another one equals or beats in bytes, cost and both peaks."""
    kept: list[Option] = []
    for o in sorted(found, key=lambda o: (o.held, o.again, o.backward_peak, o.forward_peak)):
        if not any(
            k.held <= o.held
            and k.again <= o.again
            and k.backward_peak <= o.backward_peak
            and k.forward_peak <= o.forward_peak
            for k in kept
        ):
            kept.append(o)
    return kept


def missing(problem: Problem, roots: Iterable[int], have: Callable[[int], bool], made: dict[int, int]) -> list[int]:
    """Tasks that have to run so that ``roots`` are at hand, in the order of the program."""
    found: set[int] = set()
    stack = [s for s in roots if not have(s)]
    while stack:
        t = made[stack.pop()]
        if t not in found:
            found.add(t)
            stack.extend(s for s in problem.tasks[t].reads if not have(s))
    return sorted(found)


def _late_storages(problem: Problem) -> set[int]:
    cached = problem.__dict__.get("_late")
    if cached is None:
        cached = set(problem.cotangents)
        for t in problem.backward:
            cached.update(problem.tasks[t].writes)
        problem.__dict__["_late"] = cached
    return cached


def _readers(problem: Problem) -> dict[int, list[int]]:
    cached = problem.__dict__.get("_readers")
    if cached is None:
        cached = {}
        for t, task in enumerate(problem.tasks):
            for s in task.reads:
                cached.setdefault(s, []).append(t)
        problem.__dict__["_readers"] = cached
    return cached
