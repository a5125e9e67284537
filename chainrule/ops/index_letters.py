"""The indices of contractions as letters: ``i`` for 0, ``ij,jk->ik`` for a product of matrices."""

from __future__ import annotations

from collections.abc import Sequence

Indices = tuple[int, ...]
LETTERS = "ijklmnpqrstuvwabcdefghoxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(indices: Sequence[int]) -> str:
    """Indices as letters, ``i`` first."""
    return "".join(LETTERS[i] if i < len(LETTERS) else f"<{i}>" for i in indices)


def subscripts_text(operands: Sequence[Indices], result: Indices) -> str:
    """``ij,jk->ik`` of an einsum's parameters."""
    return ",".join(map(letters, operands)) + "->" + letters(result)
