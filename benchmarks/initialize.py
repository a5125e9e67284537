"""Sizes of values and gradients over the depth of many architectures, as they come and as ``initialize_`` starts them.

For every group of like modules (the same place in every block) the mean squares of outputs and of cotangents are
compared over depth: largest over smallest, the worst group counts. A residual stream may grow by the factor 1.5 that
all its branches together add, a plain network not at all; what is left is the width's own spread.

Run: python -m benchmarks.initialize [NAME ...] [--rules]
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

import chainrule as cr
from benchmarks.architectures import ARCHITECTURES
from benchmarks.timing import machine
from chainrule.errors import ChainruleError


def spread(rows: Sequence[Any], what: str) -> float | None:
    """Largest over smallest mean square within the worst group of like modules: of outermost blocks, if any."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        value = getattr(row, what)
        if value:
            place = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", row.name)
            groups[place, row.module].append(value)
    several = {key: g for key, g in groups.items() if len(g) >= 2}
    ends = {key: g for key, g in several.items() if key[0].endswith("*")}
    outermost = min((key[0].count("*") for key in ends), default=0)
    blocks = {key: g for key, g in ends.items() if key[0].count("*") == outermost}
    found = [max(g) / min(g) for g in (blocks or several).values()]
    return max(found) if found else None


def shown(value: float | None) -> str:
    """A ratio in eight columns."""
    return f"{'':>8}" if value is None else f"{value:8.2f}" if value < 1e4 else f"{value:8.0e}"


def main() -> None:
    """Prints one row per architecture."""
    torch.set_num_threads(1)
    names = [a for a in sys.argv[1:] if not a.startswith("-")] or list(ARCHITECTURES)
    print(machine())
    print(f"{'':34} {'forward max/min':>17} {'backward max/min':>17}")
    print(f"{'architecture':34} {'before':>8} {'after':>8} {'before':>8} {'after':>8} {'s':>6}  kept / parameters")
    for name in names:
        case = ARCHITECTURES[name]()
        start = perf_counter()
        try:
            r = cr.initialize_(case)
        except ChainruleError as error:
            print(f"{name:34} {error.what}")
            continue
        seconds = perf_counter() - start
        cells = [shown(spread(rows, what)) for what in ("second", "grad_second") for rows in (r.before, r.after)]
        kept = [p.name for p in r.parameters if p.rule == "kept"]
        print(f"{name:34} {' '.join(cells)} {seconds:6.1f}  {len(kept)} / {len(r.parameters)}", flush=True)
        if "--rules" in sys.argv:
            print("\n".join(f"    {p.name:44} {p.rule:30} {p.std:9.4g}  {p.why}" for p in r.parameters))


if __name__ == "__main__":
    main()
