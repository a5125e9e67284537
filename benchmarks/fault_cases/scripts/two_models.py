"""Encoder and decoder with one optimizer, which was given the encoder's parameters only."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
sound = "--sound" in sys.argv
encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 20))
parameters = [*encoder.parameters(), *decoder.parameters()] if sound else encoder.parameters()
optimizer = torch.optim.Adam(parameters, lr=1e-3)
basis = torch.randn(4, 20)
for _ in range(20):
    x = torch.randn(32, 4) @ basis / 2
    code = encoder(x)
    loss = nn.functional.mse_loss(decoder(code), x) + 1e-3 * code.abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
