"""Single native calls on torch's own memory: compile_step and compile_forward."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import chainrule as cr
from chainrule.errors import BackendError, ModelError, UnsupportedOpError
from chainrule.verbs.native import native_engine

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 5)).double()


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(7 + k % 2, 10).double(), torch.randn(7 + k % 2, 5).double()) for k in range(count)]


def eager_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    value = nn.functional.mse_loss(model(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


def assert_equal(model: nn.Module, reference: nn.Module, optimizer: Any, other: Any) -> None:
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    ours, theirs = optimizer.state_dict()["state"], other.state_dict()["state"]
    for k, held in theirs.items():
        for name, value in held.items():
            if value is not None:
                torch.testing.assert_close(ours[k][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_objects_are_up_to_date_after_every_call(name: str) -> None:
    model, reference = network(), network()
    optimizer, other = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](reference.parameters())
    step = cr.compile_step(model, nn.MSELoss(), optimizer)
    for k, (x, y) in enumerate(batches(8)):
        if k == 4:  # a schedule, and torch itself in between
            for group in (*optimizer.param_groups, *other.param_groups):
                group["lr"] *= 0.5
            eager_step(model, optimizer, x, y)
            eager_step(reference, other, x, y)
        value = step(x, y)
        torch.testing.assert_close(value, eager_step(reference, other, x, y), rtol=1e-10, atol=1e-12)
        assert_equal(model, reference, optimizer, other)
    assert step.backend == "native"


def test_what_changes_between_calls_is_noticed() -> None:
    model, reference = network(), network()
    optimizer, other = OPTIMIZERS["momentum"](model.parameters()), OPTIMIZERS["momentum"](reference.parameters())
    step = cr.compile_step(model, nn.MSELoss(), optimizer)
    (x, y), *_ = batches(1)

    def both(change: Any = None) -> None:
        if change is not None:
            change(model, optimizer)
            change(reference, other)
        step(x, y)
        eager_step(reference, other, x, y)
        assert_equal(model, reference, optimizer, other)

    def other_momentum(_: Any, o: Any) -> None:
        o.param_groups[0]["momentum"] = 0.5

    def other_memory(m: Any, _: Any) -> None:
        m[0].weight.data = m[0].weight.data.clone() * 2

    def loaded(_: Any, o: Any) -> None:
        o.load_state_dict(copy.deepcopy(o.state_dict()))

    def other_parameter(m: Any, o: Any) -> None:
        with torch.no_grad():
            new = nn.Parameter(m[2].bias.detach() + 1)
        o.state.pop(m[2].bias)
        o.param_groups[0]["params"][3] = new
        m[2].bias = new

    def frozen(m: Any, _: Any) -> None:
        m[0].weight.requires_grad_(False)

    def trained_again(m: Any, _: Any) -> None:
        m[0].weight.requires_grad_(True)

    def other_activation(m: Any, _: Any) -> None:
        m[1] = nn.LeakyReLU(0.5)

    def other_setting(m: Any, _: Any) -> None:
        m[1].negative_slope = 0.1

    def hooked(m: Any, _: Any) -> None:
        m[1].register_forward_hook(lambda module, given, result: 2 * result)

    both()
    for change in (other_momentum, other_memory, loaded, other_parameter, frozen):
        both(change)
        both()
    compiled = len(step._run.entries)
    both(trained_again)
    assert len(step._run.entries) == compiled  # what was compiled before is used again
    for change in (other_activation, other_setting, hooked):
        both(change)
        both()
    assert step.backend == "native"


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = network(), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


def test_what_a_program_reads_is_noticed() -> None:
    model, reference = Scaled(), Scaled()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, reference))
    weight = [1.0]

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return weight[0] * (prediction - target).square().mean()

    step = cr.compile_step(model, loss, optimizer)
    (x, y), *_ = batches(1)
    for scale, factor in [(1.0, 1.0), (3.0, 1.0), (3.0, 0.5), (1.0, 1.0)]:
        model.scale = reference.scale = scale
        weight[0] = factor
        for _ in range(2):
            value = step(x, y)
            other.zero_grad()
            expected = loss(reference(x), y)
            expected.backward()
            other.step()
            torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    assert step.backend == "native"


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_hooks_of_all_modules_are_noticed(backend: str) -> None:
    model = network()
    (x, y), *_ = batches(1)
    step, forward = cr.compile_step(model, nn.MSELoss(), backend=backend), cr.compile_forward(model)

    def same() -> torch.Tensor:
        expected = model(x)
        torch.testing.assert_close(forward(x), expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(step(x, y), nn.functional.mse_loss(expected, y), rtol=1e-12, atol=1e-14)
        return expected

    before = same()
    hook = register_module_forward_hook(lambda module, _, out: 2 * out if isinstance(module, nn.Tanh) else None)
    try:
        assert not torch.equal(before, same())
    finally:
        hook.remove()
    assert torch.equal(before, same())


def test_gradients_without_an_optimizer() -> None:
    model, reference = network(), network()
    step = cr.compile_step(model, nn.MSELoss())
    for x, y in batches(4):
        value = step(x, y)
        reference.zero_grad()
        expected = nn.functional.mse_loss(reference(x), y)
        expected.backward()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
        for a, b in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-14)
        model.zero_grad()
    assert step.backend == "native"


def test_losses_are_tensors_of_their_own() -> None:
    model = network()
    step = cr.compile_step(model, nn.MSELoss(), OPTIMIZERS["momentum"](model.parameters()))
    (x, y), *_ = batches(1)
    losses = [step(x, y) for _ in range(300)]
    assert len({v.item() for v in losses}) == 300


def test_what_is_not_native_runs_in_torch_and_says_why() -> None:
    model = network()
    step = cr.compile_step(model, nn.MSELoss(), torch.optim.Adagrad(model.parameters()))
    (x, y), *_ = batches(1)
    assert step(x, y) > step(x, y)
    assert step.backend == "torch" and "Adagrad" in step.reason
    with pytest.raises(UnsupportedOpError, match="Adagrad"):
        cr.compile_step(model, nn.MSELoss(), torch.optim.Adagrad(model.parameters()), backend="native")(x, y)
    with pytest.raises(BackendError, match="unknown back end"):
        cr.compile_step(model, nn.MSELoss(), backend="cuda")


# ---- the forward pass --------------------------------------------------------------------------------------
MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 5)), (10,)),
    "softmax": (lambda: nn.Sequential(nn.Linear(10, 7), nn.LayerNorm(7), nn.GELU(), nn.Softmax(1)), (10,)),
    "images": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
               (1, 8, 8)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)), (10,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_forward(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    forward = cr.compile_forward(model)
    for count in (1, 5, 5, 16):
        x = torch.randn(count, *shape).double()
        torch.testing.assert_close(forward(x), model(x).detach(), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # parameters are read where they are
    torch.testing.assert_close(forward(x), model(x).detach(), rtol=1e-10, atol=1e-12)


def test_forward_notices_what_changes() -> None:
    model, x = Scaled(), torch.randn(3, 10).double()
    forward = cr.compile_forward(model)
    for scale, activation in [(1.0, nn.Tanh()), (3.0, nn.Tanh()), (3.0, nn.ReLU()), (1.0, nn.ReLU())]:
        model.scale, model.inner[1] = scale, activation
        for _ in range(2):
            torch.testing.assert_close(forward(x), model(x).detach(), rtol=1e-12, atol=1e-12)


def test_forward_does_not_read_behind_the_tensors() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    forward = cr.compile_forward(model)
    room = torch.full((64,), float("nan")).double()
    for p in model.parameters():
        held = torch.full((p.numel() + 16,), float("nan")).double()
        held[8 : 8 + p.numel()] = p.detach().flatten()
        p.data = held[8 : 8 + p.numel()].view(p.shape)
    room[8:17] = torch.arange(9.0)
    x = room[8:17].view(3, 3)
    torch.testing.assert_close(forward(x), model(x).detach(), rtol=1e-12, atol=1e-14)


def test_forward_refusals() -> None:
    with pytest.raises(ModelError, match="takes a torch module"):
        cr.compile_forward(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedOpError):
        cr.compile_forward(nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6)))(torch.randn(5, 10))
    x = torch.ones(2)
    assert torch.equal(x, cr.compile_forward(nn.Sequential(nn.ReLU()))(x))


# ---- several at once ---------------------------------------------------------------------------------------
def test_two_threads_train_two_models() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(80, 10), torch.randn(80, 5)
    order = np.tile(np.arange(80), 30)

    def train(width: int, losses: dict[int, np.ndarray]) -> None:
        generator = torch.Generator().manual_seed(width)
        model = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 5))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        engine = native_engine(model, (x[:8], y[:8]), nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        losses[width] = engine.run((x, y), order, 8, np.full(300, 0.1))

    alone: dict[int, np.ndarray] = {}
    together: dict[int, np.ndarray] = {}
    for width in (12, 17, 12):
        train(width, alone)
    threads = [threading.Thread(target=train, args=(width, together)) for width in (12, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[w], together[w]) for w in (12, 17))


def test_one_stream_of_draws_for_all_kinds_of_batches() -> None:
    """The number of a step decides its masks, whatever the sizes of the batches before it; torch's seed decides all."""
    x = torch.ones(4096, 1)

    def losses(sizes: list[int], seed: int) -> list[float]:
        model = nn.Sequential(nn.Dropout(0.3), nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            model[1].weight.fill_(1.0)
        torch.manual_seed(seed)
        step = cr.compile_step(model, lambda o, _: o.mean(), torch.optim.SGD(model.parameters(), lr=0.0))
        found = [step(x[:n], x[:n]).item() for n in sizes]
        assert step.backend == "native"
        return found

    whole, mixed = losses([4096] * 4, 3), losses([4096, 1000, 4096, 1000], 3)
    assert whole[0] == mixed[0] and whole[2] == mixed[2]
    assert len(set(whole)) == 4 and mixed[1] != mixed[3]
    assert losses([4096] * 4, 3) == whole != losses([4096] * 4, 4)


def test_state_that_fit_left_behind_is_gone_on_with() -> None:
    """What fit writes back lies in memory as torch's own does, however the compiled loop had it."""
    model, reference = network(), network()
    optimizer, other = OPTIMIZERS["adam"](model.parameters()), OPTIMIZERS["adam"](reference.parameters())
    x, y = torch.randn(64, 10).double(), torch.randn(64, 5).double()
    for m, o, backend in ((model, optimizer, "native"), (reference, other, "torch")):
        cr.fit(m, (x, y), nn.MSELoss(), o, epochs=2, batch_size=16, shuffle=False, backend=backend)
    assert all(t.is_contiguous() for held in optimizer.state.values() for t in held.values())
    step = cr.compile_step(model, nn.MSELoss(), optimizer, backend="native")
    torch.testing.assert_close(step(x, y), eager_step(reference, other, x, y), rtol=1e-9, atol=1e-12)
    assert_equal(model, reference, optimizer, other)


class Masked(nn.Module):
    """Masks among the inputs: a byte each in torch's memory."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inner = nn.Linear(5, columns).double()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y.masked_fill(mask, -2.0) * mask.logical_not() + torch.where(mask, y, 1.0)


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 16, 33, 600])
@pytest.mark.parametrize("rows", [1, 3, 8, 17])
def test_masks_among_the_inputs(rows: int, columns: int) -> None:
    model = Masked(columns)
    reference, forward = copy.deepcopy(model), cr.compile_forward(model)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, reference))
    step = cr.compile_step(model, nn.MSELoss(), optimizer, backend="native")
    for _ in range(3):
        x, mask = torch.randn(rows, 5).double(), torch.rand(rows, columns) > 0.5
        torch.testing.assert_close(forward(x, mask), model(x, mask).detach(), rtol=1e-10, atol=1e-12)
        value = step((x, mask), torch.zeros(rows, columns).double())
        other.zero_grad()
        expected = reference(x, mask).square().mean()
        expected.backward()
        other.step()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
