"""Results as plain text for a terminal: aligned tables, the annotated chain, a curve in block characters.

What is printed does not depend on whether stdout is a terminal; only its width does. Colours are the caller's. The
same numbers are written the same way on the HTML page (:mod:`chainrule.render.report`), through :func:`number`,
:func:`count`, :func:`size` and :func:`gain`.
"""

from __future__ import annotations

import math
import shutil
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chainrule.verbs.chain import Chain, Link

WIDEST = 110  # columns; a table for reading, even on a wide screen
_COLUMNS = ("layer", "factor", "shape", "gain predicted / measured", "bytes", "mults", "finding")
LEVELS = " ▁▂▃▄▅▆▇█"


def width() -> int:
    """Columns to write for: the terminal's, at most 110, which is also the width without a terminal."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns or WIDEST, WIDEST)


# ---- numbers ---------------------------------------------------------------------------------------------
def number(value: float | None, digits: int = 3) -> str:
    """A measured quantity with ``digits`` significant digits; ``-`` if there is none.

    >>> number(0.98765), number(1.2e-9), number(None), number(12345.6)
    ('0.988', '1.2e-09', '-', '1.23e+04')
    """
    if value is None:
        return "-"
    if value and math.isfinite(value) and 1e-3 <= abs(value) < 10**digits:
        return f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.{digits}g}"


def count(value: Any) -> str:
    """A number of things, with separators; what is symbolic stays so.

    >>> count(16000), count(2.5e9), count(None)
    ('16,000', '2.5e+09', '-')
    """
    if value is None:
        return "-"
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{round(value):,}" if abs(value) < 1e9 else f"{value:.3g}"


def size(value: float | None) -> str:
    """A number of bytes, in units of 1000.

    >>> size(400), size(1600), size(999_600), size(2_500_000), size(None)
    ('400 B', '1.6 kB', '1 MB', '2.5 MB', '-')
    """
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < (1000 if unit == "B" else 999.5) or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def shape(dims: Sequence[Any]) -> str:
    """A shape; a scalar's is ``1``.

    >>> shape((10, 40)), shape(())
    ('10 x 40', '1')
    """
    return " x ".join(map(str, dims)) or "1"


def gain(link: Link) -> str:
    """Predicted and measured gain of a link, with the standard error of the measurement.

    >>> from types import SimpleNamespace
    >>> gain(SimpleNamespace(gain_predicted=1.0, gain_measured=0.987, gain_error=0.0123))
    '1.00 / 0.987 ± 0.012'
    """
    if link.gain_predicted is None and link.gain_measured is None:
        return "-"
    text = f"{number(link.gain_predicted)} / {number(link.gain_measured)}"
    error = getattr(link, "gain_error", None)
    return f"{text} ± {error:.2g}" if error is not None and math.isfinite(error) and error else text


# ---- tables ----------------------------------------------------------------------------------------------
def columns_of(text: str) -> int:
    """How many columns a text takes: two for East Asian wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clipped(text: str, most: int) -> str:
    """The text on one line, in at most ``most`` columns, ``…`` standing for what was cut off.

    >>> clipped("diag(1[f > 0]) @ A'", 12), clipped("short", 12)
    ('diag(1[f > …', 'short')
    """
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    if columns_of(text) <= most:
        return text
    kept = ""
    for c in text:
        if columns_of(kept + c) > most - 1:
            break
        kept += c
    return kept + "…"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), most: int | None = None
) -> list[str]:
    """Lines of aligned columns, the heading first.

    Args:
        head, rows: cells. right: indices of the columns aligned to the right.
        most: columns of the terminal to stay in; the widest cells are cut first.

    >>> print(*table(("layer", "bytes"), [("fc1", "400 B"), ("relu", "1.6 kB")], right=[1]), sep="\\n")
    layer   bytes
    fc1     400 B
    relu   1.6 kB
    """
    most = width() if most is None else most
    cells = [[clipped(str(c), 10**6) for c in row] for row in [head, *rows]]
    widths = [max(columns_of(row[k]) for row in cells) for k in range(len(head))]
    gaps = 2 * (len(head) - 1)
    while sum(widths) + gaps > most:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= 6:
            break
        widths[widest] -= 1
    lines = []
    for row in cells:
        parts = []
        for k, cell in enumerate(row):
            cell = clipped(cell, widths[k])
            space = " " * (widths[k] - columns_of(cell))
            parts.append(space + cell if k in right else cell + space)
        lines.append("  ".join(parts).rstrip())
    return lines


# ---- the annotated chain ---------------------------------------------------------------------------------
def chain_table(chain: Chain, most: int | None = None) -> list[str]:
    """The chain, one line per factor from the loss to the input, the heading first.

    Columns that hold nothing (no gain for a formula, no finding anywhere) are left out.
    """
    rows = [
        (
            link.layer,
            str(link.factor),
            shape(link.shape),
            gain(link),
            size(link.bytes),
            count(link.multiplications),
            finding(link.finding),
        )
        for link in chain.links
    ]
    kept = [k for k in range(len(_COLUMNS)) if k < 3 or any(row[k] not in ("", "-") for row in rows)]
    picked = [[row[k] for k in kept] for row in rows]
    right = [kept.index(k) for k in (4, 5) if k in kept]
    return table([_COLUMNS[k] for k in kept], picked, right=right, most=most)


def finding(found: Any) -> str:
    """The kind of a finding, or nothing."""
    return str(getattr(found, "kind", found) or "")


def chain_lines(chain: Chain, most: int | None = None) -> list[str]:
    """All that is known about a chain: its table, what the product is, and the parameter gradients below it."""
    lines = chain_table(chain, most)
    if chain.product:
        lines.append(clipped(f"product: {chain.product}", width() if most is None else most))
    if chain.gradients:
        lines += ["", *gradient_table(chain.gradients, most)]
    return lines


def gradient_table(gradients: Sequence[tuple[str, str, Sequence[Any]]], most: int | None = None) -> list[str]:
    """Parameter gradients, one line each: equation and shape."""
    rows = [(equation, shape(dims)) for _, equation, dims in gradients]
    return table(("parameter gradient", "shape"), rows, most=most)


# ---- a curve ---------------------------------------------------------------------------------------------
def curve(values: Sequence[float], *, columns: int = 60, lines: int = 5, blocks: bool = True) -> list[str]:
    """A series of positive numbers on a logarithmic axis, drawn with block characters.

    Args:
        values: one per epoch; those that are not positive and finite are left blank.
        columns, lines: size of the drawing, without its labels. blocks: False draws with ``#``.

    Returns:
        The lines, each with the value of its top or bottom edge where it is an end of the axis; none for no values.

    >>> print(*curve([100, 10, 1], columns=3, lines=2), sep="\\n")
     100 █
       1 ██▁
    """
    usable = [v for v in values if v > 0 and math.isfinite(v)]
    if not usable:
        return []
    low, high = math.log10(min(usable)), math.log10(max(usable))
    columns = min(columns, len(values))
    heights: list[int] = []  # in eighths of a line; every point has at least one
    for k in range(columns):
        piece = values[k * len(values) // columns : (k + 1) * len(values) // columns]
        logs = [math.log10(v) for v in piece if v > 0 and math.isfinite(v)]
        share = (sum(logs) / len(logs) - low) / (high - low or 1) if logs else 0
        heights.append(1 + int(share * (8 * lines - 1)) if logs else 0)
    labels = {lines - 1: f"{10**low:.3g}", 0: f"{10**high:.3g}"}
    margin = max(map(len, labels.values())) + 1
    drawn = []
    for line in range(lines):
        below = 8 * (lines - 1 - line)
        row = "".join(LEVELS[max(0, min(8, h - below))] for h in heights)
        row = row if blocks else "".join(" " if c == " " else "#" for c in row)
        drawn.append(f"{labels.get(line, ''):>{margin}} {row}".rstrip())
    return drawn


def can_draw(encoding: str | None) -> bool:
    """Whether a stream of this encoding can show block characters."""
    try:
        LEVELS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
