"""Resampling to other sizes: nearest, linear and cubic interpolation, one constant matrix per dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Sample, apply, shape_text
from chainrule.ops.families import kernel
from chainrule.ops.pooling import separably

_X = np.sin(np.arange(2 * 5 * 4.0)).reshape(1, 2, 5, 4)


def _scale(n: int, m: int, align: bool, given: float | None) -> float:
    """Input positions per output position."""
    if align:
        return (n - 1) / (m - 1) if m > 1 else 0.0
    return 1.0 / given if given is not None and given > 0 else n / m


def _positions(n: int, m: int, align: bool, given: float | None, cubic: bool = False) -> np.ndarray:
    scale = _scale(n, m, align, given)
    at = np.arange(m) * scale if align else (np.arange(m) + 0.5) * scale - 0.5
    return at if align or cubic else np.maximum(at, 0.0)


def _nearest(n: int, m: int, align: bool, given: float | None, offset: float = 0.0) -> np.ndarray:
    scale = np.float32(_scale(n, m, False, given))  # torch computes these positions in float32
    at = np.floor((np.arange(m, dtype=np.float32) + np.float32(offset)) * scale).astype(int)
    return np.eye(n)[np.minimum(at, n - 1)]


def _linear(n: int, m: int, align: bool, given: float | None) -> np.ndarray:
    at = _positions(n, m, align, given)
    low = np.minimum(at.astype(int), n - 1)
    high, share = np.minimum(low + 1, n - 1), at - low
    return np.eye(n)[low] * (1 - share)[:, None] + np.eye(n)[high] * share[:, None]


def _cubic(n: int, m: int, align: bool, given: float | None) -> np.ndarray:
    """Keys 1981 with a = -0.75, the edge repeated."""
    at = _positions(n, m, align, given, cubic=True)
    base = np.floor(at).astype(int)
    matrix, a = np.zeros((m, n)), -0.75
    for tap in range(-1, 3):
        d = np.abs(at - base - tap)
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(m), np.clip(base + tap, 0, n - 1)), np.where(d <= 1, near, far))
    return matrix


_MATRICES: dict[str, Callable[..., np.ndarray]] = {
    "nearest": _nearest,
    "nearest-exact": partial(_nearest, offset=0.5),
    "linear": _linear,
    "cubic": _cubic,
}


def _expansion(x: Node, *, size: tuple[int, ...], mode: str, align: bool, scales: tuple[float | None, ...]) -> Node:
    if x.type.rank != len(size) + 2:
        raise ShapeError("interpolation of shapes that do not fit", given=f"({shape_text(x.shape)}) to {size}")
    sizes = zip(x.shape[2:], size, scales, strict=True)
    return separably(x, [_MATRICES[mode](int(n), m, align, s) for n, m, s in sizes])


_NAMES = {
    "nearest": "upsample_nearest{}d",
    "nearest-exact": "_upsample_nearest_exact{}d",
    "linear": "upsample_{}{}d",
    "cubic": "upsample_bicubic{}d",
}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _torch(node: Node, x: list[str]) -> str:
    size, mode, rank = node.params["size"], node.params["mode"], len(node.params["size"])
    name = f"upsample_{_LINEAR[rank]}{rank}d" if mode == "linear" else _NAMES[mode].format(rank)
    align = f", {node.params['align']}" if mode in ("linear", "cubic") else ""
    return f"torch.ops.aten.{name}({x[0]}, {list(size)}{align}, {', '.join(map(str, node.params['scales']))})"


def _plain(mode: str, x: Node, size: Sequence[int], *scales: float | None) -> Node:
    given = (*scales, *(None,) * (len(size) - len(scales)))
    return apply(RESAMPLE, x, size=tuple(size), mode=mode, align=False, scales=given)


def _aligned(mode: str, x: Node, size: Sequence[int], align: bool, *scales: float | None) -> Node:
    given = (*scales, *(None,) * (len(size) - len(scales)))
    return apply(RESAMPLE, x, size=tuple(size), mode=mode, align=align, scales=given)


_ATEN: dict[str, Any] = {
    **{f"upsample_nearest{n}d": partial(_plain, "nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": partial(_plain, "nearest-exact") for n in (1, 2, 3)},
    **{f"upsample_{_LINEAR[n]}{n}d": partial(_aligned, "linear") for n in (1, 2, 3)},
    "upsample_bicubic2d": partial(_aligned, "cubic"),
}


def _by_factor(rule: Callable[..., Node], x: Node, size: Sequence[int] | None, *rest: Any) -> Node:
    """The overloads with a size or a factor; the last argument is the factor per dimension."""
    *options, factors = rest
    if size is None:
        size = [int(np.floor(float(int(n) * f))) for n, f in zip(x.shape[2:], factors, strict=True)]
    return rule(x, size, *options, *(factors or ()))


RESAMPLE = kernel(
    "resample",
    call="",
    torch=_torch,
    expansion=_expansion,
    aten=_ATEN | {f"{name}.vec": partial(_by_factor, rule) for name, rule in _ATEN.items()},
    samples=tuple(
        Sample((_X,), {"size": (7, 3), "mode": mode, "align": align, "scales": (None, None)})
        for mode, align in (
            ("nearest", False),
            ("nearest-exact", False),
            ("linear", False),
            ("linear", True),
            ("cubic", False),
            ("cubic", True),
        )
    ),
    error_samples=(Sample((_X[0],), {"size": (7, 3), "mode": "nearest", "align": False, "scales": (None, None)}),),
    source="torch.nn.functional.interpolate; Keys 1981 for cubic",
)
