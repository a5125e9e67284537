"""Several modules trained together, seen as one by what traces and saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from chainrule.errors import ModelError


def as_one(model: Any, objective: Callable[[Any, Any], Any] | None) -> tuple[Any, Callable[[Any, Any], Any] | None]:
    """A model as it is; a tuple, list or dict of modules as one module, and the objective made to fit.

    The objective is called with the modules as they were given.

    Raises:
        ModelError: several modules without an objective, or something that is not a module among them.
    """
    if isinstance(model, nn.Module) or not isinstance(model, Mapping | tuple | list):
        return model, objective
    parts = list(model.values()) if isinstance(model, Mapping) else list(model)
    if not parts or not all(isinstance(part, nn.Module) for part in parts):
        raise ModelError(
            "the models are not all torch modules",
            given=", ".join(type(part).__name__ for part in parts) or "nothing",
            required="an nn.Module, or a tuple, list or dict of them",
        )
    if objective is None:
        raise ModelError(
            "several modules need an objective, which says how they are called",
            given=f"{len(parts)} modules and a loss",
            required="objective=function of (modules, batch) that returns the loss",
        )
    together = nn.ModuleDict(dict(model)) if isinstance(model, Mapping) else nn.ModuleList(parts)
    given = objective
    return together, lambda _, batch: given(model, batch)
