"""Which module is running: a stack kept by torch's global module hooks, and a record of every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from chainrule.frontends.torch.batch import leaves
from chainrule.ir import Node


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module.

    Attributes:
        path: its name in ``named_modules()`` (``""``: the model itself, ``"loss"``: a loss that is a module).
        kind: class and main sizes, ``Linear(10, 40)``. class_name: the class alone.
        inputs, outputs: nodes of the tensors that went in and came out.
        has_parameters: whether parameters are its own, not a child's.
    """

    path: str
    kind: str
    class_name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    has_parameters: bool


# The sizes that tell one module of a class from another, in the order of the constructor.
_SIZES = (
    ("in_features", "out_features"),
    ("in_channels", "out_channels", "kernel_size"),
    ("num_embeddings", "embedding_dim"),
    ("input_size", "hidden_size"),
    ("embed_dim", "num_heads"),
    ("normalized_shape",),
    ("num_features",),
    ("kernel_size",),
    ("negative_slope",),
    ("p",),
)


def kind_of(module: nn.Module) -> str:
    """``Linear(10, 40)``: the class and its main sizes."""
    name = type(module).__name__
    for attributes in _SIZES:
        values = [getattr(module, a, None) for a in attributes]
        if all(isinstance(v, (int, float, tuple)) for v in values):
            return f"{name}({', '.join(map(_size_text, values))})"
    return name


def _size_text(value: Any) -> str:
    if isinstance(value, tuple) and value:
        return str(value[0]) if len(set(value)) == 1 and len(value) == 1 else "x".join(map(str, value))
    return str(value)


class ModuleStack:
    """The path of the running module, and the calls that have ended, in the order in which they ended.

    Args:
        roots: name -> module; a module is called by its path below its root, the model's root being ``""``.
        node_of: the node of a tensor, or None where there is none.
    """

    def __init__(self, roots: Mapping[str, nn.Module], node_of: Callable[[torch.Tensor], Node | None]) -> None:
        self._paths: dict[int, str] = {}
        for root, module in roots.items():
            for path, child in module.named_modules():
                self._paths.setdefault(id(child), ".".join(p for p in (root, path) if p))
        self._node_of = node_of
        self._running: list[tuple[nn.Module, str, tuple[Node, ...]]] = []
        self.calls: list[ModuleCall] = []

    @property
    def path(self) -> str:
        """The running module; ``""`` outside all of them."""
        return self._running[-1][1] if self._running else ""

    @property
    def place(self) -> str:
        """The running module with its class, as messages name it."""
        if not self._running:
            return ""
        module, path, _ = self._running[-1]
        return f"module {path!r} ({type(module).__name__})" if path else f"{type(module).__name__}"

    def _nodes(self, value: Any) -> tuple[Node, ...]:
        found = (self._node_of(tensor) for _, tensor in leaves(value))
        return tuple(node for node in found if node is not None)

    def _before(self, module: nn.Module, args: Any) -> None:
        self._running.append((module, self._paths.get(id(module), self.path), self._nodes(args)))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self._running and self._running[-1][0] is not module:
            self._running.pop()  # a module that raised inside a `try` of the user's
        if not self._running:
            return
        _, path, inputs = self._running.pop()
        if id(module) not in self._paths:
            return
        inputs += self._nodes(kwargs)
        own = next(module.parameters(recurse=False), None) is not None
        self.calls.append(ModuleCall(path, kind_of(module), type(module).__name__, inputs, self._nodes(output), own))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keeps the stack while the block runs; the hooks are gone afterwards."""
        with around_calls(self._before, self._after):
            yield


@contextmanager
def around_calls(before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Calls ``before(module, args)`` and ``after(module, args, kwargs, output)`` around every module in the block."""
    first = register_module_forward_pre_hook(before)
    second = register_module_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        first.remove()
        second.remove()
        # torch forgets this one: it would grow with every block.
        torch.nn.modules.module._global_forward_hooks_with_kwargs.pop(second.id, None)
