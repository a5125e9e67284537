"""A diagnosis on the terminal: verdict, root causes with their fix, and a strip of layers, in at most 25 lines."""

from __future__ import annotations

import math
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from chainrule.render.terminal import can_draw

LINES = 25
_LEVELS = "▁▂▃▄▅▆▇█"


def diagnosis_lines(result: Any, width: int | None = None) -> list[str]:
    """The lines of a DiagnoseResult."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    serious = [f for f in result.findings if f.severity != "info"]
    quiet = [f for f in result.findings if f.severity == "info"]
    lines: list[str] = []
    if serious:
        lines.append(f"{len(serious)} root cause{'s' if len(serious) > 1 else ''} found")
    else:
        lines.append(f"nothing wrong found ({len(result.checked)} kinds of fault looked for)")
    strip = strip_lines(result.strip, width)
    notes = [f"not checked or noted: {'; '.join(result.notes)}"] if result.notes else []
    room = LINES - len(lines) - len(strip) - min(len(notes), 2) - (1 if quiet else 0)
    for k, finding in enumerate(serious[:3]):
        share = room // (min(len(serious), 3) - k)
        own = finding_lines(finding, width, share)
        lines += own
        room -= len(own)
    if len(serious) > 3 and room > 0:
        lines.append(f"... and {len(serious) - 3} more: {', '.join(f.kind for f in serious[3:])} (--json shows all)")
    if quiet:
        said = "; ".join(f"{f.kind} at {f.where}" if f.where else f.kind for f in quiet)
        lines.append(_cut(f"info: {said}", width))
    lines += [_cut(n, width) for n in notes]
    return [*lines[: LINES - len(strip)], *strip]


def finding_lines(finding: Any, width: int, room: int) -> list[str]:
    """One finding in at most ``room`` lines."""
    place = f"{finding.where} ({finding.source})" if finding.source else finding.where
    head = f"{finding.severity}: {finding.kind}{f' at {place}' if place else ''}: {finding.cause}"
    parts = textwrap.wrap(head, width, subsequent_indent="    ")[:4]
    rows = [("measured:", finding.measured), ("expected:", finding.expected), ("fix:", finding.fix)]
    body = [line for label, text in rows if text for line in _labelled(label, text, width)]
    code = (
        [f"            {_cut(line, width - 12)}" for line in str(finding.patch).splitlines()] if finding.patch else []
    )
    after = _labelled("after it:", finding.verified, width) if finding.verified else []
    hence = [_labelled("hence:", c, width)[0] for c in finding.consequences]
    lines = [*parts, *body, *code[:6], *after, *hence]
    return lines if len(lines) <= room else [*lines[: max(room - 1, 1)], "  ..."]


def _labelled(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(f"  {label:10}{text}", width, subsequent_indent=" " * 12)[:3]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 3, 1)] + "..."


# ---- the strip -----------------------------------------------------------------------------------------------
def strip_lines(strip: Sequence[Any], width: int) -> list[str]:
    """Forward and backward scale over depth, one character a layer; repeated blocks are one name."""
    if len(strip) < 2:
        return []
    drawn = can_draw(sys.stdout.encoding)
    room = max(width - 46, 10)
    shown = (
        list(strip) if len(strip) <= room else [strip[round(k * (len(strip) - 1) / (room - 1))] for k in range(room)]
    )
    lines = [_cut(f"layers: {', '.join(rolled_up([s.name for s in strip]))}", width)]
    for label, numbers in (("|z|", [s.forward for s in shown]), ("|dL/dz|", [s.backward for s in shown])):
        known = [n for n in numbers if n > 0 and math.isfinite(n)]
        if known:
            lines.append(f"  {label:8}{_bars(numbers, drawn)}  {_range(known)}")
    squashed = [max(s.dead or 0.0, s.squashed or 0.0) for s in shown]
    if any(x > 0.5 for x in squashed):
        lines.append(f"  {'off':8}{''.join(_level(x, drawn) for x in squashed)}  share of dead or flat units")
    return lines


def _bars(numbers: Sequence[float], drawn: bool) -> str:
    logs = [math.log10(n) for n in numbers if n > 0 and math.isfinite(n)]
    low, high = min(logs), max(logs)
    span = max(high - low, 1.0)
    found = []
    for n in numbers:
        if n == 0:
            found.append("0")
        elif not math.isfinite(n):
            found.append("!")
        else:
            found.append(_level((math.log10(n) - low) / span if high > low else 0.5, drawn))
    return "".join(found)


def _level(share: float, drawn: bool) -> str:
    k = min(int(share * 8), 7)
    return _LEVELS[k] if drawn else str(k)


def _range(known: Sequence[float]) -> str:
    return f"{known[0]:.1e} first, {known[-1]:.1e} last, between {min(known):.1e} and {max(known):.1e}"


def rolled_up(names: Sequence[str]) -> list[str]:
    """``h.0.a, h.0.b, h.1.a, h.1.b`` -> ``h.{0..1}.a, h.{0..1}.b``: equal blocks by their numbers."""
    groups: dict[str, list[int]] = {}
    for name in names:
        key = re.sub(r"\d+", "#", name, count=1)
        match = re.search(r"\d+", name)
        groups.setdefault(key, []).append(int(match[0]) if match else -1)
    found = []
    for key, numbers in groups.items():
        distinct = sorted(set(numbers))
        text = str(distinct[0]) if len(distinct) == 1 else f"{{{distinct[0]}..{distinct[-1]}}}"
        count = f" (x{len(numbers)})" if len(distinct) > 1 else ""
        found.append(key.replace("#", text, 1) + count)
    return found
