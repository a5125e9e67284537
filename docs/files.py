"""Writes docs/files.md, every file of the package with its lines and what it is for: ``python docs/files.py``.

What a file is for is the first sentence of its module docstring, so the table cannot say what the file does not.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "files.md"
HEAD = """# Files

Made by `python docs/files.py` from the first sentence of every module. The folders, from the bottom up:
[architecture.md](architecture.md).
"""


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(text.split("\n\n")[0].split())
    return sentence.replace("|", "\\|")


def tables(lines: bool = True) -> str:
    """The page: one table per folder."""
    package = ROOT / "chainrule"
    found: dict[Path, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        found.setdefault(path.parent, []).append(path)
    parts = [HEAD]
    for folder, paths in found.items():
        own = [p for p in paths if p.name != "__init__.py" or p.stat().st_size]
        count = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in paths)
        size = f" ({len(paths)} files, {count:,} lines)" if lines else ""
        parts.append(f"## {folder.relative_to(ROOT)}{size}\n")
        parts.append("| file | lines | what it is for |\n|---|---:|---|")
        for path in own:
            length = len(path.read_text(encoding="utf-8").splitlines()) if lines else ""
            parts.append(f"| `{path.name}` | {length} | {purpose(path)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(tables(), encoding="utf-8")
