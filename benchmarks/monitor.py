"""What a monitor costs: unmeasured steps, measured steps, and the mean at every=25.

    python -m benchmarks.monitor [names...]

Plain steps and watched steps take turns in short windows of one run; medians count.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr

WINDOW = 25


def book() -> tuple[nn.Module, Callable[[Any], torch.Tensor], int]:
    """The network of figure 7.8, batch 10."""
    x, y = torch.randn(10, 10), torch.randn(10, 5)
    net = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    return net, lambda m: F.mse_loss(m(x), y), 60


def cnn() -> tuple[nn.Module, Callable[[Any], torch.Tensor], int]:
    """A small convolutional network, batch 64."""
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 64, 10),
    )  # fmt: skip
    return net, lambda m: F.cross_entropy(m(x), y), 4


def gpt2() -> tuple[nn.Module, Callable[[Any], torch.Tensor], int]:
    """GPT-2 with 4 layers of width 256, 8 x 64 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=500, n_positions=64, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    ids = torch.randint(500, (8, 64))
    return GPT2LMHeadModel(GPT2Config(**sizes)), lambda m: m(input_ids=ids, labels=ids).loss, 3  # type: ignore[arg-type]


def row(name: str, make: Callable[[], Any]) -> None:
    """One line."""
    torch.manual_seed(0)
    model, loss, rounds = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        return time.perf_counter() - start

    for _ in range(3):
        step()
    plain, watched, measured = [], [], []
    for _ in range(rounds):
        plain.append(sorted(step() for _ in range(WINDOW)))
        with cr.monitor(model, optimizer, every=WINDOW):
            times = [step() for _ in range(WINDOW)]
        measured.append(times[0])
        watched.append(times)
    # Medians of a window's steps but for the measured one, so that a busy machine counts less.
    base = statistics.median(t for w in plain for t in w)
    unmeasured = statistics.median(t for w in watched for t in w[1:-1])
    last = statistics.median(w[-1] for w in watched)  # it keeps its gradient for the noise scale of the next
    one = statistics.median(measured)
    mean = ((WINDOW - 2) * unmeasured + last + one) / WINDOW
    print(f"{name:8}{base * 1e3:10.3f} ms{unmeasured / base:12.3f}{one / base:12.3f}{mean / base:12.3f}")


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"{'':8}{'step':>13}{'unmeasured':>12}{'measured':>12}{'every=25':>12}")
    for name, make in (("book", book), ("cnn", cnn), ("gpt2", gpt2)):
        if not sys.argv[1:] or name in sys.argv[1:]:
            row(name, make)


if __name__ == "__main__":
    main()
