"""plan and checkpoint against eager autograd, against measured memory, and under bad input."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from chainrule.backends.torch.recompute.compile import chainrule as backend
from chainrule.backends.torch.recompute.eager import Alive
from chainrule.errors import BudgetError, ChainruleError, ModelError
from chainrule.verbs.checkpoint.plan import planned


class Net(nn.Module):
    """Convolutions with statistics, dropout, a view, a tied weight and attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(3 if k == 0 else 8, 8, 3, padding=1) for k in range(3))
        self.norm = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.up = nn.Linear(8, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 16)
        self.head.weight = self.layers[0].self_attn.out_proj.weight

    def forward(self, x):
        for conv, norm in zip(self.conv, self.norm, strict=True):
            x = F.dropout(F.relu(norm(conv(x))), 0.2, self.training)
        x = self.up(x.flatten(2).transpose(1, 2))
        for layer in self.layers:
            x = layer(x)
        return {"features": x.mean(1), "logits": self.head(x).mean(1)}


def batch(n=4, seed=0):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def criterion(out):
    return out["logits"].square().mean() + 0.1 * out["features"].abs().mean()


def trained(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        criterion(model(batch(seed=step))).backward()
        optimizer.step()
    return {k: v.clone() for k, v in model.state_dict().items()}


def simple():
    """A small net with dropout and statistics, and a batch."""
    torch.manual_seed(2)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1)) for _ in range(4)]
    return nn.Sequential(*layers), torch.randn(64, 8)


def net():
    torch.manual_seed(1)
    return Net()


@pytest.fixture(scope="module")
def plans():
    first = cr.plan(net(), batch(), budget=0.6)
    others = {b: planned(first.program, batch(), None, None, b, b) for b in (1.0, 0.8)}
    return {**others, 0.6: first}


def test_training_is_that_of_the_unplanned_executor_bit_by_bit(plans):
    model = plans[0.6].program.model
    start = {k: v.clone() for k, v in model.state_dict().items()}
    results = []
    for b in (1.0, 0.6):
        model.load_state_dict(start)
        results.append(trained(cr.checkpoint(model, batch(), plan=plans[b])))
    assert all(torch.equal(results[0][k], results[1][k]) for k in start)
    model.load_state_dict(start)
    eager = trained(model)
    model.load_state_dict(start)
    for k, value in eager.items():
        # float32, three steps: the derivative rounds elsewhere than autograd's
        torch.testing.assert_close(results[1][k], value, rtol=1e-4, atol=1e-6)


def test_less_memory_costs_more_and_never_less(plans):
    peaks = [p.peak_bytes for p in plans.values()]
    again = [p.recompute_fraction for p in plans.values()]
    assert peaks == sorted(peaks, reverse=True) and again == sorted(again)
    for b, p in plans.items():
        assert p.activation_bytes <= b * (p.baseline_bytes - p.static_bytes)
        assert 0.0 <= p.lower_bound <= p.recompute_fraction + 1e-9


def test_predicted_peak_is_what_python_holds(plans):
    model = plans[0.6].program.model
    small = cr.checkpoint(model, batch(), plan=plans[0.6])
    x = batch()

    def step():
        out = small(x)
        torch.autograd.backward([out["features"], out["logits"]], [torch.ones_like(v) for v in out.values()])

    step()
    model.zero_grad()
    alive = Alive()
    alive.know([*model.parameters(), *model.buffers(), x])
    with alive:
        step()
    states = 5056 * small.source.count("get_state(")  # of the generator: no op of torch makes them
    assert alive.peak + states == pytest.approx(plans[0.6].activation_bytes, rel=0.03)


def test_the_module_is_the_model():
    model, x = simple()
    small = cr.checkpoint(model, x, budget=0.8)
    assert list(small.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(small.parameters(), model.parameters(), strict=True))
    small.eval()
    assert not model.training
    with torch.no_grad():
        assert torch.equal(small(x), model(x))
    assert "source" in small.executor and small.reason


def test_another_shape_is_planned_again_and_said():
    model, x = simple()
    small = cr.checkpoint(model, x, budget=0.8)
    small(x).sum().backward()
    with pytest.warns(UserWarning, match="planned again"):
        small(x[:32]).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(x[:32]).sum().backward()


def test_a_branch_on_values_is_followed_as_eager_does():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x).tanh() if x.sum() > 0 else self.b(x).sigmoid()

    torch.manual_seed(0)
    model = Branching()
    small = cr.checkpoint(model, torch.ones(3, 4), budget=1.0)
    for x in (torch.ones(3, 4), -torch.ones(3, 4)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(small(x), model(x))


def test_changed_in_place_and_a_second_backward_are_refused():
    model, x = simple()
    small = cr.checkpoint(model, x, budget=0.8)
    out = small(x).square().sum()
    with torch.no_grad():
        model[1][0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()
    out = small(x).square().sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_breakdown_fits_and_largest_batch():
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters())
    data = (torch.randn(16, 32), torch.randn(16, 1))
    p = cr.plan(model, data, F.mse_loss, optimizer)
    count = sum(q.numel() for q in model.parameters()) * 4
    assert p.breakdown["parameters"] == p.breakdown["gradients"] == count
    assert p.breakdown["optimizer state"] == pytest.approx(2 * count, abs=64)  # and a counter per tensor
    assert p.breakdown["inputs"] == 16 * 33 * 4 and not p.not_counted
    assert p.fits("1MB") and not p.fits("10kB")
    n = p.max_batch("1MB")
    bigger = lambda k: cr.plan(model, (torch.randn(k, 32), torch.randn(k, 1)), F.mse_loss, optimizer)  # noqa: E731
    assert bigger(n).peak_bytes <= 1.02e6
    assert not optimizer.state


def test_models_without_data():
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(6)))
        p = cr.plan(model, torch.empty(1024, 256), budget=0.6)
    assert p.peak_bytes < p.baseline_bytes


def test_every_tenth_of_fifty_layers():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(50)))
    p = cr.plan(model, torch.randn(512, 16), every=10)
    best = cr.plan(model, torch.randn(512, 16), budget=p.peak_bytes)
    assert best.peak_bytes <= p.peak_bytes and best.recompute_fraction < p.recompute_fraction
    named = cr.plan(model, torch.randn(512, 16), keep=[f"{k}" for k in range(9, 50, 10)])
    assert named.schedule == p.schedule


def test_plans_are_saved_and_checked(tmp_path, plans):
    p = plans[0.8]
    assert p.load(p.save(tmp_path / "plan.json")).digest == p.digest
    other = cr.plan(nn.Linear(3, 3), torch.ones(2, 3))
    with pytest.raises(ModelError, match="another program"):
        other.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ModelError, match="no plan"):
        p.load(tmp_path / "plan.json")


def test_torch_checkpoint_on_the_users_modules():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2)) for _ in range(8)))
    x = torch.randn(256, 32)
    p = cr.plan(model, x, budget=0.8)

    def gradients():
        model.zero_grad()
        torch.manual_seed(3)
        model(x).sum().backward()
        return [q.grad.clone() for q in model.parameters()]

    before = gradients()
    applied = p.apply_(model)
    assert applied.modules and applied.peak_bytes <= p.limit
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    assert "checkpoint" in applied.code()
    applied.undo()
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_back_end_of_torch_compile():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2)) for _ in range(4)))
    x = torch.randn(512, 32)
    found = []
    for b in (None, 1.0, 0.8, "1.2 MB"):
        torch._dynamo.reset()
        options = {"memory_budget": b, "compiler": "eager"}
        run = model if b is None else torch.compile(model, backend=backend, options=options, dynamic=False)
        model.zero_grad()
        torch.manual_seed(3)
        run(x).square().sum().backward()
        found.append([q.grad.clone() for q in model.parameters()])
    for eager, whole, small, text in zip(*found, strict=True):
        assert torch.equal(whole, small) and torch.equal(whole, text)
        torch.testing.assert_close(eager, whole)


@pytest.mark.parametrize("budget", [0, -1, "8 parsecs", "1e400GB", "0.0", 0.0, 1.5, True, float("nan"), [1]])
def test_budgets_that_are_none(budget):
    with pytest.raises(ModelError, match="no budget") as refused:
        cr.plan(nn.Linear(3, 3), torch.ones(2, 3), budget=budget)
    assert repr(budget) in str(refused.value)
    model = torch.fx.symbolic_trace(nn.Linear(3, 3))
    with pytest.raises(ModelError, match="no budget"):
        backend(model, [torch.ones(2, 3)], options={"memory_budget": budget, "compiler": "eager"})


def test_too_little_says_how_much():
    model, x = simple()
    with pytest.raises(BudgetError) as refused:
        cr.plan(model, x, budget=1)
    least = refused.value.minimum_bytes
    assert cr.plan(model, x, budget=least).peak_bytes <= least


def test_other_bad_input():
    model = nn.Linear(3, 3)
    for call in (
        lambda: cr.plan(model),
        lambda: cr.plan(model, torch.ones(2, 3), budget=0.5, every=2),
        lambda: cr.plan(model, torch.ones(2, 3), keep=["nothing"]),
        lambda: cr.plan(model, torch.ones(2, 3), every=0),
        lambda: cr.checkpoint(model, torch.ones(2, 3)),
        lambda: cr.plan(model.requires_grad_(False), torch.ones(2, 3)),
    ):
        with pytest.raises(ChainruleError):
            call()


@pytest.mark.parametrize("model", [3, None, lambda x: x, [nn.Linear(3, 3)]])
def test_models_that_are_none(model):
    for ask in (
        lambda: cr.plan(model, torch.ones(2, 3)),
        lambda: cr.checkpoint(model, torch.ones(2, 3), budget=0.9),
        lambda: cr.plan(model, torch.ones(2, 3), objective=lambda m, b: b.sum()),
    ):
        with pytest.raises(ModelError, match="no model to plan") as refused:
            ask()
        assert "torch.nn.Module" in str(refused.value) and "objective=" in str(refused.value)


def test_files_that_are_no_plans(tmp_path):
    p = cr.plan(nn.Linear(3, 3), torch.ones(2, 3))
    (tmp_path / "text.json").write_text("no plan")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", "text.json", "list.json", "bytes.json", "."):
        with pytest.raises(ModelError, match="plan") as refused:
            p.load(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)


def test_refused_budgets_say_what_is_too_much():
    model, x = nn.Sequential(nn.Linear(512, 512), nn.Tanh()), torch.ones(4, 512)
    with pytest.raises(BudgetError, match="alone take 1.0. MB more") as refused:
        cr.plan(model, x, budget="8K")
    assert "'8K'" in str(refused.value) and "-" not in str(refused.value).split("required")[0]
    least = refused.value.minimum_bytes
    with pytest.raises(BudgetError) as refused:
        cr.plan(model, x, budget=least - 1)
    assert " of activations" in str(refused.value)


def test_a_fraction_refused_for_another_batch_is_named():
    model, x = simple()
    small = cr.checkpoint(model, x, budget=0.8)
    with pytest.raises(BudgetError, match=r"0\.8"):
        small(torch.cat([x] * 8))


def test_a_write_into_an_input_names_it():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, first, mask):
            mask.mul_(2.0)
            return self.layer(first) * mask

    pair = torch.ones(2, 3), torch.ones(2, 3)
    for batch in (pair, dict(zip(("first", "mask"), pair, strict=True))):
        with pytest.raises(ChainruleError, match="writes into input 'mask'"):
            cr.plan(Writing(), batch)


def test_work_inside_of_kernels_is_said_to_be_missing_until_it_is_measured():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(8, 8)

        def forward(self, x):
            return self.layer(x)[0]

    x = torch.ones(2, 3, 8)
    for model in (Recurrent(), nn.Conv1d(3, 3, 3), nn.ConvTranspose1d(3, 3, 3)):
        said = [what for what in cr.plan(model, x).not_counted if "inside" in what]
        assert said and said[0] in str(cr.plan(model, x))
        assert not [what for what in cr.plan(model, x, calibrate=True).not_counted if "inside" in what]
    assert not any("inside" in what for what in cr.plan(nn.Linear(3, 3), torch.ones(2, 3)).not_counted)
