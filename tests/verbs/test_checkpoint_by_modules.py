"""Models that no graph can hold run their own modules under torch's checkpoint, and say so."""

import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import BudgetError
from chainrule.verbs.checkpoint.by_modules import ByModules


class Counting(nn.Module):
    """Changes an attribute of its own at every call: a side effect that a graph has no place for."""

    def __init__(self, norm=True):
        super().__init__()
        layer = lambda: [nn.Linear(64, 64), *([nn.BatchNorm1d(64)] * norm), nn.Tanh(), nn.Dropout(0.1)]  # noqa: E731
        self.layers = nn.ModuleList(nn.Sequential(*layer()) for _ in range(8))
        self.seen = torch.zeros(())

    def forward(self, x):
        self.seen = self.seen + x.mean().detach()
        for layer in self.layers:
            x = layer(x)
        return x


def test_it_falls_back_and_says_so_with_eagers_bits():
    torch.manual_seed(0)
    model, x = Counting(), torch.randn(512, 64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="cannot be planned as a whole"):
        small = cr.checkpoint(model, x, budget=0.7)
    assert isinstance(small, ByModules) and small.modules_again and "torch.utils.checkpoint" in small.executor
    assert "seen" in small.reason and torch.equal(before, torch.get_rng_state()) and not model.seen.any()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    found = []
    for run in (model, small):
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(1)
        for _ in range(2):  # gradients add up, statistics move on once per call
            run(x).square().mean().backward()
        found.append([*(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_too_little_for_modules_says_how_much():
    model = Counting(norm=False)
    with pytest.raises(BudgetError) as refused:
        cr.checkpoint(model, torch.randn(512, 64), budget=10_000)
    assert refused.value.minimum_bytes > 10_000 and "at least" in str(refused.value)


def test_statistics_are_updated_once_by_apply():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh()) for _ in range(6)))
    x = torch.randn(256, 32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    applied = cr.plan(model, x, budget=0.8).apply_(model)
    assert applied.modules and "updated twice by these lines" in applied.code()
    found = []
    for undo in (False, True):
        if undo:
            applied.undo()
        model.load_state_dict(state)
        model.zero_grad()
        model(x).square().mean().backward()
        found.append([*(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_retained_graph_runs_again_on_the_statistics_of_its_call():
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=0.5), nn.Tanh(), nn.Linear(8, 8))  # noqa: E731
    model = nn.Sequential(*(block() for _ in range(4))).double()
    x = torch.randn(32, 8, dtype=torch.float64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = []
    for applied in (False, True):
        model.load_state_dict(state)
        model.zero_grad()
        if applied:
            assert cr.plan(model, x, budget=0.9).apply_(model).modules
        out = model(x).square().mean()
        out.backward(retain_graph=True)
        out.backward()
        found.append([*(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())])
    torch.testing.assert_close(*found)
