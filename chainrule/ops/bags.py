"""EmbeddingBag: rows of a table looked up and put together bag by bag, in one call of torch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import OPS, Node, Sample, apply, as_node, constant, lowering
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.contraction import einsum, sum_axes
from chainrule.ops.families import kernel, zeros_like
from chainrule.ops.gathering import TAKE
from chainrule.ops.movement import broadcast, expand_dims
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.slicing import concat, slice_axis

_TABLE = np.sin(np.arange(15.0)).reshape(5, 3)
_IDS, _STARTS = np.array([1, 4, 4, 0, 2]), np.array([0, 2, 2])
_MODES = ("sum", "mean", "max")


def _members(ids: Node, starts: Node, bags: int, padding: int, include_last: bool) -> Node:
    """Whether a position belongs to a bag: ``bags x positions``; what is padding belongs to none."""
    places = constant(np.arange(int(ids.shape[0])), starts.type.dtype)
    last = constant(np.asarray([int(ids.shape[0])]), starts.type.dtype)
    edges = starts if include_last else concat([starts, last], axis=0)
    low, high = (expand_dims(slice_axis(edges, 0, k, k + bags), (1,)) for k in (0, 1))
    inside = compare("ge", places, low) * compare("lt", places, high)
    return inside if padding < 0 else inside * compare("ne", ids, constant(padding, ids.type.dtype))


def _bag(table: Node, ids: Node, starts: Node, *weights: Node, mode: str, padding: int, include_last: bool) -> Node:
    if table.type.rank != 2 or ids.type.rank != 1 or starts.type.rank != 1:
        raise ShapeError("bags of a table", given=f"{table.type}, {ids.type}, {starts.type}")
    bags = int(starts.shape[0]) - include_last
    members = _members(ids, starts, bags, padding, include_last)
    rows = apply(TAKE, table, ids, axis=0)
    if mode == "max":
        spread = broadcast(expand_dims(rows, (0,)), (bags, *rows.shape))
        there = broadcast(expand_dims(members, (2,)), spread.shape)
        lowest = as_node(-math.inf, like=rows)
        most = apply(OPS["amax"], where(there, spread, lowest), axes=(1,), keepdims=False)
        return where(compare("eq", most, -math.inf), zeros_like(most), most)
    share = iverson(members, like=table)
    if weights:
        share = share * weights[0]
    total = einsum("bn,nd->bd", share, rows)
    if mode == "sum":
        return total
    counts = sum_axes(iverson(members, like=table), (1,), keepdims=True)
    return total / where(compare("eq", counts, 0.0), as_node(1.0, like=table), counts)


def _torch(node: Node, x: list[str]) -> str:
    p = node.params
    weights = x[3] if len(x) > 3 else "None"
    options = f"False, {_MODES.index(p['mode'])}, False, {weights}, {p['include_last']}, {p['padding']}"
    return f"torch.ops.aten._embedding_bag({', '.join(x[:3])}, {options})[0]"


BAG = kernel(
    "embedding_bag",
    call="",
    torch=_torch,
    expansion=_bag,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    samples=(
        Sample((_TABLE, _IDS, _STARTS), {"mode": "sum", "padding": -1, "include_last": False}),
        Sample((_TABLE, _IDS, _STARTS), {"mode": "mean", "padding": 4, "include_last": False}),
        Sample((_TABLE, _IDS[[0, 1, 3]], np.array([0, 2, 3])), {"mode": "max", "padding": -1, "include_last": True}),
        Sample(
            (_TABLE, _IDS, _STARTS, np.linspace(0.5, 2.0, 5)), {"mode": "sum", "padding": -1, "include_last": False}
        ),
    ),
    error_samples=(Sample((_TABLE[0], _IDS, _STARTS), {"mode": "sum", "padding": -1, "include_last": False}),),
    source="torch.nn.EmbeddingBag",
)


@lowering("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    table: Node,
    ids: Node,
    starts: Node,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Node | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> list[Any]:
    """The bags; what else the kernel returns is for its own backward."""
    if scale_grad_by_freq:
        raise UnsupportedOpError("bags whose gradient is scaled by frequency", instead="scale_grad_by_freq=False")
    weights = [] if per_sample_weights is None else [per_sample_weights]
    options = {"mode": _MODES[mode], "padding": padding_idx, "include_last": bool(include_last_offset)}
    return [apply(BAG, table, ids, starts, *weights, **options), None, None, None]
