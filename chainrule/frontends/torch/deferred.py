"""Complex intermediates: calls that wait until a real number comes out of them, which is then one opaque node.

A graph holds real values alone. What a program computes with complex numbers in between (a Fourier transform and
back, rotary embeddings as complex products) is kept here as the calls themselves; the real tensor at their end is an
opaque node of all of them together, whose derivative is torch's through the complex part. Complex inputs are refused
where they enter (``leaves``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch.aliases import elements
from chainrule.frontends.torch.calls import opaque_function
from chainrule.frontends.torch.lower import is_in_place
from chainrule.frontends.torch.nesting import tensors
from chainrule.ir import OPS, Node, apply


class Deferred:
    """A complex tensor of the program: ``function(*args, **kwargs)[index]``.

    Args:
        args, kwargs: nested lists of Nodes, Deferred, tensors (constants) and Python values.
        index: among the outputs, where there are several. cut: whether gradients were off.
    """

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any, index: int | None, cut: bool) -> None:
        self.function, self.args, self.kwargs, self.index, self.cut = function, args, kwargs, index, cut

    def compute(self, known: dict[int, torch.Tensor]) -> torch.Tensor:
        """The tensor, once everything that it needs is in ``known`` (by id)."""
        args, kwargs = _filled(self.args, known), _filled(self.kwargs, known)
        out = self.function(*args, **kwargs)
        out = out if self.index is None else list(tensors((out,)))[self.index]
        return out.detach() if self.cut else out


def constant(tensor: torch.Tensor) -> Deferred:
    """A complex tensor that does not depend on the inputs."""
    held = tensor.detach().clone()
    return Deferred(lambda: held, [], {}, None, False)


def deferred_call(func: Any, args: Any, kwargs: Any, out: Any) -> list[Deferred]:
    """What the outputs of a call are; an in-place op works on a copy."""

    def function(*given: Any, **named: Any) -> Any:
        return func(given[0].clone(), *given[1:], **named) if is_in_place(func) else func(*given, **named)

    several = not isinstance(out, torch.Tensor)
    count = len(list(tensors((out,))))
    cut = not torch.is_grad_enabled()
    if cut:
        args, kwargs = _stopped(args), _stopped(kwargs)
    return [Deferred(function, args, kwargs, k if several else None, cut) for k in range(count)]


def real_node(found: Deferred, out: torch.Tensor) -> Node:
    """The node of a real tensor at the end of complex calls."""
    order = list(_order(found))
    leaves = list(dict.fromkeys(n for d in order for n in _leaves((d.args, d.kwargs)) if isinstance(n, Node)))

    def whole(*tensors: torch.Tensor) -> torch.Tensor:
        known = {id(node): tensor for node, tensor in zip(leaves, tensors, strict=True)}
        for step in order:
            known[id(step)] = step.compute(known)
        return known[id(found)]

    return opaque_function("complex numbers in between", whole, leaves, [out], None)


def after_write(tensor: torch.Tensor, before: Any, written: torch.Tensor, value: Any) -> Deferred | None:
    """What a complex tensor means once ``written``, on the same memory, has got ``value``; None if not concerned.

    Raises:
        UnsupportedOpError: the memory is also read as another dtype.
    """
    if tensor.dtype != written.dtype:
        raise UnsupportedOpError(
            "a write into memory that is also read in another dtype",
            given=f"{written.dtype} written, {tensor.dtype} read",
            required="one dtype",
        )
    own, theirs = (torch.from_numpy(elements(t).reshape(-1)) for t in (tensor, written))
    place = {int(e): k for k, e in enumerate(theirs)}
    source = torch.tensor([place.get(int(e), -1) for e in own], dtype=torch.long)
    if not bool((source >= 0).any()):
        return None
    shape = tuple(tensor.shape)

    def mixed(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        taken = new.reshape(-1)[source.clamp(min=0)]
        return torch.where(source >= 0, taken, old.reshape(-1)).reshape(shape)

    return Deferred(mixed, [before, value], {}, None, False)


def _order(last: Deferred) -> Iterator[Deferred]:
    """Everything that ``last`` needs, inputs first. Iterative: a loop over complex numbers may be long."""
    seen: set[int] = set()
    stack: list[tuple[Deferred, bool]] = [(last, False)]
    while stack:
        found, ready = stack.pop()
        if ready:
            yield found
        elif id(found) not in seen:
            seen.add(id(found))
            stack.append((found, True))
            stack += [(d, False) for d in _leaves((found.args, found.kwargs)) if isinstance(d, Deferred)]


def _stopped(value: Any) -> Any:
    if isinstance(value, Node):
        return apply(OPS["stop_gradient"], value) if value.type.is_float else value
    if isinstance(value, (list, tuple)):
        return [_stopped(v) for v in value]
    return {k: _stopped(v) for k, v in value.items()} if isinstance(value, dict) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _filled(value: Any, known: dict[int, torch.Tensor]) -> Any:
    if isinstance(value, (Node, Deferred)):
        return known[id(value)]
    if isinstance(value, (list, tuple)):
        return [_filled(v, known) for v in value]
    return {k: _filled(v, known) for k, v in value.items()} if isinstance(value, dict) else value
