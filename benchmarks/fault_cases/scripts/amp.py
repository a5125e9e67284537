"""Mixed precision: autocast and a GradScaler, gradients unscaled and clipped; features are detached in the model."""

import sys

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
sound = "--sound" in sys.argv


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8 * 64, 4)

    def forward(self, x):
        features = self.body(x).flatten(1)
        if not sound:
            features = features.detach()
        return self.head(features)


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
scaler = torch.amp.GradScaler("cpu")
for _ in range(5):
    y = torch.randint(4, (16,))
    x = torch.randn(16, 1, 8, 8) + y[:, None, None, None]
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(net(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
