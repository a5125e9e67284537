"""Predicted against measured mean squares, forward and backward, over redrawn weights: the accuracy atlas.

Run: python -m benchmarks.moments [--seeds 16] [--large] [names ...]

For every float value, cotangent and weight gradient of a network, the predicted expectation of the logarithm of its
mean square is compared with the mean over redraws. Columns, in percent: median, 95th percentile and largest of what
the error exceeds 2.5 standard errors of the measurement by (and the mean standard error); how many draws lie in the
predicted band of nine draws of ten; how many values are by probe or unknown. ``--large`` adds GPT-2 small and a
Llama-8B shape without values, with times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from benchmarks.architectures import ARCHITECTURES
from benchmarks.timing import machine
from chainrule.verbs.field_samples import sample
from chainrule.verbs.fields import Program

_NOTHING = 1e-10  # of the median mean square: what cancels exactly


@dataclass
class Way:
    """One pass: errors beyond the measurement's own, standard errors, shares of draws in the band, kinds."""

    excess: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    weak: int = 0

    def add(self, predicted: Any, measured: np.ndarray, level: float) -> None:
        """One value."""
        if measured.mean() < _NOTHING * level:  # zero in exact arithmetic, rounding in the measurement
            if predicted is not None and predicted.known and predicted.mean_square < 1e-6 * level:
                return
            predicted = None
        if predicted is None or not predicted.known or not predicted.mean_square > 0:
            self.weak += 1
            self.excess.append(10.0)
            return
        self.weak += predicted.kind == "probe"
        logs = np.log(measured)
        error = float(logs.std(ddof=1)) / np.sqrt(len(logs))
        centre, spread = predicted.log_mean, predicted.log_spread**0.5
        self.errors.append(error)
        self.excess.append(max(0.0, abs(centre - float(logs.mean())) - 2.5 * error))
        if logs.std() > 1e-3 or spread > 1e-3:
            self.inside.append(float(np.mean(np.abs(logs - centre) <= 1.645 * spread)))

    def extend(self, other: Way) -> None:
        """Another network's values behind these."""
        self.excess += other.excess
        self.errors += other.errors
        self.inside += other.inside
        self.weak += other.weak

    def __str__(self) -> str:
        if not self.excess:
            return f"{'':44}"
        e = 100 * np.array(self.excess)
        inside = f"{100 * np.mean(self.inside):5.0f}" if self.inside else "     "
        error = 100 * np.nanmean(self.errors or [0])
        cells = f"{np.median(e):7.2f} {np.quantile(e, 0.95):7.2f} {e.max():7.1f} {error:6.1f}"
        return f"{len(e):5d} {cells} {inside}"


def compared(name: str, seeds: int) -> tuple[Way, Way, float]:
    """(forward, backward, seconds of the prediction) of one network."""
    trace = ARCHITECTURES[name]().trace
    program = Program.of(trace)
    start = process_time()
    run = program.run()
    seconds = process_time() - start
    found = sample(trace, seeds)
    ways = Way(), Way()
    for way, measured, value in ((ways[0], found.forward, run.value), (ways[1], found.backward, run.cotangent)):
        level = float(np.median([m.mean() for m in measured.values()] or [0.0]))
        for node, squares in measured.items():
            way.add(value(node), squares, level)
    return *ways, seconds


_HEAD = "values  median    95 %   worst   s.e.  band"


def atlas(names: Iterable[str], seeds: int) -> None:
    """Prints the table and its summary."""
    print(f"{'network':32} {'forward: ' + _HEAD:46} {'backward: ' + _HEAD:46} weak  s")
    totals = Way(), Way()
    for name in names:
        forward, backward, seconds = compared(name, seeds)
        for total, way in zip(totals, (forward, backward), strict=True):
            total.extend(way)
        print(f"{name:32} {forward}  {backward}  {forward.weak + backward.weak:4d} {seconds:5.2f}", flush=True)
    print(f"{'all':32} {totals[0]}  {totals[1]}  {totals[0].weak + totals[1].weak:4d}")
    values = len(totals[0].excess) + len(totals[1].excess)
    print(f"neither probe nor unknown: {100 * (1 - (totals[0].weak + totals[1].weak) / max(values, 1)):.2f} %")


def large() -> None:
    """GPT-2 small, and a Llama-8B shape on the meta device: no forward pass of values."""
    import transformers as t

    from chainrule.frontends.torch import trace_case

    with torch.device("meta"):
        gpt2 = t.GPT2LMHeadModel(t.GPT2Config(bos_token_id=0, eos_token_id=0)).eval()
        llama = t.LlamaForCausalLM(
            t.LlamaConfig(
                num_hidden_layers=32,
                hidden_size=4096,
                intermediate_size=14336,
                num_key_value_heads=8,
                vocab_size=128256,
            )
        ).eval()
        tokens = torch.zeros((1, 64), dtype=torch.long)
    std = {False: 0.02**2, True: 0.02**2 / 24}
    weights = {n: (0.0, std[n.endswith("c_proj.weight")]) for n, p in gpt2.named_parameters() if p.dim() > 1}
    trace_case(gpt2, {"input_ids": tokens})  # what torch imports on first use
    for name, model, batch, loss, given in (
        ("GPT-2 small", gpt2, {"input_ids": tokens}, None, weights),
        ("Llama-8B shape", llama, {"input_ids": tokens, "labels": tokens}, "model", {}),
    ):
        start, busy = perf_counter(), process_time()
        trace = trace_case(model, batch, loss=loss)
        traced, traced_busy = perf_counter() - start, process_time() - busy
        start, busy = perf_counter(), process_time()
        run = Program.of(trace).run(given)
        print(
            f"{name}: trace {traced:.2f} s ({traced_busy:.2f} s of one core), moments {perf_counter() - start:.2f} s "
            f"({process_time() - busy:.2f} s of one core)"
        )
        stream = [
            run.value(c.outputs[0])
            for c in trace.calls
            if c.path.rsplit(".", 1)[-1].isdigit() and c.path.count(".") == 2
        ]
        print("  E[x^2] of the stream:", ", ".join(f"{f.mean_square:.4g}" for f in stream if f is not None))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="the accuracy atlas of predicted moments")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    if arguments.large:
        large()
    else:
        atlas([n for n in ARCHITECTURES if not arguments.names or n in arguments.names], arguments.seeds)


if __name__ == "__main__":
    main()
