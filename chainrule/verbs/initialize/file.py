"""A start in a file: the model's ``state_dict``, as ``torch.load(path, weights_only=True)`` reads it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from chainrule.errors import ChainruleError


def written(model: nn.Module, path: str) -> None:
    """Writes parameters and buffers.

    Raises:
        ChainruleError: the file cannot be written.
    """
    try:
        torch.save(model.state_dict(), path)
    except (OSError, RuntimeError) as error:
        raise ChainruleError(
            f"the start cannot be written to {path}",
            given=str(error).splitlines()[0],
            required="a path whose folder exists",
            instead=Path(path).name or "start.pt",
        ) from error
