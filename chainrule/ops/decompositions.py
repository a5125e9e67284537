"""Decompositions and triangular systems: Cholesky, symmetric eigenvalues, solves that report, signs of determinants."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import (
    OPS,
    Node,
    Op,
    Sample,
    TensorType,
    TupleType,
    apply,
    constant,
    item,
    known_facts,
    lowering,
    product,
    register,
    shape_text,
)
from chainrule.ops.arithmetic import where
from chainrule.ops.arrangement import diagonal_of
from chainrule.ops.contraction import einsum, eye, matmul, transpose
from chainrule.ops.families import written_as_call, zeros_like
from chainrule.ops.linear_algebra import INV, LOGDET, SOLVE
from chainrule.ops.movement import broadcast, expand_dims, squeeze
from chainrule.ops.triangles import TRIL, TRIU

_A = np.array([[2.0, 0.3, -0.1], [0.4, 1.5, 0.2], [-0.3, 0.1, 1.8]])
_S = _A + _A.T
_B = np.array([[0.3, -1.2], [0.8, 2.0], [-0.4, 0.1]])


def _square(x: TensorType) -> TensorType:
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError("needs a square matrix", given=f"({shape_text(x.shape)})")
    return x


def _identity(x: Node) -> Node:
    return constant(np.eye(int(x.shape[-1]), dtype=bool))


def status(x: Node) -> Node:
    """The report of success, 0 for each matrix."""
    return broadcast(constant(0, "int32"), x.shape[:-2])


# ---- triangular systems ------------------------------------------------------------------------------------
def _triangular_shape(a: TensorType, b: TensorType, *, upper: bool, unitriangular: bool) -> TensorType:
    _square(a)
    if b.rank != a.rank or b.shape[:-2] != a.shape[:-2] or b.shape[-2] != a.shape[-1]:
        raise ShapeError("solve of shapes that do not fit", given=f"({shape_text(a.shape)}), ({shape_text(b.shape)})")
    return b


def _triangle(a: Any, upper: bool, unitriangular: bool) -> Any:
    part = np.triu(a) if upper else np.tril(a)
    eye = np.eye(part.shape[-1])
    return part * (1 - eye) + eye if unitriangular else part


def _triangular_vjp(g: Node, y: Node, a: Node, b: Node, *, upper: bool, unitriangular: bool) -> tuple[Node, Node]:
    back = apply(SOLVE_TRIANGULAR, transpose(a), g, upper=not upper, unitriangular=unitriangular)
    inner = -matmul(back, transpose(y))
    off = int(unitriangular)
    return apply(TRIU if upper else TRIL, inner, diagonal=off if upper else -off), back


SOLVE_TRIANGULAR = register(
    Op(
        "solve_triangular",
        "kernel",
        shape=_triangular_shape,
        value=lambda a, b, *, upper, unitriangular: np.linalg.solve(_triangle(np.asarray(a), upper, unitriangular), b),
        vjp=_triangular_vjp,
        torch=lambda node, x: (
            f"torch.linalg.solve_triangular({x[0]}, {x[1]}, upper={node.params['upper']}, "
            f"unitriangular={node.params['unitriangular']})"
        ),
        aten={
            "linalg_solve_triangular": lambda a, b, upper, left=True, unitriangular=False: _solve_triangular(
                a, b, upper, left, unitriangular
            )
        },
        samples=(
            Sample((_A, _B), {"upper": True, "unitriangular": False}),
            Sample((_A, _B), {"upper": False, "unitriangular": True}),
        ),
        error_samples=(Sample((_A, _B[:2]), {"upper": True, "unitriangular": False}),),
        **written_as_call("solve_triangular"),
        source="A x = b with a triangular A; only that triangle is read",
    )
)


def _solve_triangular(a: Node, b: Node, upper: bool, left: bool, unitriangular: bool) -> Node:
    if b.shape[:-2] != a.shape[:-2]:
        raise UnsupportedOpError("a triangular solve that broadcasts", instead="equal leading dimensions")
    if left:
        return apply(SOLVE_TRIANGULAR, a, b, upper=upper, unitriangular=unitriangular)
    turned = apply(SOLVE_TRIANGULAR, transpose(a), transpose(b), upper=not upper, unitriangular=unitriangular)
    return transpose(turned)


# ---- Cholesky ----------------------------------------------------------------------------------------------
def _symmetric_within(g: Node, y: Node) -> Node:
    """``sym(tril(L' G))`` with the diagonal of the triangle halved: the cotangent between the two inverse factors."""
    low = apply(TRIL, matmul(transpose(y), g), diagonal=0)
    batch = tuple(range(2, y.type.rank))
    half = low - einsum(([(*batch, 0, 1), (0, 1)], (*batch, 0, 1)), low, eye(y.shape[-1], y.type.dtype)) * 0.5
    return (half + transpose(half)) * 0.5


def _cholesky_vjp(g: Node, y: Node, a: Node) -> tuple[Node]:
    """``L^-T sym(tril(L' G)) L^-1``, with the diagonal of the triangle halved; symmetric, as in torch."""
    inverse = apply(INV, y)
    return (matmul(matmul(transpose(inverse), _symmetric_within(g, y)), inverse),)


def _cholesky_by_solves(g: Node, y: Node, a: Node) -> tuple[Node]:
    """The same by triangular solves, for programs."""
    upper = transpose(y)
    right = apply(SOLVE_TRIANGULAR, upper, _symmetric_within(g, y), upper=True, unitriangular=False)
    return (transpose(apply(SOLVE_TRIANGULAR, upper, transpose(right), upper=True, unitriangular=False)),)


def _symmetric(a: Node) -> Node:
    return a if "symmetric" in known_facts(a) else (a + transpose(a)) * 0.5


def _of_symmetric_part(a: Any) -> Any:
    """The lower factor, or nan where there is none: like a division by zero, it is no exception."""
    a = np.asarray(a)
    try:
        return np.linalg.cholesky((a + np.swapaxes(a, -1, -2)) / 2)
    except np.linalg.LinAlgError:
        return np.full(a.shape, np.nan)


CHOLESKY = register(
    Op(
        "cholesky",
        "linear_algebra",
        shape=_square,
        value=_of_symmetric_part,
        vjp=_cholesky_vjp,
        fused_vjp=_cholesky_by_solves,
        cost=lambda result, a: product([*a.shape, a.shape[-1]]),
        structure="lower triangular",
        gram=lambda node: (_symmetric(node.inputs[0]), 1),
        torch="torch.linalg.cholesky(({0} + {0}.mT) / 2)",
        code="(lambda x: {np}.linalg.cholesky((x + {np}.swapaxes(x, -1, -2)) / 2))({0})",
        names=("cholesky",),
        samples=(Sample((_S,)), Sample((np.stack([_S, _S @ _S]),))),
        error_samples=(Sample((_A[:2],)),),
        **written_as_call("cholesky"),
        source="Murray 2016; of the symmetric part, so that both triangles count equally",
    )
)


# ---- symmetric eigenvalues ---------------------------------------------------------------------------------
def _gaps(w: Node) -> Node:
    """``w_j - w_i``, and 1 on the diagonal."""
    rank = w.type.rank
    gaps = expand_dims(w, (rank - 1,)) - expand_dims(w, (rank,))
    return where(constant(np.eye(int(w.shape[-1]), dtype=bool)), constant(1.0, w.type.dtype), gaps)


def _off_diagonal(x: Node) -> Node:
    return where(_identity(x), zeros_like(x), x)


def _eigh_vjp(g: tuple[Node, Node], y: Node, a: Node, *, UPLO: str) -> tuple[Node]:
    w, v = item(y, 0), item(y, 1)
    by_values = where(_identity(a), expand_dims(g[0], (g[0].type.rank,)), zeros_like(a))
    if g[1].op is OPS["broadcast"] and g[1].inputs[0].number == 0:  # values alone: no gap is divided by
        return (matmul(matmul(v, by_values), transpose(v)),)
    turned = matmul(transpose(v), g[1])  # only its skew part turns an orthogonal basis
    by_vectors = _off_diagonal((turned - transpose(turned)) * 0.5 / _gaps(w))
    return (matmul(matmul(v, by_values + by_vectors), transpose(v)),)


def _eigh_jvp(t: Any, y: Node, a: Node, *, UPLO: str) -> tuple[Node, Node] | None:
    if t[0] is None:
        return None
    w, v = item(y, 0), item(y, 1)
    moved = matmul(matmul(transpose(v), t[0]), v)
    rank = a.type.rank
    return diagonal_of(moved, 0, rank - 2, rank - 1), matmul(
        v, _off_diagonal((moved + transpose(moved)) * 0.5 / _gaps(w))
    )


EIGH = register(
    Op(
        "eigh",
        "kernel",
        shape=lambda a, *, UPLO: TupleType((_square(a).with_shape(a.shape[:-1]), a)),
        value=lambda a, *, UPLO: tuple(np.linalg.eigh(a, UPLO=UPLO)),
        vjp=_eigh_vjp,
        jvp=_eigh_jvp,
        torch=lambda node, x: f"torch.linalg.eigh({x[0]}, UPLO={node.params['UPLO']!r})",
        aten={"_linalg_eigh": lambda a, uplo="L", compute_v=True: _eigen(a, uplo)},
        # One triangle is read and both get the cotangent: differences of single elements say something else.
        samples=(Sample((_S,), {"UPLO": "L"}, smooth=False),),
        error_samples=(Sample((_A[:2],), {"UPLO": "L"}),),
        **written_as_call("eigh"),
        source="Giles 2008; as torch has it, not symmetrised",
    )
)


def _eigen(a: Node, uplo: str) -> list[Node]:
    both = apply(EIGH, a, UPLO=uplo)
    return [item(both, 0), item(both, 1)]


# ---- solves and determinants -------------------------------------------------------------------------------
def _solved(a: Node, b: Node, left: bool = True) -> Node:
    single = b.type.rank == 1 or (b.type.rank == a.type.rank - 1 and b.shape == a.shape[:-1])
    if single and a.type.rank == 2:
        return apply(SOLVE, a if left else transpose(a), b)
    columns = expand_dims(b, (b.type.rank,)) if single else b
    if a.shape[:-2] != columns.shape[:-2]:
        lead = np.broadcast_shapes(tuple(map(int, a.shape[:-2])), tuple(map(int, columns.shape[:-2])))
        a, columns = broadcast(a, (*lead, *a.shape[-2:])), broadcast(columns, (*lead, *columns.shape[-2:]))
    if left:
        found = apply(SOLVE, a, columns)
    else:
        found = transpose(apply(SOLVE, transpose(a), transpose(columns)))
    return squeeze(found, (found.type.rank - 1,)) if single else found


@lowering("linalg_solve")
def solve(a: Node, b: Node, left: bool = True) -> Node:
    """``A^-1 b``, or ``b A^-1``; leading dimensions broadcast."""
    return _solved(a, b, left)


@lowering("linalg_solve_ex")
def solve_ex(a: Node, b: Node, left: bool = True, check_errors: bool = False) -> list[Node]:
    """The solution, and the report that it exists."""
    return [_solved(a, b, left), status(a)]


@lowering("linalg_inv_ex")
def inverse_ex(a: Node, check_errors: bool = False) -> list[Node]:
    """The inverse, and the report that it exists."""
    return [apply(INV, a), status(a)]


DET_SIGN = register(
    Op(
        "det_sign",
        "kernel",
        shape=lambda a: _square(a).with_shape(a.shape[:-2]),
        value=lambda a: np.linalg.slogdet(a)[0],
        torch="torch.linalg.slogdet({0})[0]",
        differentiable=False,
        samples=(Sample((_A,)),),
        error_samples=(Sample((_A[:2],)),),
        **written_as_call("det_sign"),
        source="the sign of the determinant: constant almost everywhere",
    )
)


@lowering("linalg_slogdet", "slogdet")
def sign_and_logarithm(a: Node) -> list[Node]:
    """The sign of the determinant, and the logarithm of its size."""
    return [apply(DET_SIGN, a), apply(LOGDET, a)]


@lowering("logdet")
def log_determinant(a: Node) -> Node:
    """nan where the determinant is negative."""
    return apply(LOGDET, a) + apply(OPS["log"], apply(DET_SIGN, a))


@lowering("triangular_solve")
def triangular_pair(
    b: Node, a: Node, upper: bool = True, transposed: bool = False, unitriangular: bool = False
) -> list[Node]:
    """The solution of a triangular system, and a copy of the matrix."""
    if transposed:
        return [_solve_triangular(transpose(a), b, not upper, True, unitriangular), a]
    return [_solve_triangular(a, b, upper, True, unitriangular), a]
