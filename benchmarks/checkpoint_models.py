"""The networks that checkpointing is measured on, and their joint graphs by AOTAutograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-LN transformer block with attention written out."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(d, 2)
        q, k, v = (z.reshape(b, t, self.heads, d // self.heads).transpose(1, 2) for z in (q, k, v))
        scores = q @ k.transpose(2, 3) / (d // self.heads) ** 0.5
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
            scores = scores.masked_fill(~mask, float("-inf"))
        mixed = self.drop(scores.softmax(-1)) @ v
        x = x + self.drop(self.proj(mixed.transpose(1, 2).reshape(b, t, d)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)))))


class GPT(nn.Module):
    """Token and position embeddings, blocks, a head."""

    def __init__(
        self, layers: int, width: int = 256, heads: int = 4, length: int = 256, words: int = 1024, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, True, dropout) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class ViT(nn.Module):
    """Patches, blocks, the mean, a head."""

    def __init__(
        self, layers: int = 12, width: int = 192, heads: int = 3, size: int = 224, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.positions = nn.Parameter(torch.zeros((size // 16) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, False, 0.0) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x).mean(1))


class BERT(nn.Module):
    """Post-LN blocks of torch's own kind of layer, with a mask that all of them read."""

    def __init__(
        self, layers: int = 12, width: int = 256, heads: int = 4, length: int = 128, words: int = 1024
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.ln = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PostBlock(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens == 0).to(torch.float32)[:, None, None, :] * -1e9
        x = self.ln(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


class PostBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.proj, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (f(x).reshape(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) / (d // self.heads) ** 0.5 + mask).softmax(-1)
        x = self.ln1(x + self.proj((weights @ v).transpose(1, 2).reshape(b, t, d)))
        return self.ln2(x + self.down(F.gelu(self.up(x))))


class ConvBlock(nn.Module):
    """conv, norm, relu, conv, norm, add, relu."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = (nn.BatchNorm2d(width, track_running_stats=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """A stem of stride 2 and blocks of one width."""

    def __init__(self, blocks: int = 12, width: int = 64) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width, track_running_stats=False)
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class Twice(nn.Module):
    """Two of conv, norm, relu."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.bn1, self.bn2 = (nn.BatchNorm2d(after, track_running_stats=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class UNet(nn.Module):
    """Two levels down, two levels up, with skips."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Twice(3, width), Twice(width, 2 * width), Twice(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge2, self.merge1, self.head = (
            Twice(4 * width, 2 * width),
            Twice(2 * width, width),
            nn.Conv2d(width, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([b, self.up2(c)], 1))
        return self.head(self.merge1(torch.cat([a, self.up1(b)], 1)))


def _tokens(batch: int, length: int, words: int = 1024) -> tuple[Any, Any, Callable[..., Any]]:
    loss = lambda out, target: F.cross_entropy(out.flatten(0, 1), target.flatten())  # noqa: E731
    return torch.randint(words, (batch, length)), torch.randint(words, (batch, length)), loss


def made(name: str) -> tuple[nn.Module, Any, Any, Callable[..., Any]]:
    """(model, inputs, target, loss) by name: GPT-4, GPT-12, GPT-32, GPT-128, BERT-12, ViT-12, ResNet-12, U-Net."""
    kind, _, size = name.partition("-")
    if kind == "GPT":
        return (GPT(int(size)), *_tokens(8, 256))
    if kind == "BERT":
        return (BERT(int(size)), *_tokens(16, 128))
    if kind == "ViT":
        return ViT(int(size)), torch.randn(8, 3, 224, 224), torch.randint(1000, (8,)), F.cross_entropy
    if kind == "ResNet":
        return ResNet(int(size)), torch.randn(16, 3, 128, 128), torch.randint(10, (16,)), F.cross_entropy
    return UNet(), torch.randn(8, 3, 128, 128), torch.randint(2, (8, 128, 128)), F.cross_entropy


NAMES = ("GPT-12", "GPT-32", "ResNet-12", "U-Net", "BERT-12", "ViT-12")


def joint(
    model: nn.Module, inputs: Any, target: Any, loss: Callable[..., Any]
) -> tuple[torch.fx.GraphModule, list[Any]]:
    """AOTAutograd's joint graph of one step, on fake tensors: the loss is its one forward output."""
    names = [n for n, _ in model.named_parameters()]

    def step(*given: Any) -> tuple[torch.Tensor]:
        parameters = dict(zip(names, given[: len(names)], strict=True))
        x, y = given[len(names) :]
        return (loss(torch.func.functional_call(model, parameters, (x,)), y),)

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [mode.from_tensor(p.detach()).requires_grad_() for p in model.parameters()]
        fakes += [mode.from_tensor(inputs), mode.from_tensor(target)]
        module = aot_export_joint_simple(step, tuple(fakes), trace_joint=True)
    assert isinstance(module, torch.fx.GraphModule)
    return module, fakes
