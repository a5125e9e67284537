"""The pictures of docs/ are used, and two of them are told apart by what they draw, not by their bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pictures import differs, held_against

DOCS = Path(__file__).resolve().parent.parent / "docs"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><metadata>{date}</metadata><text>{word}</text><path d="M 0 {y} L 9 9"/></svg>'


def written(path: Path, date: str = "", word: str = "loss", y: float = 1.0) -> Path:
    path.write_text(SVG.format(date=date, word=word, y=y))
    return path


def test_every_picture_is_shown_and_made_on_some_page() -> None:
    pages = "\n".join(p.read_text(encoding="utf-8") for p in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"])
    for picture in DOCS.glob("pictures/*.svg"):
        assert re.search(rf"\]\((\.\./|docs/)?pictures/{picture.name}\)", pages), f"{picture.name} is on no page"
        assert re.search(rf'"(pictures/)?{picture.name}"', pages), f"no block makes {picture.name}"


def test_a_picture_is_what_it_draws(tmp_path: Path) -> None:
    one = written(tmp_path / "a.svg", date="today")
    assert differs(one, written(tmp_path / "b.svg", date="tomorrow", y=1.5)) == ""
    assert "texts" in differs(one, written(tmp_path / "b.svg", word="gain"))
    assert "away" in differs(one, written(tmp_path / "b.svg", y=30))


def test_a_picture_that_is_not_kept_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAINRULE_PICTURES", raising=False)
    made, kept = tmp_path / "made", tmp_path / "kept"
    made.mkdir()
    written(made / "a.svg")
    with pytest.raises(AssertionError, match="is missing"):
        held_against(made, kept)
    monkeypatch.setenv("CHAINRULE_PICTURES", "write")
    held_against(made, kept)
    monkeypatch.delenv("CHAINRULE_PICTURES")
    held_against(made, kept)
    written(made / "a.svg", y=30)
    with pytest.raises(AssertionError, match="not what this block draws"):
        held_against(made, kept)
