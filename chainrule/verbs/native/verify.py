"""The first step of freshly compiled code held against the torch back end: another machine may have another LLVM bug.

Done once per compiled program, before anything is trained with it. What the cache holds has passed.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from chainrule.backends.native.draws import drawn
from chainrule.backends.torch import step as torch_step
from chainrule.errors import BackendError, ChainruleError
from chainrule.frontends.torch import Trace, loss_value, untouched
from chainrule.ir import Graph, rebuild, toposort, variable

# Relative to the largest entry. Adaptive rules divide a gradient by its size: where it is all rounding (a bias in front
# of a norm), so is the step, and nothing can be compared. Elsewhere single entries may still differ by a step.
_TOLERANCE = {"float32": 1e-3, "float64": 1e-8}
_ROUNDING = {"float32": 1e-4, "float64": 1e-10}
_FEW = 0.02


def expected_step(
    case: Trace,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    loss: Any = None,
    objective: Any = None,
) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor | None]] | None:
    """(loss, parameters after one step, gradients) by torch; None where that cannot run the case.

    The user's model and optimizer stay as they are.

    Args:
        loss, objective: where they and the model are torch's own code or ours, which can be called once more:
            autograd's gradients are there sooner than the torch back end's.
    """
    named = dict(model.named_parameters())
    try:
        if loss is None and objective is None:
            step = torch_step(case)
            with untouched(()):
                value, found = step({n: p.detach() for n, p in named.items()}, batch, update=False)
            grads: dict[str, torch.Tensor | None] = dict(found)
        else:
            wanted = {name: p for name, p in named.items() if p.requires_grad}
            with untouched((model,)), torch.enable_grad():
                value = loss_value(model, batch, loss, objective)
                gradients = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
            grads = dict(zip(wanted, gradients, strict=True))
    except ChainruleError:
        return None
    copies = {id(p): p.detach().clone().requires_grad_(p.requires_grad) for p in named.values()}
    twin = copy.deepcopy(optimizer, dict(copies))  # its parameters are the copies, its state is one of its own
    for name, parameter in named.items():
        copies[id(parameter)].grad = grads.get(name)
    with torch.no_grad():
        inspect.unwrap(type(twin).step)(twin)  # as torch wraps it, it imports torch's compiler: a second and a half
    return float(value.detach()), {name: copies[id(p)].detach() for name, p in named.items()}, grads


def with_draws(case: Trace, step: int) -> Trace:
    """The case with the numbers that compiled code draws in step number ``step`` in place of its random draws."""
    roots = [case.loss, *case.updates.values()]
    draws = [node for node in toposort([r for r in roots if r is not None]) if node.op.native == "draw"]
    if not draws:
        return case
    leaves = {node: variable(f"drawn_{k}", node.type) for k, node in enumerate(draws)}
    image = rebuild([r for r in roots if r is not None], image=leaves)
    values = {leaf: torch.from_numpy(drawn(node, step)) for node, leaf in leaves.items()}
    loss = None if case.loss is None else image[case.loss]
    return replace(
        case,
        graph=Graph((*case.graph.inputs, *leaves.values()), tuple(image.get(n, n) for n in case.graph.outputs)),
        loss=loss,
        updates={buffer: image[new] for buffer, new in case.updates.items()},
        values={**case.values, **values},
    )


def compare(
    loss: float,
    parameters: Mapping[str, torch.Tensor],
    expected: tuple[float, Mapping[str, torch.Tensor], Mapping[str, torch.Tensor | None]],
) -> None:
    """Raises BackendError where a native step gave something else than torch."""
    right, after, grads = expected
    largest = max((g.abs().max().item() for g in grads.values() if g is not None and g.numel()), default=0.0)
    dtype = next((str(p.dtype).removeprefix("torch.") for p in parameters.values()), "float32")
    tolerance = _TOLERANCE.get(dtype, 1e-3)
    same = loss == right or not math.isfinite(right) or abs(loss - right) <= tolerance * max(abs(right), 1e-6)
    if not same:
        raise _other(f"loss {loss!r}, torch {right!r}")
    for name, value in parameters.items():
        theirs = after[name]
        g = grads.get(name)
        if g is None or not theirs.numel():
            continue
        clear = g.abs() > _ROUNDING.get(dtype, 1e-4) * largest
        scale = max(theirs.abs().max().item(), 1e-6)
        wrong = (((value - theirs).abs() > tolerance * scale) & clear).float().mean().item()
        if wrong > _FEW + 1 / theirs.numel():
            raise _other(f"{wrong:.0%} of the entries of {name} after one step differ")


def _other(given: str) -> BackendError:
    return BackendError(
        "native code computes something else than torch on this machine",
        given=given,
        required="equal results up to rounding",
        instead='backend="torch", and a report of this: it is a fault',
    )
