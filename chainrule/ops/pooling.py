"""Pools: the largest or the mean of each window, with torch's kernels.

The largest is gathered at the position that torch finds; a mean is a convolution of each channel with equal weights;
an adaptive mean is one constant matrix per dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product as pairs
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    Node,
    Op,
    Sample,
    TensorType,
    apply,
    constant,
    lowering,
    product,
    register,
    shape_text,
)
from chainrule.ops.contraction import einsum
from chainrule.ops.families import kernel, written_as_call
from chainrule.ops.gathering import gather
from chainrule.ops.movement import broadcast, reshape
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.slicing import PAD, slice_axis
from chainrule.ops.windows import CONV

_X = np.sin(np.arange(2 * 2 * 5 * 6.0)).reshape(2, 2, 5, 6)
_F = "torch.nn.functional"


def filled_up(values: Any, rank: int) -> tuple[int, ...]:
    """One number per dimension."""
    given = (values,) if isinstance(values, int) else tuple(values)
    return given * rank if len(given) == 1 else given


def _outputs(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    """How many windows there are: with ``ceil_mode`` one more may begin inside and end outside."""
    span = n + 2 * p - d * (k - 1) - 1
    count = (-(-span // s) if ceil_mode else span // s) + 1
    return count - 1 if ceil_mode and (count - 1) * s >= n + p else count


def _sizes(
    x: TensorType, rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Any:
    if x.rank not in (rank + 1, rank + 2):
        raise ShapeError("a pool of shapes that do not fit", given=f"({shape_text(x.shape)})")
    spans = zip(x.shape[-rank:], kernel_size, stride, padding, dilation, strict=True)
    sizes = tuple(_outputs(int(n), k, s, p, d, ceil_mode) for n, k, s, p, d in spans)
    if any(n < 1 for n in sizes):
        raise ShapeError("the window is larger than what it moves over", given=f"({shape_text(x.shape)})")
    return sizes


# ---- the largest -------------------------------------------------------------------------------------------
def _place_shape(
    x: TensorType, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> TensorType:
    rank = len(kernel_size)
    sizes = _sizes(x, rank, kernel_size, stride, padding, dilation, ceil_mode)
    return TensorType((*x.shape[:-rank], *sizes), "int64", None, x.device)


def _place_value(x: Any, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    x, rank = np.asarray(x), len(kernel_size)
    type_ = TensorType(x.shape)
    sizes = _sizes(type_, rank, kernel_size, stride, padding, dilation, ceil_mode)
    out = np.zeros((*x.shape[:-rank], *sizes), np.int64)
    for at in pairs(*map(range, sizes)):
        windows = [
            [i for i in (o * s - p + d * j for j in range(k)) if 0 <= i < n]
            for o, k, s, p, d, n in zip(at, kernel_size, stride, padding, dilation, x.shape[-rank:], strict=True)
        ]
        flat = np.ravel_multi_index(np.ix_(*windows), x.shape[-rank:]).ravel()
        found = x.reshape(*x.shape[:-rank], -1)[..., flat].argmax(-1)
        out[(..., *at)] = flat[found]
    return out


def _pool_call(node: Node, x: list[str], places: bool) -> str:
    params = dict(node.params)
    options = ", ".join(f"{key}={value}" for key, value in params.items())
    call = f"{_F}.max_pool{len(params['kernel_size'])}d({x[0]}, {options}"
    return f"{call}, return_indices=True)[1]" if places else f"{call})"


_POOL = {"kernel_size": (2, 3), "stride": (2, 2), "padding": (0, 1), "dilation": (1, 1), "ceil_mode": False}

MAX_PLACE = register(
    Op(
        "max_pool_place",
        "kernel",
        shape=_place_shape,
        value=_place_value,
        torch=lambda node, x: _pool_call(node, x, True),
        differentiable=False,
        samples=(Sample((_X,), _POOL), Sample((_X,), _POOL | {"ceil_mode": True, "dilation": (2, 1)})),
        error_samples=(Sample((_X[0, 0],), _POOL),),
        **written_as_call("max_pool_place"),
        native="max_pool_place",
        source="torch.nn.functional.max_pool with return_indices",
    )
)


def _at_places(x: Node, places: Node, rank: int) -> Node:
    lead = x.shape[: x.type.rank - rank]
    flat = reshape(x, (*lead, product(x.shape[-rank:])))
    found = gather(flat, len(lead), reshape(places, (*lead, product(places.shape[-rank:]))))
    return reshape(found, places.shape)


def _max_pool(
    rank: int,
    x: Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> list[Node]:
    params = {
        "kernel_size": filled_up(kernel_size, rank),
        "stride": filled_up(stride if stride not in ((), []) else kernel_size, rank),
        "padding": filled_up(padding, rank),
        "dilation": filled_up(dilation, rank),
        "ceil_mode": ceil_mode,
    }
    return [apply(MAX_POOL, x, **params), apply(MAX_PLACE, x, **params)]


def _largest(rank: int, *args: Any) -> Node:
    return _max_pool(rank, *args)[0]


MAX_POOL = kernel(
    "max_pool",
    call="",
    torch=lambda node, x: _pool_call(node, x, False),
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    expansion=lambda x, **params: _at_places(x, apply(MAX_PLACE, x, **params), len(params["kernel_size"])),
    aten={
        **{f"max_pool{n}d": partial(_largest, n) for n in (1, 2, 3)},
        **{f"max_pool{n}d_with_indices": partial(_max_pool, n) for n in (1, 2, 3)},
    },
    samples=(Sample((_X,), _POOL), Sample((_X,), _POOL | {"ceil_mode": True, "dilation": (2, 1)})),
    error_samples=(Sample((_X[0, 0],), _POOL),),
    source="the largest of each window; the derivative goes to its place",
)


# ---- windows at random places ------------------------------------------------------------------------------
def _fractional_shape(x: TensorType, samples: TensorType, *, kernel_size: Any, output_size: Any) -> TensorType:
    rank = len(kernel_size)
    if x.rank not in (rank + 1, rank + 2) or samples.rank != 3 or samples.shape[-1] != rank:
        raise ShapeError("a pool of shapes that do not fit", given=f"({shape_text(x.shape)}), {samples}")
    return TensorType((*x.shape[:-rank], *output_size), "int64", None, x.device)


def _starts(sample: float, n: int, out: int, k: int) -> list[int]:
    """Where the windows of one dimension begin."""
    alpha = (n - k) / (out - 1) if out > 1 else 0.0
    return [*(int((i + sample) * alpha) - int(sample * alpha) for i in range(out - 1)), n - k]


def _fractional_value(x: Any, samples: Any, *, kernel_size: Any, output_size: Any) -> Any:
    x, rank = np.asarray(x), len(kernel_size)
    whole = x.reshape((-1, *x.shape[-rank - 1 :]))
    found = np.zeros((*whole.shape[:2], *output_size), np.int64)
    for n, c in np.ndindex(whole.shape[:2]):
        # Samples count from the last dimension.
        starts = [
            _starts(float(samples[n, c, rank - 1 - a if rank == 2 else a]), x.shape[-rank + a], o, k)
            for a, (o, k) in enumerate(zip(output_size, kernel_size, strict=True))
        ]
        for at in pairs(*map(range, output_size)):
            window = [range(s[o], s[o] + k) for s, o, k in zip(starts, at, kernel_size, strict=True)]
            flat = np.ravel_multi_index(np.ix_(*window), x.shape[-rank:]).ravel()
            found[(n, c, *at)] = flat[whole[n, c].reshape(-1)[flat].argmax()]
    return found.reshape(*x.shape[:-rank], *output_size)


FRACTIONAL_PLACE = register(
    Op(
        "fractional_max_pool_place",
        "kernel",
        shape=_fractional_shape,
        value=_fractional_value,
        torch=lambda node, x: (
            f"torch.ops.aten.fractional_max_pool{len(node.params['kernel_size'])}d({x[0]}, "
            f"{list(node.params['kernel_size'])}, {list(node.params['output_size'])}, {x[1]})[1]"
        ),
        differentiable=False,
        samples=(
            Sample((_X, np.full((2, 2, 2), 0.3)), {"kernel_size": (2, 2), "output_size": (2, 3)}),
            Sample((_X[0], np.full((1, 2, 2), 0.8)), {"kernel_size": (2, 3), "output_size": (3, 2)}),
        ),
        error_samples=(Sample((_X[0, 0], np.zeros((1, 2, 2))), {"kernel_size": (2, 2), "output_size": (2, 3)}),),
        **written_as_call("fractional_max_pool_place"),
        source="Graham 2014, as torch places the windows",
    )
)


def _fractional(rank: int, x: Node, kernel_size: Any, output_size: Any, samples: Node) -> list[Node]:
    places = apply(
        FRACTIONAL_PLACE,
        x,
        samples,
        kernel_size=filled_up(kernel_size, rank),
        output_size=tuple(int(n) for n in output_size),
    )
    return [_at_places(x, places, rank), places]


lowering("fractional_max_pool2d")(partial(_fractional, 2))
lowering("fractional_max_pool3d")(partial(_fractional, 3))


# ---- adaptive ----------------------------------------------------------------------------------------------
def _bins(n: int, m: int) -> list[tuple[int, int]]:
    return [(k * n // m, -(-(k + 1) * n // m)) for k in range(m)]


def _adaptive_place_shape(x: TensorType, *, output_size: tuple[int, ...]) -> TensorType:
    if x.rank not in (len(output_size) + 1, len(output_size) + 2):
        raise ShapeError("a pool of shapes that do not fit", given=f"({shape_text(x.shape)})")
    return TensorType((*x.shape[: -len(output_size)], *output_size), "int64", None, x.device)


def _adaptive_place_value(x: Any, *, output_size: tuple[int, ...]) -> Any:
    x, rank = np.asarray(x), len(output_size)
    out = np.zeros((*x.shape[:-rank], *output_size), np.int64)
    bins = [_bins(n, m) for n, m in zip(x.shape[-rank:], output_size, strict=True)]
    for at in pairs(*map(range, output_size)):
        windows = [range(*b[o]) for b, o in zip(bins, at, strict=True)]
        flat = np.ravel_multi_index(np.ix_(*windows), x.shape[-rank:]).ravel()
        out[(..., *at)] = flat[x.reshape(*x.shape[:-rank], -1)[..., flat].argmax(-1)]
    return out


ADAPTIVE_PLACE = register(
    Op(
        "adaptive_max_pool_place",
        "kernel",
        shape=_adaptive_place_shape,
        value=_adaptive_place_value,
        torch=lambda node, x: (
            f"{_F}.adaptive_max_pool{len(node.params['output_size'])}d"
            f"({x[0]}, {node.params['output_size']}, return_indices=True)[1]"
        ),
        differentiable=False,
        samples=(Sample((_X,), {"output_size": (2, 4)}),),
        error_samples=(Sample((_X[0, 0],), {"output_size": (2, 4)}),),
        **written_as_call("adaptive_max_pool_place"),
        source="torch.nn.functional.adaptive_max_pool with return_indices",
    )
)


def _adaptive_max(x: Node, output_size: Sequence[int]) -> list[Node]:
    places = apply(ADAPTIVE_PLACE, x, output_size=tuple(output_size))
    return [_at_places(x, places, len(output_size)), places]


def separably(x: Node, matrices: Sequence[np.ndarray]) -> Node:
    """A constant matrix on each of the last dimensions."""
    for axis, matrix in zip(range(x.type.rank - len(matrices), x.type.rank), matrices, strict=True):
        own = tuple(range(x.type.rank))
        result = tuple(x.type.rank if a == axis else a for a in own)
        x = einsum(([own, (x.type.rank, axis)], result), x, constant(matrix, x.type.dtype))
    return x


def _means(n: int, m: int) -> np.ndarray:
    matrix = np.zeros((m, n))
    for row, (start, stop) in enumerate(_bins(n, m)):
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


ADAPTIVE_MEAN = kernel(
    "adaptive_avg_pool",
    call="",
    torch=lambda node, x: (
        f"{_F}.adaptive_avg_pool{len(node.params['output_size'])}d({x[0]}, {node.params['output_size']})"
    ),
    expansion=lambda x, *, output_size: separably(
        x,
        [
            _means(int(n), m)
            for n, m in zip(_checked_rank(x, output_size).shape[-len(output_size) :], output_size, strict=True)
        ],
    ),
    aten={
        **{
            f"{prefix}adaptive_avg_pool{n}d": lambda x, size: apply(ADAPTIVE_MEAN, x, output_size=tuple(size))
            for prefix in ("", "_")
            for n in (2, 3)
        },
        "adaptive_avg_pool1d": lambda x, size: apply(ADAPTIVE_MEAN, x, output_size=tuple(size)),
        **{f"adaptive_max_pool{n}d": _adaptive_max for n in (1, 2, 3)},
    },
    samples=(Sample((_X,), {"output_size": (2, 4)}), Sample((_X[0],), {"output_size": (7,)})),
    error_samples=(Sample((_X[0, 0],), {"output_size": (2, 4)}),),
    source="means of bins that cover the input evenly",
)


def _checked_rank(x: Node, output_size: tuple[int, ...]) -> Node:
    if x.type.rank <= len(output_size):
        raise ShapeError("a pool of shapes that do not fit", given=f"({shape_text(x.shape)})")
    return x


# ---- means -------------------------------------------------------------------------------------------------
def _divisors(n: int, k: int, s: int, p: int, out: int, count_include_pad: bool) -> np.ndarray:
    starts = np.arange(out) * s - p
    ends = np.minimum(starts + k, n + p)
    return ends - starts if count_include_pad else np.minimum(ends, n) - np.maximum(starts, 0)


def _avg_expansion(
    x: Node,
    *,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Node:
    rank = len(kernel_size)
    out = _sizes(x.type, rank, kernel_size, stride, padding, (1,) * rank, ceil_mode)
    lead = x.shape[: x.type.rank - rank]
    flat = reshape(x, (product(lead), 1, *x.shape[-rank:]))
    # Windows that end outside need elements to see: zeros behind.
    missing = [
        max(0, (o - 1) * s + k - int(n) - 2 * p)
        for o, s, k, n, p in zip(out, stride, kernel_size, x.shape[-rank:], padding, strict=True)
    ]
    zeros = (0,) * (2 + rank)
    low = (0, 0, *padding)
    high = (0, 0, *(p + m for p, m in zip(padding, missing, strict=True)))
    flat = apply(PAD, flat, low=low, high=high, interior=zeros)
    weight = broadcast(constant(1.0, x.type.dtype), (1, 1, *kernel_size))
    total = apply(CONV, flat, weight, stride=tuple(stride), padding=(0,) * rank, dilation=(1,) * rank)
    for axis, size in enumerate(out, 2):
        total = slice_axis(total, axis, 0, size)
    total = reshape(total, (*lead, *out))
    if divisor_override is not None:
        return total / float(divisor_override)
    counts: Any = 1.0
    for k, s, p, n, o in zip(kernel_size, stride, padding, x.shape[-rank:], out, strict=True):
        counts = np.multiply.outer(counts, _divisors(int(n), k, s, p, o, count_include_pad).astype(float))
    if np.all(counts == counts.flat[0]):
        return total / float(counts.flat[0])
    return total / constant(counts, x.type.dtype)


def _avg_torch(node: Node, x: list[str]) -> str:
    params = dict(node.params)
    options = ", ".join(f"{key}={value}" for key, value in params.items())
    return f"{_F}.avg_pool{len(params['kernel_size'])}d({x[0]}, {options})"


def _avg_pool(
    rank: int,
    x: Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    more = {} if divisor_override is None else {"divisor_override": divisor_override}
    return apply(
        AVG_POOL,
        x,
        kernel_size=filled_up(kernel_size, rank),
        stride=filled_up(stride if stride not in ((), []) else kernel_size, rank),
        padding=filled_up(padding, rank),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        **more,
    )


_MEAN = {"kernel_size": (2, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": False, "count_include_pad": True}

AVG_POOL = kernel(
    "avg_pool",
    call="",
    torch=_avg_torch,
    expansion=_avg_expansion,
    aten={f"avg_pool{n}d": partial(_avg_pool, n) for n in (1, 2, 3)},
    samples=(
        Sample((_X,), _MEAN),
        Sample((_X,), _MEAN | {"ceil_mode": True, "count_include_pad": False, "stride": (2, 3)}),
        Sample((_X,), _MEAN | {"divisor_override": 5}),
    ),
    error_samples=(Sample((_X[0, 0],), _MEAN),),
    source="the mean of each window",
)
