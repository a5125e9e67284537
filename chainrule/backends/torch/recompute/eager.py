"""What eager execution allocates, on fake tensors: a loss between the passes, a whole step, an optimizer's step.

Storages are counted from the op that makes them until Python and autograd let go of them. Nothing is predicted: the
code runs, only without data.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from chainrule.backends.torch.recompute.extract import Loss, Meter, tensors_in


class Alive(TorchDispatchMode):
    """Bytes alive of what ops below it have made. ``peak`` is the most, ``now`` the present sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def know(self, tensors: Sequence[torch.Tensor]) -> None:
        """Storages that were there before and are not counted."""
        self._known.update(t.untyped_storage()._cdata for t in tensors)
        self._held = list(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def loss_of(
    loss: Callable[[Any, Any], torch.Tensor], output: Any, target: Any, outputs: Sequence[torch.Tensor]
) -> Loss:
    """What a loss keeps and needs, eagerly.

    Args:
        output: as the model returns it, of fake tensors that require a gradient; outputs: those tensors.
    """
    alive, meter = Alive(), Meter()
    alive.know([*outputs, *tensors_in(target)])
    with meter, alive, torch.enable_grad():
        value = loss(output, target)
        forward, saved = alive.peak, alive.now
        alive.peak = alive.now
        value.backward()
        backward = alive.peak
        # the loss itself is held by the caller
    return Loss(saved, forward, backward, meter.moved)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of the elements of these tensors; one that is given twice counts once."""
    return sum(t.numel() * t.element_size() for t in dict.fromkeys(tensors))


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """(state, temporaries) of one step of an optimizer like this one, in bytes.

    A copy with the same settings steps on parameters without data, or on zeros where it reads values (Adafactor); the
    user's optimizer is not touched.
    """
    on_host = all(p.device.type in ("cpu", "meta") for g in optimizer.param_groups for p in g["params"])
    # Without data torch raises a RuntimeError where a value is read; what else is wrong with a step, zeros raise again.
    with contextlib.suppress(RuntimeError):
        if on_host:  # quicker than fake tensors, and the same ops
            return _stepped(optimizer, lambda p: torch.empty_like(p, device="meta"))
    with contextlib.suppress(RuntimeError), FakeTensorMode(allow_non_fake_inputs=True):
        return _stepped(optimizer, lambda p: torch.empty_like(p, device=p.device))
    return _stepped(optimizer, torch.zeros_like)


def _stepped(optimizer: torch.optim.Optimizer, like: Callable[[torch.Tensor], torch.Tensor]) -> tuple[int, int]:
    groups = []
    for group in optimizer.param_groups:
        twins = []
        for p in group["params"]:
            if p.requires_grad:
                twin = torch.nn.Parameter(like(p.detach()))
                twin.grad = like(p.detach())
                twins.append(twin)
        groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": twins})
    copy = type(optimizer).__new__(type(optimizer))
    copy.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k not in ("state", "param_groups")})
    copy.__dict__["state"] = type(optimizer.state)(dict)
    copy.__dict__["param_groups"] = groups
    alive = Alive()
    alive.know([t for g in groups for p in g["params"] for t in (p, p.grad)])
    with alive, torch.no_grad():
        type(optimizer).step.__wrapped__(copy) if hasattr(type(optimizer).step, "__wrapped__") else copy.step()
    state = sum(t.untyped_storage().nbytes() for s in copy.state.values() for t in tensors_in(list(s.values())))
    return state, max(alive.peak - state, 0)
