"""The inputs of a traced program: parameters, buffers, the batch, and closed-over tensors as they are met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch.batch import Named
from chainrule.frontends.torch.lower import type_of
from chainrule.frontends.torch.names import Names, identifier
from chainrule.ir import Node, Origin, variable


class Leaves:
    """Leaves in the order of the graph's inputs, with their names and tensors.

    Args:
        modules: name -> module; ``""`` is the model, whose parameters are the trace's. The tensors of others
        (a loss
            with weights) are closed-over tensors.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.unique = Names()
        self.names: dict[str, Node] = {}
        self.values: dict[Node, torch.Tensor] = {}
        self.parameters: dict[str, Node] = {}
        self.buffers: dict[str, Node] = {}
        self.batch: dict[str, Node] = {}
        self.captured: dict[str, Node] = {}
        self.frozen: list[str] = []
        self._owners: list[tuple[torch.Tensor, Node, str]] = []
        self._attributes: dict[int, str] = {}
        for root, module in modules.items():
            self._find_attributes(root, module)
        model = modules.get("")
        if model is not None:
            self._declare_model(model)

    @property
    def nodes(self) -> list[Node]:
        """All leaves, in the order of the graph's inputs."""
        return list(self.values)

    def owners(self) -> Iterator[tuple[torch.Tensor, Node, str]]:
        """Each tensor with its leaf and with what messages call it."""
        yield from self._owners

    def origins(self) -> dict[Node, Origin]:
        """Parameters and buffers come from their modules."""
        return {
            node: Origin(module=path.rpartition(".")[0])
            for path, node in [*self.buffers.items(), *self.parameters.items()]
        }

    def _declare_model(self, model: nn.Module) -> None:
        known: dict[int, Node] = {}
        for path, parameter in model.named_parameters(remove_duplicate=False):
            if is_lazy(parameter):
                raise ModelError(
                    f"parameter {path!r} has no shape yet",
                    required="a model that has run once",
                    instead="model(inputs) before",
                )
            if id(parameter) not in known:
                known[id(parameter)] = self._leaf(identifier(path), parameter, f"parameter {path!r}")
            else:
                self.names[self.unique.unique(identifier(path))] = known[id(parameter)]
            self.parameters[path] = known[id(parameter)]
            if not parameter.requires_grad:
                self.frozen.append(path)
        for path, buffer in model.named_buffers(remove_duplicate=False):
            if id(buffer) not in known:
                known[id(buffer)] = self._leaf(identifier(path), buffer, f"buffer {path!r}")
            self.buffers[path] = known[id(buffer)]

    def declare(self, named: Named) -> list[torch.Tensor]:
        """Leaves for the tensors of the batch.

        Returns:
            The tensors to run on: the same objects, or, where one occurs twice, another one on the same
            memory, since two inputs that are one object could not be told apart.
        """
        seen = {id(tensor) for tensor, _, _ in self._owners}
        bound = []
        for name, tensor in named:
            held = tensor
            if id(tensor) in seen:
                held = tensor.detach().requires_grad_(tensor.requires_grad)
            seen.add(id(held))
            node = self._leaf(identifier(name), held, f"input {name!r}", tensor)
            self.batch[str(node.params["name"])] = node
            bound.append(held)
        return bound

    def capture(self, tensor: torch.Tensor) -> Node:
        """The leaf of a closed-over tensor: called after the attribute that holds it, where there is one."""
        path = self._attributes.get(id(tensor))
        node = self._leaf(identifier(path) if path else "captured", tensor, "")
        self.captured[str(node.params["name"])] = node
        return node

    def _leaf(self, name: str, held: torch.Tensor, owner: str, value: torch.Tensor | None = None) -> Node:
        what = owner or f"the closed-over tensor {name!r}"
        if held.layout != torch.strided or held.is_quantized or held.is_nested:
            raise UnsupportedOpError(f"{what} is {held.layout}", required="a dense tensor", instead=".to_dense()")
        if held.is_complex():
            raise UnsupportedOpError(
                f"{what} is complex",
                required="real tensors",
                instead="real and imaginary part as two tensors",
            )
        if not (held.is_floating_point() or held.dtype in _INTEGERS):
            raise UnsupportedOpError(f"{what} is {held.dtype}", required="float16/32/64, bfloat16, integers or bool")
        unique = self.unique.unique(name)
        node = variable(unique, type_of(held))
        self.names[unique] = node
        self.values[node] = held if value is None else value
        if owner:
            self._owners.append((held, node, owner))
        return node

    def _find_attributes(self, root: str, module: nn.Module) -> None:
        """id of a tensor -> dotted name, for plain attributes and for what belongs to a loss."""
        for path, child in module.named_modules():
            prefix = ".".join(p for p in (root, path) if p)
            held = {**child._parameters, **child._buffers, **child.__dict__}
            for name, value in held.items():
                if isinstance(value, torch.Tensor):
                    self._attributes.setdefault(id(value), f"{prefix}.{name}" if prefix else name)


_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
