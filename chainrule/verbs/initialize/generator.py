"""Random numbers by counter: element ``i`` of a stream is a function of the stream's key and of ``i`` alone.

A key is made of a seed and a name. Whoever holds some elements of a tensor can draw exactly these, in any order, on
any device, and gets the bits that anyone else gets: nothing here depends on chunks, threads or torch's generators.
Only integer arithmetic and single roundings (one addition or multiplication at a time) are used, which every device
does alike; logarithms and cosines, which they do not, are avoided by a table of the normal quantile function.

An index is a block and a place in it. Block and key are mixed by the finaliser of SplitMix64 (Steele, Lea, Flood
2014), so is the place; the two are joined and multiplied twice more. Right shifts are arithmetic, because torch has
no others.
"""

from __future__ import annotations

import hashlib
from functools import cache
from statistics import NormalDist

import numpy as np
import torch

from chainrule.verbs.initialize.kernel import WORTHWHILE, compiled

_BLOCK_BITS = 16
BLOCK = 1 << _BLOCK_BITS  # elements that share a block key; they are drawn at once and stay in the second-level cache

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_JOIN_1, _JOIN_2 = 0xD1342543DE82EF95, 0xAEF17502108EF2D9
_SEGMENT_BITS = 8  # 2^8 segments of the quantile table per power of two
_FRACTION_BITS = 23 - _SEGMENT_BITS
_OCTAVES = 32  # magnitudes are 0.5 .. 2^31


def key_of(seed: int, name: str, purpose: str = "") -> int:
    """The key of a stream as a signed 64-bit number."""
    digest = hashlib.blake2b(f"{seed}\0{name}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _signed(value: int) -> int:
    """A number modulo 2^64, as torch's int64 holds it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _split_mix(state: torch.Tensor) -> torch.Tensor:
    """The finaliser, on int64."""
    state = (state ^ (state >> 30)) * _signed(_MIX_1)
    state = (state ^ (state >> 27)) * _signed(_MIX_2)
    return state ^ (state >> 31)


def _block_keys(key: int, blocks: torch.Tensor) -> torch.Tensor:
    """The keys of numbered blocks of a stream."""
    return _split_mix(blocks * _signed(_GOLDEN) + key)


@cache
def _places(device: torch.device) -> torch.Tensor:
    """Every place of a block, mixed."""
    return _split_mix(torch.arange(1, BLOCK + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN))


class _Buffers:
    """Scratch of one block: allocating it anew for every op costs more than the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        def of(dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(BLOCK, dtype=dtype, device=device)

        self.state, self.shifted = of(torch.int64), of(torch.int64)
        self.bits, self.magnitude, self.segment, self.fraction = (of(torch.int32) for _ in range(4))
        self.place, self.constant = of(torch.float32), of(torch.float32)

    def first(self, n: int) -> _Buffers:
        """The same for n elements."""
        part = object.__new__(_Buffers)
        part.__dict__.update({name: buffer[:n] for name, buffer in self.__dict__.items()})
        return part

    def mix(self) -> None:
        """32 random bits per element into ``bits``, from block key xor mixed place in ``state``."""
        self.state.mul_(_signed(_JOIN_1))
        torch.bitwise_right_shift(self.state, 32, out=self.shifted)
        self.state.bitwise_xor_(self.shifted).mul_(_signed(_JOIN_2))
        torch.bitwise_right_shift(self.state, 32, out=self.shifted)
        self.bits.copy_(self.shifted)


# ---- laws --------------------------------------------------------------------------------------------------
@cache
def _quantiles() -> np.ndarray:
    """Lines through -quantile(m / 2^32) on segments of m, 2^8 to an octave of 0.5 .. 2^31: rows constant, slope.

    The argument is the lower bits of the float m. Errors are below 3e-6, of either sign within a segment.
    """
    inverse = NormalDist().inv_cdf
    at = 0.5 * (1 - np.cos(np.array([1.0, 3.0]) * np.pi / 4))  # the Chebyshev points: where a line errs least
    table = np.zeros((2, (_OCTAVES + 1) << _SEGMENT_BITS))
    for segment in range(_OCTAVES << _SEGMENT_BITS):
        octave, part = divmod(segment, 1 << _SEGMENT_BITS)
        low = 2.0 ** (octave - 1)
        first, last = (-inverse(min((low + (part + t) * low / 2**_SEGMENT_BITS) / 2**32, 0.5)) for t in at)
        slope = (last - first) / (at[1] - at[0])
        table[:, segment] = first - slope * at[0], slope / 2.0**_FRACTION_BITS
    return table.astype(np.float32)


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    constant, slope = (torch.from_numpy(row.copy()).to(device) for row in _quantiles())
    return constant, slope


_FIRST_SEGMENT = 126 << _SEGMENT_BITS  # of 0.5, by the exponent of a float


def _normal(b: _Buffers, out: torch.Tensor) -> None:
    """Standard normal float32 from 32 random bits: one for the sign, 31 for the quantile."""
    constant, slope = _tables(out.device)
    torch.bitwise_and(b.bits, 0x7FFFFFFF, out=b.segment)
    magnitude = b.constant.copy_(b.segment).add_(0.5).view(torch.int32)
    torch.bitwise_right_shift(magnitude, _FRACTION_BITS, out=b.segment)
    b.segment.sub_(_FIRST_SEGMENT)
    torch.bitwise_and(magnitude, (1 << _FRACTION_BITS) - 1, out=b.fraction)
    b.place.copy_(b.fraction)
    torch.index_select(slope, 0, b.segment, out=out)
    out.mul_(b.place).add_(torch.index_select(constant, 0, b.segment, out=b.constant))
    out.view(torch.int32).bitwise_xor_(b.bits.bitwise_and_(-0x80000000))


def _uniform(b: _Buffers, out: torch.Tensor) -> None:
    """Uniform float32 on (-1, 1): odd multiples of 2^-24."""
    out.copy_(b.bits.bitwise_right_shift_(8))  # -2^23 .. 2^23 - 1
    out.add_(0.5).mul_(2.0**-23)


_LAWS = {"normal": _normal, "uniform": _uniform}


# ---- what is drawn -----------------------------------------------------------------------------------------
def fill(out: torch.Tensor, law: str, key: int, start: int = 0, scale: float = 1.0) -> None:
    """Elements ``start, start + 1, ...`` of a stream into a contiguous one-dimensional float32 tensor.

    Args:
        law: ``"normal"`` (mean 0, variance 1) or ``"uniform"`` (on -1 .. 1). scale: what they are multiplied by.
    """
    end, places = start + out.numel(), _places(out.device)
    first, last = start >> _BLOCK_BITS, (end - 1) >> _BLOCK_BITS
    keys = _block_keys(key, torch.arange(first, last + 1)).tolist() if out.numel() else []
    native = compiled(_signed(_JOIN_1), _signed(_JOIN_2), _FRACTION_BITS, _FIRST_SEGMENT) if _native(out) else None
    buffers = _Buffers(out.device) if native is None else None
    for block, block_key in enumerate(keys, first):
        low, high = max(start, block << _BLOCK_BITS), min(end, (block + 1) << _BLOCK_BITS)
        offset, part = low - (block << _BLOCK_BITS), out[low - start : high - start]
        if buffers is None:
            at, table = places.data_ptr() + 8 * offset, [t.data_ptr() for t in _tables(out.device)]
            native[law](part.data_ptr(), high - low, at, block_key, scale, *table)  # type: ignore[index]
            continue
        b = buffers.first(high - low)
        torch.bitwise_xor(places[offset : offset + high - low], block_key, out=b.state)
        _draw(law, b, part, scale)


def _native(out: torch.Tensor) -> bool:
    return out.device.type == "cpu" and out.numel() >= WORTHWHILE


def drawn_at(index: torch.Tensor, law: str, key: int, scale: float = 1.0) -> torch.Tensor:
    """The elements of a stream at an int64 tensor of indices, as float32 of its shape."""
    flat, places, buffers = index.reshape(-1), _places(index.device), _Buffers(index.device)
    out = torch.empty(flat.shape, dtype=torch.float32, device=index.device)
    for begin in range(0, flat.numel(), BLOCK):
        part = flat[begin : begin + BLOCK]
        b = buffers.first(part.numel())
        torch.bitwise_xor(places[part & (BLOCK - 1)], _block_keys(key, part >> _BLOCK_BITS), out=b.state)
        _draw(law, b, out[begin : begin + BLOCK], scale)
    return out.reshape(index.shape)


def _draw(law: str, b: _Buffers, out: torch.Tensor, scale: float) -> None:
    b.mix()
    _LAWS[law](b, out)
    if scale != 1.0:
        out.mul_(scale)
