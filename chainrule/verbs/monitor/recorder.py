"""The flight recorder: batch, weights and random state from before a step that went wrong, in one file of data.

What the loop does between two steps is watched as for a script (``frontends/torch/script``), so that the batch is known
whatever the loop calls it. The file holds tensors and texts only and is read back as such.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chainrule.errors import ModelError
from chainrule.frontends.torch import generator_states
from chainrule.frontends.torch.modules import around_calls
from chainrule.frontends.torch.script import Segment, Watch

FORMAT = "chainrule.recording/1"


class Recorder(contextlib.AbstractContextManager["Recorder"]):
    """Watches the loop while it is entered; ``write`` keeps the step that is about to be made."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
        self.model, self.optimizer, self.path = model, optimizer, path
        self.watch = Watch(at_step=0, seen=lambda _: None, leftovers=False)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Recorder:
        self._stack.enter_context(around_calls(self.watch.before, self.watch.after))
        self._stack.enter_context(self.watch)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def forget(self) -> None:
        """A step has been made: what led to it is not needed any more."""
        self.watch.forget()

    def write(self, step: int) -> Path | None:
        """Writes the recording; None if no backward pass was seen."""
        if not self.watch.segments:
            return None
        segment: Segment = self.watch.segments[-1]
        with self.watch.quiet():
            learned = {id(p) for root in segment.roots for p in root.parameters()}
            batch = [
                t.detach().cpu()
                for t in segment.outside()
                if id(t) not in learned and not (t.requires_grad and t.is_leaf)
            ]
            torch.save(
                {
                    "format": FORMAT,
                    "step": step,
                    "argv": list(sys.argv),
                    "batch": batch,
                    "rng": segment.rng if segment.rng is not None else generator_states(),
                    "models": [{k: v.detach().cpu() for k, v in r.state_dict().items()} for r in segment.roots],
                    "loss": float(segment.loss.detach()),
                },
                self.path,
            )
        return self.path


def read(path: Path) -> dict[str, Any]:
    """A recording, as data.

    Raises:
        ModelError: the file is not one.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as a recording", given=str(error).split("\n")[0],
            required="a file that cr.monitor(..., record=...) wrote",
        ) from None  # fmt: skip
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ModelError(
            f"{path} is not a recording", given=type(found).__name__,
            required="a file that cr.monitor(..., record=...) wrote",
        )  # fmt: skip
    return found
