"""The commands ``initialize`` and ``trainability``."""

from __future__ import annotations

import click

from chainrule.cli.arguments import emit, json_option
from chainrule.cli.group import FINE, with_debug
from chainrule.cli.progress import count_bar, working
from chainrule.cli.target import load_case, output_on_stderr, require_torch


@click.command()
@click.argument("target", metavar="FILE.py:FUNCTION")
@click.option("--scheme", default="auto", show_default=True, help="auto, critical, he, xavier, lecun, orthogonal, ...")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--only", multiple=True, metavar="NAME", help="A parameter, a module or a pattern; may be repeated.")
@click.option("--refine", is_flag=True, help="Correct every layer's scale by one pass over the example.")
@click.option("--save", "saved", metavar="PATH", help="Write the initialized model's state_dict.")
@click.option("--plot", "plotted", metavar="PATH", help="Draw the scale of both passes over depth.")
@json_option
@with_debug
def initialize(
    target: str,
    scheme: str,
    seed: int,
    only: tuple[str, ...],
    refine: bool,
    saved: str | None,
    plotted: str | None,
    as_json: bool,
) -> int:
    """Where a model should start: the law of every parameter and why, and both passes before and after.

    The function returns chainrule.case(model, batch, loss), or these by name in a dict.

    \b
      chainrule initialize model.py:build --plot scale.svg --save start.pt
    """
    case = load_case(target, "initialize")
    from chainrule.verbs.initialize import initialize_
    from chainrule.verbs.initialize.file import written

    with output_on_stderr(), working("choosing"):
        result = initialize_(
            case, scheme=scheme, seed=seed, only=list(only) or None, refine=refine or None, dry_run=saved is None
        )
    if plotted:
        result.plot(plotted)
    if saved:
        written(case.model, saved)
    emit(result, as_json)
    return FINE


@click.command()
@click.argument("activation", default="tanh")
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True, help="Networks per cell.")
@click.option("--steps", type=click.IntRange(1), default=150, show_default=True, help="Of training.")
@click.option("--deepest", type=click.IntRange(1), default=64, show_default=True, help="Layers of the deepest ones.")
@click.option("--plot", "plotted", metavar="PATH", help="Draw the map.")
@json_option
@with_debug
def trainability(activation: str, seeds: int, steps: int, deepest: int, plotted: str | None, as_json: bool) -> int:
    """At which depth and weight variance a plain network trains, by training a thousand of them.

    \b
      chainrule trainability tanh --plot map.svg
    """
    require_torch("trainability")
    from chainrule.verbs.initialize.trainability import _DEPTHS
    from chainrule.verbs.initialize.trainability import trainability as verb

    depths = [d for d in _DEPTHS if d <= deepest] or [deepest]
    with output_on_stderr(), count_bar("training networks") as advance:
        result = verb(activation, depths=depths, seeds=seeds, steps=steps, progress=advance)
    if plotted:
        result.plot(plotted)
    emit(result, as_json)
    return FINE
