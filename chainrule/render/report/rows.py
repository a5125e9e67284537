"""The chain as the page shows it: one row per factor, stretches of equal blocks as one block with an index.

A row has an equation, numbers, and where the quantity is known, its moments, its bytes and what is wrong there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chainrule.interpreters.latex import LatexPrinter
from chainrule.interpreters.mathml import mathml
from chainrule.render import terminal
from chainrule.render.chart import spark
from chainrule.render.report.parts import Parts
from chainrule.render.rolled import Indexed, Run, indexed, moving, pattern, range_text, runs


@dataclass(frozen=True)
class Equation:
    """An equation three ways: MathML for the eye (None if it has none), text to paste, LaTeX to publish."""

    mathml: str | None
    text: str
    latex: str = ""


@dataclass(frozen=True)
class Row:
    """A factor. Bars are ends in percent of the width, around no change at 50; facts are what a reader may ask for."""

    layer: str
    kind: str
    equation: Equation
    shape: str
    gain: str
    bar: tuple[float, float] | None
    mark: float | None
    bytes: str
    multiplications: str
    finding: str
    facts: tuple[tuple[str, str], ...]
    spark: str = ""
    cut: str = ""  # what ends the gradient before it gets here


@dataclass(frozen=True)
class Group:
    """Rows that are shown together: of equal blocks, or a stretch of rows that do not repeat."""

    rows: tuple[Row, ...]
    repeats: int = 1
    title: str = ""
    indices: str = ""
    change: str = ""
    members: tuple[tuple[str, ...], ...] = field(default=())


def chain_groups(parts: Parts) -> tuple[list[Group], float]:
    """The chain's rows in groups, and the gain at the right end of their bars."""
    links = list(parts.chain.links)
    known = _Known(parts)
    reach = _reach(links[1:])  # the first row, the loss's own gradient, is a size and not a gain
    groups = []
    before: Any = None
    for run in runs(links, [known.signature(link) for link in links]):
        if run.repeats:
            groups.append(_rolled(run, known, reach, before))
        else:
            block = run.blocks[0]
            rows = tuple(_row([link], known, 0.0 if link is links[0] else reach) for link in block)
            groups.append(Group(rows))
        before = run.blocks[-1][-1]
    return groups, reach


def equation(symbol: str, expression: Any) -> Equation:
    """``symbol = expression`` for the page."""
    return written([f"{symbol} = {expression.text}"], [_latex(symbol, expression)])[0]


def written(texts: Sequence[str], latexes: Sequence[str], base: Sequence[int] = ()) -> tuple[Equation, Indexed]:
    """Equations of equal blocks as one, and how it is indexed."""
    text, latex = indexed(texts, base, braces=True), indexed(latexes, base)
    if text.indices != latex.indices:  # one of the forms writes numbers that do not move: both as the first is
        text, latex = Indexed(texts[0], ()), Indexed(latexes[0], ())
    return Equation(mathml(latex.text), text.text, latex.text), text


# ---- what is known about a factor ----------------------------------------------------------------------------
class _Known:
    """Everything that the other verbs say about the places of the chain."""

    def __init__(self, parts: Parts) -> None:
        trace = parts.trace
        self.steps = {step.wrt: step for step in parts.derive.steps} if parts.derive else {}
        self.moments = {row.name: row for row in parts.moments.rows} if parts.moments else {}
        findings: Sequence[Any] = parts.diagnose.findings if parts.diagnose else ()
        self.findings = {where: f for f in reversed(findings) for where in f.where.split(", ")}
        self.cuts = _cuts(parts.diagnose)
        self.group: Mapping[str, str] = {}
        self.kinds: Mapping[str, str] = {}
        self.origins: Mapping[str, str] = {}
        if trace is not None:
            self.kinds = {call.path: call.kind for call in trace.calls if call.path}
            self.group = {p: f"group {k}" for k, paths in enumerate(trace.repeats) for p in paths}
            origins, names = trace.graph.origins, trace.graph.names
            self.origins = {n: _place(origins[node]) for n, node in names.items() if node in origins}

    def signature(self, link: Any) -> tuple[Any, ...]:
        """Equal for factors that do the same in equal blocks."""
        path = link.module.split(".")
        inside = next((k for k in range(len(path), 0, -1) if ".".join(path[:k]) in self.group), 0)
        whole = next((k for k in range(1, len(path) + 1) if ".".join(path[:k]) in self.group), 0)
        place = (self.group[".".join(path[:whole])], *path[whole:]) if inside else (link.module,)
        return (*place, pattern(link.name), pattern(link.factor), tuple(map(str, link.shape)))

    def block(self, links: Sequence[Any]) -> str:
        """The module that all of these factors are in, if it is one of several that are alike; else nothing."""
        paths = [link.module.split(".") for link in links]
        for k in range(1, min(map(len, paths)) + 1):
            whole = ".".join(paths[0][:k])
            if whole in self.group and all(p[:k] == paths[0][:k] for p in paths):
                return whole if any(len(p) > k for p in paths) else ""
        return ""

    def latex(self, link: Any) -> str:
        """The factor's equation."""
        step = self.steps.get(link.name)
        return "" if step is None else _latex(step.symbol, step.closed_form)


def _cuts(diagnosis: Any) -> dict[str, str]:
    """Layer -> what ends the gradient on its way back to it, for the last layers that it does not reach."""
    if diagnosis is None:
        return {}
    causes = [f for f in diagnosis.findings if f.kind in ("cut", "loss_detached")]
    found = {}
    for before, after in zip(diagnosis.strip, diagnosis.strip[1:], strict=False):
        if after.reached and not before.reached:
            own = next((f for f in causes if any(before.name in c for c in f.consequences)), next(iter(causes), None))
            said = f"{own.where}{f' ({_short_place(own.source)})' if own.source else ''}" if own is not None else ""
            found[before.name] = f"the gradient ends here{': ' if said else ''}{said}"
    return found


def _short_place(source: str) -> str:
    return source.replace("\\", "/").rpartition("/")[2]


def _latex(symbol: str, expression: Any) -> str:
    return f"{LatexPrinter().symbol(symbol)} = {expression.latex}"


def _place(origin: Any) -> str:
    return f"{origin.file}:{origin.line}" if origin.file and origin.line else ""


# ---- rows ----------------------------------------------------------------------------------------------------
def _row(links: Sequence[Any], known: _Known, reach: float, base: Sequence[int] = (), inside: str = "") -> Row:
    """One factor, or the same factor of several blocks; ``reach``: the gain at the right end, 0 for no bar.

    ``inside``: the block's own path, which its rows need not repeat.
    """
    link = links[0]
    found, _ = written([k.factor for k in links], [known.latex(k) for k in links], base)
    gains = [k.gain_predicted for k in links]
    usable = [g for g in gains if g is not None and g > 0 and math.isfinite(g)]
    middle = math.exp(sum(map(math.log, usable)) / len(usable)) if usable else link.gain_predicted
    end = _position(middle, reach)
    mean = [k.gain_measured for k in links if k.gain_measured and math.isfinite(k.gain_measured)]
    measured = math.exp(sum(map(math.log, mean)) / len(mean)) if mean else link.gain_measured
    path, kind = link.module or link.layer, known.kinds.get(link.module, "")
    if len(links) > 1:
        path = indexed([k.module or k.layer for k in links], base, braces=True).text
    if inside:
        path = link.module[len(inside) + 1 :] or "the block itself"
    several = len(links) > 1
    wrong = [(k, known.findings[k.module]) for k in links if k.finding and k.module in known.findings]
    shown = terminal.gain(link) if not several else _range(usable, measured)
    kept = [k.bytes for k in links if k.bytes is not None]
    return Row(
        layer=path,
        kind=kind,
        equation=found if found.latex else Equation(None, found.text),
        shape=terminal.shape(link.shape),
        gain=shown,
        bar=None if end is None else (min(50.0, end), abs(end - 50.0)),
        mark=_position(measured, reach),
        bytes=terminal.size(link.bytes) + (f" × {len(links)}" if several and link.bytes else ""),
        multiplications=terminal.count(link.multiplications),
        finding=terminal.finding(next((k.finding for k in links if k.finding), "")),
        facts=tuple(_facts(link, links, known, sum(kept), wrong)),
        spark=spark(gains, reach=reach, name=f"gain in {len(links)} blocks")
        if several and usable and max(usable) > 1.3 * min(usable)
        else "",
        cut=next((known.cuts[k.module] for k in links if k.module in known.cuts), ""),
    )


def _facts(
    link: Any, links: Sequence[Any], known: _Known, kept: int, wrong: Sequence[tuple[Any, Any]]
) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for at, f in wrong[:1]:
        facts.append((f.kind, f"{f.cause} (at {at.module})"))
        if f.fix:
            facts.append(("fix", f.fix))
    gains = [k.gain_predicted for k in links if k.gain_predicted is not None]
    if gains:
        facts.append(("gain, predicted", _spread(gains)))
    if link.gain_measured is not None and len(links) == 1:
        error = f" ± {link.gain_error:.2g}" if link.gain_error else ""
        facts.append(("gain, measured", f"{terminal.number(link.gain_measured)}{error}"))
    sizes = [k.rms for k in links if k.rms is not None]
    if sizes:
        facts.append(("rms of this gradient", _spread(sizes)))
    rows = [known.moments[k.module] for k in links if k.module in known.moments]
    seconds = [r.second for r in rows if r.second is not None]
    if seconds:
        facts.append(("mean square of the output", _spread(seconds) + (_band(rows[0].band) if len(links) == 1 else "")))
    if rows and rows[0].kind:
        facts.append(("how it is known", f"{rows[0].kind}: {rows[0].why}" if rows[0].why else rows[0].kind))
    if link.bytes is not None:
        facts.append(("kept for the backward pass", terminal.size(kept) + (" in all" if len(links) > 1 else "")))
    if link.multiplications is not None:
        facts.append(("multiplications", terminal.count(link.multiplications)))
    facts.append(("shape", terminal.shape(link.shape)))
    place = known.origins.get(link.name)
    return [*facts, ("computed at", place)] if place else facts


def _rolled(run: Run[Any], known: _Known, reach: float, before: Any) -> Group:
    base = next((m for column in run.columns if (m := moving([k.module for k in column]))), ())
    block = known.block(run.blocks[0])
    rows = tuple(_row(column, known, reach, base, block) for column in run.columns)
    places = _blocks_named(run, known)
    first, last = before.rms if before is not None else None, run.blocks[-1][-1].rms
    change = ""
    if first and last is not None and math.isfinite(last / first):
        change = f"over all of them the gradient's rms goes from {terminal.number(first)} to {terminal.number(last)}"
    members = tuple(
        (k.layer, k.name, terminal.gain(k), terminal.number(k.rms), terminal.finding(k.finding))
        for block in run.blocks
        for k in block
    )
    return Group(
        rows=rows,
        repeats=len(run.blocks),
        title=places,
        indices=range_text(base),
        change=change,
        members=members,
    )


def _blocks_named(run: Run[Any], known: _Known) -> str:
    """``transformer.h.11 … transformer.h.0``: where the first and the last block are."""
    ends = []
    for block in (run.blocks[0], run.blocks[-1]):
        paths = [k.module for k in block if k.module]
        ends.append(known.block(block) or (f"{paths[0]} – {paths[-1]}" if len(set(paths)) > 1 else "".join(paths[:1])))
    return " … ".join(e for e in ends if e)


# ---- numbers -------------------------------------------------------------------------------------------------
def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    a, b = terminal.number(low), terminal.number(high)
    return a if a == b else f"{a} to {b}"


def _range(gains: Sequence[float], measured: float | None) -> str:
    shown = _spread(gains) if gains else "-"
    return shown if measured is None else f"{shown} / {terminal.number(measured)}"


def _band(band: tuple[float, float] | None) -> str:
    if not band or terminal.number(band[0]) == terminal.number(band[1]):
        return ""
    return f" (nine draws of ten: {terminal.number(band[0])} to {terminal.number(band[1])})"


def _reach(links: Sequence[Any]) -> float:
    """A round number that no gain and no 1 / gain exceeds, if a page of bars can show it."""
    gains = [g for link in links for g in (link.gain_predicted, link.gain_measured) if g and math.isfinite(g)]
    largest = max((abs(math.log10(g)) for g in gains), default=0.0)
    return next((r for r in (4.0, 10.0, 100.0, 1e3, 1e6) if math.log10(r) >= largest), 1e12)


def _position(gain: float | None, reach: float) -> float | None:
    """Where a gain lies between 1 / reach (0) and reach (100)."""
    if gain is None or not reach or not gain > 0 or not math.isfinite(gain):
        return None
    return 50 + 50 * max(-1.0, min(1.0, math.log10(gain) / math.log10(reach)))
