"""What a training leaves on the disk: the loss curve and the trained parameters."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import torch

from chainrule.errors import ChainruleError
from chainrule.verbs.fit.result import FitResult


def write_results(model: torch.nn.Module, result: FitResult, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Writes ``loss.svg`` and ``loss.png`` (where matplotlib is installed) and ``model.pt``, the state_dict.

    Each file appears whole or not at all.

    Returns:
        What was written.

    Raises:
        ChainruleError: the folder cannot be written.
    """
    folder = Path(folder)
    drawn = bool(result.loss) and importlib.util.find_spec("matplotlib") is not None
    names = (*(("loss.svg", "loss.png") if drawn else ()), "model.pt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as partial:
            torch.save(model.state_dict(), Path(partial, "model.pt"))
            for name in names[:-1]:
                result.plot(Path(partial, name))
            for name in names:
                os.replace(Path(partial, name), folder / name)
    except OSError as error:
        raise ChainruleError(
            f"what was trained cannot be written: {error.strerror or error}",
            given=str(folder),
            required="a folder that can be written",
        ) from None
    return tuple(folder / name for name in names)
