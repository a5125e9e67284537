"""The callbacks of trainers see what a monitor in a loop of one's own sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr

transformers = pytest.importorskip("transformers")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def rows(bad: bool = False) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    made = [{"x": torch.randn(6, generator=g), "labels": torch.tensor(k % 3)} for k in range(40)]
    if bad:
        made[20]["x"][0] = float("nan")
    return made


def trained(tmp_path: Path, callback: object, data: list[dict[str, torch.Tensor]]) -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        logging_steps=2, save_strategy="no", disable_tqdm=True, seed=0, max_grad_norm=0.0, dataloader_pin_memory=False,
    )  # fmt: skip
    seen: list[dict[str, float]] = []

    class Seen(transformers.TrainerCallback):
        def on_log(self, args: object, state: object, control: object, logs: dict, **given: object) -> None:
            seen.append(dict(logs))

    callbacks = [callback, Seen()] if callback is not None else []
    trainer = transformers.Trainer(net, arguments, train_dataset=data, callbacks=callbacks)  # type: ignore[arg-type]
    trainer.train()
    net.logged = seen  # type: ignore[assignment]
    return net


def test_trainer(tmp_path: Path) -> None:
    from chainrule.verbs.monitor.huggingface import MonitorCallback

    callback = MonitorCallback(every=2, path=tmp_path / "log.jsonl")
    watched, plain = trained(tmp_path, callback, rows()), trained(tmp_path, None, rows())
    assert all(torch.equal(p, q) for p, q in zip(watched.parameters(), plain.parameters(), strict=True))
    assert callback.monitor is not None and callback.monitor.findings == []
    assert [entry["step"] for entry in callback.monitor.history] == [0, 2, 4, 6, 8]
    assert {"body.0", "body.2"} <= set(callback.monitor.history[0]["layers"])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5
    assert any("monitor/grad_norm" in entry for entry in watched.logged)  # type: ignore[union-attr]
    assert not any(m._forward_hooks for m in watched.modules())


def test_trainer_finds_the_step(tmp_path: Path) -> None:
    from chainrule.verbs.monitor.huggingface import MonitorCallback

    callback = MonitorCallback(every=1)
    trained(tmp_path, callback, rows(bad=True))
    assert callback.monitor is not None
    assert [f.kind for f in callback.monitor.findings] == ["nonfinite"]


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, optimizer = Net(), None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net, optimizer = accelerator.prepare(net, optimizer)
    with cr.monitor(net, optimizer, every=1) as m:
        for k in range(6):
            with accelerator.accumulate(net):
                batch = {"x": torch.randn(8, 6), "labels": torch.arange(8) % 3}
                accelerator.backward(net(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
            assert len(m.history) == (k + 1) // 2
    assert m.findings == [] and {"body.0", "body.2"} <= set(m.history[0]["layers"])


def test_lightning(tmp_path: Path) -> None:
    try:
        import lightning.pytorch as lightning
    except ImportError:
        lightning = pytest.importorskip("pytorch_lightning")
    from chainrule.verbs.monitor.lightning import MonitorCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    callback = MonitorCallback(every=2)
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(rows(), batch_size=4))  # type: ignore[arg-type]
    assert [entry["step"] for entry in callback.monitors[0].history] == [0, 2, 4]
    assert callback.findings == []


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, 1e-3), lambda p: torch.optim.LBFGS(p, 0.1, 4)])
@pytest.mark.parametrize("by_name", [False, True])
def test_closures(make: object, by_name: bool) -> None:
    """The gradients are made inside of the step; nothing is left over from the one before."""

    def run(watched: bool) -> tuple[nn.Module, list[float]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = make(net.parameters())  # type: ignore[operator]
        x, y = torch.randn(32, 4), torch.randn(32, 1)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            return loss

        def train() -> None:
            for _ in range(4):
                optimizer.step(closure=closure) if by_name else optimizer.step(closure)

        if not watched:
            train()
            return net, []
        with cr.monitor(net, optimizer, every=1) as m:
            train()
        assert m.findings == []
        return net, [entry["grad_norm"] for entry in m.history]

    (seen, norms), (plain, _) = run(True), run(False)
    assert all(torch.equal(p, q) for p, q in zip(seen.parameters(), plain.parameters(), strict=True))
    assert len(norms) == 4 and all(n > 0 for n in norms)
