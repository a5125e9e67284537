"""The report on the book's network, a broken one, and whole models: seconds of the command, sizes of page and data.

Every report is made by the command line in a process of its own, imports included; with Chromium there, each page is
opened and its complaints are counted.

    python -m benchmarks.report [names]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

import chainrule as cr

ROOT = Path(__file__).resolve().parent.parent


# ---- the models ----------------------------------------------------------------------------------------------
def textbook() -> Any:
    """Figure 7.8's network."""
    return cr.examples.figure_7_8()


def broken_relu() -> Any:
    """Forty ReLU layers with PyTorch's default weights."""
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    batch = torch.randn(32, 64), torch.randn(32, 10)
    return cr.case(model, batch, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.01))


def gpt2(layers: int = 12, width: int = 256) -> Any:
    """GPT-2 from its configuration, in training mode with dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=4, n_positions=64, vocab_size=512, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    ids = torch.randint(0, 512, (2, 32))
    return cr.case(model, {"input_ids": ids, "labels": ids}, "model", torch.optim.AdamW(model.parameters(), 1e-3))


def gpt2_100() -> Any:
    """A hundred layers of it."""
    return gpt2(100, 64)


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        same = stride == 1 and before == width
        self.down = (
            None if same else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.down is None else self.down(x)))


def resnet18() -> Any:
    """ResNet-18's shape."""
    torch.manual_seed(0)
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              (512, 512, 1)]  # fmt: skip
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100)]
    model = nn.Sequential(*stem, *(Block(*w) for w in widths), *head)
    batch = torch.randn(4, 3, 64, 64), torch.randint(0, 100, (4,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return cr.case(model, batch, nn.CrossEntropyLoss(), optimizer)


MODELS: dict[str, Callable[[], Any]] = {
    made.__name__: made for made in (textbook, broken_relu, gpt2, resnet18, gpt2_100)
}


# ---- the table -----------------------------------------------------------------------------------------------
def complaints(page: Path, folder: Path) -> str:
    """How many errors, warnings and requests a browser has with a page."""
    from tests.render.chromium import Browser, found

    if found() is None:
        return "no Chromium"
    browser = Browser(folder)
    try:
        return str(len(browser.open(page).complaints()))
    finally:
        browser.close()


def main(names: list[str]) -> int:
    """Prints the table."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    print(f"{'model':14}{'seconds':>9}{'page kB':>10}{'data kB':>10}   not made; complaints of the browser")
    for name in names or MODELS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            page = Path(folder, "report.html")
            command = [sys.executable, "-m", "chainrule", "report", f"benchmarks.report:{name}", "--path", str(page)]
            began = perf_counter()
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            seconds = perf_counter() - began
            if ran.returncode:
                print(f"{name:14}{seconds:9.1f}   failed: {ran.stderr.strip().splitlines()[-1]}")
                continue
            missing = [line.split()[0] for line in ran.stderr.splitlines() if "not made:" in line]
            sizes = [path.stat().st_size / 1000 for path in (page, page.with_suffix(".json"))]
            seen = complaints(page, Path(folder, "profile"))
            print(f"{name:14}{seconds:9.1f}{sizes[0]:10.0f}{sizes[1]:10.0f}   {', '.join(missing) or 'none'}; {seen}",
                  flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
