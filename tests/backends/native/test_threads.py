"""Steps that several threads share: the bits of one thread, whatever their number, order and luck."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import chainrule as cr
from chainrule.backends.native import jit, meetings, sharing, team
from chainrule.backends.native import program as programs
from chainrule.backends.native.threads import Threads
from chainrule.errors import BackendError
from chainrule.verbs.native import native_engine, shared
from tests.verbs.native.test_random_networks import OPTIMIZERS, SETTINGS, cases, made

Trained = tuple[np.ndarray, list[torch.Tensor]]


@pytest.fixture(autouse=True)
def nothing_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", "")
    monkeypatch.setattr(shared, "_COMPILED", OrderedDict())


def trained(
    model: nn.Module,
    data: tuple[torch.Tensor, ...],
    loss: Any,
    make: Callable[[Any], torch.optim.Optimizer],
    threads: int,
    *,
    batch: int = 16,
    steps: int = 5,
    objective: Any = None,
) -> Trained:
    """(losses, parameters, buffers and optimizer state) after a few steps, the last on half a batch."""
    model = copy.deepcopy(model)
    optimizer = make(model.parameters())
    example = tuple(t[:batch] for t in data)
    given_batch = example if loss is not None else example[0]
    engine = native_engine(model, given_batch, loss, optimizer, objective=objective, seed=3, threads=threads)
    count = len(data[0])
    order = np.tile(np.random.default_rng(0).permutation(count), -(-steps * batch // count))
    order = order[: (steps - 1) * batch + max(1, batch // 2)]
    losses = engine.run(data, order, batch, np.full(steps, optimizer.param_groups[0]["lr"]))
    engine.store()
    state = [
        v for held in optimizer.state_dict()["state"].values() for v in held.values() if isinstance(v, torch.Tensor)
    ]
    return losses, [*(v.detach() for v in model.state_dict().values()), *state]


def assert_equal(one: Trained, other: Trained) -> None:
    assert np.array_equal(one[0], other[0], equal_nan=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one[1], other[1], strict=True))


def adam(p: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(p, lr=0.01)


def momentum(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=0.01, momentum=0.9)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(4, 9, batch_first=True), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x)[0][:, -1])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(7, 12), nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(x).flatten(1).tanh())


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.out = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LayerNorm(8),
            nn.Linear(8, 5),
        )
        self.embed = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        return self.out(self.norm(h + self.attention(h, h, h, need_weights=False)[0]).mean(1))


def bent(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The square of a second derivative."""
    x = x.detach().requires_grad_(True)
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, :1].sum(), x, create_graph=True)
    return (second[:, :1] ** 2 + (u - 1) ** 2).mean()


def lenet(padding: int = 0) -> nn.Module:
    size = 16 if padding == 0 else 64
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(size, 30), nn.ReLU(), nn.Linear(30, 5),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, str, Any]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(10, 33), nn.Tanh(), nn.Linear(33, 5)), "x", "classes", momentum),
    "wide": (lambda: nn.Sequential(nn.Linear(10, 130), nn.ReLU(), nn.Linear(130, 64), nn.ReLU(), nn.Linear(64, 5)), "x", "classes", adam),
    "dropout and norm": (
        lambda: nn.Sequential(nn.Linear(10, 40), nn.LayerNorm(40), nn.GELU(), nn.Dropout(0.3), nn.Linear(40, 5)), "x", "y", adam,
    ),
    "batch norm": (lambda: nn.Sequential(nn.Linear(10, 40), nn.BatchNorm1d(40), nn.Softmax(1), nn.Linear(40, 5)), "x", "y", momentum),
    "images": (lenet, "image", "classes", adam),
    "padded images": (lambda: lenet(2), "image", "classes", momentum),
    "signals": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(40, 5)),
        "signal", "classes", adam,
    ),
    "recurrent": (Recurrent, "sequence", "classes", momentum),
    "words": (Words, "words", "classes", adam),
    "attention": (Heads, "sequence", "classes", adam),
}  # fmt: skip


def case_of(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[torch.Tensor, ...], Any, Any]:
    torch.manual_seed(1)
    known = {
        "x": torch.randn(96, 10), "y": torch.randn(96, 5), "classes": torch.randint(0, 5, (96,)),
        "image": torch.randn(96, 1, 12, 12), "signal": torch.randn(96, 3, 10), "words": torch.randint(0, 7, (96, 3)),
        "sequence": torch.randn(96, 6, 4),
    }  # fmt: skip
    build, x, target, make = NETWORKS[name]
    data = tuple(t.to(dtype) if t.is_floating_point() else t for t in (known[x], known[target]))
    return build().to(dtype), data, nn.MSELoss() if target == "y" else nn.CrossEntropyLoss(), make


@pytest.mark.parametrize("name", NETWORKS)
def test_the_bits_do_not_depend_on_the_number_of_threads(name: str) -> None:
    dtype = torch.float64 if list(NETWORKS).index(name) % 2 else torch.float32
    model, data, loss, make = case_of(name, dtype)
    one = trained(model, data, loss, make, 1)
    for threads in (2, 3):
        assert_equal(one, trained(model, data, loss, make, threads))


def test_derivatives_inside_the_loss() -> None:
    torch.manual_seed(1)
    model, data = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)), (torch.randn(96, 2),)
    one, two = (trained(model, data, None, adam, threads, objective=bent, batch=32) for threads in (1, 2))
    assert_equal(one, two)


@settings(max_examples=6, **SETTINGS)
@given(cases())
def test_random_networks(case: dict[str, Any]) -> None:
    model, data, loss, dtype = made(case)
    model, data = model.to(dtype), tuple(t.to(dtype) if t.is_floating_point() else t for t in data)
    make = OPTIMIZERS[case["optimizer"]]
    one, other = (trained(model, data, loss, make, k, batch=case["batch"], steps=4) for k in (1, 2 + case["seed"] % 3))
    assert_equal(one, other)


@pytest.mark.slow
@settings(max_examples=300, **SETTINGS)
@given(cases())
def test_many_random_networks(case: dict[str, Any]) -> None:
    test_random_networks.hypothesis.inner_test(case)  # type: ignore[attr-defined]


# ---- waiting -----------------------------------------------------------------------------------------------
LATE = """declare i32 @usleep(i32)
define internal void @late(i64 %number) noinline {
entry:
  %short = trunc i64 %number to i32
  %delay = mul i32 %short, 150
  %ignored = call i32 @usleep(i32 %delay)
  ret void
}"""


@pytest.mark.parametrize("name", ["dense", "dropout and norm", "images", "recurrent", "words"])
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_threads_meet_wherever_they_have_to(name: str, backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two meetings each thread sleeps until those before it are through: what does not wait reads too early."""
    model, data, loss, make = case_of(name, torch.float32)
    one = trained(model, data, loss, make, 1, steps=3)
    compiled, met = jit.compiled, 0

    def delayed(text: str, target: jit.Target, quick: bool = False) -> bytes:
        nonlocal met
        number = "%turned" if backwards else "%begin"
        after = f"\\g<0>\n  call void @late(i64 {number})"
        text, count = re.subn(r"  call void @meet\([^\n]*", after, text)
        met = max(met, count)
        text = re.sub(r"(define void @run\([^\n]*\nentry:)", r"\1\n  %turned = sub i64 2, %begin", text)
        return compiled(text + LATE, target, quick)

    monkeypatch.setattr(jit, "compiled", delayed)
    assert_equal(one, trained(model, data, loss, make, 3, steps=3))
    assert met > 1


def test_a_meeting_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: threads that never meet but at the end of a step give other numbers."""
    model, data, loss, make = case_of("dense", torch.float32)
    one = trained(model, data, loss, make, 1, steps=3)
    compiled = jit.compiled

    def hurried(text: str, target: jit.Target, quick: bool = False) -> bytes:
        *calls, _ = re.findall(r"  call void @meet\([^\n]*\n", text)
        for call in calls:
            text = text.replace(call, "  call void @late(i64 %begin)\n", 1)
        return compiled(text + LATE, target, quick)

    monkeypatch.setattr(jit, "compiled", hurried)
    monkeypatch.setattr("chainrule.verbs.native.verify.compare", lambda *_: None)
    other = trained(model, data, loss, make, 2, steps=3)
    assert not np.array_equal(one[0], other[0])


def test_threads_do_not_meet_where_each_goes_on_with_its_own_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes go by samples, from layer to layer: threads meet where weights are updated, and around the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    data, met, meet = (torch.randn(64, 10), torch.randn(64, 5)), 0, sharing.Crew._meet

    def counted(crew: sharing.Crew) -> None:
        nonlocal met
        met += 1
        meet(crew)

    monkeypatch.setattr(sharing.Crew, "_meet", counted)
    native_engine(model, data, nn.MSELoss(), momentum(model.parameters()), threads=2)
    assert 2 <= met <= 6  # three products forward, two back, six updates, a loss


# ---- the threads themselves --------------------------------------------------------------------------------
def waiting() -> int:
    return sum(t.name == "chainrule step" for t in threading.enumerate())


def test_an_exception_on_the_way_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, loss, make = case_of("dense", torch.float32)
    right = trained(model, data, loss, make, 3)
    before, find = waiting(), team._worker
    found: list[team.Worker] = []

    def second_fails() -> team.Worker:
        if found:
            raise BackendError("no thread could be started")
        found.append(find())
        return found[0]

    with monkeypatch.context() as patch:
        patch.setattr(team, "_worker", second_fails)
        with pytest.raises(BackendError, match="no thread could be started"):
            trained(model, data, loss, make, 3)
    done = threading.Event()
    found[0].jobs.put((done.set, ()))  # comes to it only if the first call has returned
    assert done.wait(20)
    assert_equal(right, trained(model, data, loss, make, 3))
    assert waiting() == before


def test_threads_are_used_again() -> None:
    model, data, loss, make = case_of("dense", torch.float32)
    trained(model, data, loss, make, 3)
    before = waiting()
    for _ in range(5):
        trained(model, data, loss, make, 3)
    assert waiting() == before


def test_two_models_at_once() -> None:
    cases_of = [case_of("dense", torch.float32), case_of("wide", torch.float64)]
    alone = [trained(*case, 2, steps=40) for case in cases_of]
    together: list[Any] = [None, None]

    def work(k: int) -> None:
        together[k] = trained(*cases_of[k], 2, steps=40)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for a, b in zip(alone, together, strict=True):
        assert_equal(a, b)


def _in_a_child(queue: Any) -> None:
    model, data, loss, make = case_of("dense", torch.float32)
    queue.put(trained(model, data, loss, make, 2)[0].tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    model, data, loss, make = case_of("dense", torch.float32)
    right = trained(model, data, loss, make, 2)[0].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == right
    child.join(20)
    assert child.exitcode == 0


def test_threads_rest_once_a_run_is_over() -> None:
    model, data, loss, make = case_of("dense", torch.float32)
    trained(model, data, loss, make, 2)
    sleep(0.05)
    begin, used = monotonic(), os.times()
    sleep(0.3)
    now = os.times()
    assert (now.user + now.system) - (used.user + used.system) < 0.5 * (monotonic() - begin)


class Machine:
    """A clock, and compiled code that takes some time by it: ``seconds`` of a step by the number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.ran = seconds, 0.0, []

    def enter(self, address: int, place: int, crew: int, first: int, end: int) -> None:
        if first == 0:
            ctypes.c_int64.from_address(place + 8 * meetings.BEGIN).value = 1
            self.now += self.seconds[crew] * ctypes.c_int64.from_address(address + 24).value
            self.ran.append((crew, first, end))


def test_one_thread_goes_on_alone_where_others_are_kept_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({2: 1e-3, 1: 1.8e-3})
    monkeypatch.setattr(team, "perf_counter", lambda: machine.now)
    numbers = (ctypes.c_int64 * 7)(*[0, 0, 0, 10])
    free, steady = (team.Team(machine.enter, 2, None, fixed) for fixed in (False, True))

    def share_of_two(run: team.Team, calls: int) -> float:
        machine.ran.clear()
        for _ in range(calls):
            run(ctypes.addressof(numbers))
        assert all((first, end) == (0, 2 // crew) or (first, end) == (0, 2) for crew, first, end in machine.ran)
        return sum(crew == 2 for crew, _, _ in machine.ran) / calls

    assert share_of_two(free, 2000) > 0.95
    machine.seconds = {2: 4e-3, 1: 1.8e-3}
    share_of_two(free, 100)
    assert share_of_two(free, 2000) < 0.05
    machine.seconds = {2: 1e-3, 1: 1.8e-3}
    share_of_two(free, 100)
    assert share_of_two(free, 2000) > 0.95
    machine.seconds = {2: 4e-3, 1: 1.8e-3}
    assert share_of_two(steady, 500) == 1.0


def test_one_thread_does_all_shares_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, loss, make = case_of("images", torch.float32)
    right = trained(model, data, loss, make, 1)
    run = team.Team.run
    for fewer in (1, 2):
        monkeypatch.setattr(team.Team, "run", lambda self, address, threads, k=fewer: run(self, address, threads - k))
        assert_equal(right, trained(model, data, loss, make, 3))


def test_no_further_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> team.Worker:
        raise BackendError("no thread could be started")

    monkeypatch.setattr(team, "_worker", none)
    machine = Machine({1: 1e-3})
    numbers = (ctypes.c_int64 * 7)(*[0, 0, 0, 10])
    team.Team(machine.enter, 4, None, False)(ctypes.addressof(numbers))
    assert machine.ran == [(1, 0, 4)]
    with pytest.raises(BackendError, match="no thread"):
        team.Team(machine.enter, 4, None)(ctypes.addressof(numbers))


# ---- how many ----------------------------------------------------------------------------------------------
def test_a_short_step_stays_on_one_thread() -> None:
    torch.manual_seed(0)
    small, large = nn.Linear(10, 5), nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 5))
    for model, width, expected in ((small, 10, 1), (large, 400, 4)):
        data = torch.randn(64, width), torch.randn(64, 5)
        engine = native_engine(model, data, nn.MSELoss(), momentum(model.parameters()), threads=1)
        assert Threads(4, exact=False).of(engine.first.graph) == expected  # type: ignore[union-attr]
        assert Threads(3).of(engine.first.graph) == 3  # type: ignore[union-attr]


def test_fit_takes_a_number_of_threads(tmp_path: Any) -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 5))
    data = torch.randn(100, 10), torch.randn(100, 5)

    def run(epochs: int, **how: Any) -> tuple[cr.FitResult, nn.Module]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.Adam(model.parameters())
        generator = torch.Generator().manual_seed(0)
        return cr.fit(
            model, data, nn.MSELoss(), optimizer, epochs=epochs, batch_size=16, generator=generator, **how
        ), model

    (one, a), (two, b) = run(4, threads=1), run(4, threads=2)
    assert "2 threads" in two.reason and "threads" not in one.reason
    assert one.step_loss == two.step_loss
    run(2, threads=2, save_dir=tmp_path, save_every=0.0)
    resumed, c = run(4, threads=3, save_dir=tmp_path, resume=True)
    assert resumed.resumed
    for parameter, *others in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert all(torch.equal(parameter, other) for other in others)


@pytest.mark.parametrize("threads", [0, -1, True, 2.0, "2"])
def test_no_number_of_threads(threads: Any) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(BackendError, match="threads="):
        cr.fit(
            model,
            (torch.randn(8, 2), torch.randn(8, 1)),
            nn.MSELoss(),
            momentum(model.parameters()),
            epochs=1,
            threads=threads,
        )


def test_threads_of_torch_are_not_ours() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(BackendError, match="native"):
        cr.fit(
            model, (torch.randn(8, 2), torch.randn(8, 1)), nn.MSELoss(), momentum(model.parameters()), epochs=1, threads=2,
            backend="torch",
        )  # fmt: skip


def test_what_is_too_long_for_several_threads_runs_on_one() -> None:
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(nn.Linear(10, 33), nn.Tanh(), nn.Linear(33, 5)),
        (torch.randn(17, 10), torch.randn(17, 5)),
    )
    traced = native_engine(model, data, nn.MSELoss(), momentum(model.parameters()), threads=1).traced  # type: ignore[union-attr]
    assert traced.rule is not None
    rates = traced.rule.rates
    one, three = (programs.emit(traced.graph, traced.batch, rates, None, (), jit.host(), threads=k)[0] for k in (1, 3))
    assert len(one) < len(three)
    assert programs.build(traced.graph, traced.batch, rates, threads=3, longest=len(three)).threads == 3
    assert programs.build(traced.graph, traced.batch, rates, threads=3, longest=len(one)).threads == 1
    with pytest.raises(BackendError, match="long to compile"):
        programs.build(traced.graph, traced.batch, rates, threads=3, longest=len(one) - 1)
