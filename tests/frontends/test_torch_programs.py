"""What programs do beyond declared ops: random draws, buffers, writes through views, opaque calls, branches.

Each program is compared with eager execution: the forward pass and the buffers bit for bit from the same seed, the
gradients with autograd's.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule as cr
from chainrule.backends.torch import step
from chainrule.errors import StaleTraceError, UnsupportedOpError
from chainrule.frontends.torch import trace_case


class Program(nn.Module):
    """``forward(self, x)`` with a weight of x's last size, a vector buffer and a counter."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], size: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size, dtype=torch.float64))
        self.register_buffer("kept", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def compared(model: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> cr.Case:  # type: ignore[name-defined]
    """Loss, gradients and buffers after one step, against autograd from the same seed."""
    case = cr.case(model, x, objective=lambda m, b: m(b).square().mean())
    assert case.trace.bit_equal
    eager = copy.deepcopy(model)
    torch.manual_seed(7)
    loss = eager(x).square().mean()
    loss.backward()
    torch.manual_seed(7)
    ours, grads = case.step(dict(model.named_parameters()), x)
    assert torch.equal(loss.detach(), ours)
    for name, parameter in eager.named_parameters():
        if parameter.grad is None:
            assert grads[name] is None
            continue
        # float64; sums may be taken in another order
        torch.testing.assert_close(grads[name], parameter.grad, rtol=tolerance, atol=tolerance)
    after = dict(model.named_buffers())
    for name, buffer in eager.named_buffers():
        assert torch.equal(buffer, after[name]), name
    return case


X = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).reshape(2, 3, 4)


# ---- random draws ------------------------------------------------------------------------------------------
RANDOM: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "dropout": lambda self, x: F.dropout(x * self.weight, 0.3),
    "dropout of everything": lambda self, x: F.dropout(x * self.weight, 1.0) + self.weight,
    "channels": lambda self, x: F.dropout2d((x * self.weight)[None], 0.4),
    "transposed": lambda self, x: F.dropout((x * self.weight).transpose(0, 2), 0.3),
    "in place": lambda self, x: F.dropout(x * self.weight, 0.3, inplace=True),
    "alpha": lambda self, x: F.alpha_dropout(x * self.weight, 0.3, training=True),
    "noise": lambda self, x: x * self.weight + torch.randn_like(x) + torch.rand(4) + torch.randn(3, 1),
    "filled": lambda self, x: x * torch.empty(4, dtype=x.dtype).normal_(0.5, 2.0) * self.weight,
    "integers": lambda self, x: (x * self.weight)[..., torch.randint(0, 4, (5,))],
    "permutation": lambda self, x: (x * self.weight)[..., torch.randperm(4)],
    "drawn by value": lambda self, x: torch.bernoulli(torch.sigmoid(x * self.weight).detach()) * self.weight,
    "not used": lambda self, x: (torch.rand(3), F.dropout(x, 0.5), F.dropout(x * self.weight, 0.5))[-1],
    "out of order": lambda self, x: (lambda a, b: b * 2 + a)(
        F.dropout(x * self.weight, 0.5), F.dropout(self.weight + x, 0.2)
    ),
    "attention": lambda self, x: F.scaled_dot_product_attention(x * self.weight, x, x, dropout_p=0.4),
    "rrelu": lambda self, x: F.rrelu(x * self.weight, training=True),
    "gumbel": lambda self, x: F.gumbel_softmax(x * self.weight, dim=-1),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    compared(Program(RANDOM[name]), X)


def test_recurrent_dropout_between_layers() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 5, num_layers=2, dropout=0.5, bidirectional=True, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    compared(Last(), X)


# ---- buffers -----------------------------------------------------------------------------------------------
def averaged(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        self.kept.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
        self.count += 1
    return x * self.weight + self.kept


def replaced(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.kept = 0.5 * self.kept + x.detach().mean((0, 1))
    return x * self.weight * self.kept


def one_entry(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.kept[1] = x.detach().sum()
    return x * self.weight + self.kept


@pytest.mark.parametrize("forward", [averaged, replaced, one_entry])
def test_buffers_are_outputs(forward: Any) -> None:
    case = compared(Program(forward), X)
    assert "kept" in case.trace.updates


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_batch_norm(training: bool, affine: bool, momentum: float) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3, affine=affine, momentum=momentum, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), layer, nn.Tanh()).train(training)
    compared(model, X.clone())
    images = nn.Sequential(nn.Conv2d(3, 2, 2, dtype=torch.float64), nn.BatchNorm2d(2, dtype=torch.float64))
    compared(images.train(training), torch.randn(3, 3, 4, 4, dtype=torch.float64))


def test_looking_changes_no_buffer() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    case = cr.case(model, (torch.randn(5, 4), torch.randn(5, 3)), nn.MSELoss())
    assert case.trace.bit_equal and set(case.trace.updates) == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    torch.set_rng_state(state)


# ---- writes ------------------------------------------------------------------------------------------------
def shifted(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y[..., 1:] = (x * self.weight)[..., :-1]
    y[..., 0] = 2.0
    return y


def through_views(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = x * self.weight
    first, flat = y[0], y.view(-1)
    first.mul_(2.0)
    flat[3:7] += 1.0
    y.transpose(0, 2)[1].neg_()
    return y * first + flat.reshape(2, 3, 4)


def filled_row_by_row(self: Any, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    state = torch.zeros_like(self.weight)
    for t in range(x.shape[1]):
        state = torch.tanh(state * self.weight + x[:, t])
        out[:, t] = state
    return out


@pytest.mark.parametrize("forward", [shifted, through_views, filled_row_by_row])
def test_writes_in_place(forward: Any) -> None:
    compared(Program(forward), X)


# ---- opaque calls ------------------------------------------------------------------------------------------
class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0] * ctx.scale, None


class Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, y)
        return x * y, x + y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        return grads[0] * y * 3 + grads[1], grads[0] * x


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return -grads[0]


OPAQUE: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "undeclared": lambda self, x: torch.special.i0e(x * self.weight),
    "undeclared, several results": lambda self, x: torch.frexp(x * self.weight)[0] + self.weight,
    "undeclared, in place": lambda self, x: (x * self.weight).nan_to_num_(0.0),
    "straight through": lambda self, x: StraightThrough.apply(x * self.weight, 0.5),  # type: ignore[operator]
    "several": lambda self, x: sum(Both.apply(x, self.weight.expand_as(x))),  # type: ignore[operator, arg-type]
    "identity with another backward": lambda self, x: Reversed.apply(x * self.weight),  # type: ignore[operator]
}


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_calls_keep_their_own_backward(name: str) -> None:
    case = compared(Program(OPAQUE[name]), X)
    assert sum(case.trace.opaque.values()) >= 1 or name.startswith("undeclared")


def test_no_closed_form_of_an_opaque_call() -> None:
    case = cr.case(Program(OPAQUE["straight through"]), X, objective=lambda m, b: m(b).sum())
    with pytest.raises(UnsupportedOpError, match="autograd.Function StraightThrough"):
        cr.derive(case)


# ---- what Python reads -------------------------------------------------------------------------------------
def branching(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x * self.weight if (x > 0).all() else -x * self.weight


def test_a_branch_is_followed_and_guarded() -> None:
    model = Program(branching)
    case = compared(model, X)
    (guard,) = case.trace.guards
    assert "test_torch_programs.py" in guard.where
    with pytest.raises(StaleTraceError, match="read a value at"):
        case.step(dict(model.named_parameters()), X.abs() + 1)


def test_a_compiled_step_follows_the_branch_of_each_batch() -> None:
    model = Program(branching)
    compiled = cr.compile_step(model, objective=lambda m, b: m(b).sum())
    for batch in (X, X.abs() + 1, X):
        compiled(batch)
        ours = model.weight.grad
        model.weight.grad = None
        model(batch).sum().backward()
        torch.testing.assert_close(ours, model.weight.grad)


def test_a_value_read_on_every_batch_is_refused_in_the_end() -> None:
    model = Program(lambda self, x: x * self.weight * x.sum().item())
    compiled = cr.compile_step(model, objective=lambda m, b: m(b).sum())
    with pytest.raises(UnsupportedOpError, match="read a value at"):
        for k in range(12):
            compiled(X + k)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x * self.weight * int(x.sum()),
        lambda self, x: x * self.weight * float(x.detach().numpy().sum()),
        lambda self, x: (x * self.weight)[x > 0],
        lambda self, x: (x * self.weight).flatten()[x.flatten().nonzero()[:, 0]],
    ],
)
def test_values_that_are_read_are_followed(forward: Any) -> None:
    case = compared(Program(forward), X)
    assert case.trace.guards


# ---- state -------------------------------------------------------------------------------------------------
def test_python_state_is_named() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x * self.weight * self.calls

    model = Program(forward)
    model.calls = 0  # type: ignore[assignment]
    found = trace_case(model, X)
    assert found.mutations == ("attribute 'calls' of Program from 0 to 1",) and model.calls == 0
    with pytest.raises(UnsupportedOpError, match="attribute 'calls' of Program"):
        trace_case(model, X, strict=True)
    with pytest.raises(UnsupportedOpError, match="attribute 'calls' of Program"):
        cr.compile_step(model, objective=lambda m, b: m(b).sum())(X)


# ---- tensors without storage -------------------------------------------------------------------------------
def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        layers = [nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Dropout(0.0)]
        model = nn.Sequential(*layers)
        batch = torch.empty(5, 4), torch.empty(5, 4)
    found = trace_case(model, batch, nn.MSELoss())
    assert [n.params["stream"] for n in found.graph.draws] == [0, 1]
    assert set(found.updates) == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}
    _, grads = step(found)(dict(model.named_parameters()), batch)
    assert all(g is not None and g.is_meta for g in grads.values())
    case = cr.case(model, batch, nn.MSELoss())
    assert case.trace.bit_equal is None  # there are no bits
    assert set(case.step(dict(model.named_parameters()), batch)[1]) == {k for k, _ in model.named_parameters()}


class Masked(torch.nn.Module):
    """Drops spans of its input as speech models do: places from NumPy, whether at all from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = torch.ones(6)
        keep[int(np.random.randint(0, 6))] = 0.0
        return self.linear(x * keep) * (2.0 if random.random() < 0.5 else 1.0)


def test_draws_outside_of_torch_are_noticed() -> None:
    """They are numbers in the graph: right from the same states, where the generators then move as eagerly, else stale."""
    model, batch = Masked(), (torch.randn(4, 6), torch.randn(4, 1))
    np.random.seed(3)
    random.seed(4)
    case = cr.case(model, batch, F.mse_loss)
    parameters = dict(model.named_parameters())
    loss, _ = case.step(parameters, batch)
    moved = np.random.random(), random.random()
    np.random.seed(3)
    random.seed(4)
    assert torch.equal(loss, F.mse_loss(model(batch[0]), batch[1]).detach())
    assert moved == (np.random.random(), random.random())
    with pytest.raises(StaleTraceError, match="NumPy's or Python's"):
        case.step(parameters, batch)


def test_fit_draws_outside_of_torch_anew() -> None:
    torch.manual_seed(0)
    losses = []
    for fitted in (True, False):
        torch.manual_seed(1)
        model, x, y = Masked(), torch.randn(4, 6), torch.randn(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        np.random.seed(3)
        random.seed(4)
        if fitted:
            losses.append(cr.fit(model, [(x, y)], F.mse_loss, optimizer, epochs=4).step_loss)
            continue
        own = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses.append(own)
    assert list(losses[0]) == pytest.approx(losses[1], rel=1e-6)


def test_a_function_that_draws_outside_of_torch_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="draws from NumPy's"):
        cr.grad(lambda x: (x * float(np.random.rand())).sum())(torch.ones(3))
