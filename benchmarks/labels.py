"""Small random networks: wherever a moment is called exact, it is held against draws.

Run: python -m benchmarks.labels [count] [--first SEED] [--draws 500]

Widths are 2 to 4 units, so that what holds for wide layers only is off by far. Values and cotangents of every node of
a random chain of layers, activations, sums, products, slices, norms, pools and lookups; a moment that is called exact
may lie five standard errors from the mean over redrawn weights (there are thousands of them). Printed are those that
lie farther, and how many of all moments are called exact.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import chainrule as cr
from chainrule.backends.torch import compile
from chainrule.frontends.torch import seeded
from chainrule.interpreters.differentiate import vjp_all
from chainrule.ir import Graph, Node, TensorType, constant
from chainrule.verbs.field_samples import redraw
from chainrule.verbs.fields import Program

_Map = Callable[[torch.Tensor], torch.Tensor]
_UNARY: tuple[_Map, ...] = (
    torch.relu, torch.tanh, F.gelu, torch.abs, torch.square, lambda x: F.leaky_relu(x, 0.2), torch.sin,
    lambda x: torch.clamp(x, -1, 1), torch.sigmoid, lambda x: x * torch.sigmoid(x), lambda x: torch.exp(0.3 * x),
    lambda x: 2 * x + 1, lambda x: -x, lambda x: x**3, torch.sign, F.softplus, lambda x: x * x.detach(),
    lambda x: F.prelu(x, x.new_tensor([0.3])),
)  # fmt: skip
_BINARY: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    torch.add, torch.mul, torch.maximum, torch.minimum, lambda a, b: a - 0.5 * b, lambda a, b: a * torch.sigmoid(b),
    lambda a, b: torch.where(torch.arange(a.shape[-1]) % 2 == 0, a, b), lambda a, b: torch.where(a > b, a, 0.2 * b),
    torch.hypot, lambda a, b: a @ b.transpose(-1, -2) @ a,
)  # fmt: skip


def _row(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(1) if x.dim() == 2 else x


_ALONG: tuple[_Map, ...] = (
    lambda x: x.flip(-1), lambda x: torch.roll(x, 1, -1), lambda x: x - x.mean(-1, keepdim=True),
    lambda x: torch.softmax(x, -1), lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: x.cumsum(-1),
    lambda x: x - x.mean(0, keepdim=True), lambda x: torch.cat([x[..., :2], x[..., 1:]], -1)[..., : x.shape[-1]],
    lambda x: F.pad(x, (1, 0))[..., : x.shape[-1]], lambda x: x.amax(-1, keepdim=True) + x,
    lambda x: F.normalize(x, dim=-1), lambda x: torch.sort(x, -1)[0],
    lambda x: x.sum(-1, keepdim=True) * torch.ones_like(x), lambda x: F.max_pool1d(_row(x), 3, 1, 1).reshape(x.shape),
    lambda x: F.avg_pool1d(_row(x), 3, 1, 1).reshape(x.shape), lambda x: F.dropout(x, 0.3),
    lambda x: x.prod(-1, keepdim=True) + 0 * x, lambda x: torch.logsumexp(x, -1, keepdim=True) * torch.ones_like(x),
    lambda x: x[..., torch.tensor([0] * x.shape[-1])], lambda x: x.repeat_interleave(2, -1)[..., : x.shape[-1]],
)  # fmt: skip
_LOSSES: tuple[_Map, ...] = (
    lambda o: o.sum(), lambda o: (o**2).mean(), lambda o: (o * torch.arange(o.shape[-1])).sum(),
    lambda o: F.cross_entropy(o.reshape(-1, o.shape[-1]), torch.zeros(o.numel() // o.shape[-1], dtype=torch.long)),
)  # fmt: skip
_STEPS = ("linear", "linear", "unary", "unary", "binary", "binary", "along", "again", "parameter")


class RandomChain(nn.Module):
    """A lookup, a layer or a convolution, and two to five steps, each of the last value or of an earlier one."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        n = int(rng.integers(2, 5))
        self.kind = str(rng.choice(["table", "linear", "convolution"]))
        self.first: nn.Module = {
            "table": lambda: nn.Embedding(6, n, padding_idx=0),
            "linear": lambda: nn.Linear(3, n, bias=False),
            "convolution": lambda: nn.Conv1d(2, n, 3, padding=1),
        }[self.kind]()
        self.layers, self.parts = nn.ModuleList(), nn.ParameterList()
        self.plan: list[tuple[str, int, int, int]] = []
        self.loss = _LOSSES[int(rng.integers(len(_LOSSES)))]
        for _ in range(int(rng.integers(2, 6))):
            step, own, other = str(rng.choice(_STEPS)), int(rng.integers(100)), int(rng.integers(100))
            if step == "linear" or (step == "again" and not len(self.layers)):
                step, number = "linear", len(self.layers)
                self.layers.append(nn.Linear(n, n, bias=bool(rng.integers(2))))
            elif step == "parameter":
                number = len(self.parts)
                self.parts.append(nn.Parameter(0.5 * torch.randn(n)))
            else:
                number = int(rng.integers(1000))
            self.plan.append((step, number, own, other))

    def example(self) -> torch.Tensor:
        """One batch."""
        if self.kind == "table":
            return torch.randint(0, 6, (2, 3))
        return torch.randn(3, 3).double() if self.kind == "linear" else torch.randn(2, 2, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        values = [h.transpose(1, 2) if self.kind == "convolution" else h]
        for step, number, own, other in self.plan:
            a = values[-1] if own % 3 else values[own % len(values)]
            b = values[other % len(values)]
            if step in ("linear", "again"):
                values.append(self.layers[number % len(self.layers)](a))
            elif step == "unary":
                values.append(_UNARY[number % len(_UNARY)](a))
            elif step == "binary":
                values.append(_BINARY[number % len(_BINARY)](a, b))
            elif step == "along":
                values.append(_ALONG[number % len(_ALONG)](a))
            else:
                values.append(a * self.parts[number] if other % 2 else a + self.parts[number])
        return self.loss(values[-1])


@dataclass(frozen=True)
class Wrong:
    """A moment that is called exact and is not."""

    seed: int
    way: str
    op: str
    power: int
    predicted: float
    measured: float
    error: float
    why: str


def wrong(seed: int, draws: int = 500) -> tuple[list[Wrong], int, int]:
    """(what is called exact and is not, moments that are called exact, all of them) of one random network."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = RandomChain(np.random.default_rng(seed)).double()
        trace = cr.case(model, (model.example(),), "model").trace
        run = Program.of(trace).run()
    values = [n for n in trace.graph.nodes if isinstance(n.type, TensorType) and n.type.is_float and not n.is_leaf]
    leaves = list(dict.fromkeys(trace.parameters.values()))
    _, flowing = vjp_all([trace.loss], [constant(1.0, trace.loss.type.dtype)], leaves, whole=True)
    back = {n: flowing[n] for n in [*values, *leaves] if n in flowing and n is not trace.loss}
    items: list[tuple[str, Node, Node, Any]] = [("forward", n, n, run.value(n)) for n in values]
    items += [("backward", n, b, run.cotangent(n)) for n, b in back.items()]
    items = [i for i in items if i[3] is not None]
    every = 2 * len(items)
    items = [i for i in items if "exact" in (i[3].kind, i[3].kind_of_mean)]
    program = Graph(trace.graph.inputs, tuple(i[2] for i in items))
    compiled = compile(program)
    table = np.empty((draws, len(items), 2))
    for k in range(draws):
        with seeded(k + 1_000_003):  # another stream than that of the weights
            tensors = redraw(trace, k + 1)
            outputs = compiled(*(tensors[i] for i in program.inputs))
        for j, o in enumerate(outputs):
            o = o.detach().double()
            table[k, j] = float(o.mean()), float((o * o).mean())
    found, exact = [], 0
    for j, (way, node, _, field) in enumerate(items):
        for power, kind, predicted in (
            (1, field.kind_of_mean, field.mean_value),
            (2, field.kind, field.mean_square),
        ):
            if kind != "exact":
                continue
            exact += 1
            column = table[:, j, power - 1]
            measured, error = float(column.mean()), float(column.std()) / np.sqrt(draws)
            heavy = error > 0.1 * float(np.abs(column).mean())  # too few draws to say
            if not heavy and abs(measured - predicted) > 5 * error + 1e-6 * max(abs(predicted), 1e-3):
                found.append(Wrong(seed, way, node.op.name, power, predicted, measured, error, field.why))
    return found, exact, every


def main() -> None:
    """Prints what is wrong, and the counts."""
    parser = argparse.ArgumentParser(description="moments that are called exact against draws of small networks")
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--draws", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bad = exact = every = 0
    for seed in range(arguments.first, arguments.first + arguments.count):
        found, called, all_of_them = wrong(seed, arguments.draws)
        bad, exact, every = bad + len(found), exact + called, every + all_of_them
        for w in found:
            print(f"seed {w.seed} {w.way:8} {w.op:16} E[x^{w.power}] {w.predicted:.5g}, drawn {w.measured:.5g} "
                  f"+- {w.error:.2g}: {w.why}", flush=True)  # fmt: skip
    print(f"{arguments.count} networks, {every} moments, {exact} of them called exact, {bad} of these wrong")


if __name__ == "__main__":
    main()
