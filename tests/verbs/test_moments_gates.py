"""Gates of states, values of common sources, and attention over many positions, against redrawn networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.verbs.field_samples import sample
from chainrule.verbs.fields import Program


class _Blend(nn.Module):
    """z * h + (1 - z) * n with h a gated value itself: four values that no other path reaches, none of them normal."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new, self.old, self.open = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.old(x)) * torch.sigmoid(self.open(x))
        n, z = torch.tanh(self.new(x)), torch.sigmoid(self.gate(x))
        return n + z * (h - n)


def _made(model: nn.Module, batch, loss):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cr.case(model(), batch(), loss).trace


def test_a_gate_between_two_values_is_one_function():
    """The value at once, and the gradients of all four layers, within 3 standard errors or 4 %."""
    trace = _made(_Blend, lambda: (torch.randn(32, 64), torch.randn(32, 64)), nn.MSELoss())
    run, measured = Program.of(trace).run(), sample(trace, 48)
    (blend,) = [call.outputs[0] for call in trace.calls if call.path == ""] or [trace.loss.inputs[0]]
    leaves = [leaf for name, leaf in trace.parameters.items() if name.endswith("weight")]
    cases = [(run.value(blend), measured.forward[blend])]
    cases += [(run.cotangent(leaf), measured.backward[leaf]) for leaf in leaves]
    for predicted, squares in cases:
        logs = np.log(squares)
        assert abs(predicted.log_mean - logs.mean()) <= max(0.04, 3 * logs.std() / np.sqrt(len(logs)))


def test_a_gru_keeps_its_mean_square():
    """Sums over steps that share their biases are left out: 15 %, against a factor of 4.7 with independent gates."""
    core = lambda: nn.GRU(16, 64, batch_first=True)  # noqa: E731
    trace = _made(
        lambda: _First(core()), lambda: (torch.randn(8, 12, 16), torch.randint(0, 64, (8,))), nn.CrossEntropyLoss()
    )
    run, measured = Program.of(trace).run(), sample(trace, 16)
    node = next(call.outputs[0] for call in trace.calls if call.path == "core")
    assert abs(run.value(node).log_mean - np.log(measured.forward[node]).mean()) < 0.15


class _First(nn.Module):
    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.core(x)[0][:, -1]


class _Shared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.mean(-1, keepdim=True), x.sum(-2, keepdim=True)
        return x * torch.sin(a) * b


def test_a_product_of_values_with_common_sources_says_that_it_is_approximate():
    model = nn.Sequential(nn.Linear(16, 16), _Shared())
    trace = cr.case(model, (torch.randn(8, 16), torch.randn(8, 16)), nn.MSELoss()).trace
    found = Program.of(trace).run().value(trace.loss.inputs[0])
    assert found.kind != "exact"


class _Attend(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(32, 96), nn.Linear(32, 32), causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, 2, 16).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


def test_attention_over_more_than_1024_positions_is_predicted_and_approximate():
    """Three draws: mixed values within 0.3 of the logarithm, gradients of queries, keys and values within 0.5."""
    for causal in (True, False):
        trace = _made(
            lambda c=causal: _Attend(c), lambda: (torch.randn(1, 1100, 32), torch.randn(1, 1100, 32)), nn.MSELoss()
        )
        run, measured = Program.of(trace).run(), sample(trace, 3)
        node = next(n for n in trace.graph.nodes if n.op.name == "attention")
        assert run.value(node).kind == "approximate"
        assert abs(run.value(node).log_mean - np.log(measured.forward[node]).mean()) < 0.3
        q, k, v = (run.cotangent(i) for i in node.inputs[:3])
        for predicted, i in zip((q, k, v), node.inputs[:3], strict=True):
            assert abs(predicted.log_mean - np.log(measured.backward[i]).mean()) < 0.5, (causal, predicted.why)


def test_a_gate_between_a_layer_and_given_data():
    class Highway(nn.Module):
        def __init__(self):
            super().__init__()
            self.h, self.t = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            for layer in (self.h, self.t):
                nn.init.normal_(layer.weight, std=64**-0.5)

        def forward(self, x):
            t = torch.sigmoid(self.t(x))
            return t * torch.relu(self.h(x)) + (1 - t) * x

    torch.manual_seed(0)
    x = torch.randn(64, 64)
    drawn = torch.stack([Highway()(x).square().mean().detach() for _ in range(8)])
    # Data taken at their mean, 0, would leave out half of it.
    assert cr.moments(Highway(), x)[""].second == pytest.approx(float(drawn.mean()), rel=0.05)
