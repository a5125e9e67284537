"""The commands on formulas: ``derive`` and ``moments``; derive and moments take a model too."""

from __future__ import annotations

from typing import Any

import click

from chainrule.cli.arguments import (
    assume_option,
    at_option,
    emit,
    formula_argument,
    formula_text,
    json_option,
    pairs,
    shape_option,
)
from chainrule.cli.group import FINE, with_debug
from chainrule.cli.target import is_target, load_case, output_on_stderr

LAYOUT = click.option(
    "--layout",
    type=click.Choice(["denominator", "numerator"]),
    default="denominator",
    show_default=True,
    help="dF/dX has shape X+F (the book's) or F+X.",
)
ORDER = click.option("--order", type=click.IntRange(1, 3), default=1, show_default=True, help="First, second or third.")
COTANGENT = click.option("--cotangent", metavar="NAME", help="Vector-Jacobian product with this cotangent.")


@click.command()
@formula_argument
@click.option("--wrt", metavar="NAME", default="all", show_default=True, help="By what; several with commas.")
@click.option(
    "--mode",
    type=click.Choice(["direct", "forward", "reverse", "best"]),
    default="reverse",
    show_default=True,
    help="One closed form, or the steps of forward mode, reverse mode or the cheapest order.",
)
@ORDER
@LAYOUT
@shape_option
@assume_option
@COTANGENT
@at_option
@click.option("--steps", "lines", is_flag=True, help="Every line from the chain rule to the simplified form.")
@json_option
@click.option("--latex", "as_latex", is_flag=True, help="Print LaTeX.")
@click.option("--code", "target", metavar="LANGUAGE", help="Print source that checks itself: numpy, torch, jax.")
@click.option(
    "--notation",
    type=click.Choice(["matrix", "index"]),
    default="matrix",
    show_default=True,
    help="Matrices, or the element first: dz_i/dh_j = Omega_ij.",
)
@with_debug
def derive(
    formula: str | None,
    path: str | None,
    wrt: str,
    mode: str,
    order: int,
    layout: str,
    shapes: dict[str, str],
    assume: dict[str, str],
    cotangent: str | None,
    at: dict[str, Any],
    lines: bool,
    as_json: bool,
    as_latex: bool,
    target: str | None,
    notation: str,
) -> int:
    """The derivative of a formula, step by step; or a model's backward pass as equations.

    FORMULA is one expression or assignments separated by ; or newlines, "-" for stdin, or a model as
    file.py:function.

    \b
      chainrule derive "f1 = exp(x); f2 = f1^2; y = sin(f1 + f2)" --wrt x
      chainrule derive "f = x' @ A @ x" --shape x=n --shape A=n,n --wrt x
    """
    if target and (as_json or as_latex):
        raise click.UsageError("--code, or one of --json and --latex")
    if as_json and as_latex:
        raise click.UsageError("--json or --latex, not both (the JSON holds LaTeX as well)")
    text = formula_text(formula, path)
    options = {"wrt": wrt, "mode": mode, "order": order, "layout": layout, "cotangent": cotangent, "at": at or None}
    if is_target(text):
        case = load_case(text, "derive")
        from chainrule.verbs.derive import derive as verb

        with output_on_stderr():
            result = verb(case, **options)
    else:
        from chainrule.verbs.derive import derive as verb

        result = verb(text, shapes=shapes, assume=assume, **options)
    if target:
        click.echo(result.code(target), nl=False)
        return FINE
    emit(result, as_json, result.latex(notation) if as_latex else result.text(notation, lines))
    return FINE


@click.command()
@formula_argument
@click.option(
    "--given",
    multiple=True,
    metavar="NAME=LAW",
    callback=lambda context, option, values: pairs(values, "--given", '"a=symmetric(0, sigma^2)"'),
    help='The law of a variable: "a=symmetric(0, sigma^2)", "a=normal(0, 1)".',
)
@shape_option
@json_option
@with_debug
def moments(formula: str | None, path: str | None, given: dict[str, str], shapes: dict[str, str], as_json: bool) -> int:
    """Mean, second moment and variance of every quantity; or of every layer of a model, forward and backward.

    \b
      chainrule moments "b = relu(a)" --given "a=symmetric(0, sigma^2)"
    """
    text = formula_text(formula, path)
    if is_target(text):
        if given or shapes:
            raise click.UsageError("--given and --shape are for formulas: a model knows its own inputs")
        case = load_case(text, "moments")
        with output_on_stderr():
            result = case.moments
    else:
        from chainrule.verbs.moments import moments as verb

        result = verb(text, given=given, shapes=shapes)
    emit(result, as_json)
    return FINE
