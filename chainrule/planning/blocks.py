"""A forward pass as a chain of blocks: it is cut wherever one storage alone goes from one side to the other.

Storages that are read far from where they are written (the skips of a U-net, a mask that all layers read) would leave
no such place; they are *pinned*: kept from their first run on, and looked through when cuts are searched. What may not
run twice is pinned as well. Every task of the backward pass belongs to the block whose storages it reads.

Blocks whose insides are the same, storage by storage, have the same ``kind``, and are planned once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from chainrule.planning.problem import Problem

_THRESHOLDS = 24
_MAX_BLOCKS = 320
_PINNED = 4  # times its bytes: a pinned storage can never be let go


@dataclass(frozen=True)
class Block:
    """A piece of the chain.

    Attributes:
        forward: its tasks of the forward pass. early: tasks of the backward pass that need no cotangent.
        backward: its tasks of the backward pass. enters: the storage that comes in (None: inputs alone).
        leaves: the storage that goes to the next block (None for the last). kind: equal for equal blocks.
        change: by how many bytes its backward pass changes what the backward pass holds (gradients, cotangents).
    """

    forward: tuple[int, ...]
    early: tuple[int, ...]
    backward: tuple[int, ...]
    enters: int | None
    leaves: int | None
    kind: int
    change: int


@dataclass(frozen=True)
class Chain:
    """The blocks in order, the storages that are kept throughout, and those of them that have to be."""

    blocks: tuple[Block, ...]
    pinned: frozenset[int]
    fixed: frozenset[int]


def chain_of(problem: Problem) -> Chain:
    """The forward pass cut into blocks, the backward pass dealt out to them."""
    last = _last_forward_read(problem)
    fixed = problem.resident | problem.returned | _once(problem)
    cuts, far = _cuts(problem, last, fixed)
    edges = [0, *cuts, problem.forward]
    block_of: dict[int, int] = {}
    for k, (start, end) in enumerate(pairwise(edges)):
        for t in range(start, end):
            block_of[t] = k
    through = fixed | far
    crossing = [_crossing(problem, last, through, cut) for cut in cuts]
    early, backward, pinned = _deal(problem, block_of, crossing, through, len(edges) - 1)
    pinned |= through - problem.resident
    live = _live_cotangents(problem, backward)
    blocks: list[Block] = []
    kinds: dict[object, int] = {}
    for k, (start, end) in enumerate(pairwise(edges)):
        enters = crossing[k - 1] if k else None
        leaves = crossing[k] if k < len(crossing) else None
        made = Block(
            tuple(range(start, end)), tuple(early[k]), tuple(backward[k]), enters, leaves, 0, live[k] - live[k + 1]
        )
        kind = kinds.setdefault(_signature(problem, made, pinned), len(kinds))
        blocks.append(Block(made.forward, made.early, made.backward, enters, leaves, kind, made.change))
    return Chain(tuple(blocks), frozenset(pinned), fixed - problem.resident)


def _once(problem: Problem) -> frozenset[int]:
    """Storages of the forward pass that cannot be made a second time."""
    return frozenset(s for t in problem.tasks[: problem.forward] if not t.again for s in t.writes)


def _last_forward_read(problem: Problem) -> dict[int, int]:
    """storage -> the last task of the forward pass that reads it."""
    return {s: t for t in range(problem.forward) for s in problem.tasks[t].reads}


def _crossing(problem: Problem, last: dict[int, int], through: frozenset[int] | set[int], cut: int) -> int | None:
    """The storage that goes over a cut, looking through those that are there anyway."""
    for t in range(cut - 1, -1, -1):  # it was mostly written just before
        for s in problem.tasks[t].writes:
            if s not in through and last.get(s, -1) >= cut:
                return s
    return None


def _cuts(problem: Problem, last: dict[int, int], fixed: frozenset[int]) -> tuple[list[int], frozenset[int]]:
    """Where to cut, and which far-reaching storages are pinned for it: the smallest largest block wins."""
    spans = {s: end - problem.writer[s] for s, end in last.items() if s in problem.writer and s not in fixed}
    produced = np.zeros(problem.forward + 1, dtype=np.int64)
    for s, t in problem.writer.items():
        if t < problem.forward and s not in fixed:
            produced[t + 1] += problem.sizes[s]
    total = np.cumsum(produced)
    levels = sorted({*spans.values()}, reverse=True)
    # A storage that the backward pass does not read is no checkpoint: what is made of it is as good and more use.
    wanted = {s for t in range(problem.forward, len(problem.tasks)) for s in problem.tasks[t].reads}
    best: tuple[float, list[int], frozenset[int]] | None = None
    for level in [max(levels, default=0), *_spread(levels)]:
        far = frozenset(s for s, span in spans.items() if span > level)
        width = np.zeros(problem.forward + 2, dtype=np.int64)
        for s in spans:
            if s not in far:
                width[problem.writer[s] + 1] += 1
                width[last[s] + 1] -= 1
        count = np.cumsum(width)
        cuts = [p for p in range(1, problem.forward) if count[p] == 1]
        kept = [p for p in cuts if _crossing(problem, last, fixed | far, p) in wanted]
        cuts = kept or cuts
        edges = [0, *cuts, problem.forward]
        largest = max(total[b] - total[a] for a, b in pairwise(edges))
        score = float(largest + _PINNED * sum(problem.sizes[s] for s in far))
        if best is None or score < best[0]:
            best = score, cuts, far
    assert best is not None
    return _coarser(best[1], total), best[2]


def _spread(levels: Sequence[int]) -> list[int]:
    """A choice of levels, evenly."""
    if len(levels) <= _THRESHOLDS:
        return list(levels)
    return [levels[round(i * (len(levels) - 1) / (_THRESHOLDS - 1))] for i in range(_THRESHOLDS)]


def _coarser(cuts: list[int], total: np.ndarray) -> list[int]:
    """Fewer cuts where there are very many: those that leave blocks of even size."""
    if len(cuts) < _MAX_BLOCKS:
        return cuts
    wanted = np.linspace(0, total[-1], _MAX_BLOCKS + 1)[1:-1]
    at = np.searchsorted(total[cuts], wanted)
    return sorted({cuts[min(i, len(cuts) - 1)] for i in at})


def _deal(
    problem: Problem,
    block_of: dict[int, int],
    crossing: Sequence[int | None],
    through: frozenset[int] | set[int],
    count: int,
) -> tuple[list[list[int]], list[list[int]], set[int]]:
    """Tasks of the backward pass by block, and storages that are read in other blocks than they can be made in."""
    last = count - 1
    # A storage that goes from block k to block k + 1 is at hand in both.
    out_of = {s: k for k, s in enumerate(crossing) if s is not None}
    label: dict[int, int] = {}  # storage -> latest block at which its reader may run
    for s, t in problem.writer.items():
        if t < problem.forward:
            label[s] = last if s in through else min(block_of[t] + (1 if s in out_of else 0), last)
    where: dict[int, int] = {}
    for t in range(problem.forward, len(problem.tasks)):
        task = problem.tasks[t]
        where[t] = min((label[s] for s in task.reads if s in label), default=last)
        for s in task.writes:
            label[s] = where[t]
    first_reader: dict[int, int] = {}  # storage -> the block that reads it first, going back
    for t in range(len(problem.tasks) - 1, problem.forward - 1, -1):
        if t in problem.early:  # it runs where it is first needed
            where[t] = max((first_reader[s] for s in problem.tasks[t].writes if s in first_reader), default=0)
        for s in problem.tasks[t].reads:
            first_reader[s] = max(first_reader.get(s, 0), where[t])
    early: list[list[int]] = [[] for _ in range(count)]
    backward: list[list[int]] = [[] for _ in range(count)]
    for t in problem.backward:
        backward[where[t]].append(t)
    for t in sorted(problem.early):
        early[where[t]].append(t)
    pinned: set[int] = set()
    for t, k in where.items():
        for s in problem.tasks[t].reads:
            made = problem.writer.get(s)
            if made is None or s in problem.resident or s in through:
                continue
            if made < problem.forward:
                home = block_of[made]
                if k != home and not (s in out_of and k == home + 1):
                    pinned.add(s)
            elif made in problem.early and where[made] != k:
                pinned.add(s)
    return early, backward, pinned


def _live_cotangents(problem: Problem, backward: Sequence[Sequence[int]]) -> list[int]:
    """Bytes that the backward pass itself holds before the backward pass of block k - 1, by k, from the last on."""
    late = set(problem.cotangents)
    for t in problem.backward:
        late.update(problem.tasks[t].writes)
    late -= problem.resident
    last_reader: dict[int, int] = {}
    moment: dict[int, int] = {}
    for k in range(len(backward) - 1, -1, -1):
        for t in backward[k]:
            moment[t] = k
            for s in problem.tasks[t].reads:
                if s in late:
                    last_reader[s] = k
    top = len(backward)
    live = [0] * (top + 1)
    for s in late:
        born = moment[problem.writer[s]] if s in problem.writer else top
        end = -1 if s in problem.gradients else last_reader.get(s, born)
        # held at the boundaries below its birth and above its death
        for k in range(end + 1, born + 1):
            live[k] += problem.sizes[s]
    return live


def _signature(problem: Problem, block: Block, pinned: set[int]) -> object:
    """What two blocks have in common when one plan serves both."""
    number: dict[int, int] = {}
    rows = []
    for part in (block.forward, block.early, block.backward):
        for t in part:
            task = problem.tasks[t]
            reads = tuple(_local(problem, s, number, pinned) for s in task.reads)
            writes = tuple(_local(problem, s, number, pinned) for s in task.writes)
            rows.append((reads, writes, task.work, task.again, task.state, round(task.cost, 12)))
        rows.append(None)
    ends = tuple(None if s is None else number.get(s, -1) for s in (block.enters, block.leaves))
    return (tuple(rows), ends, block.change)


def _local(problem: Problem, s: int, number: dict[int, int], pinned: set[int]) -> tuple[int, int, int]:
    if s in problem.resident:
        return (-1, 0, 0)
    new = number.setdefault(s, len(number))
    fate = 1 if s in pinned else 2 if s in problem.gradients else 0
    return (new, problem.sizes[s], fate)
