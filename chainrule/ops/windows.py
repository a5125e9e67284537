"""Windows: convolution (cross-correlation, as in torch) over any number of dimensions, and the reversal of elements.

``conv(x, w)`` with x (batch, in, *sizes) and w (out, in, *kernel), or a plain signal and kernel without the first two.
Its derivative by w is a convolution of x with the cotangent, its derivative by x a convolution of the cotangent with
the reversed kernel: the op is closed under differentiation, so second derivatives need nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    POSTFIX,
    Code,
    Dim,
    Node,
    Op,
    Sample,
    TensorType,
    apply,
    product,
    promote,
    register,
    shape_text,
    spelling,
)
from chainrule.ops.contraction import permute, swap
from chainrule.ops.families import lifted, linear, multilinear_jvp
from chainrule.ops.movement import reshape
from chainrule.ops.slicing import PAD, SLICE


def _flip_shape(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    if not all(0 <= a < x.rank for a in axes):
        raise ShapeError("flip of a dimension that does not exist", given=f"axes {axes} of ({shape_text(x.shape)})")
    return x


FLIP = linear(
    "flip",
    shape=_flip_shape,
    value=lambda x, *, axes: np.flip(x, axes),
    transpose=lambda g, y, x, *, axes: apply(FLIP, g, axes=axes),
    lift=lifted(lambda params, extra: params),
    text=lambda p, node: f"flip({p.child(node.inputs[0], 0)}, {', '.join(map(str, node.params['axes']))})",
    latex=lambda p, node: rf"\operatorname{{flip}}\left({p.child(node.inputs[0], 0)}\right)",
    indexed=lambda p, node, indices: p.at(
        node.inputs[0],
        [
            p.affine([(-1, i)], size - 1, size) if a in node.params["axes"] and i is not None else i
            for a, (i, size) in enumerate(zip(indices, node.type.shape, strict=True))
        ],
    ),
    torch=lambda node, x: f"{x[0]}.flip({tuple(node.params['axes'])})",
    code=lambda w, node: f"{w.np}.flip({w(0)}, {tuple(node.params['axes'])})",
    aten={"flip": lambda x, dims: apply(FLIP, x, axes=tuple(sorted(d % x.type.rank for d in dims)))},
    samples=(Sample((np.arange(6.0).reshape(2, 3) / 7,), {"axes": (1,)}),),
    error_samples=(Sample((np.arange(6.0).reshape(2, 3),), {"axes": (2,)}),),
    native="flip",
    source="numpy.flip",
)


@spelling("flip")
def flip_of(x: Node, *axis: Any) -> Node:
    """The elements along the given axes in reverse order."""
    axis = tuple(a for given in axis for a in (given if isinstance(given, tuple) else (given,)))
    axes = tuple(sorted({int(a) % x.type.rank for a in axis})) if axis else tuple(range(x.type.rank))
    return apply(FLIP, x, axes=axes)


def _window(size: int | Dim, kernel: int | Dim, stride: int, padding: int, dilation: int) -> int | Dim:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if stride == 1:
        return span + 1
    if isinstance(span, Dim):
        raise ShapeError("a stride other than 1 over a named dimension", required="a number for its size")
    return span // stride + 1


def _conv_shape(
    x: TensorType,
    w: TensorType,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> TensorType:
    rank = len(stride)
    plain = x.rank == w.rank == rank
    if not plain and (x.rank != rank + 2 or w.rank != rank + 2 or x.shape[1] != w.shape[1] * groups):
        raise ShapeError(
            "convolution of shapes that do not fit",
            given=f"({shape_text(x.shape)}) and ({shape_text(w.shape)})",
            required=f"(batch x in x sizes) and (out x in x kernel) with equal in, or two values of rank {rank}",
        )
    sizes = tuple(
        _window(n, k, s, p, d)
        for n, k, s, p, d in zip(x.shape[-rank:], w.shape[-rank:], stride, padding, dilation, strict=True)
    )
    if any(isinstance(n, int) and n < 1 for n in sizes):
        raise ShapeError(
            "the kernel is larger than what it moves over",
            given=f"({shape_text(x.shape)}) and ({shape_text(w.shape)})",
        )
    dtype, device = promote(x, w)
    return TensorType(sizes if plain else (x.shape[0], w.shape[0], *sizes), dtype, None, device)


def _conv_value(x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, groups: int = 1) -> Any:
    rank = len(stride)
    if groups > 1:
        pairs = zip(np.split(np.asarray(x), groups, 1), np.split(np.asarray(w), groups, 0), strict=True)
        parts = [_conv_value(a, b, stride=stride, padding=padding, dilation=dilation) for a, b in pairs]
        return np.concatenate(parts, 1)
    if np.ndim(x) == rank:
        stacked = (np.asarray(x)[None, None], np.asarray(w)[None, None])
        return _conv_value(*stacked, stride=stride, padding=padding, dilation=dilation)[0, 0]
    x = np.pad(np.asarray(x), [(0, 0), (0, 0), *((p, p) for p in padding)])
    spans = [d * (k - 1) + 1 for k, d in zip(np.shape(w)[2:], dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in stride)
    taps = tuple(slice(None, None, d) for d in dilation)
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    return np.tensordot(windows, w, axes=([1, *range(2 + rank, 2 + 2 * rank)], [1, *range(2, 2 + rank)])).transpose(
        (0, 1 + rank, *range(1, 1 + rank))
    )


def _conv_vjp(
    g: Node, y: Node, x: Node, w: Node, *, stride: Any, padding: Any, dilation: Any, groups: int = 1
) -> tuple[Node, Node]:
    rank = len(stride)
    lead = x.type.rank - rank  # batch and channels, or none
    sizes, kernel = x.shape[lead:], w.shape[lead:]
    shared = {"groups": groups} if groups > 1 else {}
    # By w: every tap sees x moved by its place. Batch and channels change roles, stride and dilation too.
    turned = _groups_to_batch(x, groups) if groups > 1 else _swapped(x, lead)
    gw = apply(CONV, turned, _swapped(g, lead), stride=dilation, padding=padding, dilation=stride, **shared)
    gw = _swapped(_cut(gw, (*gw.shape[:lead], *kernel)), lead)
    return conv_transposed(g, w, sizes, stride=stride, padding=padding, dilation=dilation, groups=groups), gw


def conv_transposed(
    g: Node, w: Node, sizes: Sequence[Any], *, stride: Any, padding: Any, dilation: Any, groups: int = 1
) -> Node:
    """The transpose of a convolution with ``w``: from its output to its input, which has the given sizes."""
    rank = len(stride)
    lead = g.type.rank - rank
    shared = {"groups": groups} if groups > 1 else {}
    # The cotangent spread out by the stride and padded, with the kernel reversed. What the last window left over
    # behind is padded as well, so that every element of x gets its place.
    zeros = (0,) * (lead + rank)
    spread = apply(PAD, g, low=zeros, high=zeros, interior=((0,) * lead) + tuple(s - 1 for s in stride))
    reach = tuple(d * (k - 1) for k, d in zip(w.shape[lead:], dilation, strict=True))
    low = tuple(r - p for r, p in zip(reach, padding, strict=True))
    high = tuple(n - s + r - a for n, s, r, a in zip(sizes, spread.shape[lead:], reach, low, strict=True))
    turned = apply(FLIP, w, axes=tuple(range(lead, lead + rank)))
    reversed_kernel = _grouped_swap(turned, groups) if groups > 1 else _swapped(turned, lead)
    padded = _padded(spread, (0,) * lead + low, (0,) * lead + high)
    return apply(CONV, padded, reversed_kernel, stride=(1,) * rank, padding=(0,) * rank, dilation=dilation, **shared)


def _groups_to_batch(x: Node, groups: int) -> Node:
    """``(n, groups c, ...)`` as ``(c, groups n, ...)``: each group convolves its own channels with its own samples."""
    n, channels, *sizes = x.shape
    each = int(channels) // groups
    parts = permute(reshape(x, (n, groups, each, *sizes)), (2, 1, 0, *range(3, 3 + len(sizes))))
    return reshape(parts, (each, groups * n, *sizes))


def _grouped_swap(w: Node, groups: int) -> Node:
    """``(groups o, c, ...)`` as ``(groups c, o, ...)``."""
    out, channels, *kernel = w.shape
    parts = reshape(w, (groups, int(out) // groups, channels, *kernel))
    return reshape(swap(parts, 1, 2), (groups * channels, int(out) // groups, *kernel))


def _swapped(x: Node, lead: int) -> Node:
    return swap(x, 0, 1) if lead else x


def _cut(x: Node, shape: Sequence[int | Dim]) -> Node:
    return apply(SLICE, x, starts=(0,) * len(shape), stops=tuple(shape), steps=(1,) * len(shape))


def _padded(x: Node, low: Sequence[Any], high: Sequence[Any]) -> Node:
    """Padded by ``low`` and ``high``; negative numbers cut."""
    starts = tuple(-a if isinstance(a, int) and a < 0 else 0 for a in low)
    stops = tuple(n + b if isinstance(b, int) and b < 0 else n for n, b in zip(x.shape, high, strict=True))
    if any(starts) or stops != x.shape:
        x = apply(SLICE, x, starts=starts, stops=stops, steps=(1,) * x.type.rank)
    above, below = (tuple(0 if isinstance(a, int) and a < 0 else a for a in amounts) for amounts in (low, high))
    return apply(PAD, x, low=above, high=below, interior=(0,) * x.type.rank)


def _conv_cost(result: TensorType, x: TensorType, w: TensorType, *, stride: Any, **_: Any) -> Any:
    taps = w.shape if w.rank == len(stride) else w.shape[1:]
    return product([*result.shape, *taps])


def _conv_text(p: Any, node: Node) -> str:
    inside = ", ".join(p.child(i, 0) for i in node.inputs)
    for option, default in _DEFAULTS.items():
        own = set(node.params[option])
        if own != {default}:  # sizes that differ between dimensions have no spelling; they are shown as they are
            inside += f", {option}={own.pop() if len(own) == 1 else node.params[option]}"
    inside += f", groups={node.params['groups']}" if "groups" in node.params else ""
    return f"conv{len(node.params['stride'])}d({inside})"


def _conv_indexed(p: Any, node: Node, indices: tuple[Any, ...]) -> Any:
    """``sum_j w_j * x_{i+j}``; with padding there are elements outside of x, and no such line."""
    (x, w), rank = node.inputs, len(node.params["stride"])
    if any(n != 0 for n in node.params["padding"]) or "groups" in node.params:
        return None
    taps = p.algebra.indices_of(w.type)
    places = [
        p.affine([(stride, i), (dilation, j)], 0, size)
        for stride, i, dilation, j, size in zip(
            node.params["stride"],
            indices[-rank:],
            node.params["dilation"],
            taps[-rank:],
            x.shape[-rank:],
            strict=True,
        )
    ]
    if x.type.rank == rank:
        return p.sum_of([(w, taps), (x, places)], taps)
    (batch, out), (_, channel) = indices[:2], taps[:2]
    return p.sum_of([(w, (out, *taps[1:])), (x, (batch, channel, *places))], taps[1:])


def _conv_torch(node: Node, x: list[str]) -> str:
    options = "".join(f", {k}={tuple(node.params[k])}" for k in ("stride", "padding", "dilation"))
    options += f", groups={node.params['groups']}" if "groups" in node.params else ""
    call = f"torch.nn.functional.conv{len(node.params['stride'])}d"
    if node.type.rank == len(node.params["stride"]):
        return f"{call}({x[0]}[None, None], {x[1]}[None, None]{options})[0, 0]"
    return f"{call}({x[0]}, {x[1]}{options})"


_CONV = '''\
def _conv(x, w, stride, padding, dilation, groups=1):
    """Cross-correlation of x (batch, in, *sizes) with w (out, in, *kernel), or of a plain signal and kernel."""
    rank = len(stride)
    if groups > 1:
        pairs = zip(np.split(x, groups, 1), np.split(w, groups, 0))
        return np.concatenate([_conv(a, b, stride, padding, dilation) for a, b in pairs], 1)
    if x.ndim == rank:
        return _conv(x[None, None], w[None, None], stride, padding, dilation)[0, 0]
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    spans = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, s) for s in (1, 1, *stride, *dilation)]
    product = np.tensordot(windows[tuple(steps)], w, ([1, *range(2 + rank, 2 + 2 * rank)], [1, *range(2, 2 + rank)]))
    return np.moveaxis(product, -1, 1)
'''


def _conv_code(w: Any, node: Node) -> str:
    options = [str(tuple(node.params[k])) for k in ("stride", "padding", "dilation")]
    options += [str(node.params["groups"])] if "groups" in node.params else []
    return f"_conv({w(0)}, {w(1)}, {', '.join(options)})"


def _conv_jax(w: Any, node: Node) -> str:
    stride, padding, dilation = (tuple(node.params[k]) for k in ("stride", "padding", "dilation"))
    plain = node.type.rank == len(stride)
    x, kernel = (f"{w(k, POSTFIX)}[None, None]" if plain else w(k) for k in range(2))
    pairs = [(p, p) for p in padding]
    call = f"jax.lax.conv_general_dilated({x}, {kernel}, {stride}, {pairs}, rhs_dilation={dilation}"
    call += f", feature_group_count={node.params['groups']})" if "groups" in node.params else ")"
    return f"{call}[0, 0]" if plain else call


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


def _options(rank: int, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> dict[str, tuple[int, ...]]:
    return {"stride": (int(stride),) * rank, "padding": (int(padding),) * rank, "dilation": (int(dilation),) * rank}


_X1 = np.sin(np.arange(2 * 2 * 7.0)).reshape(2, 2, 7)
_W1 = np.cos(np.arange(3 * 2 * 3.0)).reshape(3, 2, 3)
_X2 = np.sin(np.arange(1 * 2 * 5 * 6.0)).reshape(1, 2, 5, 6)
_W2 = np.cos(np.arange(2 * 2 * 2 * 3.0)).reshape(2, 2, 2, 3)

CONV = register(
    Op(
        "conv",
        "multilinear",
        shape=_conv_shape,
        value=_conv_value,
        vjp=_conv_vjp,
        jvp=multilinear_jvp,
        cost=_conv_cost,
        text=_conv_text,
        latex=lambda p, node: "{}{{{}}}({}".format(r"\operatorname", *_conv_text(p, node).split("(", 1)),
        indexed=_conv_indexed,
        precedence=50,
        torch=_conv_torch,
        works_inside=True,
        code=Code(_conv_code, jax=_conv_jax, helper=(_CONV,)),
        samples=(
            Sample((_X1, _W1), _options(1)),
            Sample((_X1, _W1), {"stride": (2,), "padding": (1,), "dilation": (1,)}),
            Sample((_X1, _W1), {"stride": (1,), "padding": (2,), "dilation": (2,)}),
            Sample((_X1[0, 0], _W1[0, 0]), _options(1)),
            Sample((_X2, _W2), _options(2)),
            Sample((_X2, _W2), _options(2, stride=2, padding=1)),
        ),
        error_samples=(Sample((_X1, _W1[:, :1]), _options(1)), Sample((_X1[..., :2], _W1), _options(1))),
        native="conv",
        source="cross-correlation, torch.nn.functional.conv1d and conv2d and conv3d",
    )
)


@spelling("conv1d")
def conv1d(x: Node, w: Node, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Node:
    """``y_i = sum_j w_j x_{i+j}``."""
    return apply(CONV, x, w, **_options(1, stride, padding, dilation))


@spelling("conv2d")
def conv2d(x: Node, w: Node, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Node:
    """``y_{b,o,h,w} = sum_{i,p,q} w_{o,i,p,q} x_{b,i,h+p,w+q}``."""
    return apply(CONV, x, w, **_options(2, stride, padding, dilation))
