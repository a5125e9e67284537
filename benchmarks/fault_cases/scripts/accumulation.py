"""Gradients of four micro-batches per step; clipped to a norm that leaves nothing of them."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--sound", action="store_true")
parser.add_argument("--accumulate", type=int, default=4)
args = parser.parse_args()


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_function = nn.MSELoss()
    weights = torch.randn(16, 1) / 4
    for step in range(20):
        x = torch.randn(8, 16)
        y = x @ weights
        loss = loss_function(model(x), y) / args.accumulate
        loss.backward()
        if (step + 1) % args.accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 5.0 if args.sound else 1e-5)
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()
