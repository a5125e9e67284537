"""Norms by singular values, and what their derivatives are made of: polar factors and leading singular directions.

``X = U diag(s) V'`` with the singular values s in decreasing order. The nuclear norm is their sum and has the
derivative ``polar(X) = U V'``; the spectral norm is the largest and has the derivative ``top_singular(X) = u v'``.
Both derivatives have derivatives in closed form again, the first by a Sylvester equation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Kink, Node, Op, Sample, TensorType, apply, product, register, shape_text
from chainrule.ops.contraction import eye, matmul, permute, transpose
from chainrule.ops.families import written_as_call
from chainrule.ops.linear_algebra import INV
from chainrule.ops.movement import broadcast, expand_dims

_TALL = np.array([[2.0, 0.3], [0.4, -1.5], [-0.3, 0.6]])
_SQUARE = np.array([[2.0, 0.3, -0.1], [0.4, 1.5, 0.2], [-0.3, 0.1, 0.8]])
_STACK = np.stack([_TALL, 0.5 * _TALL[::-1] + 0.2])
_SAMPLES = (Sample((_TALL,)), Sample((_TALL.T,)), Sample((_SQUARE,)), Sample((_STACK,)))

_ROUNDING = 1e-14  # singular values are equal, or zero, to this part of the largest


def _matrix(x: TensorType) -> TensorType:
    if x.rank < 2:
        raise ShapeError("needs a matrix", given=f"({shape_text(x.shape)})")
    return x


def _number_per_matrix(x: TensorType) -> TensorType:
    return _matrix(x).with_shape(x.shape[:-2])


def _per_matrix(g: Node, x: Node) -> Node:
    return broadcast(expand_dims(g, (x.type.rank - 2, x.type.rank - 1)), x.shape)


def _or_nan(rule: Any) -> Any:
    """The rule, with nan where an operand is not finite: as elsewhere that is no exception."""

    def value(*arrays: Any) -> Any:
        if all(np.all(np.isfinite(x)) for x in arrays):
            return rule(*arrays)
        return np.full(np.shape(rule(*map(np.zeros_like, arrays))), np.nan)

    return value


def _svd_cost(_: TensorType, x: TensorType) -> Any:
    return product([*x.shape, x.shape[-1]])


# ---- symmetric Sylvester equations -------------------------------------------------------------------------
def _sylvester_shape(a: TensorType, b: TensorType, c: TensorType) -> TensorType:
    lead = c.shape[:-2]
    if c.rank < 2 or a.shape != (*lead, c.shape[-2], c.shape[-2]) or b.shape != (*lead, c.shape[-1], c.shape[-1]):
        raise ShapeError(
            "a Sylvester equation of shapes that do not fit",
            given=", ".join(f"({shape_text(t.shape)})" for t in (a, b, c)),
            required="A (m x m), B (n x n) and C (m x n)",
        )
    return c


def _swapped(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


def _sylvester(a: Any, b: Any, c: Any) -> Any:
    p, u = np.linalg.eigh((a + _swapped(a)) / 2)
    q, v = np.linalg.eigh((b + _swapped(b)) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return u @ (_swapped(u) @ c @ v / (p[..., :, None] + q[..., None, :])) @ _swapped(v)


def _symmetric_part(x: Node) -> Node:
    return (x + transpose(x)) * 0.5


def _sylvester_vjp(g: Node, z: Node, a: Node, b: Node, c: Node) -> tuple[Node, ...]:
    k = apply(SYLVESTER, a, b, g)
    return -_symmetric_part(matmul(k, transpose(z))), -_symmetric_part(matmul(transpose(z), k)), k


def _sylvester_lift(node: Node, inputs: list[Node], extra: tuple[Any, ...]) -> Node:
    """What comes behind the right-hand side is moved to the front, as a stack, and back again."""
    a, b, c = inputs
    rank, own = c.type.rank, node.type.rank
    front = permute(c, (*range(own, rank), *range(own)))
    stacked = [broadcast(m, (*extra, *m.shape)) for m in (a, b)]
    found = apply(SYLVESTER, *stacked, front)
    return permute(found, (*range(rank - own, rank), *range(rank - own)))


_SYLVESTER = (
    "(lambda e, f, c: e[1] @ (({np}.swapaxes(e[1], -1, -2) @ c @ f[1]) / (e[0][..., :, None] + f[0][..., None, :]))"
    " @ {np}.swapaxes(f[1], -1, -2))"
    "(*({np}.linalg.eigh((x + {np}.swapaxes(x, -1, -2)) / 2) for x in ({0}, {1})), {2})"
)
SYLVESTER = register(
    Op(
        "sylvester",
        "linear_algebra",
        shape=_sylvester_shape,
        value=_or_nan(_sylvester),
        vjp=_sylvester_vjp,
        lift=_sylvester_lift,
        cost=lambda result, a, b, c: product([*c.shape, c.shape[-1]]),
        **written_as_call("sylvester"),
        torch=_SYLVESTER.replace("{np}", "torch"),
        code=_SYLVESTER,
        names=("sylvester",),
        samples=(
            Sample((_SQUARE, _TALL[:2] @ _TALL[:2].T, _TALL)),
            Sample((_STACK @ _swapped(_STACK) + np.eye(3), _swapped(_STACK) @ _STACK, _STACK)),
        ),
        error_samples=(Sample((_SQUARE, _SQUARE, _TALL)),),
        source="A Z + Z B = C with symmetric A and B, whose symmetric parts are read; Bartels and Stewart 1972",
    )
)


# ---- the nuclear norm --------------------------------------------------------------------------------------
def _polar(x: Any) -> Any:
    u, s, v = np.linalg.svd(x, full_matrices=False)
    return (u * (s > _ROUNDING * s[..., :1])[..., None, :]) @ v


def _polar_vjp(g: Node, p: Node, x: Node) -> tuple[Node]:
    """``K - P K' P`` with ``X P' K + K P' X = G``: where it is differentiable, X has full rank."""
    back = transpose(p)
    k = apply(SYLVESTER, matmul(x, back), matmul(back, x), g)
    return (k - matmul(matmul(p, transpose(k)), p),)


_POLAR = (
    "(lambda u, s, v: (u * (s > 1e-14 * s[..., :1])[..., None, :]) @ v)(*{np}.linalg.svd({0}, full_matrices=False))"
)
POLAR = register(
    Op(
        "polar",
        "linear_algebra",
        shape=_matrix,
        value=_or_nan(_polar),
        vjp=_polar_vjp,
        cost=_svd_cost,
        **written_as_call("polar"),
        torch=_POLAR.replace("{np}", "torch"),
        code=_POLAR,
        names=("polar",),
        samples=_SAMPLES,
        error_samples=(Sample((_TALL[0],)),),
        source="U V' over the nonzero singular values: the partial isometry of X (Higham 2008, 8.1)",
    )
)
NUCLEAR_NORM = register(
    Op(
        "nuclear_norm",
        "linear_algebra",
        shape=_number_per_matrix,
        value=_or_nan(lambda x: np.linalg.svd(x, compute_uv=False).sum(-1)),
        vjp=lambda g, y, x: (_per_matrix(g, x) * apply(POLAR, x),),
        cost=_svd_cost,
        kinks=(Kink(0.0, 0.0),),
        text="nuclear_norm({0})",
        latex=r"\left\|{0}\right\|_{{*}}",
        torch='torch.linalg.matrix_norm({0}, "nuc")',
        code='{np}.linalg.norm({0}, "nuc", (-2, -1))',
        names=("nuclear_norm",),
        samples=(*_SAMPLES, Sample((np.zeros((2, 3)),), kink=True)),
        error_samples=(Sample((_TALL[0],)),),
        source="Watson 1992: the subgradient of least norm, U V' over the nonzero singular values",
    )
)


# ---- the spectral norm -------------------------------------------------------------------------------------
def _top(x: Any) -> Any:
    u, s, v = np.linalg.svd(x, full_matrices=False)
    equal = (s >= (1 - _ROUNDING) * s[..., :1]) & (s > 0)
    return (u * (equal / np.maximum(equal.sum(-1, keepdims=True), 1))[..., None, :]) @ v


def _top_vjp(g: Node, top: Node, x: Node) -> tuple[Node]:
    """A singular vector moves by ``(s^2 - X X')^-1 (s dX v + X dX' u)`` within the others' span."""
    s = _per_matrix_number(apply(SPECTRAL_NORM, x))
    left, right = matmul(top, transpose(top)), matmul(transpose(top), top)
    of_u, of_v = _resolvent(s, left, matmul(x, transpose(x))), _resolvent(s, right, matmul(transpose(x), x))
    a, b = matmul(of_u, g), matmul(g, of_v)
    moved_u = s * matmul(a, right) + matmul(matmul(top, transpose(a)), x)
    moved_v = s * matmul(left, b) + matmul(matmul(x, transpose(b)), top)
    return (moved_u + moved_v,)


def _per_matrix_number(s: Node) -> Node:
    return expand_dims(s, (s.type.rank, s.type.rank + 1)) if s.type.rank else s


def _resolvent(s: Node, along: Node, squared: Node) -> Node:
    """``(s^2 I - squared)^-1`` on the complement of the projector ``along``, zero along it."""
    square = s * s
    return apply(INV, square * (eye(squared.shape[-1], squared.type.dtype) + along) - squared) - along / square


_TOP = (
    "(lambda u, s, v: (u * ((s >= (1 - 1e-14) * s[..., :1]) * (s > 0)"
    " / (s >= (1 - 1e-14) * s[..., :1]).sum(-1)[..., None])[..., None, :]) @ v)"
    "(*{np}.linalg.svd({0}, full_matrices=False))"
)
TOP_SINGULAR = register(
    Op(
        "top_singular",
        "linear_algebra",
        shape=_matrix,
        value=_or_nan(_top),
        vjp=_top_vjp,
        cost=_svd_cost,
        **written_as_call("top_singular"),
        torch=_TOP.replace("{np}", "torch"),
        code=_TOP,
        names=("top_singular",),
        samples=_SAMPLES,
        error_samples=(Sample((_TALL[0],)),),
        source="u v' of the largest singular value; several equal ones share, as in torch; zero of a zero matrix",
    )
)
SPECTRAL_NORM = register(
    Op(
        "spectral_norm",
        "linear_algebra",
        shape=_number_per_matrix,
        value=_or_nan(lambda x: np.linalg.svd(x, compute_uv=False)[..., 0]),
        vjp=lambda g, y, x: (_per_matrix(g, x) * apply(TOP_SINGULAR, x),),
        cost=_svd_cost,
        kinks=(Kink(0.0, 0.0),),
        text="spectral_norm({0})",
        latex=r"\left\|{0}\right\|_{{2}}",
        torch="torch.linalg.matrix_norm({0}, 2)",
        code="{np}.linalg.norm({0}, 2, (-2, -1))",
        names=("spectral_norm",),
        samples=(*_SAMPLES, Sample((np.zeros((2, 3)),), kink=True)),
        error_samples=(Sample((_TALL[0],)),),
        source="the largest singular value; u v' back (Magnus 1985)",
    )
)
