"""The command ``plan``."""

from __future__ import annotations

import sys

import click

from chainrule.cli.arguments import emit, json_option
from chainrule.cli.group import FAULT, FINE, with_debug
from chainrule.cli.progress import working
from chainrule.cli.target import load_case, output_on_stderr


@click.command()
@click.argument("target", metavar="FILE.py:FUNCTION")
@click.option("--budget", metavar="SIZE", help='Memory for a step: "8GB", "512MiB", or 0.5 of the activations.')
@click.option("--every", type=click.IntRange(1), help="Keep every so many layers, in place of a budget.")
@click.option("--keep", multiple=True, metavar="MODULE", help="Keep the output of this module; may be repeated.")
@click.option("--calibrate", is_flag=True, help="Measure each distinct op once on this machine.")
@click.option(
    "--compare", is_flag=True, help="Show what torch's own checkpointing and memory budget do among the plans."
)
@click.option("--save", type=click.Path(dir_okay=False), help="Write the plan to a file.")
@json_option
@with_debug
def plan(
    target: str,
    budget: str | None,
    every: int | None,
    keep: tuple[str, ...],
    calibrate: bool,
    compare: bool,
    save: str | None,
    as_json: bool,
) -> int:
    """What a training step needs, whether it fits, and the cheapest step within a budget.

    The function returns chainrule.case(model, batch, loss, optimizer), or these by name in a dict. The exit code is 1
    if no plan fits.

    \b
      chainrule plan model.py:setup
      chainrule plan model.py:setup --budget 2GB
    """
    if compare and as_json:
        raise click.UsageError("--compare is a table for people: leave --json away")
    case = load_case(target, "plan")
    from chainrule.errors import BudgetError
    from chainrule.render.plans import plan_lines
    from chainrule.verbs.checkpoint.compared import compared
    from chainrule.verbs.checkpoint.plan import plan as verb

    try:
        with output_on_stderr(), working("planning"):
            result = verb(case, budget=budget, every=every, keep=keep, calibrate=calibrate)
            if save is not None:
                result.save(save)
            lines = [] if as_json else plan_lines(result, compared(result) if compare else ())
    except BudgetError as error:
        click.echo(str(error), err=True)
        return FAULT
    emit(result, as_json, "\n".join(lines))
    sys.stdout.flush()
    return FINE
