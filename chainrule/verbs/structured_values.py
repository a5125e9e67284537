"""Random values that satisfy what their variable is assumed to be, and moves of one element that keep it."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.ir import Node, known_facts, structure_of


def with_structure(leaf: Node, value: Any) -> Any:
    """A value made symmetric, triangular, diagonal or positive definite, as its variable is; its scale is kept."""
    kind = structure_of(leaf)
    if kind is None:
        return value
    facts = known_facts(leaf)
    if kind == "positive definite":
        return value @ value.T / len(value) + 0.3 * np.eye(len(value))
    if "symmetric" in facts:
        value = (value + value.T) / 2
    if "lower" in facts:
        value = np.tril(value)
    return np.triu(value) if "upper" in facts else value


def moved_element(leaf: Node, value: Any, place: int, number: float) -> Any:
    """A copy in which one element is another number, with what the structure ties to it."""
    array = np.array(value, dtype=float)
    array.flat[place] = number
    facts = known_facts(leaf)
    if not facts:
        return array
    i, j = divmod(place, array.shape[1])
    if ("lower" in facts and j > i) or ("upper" in facts and i > j):
        array[i, j] = 0.0
    elif "symmetric" in facts:
        array[j, i] = number
    return array
