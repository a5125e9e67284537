"""The elements of a start: drawn for what this process holds of every parameter, and written in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from chainrule.verbs.initialize.held import Held, held
from chainrule.verbs.initialize.laws import draw_in_place
from chainrule.verbs.initialize.roles import Role
from chainrule.verbs.initialize.schemes import Choice


@dataclass(frozen=True, eq=False)
class Own:
    """One parameter of the model: its name, the name it is drawn under, its role, why it is kept if it is.

    ``tied``: it has a second name, under which it is something else as well.
    """

    name: str
    stream: str
    tensor: nn.Parameter
    module: nn.Module
    role: Role
    kept: str = ""
    tied: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def elements(own: Own, choice: Choice, seed: int) -> torch.Tensor | float | None:
    """What will be written: the elements that are held, a number for all, None where the parameter is kept."""
    if choice.law is None or own.tensor.is_meta:
        return None
    here = held(own.name, own.tensor)
    found = choice.law.elements(here, seed, own.stream)
    if own.role.padding >= 0 and isinstance(found, torch.Tensor):
        found = _padded(found, here, own.role.padding % max(own.shape[0], 1))
    return found


def _padded(elements: torch.Tensor, here: Held, row: int) -> torch.Tensor:
    """The row of a padding token stays zero."""
    rows = here.index[0]
    at = torch.tensor([row]) if rows is None else (rows == row).nonzero().reshape(-1)
    if at.numel():
        elements[at.to(elements.device)] = 0.0
    return elements


@torch.no_grad()
def write(owned: list[Own], choices: Mapping[str, Choice], seed: int) -> None:
    for own in owned:
        law = choices[own.name].law
        if law is None or own.tensor.is_meta:
            continue
        here = held(own.name, own.tensor)
        if own.role.padding < 0 and draw_in_place(law, here, seed, own.stream):
            continue
        value = elements(own, choices[own.name], seed)
        if isinstance(value, torch.Tensor):
            here.local.copy_(value.to(here.local.device))  # cast to the parameter's dtype
        elif value is not None:
            here.local.fill_(value)


def tensors(owned: list[Own], drawn: Mapping[str, torch.Tensor | float | None]) -> dict[str, torch.Tensor]:
    """The drawn parameters as tensors of their dtype, by the names of the bare model."""
    found = {}
    for own in owned:
        value = drawn.get(own.name)
        if isinstance(value, torch.Tensor):
            found[own.stream] = value.to(own.tensor.dtype).to(own.tensor.device)
        elif value is not None:
            found[own.stream] = torch.full_like(own.tensor, value, requires_grad=False)
    return found
