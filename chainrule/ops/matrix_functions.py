"""Functions of matrices that torch computes whole: the exponential, products of reflections, solves with a factor."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Op, Sample, TensorType, TupleType, apply, constant, item, lowering, register
from chainrule.ops.contraction import matmul, sum_axes, transpose
from chainrule.ops.factorizations import PINV
from chainrule.ops.families import kernel, written_as_call, zeros_like
from chainrule.ops.leaves import SEVERAL
from chainrule.ops.linear_algebra import INV, SOLVE
from chainrule.ops.movement import broadcast, expand_dims
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.slicing import concat, slice_axis

_A = np.array([[0.4, 0.3, -0.1], [0.2, -0.5, 0.2], [-0.3, 0.1, 0.6]])
_L = np.array([[1.2, 0.0, 0.0], [0.4, 0.9, 0.0], [-0.3, 0.2, 1.4]])
_B = np.array([[0.3, -1.2], [0.8, 2.0], [-0.4, 0.1]])


# ---- the exponential ---------------------------------------------------------------------------------------
def _square(a: TensorType) -> TensorType:
    if a.rank < 2 or a.shape[-1] != a.shape[-2] or not isinstance(a.shape[-1], int):
        raise ShapeError("needs a square matrix with a number for its size", given=str(a))
    return a


def _exponential(a: Any) -> Any:
    """Scaling and squaring of a Taylor series."""
    a = np.asarray(a, dtype=float)
    halvings = max(0, int(np.ceil(np.log2(max(np.abs(a).sum(-1).max(initial=0.0), 1e-300)))) + 4)
    small = a / 2.0**halvings
    total = term = np.broadcast_to(np.eye(a.shape[-1]), a.shape)
    for k in range(1, 20):
        term = term @ small / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def _exponential_vjp(g: Node, y: Node, a: Node) -> tuple[Node]:
    """The corner of the exponential of ``[[A', G], [0, A']]``."""
    n, rank = int(a.shape[-1]), a.type.rank
    turned = transpose(a)
    above = concat([turned, g], axis=rank - 1)
    below = concat([zeros_like(turned), turned], axis=rank - 1)
    whole = apply(MATRIX_EXP, concat([above, below], axis=rank - 2))
    return (slice_axis(slice_axis(whole, rank - 2, 0, n), rank - 1, n, 2 * n),)


def _exponential_jvp(t: Any, y: Node, a: Node) -> Node | None:
    return None if t[0] is None else _exponential_vjp(t[0], y, transpose(a))[0]


MATRIX_EXP = register(
    Op(
        "matrix_exp",
        "kernel",
        shape=_square,
        value=_exponential,
        vjp=_exponential_vjp,
        jvp=_exponential_jvp,
        torch="torch.linalg.matrix_exp({0})",
        aten={"linalg_matrix_exp": None, "matrix_exp": None},
        samples=(Sample((_A,)), Sample((np.stack([_A, _A.T * 2]),))),
        error_samples=(Sample((_B,)),),
        **written_as_call("matrix_exp"),
        source="Mathias 1996: the derivative is a block of a larger exponential",
    )
)


# ---- reflections -------------------------------------------------------------------------------------------
def _reflections(a: Node, tau: Node) -> list[tuple[Node, Node]]:
    """``(v, tau)`` of each reflection ``I - tau v v'``: columns below the diagonal, with a one on it."""
    m, k, rank = int(a.shape[-2]), int(tau.shape[-1]), a.type.rank
    if a.shape[:-2] != tau.shape[:-1] or k > int(a.shape[-1]) or int(a.shape[-1]) > m:
        raise ShapeError("reflections of shapes that do not fit", given=f"{a.type}, {tau.type}")
    found = []
    for c in range(k):
        column = slice_axis(a, rank - 1, c, c + 1)
        below = (np.arange(m) > c).astype(float)[:, None]
        one = (np.arange(m) == c).astype(float)[:, None]
        v = column * constant(below, a.type.dtype) + constant(one, a.type.dtype)
        found.append((v, expand_dims(slice_axis(tau, rank - 2, c, c + 1), (rank - 2,))))
    return found


def _reflected(x: Node, v: Node, tau: Node) -> Node:
    return x - tau * matmul(v, matmul(transpose(v), x))


def _householder(a: Node, tau: Node) -> Node:
    reflections = _reflections(a, tau)
    m, n = int(a.shape[-2]), int(a.shape[-1])
    q = broadcast(constant(np.eye(m, n), a.type.dtype), a.shape)
    for v, t in reversed(reflections):
        q = _reflected(q, v, t)
    return q


HOUSEHOLDER = kernel(
    "householder_product",
    call="torch.linalg.householder_product",
    expansion=_householder,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    aten={"linalg_householder_product": None, "orgqr": None},
    samples=(Sample((_B, np.array([0.7, 1.1]))), Sample((_A, np.array([0.7, 1.1])))),
    error_samples=(Sample((_B, np.array([0.7, 1.1, 0.2]))),),
    source="LAPACK's orgqr: the first columns of a product of reflections",
)


def _ormqr(a: Node, tau: Node, c: Node, *, left: bool, transposed: bool) -> Node:
    if not left:
        return transpose(_ormqr(a, tau, transpose(c), left=True, transposed=not transposed))
    reflections = _reflections(a, tau)
    for v, t in reflections if transposed else reversed(reflections):
        c = _reflected(c, v, t)
    return c


ORMQR = kernel(
    "ormqr",
    call="",
    torch=lambda node, x: (
        f"torch.ormqr({x[0]}, {x[1]}, {x[2]}, left={node.params['left']}, transpose={node.params['transposed']})"
    ),
    expansion=_ormqr,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    aten={
        "ormqr": lambda a, tau, c, left=True, transpose=False: apply(ORMQR, a, tau, c, left=left, transposed=transpose)
    },
    samples=(
        Sample((_B, np.array([0.7, 1.1]), _A[:, :2]), {"left": True, "transposed": False}),
        Sample((_B, np.array([0.7, 1.1]), _A[:2]), {"left": False, "transposed": True}),
    ),
    error_samples=(Sample((_B, np.array([0.7]), _A[:2]), {"left": True, "transposed": False}),),
    source="LAPACK's ormqr: a product of reflections times a matrix",
)


# ---- with a factor at hand ---------------------------------------------------------------------------------
def _gram(factor: Node, upper: bool) -> Node:
    """What the factor is one of. Both its triangles have a derivative, as torch has it, though one is read."""
    if factor.type.rank < 2:
        raise ShapeError("needs a matrix", given=str(factor.type))
    return matmul(transpose(factor), factor) if upper else matmul(factor, transpose(factor))


def _cholesky_solve(b: Node, factor: Node, *, upper: bool) -> Node:
    if b.shape[:-2] != factor.shape[:-2]:
        lead = tuple(np.broadcast_shapes(tuple(map(int, b.shape[:-2])), tuple(map(int, factor.shape[:-2]))))
        b, factor = broadcast(b, (*lead, *b.shape[-2:])), broadcast(factor, (*lead, *factor.shape[-2:]))
    return apply(SOLVE, _gram(factor, upper), b)


CHOLESKY_SOLVE = kernel(
    "cholesky_solve",
    call="torch.cholesky_solve",
    expansion=_cholesky_solve,
    aten={"cholesky_solve": lambda b, factor, upper=False: apply(CHOLESKY_SOLVE, b, factor, upper=upper)},
    samples=(Sample((_B, _L), {"upper": False}), Sample((_B, _L.T), {"upper": True})),
    error_samples=(Sample((_B, _L[:2]), {"upper": False}),),
    source="(L L')^-1 B",
)


CHOLESKY_INVERSE = kernel(
    "cholesky_inverse",
    call="torch.cholesky_inverse",
    expansion=lambda factor, *, upper: apply(INV, _gram(factor, upper)),
    aten={"cholesky_inverse": lambda factor, upper=False: apply(CHOLESKY_INVERSE, factor, upper=upper)},
    samples=(Sample((_L,), {"upper": False}), Sample((_L.T,), {"upper": True})),
    error_samples=(Sample((_L[0],), {"upper": False}),),
    source="(L L')^-1",
)


# ---- least squares -----------------------------------------------------------------------------------------
def _least_squares(a: Node, b: Node, *, driver: str | None, residuals: bool) -> Node:
    if a.type.rank < 2 or b.shape[:-1] != a.shape[:-1]:
        raise ShapeError("least squares of shapes that do not fit", given=f"{a.type}, {b.type}")
    x = matmul(apply(PINV, a), b)
    if not residuals:
        return apply(SEVERAL, x)
    off = matmul(a, x) - b
    return apply(SEVERAL, x, sum_axes(off * off, (off.type.rank - 2,)))


LSTSQ = kernel(
    "least_squares",
    call="",
    torch=lambda node, x: (
        f"torch.linalg.lstsq({x[0]}, {x[1]}, driver={node.params['driver']!r})[:{1 + node.params['residuals']}]"
    ),
    expansion=_least_squares,
    samples=(
        Sample((_B, _A[:, :2]), {"driver": "gels", "residuals": True}),
        Sample((_A, _B), {"driver": "gelsd", "residuals": False}),
    ),
    error_samples=(Sample((_B, _A[:2]), {"driver": None, "residuals": False}),),
    source="torch.linalg.lstsq; its derivative by the pseudo-inverse, as torch has it",
)


def _report_shape(a: TensorType, b: TensorType, *, driver: str | None) -> TupleType:
    lead, none = a.shape[:-2], (0,)
    if a.rank < 2 or b.shape[:-1] != a.shape[:-1]:
        raise ShapeError("least squares of shapes that do not fit", given=f"{a}, {b}")
    rank = none if driver == "gels" else lead
    values = (*lead, min(map(int, a.shape[-2:]))) if driver in ("gelsd", "gelss") else none
    return TupleType((TensorType(rank, "int64", None, a.device), a.with_shape(values)))


def _report_value(a: Any, b: Any, *, driver: str | None) -> tuple[Any, Any]:
    rank = np.zeros(0, np.int64) if driver == "gels" else np.asarray(np.linalg.matrix_rank(a), np.int64)
    return rank, np.linalg.svd(a, compute_uv=False) if driver in ("gelsd", "gelss") else np.zeros(0)


LSTSQ_REPORT = register(
    Op(
        "least_squares_report",
        "kernel",
        shape=_report_shape,
        value=_report_value,
        torch=lambda node, x: f"torch.linalg.lstsq({x[0]}, {x[1]}, driver={node.params['driver']!r})[2:]",
        differentiable=False,
        samples=(Sample((_B, _A[:, :2]), {"driver": None}), Sample((_A, _B), {"driver": "gelsd"})),
        error_samples=(Sample((_B, _A[:2]), {"driver": None}),),
        **written_as_call("least_squares_report"),
        source="the rank and the singular values that torch.linalg.lstsq found",
    )
)


@lowering("linalg_lstsq")
def least_squares(a: Node, b: Node, rcond: float | None = None, driver: str | None = None) -> list[Node]:
    """The solution, the squares that are left, and the report."""
    m, n = (int(s) for s in a.shape[-2:])
    if rcond is not None or a.shape[:-1] != b.shape[:-1]:
        raise ShapeError("least squares with a tolerance, or of one vector", given=f"{a.type}, {b.type}")
    left = m > n and driver in ("gels", "gelsd", "gelss")
    both, report = apply(LSTSQ, a, b, driver=driver, residuals=left), apply(LSTSQ_REPORT, a, b, driver=driver)
    rest = item(both, 1) if left else broadcast(constant(0.0, a.type.dtype), (0,))
    return [item(both, 0), rest, item(report, 0), item(report, 1)]
