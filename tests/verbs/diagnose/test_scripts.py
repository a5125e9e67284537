"""Training scripts as they are: what is planted in them is found, and without it nothing is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import SCRIPTS
from chainrule.errors import ModelError
from chainrule.verbs.diagnose.of_script import diagnose_script, script_case

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "fault_cases" / "scripts"
QUICK = ["plain", "amp", "accumulation", "gan", "forgetful", "two_models", "regression", "logarithm"]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in ("trainer", "accelerated"))]
)
def test_script(name: str) -> None:
    kind, where = SCRIPTS[name]
    result = diagnose_script(FOLDER / f"{name}.py")
    serious = [f for f in result.findings if f.severity != "info"]
    assert [f.kind for f in serious] == [kind], str(result)
    assert where in f"{serious[0].where} {serious[0].source}"
    assert diagnose_script(FOLDER / f"{name}.py", ["--sound"]).ok


def test_a_script_as_a_case() -> None:
    case = script_case(FOLDER / "plain.py", [])
    assert case.optimizer is not None and case.trace.bit_equal
    assert [tuple(t.shape) for t in case.batch] == [(32, 20), (32,)]


def test_at_step_and_arguments(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "net = torch.nn.Linear(3, 1)\n"
        "opt = torch.optim.SGD(net.parameters(), lr=float(sys.argv[1]))\n"
        "for step in range(9):\n"
        "    x = torch.full((4, 3), float(step)) + torch.randn(4, 3)\n"
        "    opt.zero_grad()\n"
        "    ((net(x) - 1) ** 2).mean().backward()\n"
        "    opt.step()\n"
    )
    case = script_case(script, ["0.125"], at_step=5)
    assert case.optimizer is not None and case.optimizer.param_groups[0]["lr"] == 0.125
    assert 3 < float(case.batch[0].mean()) < 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "before its first optimizer step"),
        ("import torch\ntorch.ones(3) @ torch.ones(4)\n", "raised RuntimeError"),
        ("import no_such_package\n", "no_such_package"),
        ("import sys\nsys.exit(3)\n", "exited with 3"),
        ("import torch\nw = torch.ones(2, requires_grad=True)\nw.sum().backward()\n", "after backward"),
    ],
)
def test_scripts_that_do_not_train(tmp_path: Path, text: str, said: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(text)
    argv, path = list(sys.argv), list(sys.path)
    with pytest.raises(ModelError, match=said):
        diagnose_script(script)
    assert (sys.argv, sys.path) == (argv, path)


def test_on_the_command_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "chainrule", "diagnose", str(FOLDER / "regression.py")], capture_output=True, text=True
    )
    assert run.returncode == 1 and "broadcast at sub" in run.stdout and "regression.py:20" in run.stdout, run.stderr
    assert "Traceback" not in run.stderr
