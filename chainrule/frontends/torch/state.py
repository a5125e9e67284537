"""What a program changes in its model: buffers, which become outputs of the graph, and attributes, which cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from chainrule.ir import Node


class Meanings(Protocol):
    """What is asked of the recorder."""

    def node_of(self, tensor: torch.Tensor) -> Node:
        """The node of a tensor."""
        ...

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises, with the place."""
        ...


class State:
    """The buffers and plain attributes of a model before it runs."""

    def __init__(self, model: Any) -> None:
        self._modules = list(model.named_modules(remove_duplicate=True)) if isinstance(model, nn.Module) else []
        self._buffers = {
            _joined(path, name): (module, name, tensor)
            for path, module in self._modules
            for name, tensor in module._buffers.items()
            if tensor is not None
        }
        self._attributes = {path: dict(_plain(module)) for path, module in self._modules}

    def updates(self, recorder: Meanings, leaves: Mapping[str, Node]) -> dict[str, Node]:
        """buffer -> what it means after the program, for those that it wrote or replaced."""
        found = {}
        for path, (module, name, tensor) in self._buffers.items():
            now = module._buffers.get(name)
            if now is None or now.shape != tensor.shape or now.dtype != tensor.dtype:
                recorder.fail(
                    f"the forward pass replaces buffer {path!r} by something else",
                    required="a tensor of the same shape and dtype",
                )
                continue
            node = recorder.node_of(now)
            if node is not leaves[path]:
                found[path] = node
        return found

    def updated(self, paths: Mapping[str, Node]) -> Iterator[torch.Tensor]:
        """The tensors that these buffers are now."""
        for path in paths:
            module, name, _ = self._buffers[path]
            yield module._buffers[name]  # type: ignore[misc]

    def mutations(self) -> tuple[str, ...]:
        """Attributes that are not what they were, as messages name them."""
        found = []
        for path, module in self._modules:
            before, now = self._attributes[path], dict(_plain(module))
            for name in sorted({*before, *now}):
                old, new = before.get(name, _MISSING), now.get(name, _MISSING)
                if old is not new and (isinstance(old, torch.Tensor) or isinstance(new, torch.Tensor) or old != new):
                    shown = f"{_short(old)} to {_short(new)}"
                    found.append(f"attribute {_joined(path, name)!r} of {type(module).__name__} from {shown}")
        return tuple(found)


_MISSING = "nothing"


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that are numbers, texts, flags or tensors: what a later call might read."""
    for name, value in module.__dict__.items():
        if isinstance(value, (bool, int, float, str, type(None), torch.Tensor)):
            yield name, value


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(value: Any) -> str:
    return "a tensor" if isinstance(value, torch.Tensor) else repr(value) if value is not _MISSING else _MISSING
