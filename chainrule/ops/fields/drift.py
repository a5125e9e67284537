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
from chainrule.ir.field import Field
from chainrule.ops.fields.align import broadcasted

_WEIGHTED = frozenset({"linear", "convolution", "conv", "conv_transpose"})
_WINDOWED = _WEIGHTED - {"linear"}
_CONSERVING = frozenset(
    "reshape cast contiguous expand_dims squeeze broadcast slice pad flip roll take mean sum avg_pool adaptive_avg_pool "
    "max_pool mul matmul einsum add sub concat".split()
)


def multiple(g: Field, y: Field) -> float:
    """a of g = a y + h."""
    return g.drift * float(np.sqrt(g.mean_square / y.mean_square)) if g.drift and y.mean_square > 0 else 0.0


def carried(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], parts: Sequence[Field | None]
) -> list[Field | None]:
    """The cotangents of an op's inputs with the drift that they have from that of its output's."""
    name = node.op.name
    if name not in _WEIGHTED and name not in _CONSERVING and name != "attention":
        return list(parts)
    if not g.drift or not y.known or not y.mean_square > 0:
        return [replace(p, drift=0.0) if isinstance(p, Field) and p.drift else p for p in parts]
    whole = multiple(g, y) * y.mean_square * float(np.prod(y.shape))
    found: list[Field | None] = []
    for k, (x, part) in enumerate(zip(inputs, parts, strict=True)):
        if part is None or not part.known or not part.mean_square > 0 or not x.mean_square > 0:
            found.append(part)
            continue
        a = whole * _share(name, k, x, y, inputs) / (float(np.prod(x.shape)) * x.mean_square)
        if a and not x.fresh and (name in _WEIGHTED or any(f.fresh for f in inputs)):
            part = _along(part, x, a, name in _WINDOWED)
        drift = float(np.clip(a * np.sqrt(x.mean_square / part.mean_square), -1.0, 1.0))
        found.append(replace(part, drift=drift, alignment=max(part.alignment, drift**2)))
    return found


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


def _along(part: Field, x: Field, a: float, alone: bool) -> Field:
    """The cotangent of a layer's input with its part a x. ``alone``: its mean square lacks it as well."""
    (part, along), _ = broadcasted([part, replace(x, array=None)], len(part.dims), part.shape)
    more = a * a * along.mean_square
    if alone:
        part = replace(part, second=part.second + a * a * along.second)
        before = 1.0
    else:
        before = max(1.0 - more / part.mean_square, 0.0)
    return replace(part, pairs=part.pairs * before + a * a * along.pairs)
