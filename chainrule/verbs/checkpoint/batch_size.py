"""The largest batch that fits: the same model on the meta device with another first dimension."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from chainrule.errors import ModelError
from chainrule.frontends.torch.batch import leaves, with_leaves
from chainrule.planning.problem import unplanned
from chainrule.planning.simulate import simulate
from chainrule.verbs.checkpoint.program import Program, program_of

_LARGEST = 1 << 20


def largest_batch(program: Program, static: int, floor: int, budget: int, replan: bool) -> int:
    """See :meth:`Plan.max_batch`. ``static``: bytes beside the activations, for the batch as it is."""
    size = _size_of(program)
    if floor > budget:
        return 0
    small = twin(program, size)
    per_sample = sum(t.numel() * t.element_size() for _, t in leaves((program.args, program.kwargs))) / size
    needs: dict[int, float] = {}

    def need(n: int) -> float:
        if n not in needs:
            made = small if n == size else twin(program, n)
            problem = made.problem
            peak = made.frontier.plans[-1].peak if replan else simulate(problem, unplanned(problem)).peak
            needs[n] = static + (n - size) * per_sample + peak
        return needs[n]

    # What a step needs is nearly a straight line in the size of the batch: a few secant steps, then the last word.
    low, high = 0, _LARGEST
    guess = 2 * size
    slope = max((need(2 * size) - need(size)) / size, per_sample, 1.0)
    offset = need(size) - slope * size
    for _ in range(12):
        guess = max(low + 1, min(int((budget - offset) / slope), high - 1))
        if high - low <= 1 or guess >= _LARGEST - 1:
            break
        if need(guess) <= budget:
            low = guess
        else:
            high = guess
        if need(guess) != need(size):
            slope = max((need(guess) - need(size)) / (guess - size), 1e-9)
            offset = need(size) - slope * size
    return low


def _size_of(program: Program) -> int:
    sizes = {t.shape[0] for _, t in leaves((program.args, program.kwargs)) if t.dim()}
    if len(sizes) != 1:
        raise ModelError(
            "the inputs have no common first dimension",
            given=f"sizes {sorted(sizes)}",
            required="a batch whose first dimension counts samples",
        )
    return sizes.pop()


def twin(program: Program, size: int) -> Program:
    """The same model without data, on a batch of another size."""
    memo: dict[int, Any] = {}
    for p in program.model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for b in program.model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    model = copy.deepcopy(program.model, memo)

    def resized(value: Any) -> Any:
        return with_leaves(
            value,
            (
                torch.empty((size, *t.shape[1:]) if t.dim() else (), dtype=t.dtype, device="meta").requires_grad_(
                    t.requires_grad
                )
                for _, t in leaves(value)
            ),
        )

    return program_of(model, resized(program.args), resized(program.kwargs))
