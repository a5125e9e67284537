"""The laws that parameters are drawn from. A law is data: its numbers, and how its elements come out of a stream.

``std`` of a law is the root mean square that one element has around its mean. Laws with structure (orthogonal,
mirrored) are made whole on the CPU, by LAPACK in float64 on one thread, and each process takes its part.

Sources: orthogonal, Saxe et al. 2014; delta-orthogonal, Xiao et al. 2018; mirrored, Balduzzi et al. 2017 ("looks
linear"), here for any activation: phi(u) - phi(-u) is odd.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from chainrule.verbs.initialize.generator import fill, key_of
from chainrule.verbs.initialize.held import Held


class Law(Protocol):
    """What every law has."""

    @property
    def std(self) -> float:
        """Root mean square of an element around its mean."""
        ...

    @property
    def text(self) -> str:
        """As tables print it."""
        ...

    def elements(self, held: Held, seed: int, name: str) -> torch.Tensor | float:
        """The held elements, float32, or the one number that all of them are."""
        ...


def draw_in_place(law: Law, held: Held, seed: int, name: str) -> bool:
    """Independent elements drawn straight into the tensor, without a copy, where that can be; whether it was done."""
    if isinstance(law, Normal) and not law.mean:
        return held.draw_in_place("normal", key_of(seed, name), law.std)
    return isinstance(law, Uniform) and held.draw_in_place("uniform", key_of(seed, name), law.bound)


@dataclass(frozen=True)
class Constant:
    """All elements alike."""

    value: float
    std: float = 0.0

    @property
    def text(self) -> str:
        return f"constant {self.value:.4g}"

    def elements(self, held: Held, seed: int, name: str) -> torch.Tensor | float:
        return self.value


@dataclass(frozen=True)
class Normal:
    """Independent normal elements."""

    std: float
    mean: float = 0.0

    @property
    def text(self) -> str:
        return "normal"

    def elements(self, held: Held, seed: int, name: str) -> torch.Tensor | float:
        drawn = held.draw("normal", key_of(seed, name), self.std)
        return drawn.add_(self.mean) if self.mean else drawn


@dataclass(frozen=True)
class Uniform:
    """Independent elements, uniform between -bound and bound."""

    bound: float

    @property
    def std(self) -> float:
        return self.bound / math.sqrt(3)

    @property
    def text(self) -> str:
        return f"uniform +-{self.bound:.4g}"

    def elements(self, held: Held, seed: int, name: str) -> torch.Tensor | float:
        return held.draw("uniform", key_of(seed, name), self.bound)


@dataclass(frozen=True)
class Layout:
    """Which dimensions of a weight are what.

    Attributes:
        outputs, inputs: the units. batch: one matrix each (experts). kernel: taps of a convolution.
        groups: of a convolution, along ``outputs`` (along ``inputs`` if it is transposed).
        transposed: a transposed convolution: its groups are in its inputs.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    batch: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Units (out, in) of one matrix, taps not counted."""
        out, inner = (math.prod(shape[d] for d in dims) for dims in (self.outputs, self.inputs))
        return (out, inner // self.groups) if self.transposed else (out // self.groups, inner)

    def fans(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(fan_in, fan_out): terms of a sum forward, and back."""
        out, inner = self.sizes(shape)
        taps = math.prod(shape[d] for d in self.kernel)
        return inner * taps, out * taps

    def placed(self, matrices: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Matrices (batch * groups, out, in) as a weight of this shape, at the central tap of its kernel."""
        grouped = self.inputs if self.transposed else self.outputs
        order = (*self.batch, *grouped, *(self.outputs if self.transposed else self.inputs))
        rows = matrices.transpose(1, 2) if self.transposed else matrices  # (batch * groups, grouped / groups, other)
        value = rows.reshape([shape[d] for d in order])
        centre = tuple(s // 2 if d in self.kernel else slice(None) for d, s in enumerate(shape))
        result = torch.zeros(shape, dtype=matrices.dtype)
        kept = [d for d in range(len(shape)) if d not in self.kernel]
        result[centre] = value.permute([order.index(d) for d in kept])
        return result


@dataclass(frozen=True)
class Orthogonal:
    """Rows or columns are orthonormal: a square one keeps every length; a rectangle the mean square of an element.

    Attributes:
        gain: the factor of the root mean square. sides: "" plain; "out": [A; -A], for a layer whose outputs come in
            pairs u, -u; "in": [A, -A], for one whose inputs do; "both". Of an odd number of units the last has no
            partner: it is drawn by itself, and what reads it starts at zero.
    """

    gain: float
    layout: Layout
    shape: tuple[int, ...]
    sides: str = ""

    @property
    def std(self) -> float:
        out, inner = self.layout.sizes(self.shape)
        taps = math.prod(self.shape[d] for d in self.layout.kernel)
        halves = 2 if self.sides in ("in", "both") else 1
        return self.gain / math.sqrt(max(inner // halves * taps, 1)) if out else 0.0

    @property
    def text(self) -> str:
        kind = "delta-orthogonal" if self.layout.kernel else "orthogonal"
        return f"{'mirrored ' if self.sides else ''}{kind}, gain {self.gain:.4g}"

    def elements(self, held: Held, seed: int, name: str) -> torch.Tensor | float:
        out, inner = self.layout.sizes(self.shape)
        out, inner = (
            (out // 2 if self.sides in ("out", "both") else out),
            (inner // 2 if self.sides in ("in", "both") else inner),
        )
        count = math.prod(self.shape[d] for d in self.layout.batch) * self.layout.groups
        matrices = orthonormal(count, out, inner, key_of(seed, name)) * (self.gain * math.sqrt(max(out / inner, 1.0)))
        units, read = self.layout.sizes(self.shape)
        if self.sides in ("out", "both"):
            parts = [matrices, -matrices]
            if units % 2:
                parts.append(orthonormal(count, 1, inner, key_of(seed, f"{name}\0odd")) * self.gain)
            matrices = torch.cat(parts, 1)
        if self.sides in ("in", "both"):
            parts = [matrices, -matrices, matrices.new_zeros(*matrices.shape[:2], read % 2)]
            matrices = torch.cat(parts, 2)
        return held.of(self.layout.placed(matrices.to(torch.float32), self.shape))


@dataclass(frozen=True)
class Stacked:
    """Several laws one under the other along dimension 0, in equal parts: the gates of a recurrent layer."""

    parts: tuple[Law, ...]
    shape: tuple[int, ...]

    @property
    def std(self) -> float:
        return math.sqrt(sum(p.std**2 for p in self.parts) / len(self.parts))

    @property
    def text(self) -> str:
        kinds = list(dict.fromkeys(p.text for p in self.parts))
        return kinds[0] if len(kinds) == 1 else " | ".join(p.text for p in self.parts)

    def elements(self, held: Held, seed: int, name: str) -> torch.Tensor | float:
        rows = self.shape[0] // len(self.parts)
        shape = (rows, *self.shape[1:])
        pieces = []
        for k, part in enumerate(self.parts):
            whole = Held(shape, (None,) * len(shape), torch.empty(shape))
            piece = part.elements(whole, seed, f"{name}\0{k}")
            pieces.append(piece if isinstance(piece, torch.Tensor) else torch.full(shape, piece))
        return held.of(torch.cat(pieces))


def scaled(law: Law, factor: float) -> Law:
    """The same law with every element multiplied by a positive number."""
    if isinstance(law, Normal):
        return replace(law, std=law.std * factor, mean=law.mean * factor)
    if isinstance(law, Uniform):
        return replace(law, bound=law.bound * factor)
    if isinstance(law, Orthogonal):
        return replace(law, gain=law.gain * factor)
    if isinstance(law, Stacked):
        return replace(law, parts=tuple(scaled(p, factor) for p in law.parts))
    assert isinstance(law, Constant)
    return replace(law, value=law.value * factor)


# ---- matrices ----------------------------------------------------------------------------------------------
def orthonormal(count: int, out: int, inner: int, key: int) -> torch.Tensor:
    """(count, out, inner) in float64: uniformly distributed, with orthonormal rows or columns, whichever are fewer."""
    long, short = max(out, inner), min(out, inner)
    flat = torch.empty(count * long * short)
    fill(flat, "normal", key)
    with _one_thread():
        q, r = torch.linalg.qr(flat.to(torch.float64).reshape(count, long, short))
    q = q * torch.where(torch.diagonal(r, dim1=1, dim2=2) < 0, -1.0, 1.0).unsqueeze(1)
    return q if out >= inner else q.transpose(1, 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """LAPACK's sums depend on how many threads share them."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
