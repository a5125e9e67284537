"""The command ``plan``."""

import json

import pytest
from click.testing import CliRunner

from chainrule.cli import cli

MODEL = """
import torch, chainrule as cr
from torch import nn
def setup():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(6)))
    batch = torch.randn(256, 32), torch.randn(256, 32)
    return cr.case(model, batch, nn.functional.mse_loss, torch.optim.Adam(model.parameters()))
"""


@pytest.fixture
def target(tmp_path):
    (tmp_path / "model_to_plan.py").write_text(MODEL)
    return f"{tmp_path / 'model_to_plan.py'}:setup"


def test_report(target):
    result = CliRunner().invoke(cli, ["plan", target, "--budget", "0.6"])
    assert result.exit_code == 0, result.output
    for part in ("activations", "optimizer state", "again", "<- this plan"):
        assert part in result.stdout


def test_json_and_file(target, tmp_path):
    file = tmp_path / "plan.json"
    result = CliRunner().invoke(cli, ["plan", target, "--json", "--save", str(file)])
    body = json.loads(result.stdout)
    assert body["peak_bytes"] == body["baseline_bytes"] and body["recompute_fraction"] == 0.0
    assert json.loads(file.read_text())["order"]


def test_too_little_names_the_least(target):
    result = CliRunner().invoke(cli, ["plan", target, "--budget", "10kB"])
    assert result.exit_code == 1 and "at least" in result.output


def test_no_budget(target):
    result = CliRunner().invoke(cli, ["plan", target, "--budget", "8 parsecs"])
    assert result.exit_code == 2 and "8GB" in result.output


def test_torch_stands_among_the_plans(target):
    result = CliRunner().invoke(cli, ["plan", target, "--budget", "0.6", "--compare"])
    assert result.exit_code == 0, result.output
    curve = result.stdout.split("what less memory costs")[1].splitlines()[1:]
    offers = [k for k, line in enumerate(curve) if "torch: " in line]
    assert any("eager" in curve[k] for k in offers) and all("(ours: " in curve[k] for k in offers)
    own = next(k for k, line in enumerate(curve) if "<- this plan" in line)
    assert min(offers) < own  # by peak: eager needs more than the plan
