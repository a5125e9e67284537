"""Fields through normalisations. The mean over many elements is taken as certain (law of large numbers).

``layer_norm``, ``group_norm``, ``instance_norm``, ``batch_norm`` in training: centre along some dimensions, divide by
the deviation there. In evaluation batch norm divides by kept numbers and is affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir.factors import regrouped
from chainrule.ir.field import Field, iid
from chainrule.ops.fields.contraction import contracted
from chainrule.ops.fields.elementwise import added, multiplied, scaled
from chainrule.ops.fields.functions import logarithm, of_logarithm, weighted
from chainrule.ops.fields.layers import fitted
from chainrule.ops.fields.registry import rule, sizes
from chainrule.ops.fields.standardised import (
    along_vector,
    back_through_norm,
    centred_along,
    effective_count,
    share_along,
    standardised,
)


def _affine(y: Field, weight: Field | None, bias: Field | None, shape: Sequence[int]) -> Field:
    if weight is not None:
        own = y.own if weight.array is not None else None
        y = replace(multiplied([y, weight], shape), own=own)
    if bias is not None:
        y = added([y, bias], (1.0, 1.0), shape)
    return y


def _shaped(value: Field | None, rank: int, channel: int | None) -> Field | None:
    """A per-channel value beside the normalised one: (C,) at dimension ``channel``, or over the last dimensions."""
    if value is None or channel is None:
        return value
    return replace(value, dims=(*((),) * channel, *value.dims, *((),) * (rank - channel - 1)))


def _norm_backward(
    g: Field,
    x: Field,
    weight: Field | None,
    bias: Field | None,
    dims: Sequence[int],
    eps: float,
    centre: bool,
    channel: int | None,
    wanted: Sequence[bool],
) -> list[Field | None]:
    shape = x.shape
    normal, spread = standardised(x, dims, eps, centre)
    found: list[Field | None] = [None] * len(wanted)
    w = _shaped(weight, len(shape), channel)
    if wanted[0]:
        inner = _times_weight(g, w, shape)
        along = share_along(g, normal, dims) if channel is not None else along_vector(inner, shape, dims)
        found[0] = back_through_norm(
            inner, normal, x, spread, dims, eps, centre, effective_count(x, dims), along, channel is None
        )
    position = 1
    for value, factor in ((weight, normal), (bias, None)):
        if value is None:
            continue
        if wanted[position]:
            part = weighted(g, factor, shape) if factor is not None else g
            small = fitted(part, _shaped_sizes(value, len(shape), channel))
            found[position] = regrouped(small, value.shape)
        position += 1
    return found


def _times_weight(g: Field, weight: Field | None, shape: Sequence[int]) -> Field:
    """The cotangent of what the weight multiplies; as much along it as g is along the product."""
    if weight is None:
        return g
    return replace(
        multiplied([g, weight], shape),
        alignment=g.alignment,
        own_alignment=g.own_alignment,
        drift=g.drift,
        echo_drift=g.echo_drift,
    )


def _shaped_sizes(value: Field, rank: int, channel: int | None) -> tuple[int, ...]:
    if channel is None:
        return value.shape
    return (*(1,) * channel, *value.shape, *(1,) * (rank - channel - 1))


# ---- the ops -----------------------------------------------------------------------------------------------
def _layer_dims(node: Node) -> list[int]:
    rank = len(node.inputs[0].shape)
    return list(range(rank - int(node.params["rank"]), rank))


def _layer_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    x, *affine = inputs
    return _norm_backward(g, x, *_two(affine), _layer_dims(node), node.params["eps"], True, None, wanted)


def _two(affine: Sequence[Field]) -> tuple[Field | None, Field | None]:
    return (affine[0] if affine else None), (affine[1] if len(affine) > 1 else None)


@rule("layer_norm_affine", backward=_layer_back)
def _layer_norm(node: Node, inputs: Sequence[Field]) -> Field:
    x, *affine = inputs
    y, _ = standardised(x, _layer_dims(node), node.params["eps"])
    return _affine(y, *_two(affine), sizes(node.shape))


def _batch_dims(node: Node) -> list[int]:
    return [0, *range(2, len(node.inputs[0].shape))]


def _batch_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    x, *affine = inputs
    return _norm_backward(g, x, *_two(affine), _batch_dims(node), node.params["eps"], True, 1, wanted)


@rule("batch_norm", backward=_batch_back)
def _batch_norm(node: Node, inputs: Sequence[Field]) -> Field:
    x, *affine = inputs
    y, _ = standardised(x, _batch_dims(node), node.params["eps"])
    weight, bias = (_shaped(a, len(x.dims), 1) for a in _two(affine))
    return _affine(y, weight, bias, x.shape)


def _tracked_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    x, _, _, *affine = inputs
    some = [wanted[0], *wanted[3:]]
    found = _norm_backward(g, x, *_two(affine), _batch_dims(node), node.params["eps"], True, 1, some)
    return [found[0], None, None, *found[1:]]


@rule("batch_norm_tracked", backward=_tracked_back)
def _batch_norm_tracked(node: Node, inputs: Sequence[Field]) -> Field:
    return _batch_norm(node, [inputs[0], *inputs[3:]])


def _rms_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    x, *weight = inputs
    return _norm_backward(g, x, *_two(weight), _rms_dims(node), _rms_eps(node), False, None, wanted)


def _rms_dims(node: Node) -> list[int]:
    rank = len(node.shape)
    return list(range(rank - len(node.params["normalized_shape"]), rank))


def _rms_eps(node: Node) -> float:
    return float(node.params.get("eps") or 1.2e-7)


@rule("rms_norm", backward=_rms_back)
def _rms_norm(node: Node, inputs: Sequence[Field]) -> Field:
    x, *weight = inputs
    y, _ = standardised(x, _rms_dims(node), _rms_eps(node), centre=False)
    return _affine(y, *_two(weight), sizes(node.shape))


def _named(node: Node, inputs: Sequence[Field]) -> dict[str, Field]:
    given = node.params.get("given", ())
    return dict(zip(given, inputs[len(inputs) - len(given) :], strict=True))


def _grouped(x: Field, groups: int) -> Field:
    batch, channels, *rest = x.shape
    return regrouped(x, (batch, groups, channels // groups, int(np.prod(rest)) if rest else 1))


def _group_norm_parts(node: Node, inputs: Sequence[Field]) -> tuple[Field, int, dict[str, Field]]:
    x = inputs[0]
    groups = int(node.params.get("num_groups", x.shape[1]))
    return x, groups, _named(node, inputs)


def _group_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    x, groups, named = _group_norm_parts(node, inputs)
    weight = named.get("weight")
    eps = float(node.params["eps"])
    parts = _grouped(x, groups)
    normal, spread = standardised(parts, (2, 3), eps)
    found: list[Field | None] = [None] * len(inputs)
    if wanted[0]:
        w = _shaped(weight, len(x.dims), 1)
        inner = _times_weight(g, w, x.shape)
        product = _grouped(weighted(g, regrouped(normal, x.shape), x.shape), groups)
        along = share_along(_grouped(g, groups), normal, (2, 3), product)
        back = back_through_norm(
            _grouped(inner, groups), normal, parts, spread, (2, 3), eps, True, effective_count(parts, (2, 3)), along
        )
        found[0] = regrouped(back, x.shape)
    whole = regrouped(normal, x.shape)
    for position, (name, value) in enumerate(named.items(), start=1):
        if wanted[position] and name in ("weight", "bias"):
            part = weighted(g, whole, x.shape) if name == "weight" else g
            found[position] = regrouped(fitted(part, _shaped_sizes(value, len(x.dims), 1)), value.shape)
    return found


@rule("group_norm", "instance_norm", backward=_group_back)
def _group_norm(node: Node, inputs: Sequence[Field]) -> Field:
    x, groups, named = _group_norm_parts(node, inputs)
    y, _ = standardised(_grouped(x, groups), (2, 3), float(node.params["eps"]))
    weight, bias = (_shaped(named.get(n), len(x.dims), 1) for n in ("weight", "bias"))
    return _affine(regrouped(y, x.shape), weight, bias, sizes(node.shape))


@rule("batch_norm_tracked_recorded")
def _statistics(node: Node, inputs: Sequence[Field]) -> list[Field]:
    """The output, each channel's mean and reciprocal deviation, and the kept statistics after the batch."""
    x, mean, variance, *affine = inputs
    y = _batch_norm(node, [x, *affine])
    dims, eps, share = _batch_dims(node), node.params["eps"], node.params["momentum"]
    level = contracted([x], [list(range(len(x.dims)))], [1], ("mean", node))
    count = float(np.prod([x.shape[d] for d in dims]))
    level = scaled(level, 1.0 / count)
    _, spread = centred_along(x, dims)
    v = float(np.mean(spread))
    n = max(effective_count(x, dims), 2.0)
    deviation = iid(
        (x.shape[1],),
        v,
        v * v * (1 + 2 / n),
        kind="approximate",
        sources=x.sources,
        scale={k: 2 * e for k, e in x.scale.items()},
    )
    inverse = of_logarithm(lambda u: 1 / np.sqrt(u + eps), logarithm(deviation), deviation)
    unbiased = scaled(deviation, count / max(count - 1, 1))
    shape = (x.shape[1],)
    new = [
        added([scaled(old, 1 - share), scaled(now, share)], (1.0, 1.0), shape)
        for old, now in ((mean, level), (variance, unbiased))
    ]
    return [y, level, inverse, *new]


@rule("item")
def _item(node: Node, inputs: Sequence[Any]) -> Any:
    return inputs[0][node.params["index"]]
