"""What the verbs said, in the page's terms: sections, tables and figures for ``templates/page.html``."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import chainrule
from chainrule.render import terminal
from chainrule.render.chart import Series, chart
from chainrule.render.depth_strip import depth_strip
from chainrule.render.report.answers import verdict
from chainrule.render.report.parts import Parts
from chainrule.render.report.rows import Equation, chain_groups, equation, written
from chainrule.render.rolled import indexed, moving, pattern, range_text, runs


def page(parts: Parts, facts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Everything that the template shows."""
    groups, reach = chain_groups(parts) if parts.chain is not None else ([], 0.0)
    diagnosis = parts.diagnose
    return {
        "title": type(parts.case.model).__name__,
        "layers": _layers(parts),
        "summary": [*_summary(parts), *facts],
        "verdict": verdict(parts),
        "findings": diagnosis.findings if diagnosis else (),
        "checked": diagnosis.checked if diagnosis else (),
        "notes": diagnosis.notes if diagnosis else (),
        "strip": depth_strip(diagnosis.strip, _bands(parts)) if diagnosis else "",
        "groups": groups,
        "reach": f"{reach:g}",
        "product": parts.chain.product if parts.chain is not None else "",
        "seeds": parts.chain.seeds if parts.chain is not None else 0,
        "modules": _modules(parts) if parts.chain is None else (),
        "forward": _definitions(parts),
        "gradients": _gradients(parts),
        "moments_figures": _moments_figures(parts),
        "moments": _moments_table(parts),
        "start": _start(parts),
        "memory": _memory(parts),
        "fit": parts.fit,
        "fit_figure": _fit_figure(parts.fit),
        "missing": parts.missing,
        "versions": _versions(),
        "number": terminal.number,
        "size": terminal.size,
    }


# ---- the head ------------------------------------------------------------------------------------------------
def _layers(parts: Parts) -> str:
    """The innermost modules in order, the first ten of them."""
    if parts.trace is None:
        return ""
    containers = {call.path.rpartition(".")[0] for call in parts.trace.calls}
    kinds = [c.kind for c in parts.trace.calls if c.path not in {*containers, "", "loss"}]
    return " – ".join(kinds[:10]) + (f" … ({len(kinds)} modules)" if len(kinds) > 10 else "")


def _summary(parts: Parts) -> Iterator[tuple[str, str]]:
    case, traced = parts.case, parts.trace
    if traced is not None:
        leaves = dict.fromkeys(traced.parameters.values())  # a tied parameter counts once
        yield "parameters", f"{sum(math.prod(int(n) for n in leaf.shape) for leaf in leaves):,}"
        yield "batch", ", ".join(f"{name}: {terminal.shape(leaf.shape)}" for name, leaf in traced.batch_inputs.items())
    if case.loss is not None:
        named = type(case.loss).__name__ if callable(case.loss) else "the model's"
        yield "loss", getattr(case.loss, "__name__", named)
    if case.optimizer is not None:
        rates = sorted({str(group["lr"]) for group in case.optimizer.param_groups if "lr" in group})
        yield "optimizer", type(case.optimizer).__name__ + "".join(f", learning rate {rate}" for rate in rates)


def _bands(parts: Parts) -> dict[str, tuple[float, float]]:
    """Layer -> predicted band of its rms, where the moments are known."""
    rows = parts.moments.rows if parts.moments is not None else ()
    return {row.name: (row.band[0] ** 0.5, row.band[1] ** 0.5) for row in rows if row.band}


# ---- equations -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Lines:
    """Equations in order; of blocks that repeat, one, for these values of k."""

    equations: tuple[tuple[Equation, str], ...]
    indices: str = ""
    repeats: int = 1


def _definitions(parts: Parts) -> list[Lines]:
    """The forward pass."""
    if parts.derive is None:
        return []
    return _lines([(name, e, e.text) for name, e in parts.derive.definitions])


def _gradients(parts: Parts) -> list[Lines]:
    """The gradients of the parameters, of all blocks in order."""
    if parts.derive is None or parts.chain is None:
        return []
    wanted = {name for name, _, _ in parts.chain.gradients}
    return _lines([(s.symbol, s.closed_form, s.closed_form.text) for s in parts.derive.steps if s.wrt in wanted])


def _lines(items: Sequence[tuple[str, Any, str]]) -> list[Lines]:
    marks = [(pattern(name), pattern(text), tuple(map(str, e.shape))) for name, e, text in items]
    found = []
    for run in runs(items, marks):
        columns = run.columns if run.repeats else [(item,) for item in run.blocks[0]]
        base = next((m for c in columns if run.repeats and (m := moving([name for name, _, _ in c]))), ())
        shown = []
        for column in columns:
            each = [equation(name, e) for name, e, _ in column]
            one, _ = written([e.text for e in each], [e.latex for e in each], base)
            shown.append((one, terminal.shape(column[0][1].shape)))
        found.append(Lines(tuple(shown), range_text(base), len(run.blocks)))
    return found


# ---- moments -------------------------------------------------------------------------------------------------
def _modules(parts: Parts) -> list[tuple[str, ...]]:
    """The chain without equations: modules from the loss back, with the size of the gradient at each."""
    rows = parts.moments.rows[::-1] if parts.moments is not None else ()
    found = []
    before = None
    for row in rows:
        size = None if row.grad_second is None else math.sqrt(row.grad_second)
        gain = size / before if size is not None and before else None
        found.append((row.name or "(model)", row.module, terminal.number(size), terminal.number(gain)))
        before = size if size is not None else before
    if not found and parts.diagnose is not None:
        found = [(s.name, "", terminal.number(s.backward), "-") for s in parts.diagnose.strip[::-1]]
    return found


def _moments_figures(parts: Parts) -> list[tuple[str, str]]:
    """Mean squares over depth, forward and backward: a container repeats its last module's, so innermost ones only."""
    if parts.moments is None:
        return []
    containers = {row.name.rpartition(".")[0] for row in parts.moments.rows}
    rows = [row for row in parts.moments.rows if row.name not in containers and row.name]
    measured = _measured(parts)
    figures = []
    for what, band, colour, title in (
        ("second", "band", "forward", "Values, mean square"),
        ("grad_second", "grad_band", "backward", "Their gradients, mean square"),
    ):
        points = [(k, getattr(r, what)) for k, r in enumerate(rows) if getattr(r, what) is not None]
        bands = [(k, *b) for k, r in enumerate(rows) if (b := getattr(r, band))]
        titles = [f"{rows[k].name} {rows[k].module}: {terminal.number(v)}" for k, v in points]
        seen = [(k, m) for k, r in enumerate(rows) if (m := measured.get((what, r.name))) is not None]
        dots = [f"{rows[k].name}: measured {terminal.number(v)}" for k, v in seen]
        series = [Series("predicted, with nine draws of ten", colour, points, band=bands, titles=titles)]
        series += [Series("measured", colour, seen, "dots", titles=dots)] if seen else []
        ends = [(k, rows[k].name) for k in ((0, len(rows) - 1) if rows else ())]
        drawn = chart(series, name=title, log=True, marks=ends, y_text=_short)
        figures += [(title, drawn)] if drawn else []
    return figures


def _measured(parts: Parts) -> dict[tuple[str, str], float]:
    """(which, module) -> mean square over the redraws that the chain has measured."""
    if parts.chain is None or not parts.chain.seeds:
        return {}
    sampled = parts.case.samples.get(parts.chain.seeds)
    if sampled is None:
        return {}
    names = parts.trace.graph.name_of()
    found: dict[tuple[str, str], float] = {}
    for call in parts.trace.calls:
        node = next((o for o in call.outputs if o in names), None)
        for what, table in (("second", sampled.forward), ("grad_second", sampled.backward)):
            if node is not None and names[node] in table:
                found[what, call.path] = float(table[names[node]].mean())
    return found


def _moments_table(parts: Parts) -> list[tuple[str, ...]]:
    """One row per module, equal blocks once."""
    rows = parts.moments.rows if parts.moments is not None else ()
    groups = {p: k for k, paths in enumerate(parts.trace.repeats) for p in paths} if parts.trace is not None else {}
    marks = [(pattern(r.name), r.module, groups.get(r.name)) for r in rows]
    found = []
    for run in runs(rows, marks):
        columns = run.columns if run.repeats else [(row,) for row in run.blocks[0]]
        base = next((m for c in columns if run.repeats and (m := moving([r.name for r in c]))), ())
        for c in columns:
            band = c[0].band
            found.append(
                (
                    indexed([r.name for r in c], base, braces=True).text or "(model)",
                    c[0].module,
                    _over([r.mean for r in c]),
                    _over([r.second for r in c]),
                    _over([r.grad_second for r in c]),
                    f"{terminal.number(band[0])} to {terminal.number(band[1])}" if band and len(c) == 1 else "",
                    c[0].kind + (f", k = {range_text(base)}" if len(c) > 1 else ""),
                )
            )
    return found


def _over(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    low, high = terminal.number(min(known)), terminal.number(max(known))
    return low if low == high else f"{low} to {high}"


# ---- the start -----------------------------------------------------------------------------------------------
def _start(parts: Parts) -> dict[str, Any] | None:
    start = parts.initialize
    if start is None:
        return None
    marks = [(pattern(r.name), r.rule, f"{r.std:.2g}", tuple(r.shape), pattern(r.why)) for r in start.parameters]
    rows = []
    for run in runs(start.parameters, marks):
        columns = run.columns if run.repeats else [(row,) for row in run.blocks[0]]
        base = next((m for c in columns if run.repeats and (m := moving([r.name for r in c]))), ())
        for c in columns:
            now = [_std(start.tensors.get(r.name)) for r in c]
            name = indexed([r.name for r in c], base, braces=True).text
            suffix = f"k = {range_text(base)}" if len(c) > 1 else ""
            rows.append((name, suffix, terminal.shape(c[0].shape), _over(now), _over([r.std for r in c]), c[0].rule, c[0].why))
    figures = []
    for what, title in (("second", "Values, mean square"), ("grad_second", "Gradients, mean square")):
        series = []
        for label, scales, style, colour in (
            ("now", start.before, "rings", "quiet"),
            ("after initialize_", start.after, "dots", "good"),
        ):
            points = [(k, getattr(s, what)) for k, s in enumerate(scales) if getattr(s, what)]
            titles = [f"{scales[k].name or '(model)'}: {terminal.number(v)}" for k, v in points]
            series.append(Series(label, colour, points, style, titles=titles))
        scales = start.after or start.before
        ends = [(k, scales[k].name or "(model)") for k in ((0, len(scales) - 1) if scales else ())]
        drawn = chart(series, name=f"{title}, before and after", log=True, marks=ends, y_text=_short)
        figures += [(title, drawn)] if drawn else []
    return {"rows": rows, "figures": figures, "notes": start.notes, "scheme": start.scheme}


def _std(tensor: Any) -> float | None:
    if tensor is None or getattr(tensor, "is_meta", False) or not tensor.numel():
        return None
    values = tensor.detach().double() if tensor.is_floating_point() else None
    return None if values is None else float(values.std(correction=0))


# ---- memory --------------------------------------------------------------------------------------------------
def _memory(parts: Parts) -> dict[str, Any] | None:
    plan = parts.plan
    if plan is None:
        return None
    points = plan.trade_off()
    cheaper = next((p for p in points[::-1] if p[1] <= 0.34), points[0])
    other = plan.within(cheaper[0]) if cheaper[0] < points[0][0] else None
    curve = plan.curve()
    series = [Series("as it is", "forward", list(enumerate(_thinned(curve))), "area")]
    if other is not None:
        again = _thinned(other.curve())
        scale = (len(_thinned(curve)) - 1) / max(len(again) - 1, 1)
        label = f"recomputing {100 * other.recompute_fraction:.0f} % of a step"
        series.append(Series(label, "good", [(k * scale, b) for k, b in enumerate(again)]))
    ends = [(0, "forward pass"), (len(_thinned(curve)) - 1, "backward pass")]
    figures = [("Memory over one step", chart(series, name="memory over one step", marks=ends, y_text=terminal.size))]
    if len(points) > 1:
        trade = [
            Series("plans", "good", [(100 * again, peak) for peak, again, _ in points], "dots",
                   titles=[f"{terminal.size(p)} for {100 * a:.1f} % more time" for p, a, _ in points]),
            Series("no schedule is below", "quiet", sorted((100 * bound, peak) for peak, _, bound in points), "steps"),
        ]  # fmt: skip
        drawn = chart(
            trade,
            name="what less memory costs",
            x_label="more time, in percent of a step",
            y_text=terminal.size,
        )
        figures.append(("What less memory costs", drawn))
    return {
        "figures": [f for f in figures if f[1]],
        "breakdown": list(plan.breakdown.items()),
        "plan": plan,
        "other": other,
        "not_counted": plan.not_counted,
    }


def _thinned(values: Sequence[int], most: int = 400) -> list[int]:
    """The largest of each of so many pieces."""
    if len(values) <= most:
        return list(values)
    ends = [len(values) * k // most for k in range(most + 1)]
    return [max(values[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


# ---- training ------------------------------------------------------------------------------------------------
def _fit_figure(fit: Any) -> str:
    if fit is None or not fit.step_loss:
        return ""
    per_step = [(k + 1.0, v) for k, v in enumerate(fit.step_loss)]
    count = len(per_step)
    if count > 600:
        per_step = [per_step[count * k // 600] for k in range(600)]
    positive = all(v > 0 for _, v in per_step if math.isfinite(v))
    series = [Series("each step", "quiet", per_step)]
    if len(fit.loss) > 1:
        size = count / len(fit.loss)
        series.append(Series("mean of each epoch", "forward", [((k + 0.5) * size, v) for k, v in enumerate(fit.loss)]))
    return chart(series, name="loss over training", x_label="step", log=positive, y_text=_short)


def _versions() -> list[tuple[str, str]]:
    found = [("chainrule", chainrule.__version__), ("Python", platform.python_version())]
    for package in ("torch", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((package, metadata.version(package)))
    return found


def _short(value: float) -> str:
    return f"{value:g}" if 1e-3 <= abs(value) < 1e4 or not value else f"{value:.0e}"
