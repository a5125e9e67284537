"""The triangles of a matrix: ``tril(X)`` keeps the diagonal and what is below it, ``triu(X)`` what is above."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Op, Rewrite, Sample, TensorType, apply, known_facts, shape_text
from chainrule.ops.contraction import einsum, eye, permute
from chainrule.ops.families import linear
from chainrule.ops.probe_moments import ProbeRule

_X = np.arange(9.0).reshape(3, 3) / 7 - 0.4


def _shape(x: TensorType) -> TensorType:
    if x.rank < 2:
        raise ShapeError("a triangle of what is no matrix", given=f"({shape_text(x.shape)})")
    return x


def _lift(node: Node, inputs: list[Node], extra: tuple[Any, ...]) -> Node:
    """The op works on the last two dimensions: what comes behind them is moved to the front and back again."""
    (x,) = inputs
    rank, own = x.type.rank, node.type.rank
    front = permute(x, (*range(own, rank), *range(own)))
    return permute(apply(node.op, front), (*range(rank - own, rank), *range(rank - own)))


def _triangle(name: str, value: Any, kept: str, lost: str, sign: str) -> Op:
    def rewrite(node: Node) -> Node | None:
        (x,) = node.inputs
        facts = known_facts(x)
        if kept in facts or x.op is node.op:
            return x
        if lost in facts:
            return einsum(([(0, 0), (0, 1)], (0, 1)), x, eye(x.shape[0], x.type.dtype))
        return None

    def indexed(p: Any, node: Node, indices: tuple[Any, ...]) -> Any:
        i, j = indices[-2:]
        first, second = (i, j) if sign == ">=" else (j, i)
        return p.where_at_least(first, second, node.inputs[0], indices)

    return linear(
        name,
        shape=_shape,
        value=value,
        transpose=lambda g, y, x: apply(y.op, g),
        lift=_lift,
        text=f"{name}({{0}})",
        latex=rf"\operatorname{{{{{name}}}}}\left({{0}}\right)",
        indexed=indexed,
        torch=f"torch.{name}({{0}})",
        names=(name,),
        rewrites=(Rewrite(rewrite),),
        aten={name: lambda x, diagonal=0: apply(_OPS[name], x) if diagonal == 0 else _offset(diagonal)},
        samples=(Sample((_X,)), Sample((np.stack([_X[:2], 1 - _X[1:]]),))),
        error_samples=(Sample((_X[0],)),),
        moments=ProbeRule(),  # zeros among the elements: no one law for all of them
        source=f"numpy.{name}: the elements with i {sign} j",
    )


def _offset(diagonal: int) -> Node:
    from_where = "below" if diagonal < 0 else "above"
    raise ShapeError(f"a triangle {from_where} the diagonal", given=f"diagonal={diagonal}", required="diagonal=0")


TRIL = _triangle("tril", np.tril, "lower", "upper", ">=")
TRIU = _triangle("triu", np.triu, "upper", "lower", "<=")
_OPS = {"tril": TRIL, "triu": TRIU}
