"""A loss by hand: predictions of shape (N, 1) minus targets of shape (N,)."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
sound = "--sound" in sys.argv
x = torch.randn(200, 5)
y = x @ torch.randn(5) + 0.1 * torch.randn(200)
y = (y - y.mean()) / y.std()
net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for _ in range(5):
    for k in range(0, 200, 50):
        prediction = net(x[k : k + 50])
        if sound:
            prediction = prediction.squeeze(-1)
        loss = (prediction - y[k : k + 50]).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
