"""The native engine against torch: activations, losses, optimizers, structures, images, derivatives inside the loss."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chainrule.backends.engine import Engine
from chainrule.backends.native.prepare import Limit
from chainrule.errors import BackendError, ModelError, UnsupportedOpError
from chainrule.ir import TensorType, variable
from chainrule.verbs.native import native_engine, shared, verify
from tests.verbs.native.training import assert_same, rounding, trained_twice


def data(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """40 samples of everything."""
    torch.manual_seed(seed)
    return {
        "x": torch.randn(40, 10),
        "y": torch.randn(40, 5),
        "classes": torch.randint(0, 5, (40,)),
        "unit": torch.rand(40, 5) * 0.98 + 0.01,
        "signs": torch.randn(40, 5).sign(),
        "image": torch.randn(40, 1, 12, 12),
        "signal": torch.randn(40, 3, 10),
        "words": torch.randint(0, 7, (40, 3)),
        "sequence": torch.randn(40, 6, 4),
    }


def momentum(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=0.02, momentum=0.9)


ACTIVATIONS = [
    nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(), nn.SELU(), nn.CELU(0.5),
    nn.LeakyReLU(), nn.Softplus(), nn.Softplus(2.0, 3.0), nn.Mish(), nn.Hardtanh(), nn.Hardswish(), nn.ReLU6(),
    nn.PReLU(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(),
    nn.Threshold(0.1, 0.2), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1), nn.LayerNorm(13), nn.RMSNorm(13),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation: nn.Module) -> None:
    dtype = torch.float64 if ACTIVATIONS.index(activation) % 3 else torch.float32
    d = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 13), activation, nn.Linear(13, 5))
    ours, torchs = trained_twice(model, (d["x"], d["y"]), nn.MSELoss(), momentum, dtype=dtype)
    assert_same(ours, torchs, rounding(dtype))


LOSSES: list[tuple[Any, str]] = [
    (nn.L1Loss(), "y"), (nn.SmoothL1Loss(), "y"), (nn.HuberLoss(), "y"), (nn.MSELoss(reduction="sum"), "y"),
    (nn.BCEWithLogitsLoss(), "unit"), (nn.BCEWithLogitsLoss(pos_weight=torch.rand(5).double()), "unit"),
    (nn.PoissonNLLLoss(), "unit"), (nn.SoftMarginLoss(), "signs"), (nn.KLDivLoss(reduction="batchmean"), "unit"),
    (nn.CrossEntropyLoss(), "classes"), (nn.CrossEntropyLoss(label_smoothing=0.1), "classes"),
    (nn.CrossEntropyLoss(weight=torch.rand(5).double()), "classes"), (nn.CrossEntropyLoss(ignore_index=2), "classes"),
    (nn.CrossEntropyLoss(), "unit"), (nn.MultiMarginLoss(), "classes"), (nn.MultiLabelSoftMarginLoss(), "unit"),
    (lambda o, t: nn.functional.nll_loss(torch.log_softmax(o, 1), t), "classes"),
    (lambda o, t: nn.functional.binary_cross_entropy(torch.sigmoid(o), t), "unit"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "target"), LOSSES, ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", str(v)[:30])
)
def test_losses(loss: Any, target: str) -> None:
    d = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 5))
    ours, torchs = trained_twice(model, (d["x"], d[target]), loss, lambda p: torch.optim.SGD(p, lr=0.005))
    assert_same(ours, torchs, rounding(torch.float64))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum, decay": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.3),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.0005, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam, decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.99)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop, all": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    dtype = torch.float64 if name in list(OPTIMIZERS)[::2] else torch.float32
    d = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 5))
    ours, torchs = trained_twice(model, (d["x"], d["y"]), nn.MSELoss(), OPTIMIZERS[name], dtype=dtype)
    assert_same(ours, torchs, rounding(dtype))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(10, 10), nn.Linear(20, 5), nn.LayerNorm(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x + self.norm(self.a(x)).relu()
        return self.b(torch.cat([h, x], 1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 10, bias=False), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(torch.tanh(self.a(x))) + x @ self.a.weight.T)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v


S = nn.Sequential
STRUCTURES: dict[str, tuple[Callable[[], nn.Module], str, str, Any]] = {
    "residual, norm, concat": (Residual, "x", "y", nn.MSELoss()),
    "tied weights": (Tied, "x", "y", nn.MSELoss()),
    "attention": (Attention, "sequence", "sequence", nn.MSELoss()),
    "gate": (lambda: S(nn.Linear(10, 14), nn.GLU(), nn.Linear(7, 5)), "x", "y", nn.MSELoss()),
    "group norm": (lambda: S(nn.Linear(10, 12), nn.GroupNorm(3, 12), nn.Linear(12, 5)), "x", "y", nn.MSELoss()),
    "embedding": (lambda: S(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5)), "words", "y", nn.MSELoss()),
    "deep": (lambda: S(*[f for _ in range(6) for f in (nn.Linear(10, 10), nn.Tanh())], nn.Linear(10, 5)), "x", "y",
             nn.MSELoss()),
    "wide": (lambda: S(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 5)), "x", "y", nn.MSELoss()),
    "one layer": (lambda: nn.Linear(10, 5), "x", "classes", nn.CrossEntropyLoss()),
    "images, largest": (
        lambda: S(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
                  nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 5)), "image", "classes", nn.CrossEntropyLoss()),
    "images, mean": (
        lambda: S(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(150, 5)),
        "image", "classes", nn.CrossEntropyLoss()),
    "images, steps": (
        lambda: S(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh(), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
                  nn.Linear(36, 5)), "image", "classes", nn.CrossEntropyLoss()),
    "images, groups": (
        lambda: S(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3, groups=2, dilation=2), nn.Flatten(),
                  nn.Linear(288, 5)), "image", "y", nn.MSELoss()),
    "images, transposed": (
        lambda: S(nn.ConvTranspose2d(1, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(1250, 5)), "image", "y",
        nn.MSELoss()),
    "batch norm": (lambda: S(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5)), "x", "y",
                   nn.MSELoss()),
    "images, batch norm": (
        lambda: S(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                  nn.Linear(4, 5)), "image", "y", nn.MSELoss()),
    "signals": (
        lambda: S(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 5)),
        "signal", "y", nn.MSELoss()),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name: str) -> None:
    batch = 5 if name in list(STRUCTURES)[::3] else 8
    make, x, y, loss = STRUCTURES[name]
    d = data()
    torch.manual_seed(1)
    ours, torchs = trained_twice(
        make(),
        (d[x], d[y]),
        loss,
        lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
        batch=batch,
        steps=6,
        short=batch == 5,
    )
    assert_same(ours, torchs, rounding(torch.float64))


def burgers(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """The residual of u_t + u u_x - 0.01 u_xx."""
    at = points.detach().requires_grad_(True)
    u = model(at)
    first = torch.autograd.grad(u.sum(), at, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 0].sum(), at, create_graph=True)[0][:, 0]
    return ((first[:, 1] + u[:, 0] * first[:, 0] - 0.01 * second) ** 2).mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivatives_inside_of_the_objective(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 1))
    ours, torchs = trained_twice(
        model, (torch.randn(40, 2),), None, lambda p: torch.optim.Adam(p, lr=0.01), objective=burgers, dtype=dtype
    )
    assert_same(ours, torchs, rounding(dtype))


def test_figure_7_8_keeps_torchs_losses_and_repeats_bit_for_bit() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(100, 10), torch.randn(100, 5)
    start = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5)).state_dict()

    def run(dtype: torch.dtype) -> tuple[Any, Any]:
        model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
        model.load_state_dict(start)
        make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
        return trained_twice(model, (x, y), nn.MSELoss(), make, batch=10, steps=100, dtype=dtype)

    double = run(torch.float64)
    single, again = run(torch.float32)[0], run(torch.float32)[0]
    assert np.abs(double[0][0] / double[1][0] - 1).max() < 1e-11
    assert np.abs(single[0] / double[1][0] - 1).max() < 1e-5
    assert np.array_equal(single[0], again[0])
    for a, b in zip(single[1].parameters(), again[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_goes_on_in_torch_and_back() -> None:
    d = data()
    torch.manual_seed(1)
    x, y = d["x"].double(), d["y"].double()
    model = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 5)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = np.arange(40)

    def torch_epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for k in range(5):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[k * 8 : k * 8 + 8]), y[k * 8 : k * 8 + 8]).backward()
            optimizer.step()

    reference = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 5)).double()
    reference.load_state_dict(model.state_dict())
    other = torch.optim.Adam(reference.parameters(), lr=0.01)
    for _ in range(3):
        torch_epoch(reference, other)
    engine = native_engine(model, (x[:8], y[:8]), nn.MSELoss(), optimizer)
    assert isinstance(engine, Engine)
    engine.run((x, y), order, 8, np.full(5, 0.01))
    engine.store()
    torch_epoch(model, optimizer)
    engine.load()
    engine.run((x, y), order, 8, np.full(5, 0.01))
    engine.store()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_nothing_of_torchs_changes_before_store() -> None:
    d = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 5))
    optimizer = torch.optim.Adam(model.parameters())
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    engine = native_engine(model, (d["x"][:8], d["y"][:8]), nn.MSELoss(), optimizer)
    engine.run((d["x"], d["y"]), None, 8, np.full(5, 0.01))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_scales_what_it_keeps_and_repeats_with_the_seed() -> None:
    torch.manual_seed(0)
    x = torch.ones(4096, 1)
    layer = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(nn.Dropout(0.3), layer)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    runs = []
    for seed in (0, 0, 1):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = native_engine(model, (x, x), lambda o, _: o.mean(), optimizer, seed=seed)
        assert "dropout" in engine.reason
        runs.append(engine.run((x, x), np.tile(np.arange(4096), 20), 4096, np.zeros(20)))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    assert len(set(runs[0])) > 12  # two steps may keep equally many
    # Mean of 81,920 draws of 1/0.7 with probability 0.7: standard error 0.0023.
    assert abs(runs[0].mean() - 1) < 5 * 0.0023


@pytest.mark.parametrize("images", [False, True])
def test_the_first_step_with_dropout_is_held_against_torch(images: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", "")
    torch.manual_seed(0)
    model = (
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout2d(0.4), nn.Flatten(), nn.Linear(300, 5), nn.Dropout(0.2)
        )
        if images
        else nn.Sequential(nn.Linear(10, 21), nn.Tanh(), nn.Dropout(0.5), nn.Linear(21, 5))
    )
    d = data()
    batch = d["image" if images else "x"][:8], d["y"][:8]
    make = lambda seed: native_engine(model, batch, nn.MSELoss(), momentum(model.parameters()), seed=seed)  # noqa: E731
    assert not make(3).first.cached
    monkeypatch.setattr(shared, "_COMPILED", OrderedDict())
    drawn = verify.drawn
    monkeypatch.setattr(verify, "drawn", lambda node, step: drawn(node, step + 1))
    with pytest.raises(BackendError, match="something else than torch"):
        make(3)


def refused(model: nn.Module, loss: Any = None, make: Any = momentum, **changes: torch.Tensor) -> None:
    d = data() | changes
    native_engine(model, (d["x"][:8], d["y"][:8]), loss or nn.MSELoss(), make(model.parameters()))


def test_what_is_not_covered_is_named() -> None:
    with pytest.raises(UnsupportedOpError, match="Adagrad"):
        refused(nn.Linear(10, 5), make=lambda p: torch.optim.Adagrad(p))
    with pytest.raises(UnsupportedOpError, match="erfinv"):
        refused(nn.Linear(10, 5), lambda o, t: torch.erfinv(torch.tanh(o) * 0.5).mean() + t.mean())
    with pytest.raises(UnsupportedOpError, match="branches"):
        refused(nn.Linear(10, 5), lambda o, t: o.mean() if o.mean() > 0 else (o - t).mean())
    with pytest.raises(UnsupportedOpError, match="float16"):
        refused(nn.Linear(10, 5).half(), x=data()["x"].half(), y=data()["y"].half())
    with pytest.raises(ModelError, match="no parameter"):
        refused(nn.Linear(10, 5), lambda o, t: o.detach().mean() + t.mean())


def test_data_that_does_not_fit_is_refused() -> None:
    d = data()
    model = nn.Linear(10, 5)
    engine = native_engine(model, (d["x"][:8], d["y"][:8]), nn.MSELoss(), momentum(model.parameters()))
    with pytest.raises(ModelError, match="shape or dtype"):
        engine.run((d["x"].double(), d["y"]), None, 8, np.zeros(5))
    with pytest.raises(BackendError, match="sample numbers"):
        engine.run((d["x"], d["y"]), np.array([0, 1, 99]), 3, np.zeros(1))
    with pytest.raises(BackendError, match="more steps"):
        engine.run((d["x"], d["y"]), None, 8, np.zeros(6))


def test_numbers_outside_of_their_range_are_refused() -> None:
    d = data()
    model = nn.Linear(10, 5)
    wrong = d["classes"].clone()
    wrong[11] = 5
    for loss in (nn.CrossEntropyLoss(), lambda o, t: nn.functional.nll_loss(torch.log_softmax(o, 1), t)):
        engine = native_engine(model, (d["x"][:8], d["classes"][:8]), loss, momentum(model.parameters()))
        with pytest.raises(ModelError, match="outside of its range"):
            engine.run((d["x"], wrong), None, 8, np.zeros(5))
    ignoring = nn.CrossEntropyLoss(ignore_index=7)
    wrong[11] = 7
    engine = native_engine(model, (d["x"][:8], d["classes"][:8]), ignoring, momentum(model.parameters()))
    losses = engine.run((d["x"], wrong), None, 8, np.zeros(5))
    assert losses[1] == pytest.approx(ignoring(model(d["x"][8:16]), wrong[8:16]).item(), rel=1e-5)
    words = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5))
    engine = native_engine(words, (d["words"][:8], d["y"][:8]), nn.MSELoss(), momentum(words.parameters()))
    with pytest.raises(ModelError, match="0 to 6"):
        engine.run((d["words"] + 1, d["y"]), None, 8, np.zeros(5))


def test_code_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault planted in what is emitted is found by the first step's comparison, before anything is trained."""
    from chainrule.backends.native import vector_math

    d = data()
    monkeypatch.setenv("CHAINRULE_CACHE", "")
    monkeypatch.setattr(vector_math, "tanh", lambda e, x: vector_math.sigmoid(e, x))
    model = nn.Sequential(nn.Linear(10, 11), nn.Tanh(), nn.Linear(11, 5))
    before = [p.clone() for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(BackendError, match="something else than torch"):
            native_engine(model, (d["x"][:8], d["y"][:8]), nn.MSELoss(), momentum(model.parameters()))
    monkeypatch.undo()
    engine = native_engine(model, (d["x"][:8], d["y"][:8]), nn.MSELoss(), momentum(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert np.isfinite(engine.run((d["x"], d["y"]), None, 8, np.full(5, 0.01))).all()


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(search: str | None) -> None:
    d = data()
    torch.manual_seed(1)
    x, y = d["x"].double(), d["y"].double()
    models = [nn.Sequential(nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 5)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    made = [torch.optim.LBFGS(m.parameters(), lr=0.5, max_iter=8, line_search_fn=search) for m in models]
    engine = native_engine(models[0], (x, y), nn.MSELoss(), made[0])
    before = [p.clone() for p in models[0].parameters()]
    losses = np.concatenate([engine.run((x, y), None, 40, np.full(1, 0.5)) for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(before, models[0].parameters(), strict=True))
    engine.store()

    def closure() -> torch.Tensor:
        made[1].zero_grad()
        value = nn.functional.mse_loss(models[1](x), y)
        value.backward()
        return value

    expected = np.array([made[1].step(closure).item() for _ in range(4)])
    # The line search compares sums of another order: what it decides is equal here, its numbers nearly.
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_what_is_large_is_left_to_torch_where_that_was_asked() -> None:
    model = nn.Sequential(nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 1500))
    with pytest.raises(BackendError, match="parameters"):
        native_engine(model, (torch.randn(4, 1500),) * 2, nn.MSELoss(), momentum(model.parameters()), small=True)


def test_a_new_tensor_in_the_place_of_a_freed_one_is_looked_through() -> None:
    """Temporaries of one size get one address after the other: an identity alone says nothing about the numbers."""
    checked, leaf = shared.Checked(), variable("y", TensorType((64,), "int64"))
    limit = Limit(5, frozenset())
    for _ in range(20):
        checked.check(leaf, torch.zeros(64, dtype=torch.int64), limit)
    with pytest.raises(ModelError, match="outside of its range"):
        checked.check(leaf, torch.full((64,), 5), limit)
