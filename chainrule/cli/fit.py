"""The command ``fit``: trains what a function returns, and writes the loss curve and the parameters."""

from __future__ import annotations

import sys

import click

from chainrule.cli.arguments import emit, json_option
from chainrule.cli.group import FINE, INTERRUPTED, with_debug
from chainrule.cli.target import load_case, output_on_stderr
from chainrule.errors import ModelError


@click.command()
@click.argument("target", metavar="FILE.py:FUNCTION")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data, if the function does not say.")
@click.option(
    "--path",
    "folder",
    default="chainrule-fit",
    show_default=True,
    help="Folder for loss.svg, loss.png and model.pt (the state_dict).",
)
@click.option("--backend", type=click.Choice(["auto", "native", "torch"]), default="auto", show_default=True)
@click.option("--save-dir", metavar="FOLDER", help="Save the run there while it trains.")
@click.option("--resume", is_flag=True, help="Go on from what is in --save-dir, bit for bit.")
@json_option
@with_debug
def fit(
    target: str, epochs: int | None, folder: str, backend: str, save_dir: str | None, resume: bool, as_json: bool
) -> int:
    """Train a model on the data of its function; write the loss curve and the trained parameters.

    The function returns a dict (or chainrule.case(...)) with model, data, loss, optimizer and epochs, and a scheduler
    if there is one. Ctrl-C ends training and writes what there is.

    \b
      chainrule fit model.py:setup
      chainrule fit model.py:setup --save-dir run --resume
    """
    case = load_case(target, "fit")
    epochs = epochs or case.epochs
    missing = [n for n, v in (("data", case.data), ("optimizer", case.optimizer)) if v is None]
    if missing or epochs is None:
        missing += ["epochs"] if epochs is None else []
        raise ModelError(
            f"{target} does not say with what to train: {', '.join(missing)} missing",
            given=", ".join(n for n in ("model", "batch", "loss", "optimizer", "data", "epochs")
                            if getattr(case, n) is not None),
            required="data (a DataLoader or (X, y)), loss, optimizer and epochs",
            instead='return {..., "data": loader, "epochs": 10}'
            if missing != ["epochs"] else f"chainrule fit {target} --epochs 10",
        )  # fmt: skip
    from chainrule.render.terminal import can_draw, curve
    from chainrule.verbs.fit import fit as verb
    from chainrule.verbs.fit.written import write_results

    with output_on_stderr():
        result = verb(case, epochs=epochs, backend=backend, save_dir=save_dir, resume=resume)
    written = write_results(case.model, result, folder)
    if len(written) == 1 and result.loss:
        click.echo('no loss curve: matplotlib is not installed (pip install "chainrule[report]")', err=True)
    drawn = curve(result.loss, blocks=can_draw(sys.stdout.encoding)) if len(result.loss) > 1 else []
    emit(result, as_json, "\n".join([str(result), *drawn]))
    click.echo(f"wrote {', '.join(map(str, written))}", err=True)
    return INTERRUPTED if result.interrupted else FINE
