"""The cheapest schedule of a small problem, by search over all states of memory."""

from __future__ import annotations

import heapq
import itertools
import random

from chainrule.planning.problem import Problem, Task


def cheapest(problem: Problem, limit: int) -> float | None:
    """Least cost of recomputation with at most ``limit`` bytes; None where no schedule fits."""
    first_runs = [*range(problem.forward), *problem.backward]
    late = {s for t in problem.backward for s in problem.tasks[t].writes} | problem.cotangents
    kept = problem.returned | problem.gradients
    can = [t for t in range(problem.forward) if problem.tasks[t].again]

    def size(live):
        return sum(problem.sizes[s] for s in live)

    def pruned(live, position):
        """Storages of the backward pass die at their last reader: nothing is won by holding them."""
        later = {s for t in first_runs[position:] for s in problem.tasks[t].reads} | kept
        return frozenset(s for s in live if s not in late or s in later)

    start = (0, frozenset())
    best = {start: 0.0}
    count = itertools.count()
    heap = [(0.0, next(count), start)]
    while heap:
        cost, _, state = heapq.heappop(heap)
        if cost > best[state]:
            continue
        position, live = state
        if position == len(first_runs):
            return cost
        held = live | (problem.cotangents if position == problem.forward else frozenset())
        moves = []
        for t, extra in [(first_runs[position], 0.0), *((t, problem.tasks[t].cost) for t in can if t < position)]:
            task = problem.tasks[t]
            if extra == 0.0 and t != first_runs[position]:
                extra = task.cost
            if all(s in held or s in problem.resident for s in task.reads):
                after = held | set(task.writes)
                if size(after) + task.work <= limit:
                    moves.append((position + (t == first_runs[position] and extra == 0.0), after, extra))
        for p, after, extra in moves:
            after = pruned(after, p)
            droppable = [s for s in after if s not in late and s not in kept]
            for r in range(len(droppable) + 1):
                for gone in itertools.combinations(droppable, r):
                    new = (p, after - set(gone))
                    if cost + extra < best.get(new, float("inf")):
                        best[new] = cost + extra
                        heapq.heappush(heap, (cost + extra, next(count), new))
    return None


def random_problem(seed: int, forward: int = 6) -> Problem:
    """A random graph: each forward task reads one or two earlier storages, its backward task some of what it saw."""
    rng = random.Random(seed)
    tasks, sizes = [], [rng.randint(1, 4)]  # storage 0 is the input
    reads_of = []
    for k in range(forward):
        pool = list(range(len(sizes)))
        reads = {pool[-1]} if rng.random() < 0.8 else set()
        reads |= {rng.choice(pool)} if rng.random() < 0.4 or not reads else set()
        tasks.append(Task(f"f{k}", tuple(sorted(reads)), (len(sizes),), float(rng.randint(1, 9))))
        sizes.append(rng.randint(1, 6))
        reads_of.append(tasks[-1].reads)
    cotangent = len(sizes)
    sizes.append(sizes[forward])
    flowing = {forward: cotangent}
    backward = []
    for k in reversed(range(forward)):
        out = k + 1
        g = flowing.get(out)
        if g is None:
            continue
        needs = {s for s in reads_of[k] if rng.random() < 0.7} | ({out} if rng.random() < 0.3 else set())
        for i, s in enumerate(reads_of[k]):
            extra = (flowing[s],) if s in flowing else ()
            backward.append(Task(f"b{k}.{i}", (g, *sorted(needs), *extra), (len(sizes),), float(rng.randint(1, 9))))
            flowing[s] = len(sizes)
            sizes.append(sizes[s])
    gradients = frozenset({flowing[0]}) if 0 in flowing else frozenset({backward[-1].writes[0]})
    problem = Problem(
        (*tasks, *backward),
        tuple(sizes),
        forward,
        frozenset({0}),
        frozenset({cotangent}),
        frozenset(),
        gradients,
    )
    problem.check()
    return problem
