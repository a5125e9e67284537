"""Losses of a number against a target: squares, absolute values, their mixtures; and how losses are reduced.

Classification is in ``classification``. torch's kernel computes the value; the derivative is that of the expansion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Node, Op, Sample, apply, lowering, shape_text
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.contraction import sum_axes
from chainrule.ops.families import composite, kernel
from chainrule.ops.movement import broadcast
from chainrule.ops.reductions import mean

_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])

# ---- losses ------------------------------------------------------------------------------------------------
REDUCTIONS = ("none", "mean", "sum")  # torch's numbering in aten


def reduced(value: Node, reduction: str) -> Node:
    """The mean, the sum, or all of them."""
    return mean(value) if reduction == "mean" else sum_axes(value) if reduction == "sum" else value


def spread(g: Node, x: Node, reduction: str) -> Node:
    """The cotangent of each element under a reduction."""
    if reduction == "none":
        return g
    each = broadcast(g, x.shape)
    return each / x.type.numel if reduction == "mean" else each


def same_shape(x: Node, target: Node, name: str) -> None:
    """Raises ShapeError where a loss would broadcast."""
    if x.shape != target.shape:
        raise ShapeError(
            f"{name}: output and target differ in shape",
            given=f"({shape_text(x.shape)}) and ({shape_text(target.shape)})",
            required="equal shapes (torch would broadcast them, which is almost always a mistake)",
        )


def _mse_expansion(x: Node, target: Node, *, reduction: str) -> Node:
    same_shape(x, target, "mse")
    return reduced((x - target) ** 2.0, reduction)


def _mse_vjp(g: Node, y: Node, x: Node, target: Node, *, reduction: str) -> tuple[Node, Node]:
    back = spread(g, x, reduction) * (x - target) * 2.0
    return back, -back


def loss_fields(torch: str) -> dict[str, Any]:
    """torch's call and the cost of a loss with a reduction."""
    return {
        "torch": lambda node, x: f"torch.nn.functional.{torch}({', '.join(x)}, reduction={node.params['reduction']!r})",
        "cost": lambda result, x, *_, **__: x.numel,
    }


def elementwise_samples(target: np.ndarray) -> tuple[Sample, ...]:
    """One sample per reduction."""
    return tuple(Sample((_X, target), {"reduction": reduction}) for reduction in REDUCTIONS)


MSE = composite(
    "mse",
    expansion=_mse_expansion,
    vjp=_mse_vjp,
    build=lambda x, target: _mse_expansion(x, target, reduction="mean"),
    **loss_fields("mse_loss"),
    aten={"mse_loss": lambda x, t, reduction=1: apply(MSE, x, t, reduction=REDUCTIONS[reduction])},
    samples=elementwise_samples(_X[::-1] + 0.3),
    error_samples=(Sample((_X, _X[:, :1]), {"reduction": "mean"}),),
    source="problem 7.4: (f - y)^2, derivative 2 (f - y)",
)


# ---- absolute values and mixtures --------------------------------------------------------------------------
def _difference(x: Node, target: Node, name: str) -> tuple[Node, Node]:
    same_shape(x, target, name)
    d = x - target
    return d, apply(OPS["abs"], d)


def _smooth_l1(x: Node, target: Node, *, beta: float, reduction: str) -> Node:
    d, size = _difference(x, target, "smooth_l1_loss")
    if beta == 0:
        return reduced(size, reduction)
    return reduced(where(compare("lt", size, beta), d**2.0 * (0.5 / beta), size - 0.5 * beta), reduction)


def _huber(x: Node, target: Node, *, delta: float, reduction: str) -> Node:
    d, size = _difference(x, target, "huber_loss")
    return reduced(where(compare("le", size, delta), d**2.0 * 0.5, (size - 0.5 * delta) * delta), reduction)


def _mixed(name: str, width: str, expansion: Callable[..., Node], source: str) -> Op:
    def rule(x: Node, t: Node, reduction: int = 1, size: float = 1.0) -> Node:
        return apply(OPS[name], x, t, **{width: float(size), "reduction": REDUCTIONS[reduction]})

    return kernel(
        name,
        call=f"torch.nn.functional.{name}",
        expansion=expansion,
        aten={name: rule},
        samples=tuple(Sample((_X, _X[::-1] + 0.3), {width: 0.9, "reduction": r}) for r in REDUCTIONS),
        error_samples=(Sample((_X, _X[:, :1]), {width: 1.0, "reduction": "mean"}),),
        source=source,
    )


SMOOTH_L1 = _mixed("smooth_l1_loss", "beta", _smooth_l1, "Girshick 2015: squares below beta, absolute values above")
HUBER = _mixed("huber_loss", "delta", _huber, "Huber 1964")


@lowering("soft_margin_loss")
def soft_margin(x: Node, target: Node, reduction: int = 1) -> Node:
    """``log(1 + exp(-y f))``, in torch's own steps"""
    return reduced(apply(OPS["log1p"], apply(OPS["exp"], -x * target)), REDUCTIONS[reduction])
