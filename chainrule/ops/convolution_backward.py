"""The backward kernel of convolution layers, as torch runs it: the cotangents of input, weight and bias in one call.

With C(x, w) the layer, I(g, w) and W(g, x) the cotangents of input and weight, all three are linear in each operand and
any two are the derivatives of the third: ``<C(x, w), g> = <I(g, w), x> = <W(g, x), w>``. So second derivatives of
convolutional networks run on the same kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as each
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Node, Sample, TensorType, TupleType, apply, item, shape_text
from chainrule.ops.contraction import sum_axes
from chainrule.ops.families import sum_nodes, zeros_like
from chainrule.ops.kernels import backward_kernel
from chainrule.ops.movement import broadcast, expand_dims, is_zero


def _shape(g: TensorType, x: TensorType, w: TensorType, *, bias: bool, wanted: Any, **_: Any) -> TupleType:
    if not g.rank == x.rank == w.rank or g.shape[0] != x.shape[0]:
        raise ShapeError(
            "operands of a convolution's backward that do not fit",
            given=", ".join(f"({shape_text(t.shape)})" for t in (g, x, w)),
        )
    types = (x.with_shape(x.shape), w.with_shape(w.shape), w.with_shape(g.shape[1:2]))
    return TupleType(types if bias else types[:2])


def _taps(kernel: Any, sizes: Any, stride: Any, dilation: Any) -> Iterator[tuple[Any, tuple[slice, ...]]]:
    """Each place of the kernel, with what it sees of the padded input."""
    for place in each(*map(range, kernel)):
        steps = zip(place, sizes, stride, dilation, strict=True)
        yield place, tuple(slice(k * d, k * d + s * (n - 1) + 1, s) for k, n, s, d in steps)


def _flat(x: Any) -> Any:
    return x.reshape(*x.shape[:2], -1)


def _value(
    g: Any,
    x: Any,
    w: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    bias: bool,
    wanted: Any,
) -> tuple[Any, ...]:
    # One of the two is moved over by the kernel; of a transposed convolution it is the output.
    large, small = (g, x) if transposed else (x, g)
    sizes = small.shape[2:]
    reach = [(s * (n - 1) + d * (k - 1) + 1) for n, k, s, d in zip(sizes, w.shape[2:], stride, dilation, strict=True)]
    behind = [max(0, r - n - p) for r, n, p in zip(reach, large.shape[2:], padding, strict=True)]
    padded = np.pad(large, [(0, 0), (0, 0), *zip(padding, behind, strict=True)])
    by_large, by_small, by_w = np.zeros_like(padded), np.zeros_like(small), np.zeros_like(w)
    for a, b in zip(
        np.split(np.arange(large.shape[1]), groups), np.split(np.arange(small.shape[1]), groups), strict=True
    ):
        for place, seen in _taps(w.shape[2:], sizes, stride, dilation):
            window, tap = padded[(slice(None), a, *seen)], w[(b, slice(None), *place)]
            by_w[(b, slice(None), *place)] = np.einsum("nop,ncp->oc", _flat(small[:, b]), _flat(window))
            by_large[(slice(None), a, *seen)] += np.einsum("no...,oc->nc...", small[:, b], tap)
            by_small[:, b] += np.einsum("nc...,oc->no...", window, tap)
    inside = tuple(slice(p, p + n) for p, n in zip(padding, large.shape[2:], strict=True))
    by_x = by_small if transposed else by_large[(slice(None), slice(None), *inside)]
    by_bias = g.sum((0, *range(2, g.ndim)))
    return (by_x, by_w, by_bias) if bias else (by_x, by_w)


def _torch(node: Node, x: list[str]) -> str:
    p = node.params
    channels = f"[{node.inputs[0].shape[1]}]" if p["bias"] else "None"
    wanted = [*p["wanted"], *[False] * (3 - len(p["wanted"]))]
    call = (
        f"torch.ops.aten.convolution_backward({', '.join(x)}, {channels}, {p['stride']}, {p['padding']}, "
        f"{p['dilation']}, {p['transposed']}, {p['output_padding']}, {p['groups']}, {wanted})"
    )
    return call if p["bias"] else f"{call}[:2]"


# ---- its own derivative ------------------------------------------------------------------------------------
def _layer(x: Node, w: Node, *, transposed: bool, output_padding: Any, **options: Any) -> Node:
    """C(x, w)."""
    if transposed:
        return apply(OPS["conv_transpose"], x, w, output_padding=output_padding, **options)
    return apply(OPS["convolution"], x, w, **options)


def _by_input(g: Node, like: Node, w: Node, options: dict[str, Any]) -> Node:
    """I(g, w), in the sizes of ``like``."""
    return item(apply(CONVOLUTION_BACKWARD, g, zeros_like(like), w, bias=False, wanted=(True, True), **options), 0)


def _by_weight(g: Node, x: Node, like: Node, options: dict[str, Any]) -> Node:
    """W(g, x), in the sizes of ``like``, which is not read (zeros in its place would be copied by every call)."""
    return item(apply(CONVOLUTION_BACKWARD, g, x, like, bias=False, wanted=(True, True), **options), 1)


def _vjp(
    c: tuple[Node, ...], y: Node, g: Node, x: Node, w: Node, *, bias: bool, wanted: Any, **options: Any
) -> tuple[Node | None, ...]:
    by_g: list[Node] = []
    by_x = by_w = None
    if not is_zero(c[0]):
        by_g.append(_layer(c[0], w, **options))
        by_w = _by_weight(g, c[0], w, options)
    if not is_zero(c[1]):
        by_g.append(_layer(x, c[1], **options))
        by_x = _by_input(g, x, c[1], options)
    if bias and not is_zero(c[2]):
        by_g.append(broadcast(expand_dims(c[2], (0, *range(2, g.type.rank))), g.shape))
    return sum_nodes(by_g), by_x, by_w


def _jvp(
    tangents: Sequence[Node | None], y: Node, g: Node, x: Node, w: Node, *, bias: bool, wanted: Any, **options: Any
) -> tuple[Node | None, ...]:
    dg, dx, dw = tangents
    by_x = [_by_input(*pair, options) for pair in ((dg, x, w), (g, x, dw)) if None not in pair]  # type: ignore[misc]
    by_w = [_by_weight(*pair, options) for pair in ((dg, x, w), (g, dx, w)) if None not in pair]  # type: ignore[misc]
    by_bias = sum_axes(dg, (0, *range(2, g.type.rank))) if bias and dg is not None else None
    return (sum_nodes(by_x), sum_nodes(by_w), by_bias)[: 3 if bias else 2]


_X = np.sin(np.arange(2 * 4 * 6.0)).reshape(2, 4, 6)
_W = np.cos(np.arange(6 * 2 * 3.0)).reshape(6, 2, 3)
_G = np.sin(0.3 * np.arange(2 * 6 * 3.0)).reshape(2, 6, 3)
_GT = np.sin(0.3 * np.arange(2 * 4 * 6.0)).reshape(2, 4, 6)
_OPTIONS = {"dilation": (1,), "groups": 2, "bias": True, "wanted": (True, True, True)}

CONVOLUTION_BACKWARD = backward_kernel(
    "convolution_backward",
    shape=_shape,
    value=_value,
    torch=_torch,
    vjp=_vjp,
    jvp=_jvp,
    choosy=True,
    order="operands",
    samples=(
        Sample(
            (_G, _X, _W),
            {"stride": (2,), "padding": (1,), "transposed": False, "output_padding": (0,), **_OPTIONS},
        ),
        Sample(
            (_GT, _G, _W),
            {"stride": (2,), "padding": (1,), "transposed": True, "output_padding": (1,), **_OPTIONS},
        ),
    ),
    error_samples=(
        Sample(
            (_G[:1], _X, _W),
            {"stride": (2,), "padding": (1,), "transposed": False, "output_padding": (0,), **_OPTIONS},
        ),
    ),
    source="torch.ops.aten.convolution_backward",
)


def convolution_vjp(
    g: Node,
    y: Node,
    x: Node,
    w: Node,
    *bias: Node,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    output_padding: Any = None,
    given: tuple[str, ...] = (),
) -> tuple[Node, ...]:
    """``fused_vjp`` of convolution layers, transposed ones (with an ``output_padding``) included."""
    count = 2 + len(bias)
    back = apply(
        CONVOLUTION_BACKWARD,
        g,
        x,
        w,
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        transposed=output_padding is not None,
        output_padding=tuple(output_padding or (0,) * len(stride)),
        groups=groups,
        bias=bool(bias),
        wanted=(True,) * count,
    )
    return tuple(item(back, k) for k in range(count))
