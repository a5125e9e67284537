"""What capture must not lose in silence: every program here trains as eager execution does, or says why it does not.

Each is compared with autograd from the same seed: loss and buffers bit for bit, gradients to float64 rounding.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import chainrule as cr
from chainrule.errors import StaleTraceError, UnsupportedOpError
from chainrule.frontends.torch import trace


def trained(model: nn.Module, x: Any, steps: int = 2) -> cr.Case:  # type: ignore[name-defined]
    """Some steps by the compiled function beside eager ones, from the same seed."""
    eager = copy.deepcopy(model)
    case = cr.case(model, x, objective=lambda m, b: m(b).square().mean())
    assert case.trace.bit_equal
    for seed in range(steps):
        torch.manual_seed(seed)
        expected = eager(x).square().mean()
        eager.zero_grad()
        expected.backward()
        torch.manual_seed(seed)
        loss, grads = case.step(dict(model.named_parameters()), x)
        assert torch.equal(loss, expected.detach())
        for name, parameter in eager.named_parameters():
            if parameter.grad is None or not parameter.grad.any():
                assert grads[name] is None or not grads[name].any(), name
            else:
                torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-12, atol=1e-14)
        for name, buffer in eager.named_buffers():
            assert torch.equal(buffer, dict(model.named_buffers())[name]), name
    return case


X = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).reshape(2, 3, 4)


class Cut(nn.Module):
    """A product of two linear layers, one of which is cut off ``how``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.how = nn.Linear(4, 4).double(), nn.Linear(4, 4).double(), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        if self.how == "detach":
            b = b.detach()
        elif self.how == "detach in place":
            b = (b * 1.0).detach_()
        elif self.how == "data":
            b = b.data
        elif self.how == "no_grad":
            with torch.no_grad():
                b = self.b(x)
        elif self.how == "inference of a part":
            with torch.no_grad():
                low = self.b(x)
                b = low.max(-1, keepdim=True).values
        elif self.how == "no_grad decorator":
            b = torch.no_grad()(self.b)(x)
        elif self.how == "set_grad_enabled":
            with torch.set_grad_enabled(False):
                b = self.b(x)
        elif self.how == "weights":
            b = F.linear(x, self.b.weight.detach(), self.b.bias)
        elif self.how == "part of a view":
            b = torch.cat([b[..., :2], b[..., 2:].detach()], -1)
        elif self.how == "written under no_grad":
            with torch.no_grad():
                b[..., 0] = 0.5
        return a * b


CUTS = {
    "detach": ("b.weight", "b.bias"),
    "detach in place": ("b.weight", "b.bias"),
    "data": ("b.weight", "b.bias"),
    "no_grad": ("b.weight", "b.bias"),
    "inference of a part": ("b.weight", "b.bias"),
    "no_grad decorator": ("b.weight", "b.bias"),
    "set_grad_enabled": ("b.weight", "b.bias"),
    "weights": ("b.weight",),
    "part of a view": (),
    "written under no_grad": (),
}


@pytest.mark.parametrize("how", CUTS)
def test_what_is_cut_stays_cut(how: str) -> None:
    case = trained(Cut(how), X)
    assert case.trace.unreached == CUTS[how]


def detached_write(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.a(x)
    y.detach().clamp_(min=0.0)  # the value changes, the derivative does not
    return y * self.b(x)


def data_write(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.a(x) * 1.0
    y.data[..., 0] = 2.0
    return y**2 + self.b(x)


def write_into_an_alias(self: Any, x: torch.Tensor) -> torch.Tensor:
    memory = torch.zeros(2, 3, 4, dtype=x.dtype)
    memory.detach().copy_(self.a(x))  # the alias has a derivative, the memory's own tensor has none
    return memory * self.b(x)


def write_through_views(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.a(x).clone()
    rows, columns = y.view(6, 4), y.transpose(0, 2)
    columns.mul_(self.b(x).transpose(0, 2))
    rows[1:3] += 1.0
    return y + rows.sum()


def sampled_by_distribution(self: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Gamma(F.softplus(self.a(x)), F.softplus(self.b(x))).rsample()


@pytest.mark.parametrize(
    "forward", [detached_write, data_write, write_into_an_alias, write_through_views, sampled_by_distribution]
)
def test_writes_that_autograd_does_not_see(forward: Any) -> None:
    class Written(Cut):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, x)

    model = Written("")
    if forward is sampled_by_distribution:  # its arguments are checked, which reads values: one step
        trained(model, X, steps=1)
    else:
        trained(model, X)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_between_recurrent_layers(kind: str, batch_first: bool) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(nn, kind)(4, 3, 3, dropout=0.5, bidirectional=True, batch_first=batch_first).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    case = trained(Last(), X)
    assert len(case.trace.graph.draws) == 2  # one between each two layers, each a draw of its own
    torch.manual_seed(1)
    first, _ = case.step(dict(case.model.named_parameters()), X)
    second, _ = case.step(dict(case.model.named_parameters()), X)
    assert not torch.equal(first, second)


class Sign(torch.autograd.Function):
    """The sign, and the gradient of a clipped identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() <= 1)


class Two(torch.autograd.Function):
    """Two results, a backward that uses one cotangent only, an argument that is no tensor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.factor = factor
        return x * factor, x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 10.0 * grads[0] * ctx.factor, None


@pytest.mark.parametrize("which", ["one", "two", "by detach", "inside a checkpoint"])
def test_a_backward_of_its_own(which: str) -> None:
    class Straight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 4).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            if which == "one":
                return Sign.apply(y) + 0.1 * y  # type: ignore[operator]
            if which == "two":
                first, second = Two.apply(y, 0.5)  # type: ignore[misc]
                return first + second
            if which == "by detach":
                return y + (y.sign() - y).detach()
            return checkpoint(lambda z: Sign.apply(z).exp(), y, use_reentrant=False)  # type: ignore[union-attr]

    trained(Straight(), X)


def test_a_reentrant_checkpoint_is_followed() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
            self.drop = nn.Dropout(0.4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: Any = checkpoint(lambda z: self.drop(self.second(z).tanh()), self.first(x), use_reentrant=True)
            return y

    case = trained(Block(), X)
    assert not case.trace.opaque


def test_a_reentrant_checkpoint_without_a_derivative() -> None:
    class Lost(nn.Module):
        """None of the checkpoint's inputs has a gradient: torch then gives none to what is inside."""

        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                y: Any = checkpoint(self.inside, x, use_reentrant=True)
            return self.outside(y)

    case = trained(Lost(), X)
    assert set(case.trace.unreached) == {"inside.weight", "inside.bias"}


class Normal(nn.Module):
    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=momentum), nn.InstanceNorm1d(3))
        self.second = nn.InstanceNorm1d(3, track_running_stats=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers[1](self.layers[0](x).flatten(0, 1))
        return self.second(self.layers[2](y.reshape(2, 3, 3)))


@pytest.mark.parametrize("train", [True, False])
def test_counters_and_statistics_of_batch_norm(train: bool) -> None:
    model = Normal(0.1).double().train(train)
    case = trained(model, X, steps=3)
    assert int(model.layers[1].num_batches_tracked) == (3 if train else 0)  # type: ignore[arg-type]
    assert ("layers.1.num_batches_tracked" in case.trace.updates) == train


def test_a_counter_that_is_read_on_every_step() -> None:
    """A cumulative average divides by the number of batches, which Python reads: one step holds, the next says so."""
    model = Normal(None).double()
    case = trained(model, X, steps=1)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(StaleTraceError, match=r"layers\.1"):
        case.step(dict(model.named_parameters()), X)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_masks_that_the_encoder_branches_on(train: bool, nested: bool) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
            self.causal = nn.Transformer.generate_square_subsequent_mask(3).double()

        def forward(self, given: Any) -> torch.Tensor:
            x, padding = given
            return self.layers(x, mask=self.causal, src_key_padding_mask=padding.double() * -1e9)

    model = Encoder().double().train(train)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    case = trained(model, (X, padding))
    other = torch.tensor([[False, True, True], [False, False, False]])
    eager = copy.deepcopy(model)
    torch.manual_seed(5)
    expected = eager((X, other)).square().mean()
    torch.manual_seed(5)
    loss, _ = case.step(dict(model.named_parameters()), (X, other))
    assert torch.equal(loss, expected.detach())


def test_thousands_of_numbers_read() -> None:
    """Read one by one, they are guards, not a hang; where only declared ops may occur, the first is refused."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = sum(x.flatten()[k % 24].item() for k in range(3000))
            return x * self.weight * total

    model = Reads()
    case = trained(model, X)
    assert len(case.trace.guards) == 3000
    with pytest.raises(StaleTraceError, match="test_silent_losses.py"):
        case.step(dict(model.named_parameters()), X + 1)
    with pytest.raises(UnsupportedOpError, match="Python reads the value"):
        trace(model, (X,))


def test_lengths_that_a_loss_reads_by_pointers() -> None:
    """ctc_loss takes lengths out of tensors in C++, where no call shows it: they are guarded all the same."""

    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5).double()

        def forward(self, given: Any) -> torch.Tensor:
            x, lengths = given
            scores = self.layer(x).log_softmax(-1)
            return F.ctc_loss(scores, torch.tensor([[1, 2], [3, 3], [4, 1]]), lengths, torch.tensor([1, 1, 2]))

    x, lengths = X.transpose(0, 1).repeat(2, 2, 1)[:, :3], torch.tensor([6, 5, 6])
    model = Speech()
    case = trained(model, (x, lengths))
    assert not case.trace.opaque
    with pytest.raises(StaleTraceError):
        case.step(dict(model.named_parameters()), (x, torch.tensor([6, 6, 6])))


def test_a_complex_write_is_not_lost() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes = torch.fft.rfft(x * self.weight)
            kept = torch.zeros_like(modes)
            kept[..., :2] = modes[..., :2] * (0.5 + 0.25j)
            kept.mul_(2.0)
            return torch.fft.irfft(kept, n=4) + kept.abs().sum() + torch.view_as_real(kept).mean()

    case = trained(Spectrum(), X)
    assert not case.trace.unreached


def test_complex_numbers_without_gradients_are_cut() -> None:
    class Phase(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=torch.float64))
            self.b = nn.Parameter(torch.linspace(-0.5, 1.0, 4, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                turn = torch.polar(torch.ones_like(self.b), self.b)
            return torch.view_as_real(torch.fft.fft(x * self.a) * turn)

    assert trained(Phase(), X).trace.unreached == ("b",)
