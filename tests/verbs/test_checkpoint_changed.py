"""What a planned module does when call, model or use are not those that were planned."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import BudgetError, ModelError, UnsupportedOpError


class Scaled(nn.Module):
    """Reads a number, a flag, and an attribute besides its tensor."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 4))
        self.scale = 1.0

    def forward(self, x, k=2.0, flag=False):
        out = self.layers(x) * k * self.scale
        return out.relu() if flag else out


def activation(model):
    model.layers[1] = nn.ReLU()


def more_dropout(model):
    model.layers[2].p = 0.9


def attribute(model):
    model.scale = 3.0


def hook(model):
    model.layers[1].register_forward_hook(lambda module, given, out: 3 * out)


def step_of(run, model, args, kwargs):
    """Output and gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    out = run(*args, **kwargs)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize(
    ("more", "named", "change"),
    [
        ((5.0,), {}, None),
        ((), {"k": 5.0}, None),
        ((2.0, True), {}, None),
        *(((), {}, c) for c in (activation, more_dropout, attribute, hook)),
    ],
)
def test_the_first_call_is_checked_like_every_other(more, named, change):
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(3, 4)
    small = cr.checkpoint(model, x, budget="1MB")
    by_hand = cr.checkpoint(model, x, plan=cr.plan(model, x))
    if change is not None:
        change(model)
    with pytest.warns(UserWarning, match="planned again"):
        found = step_of(small, model, (x, *more), named)
    torch.testing.assert_close(found, step_of(model, model, (x, *more), named))
    with pytest.raises(ModelError, match="another call"):
        by_hand(x, *more, **named)


def test_nothing_is_planned_again_where_nothing_changed():
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(3, 4)
    small = cr.checkpoint(model, x, budget="1MB")
    torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (x, torch.ones(3, 4)):
            torch.testing.assert_close(step_of(small, model, (batch,), {}), step_of(model, model, (batch,), {}))


def test_keywords_in_another_order_are_not_mixed_up():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, a, b):
            return self.layer(a) - b

    torch.manual_seed(0)
    model, a, b = Difference(), torch.randn(3, 4), torch.randn(3, 4)
    small = cr.checkpoint(model, {"a": a, "b": b}, budget=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(small(b=b, a=a), model(a, b))


def test_a_backward_hook_added_after_planning_is_refused():
    model, x = Scaled(), torch.randn(3, 4)
    small = cr.checkpoint(model, x, budget="1MB")
    model.layers[1].register_full_backward_hook(lambda module, g_in, g_out: (3 * g_in[0],))
    with pytest.raises(UnsupportedOpError, match="backward hook"):
        small(x)


def test_a_case_whose_model_changed_is_traced_again():
    model, x = Scaled(), torch.randn(3, 4)
    case = cr.case(model, x, objective=lambda m, b: m(b).square().sum())
    first = cr.plan(case)
    activation(model)
    assert cr.plan(case).program is not first.program


def penalty(run, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1.0).square().mean()


@pytest.mark.parametrize("weighted", [False, True])  # whether the cotangent itself has a gradient
def test_second_derivatives_are_refused_and_apply_has_them(weighted):
    torch.manual_seed(0)
    block = lambda: nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(8, 8), nn.Tanh())))  # noqa: E731
    model = nn.Sequential(*(block() for _ in range(4))).double()
    x = torch.randn(64, 8, dtype=torch.float64)
    plan = cr.plan(model, x.clone().requires_grad_(), budget=0.9)
    small = cr.checkpoint(model, x.clone().requires_grad_(), plan=plan)
    factor = torch.ones((), dtype=torch.float64, requires_grad=weighted)
    with pytest.raises(UnsupportedOpError, match="create_graph=True") as refused:
        penalty(lambda v: factor * small(v), x)
    assert "apply_" in str(refused.value)
    out = small(x.clone().requires_grad_()).sum()
    with pytest.raises(UnsupportedOpError):
        torch.autograd.grad(out, list(model.parameters()), create_graph=True)
    out.backward()  # nothing was let go
    model.zero_grad()
    expected = torch.autograd.grad(penalty(model, x), list(model.parameters()), allow_unused=True)
    done = plan.apply_(model)
    found = torch.autograd.grad(penalty(model, x), list(model.parameters()), allow_unused=True)
    assert done.modules
    torch.testing.assert_close([g for g in found if g is not None], [g for g in expected if g is not None])


def deep(value):
    return copy.deepcopy(value)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(value):
    found = torch.optim.swa_utils.AveragedModel(value, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    found.update_parameters(value)
    return found.module


@pytest.mark.parametrize("copied", [deep, saved, averaged])
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("called", [False, True])
def test_a_copy_has_its_own_model_and_the_same_plan(copied, by_hand, called):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()) for _ in range(6)))
    x = torch.randn(64, 8)
    plan = cr.plan(model, x, every=2) if by_hand else cr.plan(model, x, budget=0.8)
    small = cr.checkpoint(model, x, plan=plan)
    small.note = "mine"
    if called:
        small(x).sum().backward()
        model.zero_grad()
    other = copied(copied(small))
    assert type(other) is type(small) and other.note == "mine" and list(other.state_dict()) == list(model.state_dict())
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    plain = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(step_of(other, other, (x,), {}), step_of(plain, plain, (x,), {}))
        assert other.plan.digest == plan.digest and other.plan.peak_bytes == plan.peak_bytes
        other.eval()
        assert model.training and all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(other.named_buffers()), dict(plain.named_buffers()))


def test_a_copy_plans_another_batch_in_the_same_bytes():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)))
    x = torch.randn(64, 8)
    small = cr.checkpoint(model, x, budget=0.8)
    other = copy.deepcopy(small)
    with pytest.warns(UserWarning, match="planned again"):
        found = step_of(other, other, (x[:60],), {})
    torch.testing.assert_close(found, step_of(model, model, (x[:60],), {}))
    assert other.plan.peak_bytes <= small.plan.limit == other.plan.limit
    with pytest.raises(BudgetError):
        copy.deepcopy(small)(torch.cat([x] * 8))


def test_a_copy_of_a_module_with_an_objective_and_of_one_without_a_graph():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(16, 8)
    other = copy.deepcopy(cr.checkpoint(model, x, budget=1.0, objective=squares))
    assert torch.equal(other(x), squares(model, x)) and other.plan.program.objective is squares

    model = Counting()
    with pytest.warns(UserWarning, match="cannot be planned"):
        other = copy.deepcopy(cr.checkpoint(model, x, budget=1.0))
    assert torch.equal(other(x), model(x)) and other.layer.weight is not model.layer.weight


def squares(model, batch):
    return model(batch).square().mean()


class Counting(nn.Module):
    """No graph can hold what it does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.seen = torch.zeros(())

    def forward(self, x):
        self.seen = self.seen + x.mean().detach()
        return self.layer(x).tanh()
