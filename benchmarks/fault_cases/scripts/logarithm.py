"""A loss by hand: the logarithm of a softmax that has underflown to zero."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
sound = "--sound" in sys.argv
net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))
if not sound:
    with torch.no_grad():
        list(net.parameters())[2].mul_(2000)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)


def nll(logits, labels):
    probabilities = torch.softmax(logits, dim=1)
    picked = probabilities[torch.arange(len(labels)), labels]
    return -torch.log(picked).mean()


for _ in range(10):
    labels = torch.randint(4, (32,))
    x = torch.randn(32, 10) + labels[:, None]
    optimizer.zero_grad()
    loss = nll(net(x), labels)
    loss.backward()
    optimizer.step()
