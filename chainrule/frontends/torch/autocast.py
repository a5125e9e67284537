"""Autocast as part of a program: its casts are ops like any other, and the graph says in which dtype each op runs.

torch keeps the casts in kernels of a dispatch key below the one where programs are recorded. ``record`` calls such a
kernel by itself; the casts that it makes, and the op on what was cast, are then recorded in turn. What was compiled
runs without autocast (``backends.torch``), because its casts are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch._C import DispatchKey, DispatchKeySet

_KEYS = {"cpu": DispatchKey.AutocastCPU, "cuda": DispatchKey.AutocastCUDA}


def key_for(func: Any, operands: Sequence[torch.Tensor]) -> DispatchKeySet | None:
    """The key of autocast's kernel for a call that it would change now, if it has one."""
    for device, key in _KEYS.items():
        if (
            torch.is_autocast_enabled(device)
            and any(t.device.type == device for t in operands)
            and not torch._C._dispatch_tls_is_dispatch_key_excluded(key)
            and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
        ):
            return DispatchKeySet(key)
    return None


def state() -> tuple[Any, ...]:
    """What autocast does now, to be compared: a trace holds as long as it is the same."""
    return tuple((device, torch.get_autocast_dtype(device)) for device in _KEYS if torch.is_autocast_enabled(device))


def current() -> Callable[[], AbstractContextManager[Any]]:
    """Makes a context in which autocast is as it is now."""
    held = state()

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype in held:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            yield

    return again


@contextmanager
def unshared() -> Iterator[None]:
    """In the block no weight is found already cast: a cast made before would hide where the value comes from."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
