"""How deep a plain network can be and still train: PyTorch's default, He's and ``initialize_``'s start, on digits.

Protocol: scikit-learn's digits, standardized as a whole, 1437 images to train on and 360 to validate; width 64; SGD
with momentum 0.9, gradients clipped at norm 1, 400 steps of 128 images (300 at depth 1000); the better of two learning
rates (0.1 and 0.01 up to depth 30, 0.01 and 0.001 above). The cells are means over the seeds (split, start, batches),
with the lowest seed in brackets.

Run: python -m benchmarks.depth_map [--seeds N] [--first SEED] [--depths 10,30,50,100,1000]
     [--activations tanh,relu,gelu] [--starts default,he,auto]
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np
import torch
from torch import nn

import chainrule as cr
from benchmarks.timing import machine

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "leaky": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU}
STARTS = ("default", "he", "auto")
WIDTH, BATCH = 64, 128


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(training images, labels, validation images, labels), split by the seed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(((images - images.mean()) / images.std()).astype(np.float32))
    y = torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1437], order[1437:]
    return x[train], y[train], x[test], y[test]


def network(activation: str, depth: int) -> nn.Sequential:
    """``depth`` hidden layers and a head."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(64, WIDTH), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def started(activation: str, depth: int, start: str, seed: int, batch: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """The network at its start."""
    torch.manual_seed(seed)
    net = network(activation, depth)
    if start == "he":
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    elif start != "default":
        cr.initialize_(net, batch, nn.CrossEntropyLoss(), scheme=start, seed=seed)
    return net


def accuracy(net: nn.Module, rate: float, steps: int, seed: int, data: tuple[torch.Tensor, ...]) -> float:
    """Validation accuracy after training."""
    x, y, x_test, y_test = data
    generator = torch.Generator().manual_seed(seed + 1000)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        picked = torch.randint(0, len(x), (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(net(x[picked]), y[picked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return float((net(x_test).argmax(1) == y_test).float().mean())


def cell(activation: str, depth: int, start: str, seeds: range) -> list[float]:
    """The accuracy of every seed."""
    found = []
    for seed in seeds:
        data = digits(seed)
        rates, steps = ((0.1, 0.01) if depth <= 30 else (0.01, 0.001)), (300 if depth >= 1000 else 400)
        scores = []
        for rate in rates:
            net = started(activation, depth, start, seed, (data[0][:BATCH], data[1][:BATCH]))
            scores.append(accuracy(net, rate, steps, seed, data))
        found.append(max(scores))
    return found


def main() -> None:
    """Prints one row per activation and start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth_map")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of them: a long table in pieces")
    parser.add_argument("--depths", default="10,30,50,100")
    parser.add_argument("--activations", default="tanh,relu,gelu")
    parser.add_argument("--starts", default=",".join(STARTS))
    options = parser.parse_args()
    depths = [int(d) for d in options.depths.split(",")]
    torch.set_num_threads(1)
    print(machine())
    seeds = range(options.first, options.first + options.seeds)
    print(f"seeds {seeds[0]} to {seeds[-1]}: mean (lowest)")
    print(f"{'':16}" + "".join(f"{f'depth {d}':>16}" for d in depths))
    begin = perf_counter()
    for activation in options.activations.split(","):
        for start in options.starts.split(","):
            print(f"{activation:7}{start:9}", end="", flush=True)
            for depth in depths:
                found = cell(activation, depth, start, seeds)
                print(f"{f'{np.mean(found):.3f} ({min(found):.3f})':>16}", end="", flush=True)
            print()
    print(f"{perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
