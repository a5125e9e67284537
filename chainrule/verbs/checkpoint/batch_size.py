"""The largest batch that fits.

What a program allocates is a polynomial in the number of samples: linear, or quadratic where samples meet (in a
contrastive loss). Three small batches of the given data determine it, storage by storage; the given batch has to
agree. Then any number of samples is a problem without a trace. A model that does other ops on another number of
samples is traced at every number that is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch

from chainrule.backends.torch.recompute.joint import kept_generators
from chainrule.errors import ModelError
from chainrule.frontends.torch.batch import leaves, with_leaves
from chainrule.planning.frontier import frontier
from chainrule.planning.problem import Problem, Schedule, unplanned
from chainrule.planning.simulate import simulate
from chainrule.verbs.checkpoint.program import Program, program_of

_LARGEST = 1 << 20
_POINTS = (2, 3, 4)  # one sample is special: its dimension broadcasts


def largest_batch(program: Program, static: int, floor: int, budget: int, replan: bool) -> int:
    """See :meth:`Plan.max_batch`. ``static``, ``floor``: bytes beside the activations, and of the optimizer's step, for
    the batch as it is."""
    family = Family(program)
    beside, least = static - family.size * family.per_sample, floor - family.size * family.per_sample

    def fits(n: int, schedule: Schedule | None) -> bool:
        given = n * family.per_sample
        if max(beside, least) + given > budget:
            return False
        problem = family.at(n)
        run = unplanned(problem) if schedule is None else schedule
        return beside + given + simulate(problem, run).peak <= budget

    if not replan:
        return family.largest(lambda n: fits(n, None))
    # A schedule for one number of samples is one for every other; the best ones are planned where they are needed.
    found = family.largest(lambda n: fits(n, frontier(family.at(n)).plans[-1].schedule)) if not family.exact else 0
    if family.exact:
        at = family.size
        for _ in range(4):
            schedule = frontier(family.at(at)).plans[-1].schedule
            best = family.largest(lambda n, s=schedule: fits(n, s), found)
            if best == found and at != family.size:
                break
            found = best
            at = found + 1
    return found


class Family:
    """One model on batches of any number of samples.

    Attributes:
        size: samples of the batch that was traced. per_sample: bytes of the inputs and the target.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.size = _size_of(program)
        batch = [t for _, t in leaves((program.args, program.kwargs, program.target))]
        self.per_sample = sum(t.numel() * t.element_size() for t in batch if _has(t, self.size)) // self.size
        self._made: dict[int, Problem] = {self.size: program.problem}

    @cached_property
    def _small(self) -> tuple[Problem, ...]:
        """The program on two, three and four samples; empty where that is no guide to other numbers."""
        found = tuple(self._traced(n) for n in _POINTS)
        alike = len({_structure(p) for p in (*found, self.program.problem)}) == 1
        if not alike or self._between(found, self.size).sizes != self.program.problem.sizes:
            return ()
        return found

    @property
    def exact(self) -> bool:
        """Whether problems are computed, not traced."""
        return bool(self._small)

    def at(self, n: int) -> Problem:
        """The problem of so many samples."""
        if n not in self._made and not self.exact:
            return self._traced(n)
        if n not in self._made:
            self._made[n] = self._between(self._small, n)
        return self._made[n]

    def largest(self, fits: Any, least: int = 0) -> int:
        """The largest number of samples that fits; ``least`` does."""
        low, step = least, max(self.size, 1)
        high = low + step
        while high < _LARGEST and fits(high):
            low, step = high, 2 * step
            high = low + step
        high = min(high, _LARGEST)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _traced(self, n: int) -> Problem:
        if n not in self._made:
            self._made[n] = twin(self.program, n).problem
        return self._made[n]

    def _between(self, small: Sequence[Problem], n: int) -> Problem:
        """The polynomial through three problems."""
        weights = [_weight(k, n) for k in range(len(_POINTS))]
        through = lambda values: max(int(sum(w * v for w, v in zip(weights, values, strict=True))), 0)  # noqa: E731
        own = self.program.problem
        tasks = tuple(
            replace(task, cost=task.cost * n / self.size, work=through([p.tasks[t].work for p in small]))
            for t, task in enumerate(own.tasks)
        )
        return replace(own, tasks=tasks, sizes=tuple(map(through, zip(*(p.sizes for p in small), strict=True))))


def _weight(k: int, n: int) -> Fraction:
    found = Fraction(1)
    for j, point in enumerate(_POINTS):
        if j != k:
            found *= Fraction(n - point, _POINTS[k] - point)
    return found


def _structure(problem: Problem) -> Any:
    """Everything but sizes and costs."""
    tasks = tuple((t.name, t.reads, t.writes, t.again) for t in problem.tasks)
    ends = (problem.resident, problem.cotangents, problem.returned, problem.gradients)
    return tasks, len(problem.sizes), problem.forward, ends


def _has(tensor: torch.Tensor, size: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == size


def _size_of(program: Program) -> int:
    sizes = {t.shape[0] for _, t in leaves((program.args, program.kwargs)) if t.dim()}
    counts = sizes - {1} or sizes  # a dimension of one broadcasts over the others
    if len(counts) != 1:
        raise ModelError(
            "the inputs have no common first dimension",
            given=f"sizes {sorted(sizes)}",
            required="a batch whose first dimension counts samples",
        )
    return counts.pop()


def twin(program: Program, size: int) -> Program:
    """The same model on a batch of another size: the first samples, over and over where there are too few."""
    was = _size_of(program)

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not _has(tensor, was):
            return tensor
        if tensor.is_meta:
            made = torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
        else:
            made = tensor.detach()[torch.arange(size, device=tensor.device) % was]
        return made.requires_grad_(tensor.requires_grad)

    def of(value: Any) -> Any:
        return with_leaves(value, (resized(t) for _, t in leaves(value)))

    criterion, target = (program.criterion, of(program.target)) if program.criterion else (None, None)
    with kept_generators():
        return program_of(
            program.model, of(program.args), of(dict(program.kwargs)), criterion, target, program.prices,
            program.objective,
        )  # fmt: skip
