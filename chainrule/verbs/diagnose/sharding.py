"""Models that are spread over processes: replicas (DDP) are examined apart, sharded ones (FSDP2) on one batch for all.

A sharded model gathers its weights in every pass, so all processes have to make the same passes. They do if they look
at the same numbers: the first process's batch is given to all.
"""

from __future__ import annotations

from typing import Any

import torch


def whole(t: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts; gathers them where it is sharded, so all processes have to call this."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t  # type: ignore[attr-defined]


def own_part(t: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor: the memory itself."""
    return t.to_local() if hasattr(t, "to_local") else t  # type: ignore[attr-defined]


def is_sharded(t: Any) -> bool:
    """Whether a tensor is one of several processes' parts."""
    return hasattr(t, "full_tensor")


def first_batch(batch: Any) -> Any:
    """The first process's batch, in all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return batch
    held = [batch]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]
