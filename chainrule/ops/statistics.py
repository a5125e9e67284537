"""Running statistics: what batch normalisation keeps of the batches it has seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Op, Sample, TensorType, TupleType, apply, item, register, shape_text


def _shape(x: TensorType, mean: TensorType, variance: TensorType, *, momentum: float) -> TupleType:
    channels = x.shape[1:2]
    if x.rank < 2 or mean.shape != channels or variance.shape != channels:
        raise ShapeError(
            "running statistics do not fit",
            given=f"input ({shape_text(x.shape)}), mean ({shape_text(mean.shape)})",
            required="one mean and one variance per channel, dimension 1 of the input",
        )
    return TupleType((mean, variance))


def _value(x: Any, mean: Any, variance: Any, *, momentum: float) -> tuple[Any, Any]:
    axes = (0, *range(2, np.ndim(x)))
    new = [np.mean(x, axes), np.var(x, axes, ddof=1)]
    return tuple((1 - momentum) * old + momentum * n for old, n in zip((mean, variance), new, strict=True))


RUNNING_STATISTICS = register(
    Op(
        "running_statistics",
        "statistics",
        shape=_shape,
        value=_value,
        differentiable=False,  # buffers: no derivative is ever taken of them
        text=lambda p, node: f"running_statistics({', '.join(p.child(i, 0) for i in node.inputs)})",
        latex=lambda p, node: (
            rf"\operatorname{{running}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)"
        ),
        torch=lambda node, x: (
            f"torch.ops.aten._native_batch_norm_legit_functional({x[0]}, None, None, {x[1]}, {x[2]}, True, "
            f"{node.params['momentum']!r}, 1e-05)[3:5]"
        ),
        samples=(
            Sample(
                (
                    np.array([[0.3, -1.2], [2.0, -0.4], [0.7, 0.9]]),
                    np.array([0.1, -0.2]),
                    np.array([1.1, 0.7]),
                ),
                {"momentum": 0.1},
            ),
        ),
        error_samples=(Sample((np.zeros((3, 2)), np.zeros(3), np.zeros(3)), {"momentum": 0.1}),),
        source="torch.nn.BatchNorm1d: an exponential average with the unbiased variance",
    )
)


def running_statistics(x: Node, mean: Node, variance: Node, momentum: float) -> tuple[Node, Node]:
    """Mean and variance after a batch ``x`` of shape (batch, channels, ...)."""
    both = apply(RUNNING_STATISTICS, x, mean, variance, momentum=float(momentum))
    return item(both, 0), item(both, 1)
