"""The part of a cotangent that is the same multiple of its value in every vector: g = a y + h with E[h_i y_i] = 0.

Such a part appears where a change of the values' size changes the loss, as with scores that are too large for what is
known of the classes. It is small in a single vector, but sums over samples and positions (gradients of weights, of
biases, of norms' factors) add it up. Ops that are linear in x conserve sum(g_x x) = sum(g y). Weights of a layer
y = W x are those of its backward pass as well: W' W x has the part (|y|^2 / |x|^2) x, which independent weights lack.
A norm takes the part away (``standardised.back_through_norm``), a function bends it (``functions.passed``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, worst
from chainrule.ops.fields.align import broadcasted
from chainrule.ops.fields.tied import echo_share, spike_share

_WEIGHTED = frozenset({"linear", "convolution", "conv", "conv_transpose"})
_PRODUCTS = frozenset({"matmul", "einsum", "mul"})
_WINDOWED = _WEIGHTED - {"linear"}
_CONSERVING = frozenset(
    (
        "reshape cast contiguous expand_dims squeeze broadcast slice pad flip roll take mean sum avg_pool "
        "adaptive_avg_pool max_pool mul matmul einsum add sub concat"
    ).split()
)
_LINEAR = (_WEIGHTED | _CONSERVING) - {"max_pool"}  # in each operand


def depending(node: Node, g: Field, inputs: Sequence[Field], parts: Sequence[Field | None]) -> list[Field | None]:
    """The cotangents of an op's inputs with the sources that they have where the op reads the values themselves."""
    if node.op.name in _LINEAR:
        return list(parts)
    sources = frozenset().union(*(f.sources for f in (g, *inputs)))
    return [p if p is None else replace(p, sources=p.sources | sources) for p in parts]


def carried(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], parts: Sequence[Field | None]
) -> list[Field | None]:
    """The cotangents of an op's inputs with the drift that they have from that of its output's."""
    name = node.op.name
    if name not in _WEIGHTED and name not in _CONSERVING and name != "attention":
        return list(parts)
    if not (g.drift or g.echo_drift) or not y.known or not y.mean_square > 0:
        return [replace(p, drift=0.0, echo_drift=0.0) if isinstance(p, Field) else p for p in parts]
    size = float(np.sqrt(g.mean_square * y.mean_square)) * float(np.prod(y.shape))
    whole, more = g.drift * size, g.echo_drift * size
    found: list[Field | None] = []
    for k, (x, part) in enumerate(zip(inputs, parts, strict=True)):
        if part is None or not part.known or not part.mean_square > 0 or not x.mean_square > 0:
            found.append(part)
            continue
        along, excess = _parts(name, k, x, y, inputs, whole, more)
        # what lies along the echo is in no other vector
        others = along - (excess / (1.0 - echo_share(x)) if excess and echo_share(x) < 0.99 else 0.0)
        a = others / (float(np.prod(x.shape)) * x.mean_square)
        if a and not x.fresh and (name in _WEIGHTED or (name in _PRODUCTS and any(f.fresh for f in inputs))):
            part = _along(part, x, a, name in _WINDOWED)
        size = float(np.sqrt(part.mean_square * x.mean_square)) * float(np.prod(x.shape))
        drift = float(np.clip(along / size, -1.0, 1.0))
        found.append(replace(part, drift=drift, echo_drift=excess / size, alignment=max(part.alignment, drift**2)))
    return found


def _parts(
    name: str, k: int, x: Field, y: Field, inputs: Sequence[Field], whole: float, more: float
) -> tuple[float, float]:
    """(sum of g_x x, what it has more along the echo in x), from the same of y."""
    if name in ("add", "sub") and y.echo is not None and more:
        echo = whole * echo_share(y) + more
        rest = max(y.mean_square - y.echo.mean_square, 1e-300)
        if x.echo is None:
            return (whole - echo) * min(x.mean_square / rest, 1.0), 0.0
        along = echo + (whole - echo) * min(max(x.mean_square - x.echo.mean_square, 0.0) / rest, 1.0)
        return along, echo - echo_share(x) * along
    if name == "linear":
        along = whole * _share(name, k, x, y, inputs)
        tied = k == 0 and y.spike is not None and x.echo is not None
        return along, whole * spike_share(y) + more - echo_share(x) * along if tied else 0.0
    along = whole * _share(name, k, x, y, inputs)
    kept = (x.echo is not None and y.echo is not None) or (x.spike is not None and y.spike is not None)
    return along, more if kept else 0.0


def _share(name: str, k: int, x: Field, y: Field, inputs: Sequence[Field]) -> float:
    """The part of y that is linear in this input, of y's mean square."""
    if name in ("add", "sub"):
        return min(x.mean_square / y.mean_square, 1.0)
    if name == "concat":
        return min(float(np.prod(x.shape)) * x.mean_square / (float(np.prod(y.shape)) * y.mean_square), 1.0)
    if name == "attention":
        return 1.0 if k == 2 else 0.0
    if name in _WEIGHTED and len(inputs) > 2:
        return max(1.0 - inputs[2].mean_square / y.mean_square, 0.0) if k < 2 else 0.0
    return 1.0


def reaching(along: Field, g: Field) -> Field:
    """A part of a cotangent where the cotangent is not zero (ignored positions, padding), larger there accordingly."""
    alive = (g.second > 1e-12 * g.mean_square).astype(float)
    share = float(alive.mean())
    if share == 1.0 or share == 0.0:
        return along
    weight = alive / share
    return replace(along, second=along.second * weight**2, pairs=along.pairs * pair.outer(weight, weight, along.axes))


def _along(part: Field, x: Field, a: float, alone: bool) -> Field:
    """The cotangent of a layer's input with its part a x. ``alone``: its mean square lacks it as well."""
    (part, along), _ = broadcasted([part, replace(x, array=None)], len(part.dims), part.shape)
    along = reaching(along, part)
    more = a * a * along.mean_square
    if alone:
        part = replace(part, second=part.second + a * a * along.second)
        before = 1.0
    else:
        before = max(1.0 - more / part.mean_square, 0.0)
    pairs = part.pairs * before + a * a * along.pairs
    return replace(part, pairs=pairs, kind=worst(part.kind, "approximate"), mean_kind="")
