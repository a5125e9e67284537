"""The promise that looking at a model changes nothing: snapshot before, restore after, even if it raises.

What is kept: attributes of every module and the containers in them (hooks, parameters, buffers),
``requires_grad`` and ``.grad`` of the parameters, the bytes of the buffers, and the state of every global random
generator. The bytes of parameters and batch need no copy: ``record`` refuses a write into them before it happens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.frontends.torch.generators import generator_states, restore_generators


@contextmanager
def untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restores the modules' state and the random generators when the block ends, however it ends."""
    held = [_ModuleState(m) for root in modules for m in root.modules()]
    torch_states, numpy_state, python_state = generator_states(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        for state in held:
            state.restore()
        restore_generators(torch_states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class _ModuleState:
    """One module's attributes, with the contents of the containers among them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.contents = {
            key: type(value)(value)
            for key, value in self.attributes.items()
            if type(value) is dict or type(value) is list or type(value) is set or key in _ORDERED
        }
        self.buffers = [(b, b.detach().clone()) for b in module._buffers.values() if b is not None]
        self.parameters = [(p, p.requires_grad, p.grad) for p in module.parameters(recurse=False)]

    def restore(self) -> None:
        """Puts everything back in place; containers keep their identity."""
        # __dict__ itself, because nn.Module's own __setattr__ sorts and checks what it is given.
        self.module.__dict__.clear()
        self.module.__dict__.update(self.attributes)
        for key, content in self.contents.items():
            _refill(self.attributes[key], content)
        for buffer, bytes_ in self.buffers:
            if not buffer.is_meta and not torch.equal(buffer, bytes_):
                with torch.no_grad():
                    buffer.copy_(bytes_)
        for parameter, requires_grad, grad in self.parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


# OrderedDicts of nn.Module itself: hooks and such. Handles refer to them, so they must stay the same objects.
_ORDERED = frozenset(key for key, value in nn.Module().__dict__.items() if isinstance(value, dict))


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)
