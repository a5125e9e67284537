"""What leaves and module outputs are called: identifiers of the formula language, unique within a trace."""

from __future__ import annotations

import keyword
import re

from chainrule.ir import SPELLINGS


def identifier(path: str) -> str:
    """A dotted name as an identifier: ``net.3.weight`` -> ``net_3_weight``; ``0.weight`` -> ``weight_0``.

    Dots become underscores; numbers in front, with which no identifier starts, move to the end.
    """
    parts = [re.sub(r"\W", "_", part) for part in path.split(".") if part]
    digits = [part for part in parts if not part[0].isdigit()]
    first = len(parts) if not digits else parts.index(digits[0])
    moved = [*parts[first:], *parts[:first]] if digits else ["v", *parts]
    return "_".join(moved)


class Names:
    """Hands out names once: a second ``x`` is ``x_2``; words of Python and of formulas are avoided."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, wanted: str) -> str:
        """``wanted``, or the first free variation of it."""
        base = f"{wanted}_" if keyword.iskeyword(wanted) or wanted in SPELLINGS or wanted == "torch" else wanted
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name
