"""The first screen: a verdict, and one sentence for each of the five questions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from chainrule.render import terminal
from chainrule.render.report.parts import Parts

_LARGE = 30.0  # a change of a gradient's size over the whole network that is worth a word


@dataclass(frozen=True)
class Answer:
    """A question with its answer: ``tone`` is good, bad or quiet; ``section`` where more is said."""

    question: str
    answer: str
    tone: str
    section: str


@dataclass(frozen=True)
class Verdict:
    """The page in two lines, and the five answers."""

    tone: str
    headline: str
    cause: str
    fix: str
    answers: tuple[Answer, ...]


def verdict(parts: Parts) -> Verdict:
    """What the page says first."""
    answers = (_gradient(parts), _flow(parts), _start(parts), _memory(parts), _training(parts))
    diagnosis = parts.diagnose
    if diagnosis is None:
        return Verdict("quiet", "Not diagnosed", parts.missing["diagnose"], "", answers)
    roots = [f for f in diagnosis.findings if f.severity != "info"]
    if not roots:
        return Verdict("good", "Nothing wrong found", "", "", answers)
    first = roots[0]
    others = f" (and {len(roots) - 1} more)" if len(roots) > 1 else ""
    where = f" at {first.where}" if first.where else ""
    return Verdict("bad", f"{_WORDS.get(first.kind, first.kind)}{where}{others}", first.cause, first.fix, answers)


_WORDS = {
    "vanishing": "The gradient vanishes",
    "exploding": "The gradient explodes",
    "saturated": "Saturated units",
    "dead": "Dead units",
    "cut": "The gradient is cut",
    "symmetric": "Units that stay equal",
    "nonfinite": "A value is not finite",
    "unused": "A parameter is not used",
    "loss_detached": "The loss has no gradient",
    "loss_pairing": "The loss expects another quantity",
    "lr_too_high": "The learning rate is too high",
    "lr_too_low": "The learning rate is too low",
}


def _gradient(parts: Parts) -> Answer:
    question = "What is the gradient?"
    if parts.derive is None:
        return Answer(question, parts.missing["derive"], "quiet", "equations")
    trace = parts.trace
    said = f"{len(parts.derive.steps)} equations, below."
    tone = "good"
    if trace.bit_equal:
        said += " The traced forward pass equals the model's, bit for bit."
    elif trace.bit_equal is False:
        said += f" The traced forward pass differs from the model's by {trace.largest_difference:.1e} (relative)."
        tone = "quiet"
    return Answer(question, said, tone, "equations")


def _flow(parts: Parts) -> Answer:
    question = "Will it flow?"
    change = change_over_depth(parts)
    if change is None:
        return Answer(question, parts.missing.get("chain", "The size of the gradient is not known."), "quiet", "chain")
    if not change:
        said = "Nothing of it arrives at the first layer."
    elif change >= _LARGE:
        said = f"It grows by a factor of {terminal.number(change)} on its way from the last layer to the first."
    elif change <= 1 / _LARGE:
        said = f"It shrinks by a factor of {terminal.number(1 / change)} on its way from the last layer to the first."
    else:
        said = f"It arrives at the first layer {terminal.number(change)} times as large as it left the last."
    flow = {"vanishing", "exploding", "cut", "dead", "saturated", "nonfinite"}
    wrong = parts.diagnose is not None and any(f.kind in flow and f.severity != "info" for f in parts.diagnose.findings)
    return Answer(question, said, "bad" if wrong else "good", "chain")


def change_over_depth(parts: Parts) -> float | None:
    """The gradient's norm at the first weight layer's output over that at the last's; None where it is not known."""
    sizes = _layer_sizes(parts)
    rows = parts.moments.rows if parts.moments is not None else ()
    known = [r.grad_second * sizes[r.name] for r in rows if r.name in sizes and r.grad_second is not None]
    if len(known) < 2 or not known[-1] or not math.isfinite(known[0] / known[-1]):
        strip = parts.diagnose.strip if parts.diagnose is not None else ()
        ends = [s.backward for s in strip if s.backward > 0 and math.isfinite(s.backward)]
        return ends[0] / ends[-1] if len(ends) > 1 else None
    return math.sqrt(known[0] / known[-1])


def _layer_sizes(parts: Parts) -> dict[str, int]:
    """Module with a matrix of its own -> elements of its output."""
    if parts.trace is None:
        return {}
    parameters = parts.trace.parameters
    own = {n.rpartition(".")[0] for n, leaf in parameters.items() if len(leaf.shape) > 1}
    return {c.path: math.prod(int(n) for n in c.outputs[0].shape) for c in parts.trace.calls if c.path in own and c.outputs}


def _start(parts: Parts) -> Answer:
    question = "Where should it start?"
    start = parts.initialize
    if start is None:
        return Answer(question, parts.missing["initialize"], "quiet", "start")
    layers = _layer_sizes(parts)
    now, then = (_ratio([r for r in rows if r.name in layers]) for rows in (start.before, start.after))
    if now is None or then is None:
        return Answer(question, "A law for every parameter, below.", "quiet", "start")
    said = f"The gradient's norm at the first layer is {terminal.number(now)} times that at the last"
    if abs(math.log(now)) < abs(math.log(then)) + math.log(3):
        return Answer(question, f"{said}, and {terminal.number(then)} times after initialize_.", "good", "start")
    return Answer(question, f"{said}; after initialize_ it is {terminal.number(then)} times.", "bad", "start")


def _ratio(rows: Any) -> float | None:
    """Norm of the cotangent at the first layer over that at the last."""
    known = [r.grad_second * r.elements for r in rows if r.grad_second and math.isfinite(r.grad_second)]
    return math.sqrt(known[0] / known[-1]) if len(known) > 1 else None


def _memory(parts: Parts) -> Answer:
    question = "Can I afford the backward pass?"
    plan = parts.plan
    if plan is None:
        return Answer(question, parts.missing["plan"], "quiet", "memory")
    said = f"A step needs {terminal.size(plan.baseline_bytes)}"
    peaks = plan.trade_off()
    saved = peaks[0][0] - peaks[-1][0]
    if saved > 0.02 * plan.baseline_bytes and plan.minimum_bytes < plan.baseline_bytes:
        said += f"; with recomputation it fits into {terminal.size(plan.minimum_bytes)}"
    return Answer(question, f"{said}.", "good", "memory")


def _training(parts: Parts) -> Answer:
    question = "Does it train?"
    if "fit" in parts.missing:
        return Answer(question, parts.missing["fit"], "quiet", "training")
    fit = parts.fit
    if fit is None or not fit.step_loss:
        return Answer(question, "Not tried: --fit N trains N steps and takes them back.", "quiet", "missing")
    first, last = fit.step_loss[0], fit.step_loss[-1]
    if len(fit.loss) > 1:
        first, last = fit.loss[0], fit.loss[-1]
    said = f"Loss {terminal.number(first)} → {terminal.number(last)} in {len(fit.step_loss):,} steps."
    return Answer(question, said, "good" if last < 0.97 * first else "bad", "training")
