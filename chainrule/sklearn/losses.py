"""Losses of the estimators: one number per sample, and what a batch makes of them.

Sources: scikit-learn's ``neural_network._base`` for the values of log_loss, squared_error and poisson.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _squared(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Half the squared error, as in scikit-learn: its value is the mean over outputs, its gradient the sum's."""
    each = 0.5 * (z - y).square()
    if z.shape[1] == 1:
        return each.sum(1)
    mean = each.mean(1)
    rest = each.sum(1) - mean
    return mean + (rest - rest.detach())


# name -> (what the model's last layer goes through to be a prediction, (output, target, parameter) -> one per sample)
REGRESSION: dict[str, tuple[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]]] = {
    "squared_error": ("identity", lambda z, y, _: _squared(z, y)),
    "absolute_error": ("identity", lambda z, y, _: (z - y).abs().sum(1)),
    "huber": ("identity", lambda z, y, delta: F.huber_loss(z, y, reduction="none", delta=delta).sum(1)),
    "quantile": ("identity", lambda z, y, q: torch.maximum(q * (y - z), (q - 1) * (y - z)).sum(1)),
    "poisson": ("exp", lambda z, y, _: (z.exp() - y * z + torch.xlogy(y, y) - y).sum(1)),
}


def classification(name: str, out: str) -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    """The loss of logits: targets are class numbers under softmax, zeros and ones under logistic."""
    if name == "brier":
        if out == "softmax":
            return lambda z, y, _: (z.softmax(1) - F.one_hot(y, z.shape[1]).to(z.dtype)).square().sum(1)
        return lambda z, y, _: 2 * (z.sigmoid() - y).square().sum(1)
    if out == "softmax":
        return lambda z, y, _: F.cross_entropy(z, y, reduction="none")
    return lambda z, y, _: F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)


def per_sample(value: torch.Tensor, samples: int) -> torch.Tensor | None:
    """A loss of one's own as one number per sample; None if it is a mean already."""
    if value.dim() and value.shape[0] == samples:
        return value.reshape(samples, -1).sum(1)
    return None


@dataclass(frozen=True)
class Objective:
    """``(model, batch) -> scalar``: mean loss of a batch ``(X, y)`` or ``(X, y, weights)``, and the penalty.

    Attributes:
        loss: ``(output, target)`` -> one per sample (or, for a loss of one's own, their mean).
        alpha: of the penalty ``alpha / 2 / samples * sum of squared weights``, biases excepted.
    """

    loss: Loss
    alpha: float = 0.0

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y, *weights = batch
        losses = self.loss(model(x), y)
        if losses.dim() == 0:
            if weights:
                raise ValueError("sample weights need a loss that returns one number per sample")
            value, count = losses, x.shape[0]
        elif weights:
            count = weights[0].sum()
            count = torch.where(count > 0, count, torch.ones_like(count))  # a batch may have no weight at all
            value = (weights[0] * losses).sum() / count
        else:
            value, count = losses.mean(), x.shape[0]
        if self.alpha:
            squares = [layer.weight.square().sum() for layer in model.modules() if isinstance(layer, nn.Linear)]
            value = value + 0.5 * self.alpha * sum(squares) / count
        return value
