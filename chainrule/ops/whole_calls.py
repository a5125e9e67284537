"""What torch computes in one call with bits of its own, where the formula is one of ops that exist already.

A model's forward pass is eager execution's bit for bit, so these run as the call that the program made; everything
else about them is their expansion: how they print, differentiate, and what they cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Code, Kink, Node, Sample, apply, broadcast_shapes, constant, item, lowering
from chainrule.ops.activation_kernels import TANH_BACKWARD, activation_kernel
from chainrule.ops.arithmetic import where
from chainrule.ops.contraction import einsum, matmul, transpose
from chainrule.ops.decompositions import CHOLESKY, status
from chainrule.ops.families import kernel, unary
from chainrule.ops.leaves import SEVERAL
from chainrule.ops.movement import broadcast, expand_dims
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.reductions import mean, normal_axes
from chainrule.ops.spread import STD, VAR, vector_norm

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])
_F = "torch.nn.functional"


# ---- products ----------------------------------------------------------------------------------------------
_TRACKED = '''\
def tracked_matmul(a, b):
    """A product as it is made for a tape: torch then folds the larger operand into a matrix."""
    with torch.enable_grad():
        return torch.matmul(a.detach().requires_grad_(), b.detach().requires_grad_()).detach()
'''

MATMUL = kernel(
    "matmul",
    call="",
    torch=lambda node, x: f"{'tracked_matmul' if node.params.get('tracked') else 'torch.matmul'}({x[0]}, {x[1]})",
    prelude=_TRACKED,
    expansion=lambda a, b, tracked=False: matmul(a, b),
    text="",
    latex="",
    samples=(Sample((_X[0], np.stack([_X.T, _X.T + 1]))), Sample((_X, np.stack([_X.T, _X.T - 1])))),
    error_samples=(Sample((_X, _X)),),
    source="torch.matmul, which folds or expands what it multiplies",
)


@lowering("matmul")
def product_of(a: Node, b: Node) -> Node:
    """A product of matrices is an einsum; with leading dimensions that differ it is torch's own call."""
    plain = a.shape[:-2] == b.shape[:-2] and min(a.type.rank, b.type.rank) >= 2
    low = max(a.type.rank, b.type.rank) <= 2 or (b.type.rank == 2 and a.type.rank > 2)
    return matmul(a, b) if plain or low else apply(MATMUL, a, b)


def tracked(product: Node) -> Node:
    """The same product where the smaller operand is differentiated, which decides how torch folds it."""
    return apply(MATMUL, *product.inputs, tracked=True) if product.op is MATMUL else product


def _bilinear(a: Node, b: Node, weight: Node, *bias: Node) -> Node:
    if a.shape[:-1] != b.shape[:-1] or (a.shape[-1], b.shape[-1]) != weight.shape[1:]:
        raise ShapeError("a bilinear map of shapes that do not fit", given=f"{a.type}, {b.type}, {weight.type}")
    lead = tuple(range(a.type.rank - 1))
    i, j, k = (len(lead) + n for n in range(3))
    y = einsum((((*lead, i), (k, i, j), (*lead, j)), (*lead, k)), a, weight, b)
    return y + bias[0] if bias else y


BILINEAR = kernel(
    "bilinear",
    call=f"{_F}.bilinear",
    expansion=_bilinear,
    text="",
    latex="",
    aten={"bilinear": lambda a, b, w, bias=None: apply(BILINEAR, a, b, w, *([] if bias is None else [bias]))},
    samples=(
        Sample((_X, _X[:, :2] + 0.2, np.sin(np.arange(12.0)).reshape(2, 3, 2))),
        Sample((_X, _X[:, :2] + 0.2, np.sin(np.arange(12.0)).reshape(2, 3, 2), np.array([0.2, -0.1]))),
    ),
    error_samples=(Sample((_X, _X, np.zeros((2, 3, 2)))),),
    source="torch.nn.Bilinear: x' A y + b",
)


def _trace(a: Node) -> Node:
    size = min(map(int, a.shape))
    return einsum("ii->", apply(OPS["slice"], a, starts=(0, 0), stops=(size, size), steps=(1, 1)))


def _matrix(a: Node) -> Node:
    if a.type.rank != 2:
        raise ShapeError("the trace of something that is no matrix", given=str(a.type))
    return a


TRACE = kernel(
    "trace",
    call="torch.trace",
    expansion=lambda a: _trace(_matrix(a)),
    text="",
    latex="",
    aten={"trace": None},
    samples=(Sample((_X,)),),
    error_samples=(Sample((_X[0],)),),
    source="the sum of the diagonal",
)


def _cross(a: Node, b: Node, *, dim: int) -> Node:
    shape = broadcast_shapes(a.shape, b.shape)
    a, b = broadcast(a, shape), broadcast(b, shape)
    if shape[dim] != 3:
        raise ShapeError("a vector product of vectors that do not have three elements", given=str(a.type))

    def turned(x: Node, shift: int) -> Node:
        return apply(OPS["roll"], x, shifts=(shift,), axes=(dim % x.type.rank,))

    return turned(a, -1) * turned(b, 1) - turned(a, 1) * turned(b, -1)


CROSS = kernel(
    "linalg_cross",
    call="torch.linalg.cross",
    expansion=_cross,
    text="",
    latex="",
    aten={"linalg_cross": lambda a, b, dim=-1: apply(CROSS, a, b, dim=dim)},
    samples=(Sample((_X, _X[::-1] + 0.5), {"dim": -1}),),
    error_samples=(Sample((_X, _X), {"dim": 0}),),
    source="the vector product along a dimension of size 3",
)


# ---- moments -----------------------------------------------------------------------------------------------
def _with_mean(name: str, spread: Any) -> Callable[..., list[Node]]:
    """The variance or deviation of a value and its mean, which torch finds in one walk."""

    def expansion(x: Node, *, dim: tuple[int, ...], correction: float, keepdim: bool) -> Node:
        wide = apply(spread, x, dim=dim, correction=correction, keepdim=keepdim)
        return apply(SEVERAL, wide, mean(x, dim, keepdim) if dim else x)

    op = kernel(
        name,
        call=f"torch.{name}",
        expansion=expansion,
        text="",
        latex="",
        samples=(
            Sample((_X,), {"dim": (1,), "correction": 1.0, "keepdim": False}),
            Sample((_X,), {"dim": (0, 1), "correction": 0.0, "keepdim": True}),
        ),
        error_samples=(Sample((_X,), {"dim": (2,), "correction": 1.0, "keepdim": False}),),
        source=f"torch.{name}",
    )

    def rule(x: Node, dim: Any = None, correction: float | None = 1, keepdim: bool = False) -> list[Node]:
        freedom = 1.0 if correction is None else float(correction)
        both = apply(op, x, dim=normal_axes(dim, x.type.rank), correction=freedom, keepdim=keepdim)
        return [item(both, 0), item(both, 1)]

    return lowering(f"{name}.correction")(rule)


_with_mean("var_mean", VAR)
_with_mean("std_mean", STD)


# ---- distances ---------------------------------------------------------------------------------------------
def _distances(a: Node, b: Node, *, p: float, compute_mode: int | None) -> Node:
    if a.type.rank < 2 or b.type.rank < 2 or a.shape[-1] != b.shape[-1]:
        raise ShapeError("distances of rows that do not fit", given=f"{a.type}, {b.type}")
    return vector_norm(expand_dims(a, (a.type.rank - 1,)) - expand_dims(b, (b.type.rank - 2,)), p, (-1,))


def _written(number: float) -> str:
    return repr(number) if math.isfinite(number) else f'float("{number}")'


_MODES = ("use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist")

CDIST = kernel(
    "cdist",
    call="",
    torch=lambda node, x: (
        f"torch.cdist({x[0]}, {x[1]}, p={_written(node.params['p'])}, "
        f"compute_mode={_MODES[node.params['compute_mode'] or 0]!r})"
    ),
    expansion=_distances,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    aten={
        key: lambda a, b, p=2, compute_mode=None: apply(CDIST, a, b, p=float(p), compute_mode=compute_mode)
        for key in ("cdist", "_cdist_forward")
    },
    samples=tuple(
        Sample((_X, 1.3 * _X[::-1] + 0.35), {"p": p, "compute_mode": None}) for p in (2.0, 1.0, 3.0, math.inf)
    ),
    error_samples=(Sample((_X, _X[:, :2]), {"p": 2.0, "compute_mode": None}),),
    source="the distance of every row of one to every row of the other; for many rows by a matrix product",
)


# ---- activations -------------------------------------------------------------------------------------------
_INNER, _CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1.0 + np.tanh(_INNER * (x + _CUBE * x**3)))


def _gelu_tanh_derivative(y: Node, x: Node) -> Node:
    t = apply(OPS["tanh"], _INNER * (x + _CUBE * x**3.0))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2.0) * (_INNER * (1.0 + 3 * _CUBE * x**2.0))


def _gelu_tanh_slope(g: Any, x: Any) -> Any:
    t = np.tanh(_INNER * (x + _CUBE * x**3))
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _INNER * (1 + 3 * _CUBE * x * x))


def _gelu_tanh_curve(w: Node, x: Node) -> Node:
    """w phi''(x): with u the argument of tanh and t its value, (1 - t^2) (u' + x (u'' / 2 - t u'^2))."""
    square = x * x
    t = apply(OPS["tanh"], (square * x * _CUBE + x) * _INNER)
    u_x = square * (3 * _CUBE * _INNER) + _INNER
    return apply(TANH_BACKWARD, w * (x * (x * (3 * _CUBE * _INNER) - t * (u_x * u_x)) + u_x), t)


def _native_slope(m: Any, g: Any, x: Any, t: Any) -> Any:
    return g * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (_INNER * (1.0 + 3 * _CUBE * x * x)))


GELU_TANH_BACKWARD = activation_kernel(
    "gelu_tanh_backward",
    call="torch.ops.aten.gelu_backward({0}, {1}, approximate='tanh')",
    slope=lambda x: _gelu_tanh_derivative(x, x),
    curve=_gelu_tanh_curve,
    value=_gelu_tanh_slope,
    aten={},  # gelu_backward's, with the other one
    native=lambda m, g, x: _native_slope(m, g, x, m.tanh(_INNER * (x + _CUBE * x * x * x))),
    source="the derivative of GELU_TANH",
)

GELU_TANH = unary(
    "gelu_tanh",
    value=_gelu_tanh,
    derivative=_gelu_tanh_derivative,
    native=lambda m, x: 0.5 * x * (1.0 + m.tanh(_INNER * (x + _CUBE * x * x * x))),
    torch=f"{_F}.gelu({{0}}, approximate='tanh')",
    code=Code(
        f"0.5 * {{0}} * (1 + {{np}}.tanh({_INNER!r} * ({{0}} + {_CUBE!r} * {{0}} ** 3)))",
        torch="torch.nn.functional.gelu({0}, approximate='tanh')",
    ),
    fused_vjp=lambda g, y, x: (apply(GELU_TANH_BACKWARD, g, x),),
    fused_again=True,
    samples=(Sample((_X,)),),
    source="Hendrycks and Gimpel 2016: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
)


@lowering("gelu")
def gelu(x: Node, approximate: str = "none") -> Node:
    """By the normal distribution, or by its approximation."""
    return apply(OPS["gelu"], x) if approximate == "none" else apply(GELU_TANH, x)


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

SELU = unary(
    "selu",
    value=lambda x: _SCALE * np.where(np.asarray(x) > 0, x, _ALPHA * np.expm1(x)),
    derivative=lambda y, x: where(
        apply(OPS["gt"], x, constant(0.0, x.type.dtype)), constant(_SCALE, x.type.dtype), y + _SCALE * _ALPHA
    ),
    kinks=(Kink(0.0, _SCALE * _ALPHA),),
    torch="torch.selu({0})",
    code=Code(
        f"{{np}}.where({{0}} > 0, {_SCALE!r} * {{0}}, {_SCALE * _ALPHA!r} * {{np}}.expm1({{0}}))",
        torch="torch.selu({0})",
    ),
    native=lambda m, x: m.where(x > 0.0, _SCALE * x, _SCALE * _ALPHA * m.expm1(x)),
    aten={"selu": None},
    source="Klambauer et al. 2017",
)


# ---- factors -----------------------------------------------------------------------------------------------
CHOLESKY_LOWER = kernel(
    "cholesky_lower",
    call="torch.linalg.cholesky",
    expansion=lambda a: apply(CHOLESKY, a),
    text="",
    latex="",
    structure="lower triangular",
    samples=(Sample((_X @ _X.T + np.eye(2),), smooth=False),),
    error_samples=(Sample((_X,)),),
    source="CHOLESKY of a symmetric matrix, of which one triangle is read; both get the cotangent, as in torch",
)


@lowering("cholesky")
def cholesky(a: Node, upper: bool = False) -> Node:
    """The lower factor, or the upper one."""
    return transpose(apply(CHOLESKY, a)) if upper else apply(CHOLESKY_LOWER, a)


@lowering("linalg_cholesky_ex")
def cholesky_ex(a: Node, upper: bool = False, check_errors: bool = False) -> list[Node]:
    """The factor, and the report that it exists."""
    return [cholesky(a, upper), status(a)]


# ---- weights -----------------------------------------------------------------------------------------------
def _weight_norm(v: Node, g: Node, *, dim: int) -> Node:
    axes = tuple(a for a in range(v.type.rank) if a != dim % v.type.rank)
    size = vector_norm(v, 2, axes, True)
    if size.shape != g.shape:
        raise ShapeError("weight norm with one length for each slice", given=f"{v.type}, {g.type}")
    return v * (g / size)


WEIGHT_NORM = kernel(
    "weight_norm",
    call="",
    torch=lambda node, x: f"torch._weight_norm_interface({x[0]}, {x[1]}, {node.params['dim']})[0]",
    expansion=_weight_norm,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    aten={"_weight_norm_interface": lambda v, g, dim=0: [apply(WEIGHT_NORM, v, g, dim=dim), None]},
    samples=(Sample((_X, np.array([[0.7], [1.2]])), {"dim": 0}), Sample((_X, np.array([[0.7, 1.2, 0.4]])), {"dim": 1})),
    error_samples=(Sample((_X, np.array([0.7, 1.2])), {"dim": 0}),),
    source="Salimans and Kingma 2016, equation 2",
)
