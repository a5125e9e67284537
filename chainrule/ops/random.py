"""Random draws: leaves that take their numbers from torch's generator, in program order.

A draw never merges with another: its ``stream`` is its number in the program. Back ends run the draws of a program
in that order, so that the same seed gives the same bits as eager execution.
"""

from __future__ import annotations

import math
from typing import Any

from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node, Op, TensorType, apply, register
from chainrule.ops.families import leaf

# torch.nn.functional.dropout on CUDA is one kernel, with bits of its own.
_FUSED = "native_dropout"


def _no_value(*, method: str, stream: int, **_: Any) -> Any:
    raise UnsupportedOpError(
        f"random draw {stream} ({method}) has no value in NumPy",
        required="a program without random draws",
        instead="the torch back end, which draws from torch's generator",
    )


def _torch(node: Node, _: list[str]) -> str:
    kind: TensorType = node.params["type"]
    arguments = ", ".join(map(repr, node.params["args"]))
    placed = f"dtype=torch.{kind.dtype}, device={kind.device!r}"
    strides = kind.layout if kind.layout is not None else _contiguous(kind.shape)
    made = f"torch.empty_strided({tuple(kind.shape)}, {strides}, {placed})"
    if node.params["method"] == _FUSED:
        return f"torch.native_dropout({made}.fill_(1), {arguments}, True)[0]"
    return f"{made}.{node.params['method']}({arguments})"


def _contiguous(shape: tuple[Any, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(int(size), 1)
    return tuple(reversed(strides))


DRAW = leaf(
    "draw",
    shape=lambda *, method, args, type, stream: type,
    value=_no_value,
    text=lambda p, node: f"draw_{node.params['stream']}",
    latex=lambda p, node: rf"\operatorname{{draw}}_{{{node.params['stream']}}}",
    torch=_torch,
    pure=False,
    differentiable=False,
    native="draw",
    source="torch.Tensor's in-place samplers",
)


def draw(method: str, args: tuple[Any, ...], type: TensorType, stream: int) -> Node:
    """Draw number ``stream``: ``torch.empty_strided(...).method(*args)`` of this type (layout included)."""
    return apply(DRAW, method=method, args=args, type=type, stream=stream)


def dropout_noise(p: float, type: TensorType, stream: int, feature: bool = False) -> Node:
    """What dropout multiplies its input by: 0 with probability p, else 1 / (1 - p); ``feature``: whole channels."""
    if type.device.startswith("cuda") and not feature:
        return draw(_FUSED, (p,), type, stream)
    return draw("bernoulli_", (1.0 - p,), type, stream) / (1.0 - p)


def _alone(*_: Any, text: str, type: TensorType, stream: int) -> TensorType:
    return type


SAMPLED = register(
    Op(
        "sampled",
        "kernel",
        shape=_alone,
        value=lambda *_, text, type, stream: _no_value(method=text, stream=stream),
        text=lambda p, node: f"draw_{node.params['stream']}({', '.join(p.child(i, 0) for i in node.inputs)})",
        latex=lambda p, node: rf"\operatorname{{draw}}_{{{node.params['stream']}}}",
        torch=lambda node, x: node.params["text"].format(*x),
        pure=False,
        differentiable=False,
        source="torch's samplers whose law depends on values; what they draw has no derivative",
    )
)


def sampled(text: str, type: TensorType, stream: int, *operands: Node) -> Node:
    """Draw number ``stream`` by a call of torch's: ``text`` with ``{0}``, ``{1}`` for operands."""
    return apply(SAMPLED, *operands, text=text, type=type, stream=stream)


_ALPHA = 1.7580993408473766  # where selu ends, negated


def alpha_dropout(x: Node, p: float, type: TensorType, stream: int) -> Node:
    """Dropout to selu's lower end, scaled and shifted so that mean and variance stay."""
    scale = 1 / math.sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    kept = draw("bernoulli_", (1.0 - p,), type, stream)
    shift = (kept + -1.0) * (_ALPHA * scale) + _ALPHA * scale * p
    return x * (kept * scale) + shift


def rrelu(x: Node, low: float, high: float, stream: int) -> Node:
    """Negative values times a slope, which is drawn for them alone."""
    noise = f"torch.ops.aten.rrelu_with_noise_functional({{0}}, torch.empty_like({{0}}), {low!r}, {high!r}, True)[1]"
    return x * sampled(noise, x.type.with_shape(x.shape), stream, x)
