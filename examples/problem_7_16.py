"""Problem 7.16: the training code of figure 7.8, and its plot of the training loss against epochs.

python problem_7_16.py                        trains it as the figure does and with cr.fit, writes loss.svg and loss.png
chainrule fit problem_7_16.py:setup           the second of these, from the command line
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import chainrule as cr


def setup() -> dict:
    """Model, data, loss, optimizer, scheduler and epochs of figure 7.8."""
    torch.manual_seed(0)
    inputs, hidden, outputs = 10, 40, 5
    model = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):  # He initialization
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    x, y = torch.randn(100, inputs), torch.randn(100, outputs)
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {
        "model": model,
        "data": loader,
        "loss": nn.MSELoss(),
        "optimizer": optimizer,
        "scheduler": StepLR(optimizer, step_size=10, gamma=0.5),  # halves the learning rate every 10 epochs
        "epochs": 100,
    }


def loop() -> list[float]:
    """The same training as a PyTorch loop: mean loss of each epoch."""
    s = setup()
    model, criterion, optimizer, scheduler = s["model"], s["loss"], s["optimizer"], s["scheduler"]
    curve = []
    for _ in range(s["epochs"]):
        losses = []
        for x, y in s["data"]:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
        curve.append(sum(losses) / len(losses))
    return curve


if __name__ == "__main__":
    history = cr.fit(**setup())
    print(history)
    by_hand = loop()
    difference = max(abs(a - b) / b for a, b in zip(history.loss, by_hand, strict=True))
    print(f"largest relative difference to the loop: {difference:.0e}")
    history.plot("loss.svg")
    history.plot("loss.png")
