"""Seconds to trace, derive and emit: models without storage of growing depth, and a recurrence of many steps.

    python -m benchmarks.trace_time [--threads 1]

The models are made from configurations of transformers on the meta device. ``per layer`` is the time of a model over
the time of the one before it, divided by the ratio of their layers: 1 is linear. Times are of the processor, the best
of three.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import chainrule as cr
from benchmarks.timing import machine


def gpt2(layers: int) -> tuple[nn.Module, Any]:
    """GPT-2 small (12 layers of width 768) with another number of layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=layers)), _tokens()


def llama(layers: int) -> tuple[nn.Module, Any]:
    """Llama of width 4096 (32 layers: 7 billion parameters)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers)), _tokens()


def _tokens() -> dict[str, torch.Tensor]:
    ids = torch.zeros(1, 128, dtype=torch.long)
    return {"input_ids": ids, "labels": ids}


def gru(steps: int) -> tuple[nn.Module, Any]:
    """A bidirectional GRU, with storage."""
    return nn.GRU(16, 32, bidirectional=True), torch.randn(steps, 4, 16)


def seconds(model: nn.Module, batch: Any, **loss: Any) -> tuple[float, int]:
    """Processor time from model to emitted step, the best of three, and the number of nodes in it."""
    best, nodes = float("inf"), 0
    for _ in range(3):
        start = time.process_time()
        nodes = len(cr.case(model, batch, **loss).step.graph.nodes)
        best = min(best, time.process_time() - start)
    return best, nodes


def _rows(name: str, make: Callable[[int], tuple[nn.Module, Any]], sizes: tuple[int, ...], **loss: Any) -> None:
    before: tuple[int, float] | None = None
    for size in sizes:
        model, batch = make(size)
        found, nodes = seconds(model.train(), batch, **loss)
        growth = "" if before is None else f"{found / before[1] / (size / before[0]):9.2f}"
        print(f"{name:12} {size:6} {nodes:8} {found:9.2f} {growth}", flush=True)
        before = size, found


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print(machine())
    print("model          size    nodes   seconds per layer")
    with torch.device("meta"):
        _rows("GPT-2", gpt2, (6, 12, 24), loss="model")
        _rows("Llama", llama, (8, 16, 32), loss="model")
    _rows("GRU", gru, (125, 250, 500), objective=lambda model, x: model(x)[0].square().mean())


if __name__ == "__main__":
    main()
