"""Fused backward kernels: what a program runs where a formula has an expansion.

Each is torch's own backward of one op, as eager execution runs it, with what its forward kernel keeps as operands. Some
have a derivative by kernels again; second derivatives of the others go through expansions of the op. The ops that they
belong to name them as their ``fused_vjp``. Those of activations are in ``activation_kernels``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Node, Op, Sample, TensorType, TupleType, apply, item, register, shape_text


def backward_kernel(
    name: str,
    *,
    shape: Callable[..., Any],
    value: Callable[..., Any],
    torch: str | Callable[..., str],
    samples: Sequence[Sample],
    error_samples: Sequence[Sample] = (),
    source: str,
    prelude: str = "",
    choosy: bool = False,
    in_place: Mapping[int, str] | None = None,
    into: str = "",
    order: str = "",
    vjp: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    expansion: Callable[..., Node] | None = None,
    fused_vjp: Callable[..., Any] | None = None,
    native: Any = None,
    taped: bool = True,
    aten: Mapping[str, Callable[..., Node]] | None = None,
) -> Op:
    """The declaration of a kernel; it can be differentiated with ``vjp`` and ``jvp``, or an ``expansion``.

    ``fused_vjp``: the derivative of one with an expansion, by kernels again.
    """
    shown = name.replace("_", r"\_")
    return register(
        Op(
            name,
            "kernel",
            shape=shape,
            value=value,
            torch=torch,
            prelude=prelude,
            choosy=choosy,
            in_place=in_place or {},
            into=into,
            order="operands" if shape is same_as_first else order,
            vjp=vjp,
            jvp=jvp,
            expansion=expansion,
            fused_vjp=fused_vjp,
            fused_again=fused_vjp is not None,
            differentiable=vjp is not None or expansion is not None,
            native=native,
            taped=taped,
            aten=aten or {},
            text=lambda p, node: f"{name}({', '.join(p.child(i, 0) for i in node.inputs)})",
            latex=lambda p, node: (
                rf"\operatorname{{{shown}}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)"
            ),
            samples=tuple(samples),
            error_samples=tuple(error_samples),
            source=source,
        )
    )


def same_as_first(g: TensorType, *others: TensorType, **_: Any) -> TensorType:
    """The shape of a backward kernel whose operands are all alike."""
    if any(o.shape != g.shape for o in others):
        raise ShapeError(
            "operands of a backward kernel have one shape",
            given=" and ".join(f"({shape_text(t.shape)})" for t in (g, *others)),
        )
    return g


_G = np.array([[0.4, -1.1, 0.3], [0.2, 0.9, -0.6]])
_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])
_P = np.exp(_X) / np.exp(_X).sum(1, keepdims=True)


def _total(x: Node, axis: int) -> Node:
    """The sum along an axis, in the shape of ``x``."""
    kept = tuple(a for a in range(x.type.rank) if a != axis % x.type.rank)
    total = apply(OPS["einsum"], x, operands=(tuple(range(x.type.rank)),), result=kept)
    return apply(OPS["expand_dims"], total, axes=(axis % x.type.rank,))


def _log_softmax_again(c: Node, g: Node, p: Node, axis: int) -> tuple[Node, Node]:
    return c - _total(c * p, axis), -(c * p * _total(g, axis))


# ---- softmax -----------------------------------------------------------------------------------------------
SOFTMAX_BACKWARD = backward_kernel(
    "softmax_backward",
    shape=same_as_first,
    value=lambda g, y, *, axis: y * (g - (g * y).sum(axis, keepdims=True)),
    torch=lambda node, x: f"torch.ops.aten._softmax_backward_data({x[0]}, {x[1]}, {node.params['axis']}, {x[1]}.dtype)",
    samples=(Sample((_G, _P), {"axis": 1}),),
    error_samples=(Sample((_G, _P[:, :2]), {"axis": 1}),),
    aten={"_softmax_backward_data": lambda g, y, dim, dtype: apply(SOFTMAX_BACKWARD, g, y, axis=dim % y.type.rank)},
    expansion=lambda g, y, *, axis: y * (g - _total(g * y, axis)),
    # The Jacobian of softmax is symmetric: the cotangent of g goes back as g does.
    fused_vjp=lambda c, _, g, y, *, axis: (
        apply(SOFTMAX_BACKWARD, c, y, axis=axis),
        c * (g - _total(g * y, axis)) - g * _total(c * y, axis),
    ),
    source="y * (g - sum(g*y)), from the output",
)

LOG_SOFTMAX_BACKWARD = backward_kernel(
    "log_softmax_backward",
    shape=same_as_first,
    value=lambda g, y, *, axis: g - np.exp(y) * g.sum(axis, keepdims=True),
    torch=lambda node, x: (
        f"torch.ops.aten._log_softmax_backward_data({x[0]}, {x[1]}, {node.params['axis']}, {x[1]}.dtype)"
    ),
    samples=(Sample((_G, np.log(_P)), {"axis": 1}),),
    error_samples=(Sample((_G, _P[:, :2]), {"axis": 1}),),
    aten={
        "_log_softmax_backward_data": lambda g, y, dim, dtype: apply(LOG_SOFTMAX_BACKWARD, g, y, axis=dim % y.type.rank)
    },
    expansion=lambda g, y, *, axis: g - apply(OPS["exp"], y) * _total(g, axis),
    fused_vjp=lambda c, _, g, y, *, axis: _log_softmax_again(c, g, apply(OPS["exp"], y), axis),
    source="g - exp(y) * sum(g), from the output",
)


def softmax_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    """``fused_vjp`` of softmax."""
    return (apply(SOFTMAX_BACKWARD, g, y, axis=axis),)


def log_softmax_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    """``fused_vjp`` of log_softmax."""
    return (apply(LOG_SOFTMAX_BACKWARD, g, y, axis=axis),)


# ---- cross-entropy of class numbers ------------------------------------------------------------------------
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}

_CROSS_ENTROPY = '''\
def cross_entropy_recorded(x, target, reduction, ignore_index):
    """The loss, the logarithms of the probabilities, and what a mean divides by."""
    logp = torch.log_softmax(x, x.dim() - 1 if x.dim() < 2 else 1)
    if x.dim() <= 2:
        loss, total = torch.ops.aten.nll_loss_forward(logp, target, None, reduction, ignore_index)
        return loss, logp, total
    flat, classes = logp.reshape(*logp.shape[:2], 1, -1), target.reshape(len(target), 1, -1)
    loss, total = torch.ops.aten.nll_loss2d_forward(flat, classes, None, reduction, ignore_index)
    return loss if reduction else loss.reshape(target.shape), logp, total


def cross_entropy_backward(g, logp, target, total, reduction, ignore_index):
    """The cotangent of the scores."""
    axis = logp.dim() - 1 if logp.dim() < 2 else 1
    if logp.dim() <= 2:
        back = torch.ops.aten.nll_loss_backward(g, logp, target, None, reduction, ignore_index, total)
    else:
        flat, classes = logp.reshape(*logp.shape[:2], 1, -1), target.reshape(len(target), 1, -1)
        g = g if reduction else g.reshape(classes.shape)
        back = torch.ops.aten.nll_loss2d_backward(g, flat, classes, None, reduction, ignore_index, total)
        back = back.reshape(logp.shape)
    return torch.ops.aten._log_softmax_backward_data(back, logp, axis, logp.dtype)
'''


def _log_softmax(x: Any, axis: int) -> Any:
    moved = x - x.max(axis, keepdims=True)
    return moved - np.log(np.exp(moved).sum(axis, keepdims=True))


def _hot(target: Any, classes: int, axis: int, ignore_index: int) -> Any:
    counted = target != ignore_index
    hot = np.eye(classes)[np.where(counted, target, 0)] * counted[..., None]
    return np.moveaxis(hot, -1, axis), counted


def _ce_axis(rank: int) -> int:
    return 0 if rank < 2 else 1


def _ce_value(x: Any, target: Any, *, reduction: str, ignore_index: int = -100) -> Any:
    axis = _ce_axis(x.ndim)
    logp = _log_softmax(x, axis)
    hot, counted = _hot(target, x.shape[axis], axis, ignore_index)
    each, total = -(hot * logp).sum(axis), np.float64(counted.sum())
    reduced = each if reduction == "none" else each.sum() if reduction == "sum" else each.sum() / total
    return reduced, logp, total if reduction != "none" or x.ndim < 2 else np.float64(0.0)


def _ce_shape(x: TensorType, target: TensorType, *, reduction: str, ignore_index: int = -100) -> TupleType:
    axis = _ce_axis(x.rank)
    if target.shape != (*x.shape[:axis], *x.shape[axis + 1 :]):
        raise ShapeError(
            "one class number per sample",
            given=f"({shape_text(x.shape)}) and ({shape_text(target.shape)})",
            required="the scores' shape without its class dimension",
        )
    loss = x.with_shape(target.shape if reduction == "none" else ())
    return TupleType((loss, x.with_shape(x.shape), x.with_shape(())))


CROSS_ENTROPY_RECORDED = backward_kernel(
    "cross_entropy_recorded",
    shape=_ce_shape,
    value=_ce_value,
    torch=lambda node, x: (
        f"cross_entropy_recorded({x[0]}, {x[1]}, {_REDUCTIONS[node.params['reduction']]}, "
        f"{node.params.get('ignore_index', -100)})"
    ),
    prelude=_CROSS_ENTROPY,
    samples=(
        Sample((_X, np.array([2, 0])), {"reduction": "mean", "ignore_index": -100}),
        Sample((_X, np.array([-100, 0])), {"reduction": "sum", "ignore_index": -100}),
        Sample((_X.reshape(1, 2, 3), np.array([[1, 0, 1]])), {"reduction": "mean", "ignore_index": 0}),
    ),
    error_samples=(Sample((_X, np.array([2, 0, 1])), {"reduction": "mean", "ignore_index": -100}),),
    source="torch's log_softmax and nll_loss",
)


def _ce_back_value(g: Any, logp: Any, target: Any, total: Any, *, reduction: str, ignore_index: int = -100) -> Any:
    axis = _ce_axis(logp.ndim)
    hot, counted = _hot(target, logp.shape[axis], axis, ignore_index)
    each = g if reduction == "none" else np.broadcast_to(g if reduction == "sum" else g / total, target.shape)
    scale = np.expand_dims(each * counted, axis)
    return scale * np.exp(logp) - np.expand_dims(each, axis) * hot


def _ce_back_shape(
    g: TensorType, logp: TensorType, target: TensorType, total: TensorType, **options: Any
) -> TensorType:
    loss = _ce_shape(logp, target, **options).items[0]
    same_as_first(loss, g)
    return logp.with_shape(logp.shape)


CROSS_ENTROPY_BACKWARD = backward_kernel(
    "cross_entropy_backward",
    shape=_ce_back_shape,
    value=_ce_back_value,
    torch=lambda node, x: (
        f"cross_entropy_backward({', '.join(x)}, {_REDUCTIONS[node.params['reduction']]}, "
        f"{node.params.get('ignore_index', -100)})"
    ),
    prelude=_CROSS_ENTROPY,
    samples=(
        Sample(
            (np.array(0.7), np.log(_P), np.array([2, 0]), np.array(2.0)), {"reduction": "mean", "ignore_index": -100}
        ),
    ),
    error_samples=(Sample((_G, np.log(_P), np.array([2, 0]), np.array(2.0)), {"reduction": "mean"}),),
    source="torch's nll_loss_backward and log_softmax_backward",
)


def cross_entropy_recorded(node: Node, inputs: Sequence[Node]) -> Node | None:
    """``recorded`` of cross_entropy; none for targets that are probabilities."""
    return None if inputs[1].type.is_float else apply(CROSS_ENTROPY_RECORDED, *inputs, **node.params)


def cross_entropy_vjp(g: Node, y: Node, x: Node, target: Node, **options: Any) -> tuple[Node | None, ...] | None:
    """``fused_vjp`` of cross_entropy."""
    kept = cross_entropy_recorded(y, (x, target))
    if kept is None:
        return None
    return apply(CROSS_ENTROPY_BACKWARD, g, item(kept, 1), target, item(kept, 2), **options), None


# ---- layer normalisation -----------------------------------------------------------------------------------
def _statistics(x: TensorType, rank: int) -> TensorType:
    low = x.dtype in ("float16", "bfloat16")
    return TensorType((*x.shape[: x.rank - rank], *(1,) * rank), "float32" if low else x.dtype, None, x.device)


def _ln_value(x: Any, *affine: Any, rank: int, eps: float) -> Any:
    axes = tuple(range(x.ndim - rank, x.ndim))
    center = x.mean(axes, keepdims=True)
    inverse = 1 / np.sqrt(((x - center) ** 2).mean(axes, keepdims=True) + eps)
    y = (x - center) * inverse
    for k, a in enumerate(affine):
        y = y + a if k else y * a
    return y, center, inverse


def _ln_arguments(node: Node, x: Sequence[str], affine: Sequence[str]) -> str:
    sizes = tuple(node.inputs[0].shape[-node.params["rank"] :])
    return ", ".join([*x, str(sizes), *affine, *["None"] * (2 - len(affine))])


def _ln_shape(x: TensorType, *affine: TensorType, rank: int, eps: float) -> TupleType:
    if not 0 < rank <= x.rank or any(a.shape != x.shape[x.rank - rank :] for a in affine):
        raise ShapeError("weight and bias have the shape of the last dimensions", given=shape_text(x.shape))
    return TupleType((x.with_shape(x.shape), _statistics(x, rank), _statistics(x, rank)))


LAYER_NORM_RECORDED = backward_kernel(
    "layer_norm_recorded",
    shape=_ln_shape,
    value=_ln_value,
    torch=lambda node, x: f"torch.native_layer_norm({_ln_arguments(node, x[:1], x[1:])}, {node.params['eps']!r})",
    samples=(
        Sample((_X,), {"rank": 1, "eps": 1e-5}),
        Sample((_X, np.array([1.1, 0.7, -0.4]), np.array([0.2, -0.6, 0.1])), {"rank": 1, "eps": 1e-5}),
    ),
    error_samples=(Sample((_X, np.zeros(2)), {"rank": 1, "eps": 1e-5}),),
    source="torch.native_layer_norm: the output, mean and reciprocal deviation",
)


def _ln_back_value(g: Any, x: Any, center: Any, inverse: Any, *affine: Any, rank: int) -> Any:
    axes, ahead = tuple(range(x.ndim - rank, x.ndim)), tuple(range(x.ndim - rank))
    normal = (x - center) * inverse
    scaled = g * affine[0] if affine else g
    back = scaled - scaled.mean(axes, keepdims=True) - normal * (scaled * normal).mean(axes, keepdims=True)
    parts = [back * inverse, (g * normal).sum(ahead), g.sum(ahead)]
    return tuple(parts[: 1 + len(affine)])


def _ln_back_shape(
    g: TensorType, x: TensorType, center: TensorType, inverse: TensorType, *affine: TensorType, rank: int
) -> TupleType:
    same_as_first(x, g)
    same_as_first(_statistics(x, rank), center, inverse)
    return TupleType((x.with_shape(x.shape), *(a.with_shape(a.shape) for a in affine)))


def _ln_back_torch(node: Node, names: list[str]) -> str:
    g, x, center, inverse, *affine = names
    sizes = tuple(node.inputs[1].shape[-node.params["rank"] :])
    given = ", ".join([*affine, *["None"] * (2 - len(affine))])
    wanted = [True, *(k < len(affine) for k in range(2))]
    call = f"torch.ops.aten.native_layer_norm_backward({g}, {x}, {sizes}, {center}, {inverse}, {given}, {wanted})"
    return call if len(affine) == 2 else f"{call}[:{1 + len(affine)}]"


_CENTER, _INVERSE = _ln_value(_X, rank=1, eps=1e-5)[1:]
LAYER_NORM_BACKWARD = backward_kernel(
    "layer_norm_backward",
    shape=_ln_back_shape,
    value=_ln_back_value,
    torch=_ln_back_torch,
    samples=(
        Sample((_G, _X, _CENTER, _INVERSE), {"rank": 1}),
        Sample((_G, _X, _CENTER, _INVERSE, np.array([1.1, 0.7, -0.4]), np.array([0.2, -0.6, 0.1])), {"rank": 1}),
    ),
    error_samples=(Sample((_G[:1], _X, _CENTER, _INVERSE), {"rank": 1}),),
    source="Ba et al. 2016; torch.ops.aten.native_layer_norm_backward",
)


def layer_norm_vjp(g: Node, y: Node, x: Node, *affine: Node, rank: int, eps: float) -> tuple[Node, ...]:
    """``fused_vjp`` of the layer of torch."""
    kept = apply(LAYER_NORM_RECORDED, x, *affine, rank=rank, eps=eps)
    back = apply(LAYER_NORM_BACKWARD, g, x, item(kept, 1), item(kept, 2), *affine, rank=rank)
    return tuple(item(back, k) for k in range(1 + len(affine)))
