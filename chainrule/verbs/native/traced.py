"""A traced case as a step graph: which leaf is which parameter, buffer, constant and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from chainrule.backends.native import optimizers
from chainrule.backends.native.forms import KINDS
from chainrule.backends.native.prepare import Limit, StepGraph, limits, step_graph
from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch import Trace
from chainrule.ir import Node


@dataclass(frozen=True, eq=False)
class Traced:
    """A step at one batch size, before it is compiled: the graph, and which leaf is what."""

    graph: StepGraph
    rule: optimizers.Rule | None
    batch: tuple[Node, ...]
    parameters: Mapping[Node, str]
    buffers: Mapping[Node, str]
    captured: Mapping[Node, torch.Tensor]
    limits: Mapping[Node, Limit]


def traced_step(
    case: Trace, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, counted: bool = False
) -> Traced:
    """What is compiled for a traced case: without an optimizer, its gradients. ``counted``: see the optimizers.

    Raises:
        UnsupportedOpError: an op or program without a native form.
    """
    if case.guards:
        raise UnsupportedOpError(
            f"the program branches on values at {case.guards[0].where}",
            required="a program that does the same ops on every batch",
            instead='backend="torch"',
        )
    if case.mutations:
        raise UnsupportedOpError(f"the forward pass changes {case.mutations[0]}", instead='backend="torch"')
    if case.loss is None:
        raise ModelError("a step needs a loss", instead="a loss or an objective")
    wanted: dict[Node, str] = {}
    for path, leaf in case.parameters.items():
        if path not in case.frozen and leaf not in wanted:
            wanted[leaf] = path
    rule: optimizers.Rule | None = None
    update: Callable[[Mapping[Node, Node]], Mapping[Node, Node]] | None = None
    if optimizer is not None:
        named = dict(model.named_parameters(remove_duplicate=False))
        group_of = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        wanted = {leaf: path for leaf, path in wanted.items() if id(named[path]) in group_of}
        groups = {leaf: group_of[id(named[path])] for leaf, path in wanted.items()}

        def written(grads: Mapping[Node, Node]) -> Mapping[Node, Node]:
            nonlocal rule
            rule = optimizers.updates(optimizer, grads, groups, wanted, counted)
            return rule.updates

        update = written
    named_buffers = {leaf: path for path, leaf in case.buffers.items()}
    graph = step_graph(case.loss, wanted, {case.buffers[path]: new for path, new in case.updates.items()}, update)
    leaves = tuple(case.batch_inputs.values())
    for leaf in leaves:
        if leaf.type.dtype not in KINDS:
            raise UnsupportedOpError(f"a batch of dtype {leaf.type.dtype} in native code", instead='backend="torch"')
    used = [n for n in graph.order if n.op.native == "input"]
    parameters = {
        leaf: path for path, leaf in reversed(list(case.parameters.items())) if leaf in set(used) | set(wanted)
    }
    known = {*parameters, *named_buffers, *leaves}
    captured = {leaf: tensor for leaf, tensor in case.values.items() if leaf not in known and leaf in set(used)}
    return Traced(graph, rule, leaves, parameters, named_buffers, captured, limits(graph.order))
