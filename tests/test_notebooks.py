"""Notebooks run from the first cell to the last, and results show themselves in one."""

from __future__ import annotations

import json
from pathlib import Path
from xml.dom.minidom import parseString

import pytest
import torch
from torch import nn

import chainrule as cr

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)  # as where it is not installed
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # what is stored is the source alone
            exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), names)
    if path.stem == "slider":
        frames: dict = names["frames"]  # type: ignore[assignment]
        losses = {scale: history.loss[-1] if history else float("inf") for scale, (_, history) in frames.items()}
        assert losses[0.5] < 0.1 * min(losses[0.001], losses[8.0])  # too small and too large a start learn nothing
        assert all(len(figure.axes) == 2 for figure, _ in frames.values())


@pytest.fixture(scope="module")
def case():
    return cr.examples.figure_7_8()


def test_results_show_themselves(case) -> None:
    with torch.random.fork_rng():
        broken = cr.examples.figure_7_8_zeros()
    shown = {
        "chain": (case.chain, "dloss/dh_3"),
        "moments": (case.moments, "Linear(40, 40)"),
        "healthy": (case.diagnosis, "Nothing wrong found"),
        "broken": (broken.diagnosis, "symmetric"),
        "plan": (cr.plan(case), "activations"),
        "start": (cr.initialize_(case, dry_run=True), "2.weight"),
        "activation": (cr.activation("gelu"), "sup |f"),
        "equations": (case.equations, "<math>"),
    }
    for name, (result, part) in shown.items():
        html = result._repr_html_()
        assert part in html, name
        parseString(f"<div>{html.replace('&nbsp;', ' ')}</div>")  # well formed: nothing unescaped


def test_results_draw_on_axes(case) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    drawn = [case.chain, case.moments, case.diagnosis, cr.plan(case), cr.activation("tanh")]
    drawn.append(cr.fit(cr.examples.figure_7_8(), epochs=3, progress=False))
    for result in drawn:
        own = result.plot(ax=axes)
        assert own is axes and axes.lines, type(result).__name__
        axes.clear()
    for result in drawn[:4]:
        assert result.plot().figure is not axes.figure


def test_names_in_tables_are_text() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("<b>&", nn.Linear(2, 1))
    hostile = cr.case(model, (torch.ones(3, 2), torch.zeros(3, 1)), nn.MSELoss())
    for result in (hostile.chain, hostile.moments, hostile.diagnosis):
        assert "<b>" not in result._repr_html_().replace("<b>Nothing wrong found</b>", "")
