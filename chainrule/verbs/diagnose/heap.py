"""Memory that passes leave behind in the C library's heap, given back to the system between them.

A pass frees its activations, but what was freed between small tensors that stay is found again only by requests that
fit, so the next pass, which asks in another order, grows the heap anew.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache

import torch


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc
        return None


def give_back() -> None:
    """Returns what is free in the heap to the system; takes a few milliseconds, and nothing where there is no call."""
    trim = _trim()
    if trim is not None:
        trim(0)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the entries of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
