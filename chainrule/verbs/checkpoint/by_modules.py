"""What ``checkpoint`` does with a model that no graph can hold: its own modules under torch's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.backends.torch.recompute.eager import bytes_of
from chainrule.errors import ChainruleError
from chainrule.frontends.torch.batch import leaves
from chainrule.planning.budget import size_text
from chainrule.verbs.checkpoint.apply import Choice, cheapest, tried, unwrap, wrap


class SameModel(nn.Module):
    """A module whose parameters, buffers, submodules, hooks' owners and modes are another one's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        self.__dict__["_parameters"] = model._parameters
        self.__dict__["_buffers"] = model._buffers
        self.__dict__["_modules"] = model._modules
        self.__dict__["_non_persistent_buffers_set"] = model._non_persistent_buffers_set
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_model"], name)

    def train(self, mode: bool = True) -> SameModel:
        """Sets the mode of the model and of everything in it."""
        self.training = mode
        self._model.train(mode)
        return self


@dataclass(frozen=True, eq=False)
class Step:
    """A model and what it is called with."""

    model: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    loss: None = None

    def called(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a step runs."""
        return model(*args, **kwargs)


class ByModules(SameModel):
    """A model some of whose modules run again in the backward pass.

    Attributes:
        modules_again: their names. executor, reason: what runs, and why. peak_bytes, recompute_fraction: of a step.
    """

    def __init__(self, model: nn.Module, choice: Choice, static: int, plain: Choice, reason: str) -> None:
        super().__init__(model)
        self.modules_again = choice.names
        self.peak_bytes = static + choice.peak
        self.recompute_fraction = max(choice.seconds / plain.seconds - 1.0, 0.0) if plain.seconds else 0.0
        self.executor = "modules under torch.utils.checkpoint"
        self.reason = reason

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; in the backward pass the chosen modules run again."""
        if not torch.is_grad_enabled():
            return self._model(*args, **kwargs)
        wrap(self._model, self.modules_again)
        try:
            return self._model(*args, **kwargs)
        finally:
            unwrap(self._model)

    def __str__(self) -> str:
        return (
            f"{len(self.modules_again)} modules run again, a step needs {size_text(self.peak_bytes)} for "
            f"{100 * self.recompute_fraction:.1f} % more time"
        )


def by_modules(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: int | float, error: ChainruleError
) -> ByModules:
    """The best choice of modules within a budget (bytes of everything, or a fraction of the activations).

    Raises:
        BudgetError: no choice fits; carries the least.
    """
    plain, choices = tried(Step(model, args, kwargs))
    there = [*model.parameters(), *model.buffers(), *(t for _, t in leaves((args, kwargs)))]
    static = bytes_of(there)
    limit = static + int(wanted * plain.peak) if isinstance(wanted, float) else int(wanted)
    why = " ".join(str(error).split("\n")[0].split())
    best = cheapest(choices, limit, static, "a larger budget, or a forward pass that a graph can hold")
    return ByModules(model, best, static, plain, f"the model cannot be planned as a whole ({why})")
