"""A run that goes on from its file is the run that was never stopped, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as rates
from torch.utils.data import DataLoader, Dataset, TensorDataset

import chainrule as cr
from chainrule.errors import ModelError
from chainrule.verbs.fit import loop
from chainrule.verbs.fit.data import source_of
from chainrule.verbs.fit.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[3]


class Noisy(Dataset):
    """Samples with noise from every global generator, as augmentation has it."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = 0.1 * (torch.randn(3) + random.gauss(0, 1) + float(np.random.randn()))
        return torch.arange(3.0) * k / 24 + noise, torch.tensor([k / 24.0])


def make(kind: str, seed: int = 0):
    """(model, data, loss, optimizer, scheduler, options)."""
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    model = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 1))
    if kind == "drops":
        model = nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.4), nn.Linear(9, 1))
    x = torch.randn(40, 3)
    pair = TensorDataset(x, x.sum(1, keepdim=True))
    data = DataLoader(pair, batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(3))
    if kind == "noisy":
        data = DataLoader(Noisy(), batch_size=5, shuffle=True)
    parameters = model.parameters()
    optimizer = torch.optim.Adam(parameters, 0.01)
    scheduler: object = rates.StepLR(optimizer, 2, 0.7)
    options: dict[str, object] = {}
    if kind == "lbfgs":
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")
        scheduler = rates.MultiStepLR(optimizer, [2, 4], 0.5)
    if kind == "one cycle":
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = rates.OneCycleLR(optimizer, 0.1, total_steps=48)
    if kind == "plateau":
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        scheduler = rates.ReduceLROnPlateau(optimizer, patience=1)
        options = {"validation": (x[:9], -x[:9].sum(1, keepdim=True)), "best_weights": True, "patience": 6}
    if kind == "sequential":
        parts = [rates.ConstantLR(optimizer, 0.1, 2), rates.CosineAnnealingWarmRestarts(optimizer, 2)]
        scheduler = rates.SequentialLR(optimizer, parts, [2])
    if kind == "chained":
        scheduler = rates.ChainedScheduler([rates.LambdaLR(optimizer, lambda e: 0.9**e), rates.LinearLR(optimizer)])
    return model, data, nn.MSELoss(), optimizer, scheduler, options


KINDS = ["plain", "drops", "noisy", "lbfgs", "one cycle", "plateau", "sequential", "chained"]


def run(kind: str, folder: Path | None = None, backend: str = "auto", **options):
    """Trains eight epochs."""
    model, data, loss, optimizer, scheduler, more = make(kind)
    h = cr.fit(
        model, data, loss, optimizer, scheduler=scheduler, epochs=8, save_dir=folder, backend=backend, **more, **options
    )
    return h, model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), torch.get_rng_state()


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C after so many steps, which run one by one."""
    monkeypatch.setattr(loop, "_FIRST_PIECE", 1)
    monkeypatch.setattr(loop, "_PIECE", 0.0)
    look_up = loop.Loop._look_up

    def at(steps: int | None) -> None:
        def looked_up(self, *arguments):
            if steps is not None and self.steps >= steps:
                self.interruptible.requested = True
            look_up(self, *arguments)

        monkeypatch.setattr(loop.Loop, "_look_up", looked_up)

    return at


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or callable(a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [3, 12, 17])  # in the first epoch, at the end of one, in the middle of one
def test_interrupted_and_resumed(kind: str, stop: int, tmp_path: Path, interrupt_after) -> None:
    whole, *expected = run(kind)
    interrupt_after(stop)
    first, *_ = run(kind, tmp_path)
    interrupt_after(None)
    assert first.interrupted and len(first.step_loss) == stop
    second, *found = run(kind, tmp_path, resume=True)
    assert second.loss == whole.loss and second.step_loss == whole.step_loss
    assert second.validation == whole.validation and second.learning_rate == whole.learning_rate
    assert second.resumed == len(first.loss) and second.stopped == whole.stopped
    for ours, theirs, what in zip(found, expected, ("model", "optimizer", "scheduler", "generator"), strict=True):
        assert equal(ours, theirs), what


def test_saving_changes_nothing_and_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    whole, *expected = run("drops")
    saved, *found = run("drops", tmp_path, save_every=0.0, resume=True)  # nothing is there yet
    assert saved.loss == whole.loss and all(map(equal, found, expected))
    again, *found = run("drops", tmp_path, resume=True)
    assert again.loss == whole.loss and again.resumed == 8 and all(map(equal, found, expected))
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_more_epochs_than_the_saved_run(tmp_path: Path) -> None:
    parts = [make("plain") for _ in range(2)]
    for (model, data, loss, optimizer, scheduler, _), epochs in zip(parts, ([3, 7], [7]), strict=True):
        for count in epochs:
            folder = tmp_path / str(len(epochs))
            cr.fit(model, data, loss, optimizer, scheduler=scheduler, epochs=count, save_dir=folder, resume=True)
    assert equal(parts[0][0].state_dict(), parts[1][0].state_dict())


def test_refusals_change_nothing(tmp_path: Path) -> None:
    run("plain", tmp_path)
    bytes_ = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ModelError, match="there is a saved run"):
        run("plain", tmp_path)
    model, data, loss, optimizer, scheduler, _ = make("drops")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError, match="of another training"):
        cr.fit(model, data, loss, optimizer, scheduler=scheduler, epochs=9, save_dir=tmp_path, resume=True)
    assert equal(before, dict(model.state_dict())) and (tmp_path / "state.pt").read_bytes() == bytes_
    (tmp_path / "state.pt").write_bytes(bytes_[: len(bytes_) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        run("plain", tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be saved"):
        run("plain", tmp_path / "file")


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


@pytest.mark.parametrize("pair", [("SGD", "Adam"), ("AdamW", "SGD"), ("Adam", "AdamW"), ("RMSprop", "Adam")], ids=str)
def test_another_optimizer_is_named(pair: tuple[str, str], tmp_path: Path) -> None:
    for kind in pair:
        model, data, loss, *_ = make("plain")
        optimizer = OPTIMIZERS[kind](model.parameters())
        before = {k: v.clone() for k, v in model.state_dict().items()}
        train = lambda: cr.fit(model, data, loss, optimizer, epochs=2, save_dir=tmp_path, resume=True)  # noqa: B023, E731
        if kind == pair[0]:
            train()
            continue
        with pytest.raises(ModelError, match=f"was {pair[0]}, and now is {pair[1]}") as said:
            train()
        assert said.value.given and said.value.required and said.value.instead
        assert equal(before, dict(model.state_dict())) and not optimizer.state


def test_another_scheduler_is_named(tmp_path: Path) -> None:
    run("plain", tmp_path)
    model, data, loss, optimizer, *_ = make("plain")
    other = rates.ExponentialLR(optimizer, 0.9)
    with pytest.raises(ModelError, match="scheduler was StepLR, and now is ExponentialLR"):
        cr.fit(model, data, loss, optimizer, scheduler=other, epochs=9, save_dir=tmp_path, resume=True)


def test_other_data_are_refused(tmp_path: Path) -> None:
    x, y = torch.arange(60.0).reshape(20, 3) / 60, torch.arange(20.0)[:, None] / 20
    other, end = x.clone(), x.clone()
    other[1, 1] += 1e-3
    end[-1, 0] += 1
    pair = TensorDataset(x, y)
    subset = torch.utils.data.Subset(pair, list(range(3, 19)))
    cut = lambda a: [(a[k : k + 5], y[k : k + 5]) for k in range(0, 20, 5)]  # noqa: E731

    class Own(DataLoader):
        """A loader that is not known."""

    started = {
        "arrays": ((x, y), [(other, y), (x, -y), (x[:-1], y[:-1]), (end, y), (x, torch.cat([y, y], 1))]),
        "loader": (
            DataLoader(pair, 5, shuffle=True),
            [DataLoader(TensorDataset(other, y), 5), DataLoader(pair, 6), DataLoader(subset, 5), cut(x)],
        ),
        "subset": (
            DataLoader(subset, 4),
            [DataLoader(pair, 4), DataLoader(torch.utils.data.Subset(pair, list(range(2, 18))), 4)],
        ),
        "list": (cut(x), [cut(other), cut(x)[:-1], cut(end)]),
        "own loader": (Own(pair, 5), [Own(TensorDataset(other, y), 5), Own(pair, 3), Own(subset, 5)]),
        "own dataset": (DataLoader(Noisy(), 5), [DataLoader(Noisy(), 7), DataLoader(pair, 5)]),
    }
    for name, (data, others) in started.items():

        def train(data):
            torch.manual_seed(0)
            model = nn.Linear(3, 1)
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            h = cr.fit(
                model,
                data,
                nn.MSELoss(),
                optimizer,
                epochs=2,
                save_dir=tmp_path / name,  # noqa: B023
                resume=True,
            )
            return h.resumed

        assert train(data) == 0 and train(data) == 2
        for given in others:
            with pytest.raises(ModelError, match="of other data") as said:
                train(given)
            assert said.value.given and said.value.required and said.value.instead, name


def test_the_fingerprint_draws_nothing_and_takes_any_dtype() -> None:
    state = torch.get_rng_state()
    for dtype in (torch.bool, torch.bfloat16, torch.int64, torch.complex64):
        x = torch.ones(6, 2).to(dtype)
        for data in ((x, x), DataLoader(TensorDataset(x, x), 2, shuffle=True), [(x, x)], DataLoader(Noisy(), 2)):
            found = fingerprint(source_of(data))
            assert found == fingerprint(source_of(data)) and found
    assert torch.equal(torch.get_rng_state(), state)


def test_a_schedule_that_is_not_data_is_refused_at_the_first_save(tmp_path: Path) -> None:
    class Own(rates.LRScheduler):
        def __init__(self, optimizer):
            self.function = lambda epoch: 0.5**epoch
            super().__init__(optimizer)

        def get_lr(self):
            return [base * self.function(self.last_epoch) for base in self.base_lrs]

    model, data, loss, optimizer, _, _ = make("plain")
    with pytest.raises(ModelError, match="cannot be saved as data"):
        cr.fit(model, data, loss, optimizer, scheduler=Own(optimizer), epochs=2, save_dir=tmp_path)
    assert not list(tmp_path.iterdir())


# ---- kill -9 ---------------------------------------------------------------------------------------------
KILLED = """
import sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import chainrule as cr

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
x = torch.randn(400, 3)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
optimizer = torch.optim.Adam(model.parameters(), 0.01)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
print("ready", flush=True)
start = time.perf_counter()
h = cr.fit(model, loader, nn.MSELoss(), optimizer, scheduler=scheduler, epochs=12, backend=sys.argv[2],
           save_dir=sys.argv[1] or None, save_every=0.01, resume=bool(sys.argv[1]))
print(time.perf_counter() - start, "done", [p.double().sum().item().hex() for p in model.parameters()], h.step_loss[-1].hex(), len(h.step_loss))
"""


def killed_run(folder: str, backend: str, after: float | None = None) -> tuple[float, str]:
    """Seconds and last line of the run; no line if it was killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, folder, backend], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    if after is not None:
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
    seconds, _, said = child.communicate()[0].strip().partition(" ")
    return float(seconds or 0), said


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_killed_at_any_moment(tmp_path: Path, backend: str) -> None:
    """``python -m benchmarks.resume`` does it fifty times."""
    seconds, expected = killed_run("", backend)
    assert expected.startswith("done")
    generator, kills = random.Random(0), 0
    for k in range(4):
        folder = str(tmp_path / str(k))
        for _ in range(3):
            kills += not killed_run(folder, backend, generator.uniform(0, 1.2 * seconds))[1]
        assert killed_run(folder, backend)[1] == expected
    assert kills >= 4
