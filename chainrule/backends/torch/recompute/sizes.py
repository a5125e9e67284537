"""A graph of torch.compile with symbolic sizes: one program per combination of sizes, made at the first call with it.

A plan is for one program of fixed sizes. ``torch.compile(..., dynamic=True)``, and the second batch size of a model
that is compiled without ``dynamic=False``, bring graphs for all sizes at once; here these are bound to those of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

_MOST = 64  # programs of one graph that are held; the oldest gives way


def symbolic(inputs: Sequence[Any]) -> bool:
    """Whether a graph is given for sizes that are not known yet."""
    return any(
        isinstance(i, torch.SymInt)
        or (isinstance(i, torch.Tensor) and any(isinstance(s, torch.SymInt) for s in (*i.shape, *i.stride())))
        for i in inputs
    )


class BySizes:
    """Compiles a graph for the sizes of a call, and remembers what it compiled."""

    def __init__(self, module: fx.GraphModule, compiled: Callable[[fx.GraphModule, list[Any]], Any]) -> None:
        self.module, self.compiled = module, compiled
        self.programs: dict[Any, Any] = {}
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.numbers = [k for k, n in enumerate(inputs) if any(map(_reads_number, n.users))]

    def __call__(self, *arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        numbers = tuple(arguments[k].item() for k in self.numbers)
        key = (torch.is_grad_enabled(), numbers, *(_kind(a) for a in arguments))
        if key not in self.programs:
            if len(self.programs) >= _MOST:
                self.programs.pop(next(iter(self.programs)))
            self.programs[key] = self.compiled(bound(self.module, arguments), tensors)
        return self.programs[key](*tensors)


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device, value.requires_grad
    return value


def _reads_number(node: fx.Node) -> bool:
    """Numbers that are attributes of modules come as tensors of one element, and are read at once."""
    return node.op == "call_method" and node.target == "item"


def bound(module: fx.GraphModule, arguments: Sequence[Any]) -> fx.GraphModule:
    """The graph with its numbers in place of their placeholders; the tensors stay inputs."""
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    numbers: dict[fx.Node, Any] = {}
    given = iter(arguments)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = next(given)
            if isinstance(value, torch.Tensor):
                env[node] = graph.node_copy(node)
                env[node].meta = {}
                numbers[node] = value
            else:
                env[node] = value
        elif _reads_number(node) and node.args[0] in numbers:
            env[node] = numbers[node.args[0]].item()  # type: ignore[index]
        elif node.op == "output":
            graph.output(map_arg(node.args[0], lambda n: env[n]))
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
            env[node].meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
    graph.lint()
    return fx.GraphModule(module, graph)
