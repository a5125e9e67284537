"""What a planned module returns, where its backward pass may start, and buffers that change under it."""

from collections import OrderedDict, namedtuple
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from chainrule.verbs.checkpoint.plan import planned
from chainrule.verbs.checkpoint.structure import taken_apart

Pair = namedtuple("Pair", ["mean", "hidden"])


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor
    extra: object = None


class Cache:
    def __init__(self, keys):
        self.layers = [{"keys": keys}]
        self.name = "cache"


class Body(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2)) for _ in range(4)))
        self.wrap = wrap

    def forward(self, x):
        h = self.layers(x)
        return self.wrap(h, h.square().mean())


WRAPS = {
    "named tuple": lambda h, m: Pair(m, h),
    "dataclass": lambda h, m: Output(m, h),
    "ordered": lambda h, m: OrderedDict(loss=m, logits=h),
    "nested": lambda h, m: [h, {"loss": m, "same": (h, 3, None)}],
    "cache": lambda h, m: Output(m, h, Cache(h * 2)),
    "distribution": lambda h, m: torch.distributions.Normal(h, 1.0 + m),
}


def least(model, x):
    """The model with the least memory that a plan reaches."""
    program = cr.plan(model, x).program
    lowest, most = program.frontier.plans[-1].peak, program.frontier.plans[0].peak
    b = min(int(lowest * 1000 / most + 1) / 1000, 1.0)
    return cr.checkpoint(model, x, plan=planned(program, x, None, None, b, b))


@pytest.mark.parametrize("kind", WRAPS)
def test_the_models_own_kind_of_output_with_its_gradients(kind):
    torch.manual_seed(0)
    model, x = Body(WRAPS[kind]), torch.randn(64, 8)
    small = least(model, x)

    def both(run, use):
        model.zero_grad()
        torch.manual_seed(1)
        out = run(x)
        structure, tensors = taken_apart(out)
        sum(t.square().mean() for t in tensors[use]).backward()
        return type(out), structure.names, [p.grad.clone() for p in model.parameters()]

    count = len(taken_apart(model(x))[1])
    said = pytest.warns(UserWarning, match="planned for all outputs")
    with said if kind in ("dataclass", "ordered", "nested", "cache") else nullcontext():
        for use in (slice(0, 1), slice(0, count), slice(count - 1, count)):
            (kind_1, names_1, ours), (kind_2, names_2, eager) = both(small, use), both(model, use)
            assert kind_1 is kind_2 and names_1 == names_2
            for a, b in zip(ours, eager, strict=True):
                torch.testing.assert_close(a, b)


class Queue(nn.Module):
    """Reads a buffer in what is recomputed, and writes it afterwards."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))
        self.register_buffer("mean", torch.ones(8))

    def forward(self, x):
        y = self.body[:2](x) * self.mean.clone()
        with torch.no_grad():
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return self.body[2:](y.tanh()).tanh()


def test_a_buffer_is_read_as_it_was_when_its_reader_runs_again():
    torch.manual_seed(0)
    model, x = Queue(), torch.randn(256, 8)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    small = least(model, x)
    assert small.plan.recompute_fraction > 0
    found = []
    for run in (model, small):
        model.load_state_dict(start)
        model.zero_grad()
        for _ in range(3):
            run(x).square().mean().backward()
        found.append([*(p.grad.clone() for p in model.parameters()), model.mean.clone()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [6, 3], batch_first=True)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        scores = self.head(hidden.tanh()).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, torch.tensor([[1, 2], [3, 0]]), torch.tensor([6, 3]), torch.tensor([2, 1]))


def test_ops_that_look_at_values_are_planned_with_values():
    torch.manual_seed(0)
    model, x = Packed(), torch.randn(2, 6, 4)
    state = torch.get_rng_state()
    small = least(model, x)
    assert torch.equal(state, torch.get_rng_state())
    found = []
    for run in (model, small):
        model.zero_grad()
        run(x).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_an_embedding_with_padding_alone():
    model = nn.Embedding(9, 4, padding_idx=2)
    small = cr.checkpoint(model, torch.tensor([[1, 2, 8]]), budget=1.0)
    assert torch.equal(small(torch.tensor([[1, 2, 8]])), model(torch.tensor([[1, 2, 8]])))


def test_ten_steps_with_dropout_and_statistics_are_eagers():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)) for _ in range(4)]
    model, x = nn.Sequential(*layers).double(), torch.randn(64, 8, dtype=torch.float64)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    small = least(model, x)
    assert small.plan.recompute_fraction > 0
    found = []
    for run in (model, small):
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        torch.manual_seed(5)
        for _ in range(10):
            optimizer.zero_grad()
            run(x).square().mean().backward()
            optimizer.step()
        found.append({k: v.clone() for k, v in model.state_dict().items()})
    for k, v in found[0].items():  # float64: ten steps of Adam amplify a last bit by less than 1e4
        torch.testing.assert_close(found[1][k], v, rtol=1e-11, atol=1e-12)
