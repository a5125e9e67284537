"""One function of tensors run with a cotangent: its outputs, its gradients, and what it did to what it was given.

The user's tensors are never passed on: every run gets copies. What the function raises is part of the answer, not an
error of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.frontends.torch import batch as convention

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call: positional and keyword, with the names of the tensors in them and which are derived by.

    ``differentiated`` are positions among the tensors: those that require a gradient, or all of floating point.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    differentiated: tuple[int, ...]

    def call(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """The function with other tensors in their places."""
        args, kwargs = convention.with_leaves((self.args, dict(self.kwargs)), iter(tensors))
        return function(*args, **kwargs)


def arguments(reference: Callable[..., Any], inputs: Any, dtype: torch.dtype | None) -> Arguments:
    """``inputs`` by the convention: a tensor is the one argument, a tuple positional, a mapping keywords.

    Raises:
        ModelError: no tensor of floating point among them, or tensors of several floating types without ``dtype``.
    """
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}
    named = convention.named_arguments(getattr(reference, "forward", reference), args, kwargs)
    floats = [k for k, (_, t) in enumerate(named) if t.is_floating_point()]
    if not floats:
        raise ModelError(
            "there is no input to derive by",
            given=convention.describe(inputs),
            required="at least one tensor of floating point",
            instead="inputs=(torch.randn(8, 16), torch.randn(16))",
        )
    asked = [k for k in floats if named[k][1].requires_grad]
    cast = [t.detach().to(dtype) if dtype and t.is_floating_point() else t.detach() for _, t in named]
    names = list(dict.fromkeys(n for n, _ in named))
    if len(names) < len(named):  # the same name twice
        names = [f"{n}_{k}" for k, (n, _) in enumerate(named)]
    return Arguments(args, kwargs, tuple(names), tuple(cast), tuple(asked or floats))


@dataclass(frozen=True)
class Run:
    """What one call gave.

    Attributes:
        outputs: the tensors that came out. gradients: one per derived input, None where there is none.
        raised: what it raised and where ("forward", "backward"), or "". changed: inputs that it wrote into.
        changed_cotangent: whether the backward wrote into the cotangent. detached: whether no output has a gradient.
        again: the gradients of a second backward of the same forward, empty unless asked for.
    """

    outputs: Tensors = field(default_factory=list)
    gradients: list[torch.Tensor | None] = field(default_factory=list)
    raised: str = ""
    raised_in: str = ""
    changed: tuple[str, ...] = ()
    changed_cotangent: bool = False
    detached: bool = False
    again: list[torch.Tensor | None] = field(default_factory=list)


def run(
    function: Callable[..., Any],
    given: Arguments,
    tensors: Sequence[torch.Tensor],
    cotangents: Callable[[Tensors], list[torch.Tensor | None]] | None,
    *,
    twice: bool = False,
    between: Sequence[torch.Tensor] | None = None,
) -> Run:
    """The function on copies of ``tensors``, and back with the cotangents that ``cotangents(outputs)`` gives.

    Args:
        cotangents: None for the forward alone; a None in its answer leaves that output out.
        twice: backward once more through the same forward. between: other tensors, on which the function runs
            forward before the backward of the first.
    """
    copies = [t.clone(memory_format=torch.preserve_format) for t in tensors]
    leaves = [copies[k].requires_grad_(True) for k in given.differentiated]
    before = [t.detach().clone() for t in copies]
    where = "forward"
    outputs: Tensors = []
    try:
        with torch.enable_grad():
            outputs = [t for _, t in convention.leaves(given.call(function, copies))]
            if cotangents is None:
                return Run(outputs=[t.detach() for t in outputs])
            if between is not None:
                others = [t.clone() for t in between]
                for k in given.differentiated:
                    others[k].requires_grad_(True)
                given.call(function, others)
        where = "backward"
        given_back = cotangents([t.detach() for t in outputs])
        pairs = [(y, g) for y, g in zip(outputs, given_back, strict=True) if g is not None and y.requires_grad]
        if not pairs:
            none: list[torch.Tensor | None] = [None] * len(leaves)
            return Run([t.detach() for t in outputs], none, detached=True, changed=_changed(given, before, copies))
        roots, seeds = [y for y, _ in pairs], [g for _, g in pairs]
        kept = [g.clone() for g in seeds]
        found = torch.autograd.grad(roots, leaves, seeds, allow_unused=True, retain_graph=twice)
        first = [None if g is None else g.detach().clone() for g in found]
        again: list[torch.Tensor | None] = []
        if twice:
            again = list(torch.autograd.grad(roots, leaves, kept, allow_unused=True))
        changed_seed = any(not torch.equal(a, b) for a, b in zip(kept, seeds, strict=True)) if not twice else False
        return Run(
            [t.detach() for t in outputs],
            first,
            changed=_changed(given, before, copies),
            changed_cotangent=changed_seed,
            again=again,
        )
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raised = f"{type(error).__name__}: {said[0][:300]}"
        return Run([t.detach() for t in outputs], raised=raised, raised_in=where)


def _changed(given: Arguments, before: Tensors, after: Tensors) -> tuple[str, ...]:
    return tuple(
        name
        for name, a, b in zip(given.names, before, after, strict=True)
        if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.detach().nan_to_num())
    )
