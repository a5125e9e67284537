"""Emitted autograd functions against plain autograd and against what people write by hand.

    python -m benchmarks.autograd_code [--size small | large]

For each formula: the residuals chosen, the bytes that they and plain autograd keep (measured with saved-tensor hooks,
every storage once), multiplications of the backward pass beside those of the well-known hand-written one, and the time
of forward and backward together, ours over plain autograd's. The gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import chainrule as cr
from benchmarks.timing import best_times, machine
from chainrule.ir import Dim
from chainrule.ir.dims import substitute
from chainrule.verbs.residual_plan import residual_plan


@dataclass(frozen=True)
class Case:
    """A formula and its hand-written rival: what that one keeps, and the multiplications of its backward pass."""

    name: str
    formula: str
    shapes: Mapping[str, str]
    small: Mapping[str, int]
    large: Mapping[str, int]
    by_hand: str
    multiplications: Callable[..., int]
    scalars: Mapping[str, float]


CASES = (
    Case(
        "cross-entropy",
        "-sum(Y*log(softmax(Z)))",
        {"Y": "m,n", "Z": "m,n"},
        {"m": 256, "n": 1024},
        {"m": 8192, "n": 32000},
        "Y, Z, logsumexp",
        lambda m, n: 4 * m * n,  # exp, by the row's target mass, by g; the gradient of Y by g
        {},
    ),
    Case(
        "layer norm",
        "y = gamma*layer_norm(X, eps) + beta",
        {"X": "m,n", "gamma": "n", "beta": "n"},
        {"m": 1024, "n": 768},
        {"m": 16384, "n": 4096},
        "X, gamma, mean, rstd",
        lambda m, n: 6 * m * n,  # xhat, gamma g, its product with xhat, mean times xhat, by rstd, g xhat
        {"eps": 1e-5},
    ),
    Case(
        "RMS norm",
        "y = gamma*X/sqrt(mean(X^2, 1) + eps)[:, None]",
        {"X": "m,n", "gamma": "n"},
        {"m": 1024, "n": 768},
        {"m": 16384, "n": 4096},
        "X, gamma, rstd",
        lambda m, n: 6 * m * n,
        {"eps": 1e-5},
    ),
    Case(
        "attention",
        "S = Q @ K'/sqrt(d); P = softmax(S); O = P @ V",
        {"Q": "m,d", "K": "n,d", "V": "n,v"},
        {"m": 1024, "n": 1024, "d": 64, "v": 64},
        {"m": 8192, "n": 8192, "d": 128, "v": 128},
        "Q, K, V, O, logsumexp",
        # Q K', scaled, exp, dO V', P (dP - D) scaled, three products, rowsum(dO O)
        lambda m, n, d, v: 3 * m * n * d + 2 * m * n * v + 4 * m * n + m * v,
        {},
    ),
    Case(
        "SwiGLU",
        "A = X @ W1; B = X @ W2; y = (A*sigmoid(A)*B) @ W3",
        {"X": "m,d", "W1": "d,h", "W2": "d,h", "W3": "h,d"},
        {"m": 256, "d": 256, "h": 688},
        {"m": 8192, "d": 4096, "h": 11008},
        "X, W1, W2, W3, A, B",
        lambda m, d, h: 6 * m * d * h + 9 * m * h,
        {},
    ),
)


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes of the distinct storages that a forward pass saves for its backward pass."""
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(storages.values())


def measure(case: Case, sizes: Mapping[str, int], device: str) -> list[str]:
    """One row of the table."""
    d = cr.derive(case.formula, shapes=case.shapes)
    plan = residual_plan(d.program, d.wrt, sizes)
    names: dict[str, Any] = {"__name__": "emitted"}
    exec(d.code("autograd", sizes=sizes), names)
    torch.manual_seed(0)
    arguments = []
    for node in plan.inputs:
        shape = [int(substitute(s, sizes)) for s in node.shape]
        scalar = case.scalars.get(str(node.params["name"]))
        x = torch.randn(shape, device=device) * 0.3 if scalar is None else torch.tensor(scalar, device=device)
        arguments.append(x.requires_grad_(scalar is None))
    wanted = [x for x in arguments if x.requires_grad]

    def step(function: Callable[..., torch.Tensor]) -> Sequence[torch.Tensor]:
        found = torch.autograd.grad(function(*arguments).sum(), wanted)
        if device != "cpu":
            torch.cuda.synchronize()
        return found

    ours, plain = names["formula"], names["reference"]
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(step(ours), step(plain), strict=True))
    count, by_hand = plan.multiplications(), case.multiplications(**sizes)
    number = substitute(count, sizes) if isinstance(count, Dim) else count
    bytes_ours, bytes_plain = kept_bytes(lambda: ours(*arguments)), kept_bytes(lambda: plain(*arguments))
    times = best_times({"ours": lambda: step(ours), "plain": lambda: step(plain)}, rounds=5, window=0.1)
    return [
        case.name,
        ", ".join(_saved(d.code("autograd", sizes=sizes))),
        case.by_hand,
        f"{bytes_ours / 1e6:.2f} MB",
        f"{bytes_plain / 1e6:.2f} MB",
        f"{int(number) / by_hand:.3f}",
        f"{times['ours'] / times['plain']:.2f}",
        "ok" if error < 1e-3 else f"WRONG ({error:.1e})",
    ]


def _saved(source: str) -> list[str]:
    return source.split("save_for_backward(")[1].split(")")[0].split(", ")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "large"), default="small")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    table = Table(title=f"autograd functions, {given.size} sizes, {given.device}; {machine()}")
    for column in (
        "formula",
        "kept",
        "by hand",
        "bytes",
        "plain autograd",
        "multiplications / by hand",
        "time / plain",
    ):
        table.add_column(column)
    table.add_column("gradients")
    for case in CASES:
        table.add_row(*measure(case, case.small if given.size == "small" else case.large, given.device))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
