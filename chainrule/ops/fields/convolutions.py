"""Fields through convolutions: independent weights over windows, the border of zeros kept as a map.

``E[y y']`` at two positions sums over the taps that both windows have inside of the input; a map of positions, not its
mean, is passed on. Transposed convolutions read by the transposed maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.factors import merged, with_factor
from chainrule.ir.field import Field, consistent, unknown, with_own, within_budget, worst
from chainrule.ir.logarithms import log_shortfall
from chainrule.ir.pairs import Axis
from chainrule.ops.fields.contraction import contracted, odd_product
from chainrule.ops.fields.elementwise import added
from chainrule.ops.fields.registry import rule, sizes


def tap_matrices(n: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> list[np.ndarray]:
    """Per tap of the kernel the 0/1 matrix (out, n) that says which element it reads."""
    found = []
    for t in range(kernel):
        matrix = np.zeros((out, n))
        for o in range(out):
            i = o * stride - padding + t * dilation
            if 0 <= i < n:
                matrix[o, i] = 1.0
        found.append(matrix)
    return found


def windowed(
    x: Field, w: Field, taps: Sequence[Sequence[np.ndarray]], groups: int, name: Any, outputs_first: bool = True
) -> Field:
    """Independent weights over windows: ``y[o, p] = sum over c, t of w[o, c, t] x[c, A_t p]``.

    ``taps``: for each spatial dimension the matrices that read the input at a tap. The weight's dimensions are
    (out, in / groups, *kernel), or (in, out / groups, *kernel) where ``outputs_first`` is false.
    """
    rank = len(taps)
    if not x.known or not w.known:
        n_out = w.shape[0] if outputs_first else w.shape[1] * groups
        shape = (x.shape[0], n_out, *(t[0].shape[0] for t in taps))
        return unknown(shape, x.why if not x.known else w.why, x.sources | w.sources)
    if outputs_first:
        n_out, n_in = w.shape[0], w.shape[1]
    else:
        n_out, n_in = w.shape[1] * groups, w.shape[0] // groups
    for d in range(2, 2 + rank):
        x = _whole(x, d)
    x = _whole(x, 1)
    start = len(x.dims[0])
    channel = x.axes[start]
    # over channels: the trace (the weight's own pairs) and, for weights with a mean, all pairs
    variance = np.mean(w.second, axis=(0, 1)) - np.mean(w.mean, axis=(0, 1)) ** 2
    level = float(np.mean(w.mean))
    spatial = [start + 1 + d for d in range(rank)]
    axes = list(x.axes)
    same = pair.traced(x.pairs, start, channel) / channel.size * n_in
    variance = np.broadcast_to(np.maximum(variance, 0.0), [len(t) for t in taps])
    table, diagonal = _over_taps(same, x.second, variance, taps, spatial, axes)
    second = np.mean(diagonal, axis=start, keepdims=True) * n_in
    new_axes = list(x.axes)
    for d, k in enumerate(spatial):
        new_axes[k] = axes[k].resized(taps[d][0].shape[0])
    out = Axis(n_out, 0)
    new_axes[start] = out
    # units: the same output channel only
    units = np.concatenate([table, np.zeros_like(table)], axis=start) if n_out > 1 else table
    mean = np.zeros((1,) * len(new_axes))
    if level != 0.0:
        share = pair.total(x.pairs, start, channel) * (n_in / channel.size) ** 2
        sums = [np.sum(t, axis=0) for t in taps]
        both = share
        mean = level * n_in * np.mean(x.mean, axis=start, keepdims=True)
        for d, k in enumerate(spatial):
            both = pair.mapped(both, k, axes[k], new_axes[k], sums[d], sums[d])
            mean = _moved(mean, k, sums[d])
        units = units + level**2 * both
        second = second + level**2 * pair.resolved(both, new_axes)
    scale, lean, local, noise, noise_lean, rough = dict(x.scale), x.lean, 0.0, 0.0, 0.0, 0.0
    fan_in = max(channel.size * float(np.prod([len(t) for t in taps])), 1.0)  # of all groups together
    if x.array is None:
        scale, lean = with_own(scale, x, name), lean + log_shortfall(x.own_spread)
        local = x.local + max(x.kurtosis - 1.0, 0.0) / fan_in
        more = x.spread_of_vector(fan_in)
        noise, noise_lean, rough = x.noise + more, x.noise_lean + more / 2, x.rough
    elif x.array.size > 1:
        rough = 1.0 / fan_in
    dims = (x.dims[0], (out,), *((new_axes[k],) for k in spatial))
    return within_budget(
        consistent(
            Field(
                dims,
                mean,
                second,
                units,
                normal=True,
                scale=scale,
                local=local,
                noise=noise,
                noise_lean=noise_lean,
                lean=lean,
                degree=x.degree if x.array is None else 0.0,
                rough=rough,
                units=float(n_out),
                own_sources={object(): 1.0},
                sources=x.sources | w.sources,
                odd=odd_product([x, w]),
                kind=worst(x.kind if level == 0.0 else x.kind_of_both, w.kind),
                mean_kind="exact" if level == 0.0 else worst(x.kind_of_mean, w.kind),
                mixed=0 if x.array is not None else 1 if level == 0.0 else 2,
                why="independent weights: E[y y'] sums E[w w'] E[x x'] over the window inside of the input",
            )
        )
    )


def _over_taps(
    table: np.ndarray,
    second: np.ndarray,
    variance: np.ndarray,
    taps: Sequence[Sequence[np.ndarray]],
    spatial: Sequence[int],
    axes: Sequence[Axis],
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the taps of the variance of a tap times what it reads; separable where the taps are alike."""
    if len(taps) == 0:
        return table * float(variance), second * float(variance)
    alike = variance.size > 0 and np.allclose(variance, variance.ravel()[0], rtol=0.2)
    factors: list[np.ndarray] | None = None
    if alike:
        factors = [np.full(len(t), float(np.mean(variance)) ** (1 / len(taps))) for t in taps]
    else:
        total = variance.sum()
        margins = [variance.sum(axis=tuple(e for e in range(len(taps)) if e != d)) for d in range(len(taps))]
        product = margins[0]
        for m in margins[1:]:
            product = np.multiply.outer(product, m)
        product = product / max(total, 1e-300) ** (len(taps) - 1)
        if np.allclose(product, variance, rtol=0.2, atol=0.05 * variance.max()):
            factors = [m / max(total, 1e-300) ** ((len(taps) - 1) / len(taps)) for m in margins]
    if factors is not None:
        for d, k in enumerate(spatial):
            new = axes[k].resized(taps[d][0].shape[0])
            moved = sum(
                f * pair.mapped(table, k, axes[k], new, t, t) for f, t in zip(factors[d], taps[d], strict=True) if f
            )
            table = np.asarray(moved)
            second = _moved(second, k, sum(f * t for f, t in zip(factors[d], taps[d], strict=True)))
        return table, second
    tables, seconds = [], []
    for t, matrix in enumerate(taps[0]):
        k = spatial[0]
        new = axes[k].resized(matrix.shape[0])
        one = pair.mapped(table, k, axes[k], new, matrix, matrix)
        inner = _over_taps(one, _moved(second, k, matrix), variance[t], taps[1:], spatial[1:], axes)
        tables.append(inner[0])
        seconds.append(inner[1])
    return np.asarray(sum(tables)), np.asarray(sum(seconds))


def _moved(array: np.ndarray, k: int, matrix: Any) -> np.ndarray:
    """A map (out, in) along one dimension of an array that may hold it as size 1."""
    matrix = np.asarray(matrix)
    if array.shape[k] == 1 and matrix.shape[1] > 1:
        array = np.repeat(array, matrix.shape[1], axis=k)
    return np.moveaxis(np.tensordot(matrix, np.moveaxis(array, k, 0), axes=1), 0, k)


def _whole(value: Field, d: int) -> Field:
    """A dimension as exactly one factor."""
    own = value.dims[d]
    if not own:
        return with_factor(value, d, Axis(1))
    return merged(value, sum(len(x) for x in value.dims[:d]), len(own))


def _taps_of(node: Node) -> list[list[np.ndarray]]:
    x, w = node.inputs[:2]
    p = node.params
    return [
        tap_matrices(int(n), int(o), int(k), s, pad, dil)
        for n, o, k, s, pad, dil in zip(
            x.shape[2:], node.shape[2:], w.shape[2:], p["stride"], p["padding"], p["dilation"], strict=True
        )
    ]


def _transposed_taps(node: Node) -> list[list[np.ndarray]]:
    x, w = node.inputs[:2]
    p = node.params
    return [
        [t.T for t in tap_matrices(int(o), int(n), int(k), s, pad, dil)]
        for n, o, k, s, pad, dil in zip(
            x.shape[2:], node.shape[2:], w.shape[2:], p["stride"], p["padding"], p["dilation"], strict=True
        )
    ]


def _per_channel(bias: Field, rank: int) -> Field:
    return replace(bias, dims=((), *bias.dims, *((),) * rank))


def _convolution_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    transposed = "output_padding" in node.params
    taps = _transposed_taps(node) if transposed else _taps_of(node)
    groups = int(node.params.get("groups", 1))
    x, w, *bias = inputs
    found: list[Field | None] = [None] * len(inputs)
    if wanted[0]:
        back = [[t.T for t in axis] for axis in taps]
        found[0] = windowed(g, w, back, groups, ("back", node), outputs_first=transposed)
    if wanted[1]:
        found[1] = _weight_gradient(g, x, w, taps)
    if bias and wanted[2]:
        rank = len(taps)
        total = contracted([g], [[0, 1, *range(2, 2 + rank)]], [1], ("bias", node), copies=True)
        found[2] = total
    return found


def _weight_gradient(g: Field, x: Field, w: Field, taps: Sequence[Sequence[np.ndarray]]) -> Field:
    """Sums over samples and positions of g[o, p] x[c, A_t p], averaged over the taps."""
    rank = len(taps)
    for d in range(2, 2 + rank):
        g, x = _whole(g, d), _whole(x, d)
    moved: Any = x.pairs
    start = len(x.dims[0]) + len(x.dims[1])
    for d in range(rank):
        axis = x.axes[start + d]
        new = axis.resized(taps[d][0].shape[0])
        moved = sum(pair.mapped(moved, start + d, axis, new, t, t) for t in taps[d]) / len(taps[d])
    seen = x.second
    for d in range(rank):
        seen = _moved(seen, start + d, sum(taps[d])) / len(taps[d])
    dims = (*x.dims[:2], *((x.axes[start + d].resized(taps[d][0].shape[0]),) for d in range(rank)))
    read = replace(x, dims=dims, pairs=np.asarray(moved), second=seen, mean=np.zeros((1,) * x.mean.ndim), array=None)
    labels = list(range(2, 2 + rank))
    found = contracted([g, read], [[0, "o", *labels], [0, "c", *labels]], ["o", "c"], "weight")
    whole = np.full((1,) * len(w.axes), found.mean_square)
    return replace(
        w,
        mean=np.zeros_like(whole),
        second=whole,
        pairs=whole,
        fresh=False,
        normal=True,
        array=None,
        kind=worst(found.kind, "approximate"),
        mean_kind="",
        scale=found.scale,
        lean=found.lean,
        own=found.own_spread,
    )


@rule("convolution", "conv", backward=_convolution_backward)
def _convolution(node: Node, inputs: Sequence[Field]) -> Field:
    x, w, *bias = inputs
    y = windowed(x, w, _taps_of(node), int(node.params.get("groups", 1)), node)
    return added([y, _per_channel(bias[0], len(node.shape) - 2)], (1.0, 1.0), sizes(node.shape)) if bias else y


@rule("conv_transpose", backward=_convolution_backward)
def _conv_transpose(node: Node, inputs: Sequence[Field]) -> Field:
    x, w, *bias = inputs
    y = windowed(x, w, _transposed_taps(node), int(node.params.get("groups", 1)), node, outputs_first=False)
    return added([y, _per_channel(bias[0], len(node.shape) - 2)], (1.0, 1.0), sizes(node.shape)) if bias else y
