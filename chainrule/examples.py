"""The book's networks as cases, ready for every verb."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from chainrule.verbs.case import Case, case


def figure_7_8(seed: int = 0) -> Case:
    """The training example of figure 7.8: 10-40-40-5 ReLU network on 100 random points.

    He-normal weights, zero biases, mean squared error, SGD with momentum 0.9 and learning rate 0.1 halved every 10
    epochs, batches of 10, 100 epochs. ``chainrule.fit(case)`` trains it.

    >>> figure_7_8().epochs
    100
    """
    generator = torch.Generator().manual_seed(seed)
    # Built on the meta device, so that no draw is taken from the user's generator.
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    model = model.to_empty(device="cpu")
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    x = torch.randn(100, 10, generator=generator)
    y = torch.randn(100, 5, generator=generator)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=10, gamma=0.5)
    return case(model, (x[:10], y[:10]), nn.MSELoss(), optimizer, data=loader, epochs=100, scheduler=scheduler)


def figure_7_8_zeros(seed: int = 0) -> Case:
    """The same network with all weights and biases zero: problem 7.15."""
    zeros = figure_7_8(seed)
    with torch.no_grad():
        for parameter in zeros.model.parameters():
            parameter.zero_()
    return zeros


def fifty_layers(seed: int = 0) -> Case:
    """The network of problem 7.11 with the weights that PyTorch gives it: fifty ReLU layers of 40 units.

    The data of figure 7.8, mean squared error, SGD with momentum 0.9 and learning rate 0.003, batches of 10, 100
    epochs. Linear layers start with variance 1 / (3 fan_in), so each of them, with its ReLU, multiplies the gradient by
    sqrt(1/3 * 1/2) = 0.41: it does not train.

    >>> sum(isinstance(m, nn.Linear) for m in fifty_layers().model)
    51
    """
    widths = [10, *[40] * 50, 5]
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # so that no draw is taken from the user's generator
        pairs = [(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
        model = nn.Sequential(*[layer for pair in pairs for layer in pair][:-1])
    model = model.to_empty(device="cpu")
    for layer in model:
        if isinstance(layer, nn.Linear):  # as nn.Linear.reset_parameters: uniform, both of them
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    x = torch.randn(100, 10, generator=generator)
    y = torch.randn(100, 5, generator=generator)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    return case(model, (x[:10], y[:10]), nn.MSELoss(), optimizer, data=loader, epochs=100)


def gradient_difference(example: Case, dtype: torch.dtype | str = "float64") -> float:
    """The largest relative difference between the derived gradient and torch.autograd's over all parameters.

    Relative to the largest entry of each parameter's gradient; computed on a copy of the model in ``dtype``.

    >>> gradient_difference(figure_7_8(), "float32") < 1e-5
    True
    """
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    copied = copy.deepcopy(example.model).to(dtype)
    batch = tuple(t.to(dtype) if t.is_floating_point() else t for t in example.batch)
    _, grads = Case(copied, batch, example.loss).step(dict(copied.named_parameters()), batch)
    assert callable(example.loss)
    example.loss(copied(batch[0]), batch[1]).backward()
    worst = 0.0
    for name, parameter in copied.named_parameters():
        # No gradient is a gradient of zero: one side's missing where the other has one is a difference.
        ours, theirs = (torch.zeros_like(parameter) if g is None else g for g in (grads[name], parameter.grad))
        scale = float(theirs.abs().max()) or 1.0
        worst = max(worst, float((ours - theirs).abs().max()) / scale)
    return worst
