"""Random programs of views, writes in place, copies and gradient modes, traced and held against autograd.

Whatever a program does to memory, its traced form has eager execution's value and autograd's gradients, or is refused.
Values are compared to rounding: a view of memory that was written is gathered, and may be summed in another order.
A program that eager execution itself refuses is left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import ChainruleError, UnsupportedOpError

X = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).reshape(6, 4)

Step = Callable[[list[torch.Tensor], random.Random], None]


def _view(pool: list[torch.Tensor], dice: random.Random) -> None:
    t = dice.choice(pool)
    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t.t() if t.dim() == 2 else t,
        lambda t: t[1:] if t.shape[0] > 2 else t,
        lambda t: t[..., ::2] if t.shape[-1] > 1 else t,
        lambda t: t.reshape(-1, t.shape[-1]),
        lambda t: t.unsqueeze(0).squeeze(0),
        lambda t: t.detach(),
        lambda t: t.data,
        lambda t: t.flatten()[: max(1, t.numel() // 2)].unsqueeze(-1),
        lambda t: t.expand_as(t),
        lambda t: t.chunk(2, 0)[0],
    ]
    found = dice.choice(ways)(t)
    if found.numel() and found.dim() == 2:
        pool.append(found)


def _new(pool: list[torch.Tensor], dice: random.Random) -> None:
    t = dice.choice(pool)
    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        torch.clone,
        lambda t: t * 1.5,
        torch.tanh,
        lambda t: torch.zeros_like(t),
        lambda t: torch.where(t > 0.1, t, 0.5 * t),
        lambda t: t + t.mean(),
        lambda t: torch.full((3, 4), 0.25, dtype=t.dtype),
        lambda t: torch.cat([t, t.flip(0)]),
    ]
    pool.append(dice.choice(ways)(t))


def _write(pool: list[torch.Tensor], dice: random.Random) -> None:
    t, other = dice.choice(pool), dice.choice(pool)
    value = other.mean() if other.shape != t.shape else other
    ways: list[Callable[[torch.Tensor], object]] = [
        lambda t: t.mul_(0.7),
        lambda t: t.add_(value, alpha=0.3),
        lambda t: t.copy_(value.clone()),
        lambda t: t.zero_(),
        lambda t: t.fill_(0.3),
        lambda t: t[:1].add_(1.0),
        lambda t: t.masked_fill_(t.detach() > 0.8, 0.1),
        lambda t: t.__setitem__((slice(None), 0), value.mean()),
        lambda t: t.__setitem__(t.detach() > 0.6, 0.2),
        lambda t: t.clamp_(max=1.5),
        lambda t: t.index_add_(0, torch.tensor([0, 0]), torch.ones(2, t.shape[1], dtype=t.dtype)),
    ]
    dice.choice(ways)(t)


STEPS: list[Step] = [_view, _view, _new, _new, _write, _write]


class Program(nn.Module):
    """The program with that number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        torch.manual_seed(number)
        self.layer, self.number = nn.Linear(4, 4).double(), number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dice = random.Random(self.number)
        pool = [self.layer(x).clone(), torch.zeros(6, 4, dtype=x.dtype), self.layer.weight * 1.0]
        for _ in range(dice.randint(4, 12)):
            step = dice.choice(STEPS)
            if dice.random() < 0.2:
                with torch.no_grad():
                    step(pool, dice)
            else:
                step(pool, dice)
        return torch.stack([(t * t).mean() + 0.3 * t.sum() for t in pool]).sum()


def compared(number: int) -> str:
    """What happened to a program: "right", "refused" or "not valid"; fails where it is wrong."""
    eager = Program(number)
    try:
        expected = eager(X)
        expected.backward()
    except RuntimeError:
        return "not valid"
    model = Program(number)
    case = cr.case(model, X, objective=lambda m, b: m(b))
    try:
        loss, grads = case.step(dict(model.named_parameters()), X)
    except (UnsupportedOpError, ChainruleError) as error:
        assert "no parameter reaches" not in str(error) or not any(
            p.grad is not None and p.grad.any() for p in eager.parameters()
        ), number
        return "refused"
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=1e-13, msg=f"program {number}: the loss")
    for name, parameter in eager.named_parameters():
        truth = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = torch.zeros_like(parameter) if grads[name] is None else grads[name]
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-11, msg=f"program {number}: {name}")
    return "right"


@pytest.mark.parametrize("block", range(5))
def test_programs(block: int) -> None:
    found = [compared(number) for number in range(40 * block, 40 * (block + 1))]
    assert found.count("right") >= 15
    assert found.count("refused") <= 4
