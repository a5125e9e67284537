"""What commands take and give: formulas from arguments, stdin or files, shapes, and results as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from chainrule.errors import FormulaError
from chainrule.render.plain import plain

_Command = TypeVar("_Command", bound=Callable[..., Any])


# ---- options that several commands have ------------------------------------------------------------------
def formula_argument(command: _Command) -> _Command:
    """``FORMULA`` (text, ``-`` for stdin) or ``--file PATH``."""
    command = click.option("--file", "path", metavar="PATH", help="Read the formula from a file.")(command)
    return click.argument("formula", required=False, metavar="FORMULA")(command)


def shape_option(command: _Command) -> _Command:
    """``--shape A=m,n``, any number of times."""
    return click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=DIMS",
        callback=lambda context, option, values: pairs(values, "--shape", "A=m,n"),
        help="Dimensions of a variable, names or numbers; others are scalars.",
    )(command)


def at_option(command: _Command) -> _Command:
    """``--at x=0.3`` or ``--at "x=[1, 2]"``, any number of times."""
    return click.option(
        "--at",
        multiple=True,
        metavar="NAME=VALUE",
        callback=lambda context, option, values: {k: _number(k, v) for k, v in pairs(values, "--at", "x=0.3").items()},
        help='Numbers to evaluate every step at: x=0.3, "x=[1, 2]", n=3 for a dimension.',
    )(command)


def _number(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if _sizes(value) is None:
        raise click.UsageError(f"--at {name}={text} is not a number or an array of numbers: --at x=0.3")
    return value


def _sizes(value: Any) -> tuple[int, ...] | None:
    """The shape of a number or of nested lists of them; None for anything else."""
    if not isinstance(value, list):
        return () if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    inner = {_sizes(v) for v in value}
    return (len(value), *first) if len(inner) == 1 and (first := inner.pop()) is not None else None


def assume_option(command: _Command) -> _Command:
    """``--assume S=symmetric``, any number of times."""
    return click.option(
        "--assume",
        "assume",
        multiple=True,
        metavar="NAME=KIND",
        callback=lambda context, option, values: pairs(values, "--assume", "S=symmetric"),
        help="What a matrix is: symmetric, diagonal, lower triangular, upper triangular, positive definite.",
    )(command)


def json_option(command: _Command) -> _Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


# ---- reading ---------------------------------------------------------------------------------------------
def pairs(values: Iterable[str], option: str, example: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping.

    Raises:
        click.UsageError: a text without ``=`` or without a name, or a name given twice.

    >>> pairs(["A=m,n", "x = n"], "--shape", "A=m,n")
    {'A': 'm,n', 'x': 'n'}
    """
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals):
            raise click.UsageError(f"{option} {text!r} is not of the form NAME=VALUE: {option} {example}")
        if name in found:
            raise click.UsageError(f"{option} gives {name!r} twice: {found[name]!r} and {value!r}")
        found[name] = value
    return found


def formula_text(formula: str | None, path: str | None) -> str:
    """The formula of a command: its argument, stdin for ``-``, or the text of a file.

    Raises:
        click.UsageError: neither or both are given. FormulaError: the file cannot be read as text.
    """
    if (formula is None) == (path is None):
        raise click.UsageError("give a formula, - to read it from stdin, or --file PATH")
    if path is None and formula != "-":
        return formula or ""
    try:
        data = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise FormulaError(
            f"cannot read the formula from {path or 'stdin'}: {error.strerror or error}",
            required="a file of text",
            instead='chainrule derive "y = x^2" --wrt x, or --file with a path that exists',
        ) from None
    except UnicodeDecodeError as error:
        raise FormulaError(
            f"the formula from {path or 'stdin'} is not text: byte {error.start} is not UTF-8",
            required="text in UTF-8",
        ) from None


# ---- results ---------------------------------------------------------------------------------------------
def emit(result: Any, as_json: bool, text: str | None = None) -> None:
    """Prints a result: its ``to_dict()`` as one JSON object, or ``text`` (``str(result)`` without it)."""
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        click.echo(json.dumps(plain(result.to_dict()), indent=2, ensure_ascii=not unicode, allow_nan=False))
    else:
        click.echo(str(result) if text is None else text)
