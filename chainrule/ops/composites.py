"""Composites of the chapter's networks: linear layers, softmax and its relatives. Losses are in ``losses``.

Each is declared by its expansion. Where the derivative has a well-known short form it is named here and held against
the expansion's by the contract test; where torch has a fused kernel, ``torch`` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Code, Node, Op, Sample, TensorType, apply, as_node, product, shape_text, spelling
from chainrule.ops.casts import cast
from chainrule.ops.contraction import einsum, permute, sum_axes
from chainrule.ops.families import composite
from chainrule.ops.kernels import log_softmax_vjp, softmax_vjp
from chainrule.ops.movement import axis_of, broadcast, expand_dims, ones, reshape, vector
from chainrule.ops.probe_moments import ProbeRule
from chainrule.ops.reductions import mean, normal_axes, restore

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])


# ---- linear layer ------------------------------------------------------------------------------------------
def _leading(x: Node) -> tuple[int, ...]:
    return tuple(range(10, 10 + x.type.rank - 1))


def _linear_expansion(x: Node, weight: Node, *bias: Node) -> Node:
    if weight.type.rank != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            "linear layer does not fit its input",
            given=f"input ({shape_text(x.shape)}), weight ({shape_text(weight.shape)})",
            required="weight of (outputs x inputs) with inputs = the input's last size",
        )
    batch = _leading(x)
    f = einsum(([(*batch, 0), (1, 0)], (*batch, 1)), x, weight)
    return f + bias[0] if bias else f


def _linear_vjp(g: Node, y: Node, x: Node, weight: Node, *bias: Node) -> tuple[Node, ...]:
    batch = _leading(x)
    gx = einsum(([(*batch, 1), (1, 0)], (*batch, 0)), g, weight)
    gw = einsum(([(*batch, 1), (*batch, 0)], (1, 0)), g, x)
    return gx, gw, *(sum_axes(g, tuple(range(g.type.rank - 1))) for _ in bias)


def _linear_cost(_: TensorType, x: TensorType, weight: TensorType, *bias: TensorType) -> Any:
    return product([*x.shape[:-1], *weight.shape])


LINEAR = composite(
    "linear",
    expansion=_linear_expansion,
    vjp=_linear_vjp,
    cost=_linear_cost,
    torch=lambda node, x: f"torch.nn.functional.linear({', '.join(x)})",
    order="given",
    aten={
        "linear": lambda x, w, b=None: apply(LINEAR, x, w, *([] if b is None else [b])),
    },
    names=(),
    samples=(
        Sample((_X, _X[:, ::-1] + 0.1, np.array([0.2, -0.6]))),
        Sample((_X, _X[:, ::-1] + 0.1)),
        Sample((_X[0], _X[:, ::-1] + 0.1, np.array([0.2, -0.6]))),
    ),
    error_samples=(Sample((_X, _X.T)),),
    source="f = beta + Omega h; rows of a batch as x Omega' + beta",
)


# ---- softmax -----------------------------------------------------------------------------------------------
def _along(x: Node, axis: int) -> int:
    if not x.shape:
        raise ShapeError("softmax of a scalar", given=str(x.type), required="at least one dimension")
    if not -x.type.rank <= axis < x.type.rank:
        raise ShapeError(f"softmax along dimension {axis} of a value with {x.type.rank}")
    return axis % x.type.rank


def _reduce_back(value: Node, x: Node, axis: int) -> Node:
    return broadcast(expand_dims(value, (axis,)), x.shape)


def _logsumexp_expansion(x: Node, *, axis: int) -> Node:
    axis = _along(x, axis)
    # The largest element is subtracted so that nothing overflows; its derivative cancels, hence stop_gradient.
    top = apply(OPS["stop_gradient"], apply(OPS["amax"], x, axes=(axis,), keepdims=False))
    return top + apply(OPS["log"], sum_axes(apply(OPS["exp"], x - _reduce_back(top, x, axis)), (axis,)))


def _softmax_expansion(x: Node, *, axis: int) -> Node:
    axis = _along(x, axis)
    return apply(OPS["exp"], x - _reduce_back(apply(LOGSUMEXP, x, axis=axis), x, axis))


def _axis_text(name: str) -> Any:
    def text(p: Any, node: Node) -> str:
        (x,) = node.inputs
        axis = node.params["axis"] % x.type.rank
        extra = f", {axis}" if axis != x.type.rank - 1 else ""
        return f"{name}({p.child(x, 0)}{extra})"

    return text


def _axis_latex(name: str) -> Any:
    return lambda p, node: rf"\operatorname{{{name}}}\left({p.child(node.inputs[0], 0)}\right)"


_LOGSUMEXP = '''\
def _logsumexp(x, axis):
    """log(sum(exp(x))) along an axis, shifted by the largest element so that nothing overflows."""
    top = np.max(x, axis=axis, keepdims=True)
    return np.squeeze(top + np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)), axis)
'''
_SOFTMAX = '''\
def _softmax(x, axis):
    """exp(x) / sum(exp(x)) along an axis, shifted so that nothing overflows."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)
'''
_LOG_SOFTMAX = '''\
def _log_softmax(x, axis):
    """x - log(sum(exp(x))) along an axis."""
    return x - np.expand_dims(_logsumexp(x, axis), axis)
'''
_HELPERS = {
    "logsumexp": (_LOGSUMEXP,),
    "softmax": (_SOFTMAX,),
    "log_softmax": (_LOGSUMEXP, _LOG_SOFTMAX),
}


def _axis_code(name: str) -> Code:
    def words(function: str) -> Any:
        return lambda w, node: f"{function}({w(0)}, {node.params['axis'] % node.inputs[0].type.rank})"

    where = "jax.scipy.special" if name == "logsumexp" else "jax.nn"
    return Code(words(f"_{name}"), words(f"{where}.{name}"), words(f"torch.{name}"), helper=_HELPERS[name])


def _axis_fields(name: str) -> dict[str, Any]:
    return {
        "text": _axis_text(name),
        "latex": _axis_latex(name.replace("_", r"\_")),
        "torch": lambda node, x: f"torch.{name}({x[0]}, {node.params['axis']})",
        "code": _axis_code(name),
        "build": lambda x, axis=-1: apply(OPS[name], x, axis=_along(x, int(axis))),
        "cost": lambda result, x, **_: x.numel,
        "moments": ProbeRule(),
        "samples": (Sample((_X,), {"axis": 1}), Sample((_X,), {"axis": 0})),
        "error_samples": (Sample((np.array(0.3),), {"axis": 0}), Sample((_X,), {"axis": 2})),
    }


def _sum_along(value: Node, axis: int) -> Node:
    return _reduce_back(sum_axes(value, (axis,)), value, axis)


LOGSUMEXP = composite(
    "logsumexp",
    expansion=_logsumexp_expansion,
    vjp=lambda g, y, x, *, axis: (restore(g, x, (_along(x, axis),), False) * apply(SOFTMAX, x, axis=_along(x, axis)),),
    **(_axis_fields("logsumexp") | {"build": lambda x, axis=-1: apply(LOGSUMEXP, x, axis=_along(x, int(axis)))}),
    aten={"logsumexp": lambda x, dim, keepdim=False: _logsumexp_over(x, dim, keepdim)},
    source="log of the sum of exponentials; its derivative is softmax",
)
SOFTMAX = composite(
    "softmax",
    symbol="p",
    expansion=_softmax_expansion,
    vjp=lambda g, y, x, *, axis: ((g - _sum_along(g * y, _along(x, axis))) * y,),
    **_axis_fields("softmax"),
    fused_vjp=softmax_vjp,
    fused_again=True,
    sums_to_one=lambda node: node.params["axis"],
    aten={
        "softmax.int": lambda x, dim, dtype=None: _vector_of(SOFTMAX, x, dim, dtype),
        "_softmax": lambda x, dim, wide=False: _vector_of(SOFTMAX, x, dim, "float32" if wide else None),
    },
    source="exp(x) / sum(exp(x)); y * (g - sum(g y)) back",
)
LOG_SOFTMAX = composite(
    "log_softmax",
    expansion=lambda x, *, axis: x - _reduce_back(apply(LOGSUMEXP, x, axis=_along(x, axis)), x, _along(x, axis)),
    vjp=lambda g, y, x, *, axis: (g - apply(SOFTMAX, x, axis=_along(x, axis)) * _sum_along(g, _along(x, axis)),),
    **_axis_fields("log_softmax"),
    fused_vjp=log_softmax_vjp,
    fused_again=True,
    aten={
        "log_softmax.int": lambda x, dim, dtype=None: _vector_of(LOG_SOFTMAX, x, dim, dtype),
        "_log_softmax": lambda x, dim, wide=False: _vector_of(LOG_SOFTMAX, x, dim, "float32" if wide else None),
    },
    source="x - logsumexp(x); g - softmax(x) sum(g) back",
)


def _vector_of(op: Op, x: Node, dim: int, dtype: Any = None) -> Node:
    """Along one dimension as torch calls it: a scalar is a vector of one element, integers become floats."""
    dtype = dtype or (x.type.dtype if x.type.is_float else "float32")
    return reshape(apply(op, vector(cast(x, dtype)), axis=axis_of(x, dim)), x.shape)


def _logsumexp_over(x: Node, dim: int | Sequence[int], keepdim: bool) -> Node:
    """Over several dimensions: as one, behind the others."""
    x = x if x.type.is_float else cast(x, "float32")
    axes = normal_axes(dim, x.type.rank)
    if len(axes) == 1:
        found = apply(LOGSUMEXP, x, axis=axes[0])
    else:
        kept = [a for a in range(x.type.rank) if a not in axes]
        together = reshape(
            permute(x, (*kept, *axes)), (*(x.shape[a] for a in kept), product([x.shape[a] for a in axes]))
        )
        found = apply(LOGSUMEXP, together, axis=len(kept))
    return expand_dims(found, axes) if keepdim else found


# ---- functions of the formula language ---------------------------------------------------------------------
@spelling("layer_norm")
def layer_norm(x: Node, eps: Any = 1e-5) -> Node:
    """``(x - mean) / sqrt(variance + eps)`` over the last dimension (biased variance, as in torch)."""
    if not x.shape:
        raise ShapeError("layer_norm of a scalar", required="at least one dimension")
    last = (x.type.rank - 1,)
    centred = x - mean(x, last, keepdims=True)
    return centred / apply(OPS["sqrt"], mean(centred**2.0, last, keepdims=True) + as_node(eps, like=x))


@spelling("ones")
def ones_of(*sizes: Any) -> Node:
    """A vector, matrix or tensor of ones."""
    return ones(tuple(sizes))


@spelling("eye")
def eye_of(size: Any) -> Node:
    """The identity matrix of a size."""
    return apply(OPS["eye"], size=size, dtype="float64")
