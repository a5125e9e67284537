"""Fields through linear layers, convolutions and what is elementwise: sums, products, quotients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from chainrule.ir import Node
from chainrule.ir.field import Field, fixed, unknown, worst
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.contraction import contracted, with_alignment
from chainrule.ops.fields.elementwise import added, multiplied, scaled
from chainrule.ops.fields.functions import applied, passed, weighted
from chainrule.ops.fields.registry import rule, sizes
from chainrule.ops.fields.tied import scored


# ---- sums and products -------------------------------------------------------------------------------------
def fitted(g: Field, shape: Sequence[int]) -> Field:
    """A cotangent summed over what broadcasting repeated."""
    extra = len(g.dims) - len(shape)
    gone = [d for d in range(len(g.dims)) if d < extra or (shape[d - extra] == 1 and g.shape[d] != 1)]
    if not gone:
        return g
    kept = [d for d in range(len(g.dims)) if d not in gone]
    total = contracted([g], [list(range(len(g.dims)))], kept, "sum")
    total = replace(total, normal=g.normal)
    return put_back(total, [d - extra for d in gone if d >= extra])


def put_back(value: Field, dims: Sequence[int]) -> Field:
    """Dimensions of size 1 inserted at these places of the result."""
    result = list(value.dims)
    for d in sorted(dims):
        result.insert(d, ())
    return replace(value, dims=tuple(result))


def _add_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    signs = (1.0, -1.0 if node.op.name == "sub" else 1.0)
    found: list[Field | None] = []
    for x, i, w, s in zip(inputs, node.inputs, wanted, signs, strict=True):
        part = fitted(scaled(g, s), sizes(i.shape)) if w else None
        if part is not None and (g.alignment or g.own_alignment != 1.0):
            share = min(x.mean_square / max(y.mean_square, 1e-300), 1.0)
            part = replace(
                part,
                alignment=g.alignment * share * x.unevenness / y.unevenness,
                own_alignment=1.0 + (g.own_alignment - 1.0) * share,
            )
        found.append(part)
    return found


@rule("add", backward=_add_backward)
def _add(node: Node, inputs: Sequence[Field]) -> Field:
    return added(inputs, (1.0, 1.0), sizes(node.shape))


@rule("sub", backward=_add_backward)
def _sub(node: Node, inputs: Sequence[Field]) -> Field:
    return added(inputs, (1.0, -1.0), sizes(node.shape))


def _mul_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    a, b = inputs
    shape = sizes(node.shape)
    found: list[Field | None] = []
    for i, w, own, other in zip(node.inputs, wanted, (a, b), (b, a), strict=True):
        if not w:
            found.append(None)
        elif own.array is not None and other.normal:  # a given weight of a normal value that a function follows
            found.append(fitted(weighted(g, other, shape), sizes(i.shape)))
        elif other.array is not None and other.array.size == 1:
            found.append(fitted(scaled(g, float(other.array.ravel()[0])), sizes(i.shape)))
        else:
            part = fitted(multiplied([g, other], shape), sizes(i.shape))
            if other.array is not None:  # given factors, which the value has as well
                found.append(replace(part, alignment=g.alignment, own_alignment=g.own_alignment))
                continue
            moving = other.degree if not other.fresh else 0.0
            found.append(replace(part, own_alignment=1.0 + moving))
    return found


@rule("mul", backward=_mul_backward)
def _mul(node: Node, inputs: Sequence[Field]) -> Field:
    return _said(multiplied(inputs, sizes(node.shape)), inputs)


def _said(found: Field, inputs: Sequence[Field]) -> Field:
    """A product, approximate where both factors depend on the same weights."""
    a, b = inputs
    if a.array is not None or b.array is not None or not a.sources & b.sources:
        return found
    return replace(
        found,
        kind=worst(found.kind, "approximate"),
        mean_kind="",
        why="factors of common sources, taken as independent",
    )


def _reciprocal(u: np.ndarray) -> np.ndarray:
    return 1.0 / u


def _div_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    _, b = inputs
    shape = sizes(node.shape)
    inverse = applied(_reciprocal, b, ())
    found: list[Field | None] = [None, None]
    if wanted[0]:
        found[0] = fitted(multiplied([g, inverse], shape), sizes(node.inputs[0].shape))
    if wanted[1]:
        found[1] = fitted(multiplied([multiplied([g, y], shape), inverse], shape), sizes(node.inputs[1].shape))
    return found


@rule("div", backward=_div_backward)
def _div(node: Node, inputs: Sequence[Field]) -> Field:
    a, b = inputs
    if b.array is not None:
        inverse = replace(applied(_reciprocal, replace(b, array=None), ()), array=1.0 / b.array)
        from_array = b.array.size == 1
        return scaled(a, float(1.0 / b.array.ravel()[0])) if from_array else multiplied([a, inverse], sizes(node.shape))
    return _said(multiplied([a, applied(_reciprocal, b, ())], sizes(node.shape)), inputs)


@rule("neg", backward=lambda node, g, y, inputs, wanted: [scaled(g, -1.0)])
def _neg(node: Node, inputs: Sequence[Field]) -> Field:
    return scaled(inputs[0], -1.0)


def _where_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    chosen, a, b = inputs
    chosen = _certain(chosen)
    found: list[Field | None] = [None, None, None]
    if chosen.array is None:
        why = "a choice by a random condition"
        return [unknown(x.shape, why, g.sources) if w else None for x, w in zip(inputs, wanted, strict=True)]
    for k, value in ((1, a), (2, b)):
        if wanted[k]:
            part = multiplied([g, chosen if k == 1 else _otherwise(chosen)], sizes(node.shape))
            found[k] = fitted(part, value.shape)
    return found


def _certain(chosen: Field) -> Field:
    """A condition that is the same in every draw and everywhere (no row of scores is all -inf) as a given one."""
    if chosen.array is None and chosen.known:
        value = float(np.ravel(chosen.mean)[0])
        if value in (0.0, 1.0) and np.all(chosen.mean == value) and np.all(chosen.second == value):
            return replace(chosen, array=np.full((1,) * len(chosen.axes), value))
    return chosen


def _otherwise(chosen: Field) -> Field:
    assert chosen.array is not None
    other = 1.0 - np.broadcast_to(chosen.array, [a.size for a in chosen.axes])
    return replace(fixed(other, [a.lags for a in chosen.axes]), dims=chosen.dims)


@rule("where", backward=_where_backward)
def _where(node: Node, inputs: Sequence[Field]) -> Field:
    """By a given condition: a mixture of both, or scores with a mask."""
    chosen, a, b = inputs
    chosen = _certain(chosen)
    shape = sizes(node.shape)
    if chosen.array is not None and chosen.array.size == 1:
        taken = a if chosen.array.ravel()[0] else b
        if taken.shape == shape:
            return taken
    if chosen.array is None:
        return unknown(shape, "a choice by a random condition", chosen.sources | a.sources | b.sources)
    if b.array is not None and b.array.size == 1 and float(b.array.ravel()[0]) < -1e6:
        seen = np.broadcast_to(chosen.array, [x.size for x in chosen.axes]).reshape(chosen.shape) > 0
        (found, _), _ = broadcasted([a, replace(chosen, array=None)], len(shape), shape)
        return replace(found, visible=seen, law=None)
    parts = [multiplied([chosen, a], shape), multiplied([_otherwise(chosen), b], shape)]
    return added(parts, (1.0, 1.0), shape)


# ---- a learned slope ----------------------------------------------------------------------------------------
def _falling(u: np.ndarray) -> np.ndarray:
    return np.minimum(u, 0.0)


def _with_slope(slope: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda u: np.where(np.asarray(u) > 0, u, slope * np.asarray(u))


def _prelu_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    x, a = inputs
    shape = sizes(node.shape)
    found: list[Field | None] = [None, None]
    if wanted[0]:
        found[0] = passed(g, _with_slope(float(np.sqrt(a.mean_square))), x, [0.0], shape)
    if wanted[1]:
        found[1] = fitted(multiplied([g, applied(_falling, x, [0.0])], shape), sizes(node.inputs[1].shape))
    return found


@rule("prelu", backward=_prelu_back)
def _prelu(node: Node, inputs: Sequence[Field]) -> Field:
    """Slopes that differ are taken at their mean square, which is what the mean square of the value needs."""
    x, a = inputs
    if not a.known:
        return unknown(sizes(node.shape), "its slopes are unknown", x.sources)
    found = applied(_with_slope(float(np.sqrt(a.mean_square))), x, [0.0])
    if a.array is not None and a.array.min() == a.array.max() >= 0:
        return replace(found, sources=x.sources | a.sources)
    return replace(
        found,
        sources=x.sources | a.sources,
        kind=worst(found.kind, a.kind, "approximate"),
        mean_kind="",
        why="slopes at their mean square",
    )


# ---- linear layers -----------------------------------------------------------------------------------------
def _linear_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    x, w, *_ = inputs
    lead = list(range(2, 2 + len(x.dims) - 1))
    found: list[Field | None] = [None] * len(inputs)
    if wanted[0]:
        back = contracted([g, w], [[*lead, 1], [1, 0]], [*lead, 0], ("back", node), copies=True)
        found[0] = with_alignment(back, g, w, x, w.shape[0], w.shape[1], _without_bias(x, w, y))
    if wanted[1]:
        found[1] = contracted([g, x], [[*lead, 1], [*lead, 0]], [1, 0], ("weight", node), copies=True)
    if len(inputs) > 2 and wanted[2]:
        found[2] = contracted([g], [[*lead, 1]], [1], ("bias", node), copies=True)
    return found


def _without_bias(x: Field, w: Field, y: Field) -> float:
    """The share of the weights' part in the mean square of a layer's output."""
    own = w.shape[1] * w.mean_square * x.mean_square
    return min(own / max(y.mean_square, 1e-300), 1.0)


@rule("linear", backward=_linear_backward)
def _linear(node: Node, inputs: Sequence[Field]) -> Field:
    x, w, *bias = inputs
    lead = list(range(2, 2 + len(x.dims) - 1))
    y = contracted([x, w], [[*lead, 0], [1, 0]], [*lead, 1], node)
    y = added([y, bias[0]], (1.0, 1.0), sizes(node.shape)) if bias else y
    return scored(y, x, w)
