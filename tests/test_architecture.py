"""Rules about the code itself that no single test of behaviour would notice being broken."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import chainrule

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "chainrule"
MAX_LINES = 500
HEAVY = ("torch", "scipy", "llvmlite", "sklearn", "accelerate", "matplotlib", "jinja2")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_import_contracts() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", sorted(chainrule.__all__))
def test_public_name_has_a_docstring(name: str) -> None:
    assert (getattr(chainrule, name).__doc__ or "").strip()


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=relative)
def test_no_test_is_defined_twice(path: Path) -> None:
    # ruff's F811 sees the plain case; not one in a class, nor one between if and else.
    for scope in ast.walk(parse(path)):
        if isinstance(scope, ast.Module | ast.ClassDef):
            names = Counter(n.name for n in scope.body if isinstance(n, ast.FunctionDef | ast.ClassDef))
            assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=relative)
def test_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


# ---- what is loaded when ---------------------------------------------------------------------------------
def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after `code` ran in a fresh interpreter."""
    code += "\nimport sys; print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_by("import chainrule") & {*HEAVY, "rich", "click"}


def test_a_formula_on_the_command_line_loads_nothing_heavy() -> None:
    run = """
import sys
from chainrule.cli import main
sys.argv = ["chainrule", "derive", "y = x^2", "--wrt", "x"]
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    assert not loaded_by(run) & {*HEAVY}


# ---- no interpreter asks which op it is looking at -------------------------------------------------------
def op_questions(tree: ast.Module) -> list[int]:
    """Lines that decide by an op's identity instead of by a field it declares.

    Found are: comparing, matching or looking up `node.op.name` (or a variable that was assigned it), and
    comparing `node.op` with something imported from `chainrule.ops`, an entry of `OPS` or a string. Allowed
    is what names no op: `a.op is b.op`, `a.op.name == b.op.name`.
    """
    from_ops = {"OPS"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and "ops" in (node.module or "").split("."):
            from_ops |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            from_ops |= {a.asname or a.name for a in node.names if "ops" in a.name.split(".")}

    def is_op(e: ast.expr) -> bool:
        return (isinstance(e, ast.Attribute) and e.attr == "op") or (isinstance(e, ast.Name) and e.id == "op")

    aliases = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "name"
        and is_op(node.value.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def is_name(e: ast.expr) -> bool:
        if isinstance(e, ast.Name):
            return e.id in aliases
        return isinstance(e, ast.Attribute) and e.attr == "name" and is_op(e.value)

    def names_an_op(e: ast.expr) -> bool:
        inside = list(ast.walk(e))
        return any(
            (isinstance(n, ast.Constant) and isinstance(n.value, str)) or (isinstance(n, ast.Name) and n.id in from_ops)
            for n in inside
        )

    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            others = [e for e in sides if not is_op(e) and not is_name(e)]
            by_name = any(map(is_name, sides)) and others
            by_identity = any(map(is_op, sides)) and any(map(names_an_op, others))
            found = by_name or by_identity
        elif isinstance(node, ast.Match):
            found = is_name(node.subject) or is_op(node.subject)
        elif isinstance(node, ast.Subscript):
            found = is_name(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = node.func.attr in {"get", "startswith", "endswith"} and (
                is_name(node.func.value) or any(map(is_name, node.args[:1]))
            )
        else:
            continue
        if found:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", sorted((PACKAGE / "interpreters").rglob("*.py")), ids=relative)
def test_interpreter_asks_no_op_its_name(path: Path) -> None:
    lines = op_questions(parse(path))
    assert not lines, f"{relative(path)}: lines {lines} decide by the op's identity: declare a field of Op instead"


@pytest.mark.parametrize(
    "code",
    [
        'node.op.name == "exp"',
        'node.op.name in {"add", "sub"}',
        "op.name in LINEAR",
        'node.op is OPS["exp"]',
        "from chainrule.ops.elementwise import exp\nnode.op is exp",
        "from chainrule import ops\nnode.op == ops.exp",
        "name = node.op.name\nif name != other: pass",
        "match node.op.name:\n    case 'exp': pass",
        "RULES[node.op.name](node)",
        "RULES.get(node.op.name)",
    ],
)
def test_the_scan_finds(code: str) -> None:
    assert op_questions(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "a.op is b.op",
        "a.op.name == b.op.name",
        "node.op.moments is None",
        "node.op.vjp(g, y, *xs)",
        'raise UnsupportedOpError(f"{node.op.name} has no moment rule")',
        "from chainrule.ops import add\nadd(x, y)",
        'ShapeError(node.params.get("name", node.op.name))',
        "node.op.pure == other",
    ],
)
def test_the_scan_allows(code: str) -> None:
    assert not op_questions(ast.parse(code))


def test_the_page_of_files_is_that_of_the_tree() -> None:
    """docs/files.md names every file and says what the file says; line counts may be those of an earlier day."""
    made = runpy.run_path(str(ROOT / "docs" / "files.py"))["tables"](lines=False)
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    page = re.sub(r"^(## \S+) \(.*\)$", r"\1", re.sub(r"\| \d+ \|", "|  |", page), flags=re.MULTILINE)
    assert page.strip() == made.strip(), "python docs/files.py"
    assert "|  |  |" not in page, "a module without a docstring"
