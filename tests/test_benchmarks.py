"""Every table that a document names exists, and every table that exists is named in docs/benchmarks.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
DOCUMENTS = (PAGE, ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/**/*.md")))


@pytest.mark.parametrize("document", dict.fromkeys(DOCUMENTS), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_that_is_named_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"python -m benchmarks\.(\w+)", text))
    assert [name for name in sorted(named) if not (ROOT / "benchmarks" / f"{name}.py").is_file()] == []


@pytest.mark.parametrize("document", [PAGE, ROOT / "benchmarks" / "README.md"], ids=lambda path: path.parent.name)
def test_every_table_is_named(document: Path) -> None:
    tables = sorted(
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    )
    assert len(tables) > 20
    text = document.read_text(encoding="utf-8")
    assert [name for name in tables if not re.search(rf"\bbenchmarks\.{name}\b", text)] == []


def test_an_option_that_is_named_is_one_of_its_command() -> None:
    """``### `python -m benchmarks.NAME ... --option``` names options that the module has."""
    named = re.findall(r"^### `python -m benchmarks\.(\w+)([^`]*)`", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(named) > 20
    for name, rest in named:
        source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z_-]+", rest):
            made = 'f"--{' in source and f'"{option[2:]}"' in source
            assert option in source or made, f"{name} has no {option}"
