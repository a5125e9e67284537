"""Every planted fault is named with its place, healthy networks are silent, and nothing of the user's changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from benchmarks.fault_cases.sound import TABLE
from benchmarks.fault_cases.table import Size
from benchmarks.faults import examined, judged
from chainrule.cli import main
from chainrule.verbs.kinds import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")


@pytest.mark.parametrize("name", TABLE.faults)
def test_fault(name: str) -> None:
    fault = TABLE.faults[name]
    result = examined(fault.build(Size(1)))
    assert judged(fault, result) == (True, True), str(result)
    assert result.findings[0].fix and result.findings[0].measured
    assert set(fault.kinds) <= set(KINDS)


@pytest.mark.parametrize("name", TABLE.sound)
def test_healthy(name: str) -> None:
    result = examined(TABLE.sound[name].build(Size(1)))
    assert result.ok, str(result)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list:
    return [
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
        [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()],
        {k: [v.clone() if isinstance(v, torch.Tensor) else v for v in s.values()] for k, s in optimizer.state.items()},
        [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
    ]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)  # type: ignore[union-attr]
    return a == b


@pytest.mark.parametrize("name", ["F21", "F34", "F50", "F59", "F60", "F65", "H09", "H12", "H30"])
def test_nothing_changes(name: str) -> None:
    row = TABLE.faults.get(name) or TABLE.sound[name]
    setup = row.build(Size(0))
    setup.train(3)  # so that there are gradients, running statistics and a state of the optimizer
    assert setup.optimizer is not None
    before = state(setup.model, setup.optimizer)
    examined(setup)
    assert same(before, state(setup.model, setup.optimizer))


def test_training_after_it_is_byte_equal() -> None:
    losses = []
    for look in (False, True):
        setup = TABLE.sound["H30"].build(Size(0))
        if look:
            examined(setup)
        losses.append(setup.train(50))
    assert losses[0] == losses[1]


# ---- problem 7.15 --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("activation", "moving"),
    [
        (nn.ReLU, ["4.bias"]),
        (nn.Tanh, ["4.bias"]),
        (nn.Sigmoid, ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_which_parameters_ever_move_from_zero(activation: type[nn.Module], moving: list[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    batch = torch.randn(16, 4), torch.randn(16, 2)
    result = cr.diagnose(net, batch, F.mse_loss)
    assert result.findings[0].kind == "symmetric"
    said = result.findings[0].measured
    assert ("only 4.bias can ever move" in said) == (len(moving) == 1), said
    # The same by training: which parameters are not zero after 300 steps.
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(net(batch[0]), batch[1]).backward()
        optimizer.step()
    assert [n for n, p in net.named_parameters() if bool(p.any())] == moving


# ---- more of the vocabulary ----------------------------------------------------------------------------------
def kinds(result: cr.verbs.diagnose.DiagnoseResult) -> list[str]:  # type: ignore[name-defined]
    return [f.kind for f in result.findings if f.severity != "info"]


class Mixed(nn.Module):
    """Leaks between samples by a softmax over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.b(h * torch.softmax(h, dim=0))


def test_batch_leak() -> None:
    torch.manual_seed(0)
    result = cr.diagnose(Mixed(), (torch.randn(12, 6), torch.arange(12) % 3), F.cross_entropy)
    assert kinds(result) == ["batch_leak"] and "softmax" in result.findings[0].where, str(result)


class Sequence(nn.Module):
    """Attention over tokens, causal or not."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.table, self.head, self.causal = nn.Embedding(20, 16), nn.Linear(16, 20), causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.table(x)[:, None]
        return self.head(F.scaled_dot_product_attention(h, h, h, is_causal=self.causal)[:, 0])


@pytest.mark.parametrize("causal", [True, False])
def test_future_leak(causal: bool) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (8, 9))
    result = cr.diagnose(
        Sequence(causal), (tokens[:, :-1], tokens[:, 1:]), lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())
    )
    assert kinds(result) == ([] if causal else ["future_leak"]), str(result)


def test_refusals_of_torch_are_findings() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(6, 4)
    assert kinds(cr.diagnose(net, (x, torch.arange(6)), F.cross_entropy)) == ["target_range"]
    assert kinds(cr.diagnose(net, (x, torch.full((6, 3), 2.0)), F.binary_cross_entropy_with_logits)) == ["target_range"]
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert kinds(cr.diagnose(normed, (x[:1], torch.tensor([1])), F.cross_entropy)) == ["batch_too_small"]


@pytest.mark.parametrize(
    ("batch", "loss", "said"),
    [
        ((torch.randn(6, 4), torch.randn(6, 3)), nn.MSELoss(reduction="none"), "not a scalar"),
        ((torch.randn(6, 4), torch.rand(6)), F.cross_entropy, "raised"),
        ((torch.randn(6, 5), torch.arange(6) % 3), F.cross_entropy, "mat1 and mat2"),
        ((torch.randn(0, 4), torch.arange(0)), F.cross_entropy, "empty"),
        ((torch.randn(6, 4, device="meta"), torch.arange(6) % 3), F.cross_entropy, "raised"),
    ],
)
def test_bad_input_is_one_message(batch: tuple, loss: object, said: str) -> None:
    net = nn.Linear(4, 3)
    before = net.weight.detach().clone()
    with pytest.raises(cr.errors.ModelError, match=said) as raised:
        cr.diagnose(net, batch, loss)
    assert "required:" in str(raised.value)
    assert torch.equal(net.weight, before) and net.weight.grad is None


class Complex(nn.Module):
    """Complex weights, a real output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.cfloat) @ self.weight).abs()


@pytest.mark.parametrize(
    ("net", "loss", "optimizer", "said"),
    [
        (nn.Linear(4, 3), F.mse_loss, torch.optim.Adam, "optimizer cannot be one.*Adam"),
        (nn.Linear(4, 3), F.mse_loss, "adam", "optimizer cannot be one.*'adam'"),
        (nn.Linear(4, 3), "mse", None, "loss cannot be called.*'mse'"),
        (nn.Linear(4, 3), 3.0, None, "loss cannot be called"),
        (Complex(), F.mse_loss, None, "complex.*weight"),
        (nn.LazyLinear(3), F.mse_loss, None, "without a shape.*weight"),
        (nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d()), F.mse_loss, None, r"without a shape.*1\.weight"),
    ],
)
def test_bad_parts_are_one_message(net: nn.Module, loss: object, optimizer: object, said: str) -> None:
    batch = torch.randn(6, 4), torch.randn(6, 3)
    with pytest.raises(cr.errors.ModelError, match=f"(?s){said}") as raised:
        cr.diagnose(net, batch, loss, optimizer)  # type: ignore[arg-type]
    assert all(part in str(raised.value) for part in ("given:", "required:", "instead:"))


def test_explain_knows_every_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["chainrule", "explain", "loss_pairing"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and "ln(e + K - 1) - 1" in capsys.readouterr().out
    assert len(KINDS) == 39


def test_terminal_output_is_short() -> None:
    from chainrule.render.diagnosis import diagnosis_lines

    for name in ("F01", "F05", "F09", "F21", "F34", "F59", "H18"):
        row = TABLE.faults.get(name) or TABLE.sound[name]
        lines = diagnosis_lines(examined(row.build(Size(0))), width=100)
        assert len(lines) <= 25 and all(len(line) <= 100 for line in lines), "\n".join(lines)
