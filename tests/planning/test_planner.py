"""The planner against brute force on small graphs, against the binomial optimum on chains, and its simulator."""

from functools import cache
from itertools import pairwise

import pytest

from chainrule.errors import BudgetError, ModelError
from chainrule.planning.by_hand import keeping
from chainrule.planning.frontier import frontier
from chainrule.planning.problem import Problem, Schedule, Task, unplanned
from chainrule.planning.simulate import lifetimes, simulate
from tests.planning.brute_force import cheapest, random_problem


def uniform_chain(steps):
    """Steps of one byte and one second, whose backward step reads the input of the forward step."""
    tasks = [Task(f"f{k}", (k,), (k + 1,), 1.0) for k in range(steps)]
    sizes = [1] * (steps + 2)
    flowing = steps + 1
    for k in reversed(range(steps)):
        tasks.append(Task(f"b{k}", (k, flowing), (len(sizes),), 1.0))
        flowing = len(sizes)
        sizes.append(1)
    return Problem(
        tuple(tasks), tuple(sizes), steps, frozenset({0}), frozenset({steps + 1}), gradients=frozenset({flowing})
    )


def residual_chain(blocks):
    """Blocks ``x + f2(f1(x))`` with a dear f1 and a cheap f2, both nonlinear, of a wide inner value."""
    tasks, sizes, flowing, inner = [], [3], 0, []
    for k in range(blocks):
        wide, acted, out = len(sizes), len(sizes) + 1, len(sizes) + 2
        sizes += [8, 8, 3]
        tasks += [Task(f"f1.{k}", (flowing,), (wide,), 9.0), Task(f"f2.{k}", (wide,), (acted,), 1.0)]
        tasks.append(Task(f"f3.{k}", (flowing, acted), (out,), 5.0))
        inner.append((flowing, wide, acted))
        flowing = out
    forward, cotangent = len(tasks), len(sizes)
    sizes.append(3)
    gradient = cotangent
    for k, (x, wide, acted) in reversed(list(enumerate(inner))):
        a, b, c, weight = (len(sizes) + i for i in range(4))
        sizes += [8, 8, 3, 1]
        tasks.append(Task(f"b3.{k}", (gradient, acted), (a,), 10.0))
        tasks.append(Task(f"b2.{k}", (a, wide), (b,), 1.0))
        tasks += [Task(f"w1.{k}", (b, x), (weight,), 9.0), Task(f"b1.{k}", (b, gradient), (c,), 9.0)]
        gradient = c
    weights = {t.writes[0] for t in tasks if t.name.startswith("w1")}
    return Problem(
        tuple(tasks), tuple(sizes), forward, frozenset({0}), frozenset({cotangent}), gradients=frozenset(weights)
    )


def slow_simulation(problem, schedule):
    """Bytes while each task runs, by following every storage."""
    order, end = schedule.order, len(schedule.order)
    during = []
    for at, t in enumerate(order):
        alive = set(problem.tasks[t].writes)
        for s in range(len(problem.sizes)):
            if s in problem.resident:
                continue
            births = [b for b in range(at) if s in problem.tasks[order[b]].writes]
            if not births and not (s in problem.cotangents and at >= schedule.split):
                continue
            rewritten = next((b for b in range(at, end) if s in problem.tasks[order[b]].writes), end + 1)
            uses = [b for b in range(at, end) if s in problem.tasks[order[b]].reads and b <= rewritten]
            if s in problem.returned | problem.gradients and rewritten > end:
                uses.append(end)
            if uses:
                alive.add(s)
        during.append(sum(problem.sizes[s] for s in alive) + problem.tasks[t].work)
    return during


@pytest.mark.parametrize("seed", range(8))
def test_simulator_follows_every_storage(seed):
    problem = random_problem(seed)
    found = frontier(problem)
    for plan in found.plans:
        assert list(simulate(problem, plan.schedule).during) == slow_simulation(problem, plan.schedule)


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_against_brute_force(seed):
    problem = random_problem(seed)
    found = frontier(problem)
    least, most = found.plans[-1].peak, found.plans[0].peak
    for budget in (least, (2 * least + most) // 3, (least + 2 * most) // 3):
        best, ours = cheapest(problem, budget), found.within(budget)
        assert best is not None and ours.peak <= budget
        assert best <= ours.again + 1e-9
        assert problem.cost + ours.again <= 1.1 * (problem.cost + best)
        assert found.bound.at(budget) <= best + 1e-6
        assert found.bound.at(budget) <= found.bound.sharpened(budget, ours.again) <= best + 1e-6


@cache
def binomial(steps, slots):
    """Forward steps of the optimal reversal of a uniform chain, its input resident besides the slots."""
    if steps <= 1:
        return 0
    if slots == 0:
        return steps * (steps - 1) // 2
    return min(j + binomial(steps - j, slots - 1) + binomial(j, slots) for j in range(1, steps))


@pytest.mark.parametrize("steps", [4, 13, 30, 50])
def test_uniform_chains_are_reversed_optimally(steps):
    problem = uniform_chain(steps)
    found = frontier(problem)
    for slots in range(min(7, steps - 2)):
        # besides the slots: the running step's input or output, a cotangent and the next one
        assert found.within(slots + 3).again == binomial(steps, slots) - (steps - 1)


@pytest.mark.parametrize("problem", [random_problem(3, forward=7), random_problem(8, forward=9), residual_chain(24)])
def test_less_memory_never_plans_a_higher_peak_or_less_time(problem):
    found = frontier(problem)
    budgets = range(found.plans[-1].peak, found.plans[0].peak + 5)
    plans = [found.within(b) for b in budgets]
    for budget, plan in zip(budgets, plans, strict=True):
        assert plan.peak <= budget
        judged = simulate(problem, plan.schedule)
        assert (judged.peak, judged.again) == (plan.peak, pytest.approx(plan.again))
    for small, large in pairwise(plans):
        assert small.peak <= large.peak and small.again >= large.again


def test_budgets_between_plans_of_the_first_search():
    # More levels of memory than the first search writes: the others are written where a budget falls.
    problem = residual_chain(60)
    found = frontier(problem)
    assert any(len(found.between(k)) > 1 for k in range(1, len(found.plans)))
    for above, plan in pairwise(found.plans):
        for other in found.between(found.plans.index(plan)):
            assert plan.peak <= other.peak < above.peak and above.again <= other.again <= plan.again


def test_plans_of_many_equal_blocks_are_almost_proven_optimal():
    problem = residual_chain(40)
    found = frontier(problem)
    for part in (0.7, 0.5, 0.35, 0.25):
        plan = found.within(part * found.plans[0].peak)
        assert plan.again - found.bound.sharpened(plan.peak, plan.again) <= 0.005 * problem.cost


def test_every_tenth_of_fifty_layers():
    # Each layer's backward step reads its input; inputs of layers 10, 20, 30, 40 are kept, and the first is resident.
    problem = uniform_chain(50)
    every_tenth = keeping(problem, {10, 20, 30, 40})
    again = simulate(problem, every_tenth)
    # Within a stretch of ten, nine inputs are recomputed, once.
    assert again.again == 5 * 9
    best = frontier(problem).within(again.peak)
    assert best.again < again.again


def test_lifetimes_delete_everything_once():
    problem = random_problem(5)
    schedule = frontier(problem).plans[-1].schedule
    alive = set()
    dead = lifetimes(problem, schedule)
    for at, t in enumerate(schedule.order):
        if at == schedule.split:
            alive |= problem.cotangents
        task = problem.tasks[t]
        assert all(s in alive or s in problem.resident for s in task.reads)
        alive |= set(task.writes)
        alive -= set(dead[at])
    assert alive == problem.gradients


def test_what_cannot_run_twice_is_kept():
    problem = uniform_chain(6)
    fixed = tuple(Task(t.name, t.reads, t.writes, t.cost, again=t.name != "f2") for t in problem.tasks)
    problem = Problem(fixed, problem.sizes, 6, problem.resident, problem.cotangents, gradients=problem.gradients)
    for plan in frontier(problem).plans:
        assert plan.schedule.order.count(2) == 1


def test_repeated_blocks_are_planned_once():
    found = frontier(uniform_chain(40))
    assert len({b.kind for b in found.chain.blocks}) <= 4


def test_refusals():
    problem = uniform_chain(4)
    with pytest.raises(BudgetError) as refused:
        frontier(problem).within(2)
    assert refused.value.minimum_bytes == 3
    with pytest.raises(ModelError):
        simulate(problem, Schedule((1,), 1))
    with pytest.raises(ModelError):
        Problem((Task("a", (1,), (2,), 1.0),), (1, 1, 1), 1).check()


def test_draws_keep_their_state_only_when_they_run_again():
    task = Task("draw", (), (1,), 1.0, state=100)
    problem = Problem(
        (task, Task("use", (1,), (2,), 1.0), Task("back", (1, 3), (4,), 1.0)),
        (0, 8, 1, 1, 1),
        2,
        frozenset({0}),
        frozenset({3}),
        gradients=frozenset({4}),
    )
    assert simulate(problem, unplanned(problem)).peak < 100
    assert simulate(problem, Schedule((0, 1, 0, 2), 2)).peak > 100
