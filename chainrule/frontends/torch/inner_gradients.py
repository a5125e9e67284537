"""Derivatives that a program takes itself: ``torch.autograd.grad`` inside of what is traced (physics-informed losses).

The call runs as it is, for its numbers; its result means the derivative of the nodes, taken by our own rules, so that
it can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from chainrule.interpreters.differentiate import vjp
from chainrule.ir import OPS, Node, apply, constant


class Recording(Protocol):
    """What is asked of the recorder."""

    def node_of(self, tensor: torch.Tensor) -> Node:
        """What a tensor means."""
        ...

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises, with the place."""
        ...

    def unrecorded(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a function that is not part of the program."""
        ...

    def means(self, tensor: torch.Tensor, node: Node) -> None:
        """Declares what a tensor means, with the place where the program is."""
        ...


def inner_gradient(
    recorder: Recording,
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """``torch.autograd.grad`` with the arguments it has."""
    if is_grads_batched:
        recorder.fail("torch.autograd.grad with is_grads_batched=True inside the traced program")
    wanted, of = _listed(inputs), _listed(outputs)
    nodes = [recorder.node_of(t) for t in of]
    given = [None] * len(of) if grad_outputs is None else _listed(grad_outputs)
    seeds = [
        constant(1.0, node.type.dtype) if g is None else recorder.node_of(g)
        for node, g in zip(nodes, given, strict=True)
    ]
    found = vjp(nodes, seeds, [recorder.node_of(t) for t in wanted], again=True)
    options = {"grad_outputs": grad_outputs, "allow_unused": allow_unused, "materialize_grads": materialize_grads}
    # Kept in any case: the trace goes on to use what this call would free.
    options |= {"create_graph": create_graph, "retain_graph": True if retain_graph is None else retain_graph}
    values = recorder.unrecorded(torch.autograd.grad, (outputs, inputs), options)
    for value, node, tensor in zip(values, found, wanted, strict=True):
        if value is None:
            continue
        if node is None:
            zero = constant(0.0, recorder.node_of(tensor).type.dtype)
            node = apply(OPS["broadcast"], zero, shape=tuple(tensor.shape)) if tensor.ndim else zero
        recorder.means(value, node if create_graph else apply(OPS["stop_gradient"], node))
    return values


def _listed(tensors: Any) -> Sequence[Any]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
