"""A fix as code: statements about ``model`` and ``optimizer``, or an edit of the user's source.

Statements can be tried on the user's own objects under snapshot and restore, so that a report can say what the fix
does; edits are for the user to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch.places import Edit


@dataclass(frozen=True)
class Patch:
    """Statements (``code``, in terms of model, optimizer, loss, batch, torch and nn) or edits of the source."""

    code: str = ""
    edits: tuple[Edit, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*self.code.splitlines(), *map(str, self.edits)])

    def apply(self, model: Any, optimizer: Any = None, loss: Any = None, batch: Any = None) -> tuple[Any, Any]:
        """Runs the statements; returns loss and batch as they are then.

        They are ours: written by a check, with nothing of the user's text in them but names.
        """
        names = {"model": model, "optimizer": optimizer, "loss": loss, "batch": batch, "torch": torch, "nn": nn}
        exec(compile(self.code, "<fix>", "exec"), names)
        return names["loss"], names["batch"]


def submodule(path: str) -> str:
    """How a module is written: ``model.net[2].norm``, or get_submodule where that is no Python."""
    written = "model"
    for part in path.split("."):
        written += f"[{part}]" if part.isdigit() else f".{part}"
    return written if path else "model"


def around_loss(case: Any, expression: str, before: str = "") -> Patch | None:
    """The user's loss in an expression of ``compared`` (it), ``output`` and ``target``; None where there is none."""
    if case.objective is not None or not callable(case.loss):
        return None
    first = f"{before}\n" if before else ""
    return Patch(f"{first}compared = loss\nloss = lambda output, target: {expression}")


INITIALIZE = """\
for m in model.modules():
    if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        {rule}
        if m.bias is not None:
            nn.init.zeros_(m.bias)"""


def initialize(activation: str) -> Patch:
    """Fresh weights of the right scale for an activation."""
    if activation in ("tanh", "sigmoid", "identity"):
        gain = {"tanh": "5 / 3", "sigmoid": "1", "identity": "1"}[activation]
        return Patch(INITIALIZE.format(rule=f"nn.init.xavier_normal_(m.weight, gain={gain})"))
    return Patch(INITIALIZE.format(rule='nn.init.kaiming_normal_(m.weight, nonlinearity="relu")'))
