"""Ops without a rule, measured: seeded draws with the operands' means and variances, and labelled as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.ir import Node, TensorType, apply, toposort, variable
from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, plain, unknown, worst
from chainrule.ops.fields.registry import sizes

_ELEMENTS = 400_000
_MOST_DRAWS = 32


def probed(node: Node, inputs: Sequence[Any]) -> Any:
    """The measured field; unknown where an operand cannot be drawn or the op cannot be computed."""
    sources = frozenset().union(*(f.sources for f in inputs if isinstance(f, Field)))
    if not isinstance(node.type, TensorType):
        return [unknown(sizes(t.shape), f"no rule for {node.op.name}", sources) for t in node.type.items]
    shape = sizes(node.shape)
    largest = max([int(np.prod(shape)), *(int(np.prod(f.shape)) for f in inputs if isinstance(f, Field))])
    if any(not isinstance(f, Field) or not f.known for f in inputs) or largest > 4 * _ELEMENTS or not inputs:
        return unknown(shape, f"no rule for {node.op.name}", sources)
    count = int(np.clip(_ELEMENTS // max(largest, 1), 2, _MOST_DRAWS))
    generator = np.random.default_rng(0)
    dims = plain(shape)
    axes = [a for dim in dims for a in dim]
    first: Any = 0.0
    tables, squares, fourths = [], [], []
    for _ in range(count):
        operands = [sampled(f, i, generator) for f, i in zip(inputs, node.inputs, strict=True)]
        try:
            with np.errstate(all="ignore"):
                value = np.asarray(node.op.value(*operands, **node.params), dtype=float)
        except Exception:  # an op that only torch can compute
            return unknown(shape, f"no rule for {node.op.name}, and no value in NumPy", sources)
        if not np.all(np.isfinite(value)):
            return unknown(shape, f"{node.op.name} of a draw is not finite", sources)
        first = first + float(np.mean(value))
        tables.append(pair.outer(value, value, axes))
        squares.append(float(np.mean(value**2)))
        fourths.append(float(np.mean(value**4)))
    q = float(np.mean(squares))
    one = (1,) * len(shape)
    table = np.mean([np.broadcast_to(t, [a.classes for a in axes]) for t in tables], axis=0)
    return Field(
        dims,
        np.full(one, first / count),
        np.full(one, q),
        table,
        kurtosis=float(np.mean(fourths)) / q**2 if q > 0 else 1.0,
        own=float(np.var(squares)) / q**2 if q > 0 else 0.0,
        sources=sources,
        kind=worst("probe", *(f.kind for f in inputs)),
        why=f"{node.op.name} measured on {count} seeded draws",
    )


def sampled(value: Field, node: Node, generator: np.random.Generator) -> np.ndarray:
    """One draw of independent elements with the field's means and variances."""
    shape = [a.size for a in value.axes]
    if value.array is not None:
        found = np.broadcast_to(value.array, shape).reshape(value.shape)
        if node.type.is_float:
            return found
        return found.astype(bool if node.type.dtype == "bool" else np.int64)
    std = np.broadcast_to(np.sqrt(value.variance), shape)
    return (np.broadcast_to(value.mean, shape) + std * generator.standard_normal(shape)).reshape(value.shape)


def _evaluated(root: Node, table: dict[Node, Any]) -> np.ndarray:
    """The value of a node, what is computed on the way kept in the table."""
    with np.errstate(all="ignore"):
        for n in toposort([root], stop=lambda n: n in table):
            if n not in table:
                table[n] = n.op.value(*(table[i] for i in n.inputs), **n.params)
    return np.asarray(table[root], dtype=float)


def probed_back(node: Node, g: Any, inputs: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    """Cotangents of an op by its derivative on seeded draws."""
    nothing = [
        unknown(sizes(i.shape), f"no derivative of {node.op.name}") if w else None
        for i, w in zip(node.inputs, wanted, strict=True)
    ]
    if node.op.vjp is None or not isinstance(g, Field) or not g.known or any(not f.known for f in inputs):
        return nothing
    leaves = [variable(f"operand {k} of a probe", i.type) for k, i in enumerate(node.inputs)]
    cotangent, result = variable("cotangent of a probe", node.type), apply(node.op, *leaves, **node.params)
    try:
        back = node.op.vjp(cotangent, result, *leaves, **node.params)
    except TypeError:
        return nothing
    generator = np.random.default_rng(1)
    squares: list[list[float]] = [[] for _ in leaves]
    for _ in range(8):
        table = {leaf: sampled(f, leaf, generator) for leaf, f in zip(leaves, inputs, strict=True)}
        table[cotangent] = sampled(g, cotangent, generator)
        for k, gx in enumerate(back):
            if gx is None or not wanted[k]:
                continue
            try:
                squares[k].append(float(np.mean(_evaluated(gx, table) ** 2)))
            except Exception:
                return nothing
    found: list[Any] = []
    for k, leaf in enumerate(leaves):
        if not squares[k]:
            found.append(nothing[k] if wanted[k] and back[k] is not None else None)
            continue
        shape = sizes(leaf.shape)
        q = np.full((1,) * len(shape), float(np.mean(squares[k])))
        dims = plain(shape)
        table_ = np.zeros([a.classes for dim in dims for a in dim])
        table_[(0,) * len(shape)] = float(np.mean(squares[k]))
        found.append(
            Field(
                dims,
                np.zeros_like(q),
                q,
                table_,
                kind=worst("probe", g.kind),
                scale=g.scale,
                lean=g.lean,
                why="measured on seeded draws",
            )
        )
    return found
