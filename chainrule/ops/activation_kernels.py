"""Fused backward kernels of activations: g phi'(x) in one call, and its own derivative by the same kernels.

The cotangent c of such a kernel goes back to g as g itself does, phi'(x) c, and to x as c g phi''(x), where phi'' is
written with what the forward pass has already. So a loss with derivatives inside runs on kernels at every order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from chainrule.ir import OPS, Node, Op, Sample, apply
from chainrule.ops.arithmetic import compare, iverson
from chainrule.ops.kernels import backward_kernel, same_as_first

_G = np.array([[0.4, -1.1, 0.3], [0.2, 0.9, -0.6]])
_X = np.array([[0.3, -1.2, 0.8], [2.0, -0.4, 0.1]])


def _of(name: str, x: Node) -> Node:
    return apply(OPS[name], x)


def activation_kernel(
    name: str,
    *,
    call: str,
    slope: Callable[[Node], Node],
    curve: Callable[[Node, Node], Node | None],
    value: Callable[..., Any],
    native: Callable[..., Any],
    source: str,
    point: Any = _X,
    taped: bool = True,
    aten: dict[str, Callable[..., Node]] | None = None,
) -> Op:
    """The kernel ``call(g, x)``, for ``g * slope(x)``; ``x`` is the operand or the result of the activation.

    ``curve(w, x)``: ``w * slope'(x)``, None where the slope is flat. ``point``: a sample of ``x``.
    ``taped`` and ``aten`` as in ``Op``; without it, the call is lowered to this op.
    """
    function, _, rest = call.partition("(")
    into = f"{function}.grad_input({rest[:-1]}, grad_input={{out}})"

    def again(c: Node, _: Node, g: Node, x: Node) -> tuple[Node | None, ...]:
        return apply(op, c, x), curve(c * g, x)

    op = backward_kernel(
        name,
        shape=same_as_first,
        value=value,
        torch=call,
        in_place={0: into.replace("{out}", "{0}")},
        into=into,
        expansion=lambda g, x: g * slope(x),
        fused_vjp=again,
        samples=(Sample((_G, point)),),
        error_samples=(Sample((_G, point[:, :2])),),
        native=native,
        taped=taped,
        aten={name: lambda g, x: apply(op, g, x)} if aten is None else aten,
        source=source,
    )
    return op


# ---- from the result ---------------------------------------------------------------------------------------
RELU_BACKWARD = activation_kernel(
    "relu_backward",
    call="torch.ops.aten.threshold_backward({0}, {1}, 0)",
    slope=lambda y: iverson(compare("gt", y, 0.0), like=y),
    curve=lambda w, y: None,
    value=lambda g, y: np.where(y > 0, g, 0.0),
    native=lambda m, g, y: m.where(y > 0.0, g, 0.0),
    aten={"threshold_backward": lambda g, y, threshold: _above(g, y, threshold)},
    source="g [y > 0], from the output",
)
TANH_BACKWARD = activation_kernel(
    "tanh_backward",
    call="torch.ops.aten.tanh_backward({0}, {1})",
    slope=lambda y: 1.0 - y**2.0,
    curve=lambda w, y: w * y * -2.0,
    value=lambda g, y: g * (1 - y * y),
    native=lambda m, g, y: g * (1.0 - y * y),
    source="g (1 - y^2), from the output",
    point=np.tanh(_X),
)
SIGMOID_BACKWARD = activation_kernel(
    "sigmoid_backward",
    call="torch.ops.aten.sigmoid_backward({0}, {1})",
    slope=lambda y: y * (1.0 - y),
    curve=lambda w, y: w * (1.0 - y * 2.0),
    value=lambda g, y: g * y * (1 - y),
    native=lambda m, g, y: g * (y * (1.0 - y)),
    source="g y (1 - y), from the output (problem 7.7)",
    point=1.0 / (1.0 + np.exp(-_X)),
)


def _above(g: Node, y: Node, threshold: float) -> Node:
    return apply(RELU_BACKWARD, g, y if threshold == 0 else y - threshold)


# ---- from the operand --------------------------------------------------------------------------------------
def _phi(x: Any) -> Any:
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(x) / math.sqrt(2)))


def _density(x: Node) -> Node:
    return _of("exp", x**2.0 * -0.5) * (1 / math.sqrt(2 * math.pi))


GELU_BACKWARD = activation_kernel(
    "gelu_backward",
    call="torch.ops.aten.gelu_backward({0}, {1})",
    slope=lambda x: 0.5 * (1.0 + _of("erf", x / math.sqrt(2))) + x * _density(x),
    curve=lambda w, x: w * (_density(x) * (2.0 - x**2.0)),
    aten={
        "gelu_backward": lambda g, x, approximate="none": apply(
            GELU_BACKWARD if approximate == "none" else OPS["gelu_tanh_backward"], g, x
        )
    },
    value=lambda g, x: g * (_phi(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)),
    native=lambda m, g, x: (
        g * (0.5 * (1.0 + m.erf(x * math.sqrt(0.5))) + x * m.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))
    ),
    source="Phi(x) + x phi(x); its derivative phi(x) (2 - x^2)",
)
SILU_BACKWARD = activation_kernel(
    "silu_backward",
    call="torch.ops.aten.silu_backward({0}, {1})",
    slope=lambda x: _of("sigmoid", x) * (1.0 + x * (1.0 - _of("sigmoid", x))),
    # s (1 - s) (2 + x - 2 x s), where x s is the activation itself.
    curve=lambda w, x: apply(SIGMOID_BACKWARD, w * (2.0 + (x - _of("silu", x) * 2.0)), _of("sigmoid", x)),
    value=lambda g, x: g / (1 + np.exp(-x)) * (1 + x * (1 - 1 / (1 + np.exp(-x)))),
    native=lambda m, g, x: g * (m.sigmoid(x) * (1.0 + x * (1.0 - m.sigmoid(x)))),
    taped=False,
    source="s (1 + x (1 - s)) with s = sigmoid(x)",
)
