"""``d.code(target)``: the derivatives of a result as source text that runs on its own.

Each target has one writer, ``(result) -> text``; a new target is one more entry in :data:`WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chainrule.errors import ChainruleError

WRITERS: dict[str, Callable[[Any], str]] = {}


def code(result: Any, target: str) -> str:
    """The source of a result's derivatives for a target.

    Raises:
        ChainruleError: an unknown target.
    """
    if target not in WRITERS:
        raise ChainruleError(f"no code for {target!r}", given=target, required=f"one of {', '.join(WRITERS)}")
    return WRITERS[target](result)
