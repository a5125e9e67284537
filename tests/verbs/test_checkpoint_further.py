"""Objectives, the largest batch against plans of real batches, plans of one case, and torch.compile for any size."""

import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.backends.torch.recompute.compile import chainrule as backend
from chainrule.backends.torch.recompute.compile import has_compiler
from chainrule.errors import ChainruleError
from chainrule.verbs.checkpoint.compared import compared


def contrastive(model, batch):
    """Every sample meets every other: memory is quadratic in their number."""
    out = model(batch)
    return (out @ out.T).logsumexp(1).mean()


class Reading(nn.Module):
    """Python reads a value: there is no such program without data."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(16, 32)
        self.two = nn.Linear(32, 16)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x))) if bool((x == x).all()) else x


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_largest_batch_is_the_largest(recompute, size):
    torch.manual_seed(0)
    for model, objective in ((Reading(), contrastive), (Reading(), None)):
        x = torch.randn(600, 16)
        n = cr.plan(model, x[:size], objective=objective).max_batch(300_000, recompute)
        plans = [cr.plan(model, x[:k], objective=objective) for k in (n, n + 1)]
        needed = [p.minimum_bytes if recompute else p.peak_bytes for p in plans]
        assert needed[0] <= 300_000 < needed[1]


def test_objective_gives_its_own_scalar_and_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.2)) for _ in range(8))).double()
    x = torch.randn(256, 16, dtype=torch.float64)
    small = cr.checkpoint(model, x, budget=0.8, objective=contrastive)
    assert small.plan.peak_bytes < small.plan.baseline_bytes and "loss" not in small.plan.not_counted

    def step(run):
        model.zero_grad()
        torch.manual_seed(1)
        loss = run()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    for ours, eager in zip(step(lambda: small(x)), step(lambda: contrastive(model, x)), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-14)
    model.eval()
    with torch.no_grad():
        assert torch.equal(small(x), contrastive(model, x))


def test_plans_of_one_case_share_a_trace():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    case = cr.case(model, torch.randn(32, 8), objective=contrastive)
    first = cr.plan(case)
    assert cr.plan(case, budget=1.0).program is first.program
    model.eval()
    assert len(cr.plan(case).program.problem.tasks) < len(first.program.problem.tasks)


def test_objectives_that_are_none():
    model, x = nn.Linear(4, 4), torch.ones(3, 4)
    for call in (
        lambda: cr.plan(model, x, objective=lambda m, b: m(b)),
        lambda: cr.plan(model, (x, x), nn.MSELoss(), objective=contrastive),
        lambda: cr.checkpoint(model, x, budget=0.9, objective=lambda m, b: 3.0),
        lambda: cr.plan(cr.case(model, x), x),
    ):
        with pytest.raises(ChainruleError):
            call()


class Sized(nn.Module):
    """Running statistics, and arithmetic with the size of the batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x)) * x.shape[0] ** 0.1
        return self.norm(x).sigmoid().reshape(x.shape[0] * 4, 4)


COMPILERS = ["eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.skipif(not has_compiler(), reason="no compiler")])]  # fmt: skip


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dynamic", [True, None, False])
def test_torch_compile_for_any_size(compiler, dynamic):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, same = Sized(), Sized()
    same.load_state_dict(model.state_dict())
    options = {"memory_budget": 0.9, "compiler": compiler}
    run = torch.compile(model, backend=backend, options=options, dynamic=dynamic)
    for n in (512, 700, 512):
        x = torch.randn(n, 16)
        for m, call in ((model, run), (same, same)):
            m.zero_grad()
            call(x).square().sum().backward()
        for p, q in zip(model.parameters(), same.parameters(), strict=True):
            # float32; sums over 700 samples in another order
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=2e-3)
    assert int(model.norm.num_batches_tracked) == 3
    torch.testing.assert_close(model.norm.running_var, same.norm.running_var)
    torch.testing.assert_close(model.norm.running_mean, same.norm.running_mean)


def test_what_torch_offers_beside_a_plan():
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh()) for _ in range(8))
    model = nn.Sequential(*blocks)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(512, 64)
    offers = compared(cr.plan(model, (x, x), nn.MSELoss()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    budgets = [o for o in offers if o.what.startswith("activation_memory_budget")]
    assert len(budgets) == 5 and any("modules" in o.what for o in offers)
    assert all(o.ours is not None and o.ours <= o.recompute_fraction + 1e-9 for o in budgets)
    assert budgets[-1].peak_bytes > min(o.peak_bytes for o in budgets)  # torch's is no budget of the peak


@pytest.mark.parametrize("kind", ["Adam", "SGD", "RMSprop", "Adafactor"])
def test_optimizer_state_is_what_a_step_leaves(kind):
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), 1e-3, **options)
    x, y = torch.randn(8, 16), torch.randn(8, 4)
    p = cr.plan(model, (x, y), nn.functional.mse_loss, optimizer)
    assert not optimizer.state
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    held = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert p.breakdown["optimizer state"] == sum(t.numel() * t.element_size() for t in held)
