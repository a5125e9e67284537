"""Names of a program as identifiers of Python: unique, valid, and the user's own where that is possible."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Collection


def identifier(text: str, reserved: Collection[str] = ()) -> str:
    """The text as an identifier that is neither a keyword nor reserved.

    >>> identifier("layers.0.weight"), identifier("lambda"), identifier("λ")
    ('layers_0_weight', 'v_lambda', 'λ')
    """
    # NFKC is what Python itself does with names: two that it would merge must not count as different.
    name = re.sub(r"\W", "_", unicodedata.normalize("NFKC", text))
    if not name.isidentifier() or keyword.iskeyword(name) or name in reserved:
        name = f"v_{name}"
    return name


def unique(text: str, taken: Collection[str], reserved: Collection[str] = ()) -> str:
    """The identifier of a text, numbered from 2 where it is taken."""
    base = name = identifier(text, reserved)
    count = 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name
