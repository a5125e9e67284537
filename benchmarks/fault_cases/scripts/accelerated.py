"""Accelerate: the hidden layers are in a Python list."""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sound = "--sound" in sys.argv


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.inward = nn.Linear(10, width)
        hidden = [nn.Linear(width, width) for _ in range(3)]
        self.hidden = nn.ModuleList(hidden) if sound else hidden
        self.outward = nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.inward(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.outward(x)


torch.manual_seed(0)
y = torch.arange(96) % 3
x = torch.randn(96, 10) + y[:, None]
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
net = Net()
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(x, y), batch_size=16)
net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
for x, y in loader:
    with accelerator.accumulate(net):
        loss = nn.functional.cross_entropy(net(x), y)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
