"""Pictures of the documentation are made by the code above them: a block that writes ``pictures/NAME.svg`` is held
against ``docs/pictures/NAME.svg``. ``CHAINRULE_PICTURES=write pytest tests/test_docs.py`` replaces those.

Two pictures are equal if they say the same words and draw the same shapes to within a few points: a loss curve on
another processor differs in its last digits, and no test should fail for that.
"""

from __future__ import annotations

import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TOLERANCE = 4.0  # points; a picture is some 350 wide
SIZE = 80_000  # bytes at most: they live in the repository
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def held_against(made: Path, kept: Path) -> None:
    """Every picture of the folder ``made`` is one of ``kept``; in writing mode it becomes one.

    Raises:
        AssertionError: which picture differs, and in what.
    """
    for picture in sorted(made.glob("*.svg")):
        assert picture.stat().st_size <= SIZE, f"{picture.name}: {picture.stat().st_size} bytes, at most {SIZE}"
        committed = kept / picture.name
        if os.environ.get("CHAINRULE_PICTURES") == "write":
            kept.mkdir(exist_ok=True)
            shutil.copyfile(picture, committed)
        assert committed.exists(), f"docs/pictures/{picture.name} is missing: CHAINRULE_PICTURES=write makes it"
        difference = differs(picture, committed)
        assert not difference, f"docs/pictures/{picture.name} is not what this block draws: {difference}"


def differs(one: Path, other: Path) -> str:
    """In what two SVG files differ, or ''."""
    (words, shapes), (words_, shapes_) = drawn(one), drawn(other)
    if words != words_:
        return f"texts {sorted(words ^ words_)}"
    if [len(s) for s in shapes] != [len(s) for s in shapes_]:
        return (
            f"{len(shapes)} shapes of {sum(map(len, shapes))} numbers, not {len(shapes_)} of {sum(map(len, shapes_))}"
        )
    apart = max(
        (abs(a - b) for s, t in zip(shapes, shapes_, strict=True) for a, b in zip(s, t, strict=True)), default=0
    )
    return f"a point is {apart:.0f} away" if apart > TOLERANCE else ""


def drawn(picture: Path) -> tuple[set[str], list[list[float]]]:
    """The words of a picture, and the coordinates of its paths outside of definitions."""
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    words: set[str] = set()
    shapes: list[list[float]] = []

    def visit(element: ElementTree.Element) -> None:
        tag = element.tag.rpartition("}")[2]
        if tag in ("defs", "metadata"):
            return
        if tag == "text":
            words.add("".join(element.itertext()).strip())
        if tag == "path":
            shapes.append([float(n) for n in NUMBER.findall(element.get("d", ""))])
        for child in element:
            visit(child)

    visit(root)
    return words, shapes
