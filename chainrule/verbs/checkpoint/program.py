"""A model with a batch as the planner's problem, and everything else that a step holds."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from chainrule.backends.torch.recompute.eager import loss_of
from chainrule.backends.torch.recompute.extract import Extraction, Loss, Prices
from chainrule.backends.torch.recompute.joint import Joint, extraction_of, joint_of
from chainrule.errors import ModelError, StaleTraceError, UnsupportedOpError
from chainrule.frontends.torch import Surroundings, Trace
from chainrule.frontends.torch import trace as trace_function
from chainrule.frontends.torch.batch import describe, leaves, split, with_leaves
from chainrule.ir import Node
from chainrule.planning.frontier import Frontier, frontier
from chainrule.planning.problem import Problem
from chainrule.verbs.checkpoint.structure import Structure, likely, taken_apart


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A traced model.

    Attributes:
        model: the user's. args, kwargs: what it was called with. structure: what it returned, without its tensors.
        able: per output, whether eager autograd would go through it. wrt: leaves that get a gradient.
        trace, joint: its passes as graphs and as lines. loss: what runs between them, where a loss was given.
        prices: what time costs. surroundings, state: what the trace read besides its arguments, and how it was then.
        criterion, target: the loss and what it was measured on. objective: what was traced in place of the model.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    structure: Structure
    able: tuple[bool, ...]
    wrt: tuple[Node, ...]
    trace: Trace
    joint: Joint
    loss: Loss | None
    surroundings: Surroundings
    state: Any
    prices: Prices | None = None
    criterion: Callable[[Any, Any], Any] | None = None
    target: Any = None
    objective: Callable[..., Any] | None = None

    @property
    def current(self) -> bool:
        """Whether modes, casts, attributes, modules and hooks are what they were at the trace."""
        return self.state == state_of(self.surroundings)

    @cached_property
    def extraction(self) -> Extraction:
        """Tasks and storages."""
        return extraction_of(self.joint, self.trace.values, self.prices, self.loss)

    @property
    def problem(self) -> Problem:
        """What is planned."""
        return self.extraction.problem

    @cached_property
    def frontier(self) -> Frontier:
        """All plans worth having."""
        return frontier(self.problem)

    def holds(self, values: Sequence[torch.Tensor]) -> None:
        """Raises StaleTraceError where the program read a value that is now another one: it may do other ops."""
        given = iter(values)
        for guard in self.trace.guards:
            if not guard.holds([next(given) for _ in guard.nodes]):
                raise StaleTraceError(
                    f"the program read a value at {guard.where} that is another one on this batch",
                    required="a program that does the same ops on every batch",
                    instead="a plan for this batch",
                )

    def returned(self, outputs: Sequence[torch.Tensor]) -> Any:
        """The model's own kind of output with these tensors."""
        return self.structure.filled(outputs)

    @property
    def whole(self) -> bool:
        """Whether the backward pass may start from every output that eager autograd would go through."""
        return all(g is not None for g, able in zip(self.joint.cotangents, self.able, strict=True) if able)

    def with_all_outputs(self) -> Program:
        """The same trace, with a backward pass that may start from every output."""
        count = len(self.able)
        joint = joint_of(self.trace, self.trace.graph.outputs[:count], self.wrt, self.able)
        return replace(self, joint=joint, loss=None)

    def called(self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What was traced, run as it is on a model like this one."""
        return called(self.objective, model, args, kwargs)


def called(objective: Callable[..., Any] | None, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The model's output; or the objective of the model and its batch, which has to be a scalar."""
    if objective is None:
        return model(*args, **kwargs)
    value = objective(model, *args, **kwargs)
    if isinstance(value, torch.Tensor) and value.shape == () and value.is_floating_point():
        return value
    raise ModelError(
        "the objective is not a scalar",
        given=describe(value),
        required="one floating-point number: a tensor of shape ()",
        instead=".mean() of it",
    )


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as a call's arguments: a tensor, a tuple (positional) or a mapping (keywords)."""
    if isinstance(batch, Mapping):
        return (), {str(k): v for k, v in batch.items()}
    return (batch, {}) if isinstance(batch, tuple) else ((batch,), {})


def program_of(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loss: Callable[[Any, Any], Any] | None = None,
    target: Any = None,
    prices: Prices | None = None,
    objective: Callable[..., Any] | None = None,
) -> Program:
    """Traces a model on example arguments; nothing of it is changed.

    Raises:
        UnsupportedOpError: the model does what a graph cannot hold: attributes that it changes.
    """
    model = checked(model)
    found: list[tuple[Structure, tuple[bool, ...], tuple[bool, ...]]] = []

    def call(*given: Any, **named: Any) -> Any:
        structure, tensors = taken_apart(called(objective, model, given, named))
        able = tuple(t.requires_grad for t in tensors)
        found.append((structure, able, likely(structure, tensors)))
        return tuple(tensors)

    call.__signature__ = _signature(model, objective)  # type: ignore[attr-defined]  # messages name inputs by it
    trace = trace_function(call, tuple(args), dict(kwargs), strict=False, follow=True, root=model)
    if trace.mutations:
        raise UnsupportedOpError(
            f"the forward pass changes {trace.mutations[0]}",
            required="a forward pass without side effects",
            instead="a registered buffer for what has to be kept",
        )
    structure, able, through = found[-1]
    wrt = list(dict.fromkeys(leaf for path, leaf in trace.parameters.items() if path not in trace.frozen))
    wrt += [leaf for leaf in trace.batch_inputs.values() if trace.values[leaf].requires_grad]
    if not wrt:
        raise ModelError(
            "nothing has a gradient",
            given="a model whose parameters all have requires_grad=False",
            required="at least one parameter, or input, that requires a gradient",
        )
    outputs = trace.graph.outputs[: len(able)]
    surroundings = Surroundings(model if objective is None else (model, objective))
    between = None
    if loss is not None:
        between, through = _between(loss, structure, outputs, able, target)
    joint = joint_of(trace, outputs, wrt, through)
    return Program(
        model,
        tuple(args),
        dict(kwargs),
        structure,
        able,
        tuple(wrt),
        trace,
        joint,
        between,
        surroundings,
        state_of(surroundings),
        prices,
        loss,
        target,
        objective,
    )


def checked(model: Any) -> nn.Module:
    """The model; raises ModelError for what is none."""
    if isinstance(model, nn.Module):
        return model
    raise ModelError(
        "there is no model to plan",
        given=describe(model),
        required="a torch.nn.Module, or a chainrule.case of one",
        instead="plan(model, batch, objective=function), for a function of model and batch",
    )


def _signature(model: nn.Module, objective: Callable[..., Any] | None) -> inspect.Signature:
    """Names of what the traced call is given: the forward method's, or the objective's without its model."""
    try:
        if objective is None:
            return inspect.signature(model.forward)
        named = inspect.signature(objective)
        return named.replace(parameters=list(named.parameters.values())[1:])
    except (TypeError, ValueError):
        return inspect.Signature()


def state_of(surroundings: Surroundings) -> tuple[Any, int]:
    """What a trace depends on besides its arguments: casts, and the moment of the model."""
    casts = tuple((k, torch.get_autocast_dtype(k)) for k in ("cpu", "cuda") if torch.is_autocast_enabled(k))
    return casts, surroundings.now()


def call_of(args: Any, kwargs: Any) -> tuple[Any, str]:
    """What a trace depends on of its arguments: the kinds of the tensors, and everything that is no tensor."""
    tensors = tuple((n, tuple(t.shape), t.stride(), t.dtype, str(t.device), t.requires_grad)
                    for n, t in leaves((args, kwargs)))  # fmt: skip
    return tensors, repr(list(_static((args, kwargs))))


def _static(value: Any) -> Iterator[tuple[str, Any]]:
    """What in a call is no tensor."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from ((f"{k}.{n}", x) for n, x in _static(v))
    elif isinstance(value, (tuple, list)):
        for k, v in enumerate(value):
            yield from ((f"{k}.{n}", x) for n, x in _static(v))
    elif not isinstance(value, torch.Tensor):
        yield "", value


def _between(
    loss: Callable[[Any, Any], Any], structure: Structure, outputs: Sequence[Node], able: Sequence[bool], target: Any
) -> tuple[Loss, tuple[bool, ...]]:
    """(what the loss needs, which outputs it goes through)."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [torch.empty(o.type.shape, dtype=getattr(torch, o.type.dtype), device=o.type.device) for o in outputs]
        for fake, learns in zip(fakes, able, strict=True):
            fake.requires_grad_(learns)
        wanted = iter([_faked(mode, t) for _, t in leaves(target)])
        found = loss_of(loss, structure.filled(fakes), with_leaves(target, wanted), fakes)
        return found, tuple(f.grad is not None for f in fakes)


def _faked(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor) if tensor.is_meta else mode.from_tensor(tensor.detach())


def inputs_of(batch: Any, loss: Any) -> tuple[Any, Any]:
    """(inputs, target) by the convention of all verbs."""
    if loss is None or loss == "model":
        return batch, None
    return split(batch)
