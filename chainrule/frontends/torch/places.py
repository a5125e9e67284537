"""Where in the user's code a tensor op was called: file, line, and the exact expression.

A frame knows the instruction that it is at, and its code object which characters of the source that instruction came
from. So a finding can quote ``h.detach()`` itself, and a fix can be an edit of that very expression.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import torch

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SKIPPED = (
    *(os.path.join(_PACKAGE, part) + os.sep for part in ("verbs", "frontends", "backends", "cli")),
    os.path.dirname(os.path.abspath(torch.__file__)),
    "<frozen",
)
_NOT_THE_USERS = ("contextlib.py", "functools.py", "runpy.py")


@dataclass(frozen=True)
class Place:
    """One instruction of the user's code: code object, instruction offset and line."""

    code: CodeType | None = None
    instruction: int = 0
    line: int = 0

    @property
    def file(self) -> str:
        """The source file, absolute; empty if there is none."""
        return self.code.co_filename if self.code is not None else ""

    @property
    def text(self) -> str:
        """``model.py:41``, relative to the working directory if inside of it; empty if unknown."""
        if self.code is None:
            return ""
        inside = self.file.startswith(os.getcwd() + os.sep)
        return f"{os.path.relpath(self.file) if inside else self.file}:{self.line}"

    @property
    def segment(self) -> Segment | None:
        """The expression that made the call, where the source can be read."""
        if self.code is None:
            return None
        position = next(islice(self.code.co_positions(), self.instruction // 2, None), None)
        if position is None or None in position:
            return None
        first, last, start, end = position
        lines = linecache.getlines(self.file)
        if not lines or last > len(lines):  # type: ignore[operator]
            return None
        text = "".join(lines[first - 1 : last])  # type: ignore[operator]
        data = text.encode()
        tail = len(lines[last - 1].encode()) - end  # type: ignore[operator]
        return Segment(self.file, first, start, last, end, data[start : len(data) - tail].decode())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Segment:
    """An expression in a file: lines from 1, columns in UTF-8 bytes from 0, and its text."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str

    @property
    def tree(self) -> ast.expr | None:
        """The expression, parsed; None if it does not stand alone."""
        try:
            return ast.parse(f"({self.text})", mode="eval").body
        except SyntaxError:
            return None


@dataclass(frozen=True)
class Edit:
    """A replacement of one expression in the user's source: what a fix is where the source has to change."""

    segment: Segment
    new: str

    def __str__(self) -> str:
        where = os.path.relpath(self.segment.file) if self.segment.file.startswith(os.getcwd()) else self.segment.file
        old = " ".join(self.segment.text.split())
        return f"{where}:{self.segment.line}: replace `{old}` by `{self.new}`"

    def applied(self, source: str) -> str:
        """The source of the file with the edit made."""
        lines = source.splitlines(keepends=True)
        s = self.segment
        first, last = lines[s.line - 1].encode(), lines[s.end_line - 1].encode()
        merged = first[: s.column] + self.new.encode() + last[s.end_column :]
        return "".join([*lines[: s.line - 1], merged.decode(), *lines[s.end_line :]])


def here(depth: int = 2) -> Place:
    """The innermost frame that is neither torch's nor ours, up to a call by :func:`called_at`."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code is called_at.__code__:
            return frame.f_locals["place"]
        if not skipped(code):
            return Place(code, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return Place()


def called_at(place: Place, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Calls something of the user's for him; what it does in torch itself is placed at ``place``, not at our caller.

    :func:`here` finds this frame on the stack, so the place goes to each thread and each nested call by itself.
    """
    return call(*args, **kwargs)


_VERDICTS: dict[CodeType, bool] = {}


def skipped(code: CodeType) -> bool:
    """Whether code is not the user's."""
    verdict = _VERDICTS.get(code)
    if verdict is None:
        name = code.co_filename
        verdict = name.startswith(_SKIPPED) or name.endswith(_NOT_THE_USERS)
        if len(_VERDICTS) > 10_000:
            _VERDICTS.clear()
        _VERDICTS[code] = verdict
    return verdict


def of_traceback(error: BaseException) -> Place:
    """The user's innermost line that an error passed through."""
    found, trace = Place(), error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not skipped(code):
            found = Place(code, trace.tb_lasti, trace.tb_lineno)
        trace = trace.tb_next
    return found
