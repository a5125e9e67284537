"""The example of a model for planning: its trace, also where the parameters are sharded or have no storage.

A sharded model is traced with plain tensors of the whole shapes in place of its ``DTensor``s (zeros, which the system
does not store before they are written) and without the hooks by which it gathers shards; both are put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch import Trace, trace_case
from chainrule.ir import Node
from chainrule.ir.field import Field
from chainrule.verbs.case import Case
from chainrule.verbs.fields import data_field, parameter_field
from chainrule.verbs.initialize.held import is_sharded

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")


@dataclass(frozen=True)
class Example:
    """A traced case. ``leaf_of``: identity of a parameter of the model -> its leaf."""

    trace: Trace
    leaf_of: dict[int, Node]


def bare(model: nn.Module) -> nn.Module:
    """The model inside of data parallel and compiling wrappers."""
    while True:
        name = type(model).__name__
        if name in ("DistributedDataParallel", "DataParallel"):
            model = model.module  # type: ignore[assignment]
        elif name == "OptimizedModule":
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def traced(case: Case) -> Example:
    """The trace of a case, and which leaf is which parameter.

    Raises:
        UnsupportedOpError, ModelError: it cannot be traced.
    """
    with _plain(case.model) as stands_for:
        shared = case.__dict__.get("trace") if not stands_for else None  # another verb has asked for it already
        found = shared or trace_case(case.model, case.batch, case.loss, case.objective)
        leaf_of = {}
        for name, parameter in case.model.named_parameters(remove_duplicate=False):
            if name in found.parameters:
                leaf_of[stands_for.get(id(parameter), id(parameter))] = found.parameters[name]
    return Example(found, leaf_of)


@contextmanager
def _plain(model: nn.Module) -> Iterator[dict[int, int]]:
    """Plain parameters and no hooks while the block runs; the value maps stand-in -> parameter, by identity."""
    if not any(is_sharded(p) for p in model.parameters()):
        yield {}
        return
    stand_ins: dict[int, nn.Parameter] = {}
    stands_for: dict[int, int] = {}
    before: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
    try:
        for module in model.modules():
            own = dict(module._parameters)
            hooks = {key: type(module.__dict__[key])(module.__dict__[key]) for key in _HOOKS}
            before.append((module, own, hooks))
            for key in _HOOKS:
                module.__dict__[key].clear()
            for name, parameter in own.items():
                if parameter is None or not is_sharded(parameter):
                    continue
                if id(parameter) not in stand_ins:
                    plain = torch.zeros(tuple(parameter.shape), dtype=parameter.dtype, device=parameter.device)
                    stand_ins[id(parameter)] = nn.Parameter(plain, requires_grad=parameter.requires_grad)
                    stands_for[id(stand_ins[id(parameter)])] = id(parameter)
                module._parameters[name] = stand_ins[id(parameter)]
        yield stands_for
    finally:
        for module, own, hooks in before:
            module._parameters.update(own)
            for key, content in hooks.items():
                module.__dict__[key].update(content)


# ---- what is not chosen ------------------------------------------------------------------------------------
def tensor_field(tensor: torch.Tensor, name: str) -> Field:
    """The law of a parameter that stays: redrawn with its own mean and mean square."""
    whole: Any = tensor.detach()
    return parameter_field(name, whole.full_tensor() if is_sharded(whole) else whole)


def data_fields(found: Trace) -> dict[Node, Field]:
    """The data, buffers and closed-over tensors as they are."""
    weights = set(found.parameters.values())
    states: dict[Node, Field] = {}
    for leaf, tensor in found.values.items():
        if leaf not in weights and not tensor.is_complex():
            whole: Any = tensor
            states[leaf] = data_field(leaf, whole.full_tensor() if is_sharded(whole) else whole)
    return states
