"""The triangles of a matrix: ``tril(X)`` keeps the diagonal and what is below it, ``triu(X)`` what is above."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Op, Rewrite, Sample, TensorType, apply, known_facts, shape_text
from chainrule.ops.contraction import einsum, eye, permute
from chainrule.ops.families import linear

_X = np.arange(12.0).reshape(3, 4) / 7 - 0.6


def _matrix(x: TensorType, *, diagonal: int) -> TensorType:
    if x.rank < 2:
        raise ShapeError("a triangle of what is no matrix", given=f"({shape_text(x.shape)})")
    return x


def _lift(node: Node, inputs: list[Node], extra: tuple[Any, ...]) -> Node:
    """The op works on the last two dimensions: what comes behind them is moved to the front and back again."""
    (x,) = inputs
    rank, own = x.type.rank, node.type.rank
    front = permute(x, (*range(own, rank), *range(own)))
    return permute(apply(node.op, front, **node.params), (*range(rank - own, rank), *range(rank - own)))


def _triangle(name: str, value: Any, kept: str, lost: str) -> Op:
    def build(x: Node, diagonal: Any = 0) -> Node:
        number = diagonal.number if isinstance(diagonal, Node) else diagonal
        if number is None or number != int(number):
            raise ShapeError(f"{name}: a diagonal that is no whole number", required=f"{name}(X, 1)")
        return apply(found, x, diagonal=int(number))

    def rewrite(node: Node) -> Node | None:
        (x,) = node.inputs
        facts = known_facts(x) if node.params["diagonal"] == 0 else frozenset()
        if kept in facts:
            return x
        return einsum(([(0, 0), (0, 1)], (0, 1)), x, eye(x.shape[0], x.type.dtype)) if lost in facts else None

    def indexed(p: Any, node: Node, indices: tuple[Any, ...]) -> Any:
        if node.params["diagonal"] != 0:
            return None
        i, j = indices[-2:] if kept == "lower" else indices[:-3:-1]
        return p.where_at_least(i, j, node.inputs[0], indices)

    def written(p: Any, node: Node) -> str:
        diagonal = node.params["diagonal"]
        return p.child(node.inputs[0], 0) + (f", {diagonal}" if diagonal else "")

    found = linear(
        name,
        family="kernel",
        moments=None,
        shape=_matrix,
        value=lambda x, *, diagonal: value(np.asarray(x), diagonal),
        transpose=lambda g, y, x, *, diagonal: apply(found, g, diagonal=diagonal),
        lift=_lift,
        text=lambda p, node: f"{name}({written(p, node)})",
        latex=lambda p, node: rf"\operatorname{{{name}}}\left({written(p, node)}\right)",
        indexed=indexed,
        torch=lambda node, x: f"{x[0]}.{name}({node.params['diagonal']})",
        code=lambda w, node: f"{w.np}.{name}({w(0)}, {node.params['diagonal']})",
        aten={name: build},
        names=(name,),
        build=build,
        rewrites=(Rewrite(rewrite),),
        samples=(Sample((_X,), {"diagonal": 0}), Sample((_X,), {"diagonal": -1})),
        error_samples=(Sample((_X[0],), {"diagonal": 0}),),
        source=f"numpy.{name}",
    )
    return found


TRIL = _triangle("tril", np.tril, "lower", "upper")
TRIU = _triangle("triu", np.triu, "upper", "lower")
