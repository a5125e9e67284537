"""Recurrent layers of torch as declared ops: bits, gradients, second derivatives, packed sequences.

torch is the other side of every comparison: eager execution for bits, autograd for derivatives; torch has no second
derivative of its fused kernels, so that of a loop written out by hand is used.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import chainrule as cr
from benchmarks import models
from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch import trace

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three layers": {"num_layers": 3, "dropout": 0.3},
    "both ways": {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "batch_first": True},
    "no bias": {"num_layers": 2, "bias": False, "bidirectional": True},
    "all dropped": {"num_layers": 2, "dropout": 1.0},
}
LENGTHS = torch.tensor([4, 2, 5])


class Layer(nn.Module):
    """A recurrent layer on its input, with given first states or without, packed or not."""

    def __init__(self, kind: str, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(4, 3, **options)
        self.packed, self.first = packed, bool(options.get("batch_first"))
        self.start = nn.Parameter(torch.randn(self.layer.num_layers * (1 + self.layer.bidirectional), 3, 3))

    def forward(self, x: torch.Tensor) -> Any:
        if self.packed:
            given = pack_padded_sequence(x, LENGTHS, batch_first=self.first, enforce_sorted=False)
            out, state = self.layer(given)
            return pad_packed_sequence(out, batch_first=self.first, padding_value=0.5)[0], state
        start = (self.start, self.start.sin()) if isinstance(self.layer, nn.LSTM) else self.start
        return self.layer(x, start)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_bits_and_gradients(kind: str, options: str, train: bool, packed: bool) -> None:
    given = OPTIONS[options]
    shape = (3, 5, 4) if given.get("batch_first") else (5, 3, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    row = models.measured(kind, lambda: (Layer(kind, packed, **given), x), models.Mode(train))
    assert not row.error
    assert not row.opaque
    assert row.bits
    assert row.float64 <= models.FLOAT64
    assert row.float32 <= models.FLOAT32


def by_hand(x: torch.Tensor, weights: list[torch.Tensor], mode: str) -> torch.Tensor:
    """One layer, one direction, step by step: what torch's kernels compute, in ops that autograd differentiates twice."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = c = x.new_zeros(x.shape[1], w_hh.shape[1])
    outputs = []
    for step in x:
        given, moved = step @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if mode == "LSTM":
            i, f, g, o = (given + moved).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif mode == "GRU":
            (r, z, n), (mr, mz, mn) = given.chunk(3, 1), moved.chunk(3, 1)
            n = (n + (r + mr).sigmoid() * mn).tanh()
            h = n + (z + mz).sigmoid() * (h - n)
        else:
            h = (given + moved).tanh()
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_second_derivatives_are_those_of_the_loop(kind: str) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, kind)(2, 2).double()
    weights = [p.detach().clone() for p in layer.parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    function = getattr(torch, "rnn_tanh" if kind == "RNN" else kind.lower())

    def ours(w_hh: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(1, 2, 2, dtype=torch.float64)
        given = [weights[0], w_hh, *weights[2:]]
        out = function(x, (h, h) if kind == "LSTM" else h, given, True, 1, 0.0, True, False, False)[0]
        return (out**3).sum()

    expected = torch.autograd.functional.hessian(
        lambda w: (by_hand(x, [weights[0], w, *weights[2:]], kind) ** 3).sum(), weights[1]
    )
    torch.testing.assert_close(cr.hessian(ours)(weights[1]), expected, rtol=1e-10, atol=1e-12)


def test_a_long_sequence_is_not_unrolled() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 3, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    case = cr.case(Long(), torch.randn(500, 2, 4), objective=models.objective)
    assert sum(case.trace.graph.op_counts().values()) < 50
    assert case.step.source.count("torch._VF.gru") == 1


def test_lengths_that_are_inputs() -> None:
    layer = nn.GRU(4, 3).double()

    def run(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        out, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(out)[0]

    x = torch.randn(5, 3, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedOpError, match="size depends on values"):
        trace(run, (x, LENGTHS))
    traced = trace(run, (x, LENGTHS), strict=False, follow=True)
    assert not traced.opaque
    assert any(g.expected == sorted(LENGTHS.tolist(), reverse=True) for g in traced.guards)


def test_states_of_a_call_without_gradients_are_cut() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.LSTM(4, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y, _ = self.frozen(x)
            return self.head(y)

    x = torch.randn(5, 3, 4)
    row = models.measured("cut", lambda: (Cut(), x))
    assert row.right
    assert len(cr.case(Cut(), x, objective=models.objective).trace.unreached) == 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_step_leaves_torchs_own_tape_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(8, 16, 2, batch_first=True)
    x, y = torch.randn(4, 6, 8), torch.randn(4, 6, 16)

    def objective(model: Any, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0])[0], batch[1])

    step = cr.case(model, (x, y), objective=objective, compile=True).step
    objective(model, (x, y)).backward()
    for _ in range(3):
        _, grads = step(dict(model.named_parameters()), (x, y))
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)


def test_a_parameter_that_is_called_like_what_nobody_reads() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._ = nn.Parameter(torch.randn(4))
            self.rnn = nn.LSTM(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0] * self._

    torch.manual_seed(0)
    model, batch = Named(), (torch.randn(3, 2, 4), torch.randn(3, 2, 4))
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    _, grads = cr.case(model, batch, nn.MSELoss()).step(dict(model.named_parameters()), batch)
    torch.testing.assert_close(grads["_"], model._.grad)
