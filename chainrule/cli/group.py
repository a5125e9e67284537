"""What all commands share: how a run ends.

Exit codes are 0 (fine), 1 (a check failed or a fault was found), 2 (the request cannot be met) and 130 (interrupted).
Results go to stdout, everything else to stderr; an error is a message, and ``--debug`` shows where it was raised.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import click

from chainrule.errors import ChainruleError

FINE, FAULT, REFUSED, INTERRUPTED = 0, 1, 2, 130
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass
class Run:
    """What is known about one call of the command line while it runs."""

    debug: bool = False


class Commands(click.Group):
    """A group of commands whose every end is an exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs one command and exits.

        Args:
            args: the arguments; without them, those of the process. prog_name: how the program calls itself.

        Raises:
            SystemExit: always, with the exit code.
        """
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal without Greek letters is no error
        run = Run()
        extra["standalone_mode"] = False
        try:
            code = super().main(args, prog_name, obj=run, **extra)
            sys.stdout.flush()
        except BrokenPipeError:  # `chainrule ... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(FINE)
        except BaseException as error:
            sys.exit(_message(error, run))
        sys.exit(code if isinstance(code, int) else FINE)


def _message(error: BaseException, run: Run) -> int:
    """Says on stderr what went wrong; returns the exit code."""
    if run.debug and not isinstance(error, (SystemExit, click.ClickException)):
        traceback.print_exception(error)
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else REFUSED
        case click.Abort() | KeyboardInterrupt():
            click.echo("interrupted", err=True)
            return INTERRUPTED
        case click.NoSuchOption():
            error.show()
            click.echo('(a formula that starts with "-" is written as an assignment: "y = -x^2")', err=True)
            return REFUSED
        case click.ClickException():
            error.show()
            return REFUSED
        case ChainruleError():
            click.echo(f"error: {error}", err=True)
        case RecursionError():
            click.echo("error: nested too deeply for this machine's stack (--debug shows where)", err=True)
        case MemoryError():
            click.echo("error: out of memory (--debug shows where)", err=True)
        case _:
            said = " ".join(str(error).split()) or "no message"
            click.echo(f"internal error: {type(error).__name__}: {said} (run with --debug)", err=True)
    return REFUSED


def with_debug(command: _Command) -> _Command:
    """Adds ``--debug`` to a command."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.find_object(Run).debug = True  # type: ignore[union-attr]

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)
