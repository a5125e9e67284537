"""``report``: everything that is known about a case, on one HTML page that loads nothing, and the same as JSON beside it.

parts     asks the verbs, on one trace; what cannot be made says why
answers   the verdict and the five answers of the first screen
rows      the chain, equal blocks rolled up       page   tables, equations and figures
data      the same as plain data                  writing   both files, whole or not at all

``templates/page.html`` says how it looks. Names come from models and formulas and are escaped there; the page runs no
script and may load nothing, by its own content security policy.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainrule.errors import MissingExtraError, ModelError
from chainrule.render.report.data import data
from chainrule.render.report.page import page
from chainrule.render.report.parts import parts_of
from chainrule.render.report.writing import refuse_unwritable, write_both

if TYPE_CHECKING:
    from chainrule.verbs.chain import Chain
    from chainrule.verbs.fit import FitResult


def report(
    model: Any,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    *,
    objective: Callable[[Any, Any], Any] | None = None,
    path: str | os.PathLike[str] = "report.html",
    fit: FitResult | int | None = None,
    seeds: int = 16,
    chain: Chain | None = None,
    facts: Sequence[tuple[str, str]] = (),
    progress: bool | Callable[[str], None] | None = None,
) -> Path:
    """Everything about a model on one page: verdict, chain, equations, moments, start, memory and, if asked, training.

    The model, its batch, its optimizer and all random generators are afterwards as they were.

    Args:
        model, batch, loss, optimizer, objective: as for every verb, or a Case in place of them.
        path: the page; a file of that name is replaced. The data go beside it, ``report.json`` for ``report.html``.
        fit: so many steps of training, which are taken back; or a training result, for its loss curve.
        seeds: redraws of the weights behind measured gains; 0 measures nothing. chain: the chain, if it is there already.
        facts: (what, value) lines to add to the summary.
        progress: a line per part, on stderr (True; None where that is a terminal) or to a function.

    Returns:
        Where the page is. A part that could not be made is listed on it with its reason.

    Raises:
        MissingExtraError: jinja2 is not installed. ModelError: there is no loss, or the model cannot be run.
        ChainruleError: the page cannot be written there, or other data are in the way of its own.

    >>> import tempfile, torch, chainrule as cr
    >>> net = torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = cr.report(net, (torch.ones(4, 3), torch.zeros(4, 2)), torch.nn.MSELoss(), path=f"{folder}/r.html")
    ...     "://" in path.read_text()  # nothing to load from anywhere
    False
    """
    require_report()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from chainrule.verbs.case import as_case

    place = Path(path)
    refuse_unwritable(place)
    case = as_case(model, batch, loss, optimizer, objective)
    if case.loss is None and case.objective is None:
        raise ModelError(
            "a report is about gradients, and without a loss there are none",
            required="loss=..., or objective=...",
            instead="cr.report(model, (inputs, target), torch.nn.MSELoss())",
        )
    parts = parts_of(case, seeds=seeds, fit=fit, chain=chain, progress=_listener(progress))
    environment = Environment(
        loader=PackageLoader("chainrule.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown = page(parts, facts)
    write_both(environment.get_template("page.html").render(shown), data(parts, shown), place)
    return place


def _listener(progress: bool | Callable[[str], None] | None) -> Callable[[str], None] | None:
    if callable(progress):
        return progress
    if progress is None:
        progress = sys.stderr.isatty()
    return (lambda line: print(line, file=sys.stderr, flush=True)) if progress else None


def require_report() -> None:
    """Asks for the extra before any work is done.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingExtraError("report", "jinja2", "report")
