"""Budgets as people write them: bytes, ``"8GB"``, or a fraction of the unplanned activation peak."""

from __future__ import annotations

import math
import re
from typing import Any

from chainrule.errors import ModelError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {_letter: 1000**_power, _letter + "b": 1000**_power, _letter + "ib": 1024**_power}
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_REQUIRED = 'bytes ("8GB", "512MiB", 8_000_000_000), or a fraction of the activations in (0, 1]'


def parsed(budget: Any) -> int | float:
    """An int is bytes, a float a fraction.

    Raises:
        ModelError: anything else.

    >>> parsed("8GB"), parsed("1.5 MiB"), parsed(0.5)
    (8000000000, 1572864, 0.5)
    """
    found: Any = _number(budget) if isinstance(budget, str) else budget
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise _refused(budget)
    if found <= 0 or (isinstance(found, float) and not found <= 1.0):  # not a number is not at most one
        raise _refused(budget)
    return found


def _number(text: str) -> int | float | None:
    """What is written: bytes, a fraction, or neither."""
    found = _TEXT.fullmatch(text)
    if found is None or found[2].lower() not in _UNITS:
        return None
    number = float(found[1]) * _UNITS[found[2].lower()]
    if not found[2] and "." in found[1]:
        return number
    return int(number) if math.isfinite(number) else None


def _refused(budget: Any) -> ModelError:
    return ModelError(
        "this is no budget", given=repr(budget), required=_REQUIRED, instead='budget="8GB", or budget=0.5'
    )


def size_text(size: float) -> str:
    """Bytes for people.

    >>> size_text(8_500_000_000), size_text(120)
    ('8.50 GB', '120 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}" if abs(size) < 100 * scale else f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"
