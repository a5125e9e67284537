"""Composites of the chapter's networks: linear layers, softmax and its relatives, losses.

Each is declared by its expansion. Where the derivative has a well-known short form it is named here and held against
the expansion's by the contract test; where torch has a fused kernel, ``torch`` calls it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import OPS, Node, Sample, TensorType, apply, as_node, product, shape_text, spelling
from chainrule.ops.contraction import einsum, sum_axes
from chainrule.ops.families import composite, leaf
from chainrule.ops.movement import broadcast, expand_dims, ones
from chainrule.ops.probe_moments import ProbeRule
from chainrule.ops.reductions import mean, restore

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
    aten={
        "linear": lambda x, w, b=None: apply(LINEAR, x, w, *([] if b is None else [b])),
        "addmm": lambda b, x, w, beta=1, alpha=1: (
            (b if beta == 1 else b * beta)
            + (einsum("ij,jk->ik", x, w) if alpha == 1 else einsum("ij,jk->ik", x, w) * alpha)
        ),
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


def _axis_fields(name: str) -> dict[str, Any]:
    return {
        "text": _axis_text(name),
        "latex": _axis_latex(name.replace("_", r"\_")),
        "torch": lambda node, x: f"torch.{name}({x[0]}, {node.params['axis']})",
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
    aten={
        "logsumexp": lambda x, dim, keepdim=False: _kept(
            apply(LOGSUMEXP, x, axis=_single(dim) % x.type.rank), x, dim, keepdim
        )
    },
    source="log of the sum of exponentials; its derivative is softmax",
)
SOFTMAX = composite(
    "softmax",
    expansion=_softmax_expansion,
    vjp=lambda g, y, x, *, axis: ((g - _sum_along(g * y, _along(x, axis))) * y,),
    **_axis_fields("softmax"),
    aten={"softmax.int": lambda x, dim, dtype=None: apply(SOFTMAX, x, axis=dim % x.type.rank)},
    source="exp(x) / sum(exp(x)); y * (g - sum(g y)) back",
)
LOG_SOFTMAX = composite(
    "log_softmax",
    expansion=lambda x, *, axis: x - _reduce_back(apply(LOGSUMEXP, x, axis=_along(x, axis)), x, _along(x, axis)),
    vjp=lambda g, y, x, *, axis: (g - apply(SOFTMAX, x, axis=_along(x, axis)) * _sum_along(g, _along(x, axis)),),
    **_axis_fields("log_softmax"),
    aten={"log_softmax.int": lambda x, dim, dtype=None: apply(LOG_SOFTMAX, x, axis=dim % x.type.rank)},
    source="x - logsumexp(x); g - softmax(x) sum(g) back",
)


def _single(dim: Any) -> int:
    return dim if isinstance(dim, int) else dim[0]


def _kept(value: Node, x: Node, dim: Any, keepdim: bool) -> Node:
    return expand_dims(value, (_single(dim) % x.type.rank,)) if keepdim else value


# ---- losses ------------------------------------------------------------------------------------------------
_REDUCTIONS = ("none", "mean", "sum")  # torch's numbering in aten


def _reduced(value: Node, reduction: str) -> Node:
    return mean(value) if reduction == "mean" else sum_axes(value) if reduction == "sum" else value


def _spread(g: Node, x: Node, reduction: str) -> Node:
    """The cotangent of each element under a reduction."""
    if reduction == "none":
        return g
    spread = broadcast(g, x.shape)
    return spread / x.type.numel if reduction == "mean" else spread


def _same_shape(x: Node, target: Node, name: str) -> None:
    if x.shape != target.shape:
        raise ShapeError(
            f"{name}: output and target differ in shape",
            given=f"({shape_text(x.shape)}) and ({shape_text(target.shape)})",
            required="equal shapes (torch would broadcast them, which is almost always a mistake)",
        )


def _mse_expansion(x: Node, target: Node, *, reduction: str) -> Node:
    _same_shape(x, target, "mse")
    return _reduced((x - target) ** 2.0, reduction)


def _mse_vjp(g: Node, y: Node, x: Node, target: Node, *, reduction: str) -> tuple[Node, Node]:
    back = _spread(g, x, reduction) * (x - target) * 2.0
    return back, -back


def _loss_fields(torch: str) -> dict[str, Any]:
    return {
        "torch": lambda node, x: f"torch.nn.functional.{torch}({', '.join(x)}, reduction={node.params['reduction']!r})",
        "cost": lambda result, x, *_, **__: x.numel,
    }


def _elementwise_samples(target: np.ndarray) -> tuple[Sample, ...]:
    return tuple(Sample((_X, target), {"reduction": reduction}) for reduction in _REDUCTIONS)


MSE = composite(
    "mse",
    expansion=_mse_expansion,
    vjp=_mse_vjp,
    build=lambda x, target: _mse_expansion(x, target, reduction="mean"),
    **_loss_fields("mse_loss"),
    aten={"mse_loss": lambda x, t, reduction=1: apply(MSE, x, t, reduction=_REDUCTIONS[reduction])},
    samples=_elementwise_samples(_X[::-1] + 0.3),
    error_samples=(Sample((_X, _X[:, :1]), {"reduction": "mean"}),),
    source="problem 7.4: (f - y)^2, derivative 2 (f - y)",
)


def _bce_expansion(x: Node, target: Node, *, reduction: str) -> Node:
    _same_shape(x, target, "bce_with_logits")
    return _reduced(apply(OPS["softplus"], x) - target * x, reduction)


def _bce_vjp(g: Node, y: Node, x: Node, target: Node, *, reduction: str) -> tuple[Node, Node]:
    spread = _spread(g, x, reduction)
    return spread * (apply(OPS["sigmoid"], x) - target), -(spread * x)


BCE_WITH_LOGITS = composite(
    "bce_with_logits",
    expansion=_bce_expansion,
    vjp=_bce_vjp,
    build=lambda x, target: _bce_expansion(x, target, reduction="mean"),
    **_loss_fields("binary_cross_entropy_with_logits"),
    aten={
        "binary_cross_entropy_with_logits": lambda x, t, weight=None, pos_weight=None, reduction=1: (
            apply(BCE_WITH_LOGITS, x, t, reduction=_REDUCTIONS[reduction])
            if weight is None and pos_weight is None
            else _unsupported("binary_cross_entropy_with_logits with weights")
        )
    },
    samples=_elementwise_samples(np.array([[0.0, 1.0, 1.0], [0.2, 0.0, 1.0]])),
    error_samples=(Sample((_X, _X[:, :1]), {"reduction": "mean"}),),
    source="problem 7.5: -(1 - y) log(1 - sig(f)) - y log sig(f), derivative sig(f) - y",
)


def _unsupported(what: str) -> Node:
    raise UnsupportedOpError(f"{what} is not declared")


ONE_HOT = leaf(
    "one_hot",
    shape=lambda labels, *, classes, dtype: TensorType((*labels.shape, classes), dtype, None, labels.device),
    value=lambda labels, *, classes, dtype: (np.asarray(labels)[..., None] == np.arange(classes)).astype(np.float64),
    text=lambda p, node: f"one_hot({p.child(node.inputs[0], 0)}, {node.params['classes']})",
    latex=lambda p, node: rf"\operatorname{{onehot}}\left({p.child(node.inputs[0], 0)}\right)",
    torch=lambda node, x: (
        f"torch.nn.functional.one_hot({x[0]}, {node.params['classes']}).to(torch.{node.params['dtype']})"
    ),
    differentiable=False,
    samples=(Sample((np.array([2, 0]),), {"classes": 3, "dtype": "float64"}),),
    source="class numbers as rows of the identity",
)


def one_hot(labels: Node, classes: Any, dtype: str = "float64") -> Node:
    """Class numbers as rows of the identity matrix."""
    return apply(ONE_HOT, labels, classes=classes, dtype=dtype)


def _cross_entropy_parts(x: Node, target: Node) -> tuple[Node, int]:
    """The target as probabilities (one-hot for class numbers), and the class dimension."""
    axis = 1 if x.type.rank > 1 else 0
    if target.type.is_float:
        _same_shape(x, target, "cross_entropy")
        return target, axis
    if target.shape != (*x.shape[:axis], *x.shape[axis + 1 :]):
        raise ShapeError(
            "cross_entropy: class numbers do not fit the scores",
            given=f"({shape_text(x.shape)}) and ({shape_text(target.shape)})",
            required="one class number per sample: the scores' shape without its class dimension",
        )
    hot = one_hot(target, x.shape[axis], x.type.dtype)
    order = [*range(axis), hot.type.rank - 1, *range(axis, hot.type.rank - 1)]
    return einsum(([tuple(range(hot.type.rank))], tuple(order)), hot), axis


def _cross_entropy_expansion(x: Node, target: Node, *, reduction: str) -> Node:
    probabilities, axis = _cross_entropy_parts(x, target)
    per_sample = -sum_axes(probabilities * apply(LOG_SOFTMAX, x, axis=axis), (axis,))
    return _reduced(per_sample, reduction)


def _cross_entropy_vjp(g: Node, y: Node, x: Node, target: Node, *, reduction: str) -> tuple[Node, Node | None]:
    probabilities, axis = _cross_entropy_parts(x, target)
    samples = sum_axes(probabilities, (axis,))
    spread = _reduce_back(_spread(g, samples, reduction), x, axis)
    mass = (
        apply(SOFTMAX, x, axis=axis) * _reduce_back(samples, x, axis)
        if target.type.is_float
        else apply(SOFTMAX, x, axis=axis)  # class numbers: the rows of the target sum to one
    )
    target_back = -(spread * apply(LOG_SOFTMAX, x, axis=axis)) if target.type.is_float else None
    return spread * (mass - probabilities), target_back


CROSS_ENTROPY = composite(
    "cross_entropy",
    expansion=_cross_entropy_expansion,
    vjp=_cross_entropy_vjp,
    build=lambda x, target: _cross_entropy_expansion(x, target, reduction="mean"),
    **_loss_fields("cross_entropy"),
    moments=ProbeRule(),
    aten={
        "cross_entropy_loss": lambda x, t, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0: (
            apply(CROSS_ENTROPY, x, t, reduction=_REDUCTIONS[reduction])
            if weight is None and label_smoothing == 0.0
            else _unsupported("cross_entropy with class weights or label smoothing")
        )
    },
    samples=(
        Sample((_X, np.array([2, 0])), {"reduction": "mean"}),
        Sample((_X, np.array([[0.2, 0.3, 0.5], [0.0, 0.9, 0.3]])), {"reduction": "sum"}),
        Sample((_X[0], np.array(1)), {"reduction": "mean"}),
    ),
    error_samples=(
        Sample((_X, np.array([2, 0, 1])), {"reduction": "mean"}),
        Sample((_X, _X[:, :1]), {"reduction": "mean"}),
    ),
    source="-log softmax(x)[y]; derivative softmax(x) - onehot(y) over the batch",
)


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
