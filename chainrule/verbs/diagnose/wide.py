"""Sums in float64 over tensors of any dtype, a piece at a time: a wide copy of a weight is twice its memory."""

from __future__ import annotations

import math

import torch

_PIECE = 1 << 18  # entries


def norm(t: torch.Tensor) -> float:
    """Euclidean norm; 0 of an empty tensor."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(p, dtype=torch.float64)) ** 2 for p in pieces(t)))


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of a * b."""
    return sum(float(torch.dot(p.double(), q.double())) for p, q in zip(pieces(a), pieces(b), strict=True))


def moved(now: torch.Tensor, before: torch.Tensor, gradient: torch.Tensor) -> tuple[float, float, float]:
    """(norm of the change, gradient times change, share of entries with a gradient that did not change)."""
    squares, product, touched, still = 0.0, 0.0, 0, 0
    for p, q, g in zip(pieces(now), pieces(before), pieces(gradient), strict=True):
        change = p.double() - q.double()
        live = g != 0
        squares += float(change.square().sum())
        product += float(torch.dot(g.double(), change))
        touched += int(live.sum())
        still += int(((change == 0) & live).sum())
    return math.sqrt(squares), product, still / touched if touched else 0.0


def row_sums(rows: torch.Tensor) -> torch.Tensor:
    """Sums over dimension 1, in float64."""
    at_a_time = max(_PIECE // max(rows.shape[1], 1), 1)
    return torch.cat([part.double().sum(1) for part in rows.split(at_a_time)]) if len(rows) else rows.double().sum(1)


def pieces(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The entries in flat parts of moderate size."""
    return t.detach().reshape(-1).split(_PIECE) if t.numel() else ()
