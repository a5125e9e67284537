"""The command on activations: ``activation``, of a name, a formula, or a function in a file."""

from __future__ import annotations

import click

from chainrule.cli.arguments import emit, formula_argument, formula_text, json_option
from chainrule.cli.group import FINE, with_debug
from chainrule.cli.target import is_target, load_callable, output_on_stderr


@click.command()
@formula_argument
@json_option
@click.option("--plot", metavar="FILE", help="Draw value and derivative into a file (.png, .svg, .pdf).")
@click.option("--latex", "as_latex", is_flag=True, help="Print LaTeX.")
@with_debug
def activation(formula: str | None, path: str | None, as_json: bool, plot: str | None, as_latex: bool) -> int:
    """What a function of one number does to a gradient: derivative, limits, saturation, gain.

    FORMULA is the name of a function, a formula in one variable, "-" for stdin, or file.py:function with an
    elementwise torch function or module.

    \b
      chainrule activation sigmoid
      chainrule activation "z * tanh(softplus(z))" --plot mish.png
    """
    if as_json and as_latex:
        raise click.UsageError("--json or --latex, not both")
    text = formula_text(formula, path)
    if is_target(text):
        function = load_callable(text, "activation")
        from chainrule.verbs.activation import activation as verb

        with output_on_stderr():
            result = verb(function)
    else:
        from chainrule.verbs.activation import activation as verb

        result = verb(text)
    if plot is not None:
        result.plot(plot)
    emit(result, as_json, (result._repr_latex_() or str(result)) if as_latex else None)
    return FINE
