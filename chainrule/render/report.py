"""``report``: everything that is known about a case, on one HTML page that loads nothing.

This file asks the verbs and puts what they say into the page's terms; ``templates/page.html`` says how it looks,
:mod:`chainrule.render.plots` draws, :mod:`chainrule.interpreters.mathml` sets equations. Names come from models and
formulas and are escaped by the template. The file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chainrule
from chainrule.errors import ChainruleError, MissingExtraError, ModelError
from chainrule.interpreters.mathml import mathml
from chainrule.render import terminal
from chainrule.render.depth_strip import depth_strip
from chainrule.render.plots import Signal, loss_figure, moments_figure

if TYPE_CHECKING:
    from chainrule.verbs.case import Case
    from chainrule.verbs.chain import Chain, Link
    from chainrule.verbs.fit import FitResult


def report(
    model: Any,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    *,
    path: str | os.PathLike[str] = "report.html",
    fit: FitResult | None = None,
    chain: Chain | None = None,
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Everything about a model on one page: chain, gradients, moments, diagnosis and, if given, training.

    Args:
        model, batch, loss, optimizer: as for every verb, or a Case in place of the four.
        path: the page; a file of that name is replaced.
        fit: a training result, for its loss curve. chain: the model's chain, if it is there already.
        facts: (what, value) lines to add to the summary.

    Returns:
        Where the page is.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed. ModelError: there is no loss.
        ChainruleError: the page cannot be written there.

    >>> import tempfile, torch, chainrule as cr
    >>> net = torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = cr.report(net, (torch.ones(4, 3), torch.zeros(4, 2)), torch.nn.MSELoss(), path=f"{folder}/r.html")
    ...     "://" in path.read_text()  # nothing to load from anywhere
    False
    """
    require_report()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from chainrule.verbs.case import as_case

    case = as_case(model, batch, loss, optimizer)
    if case.trace.loss is None:
        raise ModelError(
            "a report is about gradients, and without a loss there are none",
            required="loss=..., or objective=...",
            instead="cr.report(model, (inputs, target), torch.nn.MSELoss())",
        )
    environment = Environment(
        loader=PackageLoader("chainrule.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = _page(case, case.chain if chain is None else chain, fit, facts)
    return _written(environment.get_template("page.html").render(page), Path(path))


def require_report() -> None:
    """Asks for the extra before any work is done.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("report", package, "report")


# ---- what the template shows -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Equation:
    """An equation three ways: MathML for the eye (None if it has none), text to paste, LaTeX to publish."""

    mathml: str | None
    text: str
    latex: str = ""


@dataclass(frozen=True)
class Row:
    """A link of the chain as the table shows it. Bars are ends in percent of the width, around no change at 50."""

    layer: str
    equation: Equation
    shape: str
    gain: str
    bar: tuple[float, float] | None
    mark: float | None
    bytes: str
    multiplications: str
    finding: str


def _page(case: Case, chain: Chain, fit: FitResult | None, facts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    equations = {step.symbol: _equation(step.symbol, step.closed_form) for step in case.equations.steps}
    reach = _reach(chain.links[1:])  # the first row, the loss's own gradient, is a size and not a gain
    return {
        "title": type(case.model).__name__,
        "layers": _layers(case),
        "summary": [*_summary(case), *facts],
        "ok": case.diagnosis.ok,
        "findings": case.diagnosis.findings,
        "checked": case.diagnosis.checked,
        "notes": case.diagnosis.notes,
        "strip": depth_strip(case.diagnosis.strip, _bands(case)),
        "rows": [_row(link, equations, reach if k else 0) for k, link in enumerate(chain.links)],
        "reach": f"{reach:g}",
        "product": chain.product,
        "seeds": chain.seeds,
        "gradients": [
            (equations.get(_symbol(text), Equation(None, text)), terminal.shape(dims))
            for _, text, dims in chain.gradients
        ],
        "program": [
            Equation(_math(name, expression), f"{name} = {expression.text}")
            for name, expression in case.equations.definitions
        ],
        "latex": case.equations.latex(),
        "moments": case.moments.rows,
        "moments_figure": _moments(case, chain.seeds),
        "fit": fit,
        "milestones": _milestones(fit),
        "loss_figure": loss_figure(fit.loss) if fit is not None and fit.loss else "",
        "versions": _versions(),
        "number": terminal.number,
    }


def _bands(case: Case) -> dict[str, tuple[float, float]]:
    """Layer -> predicted band of its rms, where the moments are known."""
    return {row.name: (row.band[0] ** 0.5, row.band[1] ** 0.5) for row in case.moments.rows if row.band}


def _layers(case: Case) -> str:
    """The innermost modules in order, the first ten of them."""
    containers = {call.path.rpartition(".")[0] for call in case.trace.calls}
    kinds = [c.kind for c in case.trace.calls if c.path not in {*containers, "", "loss"}]
    return " – ".join(kinds[:10]) + (f" … ({len(kinds)} modules)" if len(kinds) > 10 else "")


def _summary(case: Case) -> Iterator[tuple[str, str]]:
    traced = case.trace
    leaves = dict.fromkeys(traced.parameters.values())  # a tied parameter counts once
    parameters = sum(math.prod(int(n) for n in leaf.shape) for leaf in leaves)
    yield "parameters", f"{parameters:,}"
    yield "batch", ", ".join(f"{name}: {terminal.shape(leaf.shape)}" for name, leaf in traced.batch_inputs.items())
    if case.loss is not None:
        named = type(case.loss).__name__ if callable(case.loss) else "the model's"
        yield "loss", getattr(case.loss, "__name__", named)
    if case.optimizer is not None:
        rates = sorted({str(group["lr"]) for group in case.optimizer.param_groups if "lr" in group})
        yield "optimizer", type(case.optimizer).__name__ + "".join(f", learning rate {rate}" for rate in rates)
    if traced.bit_equal is not None:
        difference = f"differs by {traced.largest_difference:.1e} (relative)"
        yield "traced forward pass", "equal to the model's, bit for bit" if traced.bit_equal else difference


def _symbol(equation: str) -> str:
    return equation.partition(" = ")[0]


def _equation(symbol: str, expression: Any) -> Equation:
    return Equation(_math(symbol, expression), f"{symbol} = {expression.text}", expression.latex)


def _math(name: str, expression: Any) -> str | None:
    from chainrule.interpreters.latex import LatexPrinter

    return mathml(f"{LatexPrinter().symbol(name)} = {expression.latex}")


def _row(link: Link, equations: dict[str, Equation], reach: float) -> Row:
    """``reach``: the gain at the right end of the bars, 0 for no bar."""
    end = _position(link.gain_predicted, reach)
    return Row(
        layer=link.layer,
        equation=equations.get(_symbol(link.factor), Equation(None, link.factor)),
        shape=terminal.shape(link.shape),
        gain=terminal.gain(link),
        bar=None if end is None else (min(50.0, end), abs(end - 50.0)),
        mark=_position(link.gain_measured, reach),
        bytes=terminal.size(link.bytes),
        multiplications=terminal.count(link.multiplications),
        finding=terminal.finding(link.finding),
    )


def _reach(links: Sequence[Link]) -> float:
    """A round number that no gain and no 1 / gain exceeds, if a page of bars can show it."""
    gains = [g for link in links for g in (link.gain_predicted, link.gain_measured) if g and math.isfinite(g)]
    largest = max((abs(math.log10(g)) for g in gains), default=0.0)
    return next((r for r in (4.0, 10.0, 100.0, 1e3, 1e6) if math.log10(r) >= largest), 1e12)


def _position(gain: float | None, reach: float) -> float | None:
    """Where a gain lies between 1 / reach (0) and reach (100)."""
    if gain is None or not reach or not gain > 0 or not math.isfinite(gain):
        return None
    return 50 + 50 * max(-1.0, min(1.0, math.log10(gain) / math.log10(reach)))


def _moments(case: Case, seeds: int) -> str:
    """The figure of mean squares over depth, one point per value: a container repeats its last module's."""
    from chainrule.verbs.model_moments import measure

    names = case.trace.graph.name_of()
    produced: dict[str, list[str]] = {}
    for call in case.trace.calls:
        node = next((o for o in call.outputs if o.type.is_float), None)
        if node is not None and node in names and call.path != "loss":
            produced.setdefault(call.path, []).append(names[node])
    shown = {}
    for row in case.moments.rows:
        name = produced[row.name].pop(0) if produced.get(row.name) else row.name
        shown.setdefault(name, row)
    measured = measure(case, seeds) if seeds else None
    forward, backward = (measured.forward, measured.backward) if measured else ({}, {})

    def mean(values: Any) -> float | None:
        return None if values is None else float(values.mean())

    rows = list(shown.values())
    return moments_figure(
        [row.name or row.module for row in rows],
        Signal([r.second for r in rows], [mean(forward.get(n)) for n in shown], [r.band for r in rows]),
        Signal([r.grad_second for r in rows], [mean(backward.get(n)) for n in shown], [None] * len(rows)),
    )


def _milestones(fit: FitResult | None) -> list[tuple[int, str]]:
    if fit is None:
        return []
    last = len(fit.loss)
    epochs = [e for e in (1, 10, 100, 1000, 10000) if e < last] + [last] * bool(last)
    return [(epoch, f"{fit.loss[epoch - 1]:.4g}") for epoch in epochs]


def _versions() -> list[tuple[str, str]]:
    found = [("chainrule", chainrule.__version__), ("Python", platform.python_version())]
    for package in ("torch", "numpy", "matplotlib"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((package, metadata.version(package)))
    return found


# ---- writing ---------------------------------------------------------------------------------------------
def _written(text: str, path: Path) -> Path:
    """Writes the whole page beside its place, then moves it there."""
    if path.is_dir():
        raise _cannot_write(path, "it is a folder")
    scratch = None
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(scratch, mode)
        os.replace(scratch, path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from None
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                os.unlink(scratch)
    return path


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _cannot_write(path: Path, why: str) -> ChainruleError:
    return ChainruleError(
        f"cannot write the page {path}: {why}",
        given=str(path),
        required="a file in a folder that exists and can be written to",
        instead="--path with such a place, or path=... from Python",
    )
