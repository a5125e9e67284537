"""Batch normalisation: over batch and positions of each channel, by the batch's statistics or by kept ones.

The derivative of a formula is that of the expansion; a program runs torch's forward and backward kernels
(``fused_vjp``), which share mean and reciprocal deviation. Running statistics are a value of their own, since they are
outputs of a training program.
"""

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
    as_node,
    constant,
    item,
    lowering,
    product,
    register,
    shape_text,
)
from chainrule.ops.casts import cast, widened
from chainrule.ops.families import Parts, composite
from chainrule.ops.movement import broadcast, reshape
from chainrule.ops.reductions import mean
from chainrule.ops.slicing import select

_X = np.array([[[0.3, -1.2], [0.8, 2.0]], [[-0.4, 0.1], [0.7, 0.9]], [[1.3, -0.6], [-1.1, 0.2]]])
_PER_CHANNEL = tuple(np.array(v) for v in ([1.1, 0.7], [0.2, -0.6], [0.1, -0.2], [1.3, 0.4]))


def _axes(x: Node) -> tuple[int, ...]:
    return (0, *range(2, x.type.rank))


def _along(v: Node, x: Node) -> Node:
    """A value per channel beside ``x``."""
    return reshape(v, (1, x.shape[1], *(1,) * (x.type.rank - 2)))


def _channels(x: Any, *values: Any) -> None:
    if len(x.shape) < 2 or any(v.shape != x.shape[1:2] for v in values):
        raise ShapeError(
            "batch normalisation does not fit its input",
            given=f"input ({shape_text(x.shape)}), " + ", ".join(f"({shape_text(v.shape)})" for v in values),
            required="weight, bias, mean and variance with one number per channel, dimension 1 of the input",
        )


def _affine(normal: Node, x: Node, affine: tuple[Node, ...]) -> Node:
    for weight in affine[:1]:
        normal = normal * _along(weight, x)
    for bias in affine[1:]:
        normal = normal + _along(bias, x)
    return normal


def _by_batch(x: Node, *affine: Node, eps: float) -> Node:
    _channels(x, *affine)
    wide = widened(x, *affine)
    centred = wide - mean(wide, _axes(x), keepdims=True)
    variance = mean(centred**2.0, _axes(x), keepdims=True)
    return cast(_affine(centred / apply(OPS["sqrt"], variance + as_node(eps, like=wide)), x, affine), x.type.dtype)


def _by_kept(x: Node, center: Node, variance: Node, *affine: Node, eps: float) -> Node:
    _channels(x, center, variance, *affine)
    deviation = apply(OPS["sqrt"], variance + as_node(eps, like=variance))
    normal = (widened(x, center, variance, *affine) - _along(center, x)) / _along(deviation, x)
    return cast(_affine(normal, x, affine), x.type.dtype)


def _arguments(affine: list[str]) -> str:
    return ", ".join([*affine, *["None"] * (2 - len(affine))])


def _batch_text(p: Any, node: Node) -> str:
    return f"batch_norm({', '.join(p.child(i, 0) for i in node.inputs)})"


def _batch_latex(p: Any, node: Node) -> str:
    return rf"\operatorname{{batchnorm}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)"


# ---- torch's kernels ---------------------------------------------------------------------------------------
def _recorded_value(x: Any, *affine: Any, eps: float) -> tuple[Any, Any, Any]:
    axes = (0, *range(2, np.ndim(x)))
    along = (1, -1, *(1,) * (np.ndim(x) - 2))
    center, inverse = np.mean(x, axes), 1 / np.sqrt(np.var(x, axes) + eps)
    y = (x - center.reshape(along)) * inverse.reshape(along)
    for k, a in enumerate(affine):
        y = y + a.reshape(along) if k else y * a.reshape(along)
    return y, center, inverse


def _statistic(x: TensorType) -> TensorType:
    low = x.dtype in ("float16", "bfloat16")
    return TensorType((x.shape[1],), "float32" if low else x.dtype, None, x.device)


def _recorded_shape(x: TensorType, *affine: TensorType, eps: float) -> TupleType:
    _channels(x, *affine)
    return TupleType((x.with_shape(x.shape), _statistic(x), _statistic(x)))


def _backward_shape(g: TensorType, x: TensorType, *values: TensorType, kept: bool, eps: float) -> TupleType:
    _channels(x, *values)
    return TupleType((g, _statistic(x), _statistic(x)))


_RECORDED = register(
    Op(
        "batch_norm_recorded",
        "kernel",
        shape=_recorded_shape,
        value=_recorded_value,
        text=_batch_text,
        latex=_batch_latex,
        torch=lambda node, x: (
            f"torch._batch_norm_impl_index({x[0]}, {_arguments(x[1:])}, None, None, True, 0.0, "
            f"{node.params['eps']!r}, torch.backends.cudnn.enabled)[:3]"
        ),
        differentiable=False,
        samples=(Sample((_X, *_PER_CHANNEL[:2]), {"eps": 1e-5}),),
        error_samples=(Sample((_X, np.zeros(3), np.zeros(3)), {"eps": 1e-5}),),
        source="torch.native_batch_norm: the output, each channel's mean and reciprocal deviation",
    )
)


def _backward_value(g: Any, x: Any, center: Any, inverse: Any, *affine: Any, kept: bool, eps: float) -> Any:
    axes, along = (0, *range(2, np.ndim(x))), (1, -1, *(1,) * (np.ndim(x) - 2))
    if kept:
        inverse = 1 / np.sqrt(inverse + eps)
    normal = (x - center.reshape(along)) * inverse.reshape(along)
    scaled = g * affine[0].reshape(along) if affine else g
    back = scaled
    if not kept:
        back = scaled - scaled.mean(axes, keepdims=True) - normal * (scaled * normal).mean(axes, keepdims=True)
    return back * inverse.reshape(along), (g * normal).sum(axes), g.sum(axes)


def _backward_torch(node: Node, names: list[str]) -> str:
    g, x, center, inverse, *affine = names
    weight = affine[0] if affine else "None"
    kept = node.params["kept"]
    statistics = f"{center}, {inverse}, None, None, False" if kept else f"None, None, {center}, {inverse}, True"
    wanted = [True, bool(affine), bool(affine)]
    return (
        f"torch.ops.aten.native_batch_norm_backward({g}, {x}, {weight}, {statistics}, {node.params['eps']!r}, {wanted})"
    )


_BACKWARD = register(
    Op(
        "batch_norm_backward",
        "kernel",
        shape=_backward_shape,
        value=_backward_value,
        text=_batch_text,
        latex=_batch_latex,
        torch=_backward_torch,
        differentiable=False,
        samples=(
            Sample(
                (_X[::-1] + 0.2, _X, _PER_CHANNEL[2], _PER_CHANNEL[3], _PER_CHANNEL[0]), {"kept": False, "eps": 1e-5}
            ),
            Sample(
                (_X[::-1] + 0.2, _X, _PER_CHANNEL[2], _PER_CHANNEL[3], _PER_CHANNEL[0]), {"kept": True, "eps": 1e-5}
            ),
        ),
        error_samples=(Sample((_X, _X, np.zeros(3), np.ones(3)), {"kept": False, "eps": 1e-5}),),
        source="torch's kernel; Ioffe and Szegedy 2015, section 3, for statistics of the batch",
    )
)


def _fused(
    g: Node, x: Node, center: Node, spread: Node, affine: tuple[Node, ...], kept: bool, eps: float
) -> list[Node]:
    back = apply(_BACKWARD, g, x, center, spread, *affine[:1], kept=kept, eps=eps)
    return [item(back, k) for k in range(1 + len(affine))]


def _by_batch_fused(g: Node, y: Node, x: Node, *affine: Node, eps: float) -> tuple[Node | None, ...]:
    both = apply(_RECORDED, x, *affine, eps=eps)
    return tuple(_fused(g, x, item(both, 1), item(both, 2), affine, False, eps))


def _by_kept_fused(
    g: Node, y: Node, x: Node, center: Node, variance: Node, *affine: Node, eps: float
) -> tuple[Node | None, ...]:
    by_x, *by_affine = _fused(g, x, center, variance, affine, True, eps)
    return (by_x, None, None, *by_affine)


BATCH_NORM = composite(
    "batch_norm",
    expansion=_by_batch,
    names=(),
    text=_batch_text,
    latex=_batch_latex,
    torch=lambda node, x: (
        f"torch.nn.functional.batch_norm({x[0]}, None, None, {_arguments(x[1:])}, True, 0.0, {node.params['eps']!r})"
    ),
    recorded=lambda node, inputs: apply(_RECORDED, *inputs, **node.params),
    aten={"batch_norm": lambda *args: lowered(*args)},
    fused_vjp=_by_batch_fused,
    cost=lambda result, x, *_, **__: product([x.numel, 4]),
    samples=(
        Sample((_X,), {"eps": 1e-5}),
        Sample((_X, *_PER_CHANNEL[:2]), {"eps": 1e-3}),
        Sample((_X[..., 0], *_PER_CHANNEL[:2]), {"eps": 1e-5}),
    ),
    error_samples=(Sample((_X, np.zeros(3), np.zeros(3)), {"eps": 1e-5}),),
    source="Ioffe and Szegedy 2015, algorithm 1: biased variance of the batch",
)

BATCH_NORM_KEPT = composite(
    "batch_norm_kept",
    expansion=_by_kept,
    names=(),
    text=_batch_text,
    latex=_batch_latex,
    torch=lambda node, x: (
        f"torch.nn.functional.batch_norm({x[0]}, {x[1]}, {x[2]}, {_arguments(x[3:])}, False, 0.0, "
        f"{node.params['eps']!r})"
    ),
    fused_vjp=_by_kept_fused,
    cost=lambda result, x, *_, **__: product([x.numel, 2]),
    samples=(
        Sample((_X, *_PER_CHANNEL[2:]), {"eps": 1e-5}),
        Sample((_X, *_PER_CHANNEL[2:], *_PER_CHANNEL[:2]), {"eps": 1e-3}),
    ),
    error_samples=(Sample((_X, np.zeros(3), np.ones(3)), {"eps": 1e-5}),),
    source="Ioffe and Szegedy 2015, algorithm 2: the statistics kept from training",
)


# ---- running statistics ------------------------------------------------------------------------------------
def _tracked_shape(
    x: TensorType, mean: TensorType, variance: TensorType, *affine: TensorType, momentum: float, eps: float
) -> TupleType:
    _channels(x, mean, variance, *affine)
    return TupleType((x.with_shape(x.shape), _statistic(x), _statistic(x), mean, variance))


def _tracked_value(x: Any, mean: Any, variance: Any, *affine: Any, momentum: float, eps: float) -> tuple[Any, ...]:
    axes = (0, *range(2, np.ndim(x)))
    found = [np.mean(x, axes), np.var(x, axes, ddof=1)]
    new = [(1 - momentum) * old + momentum * n for old, n in zip((mean, variance), found, strict=True)]
    return *_recorded_value(x, *affine, eps=eps), *new


def _tracked_parts(
    x: Node, center: Node, variance: Node, *affine: Node, momentum: float, eps: float
) -> tuple[Node, ...]:
    size = product([x.shape[a] for a in _axes(x)])
    assert isinstance(size, int)  # of a program
    count = float(size)
    found = mean(x, _axes(x))
    spread = mean((x - mean(x, _axes(x), keepdims=True)) ** 2.0, _axes(x))
    inverse = 1.0 / apply(OPS["sqrt"], spread + as_node(eps, like=x))
    new = [
        old * (1 - momentum) + n * momentum
        for old, n in ((center, found), (variance, spread * (count / max(count - 1, 1.0))))
    ]
    return (_by_batch(x, *affine, eps=eps), found, inverse, *new)


# The kernel that a layer calls, which is cuDNN's own on CUDA: the functional form of torch's never calls that one.
_KEEPING = '''\
def batch_norm_tracked(x, weight, bias, mean, variance, momentum, eps):
    """The output, mean and reciprocal deviation of the batch, and the new running statistics."""
    mean, variance, cudnn = mean.clone(), variance.clone(), torch.backends.cudnn.enabled
    found = torch._batch_norm_impl_index(x, weight, bias, mean, variance, True, momentum, eps, cudnn)
    return *found[:3], mean, variance
'''

_TRACKED = register(
    Op(
        "batch_norm_tracked_recorded",
        "kernel",
        shape=_tracked_shape,
        value=_tracked_value,
        text=_batch_text,
        latex=_batch_latex,
        torch=lambda node, x: (
            f"batch_norm_tracked({x[0]}, {_arguments(x[3:])}, {x[1]}, {x[2]}, {node.params['momentum']!r}, "
            f"{node.params['eps']!r})"
        ),
        prelude=_KEEPING,
        differentiable=False,  # what is read of it are statistics and buffers; the output has a composite
        native=Parts(_tracked_parts),
        samples=(Sample((_X, *_PER_CHANNEL[2:], *_PER_CHANNEL[:2]), {"momentum": 0.1, "eps": 1e-5}),),
        error_samples=(Sample((_X, np.zeros(3), np.zeros(3)), {"momentum": 0.1, "eps": 1e-5}),),
        source="torch.nn.BatchNorm1d: the kept statistics are an exponential average, with the unbiased variance",
    )
)


def _tracked_fused(
    g: Node, y: Node, x: Node, center: Node, variance: Node, *affine: Node, momentum: float, eps: float
) -> tuple[Node | None, ...]:
    both = apply(_TRACKED, x, center, variance, *affine, momentum=momentum, eps=eps)
    by_x, *by_affine = _fused(g, x, item(both, 1), item(both, 2), affine, False, eps)
    return (by_x, None, None, *by_affine)


def _tracked(x: Node, center: Node, variance: Node, *affine: Node, momentum: float, eps: float) -> Node:
    _channels(x, center, variance, *affine)
    return _by_batch(x, *affine, eps=eps)


BATCH_NORM_TRACKED = composite(
    "batch_norm_tracked",
    expansion=_tracked,
    names=(),
    text=lambda p, node: f"batch_norm({', '.join(p.child(i, 0) for i in (node.inputs[0], *node.inputs[3:]))})",
    latex=_batch_latex,
    torch=lambda node, x: (
        f"torch.nn.functional.batch_norm({x[0]}, {x[1]}.clone(), {x[2]}.clone(), {_arguments(x[3:])}, True, "
        f"{node.params['momentum']!r}, {node.params['eps']!r})"
    ),
    recorded=lambda node, inputs: apply(_TRACKED, *inputs, **node.params),
    fused_vjp=_tracked_fused,
    cost=lambda result, x, *_, **__: product([x.numel, 4]),
    samples=(Sample((_X, *_PER_CHANNEL[2:], *_PER_CHANNEL[:2]), {"momentum": 0.1, "eps": 1e-5}),),
    error_samples=(Sample((_X, np.zeros(3), np.ones(3), *_PER_CHANNEL[:2]), {"momentum": 0.1, "eps": 1e-5}),),
    source="Ioffe and Szegedy 2015, algorithm 1, in a layer that keeps statistics: its output does not read them",
)


def running_statistics(y: Node) -> tuple[Node, Node]:
    """Mean and variance as a layer keeps them after its batch, from its output (which a no_grad block may cut)."""
    while y.op is not BATCH_NORM_TRACKED:
        if len(y.inputs) != 1:
            raise UnsupportedOpError("running statistics of a batch that is not normalised by a declared op")
        (y,) = y.inputs
    both = apply(_TRACKED, *y.inputs, **y.params)
    return item(both, 3), item(both, 4)


def lowered(
    x: Node,
    weight: Node | None,
    bias: Node | None,
    center: Node | None,
    variance: Node | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Node:
    """torch's ``batch_norm``; what it writes into the kept statistics is :func:`running_statistics` of it."""
    if weight is None and bias is not None:
        raise UnsupportedOpError("batch_norm with a bias and no weight", required="both, or neither")
    affine = tuple(a for a in (weight, bias) if a is not None)
    if 0 in x.shape:  # as torch has it: nothing is normalised, and no statistics are kept
        x = x * select(affine[0], 0, 0) if affine else x
        return x + select(affine[1], 0, 0) if len(affine) > 1 else x
    if training and center is not None and variance is not None:
        return apply(BATCH_NORM_TRACKED, x, center, variance, *affine, momentum=float(momentum), eps=float(eps))
    if center is None or variance is None:
        return apply(BATCH_NORM, x, *affine, eps=float(eps))
    return apply(BATCH_NORM_KEPT, x, center, variance, *affine, eps=float(eps))


# ---- torch's inner forms, which return what they keep ------------------------------------------------------
def _with_statistics(x: Node, y: Node, training: bool, eps: float) -> list[Node]:
    low = x.type.dtype in ("float16", "bfloat16")
    if not training:
        nothing = broadcast(constant(0.0, "float32" if low else x.type.dtype), (0,))
        return [y, nothing, nothing]
    center = mean(x, _axes(x))
    variance = mean((x - mean(x, _axes(x), keepdims=True)) ** 2.0, _axes(x))
    return [y, center, apply(OPS["rsqrt"], variance + as_node(eps, like=x))]


@lowering("native_batch_norm", "_native_batch_norm_legit")
def native_batch_norm(
    x: Node,
    weight: Node | None,
    bias: Node | None,
    center: Node | None,
    variance: Node | None,
    training: bool,
    momentum: float,
    eps: float,
) -> list[Node]:
    """The output, and each channel's mean and reciprocal deviation."""
    y = lowered(x, weight, bias, center, variance, training, momentum, eps)
    return _with_statistics(x, y, training, eps)


@lowering("_native_batch_norm_legit.no_stats")
def without_running_statistics(
    x: Node, weight: Node | None, bias: Node | None, training: bool, momentum: float, eps: float
) -> list[Node]:
    """The same of a layer that keeps nothing."""
    return native_batch_norm(x, weight, bias, None, None, training, momentum, eps)


@lowering("_batch_norm_with_update")
def batch_norm_with_update(
    x: Node, weight: Node | None, bias: Node | None, center: Node, variance: Node, momentum: float, eps: float
) -> list[Node | None]:
    """The same in training."""
    return [*native_batch_norm(x, weight, bias, center, variance, True, momentum, eps), None]
