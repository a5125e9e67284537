"""How a contraction is written in NumPy, JAX and torch: ``A.T @ x``, ``sum(A * B)``, ``A * x[:, None]``, else einsum.

The three share these words, so one rule serves all. A contraction comes here with one or two operands; more are split
into pairs before (``backends/source/lower.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.ir import MUL, POSTFIX, Node

Indices = Sequence[int]
_LETTERS = "ijklmnpqrstuvwabcdefghoxyz"


def written_contraction(w: Any, node: Node) -> str | tuple[str, int]:
    """The text of an einsum node; ``w`` gives its operands and the namespace."""
    operands, result = node.params["operands"], node.params["result"]
    if len(operands) == 1:
        return _of_one(w, operands[0], result)
    if len(operands) == 2 and all(len(set(o)) == len(o) for o in operands):
        found = _of_two(w, operands[0], operands[1], result)
        if found is not None:
            return found
    spec = ",".join(map(_letters, operands)) + "->" + _letters(result)
    return f'{w.np}.einsum("{spec}", {", ".join(w(k) for k in range(len(operands)))})'


def _letters(indices: Indices) -> str:
    return "".join(_LETTERS[i] for i in indices)


# ---- one operand: diagonals, sums, permutations ------------------------------------------------------------
def _of_one(w: Any, indices: Indices, result: Indices) -> str:
    if len(set(indices)) != len(indices):
        if len(indices) == 2:
            return f"{w.np}.{'diagonal' if result else 'trace'}({w(0)})"
        return f'{w.np}.einsum("{_letters(indices)}->{_letters(result)}", {w(0)})'
    summed = [a for a, i in enumerate(indices) if i not in result]
    if len(summed) == len(indices):
        return f"{w.np}.sum({w(0)})"
    left = [i for i in indices if i in result]
    if not summed:
        return _permuted(w, w(0, POSTFIX if len(indices) == 2 else 0), indices, result)
    total = f"{w.np}.sum({w(0)}, {summed[0] if len(summed) == 1 else tuple(summed)})"
    return _permuted(w, total, left, result)


def _permuted(w: Any, x: str, indices: Indices, result: Indices) -> str:
    """``x``, whose dimensions are ``indices``, with those of ``result``, the same in another order."""
    if list(indices) == list(result):
        return x
    axes = tuple(list(indices).index(i) for i in result)
    if axes == (1, 0):
        return f"{x}.T"
    return f"{w.np}.{'permute' if w.np == 'torch' else 'transpose'}({x}, {axes})"


# ---- two operands ------------------------------------------------------------------------------------------
def _of_two(w: Any, a: Indices, b: Indices, result: Indices) -> str | tuple[str, int] | None:
    shared = [i for i in a if i in b]
    contracted = [i for i in shared if i not in result]
    free = [i for i in (*a, *b) if i not in shared]
    if any(i not in result for i in free):
        return None
    if not shared and len(a) == len(b) == 1:
        return f"{w.np}.outer({w(0)}, {w(1)})" if list(result) == [*a, *b] else f"{w.np}.outer({w(1)}, {w(0)})"
    if not contracted:
        return f"{_aligned(w, 0, a, result)} * {_aligned(w, 1, b, result)}", MUL
    if len(contracted) == 1 and len(shared) == 1 and len(a) <= 2 and len(b) <= 2:
        return _matrix_product(w, a, b, result, contracted[0])
    if not free:  # the elements of a product summed, all or along some axes
        order = [*result, *contracted]
        axes = tuple(range(len(result), len(order)))
        along = "" if not result else f", {axes[0] if len(axes) == 1 else axes}"
        return f"{w.np}.sum({_aligned(w, 0, a, order)} * {_aligned(w, 1, b, order)}{along})"
    return None


def _aligned(w: Any, k: int, own: Indices, result: Indices) -> str:
    """Operand ``k`` such that it broadcasts against the dimensions ``result``."""
    order = [i for i in result if i in own]
    shown = [":" if i in own else "None" for i in result]
    while shown and shown[0] == "None":
        shown.pop(0)
    if list(own) == order and "None" not in shown:
        return w(k, MUL if k == 0 else MUL + 1)
    x = _permuted(w, w(k, POSTFIX if len(own) == 2 or list(own) == order else 0), own, order)
    return f"{x}[{', '.join(shown)}]" if "None" in shown else x


def _matrix_product(w: Any, a: Indices, b: Indices, result: Indices, j: int) -> tuple[str, int]:
    first, second = 0, 1
    vector_first = len(a) == 1 and len(b) == 2  # x @ A is A.T @ x: the matrix is written first
    if vector_first or (len(result) == 2 and result[0] in b):
        first, second, a, b = 1, 0, b, a

    def side(k: int, transposed: bool, strength: int) -> str:
        return f"{w(k, POSTFIX)}.T" if transposed else w(k, strength)

    left = side(first, len(a) == 2 and a[0] == j, MUL)
    right = side(second, len(b) == 2 and b[1] == j, MUL + 1)
    return f"{left} @ {right}", MUL
