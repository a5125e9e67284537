"""``chainrule demo --figure-7-8``: every verb on the textbook's training example, in at most 50 lines and one page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from chainrule.cli.progress import working

if TYPE_CHECKING:
    from chainrule.verbs.fit import FitResult

_INDENT = "   "


def figure_7_8_lines(path: str, seeds: int) -> Iterator[str]:
    with working("loading torch"):
        from chainrule import examples
        from chainrule.render.diagnosis import diagnosis_lines, finding_lines
        from chainrule.render.report import report
        from chainrule.render.terminal import can_draw, chain_lines, curve, width
        from chainrule.verbs.chain import chain
        from chainrule.verbs.fit import fit
    case = examples.figure_7_8()
    kinds = [call.kind for call in case.trace.calls if call.path and call.path != "loss"]
    yield f"Figure 7.8: {' - '.join(kinds)}, mean squared error"

    with working(f"measuring gains over {seeds} seeds"):
        annotated = chain(case, seeds=seeds)
    yield ""
    yield f"1. The chain from the loss to the input; measured: mean of {seeds} seeds ± standard error"
    yield from indented(chain_lines(annotated, width() - len(_INDENT)))

    differences = {dtype: examples.gradient_difference(case, dtype) for dtype in ("float32", "float64")}
    yield ""
    yield "2. Largest relative difference between these gradients and torch.autograd's"
    yield _INDENT + ", ".join(f"{value:.1e} in {dtype}" for dtype, value in differences.items())

    zeros = examples.figure_7_8_zeros().diagnosis
    yield ""
    yield "3. Diagnosis"
    yield _INDENT + f"this network: {diagnosis_lines(case.diagnosis)[0]}"
    yield _INDENT + "all weights zero:"
    yield from indented(finding_lines(zeros.findings[0], width() - 2 * len(_INDENT), 8))

    # A network of its own is trained: what the page says about the chain is about the weights as they were drawn.
    fresh = examples.figure_7_8()
    trained = fit(fresh)
    yield ""
    yield f"4. Training: {_milestones(trained)}"
    yield from indented(curve(trained.loss, blocks=can_draw(sys.stdout.encoding)))

    facts = [
        *((f"difference to torch.autograd, {d}", f"{v:.1e} relative") for d, v in differences.items()),
        ("the same network, all weights zero", "; ".join(f"{f.kind} at {f.where}" for f in zeros.findings)),
    ]
    with working("drawing the page"):
        written = report(case, path=path, fit=trained, chain=annotated, facts=facts)
    yield ""
    yield f"5. All of it on one page: {written}"


def indented(lines: Iterable[str]) -> Iterator[str]:
    yield from (f"{_INDENT}{line}".rstrip() for line in lines)


def _milestones(trained: FitResult) -> str:
    """The loss at epochs 1, 10, 100, as far as training went."""
    epochs = [e for e in (1, 10, 100) if e <= len(trained.loss)]
    losses = ", ".join(f"{trained.loss[e - 1]:.4g} at epoch {e}" for e in epochs)
    return f"loss {losses} ({len(trained.step_loss)} steps in {trained.seconds:.1f} s)"
