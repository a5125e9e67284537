"""The commands on models: ``chain``, ``diagnose``, ``explain``, ``fit`` and ``report``; chain takes a formula too."""

from __future__ import annotations

import difflib
import sys

import click

from chainrule.cli.arguments import emit, formula_argument, formula_text, json_option, shape_option
from chainrule.cli.group import FAULT, FINE, with_debug
from chainrule.cli.target import is_target, load_case, output_on_stderr
from chainrule.errors import ChainruleError, ModelError

_TARGET = click.argument("target", metavar="FILE.py:FUNCTION")
_ABOUT_TARGETS = """

    The function returns chainrule.case(model, batch, loss, optimizer), or these by name in a dict.
"""


def _with_targets(text: str) -> str:
    return text + _ABOUT_TARGETS


@click.command(help=_with_targets("The chain of factors from the loss to the input, with what is known about each."))
@formula_argument
@shape_option
@json_option
@with_debug
def chain(formula: str | None, path: str | None, shapes: dict[str, str], as_json: bool) -> int:
    text = formula_text(formula, path)
    if is_target(text):
        case = load_case(text, "chain")
        with output_on_stderr():
            result = case.chain
    else:
        from chainrule.verbs.chain import chain as verb

        result = verb(text, shapes=shapes)
    from chainrule.render.terminal import chain_page

    emit(result, as_json, "\n".join(chain_page(result)))
    return FINE


@click.command(help=_with_targets("What keeps a network from training, with the cause and the fix; exit code 1 if anything."))
@_TARGET
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning"]),
    default="error",
    show_default=True,
    help="The least severity that makes the exit code 1.",
)
@json_option
@with_debug
def diagnose(target: str, fail_on: str, as_json: bool) -> int:
    case = load_case(target, "diagnose")
    from chainrule.verbs.diagnose import diagnose as verb

    with output_on_stderr():
        result = verb(case)
    emit(result, as_json)
    failing = ("error",) if fail_on == "error" else ("error", "warning")
    return FAULT if any(found.severity in failing for found in result.findings) else FINE
