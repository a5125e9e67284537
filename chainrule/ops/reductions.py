"""Reductions: sums and means (contractions), maxima, norms.

A reduction takes ``axes`` and ``keepdims``; a sum is an einsum, the others are composites or have their own rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    ATOM,
    OPS,
    Kink,
    Node,
    Op,
    Rewrite,
    Sample,
    TensorType,
    apply,
    as_node,
    lowering,
    product,
    register,
    spelling,
)
from chainrule.ops.arithmetic import compare, iverson
from chainrule.ops.casts import cast
from chainrule.ops.contraction import einsum, sum_axes, swap
from chainrule.ops.families import composite
from chainrule.ops.movement import broadcast, expand_dims, reshape
from chainrule.ops.probe_moments import ProbeRule

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])


def normal_axes(axes: int | float | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes as a sorted tuple of non-negative numbers; None is all of them."""
    if axes is None or (not isinstance(axes, (int, float)) and not len(axes)):
        return tuple(range(rank))
    given = (axes,) if isinstance(axes, (int, float)) else tuple(axes)
    if not rank and all(a in (0, -1) for a in given):  # of a scalar they mean the dimension it would have as a vector
        return ()
    if any((not isinstance(a, int) and int(a) != a) or not -rank <= a < rank for a in given):
        raise ShapeError(f"axis {given} of {rank} dimensions", required=f"whole numbers from {-rank} to {rank - 1}")
    return tuple(sorted({int(a) % rank for a in given}))


def _reduced_shape(x: TensorType, *, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    normal_axes(axes, x.rank)
    shape = tuple(1 if a in axes else s for a, s in enumerate(x.shape) if keepdims or a not in axes)
    return x.with_shape(shape)


def restore(y: Node, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """A reduced value broadcast back over the dimensions of ``x`` that were reduced."""
    return broadcast(y if keepdims else expand_dims(y, axes), x.shape)


# ---- sums and means ----------------------------------------------------------------------------------------
@spelling("sum")
def total(x: Any, axis: Any = None) -> Node:
    """The sum of all elements, or along one axis."""
    x = as_node(x)
    return sum_axes(x, normal_axes(axis, x.type.rank))


def _mean_expansion(x: Node, *, axes: tuple[int, ...], keepdims: bool) -> Node:
    normal_axes(axes, x.type.rank)
    return sum_axes(x, axes, keepdims) / product([x.shape[a] for a in axes]) if axes else x


def mean(x: Any, axes: Any = None, keepdims: bool = False) -> Node:
    """The mean of all elements, or along ``axes``."""
    x = as_node(x)
    return apply(MEAN, x, axes=normal_axes(axes, x.type.rank), keepdims=keepdims)


def _reduction_text(name: str) -> Any:
    def text(p: Any, node: Node) -> str:
        (x,) = node.inputs
        axes = node.params["axes"]
        inside = p.child(x, 0)
        if len(axes) < x.type.rank:
            inside += ", " + ", ".join(map(str, axes))
        body = f"{name}({inside})"
        if node.params["keepdims"]:
            body += "[" + ", ".join("None" if a in axes else ":" for a in range(x.type.rank)) + "]"
        return body

    return text


def _reduction_latex(name: str) -> Any:
    def latex(p: Any, node: Node) -> str:
        axes = node.params["axes"]
        under = f"_{{{','.join(map(str, axes))}}}" if len(axes) < node.inputs[0].type.rank else ""
        return rf"\operatorname{{{name}}}{under}\left({p.child(node.inputs[0], 0)}\right)"

    return latex


def _reduction_torch(name: str) -> Any:
    def torch(node: Node, x: list[str]) -> str:
        axes, keepdims = node.params["axes"], node.params["keepdims"]
        if len(axes) == node.inputs[0].type.rank and not keepdims and name == "mean":
            return f"{x[0]}.mean()"
        keep = ", keepdim=True" if keepdims else ""
        return f"{x[0]}.{name}({tuple(axes) if axes else ()}{keep})"

    return torch


def _reduction_code(name: str) -> Any:
    def code(w: Any, node: Node) -> str:
        axes, keepdims = node.params["axes"], node.params["keepdims"]
        keep = f", keepdim{'' if w.np == 'torch' else 's'}=True" if keepdims else ""
        along = f", {axes[0] if len(axes) == 1 else tuple(axes)}"
        if len(axes) == node.inputs[0].type.rank and not keepdims:
            along = ""
        return f"{w.np}.{name}({w(0)}{along}{keep})" if axes else w(0, ATOM)

    return code


_REDUCTION_SAMPLES = (
    Sample((_X,), {"axes": (0, 1), "keepdims": False}),
    Sample((_X,), {"axes": (1,), "keepdims": False}),
    Sample((_X,), {"axes": (0,), "keepdims": True}),
)
_REDUCTION_ERRORS = (Sample((_X,), {"axes": (2,), "keepdims": False}),)


def _kept_dimensions(node: Node) -> Node | None:
    """``keepdims`` as what it abbreviates."""
    (x,), axes = node.inputs, node.params["axes"]
    return expand_dims(apply(node.op, x, axes=axes, keepdims=False), axes) if node.params["keepdims"] else None


MEAN = composite(
    "mean",
    expansion=_mean_expansion,
    terms=lambda algebra, node, indices: (
        None if node.params["keepdims"] else algebra.average(node, node.params["axes"], indices)
    ),
    build=lambda x, axis=None: mean(x, axis),
    text=_reduction_text("mean"),
    latex=_reduction_latex("mean"),
    indexed=lambda p, node, indices: p.at(_mean_expansion(node.inputs[0], **node.params), indices),
    torch=_reduction_torch("mean"),
    code=_reduction_code("mean"),
    aten={
        "mean": lambda x, dtype=None: mean(x if dtype is None else cast(x, dtype)),
        "mean.dim": lambda x, dim, keepdim=False, dtype=None: mean(
            x if dtype is None else cast(x, dtype), dim, keepdim and bool(x.shape)
        ),
    },
    samples=_REDUCTION_SAMPLES,
    error_samples=_REDUCTION_ERRORS,
    rewrites=(Rewrite(_kept_dimensions),),
    source="sum over the number of elements",
)


# ---- maxima ------------------------------------------------------------------------------------------------
def _extremum_mask(y: Node, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    hit = iverson(compare("eq", x, restore(y, x, axes, keepdims)), like=x)
    count = sum_axes(hit, axes)
    return hit / broadcast(expand_dims(count, axes), x.shape)


def extremum_vjp(g: Node, y: Node, x: Node, *, axes: tuple[int, ...], keepdims: bool) -> tuple[Node]:
    return (restore(g, x, axes, keepdims) * _extremum_mask(y, x, axes, keepdims),)


def extremum_jvp(tangents: Any, y: Node, x: Node, *, axes: tuple[int, ...], keepdims: bool) -> Node | None:
    if tangents[0] is None:
        return None
    return sum_axes(tangents[0] * _extremum_mask(y, x, axes, keepdims), axes, keepdims)


def _reduced_extremum(name: str, spelled: str, value: Any) -> Op:
    return register(
        Op(
            name,
            "reduction",
            shape=_reduced_shape,
            value=lambda x, *, axes, keepdims: value(x, axis=axes, keepdims=keepdims) if axes else x,
            vjp=extremum_vjp,
            jvp=extremum_jvp,
            kinks=(Kink(0.0, "1 / number of equal extrema"),),
            names=(spelled,),
            build=lambda x, axis=None: apply(
                OPS[name], as_node(x), axes=normal_axes(axis, as_node(x).type.rank), keepdims=False
            ),
            text=_reduction_text(spelled),
            latex=_reduction_latex(spelled),
            indexed=lambda p, node, indices: p.bound(
                spelled, node.inputs[0], node.params["axes"], indices, node.params["keepdims"]
            ),
            torch=_reduction_torch(name),
            code=_reduction_code(name),
            moments=ProbeRule(),
            aten={
                name: lambda x, dim=(), keepdim=False: apply(
                    OPS[name], x, axes=normal_axes(dim, x.type.rank), keepdims=keepdim and bool(x.shape)
                ),
                spelled: lambda x: apply(OPS[name], x, axes=normal_axes(None, x.type.rank), keepdims=False),
            }
            | {
                f"{spelled}.other": lambda a, b: apply(OPS[f"{spelled}imum"], a, b),
            },
            samples=(
                *_REDUCTION_SAMPLES,
                Sample((np.full((2, 2), 0.7),), {"axes": (1,), "keepdims": False}, kink=True),
            ),
            error_samples=_REDUCTION_ERRORS,
            rewrites=(Rewrite(_kept_dimensions),),
            native=name,
            source="the largest (smallest) element; equal ones share the derivative, as torch.amax does",
        )
    )


AMAX = _reduced_extremum("amax", "max", np.max)
AMIN = _reduced_extremum("amin", "min", np.min)


@lowering("aminmax")
def _aminmax(x: Node, dim: int | None = None, keepdim: bool = False) -> list[Node]:
    axes = normal_axes(dim, x.type.rank)
    return [apply(op, x, axes=axes, keepdims=keepdim and bool(x.shape)) for op in (AMIN, AMAX)]


# ---- norms, traces, diagonals ------------------------------------------------------------------------------
@spelling("norm")
def norm(x: Any, axis: Any = None) -> Node:
    """The Euclidean (Frobenius) norm, over all elements or along one axis."""
    return apply(OPS["sqrt"], total(as_node(x) ** 2.0, axis))


@spelling("norm1")
def norm1(x: Any, axis: Any = None) -> Node:
    """The sum of absolute values."""
    return total(apply(OPS["abs"], as_node(x)), axis)


def _square(x: Node, name: str) -> Node:
    if x.type.rank < 2:
        raise ShapeError(f"{name} of a value with {x.type.rank} dimensions", required="a matrix")
    return x


@spelling("tr")
def trace(x: Node) -> Node:
    """The sum of the diagonal of the last two dimensions."""
    batch = tuple(range(2, _square(x, "tr").type.rank))
    return einsum(([(*batch, 0, 0)], batch), x)


@spelling("diag")
def diag(x: Node) -> Node:
    """The diagonal of a matrix, or the diagonal matrix of a vector."""
    if x.type.rank == 1:
        return einsum("i,ij->ij", x, apply(OPS["eye"], size=x.shape[0], dtype=x.type.dtype))
    batch = tuple(range(2, _square(x, "diag").type.rank))
    return einsum(([(*batch, 0, 0)], (*batch, 0)), x)


@spelling("outer")
def outer(a: Node, b: Node) -> Node:
    """``a_i b_j`` of two vectors."""
    return einsum("i,j->ij", a, b)


@spelling("dot")
def dot(a: Node, b: Node) -> Node:
    """The sum of products of two values of one shape."""
    rank = tuple(range(a.type.rank))
    return einsum(([rank, rank], ()), a, b)


@spelling("kron")
def kron(a: Node, b: Node) -> Node:
    """The Kronecker product of two matrices."""
    if a.type.rank != 2 or b.type.rank != 2:
        raise ShapeError("kron of values that are not matrices", given=f"{a.type} and {b.type}")
    blocks = einsum("ij,kl->ikjl", a, b)
    return reshape(blocks, (a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]))


@spelling("transpose")
def transposed(x: Node) -> Node:
    """The last two dimensions exchanged."""
    return swap(_square(x, "transpose"), -1, -2)
