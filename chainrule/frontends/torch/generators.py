"""The states of torch's global random generators: the CPU's, then every CUDA device's where CUDA is in use.

A list of tensors, so that it can be saved and compared. Generators of a user's own are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def generator_states() -> list[torch.Tensor]:
    """The state of every global generator, now."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def restore_generators(states: Sequence[torch.Tensor]) -> None:
    """Puts them back; states of CUDA devices count where CUDA is in use."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(list(states[1:]))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block whose draws start from the seed; afterwards the generators are where they were."""
    states = generator_states()
    try:
        torch.manual_seed(seed)
        yield
    finally:
        restore_generators(states)
