"""Rows and columns: a vector has shape (n,), and the lowering remembers whether it stands as a row.

The flag is not part of the graph: ``x'`` is the node of ``x``. It decides what ``@`` means:

    row @ column     inner product        column @ row     outer product
    row @ matrix     row                  matrix @ column  column
    column @ column  inner product (NumPy's reading)

Everything else of two vectors is an error that says what to write. A row that is a result is the vector (n,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chainrule.errors import ShapeError
from chainrule.ir import Node
from chainrule.ops.contraction import einsum, matmul, transpose


class Value(NamedTuple):
    """A node and how it stands: ``row`` is only ever true of vectors."""

    node: Node
    row: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.node.type.rank

    @property
    def column(self) -> bool:
        """Whether it is a vector that stands as a column."""
        return self.rank == 1 and not self.row


def transposed(x: Value) -> Value:
    """``x'``: a vector turns, larger values exchange their last two dimensions, a scalar is itself."""
    if x.rank < 2:
        return Value(x.node, x.column)
    return Value(transpose(x.node))


def aligned(*operands: Value) -> bool:
    """Whether an elementwise result of these operands, if it is a vector, stands as a row.

    Raises:
        ShapeError: a row together with a column.
    """
    row = any(x.row for x in operands)
    if row and any(x.column for x in operands):
        raise ShapeError(
            "a row and a column in an elementwise operation",
            required="two rows or two columns",
            instead="transpose one (x'), or outer(x, y) for all products of their elements",
        )
    return row


def keeps_orientation(node: Node, operands: Sequence[Value]) -> bool:
    """Whether a function's result is a row because its only operand is one (softmax, stop_gradient).

    Raises:
        ShapeError: a function of several operands, such as ``solve``, that would make a vector of a row.
    """
    if node.type.rank != 1 or not any(x.row for x in operands):
        return False
    if len(operands) > 1:
        raise ShapeError("a row where a column is required", instead="the vector without '")
    return node.shape == operands[0].node.shape


def product(a: Value, b: Value) -> Value:
    """``a @ b``.

    Raises:
        ShapeError: a scalar, sizes that do not fit, or vectors that stand so that they do not fit.
    """
    if a.rank == 1 and b.rank == 1:
        if not a.row and b.row:
            return Value(einsum("i,j->ij", a.node, b.node))
        if a.row and b.row:
            raise ShapeError(
                "a row times a row",
                required="row @ column (inner product) or column @ row (outer product)",
                instead="x @ y' for the outer product, x' @ y for the inner product, * elementwise",
            )
    elif a.column and b.rank > 1:
        raise ShapeError(
            "a column times a matrix",
            required="row @ matrix or matrix @ column",
            instead="x' @ A for the row of products, A' @ x for the same as a column",
        )
    elif b.row and a.rank > 1:
        raise ShapeError(
            "a matrix times a row",
            required="matrix @ column or row @ matrix",
            instead="A @ x for a column x (without ')",
        )
    node = matmul(a.node, b.node)
    return Value(node, a.row and node.type.rank == 1)
