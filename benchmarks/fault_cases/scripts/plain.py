"""A plain loop: the model ends in a softmax and the loss is cross-entropy."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
sound = "--sound" in sys.argv
centres = torch.randn(5, 20) * 2
labels = torch.arange(256) % 5
data = DataLoader(TensorDataset(centres[labels] + torch.randn(256, 20), labels), batch_size=32, shuffle=True)

net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
if not sound:
    net.append(nn.Softmax(dim=1))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

for epoch in range(3):
    for x, y in data:
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        optimizer.step()
    print(epoch, loss.item())
