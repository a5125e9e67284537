"""The 45 faults: scale, saturation, zero derivative, symmetry, no gradient, loss, data, optimisation, non-finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.fault_cases.table import (
    Setup,
    Size,
    Table,
    above,
    adam,
    blobs,
    classified,
    equal_units,
    linear_data,
    mlp,
    no_gradient,
    not_finite,
    stuck,
    unmoved,
)

TABLE = Table()
fault = TABLE.fault


def normal(std: float) -> Any:
    """Weights N(0, std^2)."""
    return lambda w: nn.init.normal_(w, 0, std)


# ---- scale ---------------------------------------------------------------------------------------------------
@fault("F01", "vanishing", "0", stuck(0.9, 100))
def f01(s: Size) -> Setup:
    """20 sigmoid layers, default initialisation"""
    return classified(mlp(20 * s.deep, 64 * s.wide, nn.Sigmoid))


@fault("F02", "vanishing", "0", stuck(0.9, 100))
def f02(s: Size) -> Setup:
    """30 tanh layers, N(0, .02^2)"""
    # At the width of 64: .02 is a gain of .16; the same gain at other widths.
    return classified(mlp(30 * s.deep, 64 * s.wide, nn.Tanh, init=normal(0.02 / s.wide**0.5)))


@fault("F03", "vanishing", "0", stuck(0.9, 100))
def f03(s: Size) -> Setup:
    """40 ReLU layers, PyTorch's default initialisation"""
    return classified(mlp(40 * s.deep, 64 * s.wide, nn.ReLU))


@fault("F05", "exploding nonfinite", "0|10|22|24|48", lambda s: not s.train(1)[0] < 1e4)
def f05(s: Size) -> Setup:
    """12 ReLU layers of 128, N(0, 1)"""
    return classified(mlp(12 * s.deep, 128 * s.wide, nn.ReLU, init=normal(1.0)))


class Repeated(nn.Module):
    """One layer applied again and again."""

    def __init__(self, width: int, times: int, gain: float) -> None:
        super().__init__()
        self.inward, self.step, self.head = nn.Linear(32, width), nn.Linear(width, width), nn.Linear(width, 10)
        nn.init.orthogonal_(self.step.weight, gain)
        nn.init.zeros_(self.step.bias)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inward(x)
        for _ in range(self.times):
            h = self.step(h)
        return self.head(h)


@fault("F07", "exploding", "step", lambda s: not s.train(1)[0] < 1e4)
def f07(s: Size) -> Setup:
    """one Linear applied 100 times, orthogonal with gain 1.3"""
    return classified(Repeated(64 * s.wide, 100 * s.deep, 1.3))


# ---- saturated, dead -----------------------------------------------------------------------------------------
def squashed(s: Setup) -> bool:
    """Most entries behind the sigmoids are within a thousandth of 0 or 1."""
    shares, x = [], s.batch[0]
    for layer in s.model:  # type: ignore[union-attr]
        x = layer(x)
        if isinstance(layer, nn.Sigmoid):
            shares.append(float(((x < 1e-3) | (x > 1 - 1e-3)).float().mean()))
    return max(shares) > 0.5


@fault("F09", "saturated", "0|1|2|3|4|5", squashed)
def f09(s: Size) -> Setup:
    """sigmoid network, weights N(0, 10^2)"""
    return classified(mlp(3 * s.deep, 64 * s.wide, nn.Sigmoid, init=normal(10.0)))


@fault("F11", "dead", "2|3", no_gradient("0."))
def f11(s: Size) -> Setup:
    """second ReLU layer with bias -10"""
    net = mlp(3 * s.deep, 64 * s.wide, nn.ReLU)
    nn.init.constant_(net[2].bias, -10.0)  # type: ignore[arg-type]
    return classified(net)


@fault("F13", "dead", "0|1", no_gradient("0."))
def f13(s: Size) -> Setup:
    """first ReLU layer with negative weights only, inputs in [0, 1]"""
    net = mlp(3 * s.deep, 64 * s.wide, nn.ReLU)
    with torch.no_grad():
        net[0].weight.copy_(-net[0].weight.abs())  # type: ignore[union-attr]
        net[0].bias.copy_(-net[0].bias.abs())  # type: ignore[union-attr]
    x, y = blobs()
    x = (x - x.min(0).values) / (x.max(0).values - x.min(0).values)
    return classified(net, data=(x, y))


# ---- zero derivative -----------------------------------------------------------------------------------------
class Hidden(nn.Module):
    """Layers with something in the middle, which subclasses say."""

    def __init__(self, s: Size, out: int = 10) -> None:
        super().__init__()
        width = 64 * s.wide
        self.inward = mlp(2 * s.deep, width, nn.ReLU, out=width)
        self.outward = mlp(1, width, nn.ReLU, d=width, out=out)

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outward(self.middle(self.inward(x)))


class Step(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return (h > 0).float()


@fault("F15", "cut zero_derivative", "gt|faulty.py", no_gradient("inward"))
def f15(s: Size) -> Setup:
    """Heaviside units (z > 0).float()"""
    return classified(Step(s))


class Sign(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sign(h)


@fault("F16", "zero_derivative", "sign|faulty.py", no_gradient("inward"))
def f16(s: Size) -> Setup:
    """torch.sign as activation"""
    return classified(Sign(s))


class Chosen(Hidden):
    def __init__(self, s: Size) -> None:
        super().__init__(s)
        self.table = nn.Embedding(64 * s.wide, 64 * s.wide)

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return self.table(h.argmax(1))


@fault("F19", "cut", "argmax|faulty.py", no_gradient("inward"))
def f19(s: Size) -> Setup:
    """argmax, then an embedding"""
    return classified(Chosen(s))


# ---- symmetry ------------------------------------------------------------------------------------------------
@fault("F21", "symmetric", "0", unmoved("0.weight", "2.weight", "4.weight"))
def f21(s: Size) -> Setup:
    """all weights and biases 0"""
    return classified(mlp(2 * s.deep, 64 * s.wide, nn.ReLU, init=nn.init.zeros_))


@fault("F22", "symmetric duplicate", "0", equal_units("0.weight"))
def f22(s: Size) -> Setup:
    """all weights .1"""
    # .1 at the width of 64; the same sum over the inputs at other widths.
    return classified(
        mlp(
            2 * s.deep,
            64 * s.wide,
            nn.ReLU,
            init=lambda w: nn.init.constant_(w, 0.1 if w.shape[1] == 32 else 6.4 / w.shape[1]),
        )
    )


class Recurrent(nn.Module):
    def __init__(self, kind: Any, width: int, layers: int = 1) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, width, layers, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight steps of eight features; the class is in the last."""
    x, y = blobs(64, 8)
    return torch.cat([torch.randn(64, 7, 8), x[:, None]], 1), y


@fault("F25", "symmetric", "rnn", equal_units("rnn.weight_ih_l0"))
def f25(s: Size) -> Setup:
    """LSTM and head all .05"""
    net = Recurrent(nn.LSTM, 32 * s.wide, s.deep)
    for p in net.parameters():
        nn.init.constant_(p, 0.05)
    return classified(net, data=sequences())


# ---- no gradient ---------------------------------------------------------------------------------------------
class Detached(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return h.detach()


@fault("F26", "cut", "detach|faulty.py", no_gradient("inward"))
def f26(s: Size) -> Setup:
    """h.detach() in the middle of the forward pass"""
    return classified(Detached(s))


class Data(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return h.data


@fault("F27", "cut", "data|faulty.py", no_gradient("inward"))
def f27(s: Size) -> Setup:
    """h.data"""
    return classified(Data(s))


class NoGrad(Hidden):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h = self.inward(x)
        return self.outward(h)


@fault("F29", "cut", "inward|faulty.py", no_gradient("inward"))
def f29(s: Size) -> Setup:
    """torch.no_grad() around part of the forward pass"""
    return classified(NoGrad(s))


class Forgotten(Hidden):
    def __init__(self, s: Size) -> None:
        super().__init__(s)
        self.extra = nn.Linear(64 * s.wide, 64 * s.wide)


@fault("F31", "unused", "extra", no_gradient("extra"))
def f31(s: Size) -> Setup:
    """a layer that is defined and never called"""
    return classified(Forgotten(s))


@fault("F32", "frozen", "2", unmoved("2."))
def f32(s: Size) -> Setup:
    """one middle layer with requires_grad=False"""
    net = mlp(3 * s.deep, 64 * s.wide, nn.ReLU)
    net[2].requires_grad_(False)  # type: ignore[union-attr]
    return classified(net)


@fault("F33", "not_in_optimizer", "1", unmoved("1."))
def f33(s: Size) -> Setup:
    """the optimizer was made before the head was replaced"""
    net = nn.Sequential(mlp(2 * s.deep, 64 * s.wide, nn.ReLU, out=64), nn.Linear(64, 3))
    optimizer = adam(net)
    net[1] = nn.Linear(64, 10)
    return classified(net, optimizer)


class Listed(nn.Module):
    def __init__(self, s: Size) -> None:
        super().__init__()
        width = 64 * s.wide
        self.inward, self.head = nn.Linear(32, width), nn.Linear(width, 10)
        self.layers = [nn.Linear(width, width) for _ in range(2 * s.deep)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.inward(x))
        for layer in self.layers:
            h = torch.relu(layer(h))
        return self.head(h)


@fault("F34", "unregistered", "layers", lambda s: len(list(s.model.parameters())) == 4)
def f34(s: Size) -> Setup:
    """layers in a Python list"""
    return classified(Listed(s))


def grows(s: Setup) -> bool:
    """What a step leaves behind is in the gradient of the next."""
    s.train(1)
    p = next(iter(s.model.parameters()))
    left = torch.zeros_like(p) if p.grad is None else p.grad.clone()
    seen: list[torch.Tensor] = []
    assert s.optimizer is not None
    handle = s.optimizer.register_step_pre_hook(lambda *_: seen.append(p.grad.clone()))  # type: ignore[union-attr]
    with torch.no_grad():
        start = [q.clone() for q in s.model.parameters()]
    s.train(1)
    handle.remove()
    with torch.no_grad():
        for q, value in zip(s.model.parameters(), start, strict=True):
            q.copy_(value)
    s.model.zero_grad()
    s.forward().backward()
    return p.grad is not None and torch.allclose(seen[0], left + p.grad, rtol=1e-4, atol=1e-7) and bool(left.any())


@fault("F37", "accumulating", "", grows)
def f37(s: Size) -> Setup:
    """zero_grad is never called"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    setup = classified(net)

    def step() -> float:
        loss = setup.forward()
        loss.backward()
        setup.optimizer.step()  # type: ignore[union-attr]
        return float(loss.detach())

    setup.step = step
    return setup


# ---- loss pairing --------------------------------------------------------------------------------------------
@fault("F39", "loss_pairing", "softmax|7|5|", above(1.0))
def f39(s: Size) -> Setup:
    """Softmax, then cross_entropy"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    return classified(nn.Sequential(*net, nn.Softmax(dim=1)))


@fault("F40", "loss_pairing", "sigmoid|7|5|", above(0.4))
def f40(s: Size) -> Setup:
    """Sigmoid, then BCEWithLogitsLoss"""
    net = nn.Sequential(*mlp(2 * s.deep, 64 * s.wide, nn.ReLU, out=1), nn.Sigmoid())
    x, y = blobs()
    return Setup(net, (x, (y % 2).float()[:, None]), nn.BCEWithLogitsLoss(), adam(net))


@fault("F41", "loss_pairing", "softmax|nll_loss", lambda s: s.train(50)[-1] < 0)
def f41(s: Size) -> Setup:
    """Softmax, then nll_loss"""
    net = nn.Sequential(*mlp(2 * s.deep, 64 * s.wide, nn.ReLU), nn.Softmax(dim=1))
    return Setup(net, blobs(), nn.NLLLoss(), adam(net))


@fault("F44", "loss_pairing loss_axis", "softmax", lambda s: bool((s.model(s.batch[0]) == 1).all()))
def f44(s: Size) -> Setup:
    """one output, Softmax and BCELoss"""
    net = nn.Sequential(*mlp(2 * s.deep, 64 * s.wide, nn.ReLU, out=1), nn.Softmax(dim=1))
    x, y = blobs()
    return Setup(net, (x, (y % 2).float()[:, None]), nn.BCELoss(), adam(net))


@fault("F46", "broadcast", "mse_loss", above(0.3))
def f46(s: Size) -> Setup:
    """mse_loss of (N, 1) against (N,)"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU, out=1)
    x, y = linear_data()
    return Setup(net, (x, y[:, 0]), F.mse_loss, adam(net))


@fault("F49", "sign", "cross_entropy", lambda s: s.train(100)[-1] < -3)
def f49(s: Size) -> Setup:
    """loss = -cross_entropy"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    return Setup(net, blobs(), negative, adam(net))


def negative(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of F49."""
    return -F.cross_entropy(output, target)


@fault("F50", "lr_too_high", "", stuck(1.0, 60))
def f50(s: Size) -> Setup:
    """cross_entropy with reduction='sum' over 512 samples, SGD .1"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    loss = nn.CrossEntropyLoss(reduction="sum")
    return Setup(net, blobs(512), loss, torch.optim.SGD(net.parameters(), 0.1))


@fault("F52", "masked_labels", "cross_entropy|batch y", not_finite)
def f52(s: Size) -> Setup:
    """ignore_index masks every label"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    x, y = blobs()
    return Setup(net, (x, torch.full_like(y, -100)), nn.CrossEntropyLoss(), adam(net))


# ---- data ----------------------------------------------------------------------------------------------------
def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Blobs as numbers between 0 and 255."""
    x, y = blobs()
    return ((x + 3) / 6).clamp(0, 1) * 255, y


@fault("F53", "input_scale", "batch x", lambda s: float(s.batch[0].std()) < 5e-3)
def f53(s: Size) -> Setup:
    """inputs divided by 255 twice"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    x, y = pixels()
    return classified(net, data=(x / 255 / 255, y))


@fault("F54", "input_scale", "batch x", lambda s: float(s.batch[0].std()) > 10, severity="info")
def f54(s: Size) -> Setup:
    """inputs between 0 and 255"""
    return classified(mlp(2 * s.deep, 64 * s.wide, nn.ReLU), data=pixels())


@fault("F56", "input_constant", "batch x", stuck(0.8))
def f56(s: Size) -> Setup:
    """constant inputs"""
    x, y = blobs()
    return classified(mlp(2 * s.deep, 64 * s.wide, nn.ReLU), data=(torch.ones_like(x), y))


# ---- optimisation --------------------------------------------------------------------------------------------
@fault("F59", "lr_too_high", "", stuck(1.0, 60))
def f59(s: Size) -> Setup:
    """SGD with learning rate 100"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    return classified(net, torch.optim.SGD(net.parameters(), 100.0))


@fault("F60", "lr_too_low", "", stuck(0.999))
def f60(s: Size) -> Setup:
    """SGD with learning rate 1e-7"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    return classified(net, torch.optim.SGD(net.parameters(), 1e-7))


@fault("F62", "clipping", "", stuck(0.99))
def f62(s: Size) -> Setup:
    """clip_grad_norm_(1e-6) with SGD"""
    net = mlp(2 * s.deep, 64 * s.wide, nn.ReLU)
    setup = classified(net, torch.optim.SGD(net.parameters(), 0.1))

    def step() -> float:
        setup.optimizer.zero_grad()  # type: ignore[union-attr]
        loss = setup.forward()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1e-6)
        setup.optimizer.step()  # type: ignore[union-attr]
        return float(loss.detach())

    setup.step = step
    return setup


@fault("F64", "noise", "2|5", lambda s: s.model[2].p > 0.9)  # type: ignore[index]
def f64(s: Size) -> Setup:
    """Dropout .99"""
    width, layers, last = 64 * s.wide, [], 32
    for _ in range(2 * s.deep):
        layers += [nn.Linear(last, width), nn.ReLU(), nn.Dropout(0.99)]
        last = width
    return classified(nn.Sequential(*layers, nn.Linear(last, 10)))


def additive(s: Setup) -> bool:
    """The network is an affine map of its input."""
    x = s.batch[0].double()
    net = s.model.double()
    mid = net((x[:32] + x[32:]) / 2)
    found = torch.allclose(mid, (net(x[:32]) + net(x[32:])) / 2, rtol=1e-9, atol=1e-12)
    s.model.float()
    return found


@fault("F65", "linear_stack", "0", additive)
def f65(s: Size) -> Setup:
    """linear layers with nothing between them"""
    return classified(mlp(2 * s.deep, 64 * s.wide, nn.Identity))


# ---- not finite ----------------------------------------------------------------------------------------------
class Log(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.relu(h))


@fault("F68", "nonfinite", "log|faulty.py", not_finite)
def f68(s: Size) -> Setup:
    """log(relu(z))"""
    return classified(Log(s))


class Direction(Hidden):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x[:, :10]
        return super().forward(x) + first / first.norm(dim=1, keepdim=True)


@fault("F70", "nonfinite", "div|faulty.py", not_finite)
def f70(s: Size) -> Setup:
    """y + x0 / norm(x0) where x0 is zero"""
    x, y = blobs()
    x[3, :10] = 0.0
    return classified(Direction(s), data=(x, y))


class Root(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return torch.where(h > 0, torch.sqrt(h), torch.zeros_like(h))


@fault("F71", "nonfinite", "sqrt|faulty.py", not_finite)
def f71(s: Size) -> Setup:
    """where(z > 0, sqrt(z), 0): the branch that is not taken has a derivative too"""
    return classified(Root(s))


@fault("F72", "nonfinite", "batch x[3, 5]", not_finite)
def f72(s: Size) -> Setup:
    """a NaN in row 3, column 5 of the inputs"""
    x, y = blobs()
    x[3, 5] = math.nan
    return classified(mlp(2 * s.deep, 64 * s.wide, nn.ReLU), data=(x, y))


class Exponential(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return torch.exp(50 * F.layer_norm(h, h.shape[1:]))


@fault("F74", "nonfinite", "exp|faulty.py", not_finite)
def f74(s: Size) -> Setup:
    """exp(50 z)"""
    return classified(Exponential(s))


# ---- custom backward -----------------------------------------------------------------------------------------
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return g * x


class Squared(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return Square.apply(h)


def wrong(function: Any, derivative: Any) -> Any:
    """The Function's backward differs from the derivative."""

    def check(_: Setup) -> bool:
        x = torch.linspace(0.3, 2, 7, dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad(function.apply(x).sum(), x)
        return not torch.allclose(g, derivative(x.detach()))

    return check


@fault("F75", "wrong_backward", "Square", wrong(Square, lambda x: 2 * x))
def f75(s: Size) -> Setup:
    """x^2 with backward g * x"""
    return classified(Squared(s))


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return -g * torch.cos(x)


class Sines(Hidden):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return Sine.apply(h)


@fault("F77", "wrong_backward", "Sine", wrong(Sine, torch.cos))
def f77(s: Size) -> Setup:
    """sin with the sign of its backward flipped"""
    return classified(Sines(s))
