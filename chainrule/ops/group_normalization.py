"""Normalisations over groups of channels, over single channels and by the root mean square; torch's native forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import OPS, Node, Sample, apply, as_node, lowering, product, shape_text
from chainrule.ops.casts import cast, widened
from chainrule.ops.families import call_of, kernel
from chainrule.ops.movement import reshape
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.reductions import mean

_X = np.sin(np.arange(2 * 4 * 3.0)).reshape(2, 4, 3)
_EPS = {"float64": 2.220446049250313e-16, "float32": 1.1920928955078125e-07}
_EPS |= {"float16": 0.0009765625, "bfloat16": 0.0078125}


def _per_channel(v: Node, x: Node) -> Node:
    return reshape(v, (1, x.shape[1], *(1,) * (x.type.rank - 2)))


def _affine(y: Node, weight: Node | None, bias: Node | None) -> Node:
    y = y if weight is None else y * _per_channel(weight, y)
    return y if bias is None else y + _per_channel(bias, y)


def _standardised(x: Node, axes: tuple[int, ...], eps: float) -> tuple[Node, Node, Node]:
    """(the standardised value, the mean, the reciprocal deviation), the last two with dimensions of size 1."""
    center = mean(x, axes, keepdims=True)
    centred = x - center
    inverse = 1.0 / apply(OPS["sqrt"], mean(centred**2.0, axes, keepdims=True) + as_node(eps, like=x))
    return centred * inverse, center, inverse


def _group_parts(x: Node, num_groups: int, eps: float) -> tuple[Node, Node, Node]:
    if x.type.rank < 2 or int(x.shape[1]) % num_groups:
        raise ShapeError(
            "group norm does not fit its input",
            given=f"({shape_text(x.shape)}) in {num_groups} groups",
            required="a number of channels, dimension 1, that the groups divide",
        )
    batch, channels, *sizes = x.shape
    parts = reshape(x, (batch, num_groups, int(channels) // num_groups * product(sizes)))
    return _standardised(parts, (2,), eps)


def _group_norm(x: Node, *, weight: Node | None, bias: Node | None, num_groups: int, eps: float) -> Node:
    wide = widened(x, *(v for v in (weight, bias) if v is not None))
    return cast(_affine(reshape(_group_parts(wide, num_groups, eps)[0], x.shape), weight, bias), x.type.dtype)


GROUP_NORM = kernel(
    "group_norm",
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    call="torch.nn.functional.group_norm",
    expansion=_group_norm,
    optional=("weight", "bias"),
    cost=lambda result, x, *_, **__: product([x.numel, 4]),
    aten={
        "group_norm": lambda x, groups, weight=None, bias=None, eps=1e-5, cudnn=True: call_of(
            GROUP_NORM, x, weight=weight, bias=bias, num_groups=groups, eps=eps
        )
    },
    samples=(
        Sample((_X,), {"num_groups": 2, "eps": 1e-5}),
        Sample(
            (_X, np.arange(4.0) / 3 + 0.2, np.arange(4.0) / 5),
            {"num_groups": 2, "eps": 1e-5, "given": ("weight", "bias")},
        ),
    ),
    error_samples=(Sample((_X,), {"num_groups": 3, "eps": 1e-5}),),
    source="Wu and He 2018",
)


@lowering("native_group_norm")
def native_group_norm(
    x: Node, weight: Node | None, bias: Node | None, n: int, c: int, size: int, group: int, eps: float
) -> list[Node]:
    """The output, and each group's mean and reciprocal deviation."""
    _, center, inverse = _group_parts(x, group, eps)
    y = call_of(GROUP_NORM, x, weight=weight, bias=bias, num_groups=group, eps=eps)
    return [y, reshape(center, (n, group)), reshape(inverse, (n, group))]


@lowering("native_layer_norm")
def native_layer_norm(x: Node, sizes: Sequence[int], weight: Node | None, bias: Node | None, eps: float) -> list[Node]:
    """The output, the mean and the reciprocal deviation of each sample."""
    axes = tuple(range(x.type.rank - len(sizes), x.type.rank))
    y, center, inverse = _standardised(x, axes, eps)
    y = y if weight is None else y * weight
    return [y if bias is None else y + bias, center, inverse]


def _instance_norm(x: Node, *, weight: Node | None, bias: Node | None, eps: float) -> Node:
    if x.type.rank < 3:
        raise ShapeError("instance norm of a value without positions", given=f"({shape_text(x.shape)})")
    return _affine(_standardised(x, tuple(range(2, x.type.rank)), eps)[0], weight, bias)


def _instance_lowered(
    x: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node | None,
    running_var: Node | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Node:
    if not use_input_stats or running_mean is not None:
        raise UnsupportedOpError("instance norm with running statistics", instead="track_running_stats=False")
    return call_of(INSTANCE_NORM, x, weight=weight, bias=bias, eps=eps)


INSTANCE_NORM = kernel(
    "instance_norm",
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    call="torch.nn.functional.instance_norm",
    expansion=_instance_norm,
    optional=("weight", "bias"),
    cost=lambda result, x, *_, **__: product([x.numel, 4]),
    aten={"instance_norm": _instance_lowered},
    samples=(
        Sample((_X,), {"eps": 1e-5}),
        Sample((_X, np.arange(4.0) / 3 + 0.2, np.arange(4.0) / 5), {"eps": 1e-3, "given": ("weight", "bias")}),
    ),
    error_samples=(Sample((_X[0],), {"eps": 1e-5}),),
    source="Ulyanov et al. 2016: each channel of each sample",
)


def _rms_norm(x: Node, *, weight: Node | None, normalized_shape: tuple[int, ...], eps: float | None = None) -> Node:
    rank = len(normalized_shape)
    if not 0 < rank <= x.type.rank or x.shape[-rank:] != normalized_shape:
        raise ShapeError("rms norm does not fit its input", given=f"({shape_text(x.shape)}), {normalized_shape}")
    axes = tuple(range(x.type.rank - rank, x.type.rank))
    least = _EPS[x.type.dtype] if eps is None else eps
    y = x * apply(OPS["rsqrt"], mean(x**2.0, axes, keepdims=True) + as_node(least, like=x))
    return y if weight is None else y * weight


RMS_NORM = kernel(
    "rms_norm",
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    call="torch.nn.functional.rms_norm",
    expansion=_rms_norm,
    optional=("weight",),
    cost=lambda result, x, *_, **__: product([x.numel, 3]),
    aten={
        "rms_norm": lambda x, sizes, weight=None, eps=None: call_of(
            RMS_NORM, x, weight=weight, normalized_shape=tuple(sizes), eps=eps
        )
    },
    samples=(
        Sample((_X,), {"normalized_shape": (3,), "eps": 1e-5}),
        Sample((_X, np.arange(12.0).reshape(4, 3) / 7), {"normalized_shape": (4, 3), "given": ("weight",)}),
    ),
    error_samples=(Sample((_X,), {"normalized_shape": (4,), "eps": 1e-5}),),
    source="Zhang and Sennrich 2019: x / sqrt(mean(x^2) + eps)",
)
