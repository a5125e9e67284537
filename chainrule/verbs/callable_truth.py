"""The truth that a hand-written backward is held against: the derivative of the plain reference in float64.

Derived by us from the traced reference where it can be, and held against torch's autograd once; by torch's autograd
in float64 where it cannot, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.backends.torch import compile
from chainrule.errors import ChainruleError, ModelError
from chainrule.frontends.torch import trace
from chainrule.interpreters.differentiate import expand_composites, vjp
from chainrule.ir import Graph, Node, TensorType, fresh_variable, toposort
from chainrule.verbs.callable_runs import Arguments, Tensors, run

Gradients = list["torch.Tensor | None"]


@dataclass(frozen=True)
class Derived:
    """The reference as a graph and its gradients as nodes, linear in the cotangents.

    ``inputs`` are the leaves of the tensors in order, ``cotangents`` those of the outputs (None: not differentiable).
    """

    graph: Graph
    inputs: tuple[Node, ...]
    cotangents: tuple[Node | None, ...]
    gradients: tuple[Node | None, ...]

    @property
    def quantities(self) -> list[Node]:
        """The reference's own intermediate values, as they occur in the gradients."""
        return toposort(expand_composites(self.graph.outputs, keep_named=True))


@dataclass(frozen=True)
class Truth:
    """Gradients of the reference in float64, and how they are found: ``by`` is "derived" or "torch autograd"."""

    by: str
    why: str
    derived: Derived | None
    gradients: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor | None]], Gradients]


def truth(reference: Callable[..., Any], given: Arguments) -> Truth:
    """How the reference's gradients in float64 are found.

    Raises:
        ModelError: the reference raises, is random, or gives nothing to derive.
    """
    doubles = in_float64(given.tensors)
    first, second = (run(reference, given, doubles, _ones) for _ in range(2))
    if first.raised:
        raise ModelError(
            f"the reference raised in its {first.raised_in}: {first.raised}",
            given=", ".join(given.names),
            required="a plain function of tensors that torch can derive, in float64",
            instead="the same computation in ordinary torch operations",
        )
    if first.detached or not first.outputs:
        raise ModelError(
            "the reference gives nothing to derive",
            given="no output" if not first.outputs else "outputs without a gradient",
            required="a function whose output depends on its inputs through differentiable operations",
            instead="without torch.no_grad() and detach() in it",
        )
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first.outputs, second.outputs, strict=True)):
        raise ModelError(
            "the reference is random",
            given="two calls with other outputs",
            required="a function of its inputs alone",
            instead="the random mask as an input",
        )

    def autograd(tensors: Sequence[torch.Tensor], seeds: Sequence[torch.Tensor | None]) -> Gradients:
        return run(reference, given, tensors, lambda _: list(seeds)).gradients

    try:
        derived = _derived(reference, given, doubles)
    except (ChainruleError, ValueError) as error:
        return Truth("torch autograd", str(error).splitlines()[0], None, autograd)
    compiled = _compiled(derived)
    seeds = [s if c is not None else None for s, c in zip(_ones(first.outputs), derived.cotangents, strict=True)]
    pairs = zip(compiled(doubles, seeds), autograd(doubles, seeds), strict=True)
    if not all(_close(a, b) for a, b in pairs):
        return Truth("torch autograd", "the derived gradient differs from it", None, autograd)
    return Truth("derived", "", derived, compiled)


def in_float64(tensors: Sequence[torch.Tensor]) -> Tensors:
    """Tensors of floating point in float64, the others as they are."""
    return [t.to(torch.float64 if t.is_floating_point() else t.dtype, copy=True) for t in tensors]


def _ones(outputs: Tensors) -> Gradients:
    return [torch.ones_like(y) if y.is_floating_point() else None for y in outputs]


def _derived(reference: Callable[..., Any], given: Arguments, doubles: Tensors) -> Derived:
    from chainrule.frontends.torch import batch as convention

    args, kwargs = convention.with_leaves((given.args, dict(given.kwargs)), iter(doubles))
    traced = trace(reference, args, kwargs)
    by_tensor = {id(t): node for node, t in traced.values.items()}
    inputs = tuple(by_tensor[id(t)] for t in doubles)
    if set(traced.graph.inputs) - set(inputs):
        raise ModelError("the reference closes over tensors")
    taken = set(inputs)
    cotangents: list[Node | None] = []
    for k, y in enumerate(traced.graph.outputs):
        name = "g" if len(traced.graph.outputs) == 1 else f"g_{k + 1}"
        kind = TensorType(y.shape, y.type.dtype)
        cotangents.append(fresh_variable(name, kind, taken) if y.type.is_float else None)
    pairs = [(y, g) for y, g in zip(traced.graph.outputs, cotangents, strict=True) if g is not None]
    found = vjp([y for y, _ in pairs], [g for _, g in pairs], [inputs[k] for k in given.differentiated])
    return Derived(traced.graph, inputs, tuple(cotangents), tuple(found))


def _compiled(derived: Derived) -> Callable[..., Gradients]:
    some = [g for g in derived.gradients if g is not None]
    seeds = [g for g in derived.cotangents if g is not None]
    graph = Graph((*derived.inputs, *seeds), tuple(some), tuple(f"d{k}" for k in range(len(some))))
    function = compile(graph, "gradients")

    def gradients(tensors: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None]) -> Gradients:
        filled = [
            torch.zeros(tuple(int(s) for s in g.shape), dtype=torch.float64) if c is None else c
            for c, g in zip(cotangents, derived.cotangents, strict=True)
            if g is not None
        ]
        found = iter(function(*tensors, *filled)) if some else iter(())
        return [None if g is None else next(found) for g in derived.gradients]

    return gradients


def _close(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        other = a if b is None else b
        return other is None or not torch.any(other)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max() if b.numel() else 0))
