"""Recursion without Python's stack: recursive functions written as generators, driven by one loop.

A step ``yield``s the recursive call that it needs (a generator) and receives that call's result; a result
that is already at hand may be yielded as it is. The lexer's brackets, the Pratt parser and the lowering can
then nest as deep as memory allows, and read like the recursive functions that they are.
"""

from __future__ import annotations

from collections.abc import Generator
from types import GeneratorType
from typing import Any

Steps = Generator[Any, Any, Any]


def run(call: Any) -> Any:
    """The result of a call whose recursive calls are yielded.

    >>> def depth(n):
    ...     return 0 if n == 0 else 1 + (yield depth(n - 1))
    >>> run(depth(50_000))
    50000
    """
    if not isinstance(call, GeneratorType):
        return call
    stack: list[Steps] = [call]
    value: Any = None
    while stack:
        try:
            request = stack[-1].send(value)
        except StopIteration as finished:
            stack.pop()
            value = finished.value
            continue
        if isinstance(request, GeneratorType):
            stack.append(request)
            value = None
        else:
            value = request
    return value
