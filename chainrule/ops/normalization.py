"""Normalisations over dimensions of one sample, declared by their expansion, with torch's kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Node, Sample, apply, as_node, product, shape_text
from chainrule.ops.casts import cast, widened
from chainrule.ops.contraction import sum_axes
from chainrule.ops.families import composite
from chainrule.ops.kernels import LAYER_NORM_RECORDED, layer_norm_vjp
from chainrule.ops.reductions import mean

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])


def _expansion(x: Node, *affine: Node, rank: int, eps: float) -> Node:
    if not 0 < rank <= x.type.rank or any(a.shape != x.shape[-rank:] for a in affine):
        raise ShapeError(
            "layer norm does not fit its input",
            given=f"input ({shape_text(x.shape)}), over the last {rank} dimensions",
            required="weight and bias of the shape of those dimensions",
        )
    axes = tuple(range(x.type.rank - rank, x.type.rank))
    wide = widened(x, *affine)
    centred = wide - mean(wide, axes, keepdims=True)
    variance = mean(centred**2.0, axes, keepdims=True)
    y = centred / apply(OPS["sqrt"], variance + as_node(eps, like=wide))
    for scale in affine[:1]:
        y = y * scale
    for shift in affine[1:]:
        y = y + shift
    return cast(y, x.type.dtype)


def _vjp(g: Node, y: Node, x: Node, *affine: Node, rank: int, eps: float) -> tuple[Node, ...]:
    narrow = x.type.dtype
    x, g = widened(x, *affine), widened(g, *affine)
    axes = tuple(range(x.type.rank - rank, x.type.rank))
    centred = x - mean(x, axes, keepdims=True)
    deviation = apply(OPS["sqrt"], mean(centred**2.0, axes, keepdims=True) + as_node(eps, like=x))
    normal = centred / deviation
    scaled = g * affine[0] if affine else g
    inner = scaled - mean(scaled, axes, keepdims=True) - normal * mean(scaled * normal, axes, keepdims=True)
    batch = tuple(range(x.type.rank - rank))
    others = (sum_axes(part, batch) for part in (g * normal, g))
    return cast(inner / deviation, narrow), *(part for part, _ in zip(others, affine, strict=False))


def _torch(node: Node, x: list[str]) -> str:
    rank, eps = node.params["rank"], node.params["eps"]
    sizes = tuple(node.inputs[0].shape[-rank:])
    return f"torch.nn.functional.layer_norm({x[0]}, {sizes}, {', '.join([*x[1:], f'eps={eps!r}'])})"


def _lowered(
    x: Node, sizes: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Node:
    if weight is None and bias is not None:
        return apply(LAYER_NORM, x, rank=len(sizes), eps=eps) + bias
    return apply(LAYER_NORM, x, *(a for a in (weight, bias) if a is not None), rank=len(sizes), eps=eps)


LAYER_NORM = composite(
    "layer_norm_affine",
    expansion=_expansion,
    vjp=_vjp,
    names=(),
    text=lambda p, node: f"layer_norm_affine({', '.join(p.child(i, 0) for i in node.inputs)})",
    latex=lambda p, node: rf"\operatorname{{layernorm}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)",
    torch=_torch,
    fused_vjp=layer_norm_vjp,
    recorded=lambda node, inputs: apply(LAYER_NORM_RECORDED, *inputs, **node.params),
    cost=lambda result, x, *_, **__: product([x.numel, 4]),
    aten={"layer_norm": _lowered},
    samples=(
        Sample((_X,), {"rank": 1, "eps": 1e-5}),
        Sample((_X, np.array([1.1, 0.7, -0.4]), np.array([0.2, -0.6, 0.1])), {"rank": 1, "eps": 1e-5}),
        Sample((_X, _X[::-1] + 0.4), {"rank": 2, "eps": 1e-3}),
    ),
    error_samples=(Sample((_X, np.zeros(2)), {"rank": 1, "eps": 1e-5}),),
    source="Ba et al. 2016: (x - mean) / sqrt(variance + eps), biased variance, then scale and shift",
)
