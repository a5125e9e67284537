"""The commands on models: ``chain`` (formulas too), ``diagnose``, ``explain`` and ``report``."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from chainrule.cli.arguments import emit, formula_argument, formula_text, json_option, shape_option
from chainrule.cli.group import FAULT, FINE, with_debug
from chainrule.cli.progress import working
from chainrule.cli.target import is_target, load_case, output_on_stderr, require_torch, script_of
from chainrule.errors import ChainruleError

_TARGET = click.argument("target", metavar="TARGET")
_ARGUMENTS = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
_AT_STEP = click.option(
    "--at-step", type=click.IntRange(1), default=1, show_default=True, help="Of a script: which optimizer step."
)


def _no_arguments(target: str, arguments: tuple[str, ...]) -> None:
    """Arguments are a script's."""
    if arguments:
        raise click.UsageError(f"no such option or argument for {target}: {' '.join(arguments)}")


@click.command()
@formula_argument
@click.option("--wrt", metavar="NAME", help="Where a formula's chain ends; the first variable if not given.")
@click.option("--seeds", type=click.IntRange(0), default=16, show_default=True, help="Redraws of a model's weights.")
@shape_option
@json_option
@with_debug
def chain(
    formula: str | None, path: str | None, wrt: str | None, seeds: int, shapes: dict[str, str], as_json: bool
) -> int:
    """The factors from the loss to the input, and what is known about each.

    FORMULA is a formula, or a model as file.py:function.

    \b
      chainrule chain "f = w*x; h = sin(f); l = (h - y)^2" --wrt x
    """
    text = formula_text(formula, path)
    if is_target(text):
        case = load_case(text, "chain")
        from chainrule.verbs.chain import chain as verb

        with output_on_stderr(), working("measuring"):
            result = verb(case, seeds=seeds)
    else:
        from chainrule.verbs.chain import chain as verb

        result = verb(text, shapes=shapes, wrt=wrt)
    from chainrule.render.terminal import chain_lines

    emit(result, as_json, "\n".join(chain_lines(result)))
    return FINE


@click.command(context_settings={"ignore_unknown_options": True})
@_TARGET
@_ARGUMENTS
@_AT_STEP
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning"]),
    default="warning",
    show_default=True,
    help="The least severe finding that makes the exit code 1.",
)
@json_option
@with_debug
def diagnose(target: str, arguments: tuple[str, ...], at_step: int, fail_on: str, as_json: bool) -> int:
    """What keeps a model from training: cause, layer and fix; exit code 1 if anything does.

    TARGET is a training script as it is (its own ARGUMENTS follow), which is run up to its first optimizer step; a
    recording (crash.pt) that a monitor wrote; or file.py:function, a function that returns
    chainrule.case(model, batch, loss, optimizer), or these by name in a dict.

    \b
      chainrule diagnose train.py --lr 0.1
      chainrule diagnose model.py:build
    """
    script = script_of(target)
    if Path(target).suffix == ".pt":
        require_torch("diagnose")
        from chainrule.verbs.diagnose.of_recording import diagnose_recording

        with output_on_stderr(), working("replaying"):
            program = load_case(arguments[0], "diagnose") if arguments else None
            result = diagnose_recording(Path(target), program)
    elif script is not None:
        require_torch("diagnose")
        from chainrule.verbs.diagnose.of_script import diagnose_script

        with output_on_stderr(), working("running the script"):
            result = diagnose_script(script, arguments, at_step)
    else:
        _no_arguments(target, arguments)
        case = load_case(target, "diagnose")
        with output_on_stderr(), working("diagnosing"):
            result = case.diagnosis
    from chainrule.render.diagnosis import diagnosis_lines

    emit(result, as_json, "\n".join(diagnosis_lines(result)))
    return FAULT if result.worst(fail_on) else FINE


@click.command()
@click.argument("kind", required=False)
@with_debug
def explain(kind: str | None) -> int:
    """What a kind of finding means, and what to do; without KIND, the list of kinds."""
    from chainrule.verbs.kinds import KINDS

    if kind is None:
        click.echo("\n".join(KINDS))
        return FINE
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        raise ChainruleError(
            f"there is no kind of finding {kind!r}" + (f", did you mean {near[0]!r}?" if near else ""),
            given=kind,
            required=f"one of {', '.join(KINDS)}",
            instead=f"chainrule explain {near[0] if near else next(iter(KINDS))}",
        )
    click.echo(f"{kind}\n\n{click.wrap_text(KINDS[kind], 80)}")
    return FINE


@click.command(context_settings={"ignore_unknown_options": True})
@_TARGET
@_ARGUMENTS
@_AT_STEP
@click.option("--path", default="report.html", show_default=True, help="Where to write the page; its data go beside it.")
@click.option("--fit", "steps", type=click.IntRange(1), metavar="N", help="Train N steps too, and take them back.")
@click.option("--seeds", type=click.IntRange(0), default=16, show_default=True, help="Redraws behind measured gains.")
@with_debug
def report(
    target: str, arguments: tuple[str, ...], at_step: int, path: str, steps: int | None, seeds: int
) -> int:
    """Write everything about a model on one self-contained HTML page, and the same as JSON beside it.

    TARGET is file.py:function, a function that returns chainrule.case(model, batch, loss, optimizer), or these by name
    in a dict; or a training script as it is (its own ARGUMENTS follow). A line of progress per part goes to stderr.

    \b
      chainrule report model.py:setup --fit 200
      chainrule report train.py --lr 0.1
    """
    from chainrule.render.report import report as verb
    from chainrule.render.report import require_report

    require_torch("report")
    require_report()
    if script_of(target) is None:
        _no_arguments(target, arguments)
    case = load_case(target, "report", arguments, at_step)
    with output_on_stderr():
        written = verb(case, path=path, fit=steps, seeds=seeds, progress=lambda line: click.echo(line, err=True))
    click.echo(written)
    return FINE
