"""What was captured of a script as the parts of a case: model, batch, and a loss or an objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch.batch import leaves
from chainrule.frontends.torch.script import Captured, Event, Segment


@dataclass(eq=False)
class Parts:
    """A capture as the parts of a case: model and batch with a loss, or with an objective where it takes several."""

    model: nn.Module
    batch: Any
    loss: Callable[[Any, Any], Any] | None
    objective: Callable[[Any, Any], Any] | None


def parts_of(captured: Captured, segment: Segment) -> Parts:
    """Model, batch and loss where one model is called once; else everything as an objective over what was used."""
    outside = segment.outside()
    learned = {id(t): t for t in outside if t.requires_grad and t.is_leaf and not _is_data(captured, segment, t)}
    if len(segment.roots) == 1 and len(segment.models) == 1 and not learned:
        return _single(segment)
    model = _container(captured, segment, list(learned.values()))
    data = [t for t in outside if id(t) not in learned]
    keys = [id(t) for t in data]
    names = _data_names(captured, data)

    def objective(_: Any, batch: Any) -> Any:
        return segment.replay(dict(zip(keys, batch.values(), strict=True)))

    return Parts(model, dict(zip(names, data, strict=True)), None, objective)


def _is_data(captured: Captured, segment: Segment, tensor: torch.Tensor) -> bool:
    """Whether a leaf requires a gradient because something is differentiated by an input, not because it is trained."""
    held = [p for o in (captured.optimizer, *captured.others) for g in o.param_groups for p in g["params"]]
    if isinstance(tensor, nn.Parameter) or any(p is tensor for p in held):
        return False
    readers = [e for e in segment.events if e.module is not None or e.call is torch.autograd.grad]
    return any(t is tensor for e in readers for _, t in leaves((e.args, e.kwargs)))


def _single(segment: Segment) -> Parts:
    call = segment.models[0]
    assert call.module is not None
    at = segment.events.index(call)
    # What is done to tensors before the model is called, and depends on nothing learned, is not among the events.
    inputs = _inputs(call)
    made = {id(t) for _, t in leaves(call.out)}
    tail = [e for k, e in enumerate(segment.events) if k > at]
    known = made | {id(t) for e in tail for _, t in leaves(e.out)}
    targets = list({id(t): t for e in tail for _, t in leaves((e.args, e.kwargs)) if id(t) not in known}.values())
    keys = [id(t) for t in targets]
    target = targets[0] if len(targets) == 1 else tuple(targets) if targets else None

    def loss(output: Any, given: Any) -> Any:
        values: dict[int, Any] = dict(zip(keys, (given,) if len(keys) == 1 else given or (), strict=True))
        for (_, before), (_, after) in zip(leaves(call.out), leaves(output), strict=False):
            values[id(before)] = after
        return segment.replay(values, tail)

    return Parts(call.module, (inputs, target), loss, None)


def _inputs(call: Event) -> Any:
    """The inputs by the convention: one tensor, a tuple, or keywords."""
    if not call.kwargs:
        return call.args[0] if len(call.args) == 1 and not isinstance(call.args[0], (tuple, dict)) else call.args
    if not call.args:
        return call.kwargs
    assert call.module is not None
    bound = inspect.signature(call.module.forward).bind(*call.args, **call.kwargs)
    return {
        k: v
        for name, value in bound.arguments.items()
        for k, v in (value.items() if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                     else [(name, value)])
    }  # fmt: skip


class Roots(nn.Module):
    """The models of a script together, each under the name of its variable; it is never called."""


def _container(captured: Captured, segment: Segment, learned: list[torch.Tensor]) -> nn.Module:
    together: Any = Roots()
    for k, root in enumerate(segment.roots):
        name = captured.names.get(id(root), f"{type(root).__name__.lower()}_{k + 1}")
        together._modules[name if name not in together._modules else f"{name}_{k + 1}"] = root
    for k, t in enumerate(learned):
        if not any(t is p for root in segment.roots for p in root.parameters()):
            name = captured.names.get(id(t), f"tensor_{k + 1}")
            together._parameters[name] = t  # type: ignore[assignment]
    return together


def _data_names(captured: Captured, data: Sequence[torch.Tensor]) -> list[str]:
    names: list[str] = []
    for k, t in enumerate(data):
        name = captured.names.get(id(t), f"tensor_{k + 1}")
        names.append(name if name not in names else f"{name}_{k + 1}")
    return names
