"""The command ``check``: one claimed derivative, a table of many, or a function with its own backward."""

from __future__ import annotations

import click

from chainrule.cli.arguments import assume_option, emit, formula_argument, formula_text, json_option, shape_option
from chainrule.cli.formulas import COTANGENT, LAYOUT, ORDER
from chainrule.cli.group import FAULT, FINE, REFUSED, with_debug
from chainrule.cli.target import load_callable, output_on_stderr


@click.command()
@formula_argument
@click.option("--wrt", metavar="NAME", help="The variable, or a named intermediate.")
@click.option("--claim", metavar="FORMULA", help="The derivative that is claimed: a formula, or LaTeX.")
@click.option(
    "--answers",
    metavar="FILE.csv",
    help="Check a table of claims instead: columns formula, wrt, claim; if wanted shapes, assume, "
    "layout, order, cotangent, name. - for stdin.",
)
@click.option("--reference", metavar="FILE:NAME", help="The plain version of a function with its own backward.")
@click.option("--inputs", metavar="FILE:NAME", help="What makes the inputs of both (default: inputs, beside it).")
@click.option("--dtype", metavar="NAME", help="In which the function runs: float32, bfloat16, ...")
@ORDER
@LAYOUT
@shape_option
@assume_option
@COTANGENT
@json_option
@with_debug
def check(
    formula: str | None,
    path: str | None,
    wrt: str | None,
    claim: str | None,
    answers: str | None,
    reference: str | None,
    inputs: str | None,
    dtype: str | None,
    order: int,
    layout: str,
    shapes: dict[str, str],
    assume: dict[str, str],
    cotangent: str | None,
    as_json: bool,
) -> int:
    """Whether a claimed derivative is right; exit code 1 if it is not.

    \b
      chainrule check "l = (f3 - y)^2" --wrt f3 --claim "2*(f3 - y)"
      chainrule check "A @ x" --shape A=m,n --shape x=n --wrt x --claim "\\mathbf{A}^T"
      chainrule check --answers answers.csv
      chainrule check kernels.py:fused --reference kernels.py:plain --inputs kernels.py:make_inputs

    With --reference, FORMULA names a function whose own backward is held against the reference's derivative.
    Of a table, every row is checked: exit code 2 if a row cannot be read, else 1 if an answer is wrong.
    """
    if answers is not None:
        if formula is not None or path is not None or wrt is not None or claim is not None or shapes or assume:
            raise click.UsageError("--answers FILE.csv alone: formulas, variables, claims and shapes are its columns")
        return _table(answers, as_json)
    if reference is not None:
        if wrt or claim:
            raise click.UsageError("--wrt and --claim are for formulas: with --reference every gradient is compared")
        return _callable(formula_text(formula, path), reference, inputs, dtype, as_json)
    for name, value in (("--wrt", wrt), ("--claim", claim)):
        if value is None:
            raise click.UsageError(f"Missing option '{name}'.")
    from chainrule.verbs.check import check as verb

    text = formula_text(formula, path)
    result = verb(
        text,
        wrt=wrt or "",
        claim=claim or "",
        shapes=shapes,
        assume=assume,
        layout=layout,
        order=order,
        cotangent=cotangent,
    )
    emit(result, as_json)
    return FINE if result.holds else FAULT


def _callable(target: str, reference: str, inputs: str | None, dtype: str | None, as_json: bool) -> int:
    where = inputs or f"{reference.rpartition(':')[0]}:inputs"
    function, plain, make = (load_callable(t, "check") for t in (target, reference, where))
    from chainrule.verbs.check import check as verb

    with output_on_stderr():
        result = verb(function, make(), reference=plain, dtype=dtype)
    emit(result, as_json)
    return FINE if result.holds else FAULT


def _table(path: str, as_json: bool) -> int:
    from chainrule.render.terminal import table
    from chainrule.verbs.grade import grade

    graded = grade(formula_text("-", None) if path == "-" else formula_text(None, path))
    named = any(row.name for row in graded.rows)
    rows = [(str(r.line), *([r.name] if named else []), r.verdict, r.claim, r.comment) for r in graded.rows]
    lines = table(("line", *(["name"] if named else []), "verdict", "claim", "comment"), rows, right=[0])
    emit(graded, as_json, "\n".join([*lines, "", graded.total]))
    return REFUSED if graded.count("broken") else FAULT if graded.count("wrong") else FINE
