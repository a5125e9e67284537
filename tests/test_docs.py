"""What is shown runs: every block of README.md and docs/, and every docstring example, is executed.

The rules for whoever writes documentation. All blocks of one file are run in order, in one temporary
directory and in a Python process of their own (so that a block may register an op or change a default).

    ```python        executed; lines with `>>>` are a doctest. If the first line is `# model.py`, the block is
                     also saved under that name, for a command to use. The folder examples/ is there too.
    ```console       (or bash, sh, shell) lines `$ chainrule ...` are run, pipes included. Lines that follow
                     are compared with what was printed (stdout, or stderr if that is empty), `...` matching
                     anything. The exit code must be 0, or the one that ends the command: `# exit 1`.
                     Without any `$ `, every line is a command. Set-up commands (pip, make, git, ...) are
                     not run; other commands than chainrule and python need the comment below.
    <!-- output -->  above a ```text block: what the Python block before it printed.
    pictures/NAME.svg, written by a Python block, is held against docs/pictures/NAME.svg (``pictures.py``).
    <!-- not executed: reason -->    above a block: skipped, and the reason is shown.
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import io
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pictures import held_against

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(p for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if p.is_file())
CONSOLE = {"console", "bash", "sh", "shell"}
SET_UP = re.compile(r"(\S*/)?(pip|make|git|cd|source|pre-commit|python[\d.]* -m (venv|pip|pytest))(\s|$)")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WIDTH = "100"  # columns of the terminal that documentation is written for
TIMEOUT = 600  # seconds, for one document


# ---- reading ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is where its content starts, `comment` the HTML comment right above it."""

    line: int
    language: str
    text: str
    comment: str

    @property
    def runs(self) -> bool:
        return self.language in CONSOLE | {"python"} or (self.language == "text" and self.comment == "output")


FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>`{3,}|~{3,})[ ]*(?P<language>\w*)[^`\n]*\n"
    r"(?P<text>.*?)^[ ]*(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"<!--((?:(?!-->).)*)-->\s*\Z", re.DOTALL)


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    blocks, end = [], 0
    for match in FENCE.finditer(text):
        comment = COMMENT.search(text[end : match.start()])
        dedented = re.sub(f"(?m)^{match['indent']}", "", match["text"])
        line = text.count("\n", 0, match.start("text")) + 1
        blocks.append(Block(line, match["language"], dedented, comment[1].strip() if comment else ""))
        end = match.end()
    return blocks


@dataclass(frozen=True)
class Command:
    """A `$ ` line of a console block, its expected exit code, and the output shown below it."""

    text: str
    exit_code: int
    expected: str


def commands_of(text: str) -> Iterator[Command]:
    lines = text.splitlines()
    prompt = "$ " if any(line.startswith("$ ") for line in lines) else ""
    while lines:
        command = lines.pop(0)
        if not command.strip() or command.startswith("#"):
            continue
        if not command.startswith(prompt):
            raise ValueError(f"neither a `$ ` command nor the output of one: {command!r}")
        while lines and (command.endswith("\\") or _open_quote(command)):
            command += "\n" + lines.pop(0)
        output = []
        while lines and not lines[0].startswith(prompt):
            output.append(lines.pop(0))
        code = re.search(r"\s# exit (\d+)\s*$", command)
        yield Command(command.removeprefix(prompt), int(code[1]) if code else 0, "\n".join(output))


def _open_quote(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


# ---- executing, in the document's own process ------------------------------------------------------------
def execute(document: Path, here: Path) -> Iterator[str]:
    """Run the document's blocks in the directory `here`; yields an error for each, or ''."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(document):
        stream, error = io.StringIO(), ""
        try:
            if not block.runs or block.comment.startswith("not executed"):
                pass
            elif block.language == "python":
                with contextlib.redirect_stdout(stream):
                    run_python(block, document, namespace, here)
                printed = stream.getvalue()
                folder = here if document.name == "README.md" else here / "pictures"
                held_against(folder, ROOT / "docs" / "pictures")
            elif block.language == "text":
                compare(block.text, printed)
            else:
                for command in commands_of(block.text):
                    run_command(command, here)
        except BaseException as caught:  # SystemExit too: a block that exits has failed
            frames = traceback.extract_tb(caught.__traceback__)
            own = [frame for frame in frames if frame.filename != __file__]
            error = "".join(traceback.format_list(own) + traceback.format_exception_only(caught))
            error += f"\nprinted before that:\n{stream.getvalue()}" if stream.getvalue() else ""
        yield error


def run_python(block: Block, document: Path, namespace: dict, here: Path) -> None:
    name = re.match(r"# ([\w/]+\.py)$", block.text.split("\n", 1)[0])
    if name:
        (here / name[1]).write_text(block.text, encoding="utf-8")
    if re.search(r"^>>> ", block.text, re.MULTILINE):
        test = doctest.DocTestParser().get_doctest(block.text, namespace, document.name, str(document), block.line - 1)
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        runner.run(test, out=report.write, clear_globs=False)
        namespace.update(test.globs)
        if runner.failures:
            raise AssertionError(report.getvalue())
        return
    # Blank lines in front make line numbers those of the document, in tracebacks and in what chainrule itself
    # reports about the origin of an operation.
    exec(compile("\n" * (block.line - 1) + block.text, str(document), "exec"), namespace)


def run_command(command: Command, here: Path) -> None:
    if SET_UP.match(command.text):
        return
    if not re.search(r"\b(chainrule|python)\b", command.text):
        raise ValueError(f"cannot run {command.text!r}: put `<!-- not executed: reason -->` above the block")
    # A real shell and process, not click's test runner: pipes, exit codes and imports are the user's.
    shell = ["bash", "-o", "pipefail", "-c", command.text]
    result = subprocess.run(shell, cwd=here, capture_output=True, text=True, timeout=TIMEOUT)
    if result.returncode != command.exit_code:
        raise AssertionError(
            f"$ {command.text}\nexit code {result.returncode}, not {command.exit_code}\n{result.stdout}{result.stderr}"
        )
    if command.expected.strip():
        compare(command.expected, result.stdout or result.stderr, f"$ {command.text}\n")


def compare(expected: str, actual: str, what: str = "") -> None:
    def clean(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"

    if not doctest.OutputChecker().check_output(clean(expected), clean(actual), doctest.ELLIPSIS):
        raise AssertionError(f"{what}shown:\n{clean(expected)}\nprinted:\n{clean(actual)}")


# ---- the tests -------------------------------------------------------------------------------------------
@functools.cache
def results_of(document: Path) -> list[str]:
    """The error of each block, '' if it ran; the list ends early if the process did."""
    with tempfile.TemporaryDirectory() as folder:
        here, commands, results = Path(folder, "here"), Path(folder, "bin"), Path(folder, "results")
        here.mkdir()
        commands.mkdir()
        if (ROOT / "examples").is_dir():
            shutil.copytree(ROOT / "examples", here / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        # `chainrule` and `python` on the PATH are this checkout and this interpreter, installed or not.
        for name, module in (("chainrule", "-m chainrule "), ("python", "")):
            (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
            (commands / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": WIDTH,
            "NO_COLOR": "1",
        }
        child = subprocess.run(
            [sys.executable, __file__, str(document), str(results)],
            cwd=here, env=environment, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        errors = [json.loads(line) for line in lines]
        if child.returncode or len(errors) < len(blocks_of(document)):
            errors.append(f"Python ended here, exit code {child.returncode}\n{child.stdout}{child.stderr}")
        return errors


def cases() -> Iterator[object]:
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for index, block in enumerate(blocks_of(document)):
            if block.runs:
                yield pytest.param(document, index, block, id=f"{name}:{block.line}")


@pytest.mark.parametrize(("document", "index", "block"), list(cases()))
def test_block(document: Path, index: int, block: Block) -> None:
    if block.comment.startswith("not executed"):
        reason = block.comment.removeprefix("not executed").lstrip(":").strip()
        assert reason, f"{document.name}:{block.line}: say why: <!-- not executed: reason -->"
        pytest.skip(reason)
    errors = results_of(document)
    assert index < len(errors), f"{document.name}:{block.line}: not reached\n{errors[-1] if errors else ''}"
    if errors[index]:
        pytest.fail(f"{document.name}:{block.line}\n{errors[index]}", pytrace=False)


def modules(folder: Path = ROOT / "chainrule", package: str = "chainrule") -> Iterator[str]:
    """Every module of the package by name; nothing is imported to find them."""
    yield package
    for info in pkgutil.iter_modules([str(folder)]):
        if info.ispkg:
            yield from modules(folder / info.name, f"{package}.{info.name}")
        elif info.name != "__main__":  # importing it runs the command line
            yield f"{package}.{info.name}"


@pytest.mark.parametrize("module", list(modules()))
def test_docstrings(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    result = doctest.testmod(importlib.import_module(module), optionflags=FLAGS)
    assert result.failed == 0


if __name__ == "__main__":
    # Written as we go: if a block kills the process, the ones before it keep their results.
    with open(sys.argv[2], "w", encoding="utf-8", buffering=1) as file:
        for error in execute(Path(sys.argv[1]), Path.cwd()):
            file.write(json.dumps(error) + "\n")
