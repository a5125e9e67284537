"""Convolution layers of torch: with bias, groups, and transposed. The derivative is that of ``conv`` in ``windows``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Sample, apply, product, shape_text
from chainrule.ops.convolution_backward import convolution_vjp
from chainrule.ops.families import call_of, kernel
from chainrule.ops.movement import reshape
from chainrule.ops.windows import CONV, conv_transposed

_X = np.sin(np.arange(2 * 4 * 6.0)).reshape(2, 4, 6)
_W = np.cos(np.arange(6 * 2 * 3.0)).reshape(6, 2, 3)
_T = np.cos(np.arange(4 * 3 * 3.0)).reshape(4, 3, 3)
_ONES = {"stride": (1,), "padding": (0,), "dilation": (1,)}


def _with_bias(y: Node, bias: Node | None) -> Node:
    return y if bias is None else y + reshape(bias, (1, y.shape[1], *(1,) * (y.type.rank - 2)))


def _forward(x: Node, w: Node, *, bias: Node | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Node:
    shared = {"groups": groups} if groups > 1 else {}
    return _with_bias(apply(CONV, x, w, stride=stride, padding=padding, dilation=dilation, **shared), bias)


def _transposed(
    x: Node,
    w: Node,
    *,
    bias: Node | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Node:
    rank = len(stride)
    if x.type.rank != rank + 2 or w.type.rank != rank + 2 or x.shape[1] != w.shape[0]:
        raise ShapeError(
            "transposed convolution of shapes that do not fit",
            given=f"({shape_text(x.shape)}) and ({shape_text(w.shape)})",
            required="(batch x in x sizes) and (in x out x kernel)",
        )
    sizes = [
        (int(n) - 1) * s - 2 * p + d * (int(k) - 1) + o + 1
        for n, k, s, p, d, o in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding, strict=True)
    ]
    y = conv_transposed(x, w, sizes, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _with_bias(y, bias)


def _call(name: str) -> Any:
    def torch(node: Node, x: list[str]) -> str:
        params = {k: v for k, v in node.params.items() if k != "given"}
        options = ", ".join(f"{k}={v}" for k, v in params.items())
        return f"torch.nn.functional.{name}{len(params['stride'])}d({', '.join(x)}, {options})"

    return torch


def _cost(result: Any, x: Any, w: Any, *rest: Any, **_: Any) -> Any:
    return product([*result.shape, *w.shape[1:]])


def _lowered(
    x: Node,
    w: Node,
    bias: Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Node:
    rank = w.type.rank - 2
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    sizes = {key: tuple(value) * (rank if len(value) == 1 else 1) for key, value in options.items()}
    if transposed:
        more = tuple(output_padding) * (rank if len(output_padding) == 1 else 1)
        return call_of(CONV_TRANSPOSE, x, w, bias=bias, output_padding=more, groups=groups, **sizes)
    return call_of(CONVOLUTION, x, w, bias=bias, groups=groups, **sizes)


CONVOLUTION = kernel(
    "convolution",
    call="",
    torch=_call("conv"),
    expansion=_forward,
    optional=("bias",),
    fused_vjp=convolution_vjp,
    fused_again=True,
    order="operands",
    works_inside=True,
    cost=_cost,
    aten={"convolution": _lowered},
    samples=(
        Sample((_X[:, :2], _W, np.arange(6.0) / 5), {**_ONES, "groups": 1, "given": ("bias",)}),
        Sample((_X, _W), {"stride": (2,), "padding": (1,), "dilation": (2,), "groups": 2}),
        Sample((_X, _W[:4, :1]), {"stride": (1,), "padding": (2,), "dilation": (1,), "groups": 4}),
    ),
    error_samples=(Sample((_X, _W), {**_ONES, "groups": 1}),),
    source="torch.nn.functional.conv1d, conv2d and conv3d",
)
CONV_TRANSPOSE = kernel(
    "conv_transpose",
    call="",
    torch=_call("conv_transpose"),
    expansion=_transposed,
    optional=("bias",),
    fused_vjp=convolution_vjp,
    fused_again=True,
    order="operands",
    works_inside=True,
    cost=lambda result, x, w, *_, **__: product([*x.shape, *w.shape[1:]]),
    samples=(
        Sample((_X, _T, np.arange(3.0) / 5), {**_ONES, "output_padding": (0,), "groups": 1, "given": ("bias",)}),
        Sample((_X, _T), {"stride": (2,), "padding": (1,), "dilation": (1,), "output_padding": (1,), "groups": 2}),
    ),
    error_samples=(Sample((_X, _T[:3]), {**_ONES, "output_padding": (0,), "groups": 1}),),
    source="torch.nn.functional.conv_transpose1d, 2d and 3d: the transpose of a convolution",
)
