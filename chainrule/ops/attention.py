"""Attention as torch calls it: one kernel forward, its derivative in a formula that of the expansion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import OPS, Node, Sample, apply, constant, product, shape_text
from chainrule.ops.arithmetic import where
from chainrule.ops.contraction import matmul, transpose
from chainrule.ops.families import call_of, kernel
from chainrule.ops.movement import broadcast, expand_dims, reshape
from chainrule.ops.opaque import by_tape, by_tape_vjp

_Q = np.sin(np.arange(2 * 3 * 4.0)).reshape(2, 3, 4)
_K = np.cos(np.arange(2 * 5 * 4.0)).reshape(2, 5, 4)
_V = np.sin(0.7 * np.arange(2 * 5 * 3.0)).reshape(2, 5, 3)


def _shared_heads(x: Node, heads: int) -> Node:
    """Each head of the keys for several heads of the queries."""
    axis = x.type.rank - 3
    repeats = heads // int(x.shape[axis])
    spread = broadcast(expand_dims(x, (axis + 1,)), (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :]))
    return reshape(spread, (*x.shape[:axis], heads, *x.shape[axis + 1 :]))


def _attention(
    q: Node,
    k: Node,
    v: Node,
    *,
    attn_mask: Node | None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    spelled: bool = False,
) -> Node:
    if q.type.rank < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            "attention of shapes that do not fit",
            given=", ".join(f"({shape_text(x.shape)})" for x in (q, k, v)),
            required="queries and keys of one width, a value for every key",
        )
    if enable_gqa:
        k, v = (_shared_heads(x, int(q.shape[-3])) for x in (k, v))
    width = 1 / math.sqrt(int(q.shape[-1])) if scale is None else scale
    scores = matmul(q, transpose(k)) * width
    nothing = constant(-math.inf, q.type.dtype)
    if is_causal:
        seen = np.tril(np.ones((int(q.shape[-2]), int(k.shape[-2])), dtype=bool))
        scores = where(constant(seen), scores, nothing)
    if attn_mask is not None:
        scores = where(attn_mask, scores, nothing) if attn_mask.type.dtype == "bool" else scores + attn_mask
    return matmul(apply(OPS["softmax"], scores, axis=scores.type.rank - 1), v)


def _lowered(
    q: Node,
    k: Node,
    v: Node,
    attn_mask: Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Node:
    if dropout_p > 0:
        raise UnsupportedOpError(
            "attention with dropout draws random numbers inside of a kernel", instead="dropout_p=0"
        )
    options: dict[str, Any] = {"is_causal": True} if is_causal else {}
    options |= {"enable_gqa": True} if enable_gqa else {}
    return call_of(ATTENTION, q, k, v, attn_mask=attn_mask, scale=scale, **options)


def by_formula(node: Node) -> Node:
    """The same attention as torch computes it where the mask is differentiated: step by step, in no kernel."""
    return apply(ATTENTION, *node.inputs, **dict(node.params), spelled=True) if node.op is ATTENTION else node


def _torch(node: Node, x: list[str]) -> str:
    params = dict(node.params)
    name = "_scaled_dot_product_attention_math" if params.pop("spelled", False) else "scaled_dot_product_attention"
    masked = params.pop("given", ())
    options = [f"attn_mask={x[3]}"] if masked else []
    options += [f"{key}={value!r}" for key, value in params.items()]
    call = f"({', '.join([*x[:3], *options])})"
    return f"torch.ops.aten.{name}{call}[0]" if name.startswith("_") else f"torch.nn.functional.{name}{call}"


ATTENTION = kernel(
    "attention",
    call="",
    torch=_torch,
    expansion=_attention,
    optional=("attn_mask",),
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    cost=lambda result, q, k, v, *_, **__: product([*result.shape, q.shape[-1], 2]),
    aten={"scaled_dot_product_attention": _lowered},
    samples=(
        Sample((_Q, _K, _V), {}),
        Sample((_Q, _K, _V), {"is_causal": True, "scale": 0.3}),
        Sample((_Q, _K, _V, np.tril(np.ones((3, 5), dtype=bool))), {"given": ("attn_mask",)}),
        Sample((_Q, _K, _V, np.arange(15.0).reshape(3, 5) / 9), {"given": ("attn_mask",)}),
    ),
    error_samples=(Sample((_Q, _K[..., :2], _V), {}),),
    source="Vaswani et al. 2017, equation 1",
)
