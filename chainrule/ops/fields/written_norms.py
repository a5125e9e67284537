"""Normalisations that a program writes with single ops: ``x * rsqrt(mean(x^2) + eps)`` and its relatives.

Taken op by op, a value and the root of its own mean square would count as independent. Recognised as a whole, the
result has mean square one for certain.
"""

from __future__ import annotations

from dataclasses import dataclass

from chainrule.ir import Node

_SAME = ("cast", "contiguous", "broadcast")


@dataclass(frozen=True)
class WrittenNorm:
    """``x`` normalised along ``axes``; ``inner``: the values in between, from the result back."""

    x: Node
    axes: tuple[int, ...]
    eps: float
    centre: bool
    inner: tuple[Node, ...]


def written_norm(node: Node) -> WrittenNorm | None:
    """The normalisation that a product or quotient is, or None."""
    name = node.op.name
    if name not in ("mul", "div") or len(node.inputs) != 2:
        return None
    orders = [tuple(node.inputs)] if name == "div" else [tuple(node.inputs), tuple(reversed(node.inputs))]
    for value, factor in orders:
        inner: list[Node] = []
        square = _under_root(factor, name == "div", inner)
        if square is None:
            continue
        mean, eps = square
        axes = _axes(mean)
        if axes is None:
            continue
        inner.append(mean)
        body = _plain(mean.inputs[0], inner)
        if not _is_square(body):
            continue
        inner.append(body)
        base = _plain(body.inputs[0], [])
        if base is not _plain(value, []):
            continue
        centred = _centred(base, axes)
        if centred is not None:
            return WrittenNorm(centred, axes, eps, True, tuple(inner))
        return WrittenNorm(value, axes, eps, False, tuple(inner))
    return None


def _plain(node: Node, inner: list[Node]) -> Node:
    """The value under casts and copies."""
    while node.op.name in _SAME:
        inner.append(node)
        node = node.inputs[0]
    return node


def _under_root(factor: Node, divided: bool, inner: list[Node]) -> tuple[Node, float] | None:
    """(the mean of squares, eps) of a reciprocal root that is multiplied, or of a root that is divided by."""
    factor = _plain(factor, inner)
    name = factor.op.name
    inner.append(factor)
    if name == "pow":
        exponent = factor.inputs[1].number
        if exponent != (0.5 if divided else -0.5):
            return None
    elif name != ("sqrt" if divided else "rsqrt"):
        return None
    under = _plain(factor.inputs[0], inner)
    eps = 0.0
    if under.op.name == "add":
        numbers = [i.number for i in under.inputs]
        k = next((k for k, n in enumerate(numbers) if n is not None), None)
        if k is None:
            return None
        inner.append(under)
        eps = float(numbers[k])  # type: ignore[arg-type]
        under = _plain(under.inputs[1 - k], inner)
    return under, eps


def _axes(mean: Node) -> tuple[int, ...] | None:
    if mean.op.name != "mean":
        return None
    rank = mean.inputs[0].type.rank
    axes = mean.params.get("axes")
    return tuple(range(rank)) if axes is None else tuple(a % rank for a in axes)


def _is_square(node: Node) -> bool:
    if node.op.name == "pow":
        return node.inputs[1].number == 2
    return node.op.name == "mul" and node.inputs[0] is node.inputs[1]


def _centred(node: Node, axes: tuple[int, ...]) -> Node | None:
    """x of ``x - mean(x)`` along these axes."""
    if node.op.name != "sub":
        return None
    x, mean = (_plain(i, []) for i in node.inputs)
    found = _axes(mean)
    return x if found == axes and _plain(mean.inputs[0], []) is x else None
