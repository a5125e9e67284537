"""Peak memory of a diagnosis against that of training steps of the same model.

    python -m benchmarks.diagnose_memory

Each number is the growth of a fresh process's peak resident size over what it had with model and batch in place; on a
CUDA device (``--cuda``) the peak of the allocator instead.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from benchmarks.timing import machine

Built = tuple[nn.Module, Any, Any]


def transformer(batch: int, width: int, layers: int) -> Built:
    """An encoder that classifies positions."""
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True, dropout=0.0)
    net = nn.Sequential(
        nn.Embedding(500, width), nn.TransformerEncoder(layer, layers, enable_nested_tensor=False),
        nn.Linear(width, 500),
    )  # fmt: skip
    ids = torch.randint(500, (batch, 128))
    return net, (ids, ids.roll(1, 0)), lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten())


def convolutional(batch: int) -> Built:
    """Four blocks with BatchNorm."""
    blocks: list[nn.Module] = []
    for k in range(4):
        blocks += [nn.Conv2d(3 if k == 0 else 32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return net, (torch.randn(batch, 3, 48, 48), torch.arange(batch) % 10), F.cross_entropy


def perceptron(width: int) -> Built:
    """Weights only: little is kept of a batch of 64."""
    net = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(width, width), nn.ReLU())), nn.Linear(width, 10))
    return net, (torch.randn(64, width), torch.arange(64) % 10), F.cross_entropy


CASES: dict[str, Callable[[], Built]] = {
    "transformer, 32 x 128 tokens": lambda: transformer(32, 128, 4),
    "convolutions, 64 images": lambda: convolutional(64),
    "perceptron, 4 x 2048^2": lambda: perceptron(2048),
}


def weight(built: Built) -> int:
    """Bytes of a model and its batch."""
    net, batch, _ = built
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers(), *batch))


def steps(built: Built, optimizer: torch.optim.Optimizer | None) -> None:
    """Three steps; without an optimizer, passes."""
    net, (x, y), loss = built
    for _ in range(3):
        net.zero_grad()
        loss(net(x), y).backward()
        if optimizer is not None:
            optimizer.step()


def peak(make: Callable[[], Built], diagnosed: bool, adam: bool, device: str) -> int:
    """Bytes at the highest point, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.manual_seed(0)
        net, (x, y), loss = make()
        built = net.to(device), (x.to(device), y.to(device)), loss
        optimizer = torch.optim.Adam(built[0].parameters(), 1e-3) if adam else None
        small = nn.Linear(3, 2)
        cr.diagnose(small, (torch.randn(4, 3), torch.randn(4, 2)), F.mse_loss, torch.optim.Adam(small.parameters()))
        steps((small, (torch.randn(4, 3), torch.arange(4) % 2), F.cross_entropy), None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if diagnosed:
            cr.diagnose(*built, optimizer)
        else:
            steps(built, optimizer)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        os.write(write, str(torch.cuda.max_memory_allocated() if device == "cuda" else grown).encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 64)
    os.close(read)
    os.waitpid(child, 0)
    return int(said)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true")
    device = "cuda" if parser.parse_args().cuda else "cpu"
    torch.set_num_threads(1)
    print(machine())
    print(f"{'':38}{'model':>6}{'steps':>12}{'diagnose':>12}{'ratio':>8}{'all':>8}")
    print("MB: model and batch; what is above them at the peak; its ratio, and that of all together")
    for name, make in CASES.items():
        for adam in (False, True):
            plain, looked = peak(make, False, adam, device), peak(make, True, adam, device)
            what, own = f"{name}{', Adam' if adam else ''}", weight(make())
            print(f"{what:38}{own / 1e6:6.0f}{plain / 1e6:12.0f}{looked / 1e6:12.0f}{looked / plain:8.2f}"
                  f"{(looked + own) / (plain + own):8.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
