"""What is installed is what is in the tree: the wheel, made from the source distribution, file by file."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "_build")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(importlib.util.find_spec(name) for name in ("build", "setuptools")):
        pytest.skip("the packages build and setuptools are not installed")
    tree, out = tmp_path_factory.mktemp("tree") / "chainrule", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, tree, ignore=NOT_OURS)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_the_wheel_has_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "chainrule"
    ours = {str(p.relative_to(ROOT)) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert ours <= names
    assert {n for n in names if not n.startswith("chainrule/")} == {n for n in names if ".dist-info/" in n}
    assert "chainrule/py.typed" in names


def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (folder,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
    metadata = message_from_string(archive.read(f"{folder}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"all", "torch", "report", "sklearn", "distributed"} <= set(metadata.get_all("Provides-Extra", []))
    points = archive.read(f"{folder}/entry_points.txt").decode()
    assert "chainrule = chainrule.cli:main" in points and "[torch_dynamo_backends]" in points
    assert f"{folder}/licenses/LICENSE" in archive.namelist()


def test_the_source_distribution_has_what_the_wheel_was_made_of(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    names = {"/".join(n.split("/")[1:]) for n in tarfile.open(source).getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "chainrule/render/templates/page.html"} <= names
