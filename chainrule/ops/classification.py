"""Losses of classification: cross entropy of logits and of probabilities, likelihoods of classes, margins.

Class numbers are integers; a class number equal to ``ignore_index`` takes no part. Weights have no
derivative, as in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import ATOM, OPS, Code, Node, Sample, TensorType, apply, as_node, constant, shape_text, spelling
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.composites import LOG_SOFTMAX, SOFTMAX
from chainrule.ops.contraction import einsum, sum_axes
from chainrule.ops.families import call_of, composite, kernel, leaf, zeros_like
from chainrule.ops.gathering import TAKE, gather
from chainrule.ops.kernels import cross_entropy_recorded, cross_entropy_vjp
from chainrule.ops.losses import REDUCTIONS, elementwise_samples, loss_fields, reduced, same_shape, spread
from chainrule.ops.movement import broadcast, expand_dims, reshape, squeeze
from chainrule.ops.probe_moments import ProbeRule
from chainrule.ops.scans import CUMSUM

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])
_F = "torch.nn.functional"


# ---- two classes -------------------------------------------------------------------------------------------
def _bce_expansion(x: Node, target: Node, *, reduction: str) -> Node:
    same_shape(x, target, "bce_with_logits")
    return reduced(apply(OPS["softplus"], x) - target * x, reduction)


def _bce_vjp(g: Node, y: Node, x: Node, target: Node, *, reduction: str) -> tuple[Node, Node]:
    each = spread(g, x, reduction)
    return each * (apply(OPS["sigmoid"], x) - target), -(each * x)


BCE_WITH_LOGITS = composite(
    "bce_with_logits",
    expansion=_bce_expansion,
    vjp=_bce_vjp,
    build=lambda x, target: _bce_expansion(x, target, reduction="mean"),
    **loss_fields("binary_cross_entropy_with_logits"),
    aten={
        "binary_cross_entropy_with_logits": lambda x, t, weight=None, pos_weight=None, reduction=1: (
            apply(BCE_WITH_LOGITS, x, t, reduction=REDUCTIONS[reduction])
            if weight is None and pos_weight is None
            else call_of(WEIGHTED_BCE, x, t, weight=weight, pos_weight=pos_weight, reduction=REDUCTIONS[reduction])
        )
    },
    samples=elementwise_samples(np.array([[0.0, 1.0, 1.0], [0.2, 0.0, 1.0]])),
    error_samples=(Sample((_X, _X[:, :1]), {"reduction": "mean"}),),
    source="problem 7.5: -(1 - y) log(1 - sig(f)) - y log sig(f), derivative sig(f) - y",
)


def _constant(weight: Node) -> Node:
    return apply(OPS["stop_gradient"], weight)


def _weighted_bce(x: Node, target: Node, *, weight: Node | None, pos_weight: Node | None, reduction: str) -> Node:
    same_shape(x, target, "bce_with_logits")
    negative = apply(OPS["softplus"], -x)
    if pos_weight is not None:
        negative = negative * ((_constant(pos_weight) - 1.0) * target + 1.0)
    each = (1.0 - target) * x + negative
    return reduced(each if weight is None else each * _constant(weight), reduction)


WEIGHTED_BCE = kernel(
    "weighted_bce_with_logits",
    call=f"{_F}.binary_cross_entropy_with_logits",
    expansion=_weighted_bce,
    optional=("weight", "pos_weight"),
    samples=(
        Sample(
            (_X, np.array([[0.0, 1.0, 1.0], [0.2, 0.0, 1.0]]), _X[0] + 2, _X[1] + 1),
            {"reduction": "mean", "given": ("weight", "pos_weight")},
            smooth=False,
        ),
    ),
    error_samples=(Sample((_X, _X[:, :1]), {"reduction": "mean"}),),
    source="torch.nn.BCEWithLogitsLoss",
)


def _probability_expansion(x: Node, target: Node, *, weight: Node | None = None, reduction: str) -> Node:
    same_shape(x, target, "binary_cross_entropy")
    low = constant(-100.0, x.type.dtype)
    yes, no = apply(OPS["log"], x), apply(OPS["log1p"], -x)
    each = (target - 1.0) * where(compare("lt", no, low), low, no) - target * where(compare("lt", yes, low), low, yes)
    return reduced(each if weight is None else each * _constant(weight), reduction)


def _probability_vjp(
    g: Node, y: Node, x: Node, target: Node, *weight: Node, reduction: str, given: Any = ()
) -> tuple[Node | None, ...]:
    each = spread(g, x, reduction)
    for w in weight:
        each = each * _constant(w)
    steepness, least = x * (1.0 - x), constant(1e-12, x.type.dtype)
    slope = (x - target) / where(compare("lt", steepness, least), least, steepness)
    by_target = apply(OPS["log"], 1.0 - x) - apply(OPS["log"], x)
    return each * slope, each * by_target, *(None for _ in weight)


BCE = kernel(
    "binary_cross_entropy",
    call=f"{_F}.binary_cross_entropy",
    expansion=_probability_expansion,
    vjp=_probability_vjp,
    optional=("weight",),
    aten={
        "binary_cross_entropy": lambda x, t, weight=None, reduction=1: call_of(
            BCE, x, t, weight=weight, reduction=REDUCTIONS[reduction]
        )
    },
    samples=(
        Sample((np.array([0.2, 0.7, 0.9]), np.array([0.0, 1.0, 0.3])), {"reduction": "mean"}),
        Sample((np.array([0.2, 0.7]), np.array([0.0, 1.0])), {"reduction": "none"}),
    ),
    error_samples=(Sample((_X, _X[:, :1]), {"reduction": "mean"}),),
    source="torch.nn.BCELoss: logarithms are not below -100; derivative (x - y) / max(x (1 - x), 1e-12)",
)


# ---- class numbers -----------------------------------------------------------------------------------------
ONE_HOT = leaf(
    "one_hot",
    shape=lambda labels, *, classes, dtype: TensorType((*labels.shape, classes), dtype, None, labels.device),
    value=lambda labels, *, classes, dtype: (np.asarray(labels)[..., None] == np.arange(classes)).astype(np.float64),
    text=lambda p, node: f"one_hot({p.child(node.inputs[0], 0)}, {node.params['classes']})",
    latex=lambda p, node: rf"\operatorname{{onehot}}\left({p.child(node.inputs[0], 0)}\right)",
    # Not torch's one_hot, which refuses the -100 of a sample that takes no part: its row is zero.
    torch=lambda node, x: (
        f"({x[0]}.unsqueeze(-1) == torch.arange({node.params['classes']}, device={x[0]}.device))"
        f".to(torch.{node.params['dtype']})"
    ),
    code=Code(
        lambda w, node: (
            f"{w.np}.where({w(0, ATOM)}[..., None] == {w.np}.arange({w.size(node.params['classes'])}), 1.0, 0.0)"
        )
    ),
    differentiable=False,
    samples=(Sample((np.array([2, 0]),), {"classes": 3, "dtype": "float64"}),),
    native="one_hot",
    source="class numbers as rows of the identity; zeros for a number that is no class",
)


def one_hot(labels: Node, classes: Any, dtype: str = "float64") -> Node:
    """Class numbers as rows of the identity matrix."""
    return apply(ONE_HOT, labels, classes=classes, dtype=dtype)


@spelling("one_hot")
def one_hot_of(labels: Node, size: Any) -> Node:
    """Class numbers, counted from 0, as rows of the identity matrix of a size."""
    return one_hot(labels, size)


def _class_axis(x: Node) -> int:
    return 1 if x.type.rank > 1 else 0


def _check_classes(x: Node, target: Node) -> None:
    axis = _class_axis(x)
    if target.shape != (*x.shape[:axis], *x.shape[axis + 1 :]):
        raise ShapeError(
            "cross_entropy: class numbers do not fit the scores",
            given=f"({shape_text(x.shape)}) and ({shape_text(target.shape)})",
            required="one class number per sample: the scores' shape without its class dimension",
        )


def _cross_entropy_parts(x: Node, target: Node, ignore_index: int) -> tuple[Node, Node, int]:
    """The target as probabilities (one-hot for class numbers), the mass of each sample, and the class dimension."""
    axis = _class_axis(x)
    if target.type.is_float:
        same_shape(x, target, "cross_entropy")
        return target, sum_axes(target, (axis,)), axis
    _check_classes(x, target)
    hot = one_hot(target, x.shape[axis], x.type.dtype)
    mass = iverson(compare("ne", target, ignore_index), like=x)
    if ignore_index >= 0:
        hot = hot * expand_dims(mass, (mass.type.rank,))
    order = [*range(axis), hot.type.rank - 1, *range(axis, hot.type.rank - 1)]
    return einsum(([tuple(range(hot.type.rank))], tuple(order)), hot), mass, axis


def _cross_entropy_expansion(x: Node, target: Node, *, reduction: str, ignore_index: int = -100) -> Node:
    probabilities, mass, axis = _cross_entropy_parts(x, target, ignore_index)
    per_sample = -sum_axes(probabilities * apply(LOG_SOFTMAX, x, axis=axis), (axis,))
    if reduction == "mean" and not target.type.is_float:
        return sum_axes(per_sample) / sum_axes(mass)
    return reduced(per_sample, reduction)


def _cross_entropy_vjp(
    g: Node, y: Node, x: Node, target: Node, *, reduction: str, ignore_index: int = -100
) -> tuple[Node, Node | None]:
    probabilities, mass, axis = _cross_entropy_parts(x, target, ignore_index)

    def along(value: Node) -> Node:
        return broadcast(expand_dims(value, (axis,)), x.shape)

    if reduction == "mean" and not target.type.is_float:
        each = along(broadcast(g / sum_axes(mass), mass.shape))
    else:
        each = along(spread(g, mass, reduction))
    target_back = -(each * apply(LOG_SOFTMAX, x, axis=axis)) if target.type.is_float else None
    return each * (apply(SOFTMAX, x, axis=axis) * along(mass) - probabilities), target_back


def _cross_entropy_torch(node: Node, x: list[str]) -> str:
    options = "".join(f", {key}={value!r}" for key, value in node.params.items())
    return f"{_F}.cross_entropy({', '.join(x)}{options})"


def _cross_entropy_lowered(
    x: Node, t: Node, weight: Any = None, reduction: int = 1, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Node:
    if weight is None and label_smoothing == 0.0:
        ignored = {} if t.type.is_float or ignore_index == -100 else {"ignore_index": ignore_index}
        return apply(CROSS_ENTROPY, x, t, reduction=REDUCTIONS[reduction], **ignored)
    options = {"reduction": REDUCTIONS[reduction], "label_smoothing": float(label_smoothing)}
    return call_of(WEIGHTED_CROSS_ENTROPY, x, t, weight=weight, ignore_index=ignore_index, **options)


CROSS_ENTROPY = composite(
    "cross_entropy",
    expansion=_cross_entropy_expansion,
    vjp=_cross_entropy_vjp,
    fused_vjp=cross_entropy_vjp,
    recorded=cross_entropy_recorded,
    build=lambda x, target: _cross_entropy_expansion(x, target, reduction="mean"),
    **(loss_fields("cross_entropy") | {"torch": _cross_entropy_torch}),
    moments=ProbeRule(),
    aten={"cross_entropy_loss": _cross_entropy_lowered},
    samples=(
        Sample((_X, np.array([2, 0])), {"reduction": "mean"}),
        Sample((_X, np.array([2, 0])), {"reduction": "mean", "ignore_index": 2}),
        Sample((_X, np.array([-100, 0])), {"reduction": "mean"}),
        Sample((_X, np.array([[0.2, 0.3, 0.5], [0.0, 0.9, 0.3]])), {"reduction": "sum"}),
        Sample((_X[0], np.array(1)), {"reduction": "mean"}),
    ),
    error_samples=(
        Sample((_X, np.array([2, 0, 1])), {"reduction": "mean"}),
        Sample((_X, _X[:, :1]), {"reduction": "mean"}),
    ),
    source="-log softmax(x)[y]; derivative softmax(x) - onehot(y) over the batch",
)


def _class_weights(x: Node, target: Node, weight: Node | None, ignore_index: int) -> tuple[Node, Node]:
    """(a class number that exists for every sample, the weight of every sample: 0 where it takes no part)."""
    counts = compare("ne", target, ignore_index)
    safe = where(counts, target, constant(0, target.type.dtype))
    ones = iverson(counts, like=x)
    if weight is None:
        return safe, ones
    flat = apply(TAKE, _constant(weight), reshape(safe, (safe.type.numel,)), axis=0)
    return safe, where(counts, reshape(flat, safe.shape), zeros_like(ones))


def _picked(x: Node, safe: Node) -> Node:
    """The score of each sample's class."""
    axis = _class_axis(x)
    return squeeze(gather(x, axis, expand_dims(safe, (axis,))), (axis,))


def _likelihood(x: Node, target: Node, *, weight: Node | None, reduction: str, ignore_index: int) -> Node:
    _check_classes(x, target)
    safe, shares = _class_weights(x, target, weight, ignore_index)
    # A choice, not a product: the score of a sample that takes no part may be infinite.
    each = where(compare("ne", target, ignore_index), -_picked(x, safe) * shares, zeros_like(shares))
    return sum_axes(each) / sum_axes(shares) if reduction == "mean" else reduced(each, reduction)


NLL = kernel(
    "nll_loss",
    call=f"{_F}.nll_loss",
    expansion=_likelihood,
    optional=("weight",),
    aten={
        key: lambda x, t, weight=None, reduction=1, ignore_index=-100: call_of(
            NLL, x, t, weight=weight, reduction=REDUCTIONS[reduction], ignore_index=ignore_index
        )
        for key in ("nll_loss_nd", "nll_loss", "nll_loss2d")
    },
    samples=(
        Sample((_X, np.array([2, 0])), {"reduction": "mean", "ignore_index": -100}),
        Sample((_X, np.array([2, 0])), {"reduction": "sum", "ignore_index": 2}),
    ),
    error_samples=(Sample((_X, np.array([2, 0, 1])), {"reduction": "mean", "ignore_index": -100}),),
    source="torch.nn.NLLLoss: minus the score of the class",
)


def _weighted_cross_entropy(
    x: Node, target: Node, *, weight: Node | None, reduction: str, ignore_index: int, label_smoothing: float
) -> Node:
    axis = _class_axis(x)
    classes = int(x.shape[axis])
    scores = apply(LOG_SOFTMAX, x, axis=axis)
    held = None if weight is None else _constant(weight)
    per_class = None if held is None else reshape(held, (classes, *(1,) * (x.type.rank - axis - 1)))
    weighted = scores if per_class is None else scores * per_class
    if target.type.is_float:
        same_shape(x, target, "cross_entropy")
        smoothed = target * (1 - label_smoothing) + label_smoothing / classes if label_smoothing else target
        return reduced(-sum_axes(weighted * smoothed, (axis,)), reduction)
    _check_classes(x, target)
    safe, shares = _class_weights(x, target, held, ignore_index)
    counts = compare("ne", target, ignore_index)
    each = where(counts, -_picked(scores, safe) * shares, zeros_like(shares))
    if label_smoothing:
        even = where(counts, -sum_axes(weighted, (axis,)), zeros_like(shares))
        each = each * (1 - label_smoothing) + even * (label_smoothing / classes)
    return sum_axes(each) / sum_axes(shares) if reduction == "mean" else reduced(each, reduction)


WEIGHTED_CROSS_ENTROPY = kernel(
    "weighted_cross_entropy",
    call=f"{_F}.cross_entropy",
    expansion=_weighted_cross_entropy,
    optional=("weight",),
    samples=(
        Sample((_X, np.array([2, 0])), {"reduction": "mean", "ignore_index": 0, "label_smoothing": 0.1}),
        Sample(
            (_X, np.array([2, 0]), np.array([0.5, 1.0, 2.0])),
            {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.1, "given": ("weight",)},
            smooth=False,
        ),
    ),
    error_samples=(
        Sample((_X, np.array([2, 0, 1])), {"reduction": "mean", "ignore_index": 0, "label_smoothing": 0.1}),
    ),
    source="torch.nn.CrossEntropyLoss with class weights and label smoothing (Szegedy et al. 2016)",
)


# ---- margins -----------------------------------------------------------------------------------------------
def _rows(x: Node, target: Node) -> tuple[Node, Node]:
    return (x, target) if x.type.rank == 2 else (reshape(x, (1, x.type.numel)), reshape(target, (1, target.type.numel)))


def _multi_margin(x: Node, target: Node, *, weight: Node | None = None, p: int, margin: float, reduction: str) -> Node:
    single = x.type.rank < 2
    scores, labels = _rows(x, target)
    labels = reshape(labels, (scores.shape[0],))
    own = _picked(scores, labels)
    gap = as_node(float(margin), like=x) - expand_dims(own, (1,)) + scores
    hinge = where(compare("gt", gap, 0.0), gap if p == 1 else gap**2.0, zeros_like(gap))
    if weight is not None:
        hinge = hinge * expand_dims(apply(TAKE, _constant(weight), labels, axis=0), (1,))
    others = 1.0 - one_hot(labels, int(scores.shape[1]), x.type.dtype)
    each = sum_axes(hinge * others, (1,)) / int(scores.shape[1])
    return reduced(reshape(each, ()) if single else each, reduction)


MULTI_MARGIN = kernel(
    "multi_margin_loss",
    call=f"{_F}.multi_margin_loss",
    expansion=_multi_margin,
    optional=("weight",),
    aten={
        "multi_margin_loss": lambda x, t, p=1, margin=1, weight=None, reduction=1: call_of(
            MULTI_MARGIN, x, t, weight=weight, p=p, margin=margin, reduction=REDUCTIONS[reduction]
        )
    },
    samples=(Sample((_X, np.array([2, 0])), {"p": 2, "margin": 1.0, "reduction": "mean"}),),
    error_samples=(Sample((_X, np.array([2, 0, 1])), {"p": 1, "margin": 1.0, "reduction": "mean"}),),
    source="torch.nn.MultiMarginLoss",
)


def _multilabel_margin(x: Node, target: Node, *, reduction: str) -> Node:
    same_shape(x, target, "multilabel_margin_loss")
    single = x.type.rank < 2
    scores, labels = _rows(x, target)
    classes = int(scores.shape[1])
    ended = apply(CUMSUM, apply(OPS["cast"], compare("lt", labels, 0), dtype="int64"), axis=1, reverse=False)
    is_label = compare("eq", ended, 0)  # those before the first -1
    mask = iverson(is_label, like=x)
    safe = where(is_label, labels, constant(0, labels.type.dtype))
    hot = one_hot(safe, classes, x.type.dtype) * expand_dims(mask, (2,))
    others = 1.0 - apply(OPS["amax"], hot, axes=(1,), keepdims=False)
    gap = as_node(1.0, like=x) - expand_dims(gather(scores, 1, safe), (2,)) + expand_dims(scores, (1,))
    hinge = where(compare("gt", gap, 0.0), gap, zeros_like(gap))
    each = sum_axes(hinge * expand_dims(mask, (2,)) * expand_dims(others, (1,)), (1, 2)) / classes
    return reduced(reshape(each, ()) if single else each, reduction)


MULTILABEL_MARGIN = kernel(
    "multilabel_margin_loss",
    call=f"{_F}.multilabel_margin_loss",
    expansion=_multilabel_margin,
    aten={
        "multilabel_margin_loss": lambda x, t, reduction=1: apply(
            MULTILABEL_MARGIN, x, t, reduction=REDUCTIONS[reduction]
        )
    },
    samples=(Sample((_X, np.array([[2, 0, -1], [1, -1, 0]])), {"reduction": "mean"}),),
    error_samples=(Sample((_X, np.array([2, 0])), {"reduction": "mean"}),),
    source="torch.nn.MultiLabelMarginLoss",
)
