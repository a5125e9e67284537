"""Attention that starts saturated: logits so large that a softmax picks one key and passes no gradient to the others.

Part of the audit of predicted moments (``moments_audit``); the logits of a fused kernel are the product of its queries
and keys, those of one that is written out are followed from the product to the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from chainrule.ir import Node, TensorType
from chainrule.ir.field import Field
from chainrule.verbs.moments import Departure
from chainrule.verbs.scaling import factor_of

_LOGITS = 9.0  # mean square of logits: a standard deviation of 3
_MASKED = 1e8  # a mean square that only a mask has


def saturated(trace: Any, run: Any, names: Mapping[Node, str]) -> Iterator[Departure]:
    """The first attention whose logits are too large."""
    for node in trace.graph.nodes:
        if not isinstance(node.type, TensorType):
            continue
        found = _of_kernel(node, run) if node.op.name == "attention" else _written(node, trace, run)
        if found is None or not _LOGITS < found[0] < _MASKED:
            continue
        size, query = found
        yield Departure(
            "saturated",
            "warning",
            _maker(query, run, names) or "the queries",
            "forward",
            f"logits of standard deviation {math.sqrt(size):.3g} before the softmax: it picks one key, and the "
            "gradient of the rest is lost",
            "E[l^2] = scale^2 d E[q^2] E[k^2]",
            f"queries smaller by {math.sqrt(size):.3g}, or a scale of 1 / sqrt(d)",
        )
        return


def _of_kernel(node: Node, run: Any) -> tuple[float, Node] | None:
    query, key = (run.value(i) for i in node.inputs[:2])
    if not isinstance(query, Field) or not isinstance(key, Field) or not query.known or not key.known:
        return None
    width = int(node.inputs[0].shape[-1])  # type: ignore[arg-type]
    scale = node.params.get("scale") or 1 / math.sqrt(width)
    return scale**2 * width * query.mean_square * key.mean_square, node.inputs[0]


def _written(node: Node, trace: Any, run: Any) -> tuple[float, Node] | None:
    """A softmax over a product of two values that depend on data, scaled and masked on the way."""
    if node.op.sums_to_one is None or not node.inputs:
        return None
    at, factor = node.inputs[0], 1.0
    for _ in range(12):
        if "operands" in at.params and len(at.inputs) == 2:
            if any(i in trace.values for i in at.inputs):
                return None  # a product with a weight: scores of classes, not of keys
            value = run.value(at)
            return (factor**2 * value.mean_square, at.inputs[0]) if value is not None and value.known else None
        scale = factor_of(at)
        if scale is not None:
            factor *= scale
        elif at.op.name not in ("add", "sub", "where") and len(at.inputs) != 1:
            return None
        onward = [i for i in at.inputs if i.inputs and i.number is None and i.type.is_float and i.type.rank > 1]
        if not onward:
            return None
        at = max(onward, key=lambda i: len(run.value(i).sources) if run.value(i) is not None else 0)
    return None


def _maker(node: Node, run: Any, names: Mapping[Node, str]) -> str | None:
    """The module that made a value, through what only moves it."""
    for _ in range(12):
        name = names.get(run.image.get(node, node))
        if name is not None:
            return name
        if not node.inputs:
            return None
        node = node.inputs[0]
    return None
