"""The examples say what is true."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import chainrule as cr

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("problem_*.py")))
def test_example_runs_as_a_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "at epoch 100" in capsys.readouterr().out
    if name == "problem_7_16":
        assert (tmp_path / "loss.svg").stat().st_size > 1000 and (tmp_path / "loss.png").stat().st_size > 1000


def test_problem_7_16() -> None:
    module = example("problem_7_16")
    history = cr.fit(**module.setup())
    assert list(history.loss) == pytest.approx(module.loop(), rel=1e-5)  # float32
    assert history.loss[-1] < 0.3 * history.loss[0]


def test_problem_7_17_both_ways() -> None:
    module = example("problem_7_17")
    printed, logits = (cr.fit(cr.case(**way())) for way in (module.printed, module.with_logits))
    assert list(printed.loss) == pytest.approx(logits.loss, abs=1e-5)
    assert printed.loss[-1] < 0.05


def test_problem_7_17_the_wrong_way() -> None:
    """A sigmoid of a sigmoid lies between 1/2 and 0.731: the loss has a floor."""
    module = example("problem_7_17")
    given = module.squashed_twice()
    history = cr.fit(cr.case(**given))
    targets = given["data"].dataset.tensors[1]
    floor = torch.nn.functional.binary_cross_entropy_with_logits(targets, targets)  # the best that it can say
    assert history.loss[-1] > 0.99 * float(floor) > 0.4
    assert "loss_pairing" in {f.kind for f in cr.diagnose(cr.case(**given)).findings}


def test_the_command_line_trains_an_example(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chainrule", "fit", str(EXAMPLES / "problem_7_17.py:with_logits"), "--json"]
    result = subprocess.run(
        command, cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": str(EXAMPLES.parent)}, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    parameters = torch.load(tmp_path / "chainrule-fit/model.pt", weights_only=True)
    assert parameters["0.weight"].shape == (40, 10)
