"""Problem 7.17: the code of figure 7.8 for binary classification, in the two ways that are right and one that is not.

python problem_7_17.py
chainrule fit problem_7_17.py:with_logits
chainrule diagnose problem_7_17.py:squashed_twice     # exit code 1: the loss takes a second sigmoid
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import chainrule as cr


def setup(squashed: bool, loss: nn.Module) -> dict:
    """Figure 7.8 with targets that are 0 or 1, and an output between 0 and 1 or its logit."""
    torch.manual_seed(0)
    layers = [nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    model = nn.Sequential(*layers, *([nn.Sigmoid()] if squashed else []))
    x, y = torch.randn(100, 10), torch.randint(0, 2, (100, 1)).float()
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {
        "model": model,
        "batch": (x[:10], y[:10]),
        "data": loader,
        "loss": loss,
        "optimizer": optimizer,
        "scheduler": StepLR(optimizer, step_size=10, gamma=0.5),
        "epochs": 100,
    }


def printed() -> dict:
    """As printed: a sigmoid after the last layer, and binary cross-entropy."""
    return setup(squashed=True, loss=nn.BCELoss())


def with_logits() -> dict:
    """The same function with the sigmoid inside of the loss, where it is computed without rounding to 0 or 1."""
    return setup(squashed=False, loss=nn.BCEWithLogitsLoss())


def squashed_twice() -> dict:
    """Wrong: the loss takes the sigmoid of a sigmoid, so no probability can leave (0.5, 0.731)."""
    return setup(squashed=True, loss=nn.BCEWithLogitsLoss())


if __name__ == "__main__":
    a, b = (cr.fit(cr.case(**way())) for way in (printed, with_logits))
    print("printed:    ", a)
    print("with logits:", b)
    print(f"largest difference of the two curves: {max(abs(p - q) for p, q in zip(a.loss, b.loss, strict=True)):.0e}")
    print(cr.diagnose(cr.case(**squashed_twice())))
