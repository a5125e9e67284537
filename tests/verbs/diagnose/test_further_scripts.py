"""Scripts with faults that the table does not hold, and their twins without: one sentence of a script each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.of_script import diagnose_script, script_case
from chainrule.verbs.diagnose.result import DiagnoseResult

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
"""
LOOP = """
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    x, y = torch.randn(32, 10), torch.randint(4, (32,))
    {loss}
    opt.zero_grad()
    loss.backward()
    {between}
    opt.step()
"""
NET = "net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))\n"
PICKED = "loss = {sign}F.log_softmax(net(x), 1)[torch.arange(32), y].mean()"
BY_HAND = "loss = -torch.log(torch.softmax(net(x), {dim})[torch.arange(32), y] + 1e-9).mean()"
L2 = "loss = F.cross_entropy(net(x), y) + {factor} * sum(p.pow(2).sum() for p in net.parameters())"
GAN = """
G = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
og, od = torch.optim.Adam(G.parameters(), 2e-4), torch.optim.Adam(D.parameters(), 2e-4)
real, fake = torch.ones(32, 1), torch.zeros(32, 1)
for _ in range(5):
    og.zero_grad()
    od.zero_grad()
    sample = G(torch.randn(32, 8)){detach}
    ld = F.binary_cross_entropy_with_logits(D(torch.randn(32, 2) + 2), real)
    (ld + F.binary_cross_entropy_with_logits(D(sample), fake)).backward()
    od.step()
    F.binary_cross_entropy_with_logits(D(G(torch.randn(32, 8))), real).backward()
    og.step()
"""
TEACHER = """
teacher = nn.Linear(10, 5)
net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 5))
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    x = torch.randn(32, 10)
    with torch.no_grad():
        t = teacher(x).softmax(1)
    opt.zero_grad()
    F.kl_div(F.{given}(net(x), 1), t, reduction="batchmean").backward()
    opt.step()
"""
FEATURES = """
enc, head = nn.Sequential(nn.Linear(10, 32), nn.ReLU()), nn.Linear(32, 4)
opt = torch.optim.Adam([*{trained}head.parameters()], lr=1e-3)
for _ in range(5):
    x, y = torch.randn(32, 10), torch.randint(4, (32,))
    with torch.no_grad():
        h = enc(x)
    opt.zero_grad()
    F.cross_entropy(head(h), y).backward()
    opt.step()
"""
LM = """
class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(60, 32), nn.Linear(32, 60)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.b = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    def forward(self, i):
        n = i.shape[1]
        mask = torch.triu(torch.full((n, n), float("-inf")), 1) if {causal} else None
        return self.h(self.b(self.e(i), mask=mask))
net = LM()
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    d = torch.randint(60, (8, 17))
    opt.zero_grad()
    F.cross_entropy(net(d[:, :-1]).reshape(-1, 60), d[:, 1:].reshape(-1)).backward()
    opt.step()
"""
LSTM = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 24, batch_first={first}), nn.Linear(24, 4)
    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    opt.zero_grad()
    F.cross_entropy(net(torch.randn(32, 15, 6)), torch.randint(4, (32,))).backward()
    opt.step()
"""
GRAPH = """
class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
    def forward(self, x, adj):
        return self.b(torch.relu(self.a({mixed})))
net = GCN()
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
x, y, adj = torch.randn(40, 8), torch.randint(3, (40,)), torch.eye(40) + (torch.rand(40, 40) < 0.1) / 5
for _ in range(5):
    opt.zero_grad()
    F.cross_entropy(net(x, adj), y).backward()
    opt.step()
"""
ATTENTION = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
    def forward(self, x):
        w = (self.q(x) @ self.k(x).transpose(-2, -1) / 4).softmax(dim={dim})
        return self.o(w @ self.v(x)).mean(1)
net = Net()
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    opt.zero_grad()
    F.cross_entropy(net(torch.randn(32, 9, 16)), torch.randint(4, (32,))).backward()
    opt.step()
"""
BOUND = """
class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return {factor} * g * x
square = Half.apply  # bound before anybody looks
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 4)
        self.square = square
    def forward(self, x):
        return self.b(self.square(self.a(x)))
net = Net()
"""
PLAIN = "loss = F.cross_entropy(net(x), y)"


def loop(loss: str, between: str = "pass", net: str = NET) -> str:
    return net + LOOP.format(loss=loss, between=between)


# kind, where -> the script with the fault and without it
PAIRS: dict[str, tuple[str, str, str, str]] = {
    "a loss made of numbers": (
        "loss_detached", "item", loop("loss = torch.tensor(F.cross_entropy(net(x), y).item(), requires_grad=True)"),
        loop(PLAIN),
    ),
    "labels from one": ("target_range", "the loss", loop("loss = F.cross_entropy(net(x), y + 1)"), loop(PLAIN)),
    "likelihood without minus": ("sign", "log_softmax", loop(PICKED.format(sign="")), loop(PICKED.format(sign="-"))),
    "softmax over samples": ("loss_axis", "softmax", loop(BY_HAND.format(dim=0)), loop(BY_HAND.format(dim=1))),
    "attention over queries": ("loss_axis", "softmax", ATTENTION.format(dim=-2), ATTENTION.format(dim=-1)),
    "penalty by hand": ("regularizer", "net.0, net.2", loop(L2.format(factor=10.0)), loop(L2.format(factor=1e-4))),
    "smoothing of everything": (
        "regularizer", "cross_entropy_loss", loop("loss = F.cross_entropy(net(x), y, label_smoothing=1.0)"),
        loop("loss = F.cross_entropy(net(x), y, label_smoothing=0.1)"),
    ),
    "clipping by value": (
        "clipping", "the training loop", loop(PLAIN, "nn.utils.clip_grad_value_(net.parameters(), 1e-7)"),
        loop(PLAIN, "nn.utils.clip_grad_value_(net.parameters(), 1.0)"),
    ),
    "sample not detached": ("accumulating", "G.0, G.2", GAN.format(detach=""), GAN.format(detach=".detach()")),
    "probabilities to kl_div": (
        "loss_pairing", "softmax", TEACHER.format(given="softmax"), TEACHER.format(given="log_softmax")
    ),
    "encoder without gradients": (
        "cut", "enc.0", FEATURES.format(trained="enc.parameters(), *"), FEATURES.format(trained="")
    ),
    "no causal mask": ("future_leak", "scaled_dot_product_attention", LM.format(causal=0), LM.format(causal=1)),
    "time first": ("batch_leak", "lstm", LSTM.format(first=False), LSTM.format(first=True)),
    "samples mixed by themselves": (
        "batch_leak", "matmul", GRAPH.format(mixed="(x @ x.T).softmax(1) @ x"), GRAPH.format(mixed="adj @ x")
    ),
    "bound apply": (
        "wrong_backward", "Half", loop(PLAIN, net=BOUND.format(factor=1)), loop(PLAIN, net=BOUND.format(factor=2))
    ),
}  # fmt: skip


def diagnosed(tmp_path: Path, text: str) -> DiagnoseResult:
    script = tmp_path / "train.py"
    script.write_text(HEAD + text)
    return diagnose_script(script)


@pytest.mark.parametrize("name", PAIRS)
def test_found_and_silent(tmp_path: Path, name: str) -> None:
    kind, where, faulty, sound = PAIRS[name]
    serious = [f for f in diagnosed(tmp_path, faulty).findings if f.severity != "info"]
    assert [f.kind for f in serious] == [kind], serious
    assert where in f"{serious[0].where} {serious[0].source}"
    result = diagnosed(tmp_path, sound)
    assert result.ok, str(result)


def test_initialisation_is_not_made_again(tmp_path: Path) -> None:
    """A parameter that the loss reads itself was written by torch.nn.init: replaying must not draw it again."""
    script = tmp_path / "train.py"
    script.write_text(HEAD + loop("loss = F.cross_entropy(net(x), y) + 1e-4 * net[0].weight.square().sum()"))
    case = script_case(script, [])
    before = [p.detach().clone() for p in case.model.parameters()]
    assert case.objective is not None
    first, second = (case.objective(case.model, case.batch) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(p, q) for p, q in zip(case.model.parameters(), before, strict=True))


RENEWED = """
import copy
meta = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
for _ in range(5):
    net = {made}
    opt = torch.optim.SGD(net.parameters(), lr=1e-2)
    {zero}
    F.cross_entropy(net(torch.randn(32, 10)), torch.randint(4, (32,))).backward()
    opt.step()
"""


@pytest.mark.parametrize("zero", ["opt.zero_grad()", "pass"])
@pytest.mark.parametrize(
    "made", ["copy.deepcopy(meta)", "nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))"]
)
def test_gradients_of_another_model_are_not_left_over(tmp_path: Path, made: str, zero: str) -> None:
    result = diagnosed(tmp_path, RENEWED.format(made=made, zero=zero))
    assert result.ok, str(result)
    assert any("made anew" in note for note in result.notes)
    forgotten = diagnosed(tmp_path, loop(PLAIN).replace("opt.zero_grad()", "pass"))
    assert [f.kind for f in forgotten.findings if f.severity == "error"] == ["accumulating"]


SWALLOWED = """
from pathlib import Path
net = nn.Linear(10, 4)
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
done = 0
{loop}
    try:
        x, y = torch.randn(32, 10), torch.randint(4, (32,))
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    except{caught}:
        done += 1
        Path(__file__).with_suffix(".txt").write_text(str(done))
"""


@pytest.mark.parametrize("caught", ["", " BaseException"])
@pytest.mark.parametrize("way", ["for _ in range(100000):", "while True:"])
def test_a_script_that_catches_everything_ends(tmp_path: Path, way: str, caught: str) -> None:
    tracing = sys.gettrace()
    result = diagnosed(tmp_path, SWALLOWED.format(loop=way, caught=caught))
    assert result.ok and sys.gettrace() is tracing
    assert int((tmp_path / "train.txt").read_text()) <= 3


ORDER = """
net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(5):
    x, y = torch.randn(32, 10), torch.randint(4, (32,))
    {first}
    loss = F.cross_entropy(net(x), y)
    {second}
    opt.step()
    {third}
    loss.backward()
"""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_step_before_backward_is_named(tmp_path: Path, at: int) -> None:
    parts = ["opt.zero_grad()" if k == at else "pass" for k in range(3)]
    result = diagnosed(tmp_path, ORDER.format(first=parts[0], second=parts[1], third=parts[2]))
    (found,) = result.findings
    assert (found.kind, found.severity) == ("accumulating", "error") and "before loss.backward()" in found.cause
    assert "train.py:" in found.source


def test_a_step_before_the_loop_is_allowed(tmp_path: Path) -> None:
    head = NET + "torch.optim.Adam(net.parameters(), lr=1e-3).step()\nnet(torch.ones(2, 10))\n"
    result = diagnosed(tmp_path, loop(PLAIN, net=head))
    assert result.ok, str(result)
    never = NET + "opt = torch.optim.SGD(net.parameters(), 0.1)\nwhile True:\n    opt.step()\n"
    with pytest.raises(ModelError, match="no loss.backward"):
        diagnosed(tmp_path, never)
