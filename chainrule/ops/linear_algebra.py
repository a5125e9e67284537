"""Linear algebra on the last two dimensions: inverse, solve, determinant."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    ATOM,
    POSTFIX,
    Node,
    Op,
    Rewrite,
    Sample,
    TensorType,
    apply,
    broadcast_shapes,
    product,
    register,
    shape_text,
)
from chainrule.ops.contraction import matmul, sum_axes, transpose
from chainrule.ops.movement import broadcast, expand_dims, reshape, squeeze

_A = np.array([[2.0, 0.3, -0.1], [0.4, 1.5, 0.2], [-0.3, 0.1, 1.8]])


def _square(x: TensorType) -> TensorType:
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError("needs a square matrix", given=f"({shape_text(x.shape)})")
    return x


def _per_matrix(g: Node, x: Node) -> Node:
    rank = x.type.rank
    return broadcast(expand_dims(g, (rank - 2, rank - 1)), x.shape)


def _cubic(result: TensorType, x: TensorType, *rest: TensorType) -> Any:
    return product([*x.shape, x.shape[-1]])


def _contracted(a: Node, b: Node) -> Node:
    rank = a.type.rank
    return sum_axes(a * b, (rank - 2, rank - 1))


def _or_nan(rule: Any) -> Any:
    """NumPy's function, with nan for a singular matrix: like a division by zero, it is no exception."""

    def value(a: Any, *rest: Any) -> Any:
        try:
            return rule(a, *rest)
        except np.linalg.LinAlgError:
            shape = rule(np.broadcast_to(np.eye(np.shape(a)[-1]), np.shape(a)), *rest).shape
            return np.full(shape, np.nan)

    return value


def _is_transpose(x: Node) -> bool:
    operands = x.params.get("operands", ())
    if len(operands) != 1 or x.type.rank < 2:
        return False
    rank = tuple(range(x.type.rank))
    return operands[0] == rank and x.params["result"] == (*rank[:-2], rank[-1], rank[-2])


def _inverse_of_inverse(node: Node) -> Node | None:
    (x,) = node.inputs
    return x.inputs[0] if x.op is node.op else None


def _inverse_of_transpose(node: Node) -> Node | None:
    """``inv(A') = inv(A)'``: the transpose goes outside, where products absorb it."""
    (x,) = node.inputs
    return transpose(apply(node.op, x.inputs[0])) if _is_transpose(x) else None


def _of_transpose(node: Node) -> Node | None:
    """A determinant does not change when its matrix is transposed."""
    (x,) = node.inputs
    return apply(node.op, x.inputs[0]) if _is_transpose(x) else None


def _gram_of_inverse(node: Node) -> tuple[Node, int] | None:
    """``inv(L)' inv(L) = inv(L L')``: over the other axis."""
    (x,) = node.inputs
    found = x.op.gram(x) if x.op.gram is not None else None
    return None if found is None else (apply(node.op, found[0]), 1 - found[1])


INV = register(
    Op(
        "inv",
        "linear_algebra",
        shape=_square,
        value=_or_nan(np.linalg.inv),
        vjp=lambda g, y, x: (-matmul(matmul(transpose(y), g), transpose(y)),),
        jvp=lambda t, y, x: None if t[0] is None else -matmul(matmul(y, t[0]), y),
        cost=_cubic,
        text=lambda p, node: f"inv({p.child(node.inputs[0], 0)})",
        latex=lambda p, node: (f"{p.child(node.inputs[0], POSTFIX + 1)}^{{-1}}", POSTFIX),  # no second exponent
        torch="torch.linalg.inv({0})",
        code="{np}.linalg.inv({0})",
        keeps_symmetry=True,
        cancels=lambda node: node.inputs[0],
        gram=_gram_of_inverse,
        terms=lambda algebra, node, indices: algebra.inverse(node, indices),
        rewrites=(Rewrite(_inverse_of_inverse), Rewrite(_inverse_of_transpose)),
        aten={"inverse": None, "linalg_inv": None},
        names=("inv",),
        samples=(Sample((_A,)),),
        error_samples=(Sample((_A[:2],)),),
        source="Matrix Cookbook 59: d inv(X) = -inv(X) dX inv(X)",
    )
)


def _solve_shape(a: TensorType, b: TensorType) -> TensorType:
    _square(a)
    if b.rank not in (1, a.rank) or b.shape[0 if b.rank == 1 else -2] != a.shape[-1]:
        raise ShapeError(
            "solve of shapes that do not fit", given=f"({shape_text(a.shape)}) and ({shape_text(b.shape)})"
        )
    return b


def _solve_vjp(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    back = apply(SOLVE, transpose(a), g)
    if y.type.rank == 1:
        return -matmul(expand_dims(back, (1,)), expand_dims(y, (0,))), back
    return -matmul(back, transpose(y)), back


def _solve_jvp(t: Any, y: Node, a: Node, b: Node) -> Node | None:
    moved = None if t[1] is None else t[1]
    if t[0] is not None:
        moved = -matmul(t[0], y) if moved is None else moved - matmul(t[0], y)
    return None if moved is None else apply(SOLVE, a, moved)


def _solve_lift(node: Node, inputs: list[Node], extra: tuple[Any, ...]) -> Node:
    """All right-hand sides at once, as the columns of a matrix."""
    a, b = inputs
    rows = max(node.type.rank - 1, 1)  # of a stack the last dimension but one
    columns = reshape(b, (*b.shape[:rows], product(b.shape[rows:])))
    return reshape(apply(SOLVE, a, columns), b.shape)


def _solve_of(a: Node, b: Node) -> Node:
    """As NumPy has it: a vector is one right-hand side, stacks of matrices broadcast against each other."""
    columns = expand_dims(b, (1,)) if b.type.rank == 1 and a.type.rank > 2 else b
    if min(a.type.rank, columns.type.rank) < 2 or a.shape[:-2] == columns.shape[:-2]:
        return apply(SOLVE, a, b)
    lead = broadcast_shapes(a.shape[:-2], columns.shape[:-2])
    found = apply(SOLVE, *(broadcast(x, (*lead, *x.shape[-2:])) for x in (a, columns)))
    return found if columns is b else squeeze(found, (found.type.rank - 1,))


SOLVE = register(
    Op(
        "solve",
        "linear_algebra",
        shape=_solve_shape,
        value=_or_nan(np.linalg.solve),
        vjp=_solve_vjp,
        jvp=_solve_jvp,
        lift=_solve_lift,
        cost=_cubic,
        text=lambda p, node: (f"solve({p.child(node.inputs[0], 0)}, {p.child(node.inputs[1], 0)})", ATOM),
        latex=r"{0}^{{-1}} {1}",
        child_precedence=(50, 40),
        precedence=20,
        torch="torch.linalg.solve({0}, {1})",
        code="{np}.linalg.solve({0}, {1})",
        names=("solve",),
        build=_solve_of,
        samples=(Sample((_A, np.array([0.3, -0.2, 1.0]))), Sample((_A, _A.T[:, :2] + 0.1))),
        error_samples=(Sample((_A, np.array([1.0, 2.0]))),),
        source="A x = b; x, and -A^{-T} g x' back",
    )
)


def _value_per_matrix(x: TensorType) -> TensorType:
    return _square(x).with_shape(x.shape[:-2])


DET = register(
    Op(
        "det",
        "linear_algebra",
        shape=_value_per_matrix,
        value=np.linalg.det,
        vjp=lambda g, y, x: (_per_matrix(g * y, x) * transpose(apply(INV, x)),),
        jvp=lambda t, y, x: None if t[0] is None else y * _contracted(transpose(apply(INV, x)), t[0]),
        cost=_cubic,
        text="det({0})",
        latex=r"\det\left({0}\right)",
        torch="torch.linalg.det({0})",
        code="{np}.linalg.det({0})",
        aten={"det": None, "linalg_det": None},
        names=("det",),
        rewrites=(
            Rewrite(_of_transpose),
            Rewrite(lambda node: 1.0 / apply(DET, node.inputs[0].inputs[0]) if node.inputs[0].op is INV else None),
        ),
        samples=(Sample((_A,)),),
        source="Jacobi's formula (Matrix Cookbook 49)",
    )
)
LOGDET = register(
    Op(
        "logdet",
        "linear_algebra",
        shape=_value_per_matrix,
        value=lambda x: np.linalg.slogdet(x)[1],
        vjp=lambda g, y, x: (_per_matrix(g, x) * transpose(apply(INV, x)),),
        jvp=lambda t, y, x: None if t[0] is None else _contracted(transpose(apply(INV, x)), t[0]),
        cost=_cubic,
        text="logdet({0})",
        latex=r"\log\left|\det\left({0}\right)\right|",
        torch="torch.linalg.slogdet({0})[1]",
        code="{np}.linalg.slogdet({0})[1]",
        names=("logdet",),
        rewrites=(
            Rewrite(_of_transpose),
            Rewrite(lambda node: -apply(LOGDET, node.inputs[0].inputs[0]) if node.inputs[0].op is INV else None),
        ),
        samples=(Sample((_A,)),),
        source="log|det X|; inv(X)' back (Matrix Cookbook 57)",
    )
)
