"""``monitor``: numbers against direct computation, findings at their step, and training that is not touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from chainrule.errors import ModelError


def net(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(width, 3))


def train(
    model: nn.Module, steps: int, optimizer: Any = None, zero: bool = True, clip: float | None = None
) -> list[float]:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-2)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x, y = torch.randn(12, 8, generator=generator), torch.randint(3, (12,), generator=generator)
        if zero:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_numbers_are_those_of_the_step() -> None:
    model, seen = net(), {}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    z = model[0].register_forward_hook(lambda m, a, out: seen.update(z=out.detach().clone()))
    before = [p.detach().clone() for p in model.parameters()]
    with cr.monitor(model, optimizer, every=1) as m:
        train(model, 1, optimizer)
    z.remove()
    entry = m.history[0]
    assert entry["layers"]["0"]["forward"] == pytest.approx(float(seen["z"].square().mean().sqrt()), rel=1e-5)
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert entry["grad_norm"] == pytest.approx(float(grads.norm()), rel=1e-5)
    change = 0.1 * model[0].weight.grad.norm() / before[0].norm()
    assert entry["updates"]["0.weight"] == pytest.approx(float(change), rel=1e-4)
    assert entry["batch"] == 12 and entry["layers"]["1"]["dead"] == pytest.approx(
        float((seen["z"] <= 0).all(0).float().mean())
    )


@pytest.mark.parametrize("every", [1, 7])
def test_training_is_byte_equal(every: int, tmp_path: Path) -> None:
    runs = []
    for watched in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        if watched:
            with cr.monitor(model, optimizer, every=every, path=tmp_path / "log.jsonl", record=tmp_path / "crash.pt"):
                losses = train(model, 50, optimizer)
        else:
            losses = train(model, 50, optimizer)
        runs.append((losses, [p.detach().clone() for p in model.parameters()], torch.get_rng_state(), hooks(model)))
    (a, p, r, h), (b, q, s, k) = runs
    assert a == b and all(map(torch.equal, p, q)) and torch.equal(r, s) and h == k
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == list(range(0, 50, every))


def hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]


def kinds(m: Any) -> list[str]:
    return [f.kind for f in m.findings]


def test_healthy_training_has_no_findings() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with cr.monitor(model, optimizer, every=5) as m:
        train(model, 60, optimizer)
    assert not m.findings
    assert all(e["noise_scale"] is None or e["noise_scale"] >= 0 for e in m.history)


def test_forgotten_zero_grad_and_clipping_are_found() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with cr.monitor(model, optimizer, every=2) as m:
        train(model, 6, optimizer, zero=False)
    assert kinds(m) == ["accumulating"] and "(step 2)" in m.findings[0].where
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-1)
    with cr.monitor(model, optimizer, every=2) as m:
        train(model, 6, optimizer, clip=1e-6)
    assert "clipping" in kinds(m)


def test_accumulated_micro_batches_are_no_leftovers() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with cr.monitor(model, optimizer, every=1) as m:
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(3):
                F.cross_entropy(model(torch.randn(12, 8)), torch.randint(3, (12,))).backward()
            optimizer.step()
    assert not m.findings and m.history[0]["batch"] == 36


def test_vanishing_is_seen_at_the_first_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Sigmoid())), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with cr.monitor(model, optimizer) as m:
        train(model, 2, optimizer)
    assert kinds(m) == ["vanishing"] and m.findings[0].where == "0 (step 0)"


def test_dead_units_are_seen_when_they_die() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with cr.monitor(model, optimizer, every=1) as m:
        train(model, 3, optimizer)
        with torch.no_grad():
            model[0].bias.fill_(-100.0)
        train(model, 3, optimizer)
    assert "dead" in kinds(m) and next(f for f in m.findings if f.kind == "dead").where == "1 (step 4)"


SCRIPT = """
import sys, torch
from torch import nn
import chainrule as cr
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
with cr.monitor(net, optimizer, every=5, record=sys.argv[1]) as m:
    for step in range(20):
        x, y = torch.rand(16, 4), torch.rand(16, 1)
        if step == 13:
            x[2, 1] = -7.0
        optimizer.zero_grad()
        loss = ((net(x.sqrt()) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
for f in m.findings:
    print(f.kind, f.where)
"""


def test_flight_recorder(tmp_path: Path) -> None:
    script, crash = tmp_path / "train.py", tmp_path / "crash.pt"
    script.write_text(SCRIPT)
    run = subprocess.run([sys.executable, script, crash], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("nonfinite") and "(step 13)" in run.stdout
    held = torch.load(crash, weights_only=True)
    assert held["step"] == 13 and held["batch"][0].isnan().sum() == 1
    replay = subprocess.run(
        [sys.executable, "-m", "chainrule", "diagnose", crash, "--json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert replay.returncode == 1, replay.stderr
    found = json.loads(replay.stdout)["findings"][0]
    assert (found["kind"], found["where"]) == ("nonfinite", "batch x[2, 1]")


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    from chainrule.verbs.monitor.recorder import read

    other = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(2)}, other)
    with pytest.raises(ModelError, match="not a recording"):
        read(other)
    other.write_bytes(b"no file of torch")
    with pytest.raises(ModelError, match="cannot be read"):
        read(other)


def test_what_is_asked_of_the_caller() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ModelError, match="needs a module"):
        cr.monitor(lambda x: x, optimizer)  # type: ignore[arg-type]
    for other in (None, torch.optim.Adam, "adam"):
        with pytest.raises(ModelError, match="needs the optimizer") as raised:
            cr.monitor(model, other)  # type: ignore[arg-type]
        assert "required:" in str(raised.value) and "given:" in str(raised.value)
    with pytest.raises(ModelError, match="every so many"):
        cr.monitor(model, optimizer, every=0)


def test_noise_scale_is_the_same_whether_gradients_are_kept_or_zeroed_in_place() -> None:
    """The gradient of the step before is kept by reference; where zero_grad() writes over it, by a copy."""
    found = []
    for none in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        generator = torch.Generator().manual_seed(1)
        with cr.monitor(net, optimizer, every=2) as m:
            for _ in range(13):
                x = torch.randn(64, 8, generator=generator)
                optimizer.zero_grad(set_to_none=none)
                nn.functional.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
                optimizer.step()
        found.append([e["noise_scale"] for e in m.history])
    kept, copied = found
    assert sum(n is not None for n in kept) >= 5
    assert copied[2:] == kept[2:]  # the first pair shows that gradients are written over


@pytest.mark.parametrize("grad", [False, True])
def test_an_evaluation_inside_of_the_loop_is_no_part_of_the_batch(grad: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with cr.monitor(model, optimizer, every=1) as m:
        for _ in range(3):
            model.eval()
            with torch.set_grad_enabled(grad):
                model(torch.randn(500, 8))
            model.train()
            train(model, 1, optimizer)
    assert [entry["batch"] for entry in m.history] == [12, 12, 12]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_other_hooks_and_monitors_on_the_same_optimizer(every: int) -> None:
    model, seen = net(), []
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with cr.monitor(model, optimizer, every=every) as outer, cr.monitor(model, optimizer, every=2) as inner:
        handle = optimizer.register_step_post_hook(lambda *_: seen.append(1))
        train(model, 7, optimizer)
    handle.remove()
    assert len(seen) == 7 and len(outer.history) == len(range(0, 7, every)) and len(inner.history) == 4
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
