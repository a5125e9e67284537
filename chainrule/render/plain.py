"""Results as data that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chainrule.errors import ChainruleError


def plain(value: Any) -> Any:
    """Data that JSON can hold: numbers that it cannot write become ``"nan"``, ``"inf"``, ``"-inf"``.

    Raises:
        ChainruleError: a value with no plain form.

    >>> plain({"a": (1.0, float("inf")), 2: None})
    {'a': [1.0, 'inf'], '2': None}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, torch's tensors
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ChainruleError(f"a {type(value).__name__} has no form in JSON", given=repr(value))
