"""The command line: ``chainrule VERB ...``, also as ``python -m chainrule``.

One command per verb. Arguments are read and results printed here; what they mean is the verbs' business. A command
imports its verb when it is called, so that ``chainrule derive`` of a formula starts fast and needs no torch.
``group`` holds the rules of exit codes and errors, ``arguments`` the common options, ``target`` models by name.
"""

from __future__ import annotations

import click

from chainrule import __version__
from chainrule.cli.activation import activation
from chainrule.cli.check import check
from chainrule.cli.checkpoint import plan
from chainrule.cli.demo import demo
from chainrule.cli.fit import fit
from chainrule.cli.formulas import derive, moments
from chainrule.cli.group import Commands, with_debug
from chainrule.cli.initialize import initialize, trainability
from chainrule.cli.models import chain, diagnose, explain, report

_EXAMPLES = """\
chainrule tells you what your network's gradients are, and whether they will flow. Three things to try:

  chainrule derive "f = exp(x); y = sin(f) + f^2" --wrt x
  chainrule check "l = (f - y)^2" --wrt f --claim "2*f"
  chainrule demo

chainrule --help lists the commands, chainrule COMMAND --help what each can do."""


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="chainrule %(version)s")
@with_debug
@click.pass_context
def cli(context: click.Context) -> None:
    """What your network's gradients are, whether they will flow, and whether it trains.

    Exit codes: 0 fine, 1 a check failed or a fault was found, 2 the request cannot be met.
    """
    if context.invoked_subcommand is None:
        click.echo(_EXAMPLES)


for _command in (
    derive,
    check,
    activation,
    moments,
    initialize,
    trainability,
    chain,
    diagnose,
    explain,
    plan,
    fit,
    report,
    demo,
):
    cli.add_command(_command)


def main() -> None:
    """Runs the command line on the arguments of the process.

    Raises:
        SystemExit: always; the code is 0, 1 or 2, or 130 when interrupted.
    """
    cli.main(prog_name="chainrule")
