"""A picture read at positions that are computed: grid_sample, and the affine grid that usually makes them.

Torch's kernels run; the expansion gathers the corners around each position and weighs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as pairs

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import OPS, Node, Sample, apply, as_node, constant, lowering
from chainrule.ops.arithmetic import compare, iverson, where
from chainrule.ops.casts import cast
from chainrule.ops.contraction import einsum
from chainrule.ops.families import kernel
from chainrule.ops.gathering import GATHER
from chainrule.ops.movement import broadcast, expand_dims, reshape
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.slicing import select

_X = np.sin(np.arange(2 * 2 * 3 * 4.0)).reshape(2, 2, 3, 4)
_GRID = np.cos(1.3 * np.arange(2 * 2 * 2 * 2.0)).reshape(2, 2, 2, 2) * 1.1
_X3 = np.sin(np.arange(2 * 2 * 3 * 2.0)).reshape(1, 2, 2, 3, 2)
_GRID3 = np.cos(1.3 * np.arange(2 * 2 * 3.0)).reshape(1, 2, 2, 1, 3) * 0.8

_MODES, _PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
_A = -0.75  # of the cubic kernel


# ---- positions ---------------------------------------------------------------------------------------------
def _unnormalised(g: Node, size: int, align: bool) -> Node:
    """From -1 .. 1 to elements."""
    return (g + 1.0) * ((size - 1) / 2) if align else ((g + 1.0) * float(size) - 1.0) * 0.5


def _clipped(x: Node, size: int) -> Node:
    """Inside; at the border the derivative is 0, as in torch."""
    low, high = as_node(0.0, like=x), as_node(float(size - 1), like=x)
    return where(compare("le", x, 0.0), low, where(compare("ge", x, float(size - 1)), high, x))


def _reflected(x: Node, size: int, align: bool) -> Node:
    low, span = (0.0, float(size - 1)) if align else (-0.5, float(size))
    if span == 0:
        return as_node(0.0, like=x) * x
    away = apply(OPS["abs"], x - low)
    flips = apply(OPS["floor"], away / span)
    extra = away - flips * span
    even = compare("eq", flips - 2.0 * apply(OPS["floor"], flips * 0.5), 0.0)
    return where(even, extra + low, span - extra + low)


def _placed(x: Node, size: int, padding: str, align: bool) -> Node:
    if padding == "zeros":
        return x
    return _clipped(_reflected(x, size, align) if padding == "reflection" else x, size)


# ---- values ------------------------------------------------------------------------------------------------
def _read(flat: Node, places: Sequence[Node], sizes: Sequence[int]) -> Node:
    """The picture at whole-numbered places, zero outside: ``(batch, channels, places)``."""
    inside: Node | None = None
    number = None
    for x, size in zip(places, sizes, strict=True):
        ok = compare("ge", x, 0.0) * compare("le", x, float(size - 1))
        inside = ok if inside is None else inside * ok
        held = where(ok, x, as_node(0.0, like=x))
        number = held if number is None else number * float(size) + held
    assert inside is not None and number is not None
    shape = (*flat.shape[:2], number.shape[-1])
    index = broadcast(expand_dims(cast(number, "int64"), (1,)), shape)
    return apply(GATHER, flat, index, axis=2) * expand_dims(iverson(inside, like=flat), (1,))


def _cubic(t: Node) -> list[Node]:
    """The weights of four neighbours, at distances 1 + t, t, 1 - t and 2 - t."""

    def near(d: Node) -> Node:
        return ((_A + 2) * d - (_A + 3)) * d * d + 1.0

    def far(d: Node) -> Node:
        return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A

    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


def _sampled(x: Node, grid: Node, *, mode: str, padding: str, align: bool) -> Node:
    rank = x.type.rank - 2
    fits = grid.type.rank == x.type.rank and grid.shape[-1] == rank and grid.shape[0] == x.shape[0]
    if rank not in (2, 3) or not fits or (mode == "bicubic" and rank != 2):
        raise ShapeError("a grid that does not fit its picture", given=f"{x.type}, {grid.type}, {mode}")
    sizes = [int(n) for n in x.shape[2:]]
    where_to = grid.shape[1:-1]
    count = int(np.prod([int(n) for n in where_to]))
    flat = reshape(x, (*x.shape[:2], int(np.prod(sizes))))
    points = reshape(grid, (grid.shape[0], count, rank))
    # The grid's last dimension counts from the picture's last one.
    at = [_unnormalised(select(points, 2, rank - 1 - a), sizes[a], align) for a in range(rank)]
    if mode == "nearest":
        whole = [apply(OPS["round"], _placed(p, n, padding, align)) for p, n in zip(at, sizes, strict=True)]
        total = _read(flat, whole, sizes)
    elif mode == "bicubic":
        total = _bicubic(flat, at, sizes, padding, align)
    else:
        total = _linear(flat, [_placed(p, n, padding, align) for p, n in zip(at, sizes, strict=True)], sizes)
    return reshape(total, (*x.shape[:2], *where_to))


def _linear(flat: Node, at: Sequence[Node], sizes: Sequence[int]) -> Node:
    low = [apply(OPS["floor"], p) for p in at]
    total: Node | None = None
    for corner in pairs((0, 1), repeat=len(at)):
        weight: Node | None = None
        for p, base, up in zip(at, low, corner, strict=True):
            w = p - base if up else base + 1.0 - p
            weight = w if weight is None else weight * w
        assert weight is not None
        places = [base + float(up) for base, up in zip(low, corner, strict=True)]
        part = _read(flat, places, sizes) * expand_dims(weight, (1,))
        total = part if total is None else total + part
    assert total is not None
    return total


def _bicubic(flat: Node, at: Sequence[Node], sizes: Sequence[int], padding: str, align: bool) -> Node:
    low = [apply(OPS["floor"], p) for p in at]
    weights = [_cubic(p - base) for p, base in zip(at, low, strict=True)]
    total: Node | None = None
    for i, j in pairs(range(4), repeat=2):
        places = [
            _placed(base + float(k - 1), n, padding, align) for base, k, n in zip(low, (i, j), sizes, strict=True)
        ]
        part = _read(flat, places, sizes) * expand_dims(weights[0][i] * weights[1][j], (1,))
        total = part if total is None else total + part
    assert total is not None
    return total


def _torch(node: Node, x: list[str]) -> str:
    p = node.params
    options = f"mode={p['mode']!r}, padding_mode={p['padding']!r}, align_corners={p['align']}"
    return f"torch.nn.functional.grid_sample({x[0]}, {x[1]}, {options})"


GRID_SAMPLE = kernel(
    "grid_sample",
    call="",
    torch=_torch,
    expansion=_sampled,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    samples=(
        Sample((_X, _GRID), {"mode": "bilinear", "padding": "zeros", "align": False}),
        Sample((_X, _GRID), {"mode": "bilinear", "padding": "reflection", "align": True}),
        Sample((_X, _GRID), {"mode": "bicubic", "padding": "border", "align": False}),
        Sample((_X, _GRID), {"mode": "nearest", "padding": "reflection", "align": False}, smooth=False),
        Sample((_X3, _GRID3), {"mode": "bilinear", "padding": "border", "align": True}),
    ),
    error_samples=(Sample((_X, _GRID[:1]), {"mode": "bilinear", "padding": "zeros", "align": False}),),
    source="Jaderberg et al. 2015, equation 3; Keys 1981 for the cubic kernel",
)


@lowering("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback")
def grid_sampled(x: Node, grid: Node, mode: int, padding: int, align: bool) -> Node:
    """The picture at the positions of a grid."""
    return apply(GRID_SAMPLE, x, grid, mode=_MODES[mode], padding=_PADDINGS[padding], align=bool(align))


# ---- the affine grid ---------------------------------------------------------------------------------------
def _affine(theta: Node, *, size: tuple[int, ...], align: bool) -> Node:
    rank = len(size) - 2
    if theta.type.rank != 3 or theta.shape != (size[0], rank, rank + 1):
        raise ShapeError("one affine map per picture", given=f"{theta.type} for {size}")
    axes = [np.linspace(-1, 1, n) * (1.0 if align else (n - 1) / n) if n > 1 else np.zeros(1) for n in size[2:]]
    points = np.meshgrid(*axes, indexing="ij")[::-1]
    base = np.stack([*points, np.ones_like(points[0])], -1).reshape(-1, rank + 1)
    grid = einsum("pk,nrk->npr", constant(base, theta.type.dtype), theta)
    return reshape(grid, (size[0], *size[2:], rank))


AFFINE_GRID = kernel(
    "affine_grid",
    call="",
    torch=lambda node, x: (
        f"torch.nn.functional.affine_grid({x[0]}, {list(node.params['size'])}, align_corners={node.params['align']})"
    ),
    expansion=_affine,
    aten={
        "affine_grid_generator": lambda theta, size, align: apply(
            AFFINE_GRID, theta, size=tuple(int(n) for n in size), align=bool(align)
        )
    },
    samples=(
        Sample((_X[:, 0, :2, :3],), {"size": (2, 2, 3, 4), "align": False}),
        Sample((_X3[0, 0, 0][None, :, :1] * np.ones((1, 3, 4)),), {"size": (1, 1, 2, 3, 2), "align": True}),
    ),
    error_samples=(Sample((_X[:, 0],), {"size": (2, 2, 3, 4), "align": False}),),
    source="Jaderberg et al. 2015, equation 1",
)
