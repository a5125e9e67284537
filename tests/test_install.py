"""Formulas work where only the core dependencies are installed; what needs more names its extra.

The environment is a real one: a new venv, into which the packages that pyproject.toml declares (and what
those require) are linked from the current one. An import that is used but not declared therefore fails here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("torch", "scipy", "llvmlite", "matplotlib", "jinja2")


def required(requirements: list[str], seen: set[str]) -> set[str]:
    """Names of the distributions that an install of `requirements` brings in."""
    for requirement in map(Requirement, requirements):
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(requirement.name)
        required(distribution(requirement.name).requires or [], seen)
    return seen


class Environment:
    """A Python with the core dependencies and nothing else; `run` calls `python -m chainrule` in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / "bin" / "python"
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
        for name in required(core, set()):
            files = distribution(name).files or []
            for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
        (packages / "chainrule").symlink_to(ROOT / "chainrule")

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
        command = [self.python, "-W", "error", "-m", "chainrule", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=clean, input=stdin, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("core"))


def squeeze(text: str) -> str:
    return "".join(text.split())


def test_the_environment_is_what_it_says(core: Environment) -> None:
    code = f"from importlib.util import find_spec; print([m for m in {ABSENT} if find_spec(m)])"
    found = subprocess.run([core.python, "-c", code], cwd=core.folder, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_derive(core: Environment) -> None:
    result = core.run("derive", "y = x^2", "--wrt", "x")
    assert result.returncode == 0, result.stderr
    assert "2*x" in squeeze(result.stdout)


def test_derive_from_stdin(core: Environment) -> None:
    result = core.run("derive", "-", "--wrt", "x", stdin="y = x^2\n")
    assert result.returncode == 0, result.stderr
    assert "2*x" in squeeze(result.stdout)


def test_check_right_and_wrong(core: Environment) -> None:
    formula = ("check", "l = (f3 - y)^2", "--wrt", "f3", "--claim")
    assert core.run(*formula, "2*(f3 - y)").returncode == 0
    wrong = core.run(*formula, "2*f3")
    assert wrong.returncode == 1, wrong.stderr
    assert "2*(f3-y)" in squeeze(wrong.stdout)


def test_moments(core: Environment) -> None:
    result = core.run("moments", "b = relu(a)", "--given", "a=symmetric(0, sigma^2)")
    assert result.returncode == 0, result.stderr
    assert "sigma^2/2" in squeeze(result.stdout)


@pytest.mark.parametrize("arguments", [["demo"], ["diagnose", "x.py:f"]], ids=" ".join)
def test_a_verb_that_needs_torch_names_the_extra(core: Environment, arguments: list[str]) -> None:
    (core.folder / "x.py").write_text("import torch\n\ndef f():\n    return {}\n", encoding="utf-8")
    result = core.run(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert 'pip install "chainrule[torch]"' in result.stderr
    assert "Traceback" not in result.stderr
