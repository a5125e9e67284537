"""Two optimizers: a GAN whose generator is trained through a detached sample."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
sound = "--sound" in sys.argv
generator = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
opt_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
opt_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
real, fake = torch.ones(32, 1), torch.zeros(32, 1)

for _ in range(10):
    data = torch.randn(32, 2) * 0.5 + 1
    sample = generator(torch.randn(32, 8))
    opt_d.zero_grad()
    loss_d = criterion(discriminator(data), real) + criterion(discriminator(sample.detach()), fake)
    loss_d.backward()
    opt_d.step()
    opt_g.zero_grad()
    shown = sample if sound else sample.detach()
    loss_g = criterion(discriminator(shown), real)
    loss_g.backward()
    opt_g.step()
