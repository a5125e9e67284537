"""Where the numbers of a value lie in memory: no part of the mathematics, but of the bits that a product gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.ir import OPS, UNARY, Node, Rewrite, Sample, TensorType, apply, product
from chainrule.ops.families import linear
from chainrule.ops.movement import reshape

CONTIGUOUS = linear(
    "contiguous",
    shape=lambda x: TensorType(x.shape, x.dtype, None, x.device),
    value=lambda x: np.ascontiguousarray(x).reshape(np.shape(x)),
    transpose=lambda g, y, x: g,
    lift=lambda node, inputs, extra: apply(node.op, *inputs),
    text="{0}",
    latex="{0}",
    precedence=UNARY,
    child_precedence=(UNARY,),
    torch="{0}.contiguous()",
    code="{0}",
    # Formulas have no memory. A traced model keeps it: which way a matrix lies decides how its product is summed.
    rewrites=(Rewrite(lambda node: node.inputs[0]),),
    samples=(Sample((np.arange(6.0).reshape(2, 3).T,), {}),),
    native=lambda m, x, **_: x,
    source="torch.Tensor.contiguous",
)


def contiguous(x: Node, **_: Any) -> Node:
    """``x`` with its numbers in the order of its dimensions."""
    return apply(CONTIGUOUS, x)


def folded_linear(x: Node, weight: Node, bias: Node | None = None) -> Node:
    """A linear map of the rows of a tensor that does not lie in order, as torch computes it on its tape.

    There, and only there, all rows go through one product, and the bias is added afterwards.
    """
    rows = reshape(x, (product(x.shape[:-1]), x.shape[-1]))
    y = reshape(apply(OPS["linear"], rows, weight), (*x.shape[:-1], weight.shape[0]))
    return y if bias is None else y + bias
