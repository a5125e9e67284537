"""Where a program is: source lines of the user's, and custom ``autograd.Function``s on the way to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

_HERE = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_NOT_THE_USERS = (_HERE, _TORCH, "<frozen")
# The frame that every custom autograd.Function runs in.
_APPLY = torch.autograd.Function.apply.__func__.__code__


def here() -> tuple[str, int | None, Any]:
    """File and line of the innermost frame that is neither torch's nor ours; a custom Function around it.

    Only frames of the traced program count, which ``trace.run_program`` starts.
    """
    file, line, function = "", None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _APPLY:
            function = frame.f_locals.get("cls")
        if not file:
            shown = user_file(code.co_filename)
            if shown is not None:
                file, line = shown, frame.f_lineno
        if code.co_name == "run_program" and code.co_filename.startswith(_HERE):
            break
        frame = frame.f_back
    return file, line, function


def custom_function(function: Any) -> str:
    """The sentence about a custom autograd.Function."""
    name = getattr(function, "__name__", str(function))
    return f"custom autograd.Function {name!r}: its backward is its own, and is not declared"


def user_file(filename: str) -> str | None:
    """How a source file is shown, relative to the working directory if inside; None if not the user's."""
    if filename.startswith(_NOT_THE_USERS) or filename.endswith(("contextlib.py", "functools.py")):
        return None
    inside = filename.startswith(os.getcwd() + os.sep)
    return os.path.relpath(filename) if inside else filename


def custom_functions(tensors: Sequence[torch.Tensor]) -> str | None:
    """The name of a custom autograd.Function in the history of ``tensors``, if there is one.

    One that returns its argument unchanged calls no op, so that only autograd's own record shows it.
    """
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        function = stack.pop()
        if isinstance(function, BackwardCFunction):
            return type(function).__name__.removesuffix("Backward")
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return None
