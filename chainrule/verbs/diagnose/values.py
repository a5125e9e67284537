"""What a tape holds: tensors at one time of their life, calls of ops, runs of modules; and how to walk from one on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch.places import Place


@dataclass(eq=False)
class Value:
    """One tensor at one time of its life.

    Attributes:
        name: of a leaf (``parameter 0.weight``, ``batch x``), else empty. producer: the call that made it.
        differentiable: whether autograd will follow it. learned, data: whether it depends on a trainable parameter,
            on the batch; whatever was cut on the way.
        forward, backward: (largest absolute entry, root mean square) of it and of its gradient; None where not taken.
            Tensors of one number until ``settle``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str = ""
    producer: Call | None = None
    differentiable: bool = False
    learned: bool = False
    data: bool = False
    forward: Any = None
    backward: Any = None
    consumers: list[Call] = field(default_factory=list)
    tensor: Callable[[], torch.Tensor | None] = lambda: None

    @property
    def finite(self) -> bool:
        """Whether every entry is; True where it was not looked at."""
        return self.forward is None or _is_finite(self.forward[0])

    @property
    def scale(self) -> float:
        """Root mean square of the value; 0 where not taken."""
        return 0.0 if self.forward is None else self.forward[1]

    @property
    def slope(self) -> float:
        """Root mean square of its gradient; 0 where there is none."""
        return 0.0 if self.backward is None else self.backward[1]


def _is_finite(number: Any) -> bool:
    return number == number and number not in (float("inf"), float("-inf"))


@dataclass(eq=False)
class Call:
    """One call of one op.

    Attributes:
        name: without namespace, overload and in-place underscore; ``data`` for ``.data``, ``custom`` for a custom
            ``autograd.Function`` (``function`` holds it). arguments: as given, tensors replaced by Values.
        module: path of the running module. tracking: whether autograd was on; if not, ``no_grad`` is where it was
        switched off. liveness: for activations, see :class:`Liveness`.
        held: of losses and custom Functions, the tensors that went in. weight: of losses, the sum of the gradient of
        their output: what they are multiplied by on the way to the loss; of log-softmax, the least and the largest
        entry of it, and whether a row has several. again: of recurrent layers over sequences, the same call once more.
    """

    index: int
    name: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: str
    place: Place
    tracking: bool
    no_grad: Place = field(default_factory=Place)
    function: Any = None
    liveness: Liveness | None = None
    in_place: bool = False
    held: tuple[torch.Tensor, ...] = ()
    weight: Any = None
    again: Callable[..., Any] | None = None

    @property
    def where(self) -> str:
        """The module, or the op itself where there is none."""
        return self.module or self.name

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        return self.arguments[position] if position < len(self.arguments) else self.keywords.get(name, default)


@dataclass(eq=False)
class Liveness:
    """What an activation lets through, unit by unit.

    Attributes:
        units: for each unit, mean over the batch and all positions of |derivative| over its largest possible size.
        dead: for each unit, whether the derivative was next to 0 everywhere. squashed: share of entries whose
            derivative is below a thousandth of the largest possible. second: mean square of the derivative.
    """

    units: torch.Tensor
    dead: torch.Tensor
    squashed: float
    second: float


@dataclass
class ModuleRun:
    """One call of one module: its path, the class, and the Values that came out."""

    path: str
    module: nn.Module
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclass-like outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_in(v)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for key in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, key, None))


# ---- walking ------------------------------------------------------------------------------------------
def above(values: Iterable[Value], through: Callable[[Call, Value], bool] | None = None) -> dict[Value, None]:
    """The values and all that they were computed from; ``through(call, input)`` says which edges to follow."""
    seen: dict[Value, None] = dict.fromkeys(values)
    stack = list(seen)
    while stack:
        value = stack.pop()
        call = value.producer
        if call is None:
            continue
        for source in call.inputs:
            if source not in seen and (through is None or through(call, source)):
                seen[source] = None
                stack.append(source)
    return seen


def below(values: Iterable[Value]) -> dict[Value, None]:
    """The values and everything that was computed from them."""
    seen: dict[Value, None] = dict.fromkeys(values)
    stack = list(seen)
    while stack:
        for call in stack.pop().consumers:
            for out in call.outputs:
                if out not in seen:
                    seen[out] = None
                    stack.append(out)
    return seen


def origin(value: Value, through: Sequence[str] | frozenset[str]) -> Value:
    """The value behind calls of the given names, which only pass it on (first input)."""
    while value.producer is not None and value.producer.name in through and value.producer.inputs:
        value = value.producer.inputs[0]
    return value
