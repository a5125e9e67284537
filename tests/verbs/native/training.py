"""One training run by the native engine and by torch, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from chainrule.verbs.native import native_engine


def rounding(dtype: torch.dtype) -> float:
    """Relative difference that a few dozen steps may pile up by summing in another order."""
    return 1e-10 if dtype == torch.float64 else 2e-4


def trained_twice(
    model: torch.nn.Module,
    data: tuple[torch.Tensor, ...],
    loss: Any,
    make: Callable[[Any], torch.optim.Optimizer],
    *,
    objective: Any = None,
    batch: int = 8,
    steps: int = 10,
    dtype: torch.dtype = torch.float64,
    short: bool = False,
) -> tuple[Any, Any]:
    """((losses, model, optimizer) of the native engine, of torch), from the same start on the same samples.

    ``short``: the last batch is. Rates change from step to step.
    """
    model = model.to(dtype)
    data = tuple(t.to(dtype) if t.is_floating_point() else t for t in data)
    reference = copy.deepcopy(model)
    optimizer, other = make(model.parameters()), make(reference.parameters())
    example = tuple(t[:batch] for t in data) if loss is not None else data[0][:batch]
    count = len(data[0])
    generator = np.random.default_rng(0)
    epochs = -(-steps * batch // count)
    order = np.concatenate([generator.permutation(count) for _ in range(epochs)])
    order = order[: (steps - 1) * batch + max(1, batch // 2 if short else batch)]
    rates = other.param_groups[0]["lr"] * 0.97 ** np.arange(steps)
    engine = native_engine(model, example, loss, optimizer, objective=objective)
    losses = engine.run(data, order, batch, rates)
    engine.store()
    expected = []
    for step in range(steps):
        at = torch.from_numpy(order[step * batch : (step + 1) * batch])
        for group in other.param_groups:
            group["lr"] = rates[step]
        other.zero_grad()
        value = objective(reference, data[0][at]) if loss is None else loss(reference(data[0][at]), data[1][at])
        value.backward()
        other.step()
        expected.append(value.item())
    return (losses, model, optimizer), (np.array(expected), reference, other)


def assert_same(ours: Any, torchs: Any, tolerance: float) -> None:
    """Losses, parameters, buffers and optimizer state agree."""
    scale = max(1e-12, np.abs(torchs[0]).max())
    assert np.abs(ours[0] - torchs[0]).max() <= tolerance * scale
    for (name, a), b in zip(ours[1].state_dict().items(), torchs[1].state_dict().values(), strict=True):
        size = max(1e-3, b.double().abs().max().item())
        assert (a.double() - b.double()).abs().max().item() <= 30 * tolerance * size, name
    state, other = ours[2].state_dict()["state"], torchs[2].state_dict()["state"]
    assert state.keys() == other.keys()
    for k in other:
        held = {n: v for n, v in other[k].items() if v is not None}
        assert held.keys() <= state[k].keys()
        for name, value in held.items():
            a, b = torch.as_tensor(state[k][name]).double(), torch.as_tensor(value).double()
            assert a.shape == b.shape, name
            assert (a - b).abs().max() <= 30 * tolerance * max(1e-3, b.abs().max().item()), name
