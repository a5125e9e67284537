"""Modules and parameters as findings name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from chainrule.verbs.diagnose.examination import Examination


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules that own parameters, without repetition; a parameter of the model itself by its own name."""
    return list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))


def listed(names: Sequence[str], limit: int = 4) -> str:
    """``a, b, c, d and 7 more``."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def common(paths: Sequence[str]) -> str:
    """The shortest list of modules that covers the paths: their parent where it has no other children among them."""
    if len(paths) == 1:
        return paths[0]
    parts = [p.split(".") for p in paths]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared) or listed(list(paths), 3)


def container(e: Examination, path: str) -> Any:
    """The module at a path, None if there is none."""
    try:
        return e.subject.model.get_submodule(path)
    except (AttributeError, ValueError):
        return None


def is_module(e: Examination, path: str) -> bool:
    """Whether a path is that of a module."""
    try:
        e.subject.model.get_submodule(path)
    except (AttributeError, ValueError):
        return False
    return True
