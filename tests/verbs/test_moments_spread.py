"""Bands, gradients of sums, tied tables, gates and recurrent layers: predictions against redrawn networks."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import digamma, polygamma
from torch import nn

import chainrule as cr
from chainrule.ir import pairs as pair
from chainrule.ir.field import Field
from chainrule.ir.logarithms import log_shortfall, log_variance
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.spread import independent_terms
from chainrule.verbs.field_samples import sample
from chainrule.verbs.fields import Program

SEEDS = 48


def both(model: nn.Module, batch, loss=None):
    """(prediction, measurement, trace) of a case that is made with seed 0."""
    trace = cr.case(model, batch, loss or nn.CrossEntropyLoss()).trace
    return Program.of(trace).run(), sample(trace, SEEDS), trace


def inside(predicted: Field, squares: np.ndarray) -> float:
    """The share of draws in the band."""
    low, high = predicted.band
    return float(np.mean((squares >= low) & (squares <= high)))


def off(predicted: Field, squares: np.ndarray) -> float:
    """How far the mean logarithm is off, beyond 3 standard errors of the measured one."""
    logs = np.log(squares)
    return max(0.0, abs(predicted.log_mean - logs.mean()) - 3 * logs.std() / np.sqrt(len(logs)))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def test_bands_of_weight_and_bias_gradients_hold_most_draws():
    def make():
        layers = [m for k in range(4) for m in (nn.Linear(32 if k == 0 else 64, 64), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(64, 10)), (torch.randn(16, 32), torch.randint(0, 10, (16,)))

    run, measured, trace = both(*seeded(make))
    shares = [inside(run.cotangent(leaf), measured.backward[leaf]) for leaf in trace.parameters.values()]
    assert 0.8 <= np.mean(shares) <= 0.98  # nine of ten asked


def test_independent_terms_are_those_of_the_matrices():
    """Exchangeable samples times positions on a ring, and times positions pair by pair, against plain matrices."""
    rng = np.random.default_rng(0)
    for last in (Axis(5, 5), Axis(5, None)):
        axes = [Axis(6, 0), last]
        tables, matrices = [], []
        for _ in range(2):
            table = rng.uniform(0.05, 0.1, (2, last.classes))
            if last.lags is None:
                table[:, :] = (table.reshape(2, 5, 5) + table.reshape(2, 5, 5).swapaxes(1, 2)).reshape(2, 25)
                grid = lambda t: t.reshape(5, 5)  # noqa: E731
            else:
                apart = np.abs(np.subtract.outer(range(5), range(5)))
                ring = np.minimum(apart, 5 - apart)
                table[:, 3:] = table[:, [2, 1]]  # distances 3 and 4 are 2 and 1 on the ring
                grid = lambda t, ring=ring: t[ring]  # noqa: E731
            table[0, last.same] += 1.0
            tables.append(table)
            same, other = grid(table[0]), grid(table[1])
            matrices.append(np.kron(np.eye(6), same) + np.kron(np.ones((6, 6)) - np.eye(6), other))
        m, k = matrices
        expected = np.trace(m @ k) ** 2 / np.trace(m @ k @ m @ k)
        assert np.isclose(independent_terms(tables, axes), expected, rtol=1e-9)


def test_recurrent_layers_are_known():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.out = nn.RNN(8, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.core(x)[0][:, -1])

    run, measured, _ = both(*seeded(lambda: (Net(), (torch.randn(8, 6, 8), torch.randint(0, 4, (8,))))))
    for node, squares in measured.forward.items():
        if squares.any():  # the state begins at zero
            assert run.value(node).known and off(run.value(node), squares) < 0.05, node.op.name


def test_tables_by_distance_have_the_mean_square():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.m, self.out = nn.BatchNorm2d(16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.n(self.a(x)))
            return self.out(torch.relu(h + self.m(self.b(h))).mean((2, 3)))

    run, measured, _ = both(*seeded(lambda: (Block(), (torch.randn(16, 3, 6, 6), torch.randint(0, 4, (16,))))))
    checked = 0
    for node, squares in measured.backward.items():
        field = run.cotangent(node)
        if node.op.name != "convolution":
            continue
        table = field.pairs
        for k, axis in enumerate(field.axes):
            table = pair.resolved_one(table, k, axis).mean(axis=k, keepdims=True)
        assert np.isclose(table.item(), field.mean_square, rtol=0.02)
        assert off(field, squares) < 0.08
        checked += 1
    assert checked == 2


def test_the_own_score_of_a_tied_table():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm, self.mix = nn.Embedding(60, 64), nn.LayerNorm(64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.table(x)
            h = h + torch.tanh(self.mix(h))
            return nn.functional.linear(self.norm(h) * 0.125, self.table.weight).flatten(0, 1)

    run, measured, _ = both(*seeded(lambda: (Tied(), (torch.randint(0, 60, (6, 8)), torch.randint(0, 60, (48,))))))
    (node,) = [n for n in measured.forward if n.op.name == "linear" and n.shape[-1] == 60]
    assert run.value(node).spike is not None
    assert off(run.value(node), measured.forward[node]) < 0.03
    assert off(run.cotangent(node), measured.backward[node]) < 0.05


def test_a_gate_moves_with_both_of_its_factors():
    """What is inside of a norm before a gate sees the part of the cotangent along the value: twice the unrelated one."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = (nn.Linear(64, 64, bias=False) for _ in range(3))
            self.out = nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.out(self.a(h) * nn.functional.silu(self.b(h)))

    run, measured, _ = both(*seeded(lambda: (Gate(), (torch.randn(16, 64), torch.randint(0, 8, (16,))))))
    (node,) = [n for n in measured.backward if n.op.name == "mean"]
    assert off(run.cotangent(node), measured.backward[node]) < 0.2


def test_gradients_of_first_layers_sum_what_all_samples_have_in_common():
    """Scores that are too large pull every sample's cotangent along its value: sums over samples add that up."""

    def make():
        layers = [m for k in range(5) for m in (nn.Linear(32 if k == 0 else 96, 96), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(96, 10))
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1.414 / layer.in_features**0.5)
                nn.init.normal_(layer.bias, std=0.1)
        return model, (torch.randn(16, 32), torch.randint(0, 10, (16,)))

    run, measured, trace = both(*seeded(make))
    assert run.cotangent(trace.outputs[0]).drift > 0.2
    for name in ("0.weight", "0.bias", "4.bias"):
        leaf = trace.parameters[name]
        assert off(run.cotangent(leaf), measured.backward[leaf]) < 0.15, name


class Decaying(nn.Module):
    """Gates of time scales that differ much from unit to unit, met at two times."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.out = nn.Parameter(2.0 * torch.randn(64)), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (nn.functional.softplus(part + self.rate) for part in (x[:, 0], x[:, 1]))
        return self.out(torch.exp(-a) * b * x[:, 2])


def test_functions_of_units_that_differ_much_are_not_independent():
    """exp(-a) is small where b is large, since both follow the same parameter; independent factors are 3 times off."""
    model, batch = seeded(lambda: (Decaying(), (0.1 * torch.randn(16, 3, 64), torch.randint(0, 10, (16,)))))
    run, measured, trace = both(model, batch)
    product = next(n for n in trace.graph.nodes if n in measured.forward and n.op.name == "linear").inputs[0]
    assert off(run.value(product), measured.forward[product]) < 0.1


def test_positions_that_the_loss_ignores_have_no_cotangent():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.out = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.mix(self.table(x)))).flatten(0, 1)

    def make():
        labels = torch.randint(0, 50, (4, 6))
        labels[:, -1] = -100
        return Model(), (torch.randint(0, 50, (4, 6)), labels.flatten())

    run, _, trace = both(*seeded(make))
    for node in trace.graph.nodes:
        g = run.cotangent(node)
        if node.op.name == "linear" and g is not None:
            own = pair.resolved(g.pairs, g.axes)
            assert np.all(np.take(g.second, -1, axis=1) == 0) and np.all(np.take(own, -1, axis=1) == 0)


def test_logarithms_of_mean_squares_of_few_values():
    for relative in (1e-4, 0.02, 0.3, 1.0, 2.0):
        k = 1.0 / relative
        assert np.isclose(log_variance(relative), polygamma(1, k), rtol=1e-5)
        assert np.isclose(log_shortfall(relative), np.log(k) - digamma(k), rtol=1e-5)
    assert log_variance(0.0) == log_shortfall(0.0) == 0.0


def test_bands_of_a_stream_hold_most_cotangents():
    """A stream and its branches vary together, and so do the sizes that norms divide by, layer after layer."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n, self.a, self.b = nn.LayerNorm(48), nn.Linear(48, 96), nn.Linear(96, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b(torch.tanh(self.a(self.n(x))))

    def make():
        model = nn.Sequential(nn.Linear(8, 48), *(Block() for _ in range(6)), nn.LayerNorm(48), nn.Linear(48, 10))
        return model, (torch.randn(2, 8), torch.randint(0, 10, (2,)))

    run, measured, _ = both(*seeded(make))
    stream = [n for n in measured.backward if n.op.name == "add"]
    assert len(stream) == 6
    assert 0.87 <= np.mean([inside(run.cotangent(n), measured.backward[n]) for n in stream]) <= 0.98
    everything = [inside(run.cotangent(n), squares) for n, squares in measured.backward.items()]
    assert 0.845 <= np.mean(everything) <= 0.98
