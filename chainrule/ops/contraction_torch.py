"""How torch writes a contraction: products of matrices wherever the indices fall into rows, columns and sums.

``mm``, ``mv``, ``dot`` and ``outer`` for matrices and vectors in any transposition; ``mm`` of operands folded into
matrices for more dimensions; ``bmm`` and ``matmul`` where leading dimensions are shared; ``torch.einsum`` for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from chainrule.ir import Node
from chainrule.ops.families import kept_dtype
from chainrule.ops.index_letters import subscripts_text

Indices = tuple[int, ...]


def torch_contraction(node: Node, x: Sequence[str], out: str = "") -> str:
    """The contraction of the operands called ``x``; into the memory of ``out`` where there is a call that does ("")."""
    operands, result = node.params["operands"], node.params["result"]
    if len(operands) == 1:
        return "" if out else _of_one(operands[0], result, x[0], kept_dtype(node))
    if len(operands) == 2:
        found = _of_two(node, list(x), out)
        if found or out:
            return found
    return "" if out else f'torch.einsum("{subscripts_text(operands, result)}", {", ".join(x)})'


def contraction_order(node: Node) -> str:
    """``Op.order``: products of matrices lie in order, sums as what is summed, a permutation does not."""
    operands, result = node.params["operands"], node.params["result"]
    if len(operands) == 1:
        (indices,) = operands
        kept = tuple(i for i in indices if i in result)
        return "operands" if kept == tuple(result) and len(set(indices)) == len(indices) else ""
    return "given" if len(operands) == 2 and _of_two(node, ["a", "b"], "") else ""


# ---- one operand -------------------------------------------------------------------------------------------
def _of_one(indices: Indices, result: Indices, x: str, kept: str) -> str:
    """Diagonals first, then sums, then one permutation: all views but the sum."""
    left = list(indices)
    while len(set(left)) != len(left):
        index = next(i for i in left if left.count(i) > 1)
        first, second = [a for a, i in enumerate(left) if i == index][:2]
        x = f"torch.diagonal({x}, 0, {first}, {second})"
        left = [i for a, i in enumerate(left) if a not in (first, second)] + [index]
    summed = [a for a, i in enumerate(left) if i not in result]
    if summed and len(summed) == len(left):
        return f"{x}.sum({kept.removeprefix(', ')})"
    if summed:
        x = f"{x}.sum({tuple(summed) if len(summed) > 1 else summed[0]}{kept})"
        left = [i for i in left if i in result]
    if tuple(left) != tuple(result):
        axes = tuple(left.index(i) for i in result)
        x = f"{x}.t()" if axes == (1, 0) else f"{x}.permute({axes})"
    return x


# ---- two operands ------------------------------------------------------------------------------------------
def _of_two(node: Node, x: list[str], out: str) -> str:
    """A call of a product of matrices, else ""."""
    operands, result = node.params["operands"], node.params["result"]
    a, b = operands
    if len(set(a)) != len(a) or len(set(b)) != len(b):
        return ""
    shared = [i for i in a if i in b]
    # A sum over an index of one operand is no product of matrices.
    if set(result) != set(a) ^ set(b) | set(shared) & set(result):
        return ""
    if any(i in result for i in shared):
        return _batched(node, x, out)
    if max(len(a), len(b)) <= 2 and (len(shared) == 1 or len(a) == len(b) == 1):
        return _of_matrices(operands, result, x, out)
    return _folded(node, x, out)


def _of_matrices(operands: Sequence[Indices], result: Indices, x: list[str], out: str) -> str:
    a, b = (list(o) for o in operands)
    shared = [i for i in a if i in b]
    written = f", out={out}" if out else ""
    if len(a) == len(b) == 1:
        if shared:
            return f"torch.dot({x[0]}, {x[1]}{written})"
        first, second = (x[0], x[1]) if list(result) == a + b else (x[1], x[0])
        return f"torch.outer({first}, {second}{written})"
    (j,) = shared
    if {len(a), len(b)} == {1, 2}:
        matrix, vector = (0, 1) if len(a) == 2 else (1, 0)
        transposed = ".t()" if operands[matrix][0] == j else ""
        return f"torch.mv({x[matrix]}{transposed}, {x[vector]}{written})"
    if result[0] in b:
        (a, b), x = (b, a), [x[1], x[0]]
    left = f"{x[0]}.t()" if a[0] == j else x[0]
    right = f"{x[1]}.t()" if b[1] == j else x[1]
    return f"torch.mm({left}, {right}{written})"


def _folded(node: Node, x: list[str], out: str) -> str:
    """One product of matrices whose rows, columns and sums are several indices each, side by side in each operand."""
    (a, b), result = node.params["operands"], tuple(node.params["result"])
    inputs = list(node.inputs)
    if result and result[0] in b:
        (a, b), x, inputs = (b, a), [x[1], x[0]], inputs[::-1]
    summed = tuple(i for i in a if i in b)
    rows, columns = (tuple(i for i in o if i not in summed) for o in (a, b))
    if not summed or not rows or not columns or result != rows + columns:
        return ""
    left = _as_matrix(x[0], inputs[0].shape, a, rows, summed)
    right = _as_matrix(x[1], inputs[1].shape, b, summed, columns)
    if not left or not right:
        return ""
    flat = len(result) == 2
    sizes = _sizes(node)
    shape = (prod(sizes[i] for i in rows), prod(sizes[i] for i in columns))
    into = f", out={out if flat else f'{out}.view({shape})'}" if out else ""
    call = f"torch.mm({left}, {right}{into})"
    return call if flat else f"{call}.view({tuple(node.shape)})"


def _as_matrix(x: str, shape: Sequence[Any], indices: Indices, rows: Indices, columns: Indices) -> str:
    """The operand as a matrix of these rows and columns, or "" where they do not lie side by side."""
    sizes = dict(zip(indices, shape, strict=True))
    for first, second, turned in ((rows, columns, ""), (columns, rows, ".t()")):
        if indices == first + second:
            if len(first) == len(second) == 1:
                return f"{x}{turned}"
            return f"{x}.reshape({prod(sizes[i] for i in first)}, {prod(sizes[i] for i in second)}){turned}"
    return ""


def _batched(node: Node, x: list[str], out: str) -> str:
    """Products of the matrices behind leading dimensions that both operands and the result have."""
    (a, b), result = node.params["operands"], tuple(node.params["result"])
    count = len(result) - 2
    lead = result[:count]
    if count < 1 or len(a) != len(b) or len(a) != len(result) or not a[:count] == b[:count] == lead:
        return ""
    if result[count] in b:
        (a, b), x = (b, a), [x[1], x[0]]
    (row, column), a_two, b_two = result[count:], a[count:], b[count:]
    summed = [i for i in a_two if i in b_two]
    if len(summed) != 1 or row not in a_two or column not in b_two:
        return ""
    left = f"{x[0]}.mT" if a_two[0] == summed[0] else x[0]
    right = f"{x[1]}.mT" if b_two[1] == summed[0] else x[1]
    if count == 1:
        return f"torch.bmm({left}, {right}{f', out={out}' if out else ''})"
    return "" if out else f"torch.matmul({left}, {right})"


def _sizes(node: Node) -> dict[int, Any]:
    pairs = zip(node.params["operands"], node.inputs, strict=True)
    return {i: n for indices, x in pairs for i, n in zip(indices, x.shape, strict=True)}
