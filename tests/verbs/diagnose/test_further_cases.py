"""Faults and healthy networks beside the table: each class that an earlier version missed or took for another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import chainrule as cr
from benchmarks.fault_cases.table import adam, blobs, linear_data, mlp
from chainrule.verbs.diagnose.result import DiagnoseResult

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Case = tuple[nn.Module, Any, Any, torch.optim.Optimizer]


class Autoencoder(nn.Module):
    """32 numbers to 8 and back; ``code`` is what happens in between."""

    def __init__(self, code: Callable[[torch.Tensor], torch.Tensor] = lambda z: z) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32))
        self.code = code

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.encoder(x)
        return self.decoder(self.code(z))


def auto(code: Callable[[torch.Tensor], torch.Tensor]) -> Case:
    x, model = blobs()[0], Autoencoder(code)
    return model, (x, x), F.mse_loss, adam(model)


def on_blobs(model: nn.Module, loss: Any = F.cross_entropy, optimizer: Any = None) -> Case:
    return model, blobs(), loss, optimizer or adam(model)


def binary(model: nn.Module, loss: Any) -> Case:
    x, y = blobs()
    return model, (x, (y % 2).float()[:, None]), loss, adam(model)


def sgd(model: nn.Module, lr: float = 0.1, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, **more)


class Variational(nn.Module):
    """An autoencoder that returns its output, means and logarithms of variances."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log = nn.Linear(32, 32), nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = torch.relu(self.body(x))
        mean, log = self.mean(h), self.log(h)
        return self.decoder(mean + torch.exp(0.5 * log) * torch.randn_like(mean)), mean, log


def divergence(mean: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
    return -0.5 * (1 + log - mean**2 - log.exp())


def variational(loss: Callable[..., torch.Tensor]) -> Case:
    x, model = blobs()[0], Variational()
    return model, (x, x), loss, adam(model)


class Tokens(nn.Module):
    """Logits for every position, from tokens, or from their places alone."""

    def __init__(self, length: int, read: float = 1.0) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(20, 16), nn.Embedding(length, 16)
        self.head, self.read = nn.Linear(16, 20), read

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.read * self.token(ids) + self.place(torch.arange(ids.shape[1]))))


def tokens(model: nn.Module, length: int, loss: Any) -> Case:
    ids = torch.randint(0, 20, (16, length))
    return model, (ids, torch.randint(0, 20, (16, length))), loss, adam(model)


class Checkpointed(nn.Module):
    """The first layers in a reentrant checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(1, 32, nn.ReLU, out=16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=True))


def half(scale: float, optimizer: Callable[[nn.Module], Any], init: Any = None) -> Case:
    model, (x, y) = mlp(2, 32, nn.ReLU, init=init).half(), blobs(256)
    return model, (x.half(), y), lambda o, t: scale * F.cross_entropy(o.float(), t), optimizer(model)


def summed_variational() -> Case:
    return variational(lambda o, x: F.mse_loss(o[0], x) + divergence(o[1], o[2]).sum())


def biased(activation: type[nn.Module]) -> Case:
    model = mlp(3, 32, activation)
    nn.init.constant_(model[4].bias, -50.0)  # type: ignore[arg-type]
    return on_blobs(model)


def hooked() -> Case:
    def silent(z: torch.Tensor) -> torch.Tensor:
        z.register_hook(torch.zeros_like)
        return z

    return auto(silent)


def swinging() -> Case:
    model = mlp(2, 32, nn.ReLU, out=1)
    return model, linear_data(), F.mse_loss, sgd(model, momentum=0.999)


def resting() -> Case:
    model = mlp(1, 32, nn.ReLU)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    return on_blobs(model, optimizer=torch.optim.Adam(groups, 1e-3))


def by_hand(o: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(o)
    return -(t * torch.log(p + 1e-6) + (1 - t) * torch.log(1 - p + 1e-6)).mean()


def column(loss: Any) -> Case:
    x, y = blobs()
    model = mlp(1, 32, nn.ReLU, out=1)
    return model, (x, (y % 2).float()), loss, adam(model)


def too_loud() -> Case:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = 200 * self.a(x)
            return self.b(h / (h * h).mean(1, keepdim=True).sqrt())

    model, (x, y) = Loud().half(), blobs()
    return model, (x.half(), y), lambda o, t: F.cross_entropy(o.float(), t), sgd(model)


# name -> (kind, part of where or source, case)
FAULTS: dict[str, tuple[str, str, Callable[[], Case]]] = {
    "sigmoid of a sigmoid": (
        "loss_pairing", "igmoid",
        lambda: binary(nn.Sequential(mlp(1, 32, nn.ReLU, out=1), nn.Sigmoid()),
                       lambda o, y: F.binary_cross_entropy(torch.sigmoid(o), y)),
    ),
    "one class": ("loss_pairing", "cross_entropy", lambda: (
        m := mlp(1, 32, nn.ReLU, out=1), (blobs()[0], torch.zeros(64, dtype=torch.long)), F.cross_entropy, adam(m))),
    "a loss made from a number": (
        "loss_detached", "item",
        lambda: on_blobs(mlp(1, 32, nn.ReLU), lambda o, y: torch.tensor(F.cross_entropy(o, y).item(),
                                                                        requires_grad=True)),
    ),
    "float16 that overflows out of sight": ("nonfinite", "mul", too_loud),
    "tokens that are all the same": (
        "input_constant", "x",
        lambda: (m := nn.Sequential(nn.EmbeddingBag(50, 16), nn.Linear(16, 3)),
                 (torch.zeros(32, 7, dtype=torch.long), torch.arange(32) % 3), F.cross_entropy, adam(m)),
    ),
    "momentum": ("lr_too_high", "optimizer", swinging),
    "a sum beside a mean": ("regularizer", "sum", summed_variational),
    "classes last": ("loss_axis", "cross_entropy", lambda: tokens(Tokens(20), 20, F.cross_entropy)),
    "places only": ("no_signal", "model", lambda: tokens(
        Tokens(12, 0.0), 12, lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()))),
    "GELU far to the left": ("dead", "4", lambda: biased(nn.GELU)),
    "SiLU far to the left": ("dead", "4", lambda: biased(nn.SiLU)),
    "divided by the norm of the batch": ("batch_leak", "div", lambda: auto(lambda z: z / z.norm())),
    "a parameter made of a value": ("cut", "Parameter", lambda: auto(lambda z: nn.Parameter(z))),
    "cross-entropy by hand": ("broadcast", "mul", lambda: column(by_hand)),
    "reentrant checkpoint": ("cut", "body", lambda: on_blobs(Checkpointed())),
    "a hook of zeros": ("zero_derivative", "encoder", hooked),
    "a factor of zero": ("zero_derivative", "mul", lambda: on_blobs(Branch(0.0))),
    "clamped away": ("dead", "clamp", lambda: auto(lambda z: torch.clamp(100 + 10 * z, 0, 1))),
    "everything dropped": ("noise", "2", lambda: on_blobs(
        nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(1.0), nn.Linear(32, 10)))),
    "a group at rest": ("lr_too_low", "0", resting),
    "climbing": ("sign", "optimizer", lambda: on_blobs(
        m := mlp(1, 32, nn.ReLU), optimizer=sgd(m, maximize=True))),
    "epsilon of float16": ("nonfinite", "optimizer", lambda: half(
        1.0, lambda m: torch.optim.Adam(m.parameters(), 1e-3))),
    "gradients below float16": ("underflow", "weight", lambda: half(
        1e-4, sgd, lambda w: nn.init.normal_(w, 0, 0.05))),
    "steps of three layers": ("exploding", "6", lambda: on_blobs(
        mlp(3, 300, nn.ReLU, init=lambda w: nn.init.normal_(w)))),
}  # fmt: skip


class Branch(nn.Module):
    """A branch that is added with a constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.a, self.b, self.head, self.factor = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return self.head(h + self.factor * torch.relu(self.b(h)))


def diagnosed(make: Callable[[], Case]) -> DiagnoseResult:
    torch.manual_seed(1)
    return cr.diagnose(*make())


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    kind, where, make = FAULTS[name]
    result = diagnosed(make)
    assert [f.kind for f in result.worst("warning")] == [kind], str(result)
    assert where in f"{result.findings[0].where} {result.findings[0].source}", str(result)


@pytest.mark.parametrize("name", [n for n in FAULTS if n not in ("places only", "a hook of zeros")])
def test_fix_as_code_removes_it(name: str) -> None:
    kind, _, make = FAULTS[name]
    torch.manual_seed(1)
    model, batch, loss, optimizer = make()
    patch = cr.diagnose(model, batch, loss, optimizer).findings[0].patch
    if patch is None or patch.edits:
        pytest.skip("not statements")
    loss, batch = patch.apply(model, optimizer, loss, batch)
    assert kind not in [f.kind for f in cr.diagnose(model, batch, loss, optimizer).worst("warning")]


# ---- healthy ---------------------------------------------------------------------------------------------------
def judged_by_another() -> Case:
    """A generator, whose loss runs a discriminator that has another optimizer."""
    judge, model = mlp(1, 32, nn.LeakyReLU, out=1), mlp(1, 32, nn.ReLU, d=8, out=32)
    batch = torch.randn(64, 8), torch.ones(64, 1)
    return model, batch, lambda o, y: F.binary_cross_entropy_with_logits(judge(o), y), adam(model)


class Graph(nn.Module):
    """Messages along edges that are given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return self.b(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]) / 4)


def graph() -> Case:
    x, model = torch.randn(40, 16), Graph()
    return model, ((x, torch.randint(0, 40, (2, 90))), x[:, :4].argmax(1)), F.cross_entropy, adam(model)


class Pairs(nn.Module):
    """Similarities of all pairs, with a learnt temperature; its second argument is called y."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = mlp(1, 32, nn.ReLU, out=16), mlp(1, 32, nn.ReLU, out=16)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.scale.exp() * F.normalize(self.a(x), dim=1) @ F.normalize(self.b(y), dim=1).t()


def pairs() -> Case:
    x, model = blobs()[0], Pairs()
    return model, ((x, x + 0.3 * torch.randn_like(x)), torch.arange(64)), F.cross_entropy, adam(model)


class Speech(nn.Module):
    """A recurrence both ways, for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 24, batch_first=True, bidirectional=True), nn.Linear(48, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.head(self.rnn(x)[0]), -1).transpose(0, 1)


def speech() -> Case:
    model, lengths = Speech(), (torch.full((8,), 30), torch.full((8,), 6))
    return (
        model,
        (torch.randn(8, 30, 6), torch.randint(1, 8, (8, 6))),
        lambda o, y: F.ctc_loss(o, y, *lengths),
        adam(model),
    )


def warming() -> Case:
    model = mlp(2, 32, nn.ReLU)
    optimizer = sgd(model)
    torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6, total_iters=500)
    return on_blobs(model, optimizer=optimizer)


class Mask(torch.autograd.Function):
    """A step forward, the identity backward, in float32 whatever comes in."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        return grad[0]


class Target(nn.Module):
    """A copy of the encoder that moves by averages, under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.head = mlp(1, 32, nn.ReLU, out=16), nn.Linear(16, 16)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            goal = self.target(x)
        return 2 - 2 * F.cosine_similarity(self.head(self.online(x)), goal)


HEALTHY: dict[str, Callable[[], Case]] = {
    "a discriminator in the loss": judged_by_another,
    "messages along edges": graph,
    "all pairs": pairs,
    "recurrence both ways, CTC": speech,
    "warming up": warming,
    "a mask that is learnt": lambda: auto(lambda z: z * Mask.apply(z)),
    "a target that moves by averages": lambda: (
        m := Target(), (blobs()[0], torch.zeros(64)), lambda o, y: o.mean(), adam(m)),
    "classes second": lambda: tokens(nn.Sequential(Tokens(20), Transposed()), 20, F.cross_entropy),
    "sums beside sums": lambda: variational(
        lambda o, x: F.mse_loss(o[0], x, reduction="sum") + divergence(o[1], o[2]).sum()),
    "a term that waits": lambda: variational(
        lambda o, x: F.mse_loss(o[0], x) + 0.0 * divergence(o[1], o[2]).sum()),
    "a branch that is on": lambda: on_blobs(Branch(1.0)),
    "momentum and a small rate": lambda: on_blobs(m := mlp(2, 32, nn.ReLU), optimizer=sgd(m, 1e-3, momentum=0.99)),
    "a climbing policy": lambda: on_blobs(
        m := mlp(1, 32, nn.ReLU), lambda o, y: F.log_softmax(o, 1).gather(1, y[:, None]).mean(),
        sgd(m, maximize=True)),
}  # fmt: skip


class Transposed(nn.Module):
    """(N, T, K) to (N, K, T)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name: str) -> None:
    result = diagnosed(HEALTHY[name])
    assert result.ok, str(result)


class Cells(nn.Module):
    """A recurrence as a loop over cells or over plain layers, with or without the batch at every step."""

    def __init__(self, kind: str, width: int = 32) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        cells = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
        if kind in cells:
            self.cell: nn.Module = cells[kind](6, width)
        else:
            self.cell = nn.Linear({"joined": 6 + width}.get(kind, width), width)
            self.enter = nn.Linear(6, width) if kind != "joined" else None
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(len(x), self.width)
        c = h
        if self.kind == "tied":
            assert self.enter is not None
            h = torch.tanh(self.enter(x[:, 0]))
        for t in range(x.shape[1]):
            if self.kind == "lstm":
                h, c = self.cell(x[:, t], (h, c))
            elif self.kind in ("gru", "rnn"):
                h = self.cell(x[:, t], h)
            elif self.kind == "joined":
                h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
            elif self.kind == "added":
                assert self.enter is not None
                h = torch.tanh(self.enter(x[:, t]) + self.cell(h))
            else:
                h = torch.tanh(self.cell(h))
        return self.head(h)


class Whole(nn.Module):
    """The same by torch's own layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](6, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


def through_time(model: nn.Module, steps: int) -> DiagnoseResult:
    x = torch.randn(32, steps, 6, generator=torch.Generator().manual_seed(1))
    return cr.diagnose(model, (x, torch.arange(32) % 4), F.cross_entropy, sgd(model))


@pytest.mark.parametrize("steps", [25, 60])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_loops_of_cells_are_judged_as_the_layers_are(kind: str, steps: int) -> None:
    torch.manual_seed(0)
    loop, layer = Cells(kind), Whole(kind)
    for own, other in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), layer.layer.parameters(), strict=True):
        getattr(loop.cell, own).data.copy_(other.detach())
    loop.head.load_state_dict(layer.head.state_dict())
    found = [through_time(m, steps) for m in (loop, layer)]
    assert all(r.ok for r in found), "\n".join(map(str, found))
    assert {(f.kind, f.severity) for f in found[0].findings} <= {("vanishing", "info")}
    assert all(f.patch is None for f in found[0].findings)


@pytest.mark.parametrize("kind", ["joined", "added"])
def test_recurrences_of_plain_layers_are_judged_alike(kind: str) -> None:
    torch.manual_seed(0)
    assert through_time(Cells(kind), 40).ok


def test_a_deep_network_of_one_weight_is_no_recurrence() -> None:
    torch.manual_seed(0)
    worst = through_time(Cells("tied"), 40).findings[0]
    assert (worst.kind, worst.severity) == ("vanishing", "error")


def test_a_loop_that_explodes_is_an_error() -> None:
    torch.manual_seed(0)
    model = Cells("rnn")
    with torch.no_grad():
        model.cell.weight_hh.mul_(0).add_(3 * torch.eye(32))
        model.cell.weight_ih.mul_(1e-25)  # so that tanh stays linear
        model.cell.bias_ih.zero_()
        model.cell.bias_hh.zero_()
    worst = through_time(model, 40).findings[0]
    assert (worst.kind, worst.severity) == ("exploding", "error")


def dropping(norm: bool = True, drop: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(64) if norm else nn.LayerNorm(64)
    return nn.Sequential(nn.Linear(32, 64), middle, nn.ReLU(), nn.Dropout(drop), nn.Linear(64, 10))


@pytest.mark.parametrize(
    "loss", [F.binary_cross_entropy_with_logits, F.mse_loss, F.soft_margin_loss], ids=lambda f: f.__name__
)
def test_a_sum_over_samples_is_said(loss: Any) -> None:
    x, y = blobs()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
    target = y % 2 if loss is not F.soft_margin_loss else 2 * (y % 2) - 1
    summed = lambda o, t: loss(o, t, reduction="sum")  # noqa: E731
    r = cr.diagnose(model, (x, target.float()), summed, sgd(model, 10.0))
    assert r.findings[0].kind == "lr_too_high" and f"a sum over {len(x)} samples" in r.findings[0].cause


@pytest.mark.parametrize(("norm", "drop", "where"), [(True, 0.3, "3, 1"), (True, 0.0, "1"), (False, 0.3, "3")])
def test_training_in_eval_mode_is_named(norm: bool, drop: float, where: str) -> None:
    model = dropping(norm, drop).eval()
    r = cr.diagnose(model, blobs(), F.cross_entropy, adam(model))
    (found,) = r.worst("warning")
    assert (found.kind, found.severity, found.where) == ("frozen", "warning", where), str(r)
    assert not model.training and "eval()" in found.cause


def test_eval_mode_that_is_no_fault() -> None:
    model = dropping().eval()
    assert cr.diagnose(model, blobs(), F.cross_entropy).ok  # nobody trains
    plain = dropping(False, 0.0).eval()
    assert cr.diagnose(plain, blobs(), F.cross_entropy, adam(plain)).ok  # the mode changes nothing
    part = dropping()
    part[1].eval()
    assert cr.diagnose(part, blobs(), F.cross_entropy, adam(part)).ok  # statistics that are kept on purpose
    probed = dropping().eval().requires_grad_(False)
    probed[4].requires_grad_(True)
    head = torch.optim.Adam(probed[4].parameters(), 1e-3)
    assert cr.diagnose(probed, blobs(), F.cross_entropy, head).ok  # a frozen backbone


@pytest.mark.parametrize("loss", [nn.SoftMarginLoss(), nn.HingeEmbeddingLoss()])
def test_labels_of_zero_where_signs_are_meant(loss: nn.Module) -> None:
    x, y = blobs()
    for target, expected in (((y % 2).float(), ["target_range"]), ((y % 2).float() * 2 - 1, [])):
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        r = cr.diagnose(model, (x, target[:, None]), loss, adam(model))
        assert [f.kind for f in r.worst("warning")] == expected, str(r)


def test_ranking_by_zeros() -> None:
    x, y = blobs()
    for target, expected in (((y % 2).float(), ["target_range"]), ((y % 2).float() * 2 - 1, [])):
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        r = cr.diagnose(
            model, (x, target), lambda out, t: F.margin_ranking_loss(out[:, 0], out[:, 1], t, 0.1), adam(model)
        )
        assert [f.kind for f in r.worst("warning")] == expected, str(r)


@pytest.mark.parametrize(
    ("last", "log", "severity"),
    [("Softplus", True, "error"), ("ReLU", True, "warning"), ("Softplus", False, ""), ("Identity", True, "")],
)
def test_a_rate_where_its_logarithm_is_meant(last: str, log: bool, severity: str) -> None:
    torch.manual_seed(0)
    x = blobs()[0]
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), getattr(nn, last)())
    counts = torch.poisson(torch.ones(len(x), 1) * 2)
    r = cr.diagnose(model, (x, counts), nn.PoissonNLLLoss(log_input=log), adam(model))
    assert [(f.kind, f.severity) for f in r.worst("warning")] == ([("loss_pairing", severity)] if severity else [])
