"""``chainrule demo``: fifty layers that do not train, why, what to do, and the page of it; in at most 60 lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import log, prod

import click

from chainrule.cli.demo_figure_7_8 import figure_7_8_lines, indented
from chainrule.cli.group import FINE, with_debug
from chainrule.cli.progress import working
from chainrule.cli.target import require_torch

_BAR = 24  # characters


@click.command()
@click.option("--path", default="chainrule-report.html", show_default=True, help="Where to write the page.")
@click.option(
    "--seeds", type=click.IntRange(2), default=16, show_default=True, help="Redraws behind the measured gains."
)
@click.option("--figure-7-8", "textbook", is_flag=True, help="The textbook's own training example instead.")
@with_debug
def demo(path: str, seeds: int, textbook: bool) -> int:
    """A network of fifty layers that does not train: its chain, the cause, the cure, its memory, and one page."""
    from chainrule.render.report import require_report

    require_torch("demo")
    require_report()
    # One thread is fastest for a network this small, and the same on every machine. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for line in (figure_7_8_lines if textbook else _story)(path, seeds):
        click.echo(line)
    return FINE


def _story(path: str, seeds: int) -> Iterator[str]:
    with working("loading torch"):
        import chainrule as cr
        from chainrule.render.terminal import clipped, gain, number, size, table
        from chainrule.verbs.initialize.result import InitializeResult
    broken, cured = cr.examples.fifty_layers(), cr.examples.fifty_layers()
    yield "Problem 7.11's network: fifty ReLU layers of 40 units, with the weights that PyTorch gives it"

    with working(f"measuring gains over {seeds} seeds"):
        chain = cr.chain(broken, seeds=seeds)
    rows = [(k.layer, clipped(k.factor, 44), gain(k), number(k.rms)) for k in chain.links]
    middle = chain.links[2:-2]
    each = prod(k.gain_predicted or 1.0 for k in middle) ** (2 / len(middle))
    yield "\n1. The chain from the loss to the input, each row times the one above; predicted without a run"
    shown = [*rows[:4], (f"{len(rows) - 8} more", "the same two factors, again and again", "", ""), *rows[-4:]]
    yield from indented(table(("layer", "factor", "gain predicted / measured", "|gradient|"), shown, right=[3]))
    yield f"   a layer and its ReLU multiply the gradient by {each:.3f}; 1/sqrt(6) is 0.408. After fifty: {each**50:.0e}"

    with working("diagnosing"):
        found = broken.findings[0]
    yield f"\n2. Diagnosis: {found.kind} at {found.where}\n   {found.cause}\n   {found.measured}"

    with working("initializing"):
        start: InitializeResult = cr.initialize_(cured)
    yield "\n3. initialize_ draws other weights; mean square of the gradient at five of the layers"
    after = {row.name: row for row in start.after}
    depths = [(r.name, r.grad_second, after[r.name].grad_second) for r in start.before if r.module.startswith("Linear")]
    picked = [(name, number(old), number(new)) for name, old, new in [*depths[:-1:12], depths[-1]]]
    yield from indented(table(("layer", "before", "after"), picked, right=[1, 2]))

    with working("planning"):
        x, y = (tensor.repeat(100, 1) for tensor in broken.data.dataset.tensors)
        by_hand = cr.plan(broken.model, (x, y), broken.loss, broken.optimizer, every=10)
        optimal = by_hand.within(by_hand.peak_bytes)
    yield f"\n4. Its memory, with batches of {len(x):,}"
    plans = [("everything kept", by_hand.within(by_hand.baseline_bytes)), ("every tenth layer kept", by_hand)]
    plans += [("the optimal plan in as much memory", optimal)]
    lines = [(w, size(p.peak_bytes), f"{100 * p.recompute_fraction:.1f} %") for w, p in plans]
    yield from indented(table(("plan", "peak", "more time"), lines, right=[1, 2]))

    yield "\n5. Both train, side by side: the loss"
    yield f"   {'epoch':>5}  {'as PyTorch starts it':{_BAR + 10}}after initialize_"
    for epoch in range(10, 101, 10):
        losses = [cr.fit(case, epochs=10, progress=False).loss[-1] for case in (broken, cured)]
        yield f"   {epoch:>5}  " + "".join(f"{_bar(loss)} {loss:<9.2g}" for loss in losses).rstrip()

    with working("drawing the page"):
        written = cr.report(cr.examples.fifty_layers(), path=path, seeds=seeds, fit=1000)
    yield f"\n6. All of it on one page: {written}"


def _bar(loss: float) -> str:
    """The loss on a logarithmic axis from 1e-8 to 1."""
    return ("#" * round(_BAR * min(1.0, max(0.02, 1 + log(max(loss, 1e-9), 1e8))))).ljust(_BAR)
