"""fit against the same training written as a PyTorch loop, for every engine-independent part of it."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as rates
from torch.utils.data import DataLoader, TensorDataset

import chainrule as cr
from chainrule.errors import BackendError, ChainruleError, ModelError

DTYPE = torch.float64


def network(seed: int = 0, width: int = 7) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)).to(DTYPE)


def data(n: int = 22, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=DTYPE)
    return x, torch.stack([x.sum(1), x[:, 0] * x[:, 1]], 1)


def loader(seed: int = 2, **options) -> DataLoader:
    options = {"batch_size": 5, "shuffle": True, "generator": torch.Generator().manual_seed(seed)} | options
    return DataLoader(TensorDataset(*data()), **options)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}

SCHEDULES = {
    "none": (lambda o: None, "epoch"),
    "step": (lambda o: rates.StepLR(o, 2, 0.5), "epoch"),
    "cosine": (lambda o: rates.CosineAnnealingLR(o, 6), "epoch"),
    "exponential": (lambda o: rates.ExponentialLR(o, 0.9), "epoch"),
    "milestones": (lambda o: rates.MultiStepLR(o, [1, 3], 0.3), "epoch"),
    "lambda": (lambda o: rates.LambdaLR(o, lambda e: 1 / (1 + e)), "epoch"),
    "polynomial": (lambda o: rates.PolynomialLR(o, 6), "epoch"),
    "warm restarts": (lambda o: rates.CosineAnnealingWarmRestarts(o, 2), "epoch"),
    "one cycle": (lambda o: rates.OneCycleLR(o, 0.2, total_steps=30), "step"),
    "one cycle, rates only": (lambda o: rates.OneCycleLR(o, 0.2, total_steps=30, cycle_momentum=False), "step"),
    "cyclic": (lambda o: rates.CyclicLR(o, 0.01, 0.1, 7), "step"),
    "sequential": (
        lambda o: rates.SequentialLR(o, [rates.ConstantLR(o, 0.1, 2), rates.ExponentialLR(o, 0.9)], [2]),
        "epoch",
    ),
    "chained": (lambda o: rates.ChainedScheduler([rates.ConstantLR(o, 0.1, 2), rates.ExponentialLR(o, 0.9)]), "epoch"),
    "plateau": (lambda o: rates.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.2), "plateau"),
}


def by_hand(model, optimizer, scheduler, every, loaded, epochs):
    """The loop as everybody writes it."""
    loss_function, losses, means, lrs = nn.MSELoss(), [], [], []
    for _ in range(epochs):
        before = len(losses)
        lrs.append(optimizer.param_groups[0]["lr"])
        for x, y in loaded:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                value = loss_function(model(x), y)
                value.backward()
                return value

            losses.append(float(optimizer.step(closure).detach()))
            if every == "step":
                scheduler.step()
        means.append(float(np.mean(losses[before:])))
        if every == "plateau":
            scheduler.step(means[-1])
        elif every == "epoch" and scheduler is not None:
            scheduler.step()
    return losses, means, lrs


def agree(optimizer_name: str, schedule_name: str, backend: str = "auto", epochs: int = 6) -> cr.FitResult:
    make, every = SCHEDULES[schedule_name]
    theirs, ours = network(), network()
    o1, o2 = (OPTIMIZERS[optimizer_name](m.parameters()) for m in (theirs, ours))
    s1, s2 = make(o1), make(o2)
    losses, means, lrs = by_hand(theirs, o1, s1, every, loader(), epochs)
    h = cr.fit(ours, loader(), nn.MSELoss(), o2, epochs=epochs, scheduler=s2, backend=backend)
    # float64; sums may be taken in another order, and a line search then stops at another point of a flat stretch
    searched = optimizer_name == "lbfgs" and h.backend == "native"
    np.testing.assert_allclose(h.step_loss[: 8 if searched else None], losses[: 8 if searched else None], rtol=1e-9)
    rtol = 1e-2 if searched else 1e-9
    np.testing.assert_allclose(h.loss, means, rtol=rtol)
    np.testing.assert_allclose(h.learning_rate, lrs, rtol=1e-15)
    if searched:
        return h
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=10 * rtol, atol=rtol / 10)
    assert o1.param_groups[0]["lr"] == o2.param_groups[0]["lr"]
    if not searched:
        same_state(o1.state_dict(), o2.state_dict())
    if s1 is not None:
        assert s1.get_last_lr() == s2.get_last_lr()
    return h


def same_state(a, b) -> None:
    """Equal nested states of optimizers."""
    assert type(a) is type(b), (type(a), type(b))
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same_state(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same_state(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-6)
    else:
        assert a == b


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer: str, backend: str) -> None:
    agree(optimizer, "step", backend)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str) -> None:
    agree("momentum", schedule)


def test_training_goes_on_in_torch_and_back() -> None:
    theirs, ours = network(), network()
    o1, o2 = (torch.optim.Adam(m.parameters(), 0.02) for m in (theirs, ours))
    l1, l2 = loader(), loader()
    by_hand(theirs, o1, None, "none", l1, 9)
    cr.fit(ours, l2, nn.MSELoss(), o2, epochs=3)
    by_hand(ours, o2, None, "none", l2, 2)
    cr.fit(ours, l2, nn.MSELoss(), o2, epochs=4)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_several_parameter_groups() -> None:
    def run(fit: bool):
        model = network()
        groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[2].parameters(), "weight_decay": 0.1}]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        scheduler = rates.ExponentialLR(optimizer, 0.8)
        if fit:
            cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=4, scheduler=scheduler)
        else:
            by_hand(model, optimizer, scheduler, "epoch", loader(), 4)
        return list(model.parameters())

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# ---- validation, early stopping, best weights ------------------------------------------------------------
def test_validation_is_in_evaluation_mode_and_weighs_samples() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).to(DTYPE)
    model[1].eval()  # a mode of its own, which must survive
    x, y = data(7, seed=5)
    seen = []

    def look(epoch, loss):
        with torch.no_grad():
            mode = copy.deepcopy(model).eval()
            seen.append(float(nn.functional.mse_loss(mode(x), y)))

    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=3, validation=parts, callbacks=[look])
    np.testing.assert_allclose(h.validation, seen, rtol=1e-12)
    assert model.training and model[2].training and not model[1].training


def test_early_stopping_and_best_weights() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.95)  # too high: it gets worse again
    weights = []
    h = cr.fit(
        model,
        loader(),
        nn.MSELoss(),
        optimizer,
        epochs=200,
        validation=data(9, seed=6),
        patience=3,
        best_weights=True,
        callbacks=[lambda e, v: weights.append(copy.deepcopy(model.state_dict()))],
    )
    assert len(h.loss) == len(h.validation) < 200 and "no improvement in 3 epochs" in h.stopped
    assert h.best_epoch == int(np.argmin(h.validation)) + 1 == len(h.loss) - 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[h.best_epoch - 1][name])


def test_plateau_follows_the_validation_loss() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = rates.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    x, y = data(9, seed=6)
    # targets that training leads away from: the validation loss rises while the training loss falls
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=6, scheduler=scheduler, validation=(x, -3 * y))
    assert h.loss[-1] < h.loss[0] and h.validation[-1] > h.validation[0]
    assert optimizer.param_groups[0]["lr"] < 0.01


# ---- callbacks -------------------------------------------------------------------------------------------
def test_callbacks_see_the_model_and_may_change_it() -> None:
    model, reference = network(), network()
    bound = lambda m: [p.data.clamp_(-0.3, 0.3) for p in m.parameters()]  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=4, callbacks=[lambda e, v: bound(model) and None])
    loaded, o = loader(), torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9)
    for _ in range(4):
        by_hand(reference, o, None, "none", loaded, 1)
        bound(reference)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_callback_that_changes_the_learning_rate_the_momentum_or_the_program() -> None:
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = network(), 1.0

        def forward(self, x):
            return self.inner(x) * self.scale

    def change(model, optimizer, epoch):
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.param_groups[0]["momentum"] = 0.5 + 0.1 * epoch
        model.scale += 0.25
        if epoch == 2:
            model.inner[0].weight.requires_grad_(False)

    ours, theirs = Scaled(), Scaled()
    o1, o2 = (torch.optim.SGD(m.parameters(), 0.05, momentum=0.5) for m in (ours, theirs))
    loaded = loader()
    h = cr.fit(ours, loader(), nn.MSELoss(), o1, epochs=4, callbacks=[lambda e, v: change(ours, o1, e)])
    for epoch in range(1, 5):
        by_hand(theirs, o2, None, "none", loaded, 1)
        change(theirs, o2, epoch)
    assert len(h.loss) == 4
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("inside", ["loss", "objective"])
def test_a_callback_that_changes_the_loss_or_the_objective(inside: str, backend: str) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = 1.0

        def forward(self, output, target):
            return self.weight * (output - target).square().mean()

    loss, weight = Weighted(), 1.0

    def change(epoch: int, value: float) -> None:
        nonlocal weight
        weight = loss.weight = 1 / (1 + epoch)

    def objective(model, batch):
        return weight * (model(batch[0]) - batch[1]).square().mean()

    ours, theirs = network(), network()
    x, y = data()
    o1, o2 = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (ours, theirs))
    given = {"loss": loss} if inside == "loss" else {"objective": objective}
    h = cr.fit(ours, [(x, y)], optimizer=o1, epochs=4, callbacks=[change], backend=backend, **given)
    for k in range(4):
        o2.zero_grad()
        value = (theirs(x) - y).square().mean() / (1 + k)
        value.backward()
        o2.step()
        assert h.loss[k] == pytest.approx(value.item(), rel=1e-10)  # float64, sums in another order


def test_a_callback_ends_training() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=50, callbacks=[lambda e, v: e == 3])
    assert len(h.loss) == 3 and h.stopped == "stopped by a callback" and not h.interrupted


def test_batches_of_other_shapes() -> None:
    """Larger batches and longer sequences than the first: the same losses as on torch's kernels."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.cell, self.out = nn.Embedding(11, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.cell(self.table(x))[0][:, -1])

    x, y = data(40)
    cuts = [(0, 5), (5, 14), (14, 24), (24, 27), (27, 40)]
    growing = [(x[a:b], y[a:b]) for a, b in cuts]
    torch.manual_seed(1)
    lengths = [(torch.randint(11, (4, n)), torch.randn(4, 2)) for n in (5, 9, 3, 5, 9, 3, 7, 8, 4, 6, 2, 10)]
    for make, batches, reason in ((network, growing, "one compiled loop"), (Sequence, lengths, "of many shapes")):
        runs = []
        for backend in ("auto", "torch"):
            model = make()
            optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
            runs.append(cr.fit(model, batches, nn.MSELoss(), optimizer, epochs=3, backend=backend))
        np.testing.assert_allclose(runs[0].step_loss, runs[1].step_loss, rtol=1e-5)
        assert reason in runs[0].reason
    with pytest.raises(ModelError, match="without samples"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        cr.fit(model, [(x, y), (x[:0], y[:0])], nn.MSELoss(), optimizer, epochs=1)


# ---- interruption ----------------------------------------------------------------------------------------
@pytest.fixture
def heard():
    """A Ctrl-C is heard here, also where a shell has started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.usefixtures("heard")
def test_ctrl_c_keeps_what_was_done(backend: str) -> None:
    """The model is in the state of the last step that the history has."""
    model, reference = network(), network()
    x, y = data(4000)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    handler = signal.getsignal(signal.SIGINT)
    h = cr.fit(model, (x, y), nn.MSELoss(), optimizer, epochs=10**5, batch_size=10, shuffle=False, backend=backend)
    timer.join()
    assert h.interrupted and h.stopped == "interrupted" and h.step_loss
    assert signal.getsignal(signal.SIGINT) is handler
    steps = len(h.step_loss)
    # The same number of steps, by the torch engine that runs them one by one.
    o = torch.optim.SGD(reference.parameters(), 0.01, momentum=0.9)
    if steps < 3000:
        for k in range(steps):
            rows = slice(k % 400 * 10, k % 400 * 10 + 10)
            o.zero_grad()
            nn.functional.mse_loss(reference(x[rows]), y[rows]).backward()
            o.step()
    else:
        whole, rest = divmod(steps, 400)
        cr.fit(reference, (x, y), nn.MSELoss(), o, epochs=whole, batch_size=10, shuffle=False)
        if rest:
            cr.fit(reference, (x[: rest * 10], y[: rest * 10]), nn.MSELoss(), o, epochs=1, batch_size=10, shuffle=False)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_an_interrupt_in_a_callback_or_in_the_data() -> None:
    def stop(epoch, loss):
        if epoch == 2:
            raise KeyboardInterrupt

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=5, callbacks=[stop])
    assert h.interrupted and len(h.loss) == 2

    class Data:
        def __iter__(self):
            yield data()
            yield data()
            raise KeyboardInterrupt

    h = cr.fit(model, Data(), nn.MSELoss(), optimizer, epochs=5)
    assert h.interrupted and len(h.loss) == 0 and len(h.step_loss) == 2


# ---- losses that are not finite --------------------------------------------------------------------------
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", ["momentum", "adam", "lbfgs"])
def test_not_finite_leaves_the_parameters_before_the_step(name: str, backend: str) -> None:
    model, reference = network(), network()
    x, y = data()
    y[13] = math.nan  # in the third batch
    o1, o2 = (OPTIMIZERS[name](m.parameters()) for m in (model, reference))
    with pytest.raises(ModelError, match=r"loss is nan at step 3 \(epoch 1\)"):
        cr.fit(model, (x, y), nn.MSELoss(), o1, epochs=3, batch_size=5, shuffle=False, backend=backend)
    by_hand(reference, o2, None, "none", [(x[:5], y[:5]), (x[5:10], y[5:10])], 1)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    if name != "lbfgs":  # torch's own counts the refused step in its state
        same_state(o1.state_dict(), o2.state_dict())


# ---- programs --------------------------------------------------------------------------------------------
def test_objective_with_derivatives_inside() -> None:
    """u'' = -sin(x), with boundary values: the objective differentiates the network by its input."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).to(DTYPE)
    x = torch.linspace(0, math.pi, 32, dtype=DTYPE)[:, None]

    def objective(model, batch):
        points = batch[0].detach().requires_grad_()
        u = model(points)
        (du,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), points, create_graph=True)
        return (ddu + points.sin()).square().mean() + model(batch[1]).square().mean()

    ends = torch.tensor([[0.0], [math.pi]], dtype=DTYPE)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    h = cr.fit(net, [(x, ends)], objective=objective, optimizer=optimizer, epochs=300, validation=[(x, ends)])
    assert h.loss[-1] < 0.02 * h.loss[0] and h.validation[-1] < 0.02 * h.validation[0]


def test_what_cannot_be_traced_is_trained_by_autograd_and_said_so() -> None:
    scale = torch.ones((), dtype=DTYPE, requires_grad=True)  # trained, and not a parameter of the model

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = network(), 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    model = Branching()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=3)
    assert h.loss[-1] < h.loss[0] and "autograd" in h.reason and "'calls'" in h.reason and model.calls >= 15
    model = network()
    optimizer = torch.optim.SGD([*model.parameters(), scale], 0.05)
    objective = lambda m, b: (m(b[0]) * scale - b[1]).square().mean()  # noqa: E731
    h = cr.fit(model, loader(), objective=objective, optimizer=optimizer, epochs=3)
    assert "not a parameter of the model" in h.reason and scale.item() != 1


def test_a_loss_with_parameters_of_its_own() -> None:
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.zeros(2, dtype=DTYPE))

        def forward(self, output, target):
            return ((output - target).square() * (-self.log).exp() + self.log).mean()

    def run(fit: bool):
        model, loss = network(), Weighted()
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.02)
        if fit:
            cr.fit(model, [data()], loss, optimizer, epochs=5)
        else:
            for _ in range(5):
                optimizer.zero_grad()
                loss(model(data()[0]), data()[1]).backward()
                optimizer.step()
        return loss.log.detach()

    torch.testing.assert_close(run(True), run(False), rtol=1e-10, atol=1e-12)
    assert run(True).abs().min() > 0


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_modules_and_optimizers(kind: str) -> None:
    def run(fit: bool):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder, decoder = nn.Linear(3, 2).to(DTYPE), nn.Linear(2, 3).to(DTYPE)
        optimizers = [torch.optim.SGD(encoder.parameters(), 0.05), torch.optim.Adam(decoder.parameters(), 0.02)]
        x = data()[0]
        models = (encoder, decoder) if kind == "tuple" else {"encoder": encoder, "decoder": decoder}

        def objective(given, batch):
            assert given is models
            return (decoder(torch.tanh(encoder(batch))) - batch).square().mean()

        if fit:
            cr.fit(models, [x], objective=objective, optimizer=optimizers, epochs=20)
        else:
            for _ in range(20):
                [o.zero_grad() for o in optimizers]
                objective(models, x).backward()
                [o.step() for o in optimizers]
        return [*encoder.parameters(), *decoder.parameters()]

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_loss_that_the_model_returns_and_several_inputs() -> None:
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2).to(DTYPE)

        def forward(self, x, y):
            return (self.layer(x) - y).square().mean()

    model = Own()
    h = cr.fit(model, loader(), "model", torch.optim.SGD(model.parameters(), 0.1), epochs=5, validation=[data()])
    assert h.loss[-1] < h.loss[0] and len(h.validation) == 5


def test_batch_norm_buffers_and_dropout_draws_are_those_of_torch() -> None:
    def run(fit: bool):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)).to(DTYPE)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        loaded = loader(generator=None)
        if fit:
            cr.fit(model, loaded, nn.MSELoss(), optimizer, epochs=3, backend="torch")
        else:
            by_hand(model, optimizer, None, "none", loaded, 3)
        return model.state_dict(), torch.get_rng_state()

    (ours, state), (theirs, expected) = run(True), run(False)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)
    assert torch.equal(state, expected)


def test_two_threads_train_two_models() -> None:
    def train(model, seed):
        cr.fit(model, loader(seed), nn.MSELoss(), torch.optim.Adam(model.parameters(), 0.01), epochs=30)

    together, apart = [network(k) for k in (1, 2)], [network(k) for k in (1, 2)]
    threads = [threading.Thread(target=train, args=(m, k)) for k, m in enumerate(together)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for k, model in enumerate(apart):
        train(model, k)
        for a, b in zip(together[k].parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_replicas_are_what_training_alone_gives() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scheduler = rates.StepLR(optimizer, 2, 0.5)
    state = torch.get_rng_state()
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=5, scheduler=scheduler, seeds=[3, 4, 5])
    assert torch.equal(torch.get_rng_state(), state) and scheduler.last_epoch == 0 and not optimizer.state
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert len(h.replicas) == 3 and h.loss[-1] == pytest.approx(np.mean([r.loss[-1] for r in h.replicas]), rel=1e-12)
    for seed, replica in zip([3, 4, 5], h.replicas, strict=True):
        alone = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=5, scheduler=scheduler, seeds=[seed])
        assert alone.replicas[0].loss == replica.loss
        torch.manual_seed(seed)
        own = network()
        [m.reset_parameters() for m in own if hasattr(m, "reset_parameters")]
        o = torch.optim.Adam(own.parameters(), 0.01)
        loaded = loader(seed)
        _, means, _ = by_hand(own, o, rates.StepLR(o, 2, 0.5), "epoch", loaded, 5)
        np.testing.assert_allclose(replica.loss, means, rtol=1e-9)
        for a, b in zip(replica.model.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert "3 replicas" in str(h) and len(h.to_dict()["replicas"]) == 3
    with pytest.raises(ModelError, match="seeds"):
        cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=5, seeds=[])


# ---- what is refused, before anything is touched ---------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"epochs": None}, ModelError, "fit needs epochs"),
        ({"optimizer": None, "loss": None}, ModelError, "fit needs optimizer, loss"),
        ({"epochs": 2.5}, ModelError, "epochs=2.5"),
        ({"epochs": -1}, ModelError, "epochs=-1"),
        ({"backend": "jax"}, BackendError, "unknown back end"),
        ({"optimizer": "adam"}, ModelError, "not one of torch's"),
        ({"optimizer": torch.optim.SGD(network().parameters(), 0.1)}, ModelError, "none of the model's parameters"),
        ({"scheduler": rates.StepLR(torch.optim.SGD(network().parameters(), 0.1), 1)}, ModelError, "does not drive"),
        ({"resume": True}, ModelError, "nothing to resume"),
        ({"objective": lambda m, b: 0}, ModelError, "both loss and objective"),
        ({"scheduler_every": "batch"}, ModelError, "scheduler_every"),
        ({"model": [network(), network()]}, ModelError, "need an objective"),
        ({"data": []}, ModelError, "no batch"),
        ({"loss": lambda out, y: out - y}, ModelError, "not a scalar"),
        ({"model": lambda x: x}, ModelError, "not a torch module"),
    ],
)
def test_refusals(change, error, said) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    given = {"model": model, "data": [data()], "loss": nn.MSELoss(), "optimizer": optimizer, "epochs": 2} | change
    state = torch.get_rng_state()
    with pytest.raises(error, match=said):
        cr.fit(given.pop("model"), given.pop("data"), given.pop("loss"), given.pop("optimizer"), **given)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_progress_bar_is_on_stderr_and_goes_away(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("chainrule.verbs.fit.progress._FIRST", 0.0)
    monkeypatch.setattr("chainrule.verbs.fit.progress._AGAIN", 0.0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=3, validation=data(5), progress=True)
    out, err = capsys.readouterr()
    assert not out and "3/3 loss" in err and "validation" in err and "\n" not in err
    assert err.rsplit("\r", 2)[1].strip() == ""  # the line is taken away
    cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=3)  # not a terminal: nothing
    assert capsys.readouterr() == ("", "")


def test_a_compiled_model_is_trained_as_what_it_wraps() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    h = cr.fit(torch.compile(model, backend="eager"), loader(), nn.MSELoss(), optimizer, epochs=3)
    assert h.loss[-1] < h.loss[0]


def test_results() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    h = cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=3, validation=data(5))
    plain = h.to_dict()
    assert plain["schema"] == "chainrule.fit/1" and len(plain["validation"]) == 3 and plain["best_epoch"]
    assert "15 steps" in str(h) and "<svg" in h._repr_html_() and h.plot() is not None
    assert str(cr.fit(model, loader(), nn.MSELoss(), optimizer, epochs=0)).startswith("no epoch was completed")


def test_a_step_notices_what_changes_around_it() -> None:
    """Frozen parameters, attributes and closed-over numbers are read when the step runs, as eager execution reads them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    scale = 1.0
    step = cr.compile_step(model, objective=lambda m, b: scale * (m(b[0]) - b[1]).square().mean(), backend="torch")

    def same() -> bool:
        torch.manual_seed(1)
        found = step(x, y)
        ours = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        torch.manual_seed(1)
        expected = scale * (model(x) - y).square().mean()
        model.zero_grad()
        expected.backward()
        theirs = [p.grad for p in model.parameters()]
        alike = all(a is b is None or torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
        model.zero_grad()
        return alike and torch.allclose(found, expected)

    assert same()
    model[1].p = 0.1
    assert same()
    scale = 3.0
    assert same()
    model[0].requires_grad_(False)
    assert same()
    model.eval()
    assert same()


# ---- what is refused, and what is taken ------------------------------------------------------------------
@pytest.mark.parametrize("seeds", [5, 1.5, None, "ab", [], [1.5], True])
def test_seeds_that_are_none(seeds) -> None:
    model = nn.Linear(2, 1)
    train = lambda: cr.fit(  # noqa: E731
        model, (torch.ones(4, 2), torch.ones(4, 1)), nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1),
        epochs=1, seeds=seeds,
    )  # fmt: skip
    if seeds is None:
        assert not train().replicas
        return
    with pytest.raises(ModelError, match="seeds"):
        train()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_step_of_lbfgs_is_torchs(backend: str) -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    other = copy.deepcopy(model)
    loss = nn.MSELoss()
    made = [torch.optim.LBFGS(m.parameters(), max_iter=4) for m in (model, other)]
    step = cr.compile_step(model, loss, made[0], backend=backend)

    def closure() -> torch.Tensor:
        made[1].zero_grad()
        value = loss(other(x), x**2)
        value.backward()
        return value

    for _ in range(3):
        assert float(step(x, x**2)) == pytest.approx(float(made[1].step(closure).detach()), rel=1e-9)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
    with pytest.raises(ChainruleError, match="LBFGS"):
        cr.compile_step(model, loss, made[0], backend="native")(x, x**2)
    with pytest.raises(ModelError, match="optimizer"):
        cr.compile_step(model, loss, "SGD")
