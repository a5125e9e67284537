"""The promise that an examination changes nothing, for trial steps on the user's own objects too.

Copies of a model lose hooks, and copies of an optimizer their link to the model, so steps are tried on the originals
and everything is put back: bytes of parameters and buffers, gradients, module attributes, the optimizer's state and
groups, and all global random generators.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch import untouched
from chainrule.verbs.diagnose.sharding import own_part


@contextmanager
def kept(
    modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None, extra: Iterable[torch.Tensor] = ()
) -> Iterator[dict[int, torch.Tensor]]:
    """Everything is as it was when the block ends, however it ends; gives the bytes that are kept, by id of the tensor.

    Args:
        modules: whose parameters, buffers and attributes to keep. optimizer: whose state and groups, and parameters.
        extra: other tensors whose bytes to keep.
    """
    modules = list(modules)
    tensors: dict[int, torch.Tensor] = {}
    for module in modules:
        for p in module.parameters():
            tensors.setdefault(id(p), p)
    for p in parameters_of(optimizer):
        tensors.setdefault(id(p), p)
    for t in extra:
        tensors.setdefault(id(t), t)
    held = [(t, own_part(t.detach()).clone(), t.grad, t.requires_grad) for t in tensors.values() if not t.is_meta]
    grads = [(g, own_part(g.detach()).clone()) for _, _, g, _ in held if g is not None]
    state = _OptimizerState(optimizer) if optimizer is not None else None
    try:
        with untouched(modules):
            for t, *_ in held:
                t.grad = None
            yield {id(t): bytes_ for t, bytes_, _, _ in held}
    finally:
        with torch.no_grad():
            for t, bytes_, _, requires_grad in held:
                if t.requires_grad != requires_grad and t.is_leaf:
                    t.requires_grad_(requires_grad)
                if not _same_bytes(own_part(t.detach()), bytes_):
                    own_part(t.detach()).copy_(bytes_)
            for g, bytes_ in grads:
                if not _same_bytes(own_part(g.detach()), bytes_):
                    own_part(g.detach()).copy_(bytes_)
        for t, _, grad, _ in held:
            t.grad = grad
        if state is not None:
            state.restore()


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and not a.is_sparse and torch.equal(a.detach(), b) and not bool((b == 0).any())


def parameters_of(optimizer: torch.optim.Optimizer | None) -> Iterator[torch.Tensor]:
    """The tensors that an optimizer moves."""
    if optimizer is not None:
        for group in optimizer.param_groups:
            yield from group["params"]


class _OptimizerState:
    """State and groups of an optimizer; the containers keep their identity, for whoever refers to them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.groups = [(g, {k: _copied(v) if k != "params" else list(v) for k, v in g.items()})
                       for g in optimizer.param_groups]  # fmt: skip
        self.list = list(optimizer.param_groups)
        self.state = {p: (s, {k: _copied(v) for k, v in s.items()}) for p, s in optimizer.state.items()}
        self.attributes = {
            k: v for k, v in optimizer.__dict__.items() if isinstance(v, (bool, int, float, str, type(None)))
        }

    def restore(self) -> None:
        optimizer = self.optimizer
        optimizer.param_groups[:] = self.list
        for group, before in self.groups:
            for key in [k for k in group if k not in before]:
                del group[key]
            for key, value in before.items():
                current = group.get(key)
                if isinstance(current, torch.Tensor) and isinstance(value, torch.Tensor):
                    with torch.no_grad():
                        current.copy_(value)
                elif key == "params":
                    group[key][:] = value
                else:
                    group[key] = value
        for p in [p for p in optimizer.state if p not in self.state]:
            del optimizer.state[p]
        for p, (container, before) in self.state.items():
            for key in [k for k in container if k not in before]:
                del container[key]
            for key, value in before.items():
                current = container.get(key)
                if isinstance(current, torch.Tensor) and isinstance(value, torch.Tensor):
                    with torch.no_grad():
                        current.copy_(value)
                else:
                    container[key] = value
            optimizer.state[p] = container
        optimizer.__dict__.update(self.attributes)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)
