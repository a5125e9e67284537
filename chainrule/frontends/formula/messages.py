"""What errors of this package share: the place, a short piece of the text, the nearest known name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from chainrule.errors import ChainruleError, FormulaError


def located(error: ChainruleError, source: str, position: int, given: str = "") -> ChainruleError:
    """The error with line, column, the line itself and a caret; ``given`` says the operands as the text does.

    A FormulaError that knows its position is left as it is; ShapeError and UnsupportedOpError keep their
    class.
    """
    if isinstance(error, FormulaError) and error.position is not None:
        return error
    parts = {"given": given or error.given, "required": error.required, "instead": error.instead}
    marked = FormulaError(error.what, source=source, position=position)
    if isinstance(error, FormulaError):
        return FormulaError(error.what, source=source, position=position, **parts)
    return type(error)(str(marked), **parts)


def short(text: str) -> str:
    """A piece of a formula as messages quote it: one line, 40 characters at most."""
    text = " ".join(text[:200].split())
    return text if len(text) <= 40 else text[:37] + "..."


def nearest_function(name: str, known: Iterable[str]) -> str | None:
    """The known function that an unknown one probably means, or None: ``sigmoid`` for ``sigmod``."""
    known = list(known)
    if len(name) < 3 or len(name) > 40:
        return None
    plain = {k.replace("_", "").lower(): k for k in known}
    found = plain.get(name.replace("_", "").lower())
    close = [found] if found else difflib.get_close_matches(name, known, 1, 0.8)
    return close[0] if close else None


def nearest_variable(name: str, known: Iterable[str]) -> str | None:
    """The variable that a name was probably meant to be, or None: ``Omega`` for ``Omgea``.

    Names that differ on purpose are not suggested: by case (``omega``), by digits or an index after the last
    underscore (``beta_1``, ``W_k``), or by a ``d`` in front (``dout``).
    """
    if len(name) < 4 or len(name) > 40:
        return None
    for other in difflib.get_close_matches(name, list(known), 5, 0.75):
        stems = {_stem(name), _stem(other)}
        deliberate = len(stems) == 1 or name.lower() == other.lower() or name in ("d" + other, other[1:])
        if not deliberate and _one_slip(name, other):
            return other
    return None


def _stem(name: str) -> str:
    return re.sub(r"[0-9_]", "", name.rpartition("_")[0] or name)


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter missing, added, replaced or exchanged with its neighbour makes ``a`` into ``b``."""
    if abs(len(a) - len(b)) > 1 or a == b:
        return False
    k = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[k:], b[k:]
    return (
        rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or rest_a[1:] == rest_b[1:]
        or (rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:])
    )
