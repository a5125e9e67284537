"""zero_grad is never called."""

import sys

import torch
from torch import nn


def train(sound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for _ in range(30):
        x = torch.randn(16, 10)
        y = x.sum(1, keepdim=True) / 3
        if sound:
            optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()


train("--sound" in sys.argv)
