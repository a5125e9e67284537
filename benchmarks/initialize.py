"""Sizes of values and gradients over the depth of many architectures, as they come and as ``initialize_`` starts them.

For every group of like modules (blocks, or the same layer in a plain network; all layers with weights but the last
where nothing is repeated) the mean squares of outputs and the energies of cotangents (summed over elements, so that
pooling and other widths do not count as a loss) are compared over depth: largest over smallest, the worst group counts.
A residual stream may grow by the factor 1.5 that its branches together add, a plain network not at all. After
``initialize_`` the rows are geometric means over the seeds: a single draw has the width's own spread besides.

Run: python -m benchmarks.initialize [NAME ...] [--rules] [--seeds N]
"""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn

import chainrule as cr
from benchmarks.architectures import ARCHITECTURES
from benchmarks.timing import machine
from chainrule.errors import ChainruleError
from chainrule.verbs.initialize.measure import Scale


def spread(rows: Sequence[Any], what: str) -> float | None:
    """Largest over smallest mean square (energy, of cotangents) within the worst group of like modules."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    layers: list[float] = []
    weighted = [row.name for row in rows if row.module.startswith(("Linear", "Conv"))]
    for row in rows:
        value = getattr(row, what)
        if not value or row.name == weighted[-1]:  # the head
            continue
        value *= row.elements if what == "grad_second" else 1
        kind = row.module.partition("(")[0]
        groups[re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", row.name), kind, _kernel(row.module)].append(value)
        if row.name in weighted:
            layers.append(value)
    ends = {key: g for key, g in groups.items() if len(g) >= 2 and key[0].endswith("*")}
    outermost = min((key[0].count("*") for key in ends), default=0)
    found = [max(g) / min(g) for key, g in ends.items() if key[0].count("*") == outermost and _weighted(key[1])]
    if not found and len(layers) > 1:
        found = [max(layers) / min(layers)]
    return max(found) if found else None


def _weighted(kind: str) -> bool:
    """Whether modules of this kind are blocks or layers, rather than what stands between them."""
    activation = hasattr(nn.modules.activation, kind) and kind != "MultiheadAttention"
    return not activation and kind not in (
        "MaxPool2d",
        "AvgPool2d",
        "Flatten",
        "Dropout",
        "AdaptiveAvgPool2d",
        "Identity",
    )


def _kernel(module: str) -> str:
    """The kernel of a convolution: those of one by one and of three by three are not alike."""
    found = re.search(r"\d+(x\d+)+", module)
    return found.group() if found else ""


def averaged(draws: Sequence[Sequence[Any]]) -> list[Scale]:
    """One row per module: the geometric mean over the draws, None where one of them has nothing."""
    found = []
    for rows in zip(*draws, strict=True):
        sizes = {}
        for what in ("second", "grad_second"):
            values = [getattr(row, what) for row in rows]
            sizes[what] = math.exp(sum(map(math.log, values)) / len(values)) if all(values) else None
        found.append(Scale(rows[0].name, rows[0].module, elements=rows[0].elements, **sizes))
    return found


def shown(value: float | None) -> str:
    """A ratio in eight columns."""
    return f"{'':>8}" if value is None else f"{value:8.2f}" if value < 1e4 else f"{value:8.0e}"


def main() -> None:
    """Prints one row per architecture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.initialize")
    parser.add_argument("names", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--rules", action="store_true", help="print what was chosen for every parameter")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"{'':34} {'values max/min':>17} {'gradient max/min':>17}")
    print(f"{'architecture':34} {'before':>8} {'after':>8} {'before':>8} {'after':>8} {'s':>6}  kept / parameters")
    for name in options.names:
        case = ARCHITECTURES[name]()
        start = perf_counter()
        try:
            r = cr.initialize_(case)
        except ChainruleError as error:
            print(f"{name:34} {error.what}")
            continue
        seconds = perf_counter() - start
        after = averaged([r.after, *(cr.initialize_(case, seed=k).after for k in range(1, options.seeds))])
        cells = [shown(spread(rows, what)) for what in ("second", "grad_second") for rows in (r.before, after)]
        kept = [p.name for p in r.parameters if p.rule == "kept"]
        print(f"{name:34} {' '.join(cells)} {seconds:6.1f}  {len(kept)} / {len(r.parameters)}", flush=True)
        if options.rules:
            print("\n".join(f"    {p.name:44} {p.rule:30} {p.std:9.4g}  {p.why}" for p in r.parameters))


if __name__ == "__main__":
    main()
