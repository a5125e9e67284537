"""Factorisations of matrices that are not symmetric: LU, QR, singular values, and what is solved with them.

Rules are those of the general rank-full case, as torch has them; where torch has no derivative (complete QR of a tall
matrix, full singular vectors) the call stays opaque, and its own refusal stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import OPS, Node, Op, Sample, TensorType, TupleType, apply, constant, item, lowering, register
from chainrule.ops.arithmetic import where
from chainrule.ops.contraction import eye, matmul, transpose
from chainrule.ops.decompositions import SOLVE_TRIANGULAR, status
from chainrule.ops.families import written_as_call, zeros_like
from chainrule.ops.movement import broadcast, expand_dims
from chainrule.ops.slicing import concat, slice_axis
from chainrule.ops.triangles import TRIL, TRIU

_A = np.array([[2.0, 0.3, -0.1], [0.4, 1.5, 0.2], [-0.3, 0.1, 1.8]])
_TALL = np.array([[1.2, 0.3], [-0.4, 0.9], [0.7, -1.1]])


def _matrix(a: TensorType) -> TensorType:
    if a.rank < 2 or not all(isinstance(n, int) for n in a.shape[-2:]):
        raise ShapeError("needs a matrix with numbers for its sizes", given=str(a))
    return a


def _tril(x: Node, diagonal: int = 0) -> Node:
    return apply(TRIL, x, diagonal=diagonal)


def _triu(x: Node, diagonal: int = 0) -> Node:
    return apply(TRIU, x, diagonal=diagonal)


def _solve(a: Node, b: Node, upper: bool, unit: bool = False) -> Node:
    """``A^-1 B`` with a triangular A."""
    return apply(SOLVE_TRIANGULAR, a, b, upper=upper, unitriangular=unit)


def _solve_right(b: Node, a: Node, upper: bool, unit: bool = False) -> Node:
    """``B A^-1`` with a triangular A."""
    return transpose(_solve(transpose(a), transpose(b), not upper, unit))


def _rows(x: Node, start: int, end: int) -> Node:
    return slice_axis(x, x.type.rank - 2, start, end)


def _columns(x: Node, start: int, end: int) -> Node:
    return slice_axis(x, x.type.rank - 1, start, end)


def _sizes(x: Node) -> tuple[int, int, int]:
    m, n = (int(s) for s in x.shape[-2:])
    return m, n, min(m, n)


def _identity(x: Node, size: int) -> Node:
    return broadcast(eye(size, x.type.dtype), (*x.shape[:-2], size, size))


# ---- LU ----------------------------------------------------------------------------------------------------
def _lu_shape(a: TensorType) -> TupleType:
    k = min(map(int, _matrix(a).shape[-2:]))
    return TupleType((a.with_shape(a.shape), TensorType((*a.shape[:-2], k), "int32", None, a.device)))


def _lu_value(a: Any) -> tuple[Any, Any]:
    """Both triangles in one matrix, and the row (from 1) that each was exchanged with."""
    a = np.array(a, dtype=float)
    k = min(a.shape[-2:])
    pivots = np.zeros((*a.shape[:-2], k), np.int32)
    for at in np.ndindex(a.shape[:-2]):
        m = a[at]
        for c in range(k):
            best = c + int(np.argmax(np.abs(m[c:, c])))
            pivots[(*at, c)] = best + 1
            m[[c, best]] = m[[best, c]]
            m[c + 1 :, c] /= m[c, c]
            m[c + 1 :, c + 1 :] -= np.outer(m[c + 1 :, c], m[c, c + 1 :])
    return a, pivots


def _permutation_value(pivots: Any, *, size: int) -> Any:
    pivots = np.asarray(pivots)
    out = np.zeros((*pivots.shape[:-1], size, size))
    for at in np.ndindex(pivots.shape[:-1]):
        order = np.arange(size)
        for c, p in enumerate(pivots[at]):
            order[[c, p - 1]] = order[[p - 1, c]]
        out[at][order, np.arange(size)] = 1.0
    return out


_PERMUTATION = '''\
def permutation_of(pivots, size, dtype):
    """The matrix P of A = P L U."""
    lu = torch.zeros((*pivots.shape[:-1], size, pivots.shape[-1]), dtype=dtype, device=pivots.device)
    return torch.lu_unpack(lu, pivots, unpack_data=False)[0]
'''


def _permutation_shape(pivots: TensorType, *, size: int, dtype: str = "float64") -> TensorType:
    if "int" not in pivots.dtype or not pivots.shape or int(pivots.shape[-1]) > size:
        raise ShapeError("exchanges of rows that do not fit", given=str(pivots), required=f"up to {size} row numbers")
    return TensorType((*pivots.shape[:-1], size, size), dtype, None, pivots.device)


PERMUTATION = register(
    Op(
        "permutation",
        "kernel",
        shape=_permutation_shape,
        value=lambda pivots, *, size, dtype="float64": _permutation_value(pivots, size=size),
        torch=lambda node, x: f"permutation_of({x[0]}, {node.params['size']}, torch.{node.type.dtype})",
        prelude=_PERMUTATION,
        differentiable=False,
        samples=(Sample((np.array([2, 3, 3], np.int32),), {"size": 3}),),
        error_samples=(Sample((np.array([2, 3, 3], np.int32),), {"size": 2}),),
        **written_as_call("permutation"),
        source="LAPACK's ipiv: row c is exchanged with row ipiv[c], one after the other",
    )
)


def _lu_vjp(g: tuple[Node, Node], y: Node, a: Node) -> tuple[Node]:
    """Of the compact form: the strict lower triangle belongs to L, the rest to U."""
    compact, pivots = item(y, 0), item(y, 1)
    m, n, k = _sizes(a)
    p = apply(PERMUTATION, pivots, size=m, dtype=a.type.dtype)
    low, up = _rows(_columns(compact, 0, k), 0, k), _rows(_columns(compact, 0, k), 0, k)
    gl, gu = _tril(_columns(g[0], 0, k), -1), _triu(_rows(g[0], 0, k))
    g_low, g_up = _rows(gl, 0, k), _columns(gu, 0, k)
    below = right = None
    if m > k:  # rows below the square part: L2 = A2 U^-1
        below = _solve_right(_rows(gl, k, m), transpose(up), upper=False)
        g_up = g_up - _triu(matmul(transpose(_rows(_columns(compact, 0, k), k, m)), below))
    if n > k:  # columns right of it: U2 = L^-1 A2
        right = _solve(transpose(low), _columns(gu, k, n), upper=True, unit=True)
        g_low = g_low - _tril(matmul(right, transpose(_rows(_columns(compact, k, n), 0, k))), -1)
    unit = _tril(low, -1) + _identity(low, k)
    middle = _tril(matmul(transpose(unit), g_low), -1) + _triu(matmul(g_up, transpose(_triu(up))))
    square = _solve_right(_solve(transpose(low), middle, upper=True, unit=True), transpose(up), upper=False)
    if below is not None:
        square = concat([square, below], axis=a.type.rank - 2)
    if right is not None:
        square = concat([square, right], axis=a.type.rank - 1)
    return (matmul(p, square),)


LU = register(
    Op(
        "lu_factor",
        "kernel",
        shape=_lu_shape,
        value=_lu_value,
        vjp=_lu_vjp,
        torch="torch.linalg.lu_factor_ex({0})[:2]",
        samples=(Sample((_A[[1, 2, 0]],)), Sample((_TALL,)), Sample((_TALL.T + 0.1,))),
        error_samples=(Sample((_A[0],)),),
        **written_as_call("lu_factor"),
        source="A = P L U with partial pivoting; Giles 2008",
    )
)


@lowering("linalg_lu_factor_ex")
def lu_factor(a: Node, pivot: bool = True, check_errors: bool = False) -> list[Node]:
    """The compact factors, the exchanges of rows, and the report of success."""
    if not pivot:
        raise UnsupportedOpError("LU without pivoting")
    both = apply(LU, a)
    return [item(both, 0), item(both, 1), status(a)]


@lowering("lu_unpack")
def lu_parts(compact: Node, pivots: Node, unpack_data: bool = True, unpack_pivots: bool = True) -> list[Node]:
    """P, L and U."""
    m, _, k = _sizes(compact)
    if not (unpack_data and unpack_pivots):
        raise UnsupportedOpError("a part of what LU gives", instead="unpack_data=True, unpack_pivots=True")
    return [
        apply(PERMUTATION, pivots, size=m, dtype=compact.type.dtype),
        _tril(_columns(compact, 0, k), -1)
        + broadcast(constant(np.eye(m, k), compact.type.dtype), (*compact.shape[:-2], m, k)),
        _triu(_rows(compact, 0, k)),
    ]


@lowering("linalg_lu")
def lu(a: Node, pivot: bool = True) -> list[Node]:
    """P, L and U of a matrix."""
    compact, pivots, _ = lu_factor(a, pivot)
    return lu_parts(compact, pivots)


@lowering("linalg_lu_solve")
def lu_solve(compact: Node, pivots: Node, b: Node, left: bool = True, adjoint: bool = False) -> Node:
    """A linear system with the factors at hand."""
    if compact.shape[:-2] != b.shape[:-2]:
        lead = tuple(np.broadcast_shapes(tuple(map(int, compact.shape[:-2])), tuple(map(int, b.shape[:-2]))))
        compact, b = (broadcast(x, (*lead, *x.shape[-2:])) for x in (compact, b))
        pivots = broadcast(pivots, (*lead, pivots.shape[-1]))
    p = apply(PERMUTATION, pivots, size=int(compact.shape[-1]), dtype=compact.type.dtype)
    if not left:
        return transpose(lu_solve(compact, pivots, transpose(b), True, not adjoint))
    if adjoint:
        half = _solve(transpose(compact), b, upper=False)
        return matmul(p, _solve(transpose(compact), half, upper=True, unit=True))
    half = _solve(compact, matmul(transpose(p), b), upper=False, unit=True)
    return _solve(compact, half, upper=True)


@lowering("lu_solve")
def old_lu_solve(b: Node, compact: Node, pivots: Node) -> Node:
    """The same with the right side first."""
    return lu_solve(compact, pivots, b)


# ---- QR ----------------------------------------------------------------------------------------------------
def _qr_shape(a: TensorType) -> TupleType:
    m, n = map(int, _matrix(a).shape[-2:])
    k = min(m, n)
    return TupleType((a.with_shape((*a.shape[:-2], m, k)), a.with_shape((*a.shape[:-2], k, n))))


def _symmetrised(x: Node) -> Node:
    """The upper triangle mirrored, its diagonal once."""
    return x + transpose(_triu(x, 1))


def _qr_square(gq: Node, gr: Node, q: Node, r: Node) -> Node:
    inner = _triu(matmul(gr, transpose(r)) - matmul(transpose(q), gq))
    return _solve_right(gq + matmul(q, _symmetrised(inner)), transpose(r), upper=False)


def _qr_vjp(g: tuple[Node, Node], y: Node, a: Node) -> tuple[Node]:
    q, r = item(y, 0), item(y, 1)
    m, n, k = _sizes(a)
    gq, gr = g
    if m >= n:
        return (_qr_square(gq, gr, q, r),)
    rest, g_rest = _columns(a, k, n), _columns(gr, k, n)  # R2 = Q' A2
    gq = gq + matmul(rest, transpose(g_rest))
    first = _qr_square(gq, _columns(gr, 0, k), q, _columns(r, 0, k))
    return (concat([first, matmul(q, g_rest)], axis=a.type.rank - 1),)


QR = register(
    Op(
        "qr",
        "kernel",
        shape=_qr_shape,
        value=lambda a: tuple(np.linalg.qr(a)),
        vjp=_qr_vjp,
        torch="torch.linalg.qr({0})",
        samples=(Sample((_A,)), Sample((_TALL,)), Sample((_TALL.T,))),
        error_samples=(Sample((_A[0],)),),
        **written_as_call("qr"),
        source="Walter and Lehmann 2018; columns of Q for the smaller of both sizes",
    )
)


@lowering("linalg_qr")
def qr(a: Node, mode: str = "reduced") -> list[Node]:
    """Q and R."""
    m, n, _ = _sizes(a)
    if mode == "r" or (mode == "complete" and m > n):
        raise UnsupportedOpError(f"QR in mode {mode!r}, of which torch has no derivative", instead="mode='reduced'")
    both = apply(QR, a)
    return [item(both, 0), item(both, 1)]


# ---- singular values ---------------------------------------------------------------------------------------
def absent(g: Node) -> bool:
    """Whether a cotangent is zero by construction: then no difference of values is divided by, as in torch."""
    x = g.inputs[0] if g.op is OPS["broadcast"] else g
    return x.number == 0


def _svd_shape(a: TensorType, *, full: bool) -> TupleType:
    m, n = map(int, _matrix(a).shape[-2:])
    k, lead = min(m, n), a.shape[:-2]
    rows, columns = (m, n) if full else (k, k)
    return TupleType((a.with_shape((*lead, m, rows)), a.with_shape((*lead, k)), a.with_shape((*lead, columns, n))))


def _svd_vjp(g: tuple[Node, ...], y: Node, a: Node, *, full: bool) -> tuple[Node]:
    m, n, k = _sizes(a)
    u, s, vh = _columns(item(y, 0), 0, k), item(y, 1), _rows(item(y, 2), 0, k)
    gu, gs, gvh = _columns(g[0], 0, k), g[1], _rows(g[2], 0, k)
    if absent(g[0]) and absent(g[2]):
        return (matmul(u * expand_dims(gs, (a.type.rank - 2,)), vh),)
    rank = a.type.rank
    on_diagonal = constant(np.eye(k, dtype=bool))
    row, column = expand_dims(s, (rank - 2,)), expand_dims(s, (rank - 1,))
    gaps = where(on_diagonal, constant(1.0, s.type.dtype), (row - column) * (row + column))

    def skew(x: Node) -> Node:
        return (x - transpose(x)) / gaps

    left, right = matmul(transpose(u), gu), matmul(vh, transpose(gvh))
    by_values = where(on_diagonal, expand_dims(gs, (rank - 1,)), zeros_like(left))
    inner = skew(left) * row + column * skew(right) + by_values
    total = matmul(matmul(u, inner), vh)
    if m > k:
        outside = (gu - matmul(u, left)) / row
        total = total + matmul(outside, vh)
    if n > k:
        outside = (gvh - matmul(transpose(right), vh)) / column
        total = total + matmul(u, outside)
    return (total,)


SVD = register(
    Op(
        "svd",
        "kernel",
        shape=_svd_shape,
        value=lambda a, *, full: tuple(np.linalg.svd(a, full_matrices=full)),
        vjp=_svd_vjp,
        torch=lambda node, x: f"torch.linalg.svd({x[0]}, full_matrices={node.params['full']})",
        samples=(Sample((_A,), {"full": False}), Sample((_TALL,), {"full": False})),
        error_samples=(Sample((_A[0],), {"full": False}),),
        **written_as_call("svd"),
        source="Wan and Zhang 2019; torch.linalg.svd",
    )
)


@lowering("_linalg_svd")
def svd(a: Node, full_matrices: bool = False, compute_uv: bool = True, driver: str | None = None) -> list[Node]:
    """U, the singular values, and V'."""
    m, n, _ = _sizes(a)
    if driver is not None:
        raise UnsupportedOpError("singular values by a driver of the program's choice", instead="driver=None")
    found = apply(SVD, a, full=bool(full_matrices and compute_uv and m != n))
    return [item(found, k) for k in range(3)]


# ---- the pseudo-inverse and least squares ------------------------------------------------------------------
def _pinv_vjp(g: Node, y: Node, a: Node, **_: Any) -> tuple[Node]:
    yt, gt = transpose(y), transpose(g)
    first = matmul(matmul(yt, g), yt)
    left = matmul(gt, matmul(y, yt))
    right = matmul(matmul(yt, y), gt)
    return (left - matmul(a, matmul(y, left)) + right - matmul(matmul(right, y), a) - first,)


def _pinv_shape(a: TensorType, **_: Any) -> TensorType:
    m, n = _matrix(a).shape[-2:]
    return a.with_shape((*a.shape[:-2], n, m))


def _pinv_torch(node: Node, x: list[str]) -> str:
    options = "".join(f", {k}={v!r}" for k, v in node.params.items() if v is not None)
    return f"torch.linalg.pinv({x[0]}{options})"


PINV = register(
    Op(
        "pinv",
        "kernel",
        shape=_pinv_shape,
        value=lambda a, **_: np.linalg.pinv(a),
        vjp=_pinv_vjp,
        torch=_pinv_torch,
        samples=(Sample((_A,)), Sample((_TALL,)), Sample((_TALL.T,))),
        error_samples=(Sample((_A[0],)),),
        **written_as_call("pinv"),
        source="Golub and Pereyra 1973, of matrices of one rank",
    )
)


@lowering("linalg_pinv.atol_rtol_tensor", "linalg_pinv.atol_rtol_float")
def pinv(a: Node, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Node:
    """The pseudo-inverse; singular values below the tolerances count as zero."""
    options: dict[str, Any] = {"hermitian": True} if hermitian else {}
    for name, value in (("atol", atol), ("rtol", rtol)):
        number = value.number if isinstance(value, Node) else value
        if value is not None and number is None:
            raise UnsupportedOpError("a pseudo-inverse with a tolerance that depends on the inputs")
        if number is not None:
            options[name] = float(number)
    return apply(PINV, a, **options)
