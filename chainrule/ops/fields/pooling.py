"""Fields through pools: means of windows, and the largest of a window of correlated normal values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.field import Field, unknown, within_budget, worst
from chainrule.ops.fields.convolutions import tap_matrices
from chainrule.ops.fields.functions import average_law
from chainrule.ops.fields.integrals import of_largest
from chainrule.ops.fields.movement import along
from chainrule.ops.fields.registry import rule, sizes


# ---- means -------------------------------------------------------------------------------------------------
def _mean_matrices(node: Node) -> list[np.ndarray]:
    """Per spatial dimension the matrix (out, in) of a mean pool."""
    x, p = node.inputs[0], node.params
    rank = len(p["kernel_size"])
    found = []
    for n, o, k, s, pad in zip(
        x.shape[-rank:], node.shape[-rank:], p["kernel_size"], p["stride"], p["padding"], strict=True
    ):
        matrix = np.sum(tap_matrices(int(n), int(o), int(k), int(s), int(pad), 1), axis=0)
        inside = bool(p.get("count_include_pad", True))
        counts = np.full(int(o), float(k)) if inside else np.maximum(matrix.sum(axis=1), 1.0)
        found.append(matrix / counts[:, None])
    divisor = p.get("divisor_override")
    if divisor:
        found[0] = found[0] * float(np.prod(p["kernel_size"])) / float(divisor)
    return found


def _mapped(x: Field, matrices: Sequence[np.ndarray]) -> Field:
    rank = len(matrices)
    for d, m in enumerate(matrices):
        x = along(x, len(x.dims) - rank + d, m)
    return replace(x, normal=True, mixed=x.mixed if x.normal else 2)


def _avg_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    return [_mapped(g, [m.T for m in _mean_matrices(node)])]


@rule("avg_pool", backward=_avg_back)
def _avg_pool(node: Node, inputs: Sequence[Field]) -> Field:
    return _mapped(inputs[0], _mean_matrices(node)) if inputs[0].known else inputs[0]


def _adaptive_matrices(node: Node) -> list[np.ndarray]:
    found = []
    size = node.params.get("output_size", node.params.get("size"))
    rank = len(size) if size is not None else len(node.shape) - 2
    for n, o in zip(node.inputs[0].shape[-rank:], node.shape[-rank:], strict=True):
        n, o = int(n), int(o)
        matrix = np.zeros((o, n))
        for i in range(o):
            start, stop = i * n // o, -(-(i + 1) * n // o)
            matrix[i, start:stop] = 1.0 / (stop - start)
        found.append(matrix)
    return found


def _adaptive_back(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    return [_mapped(g, [m.T for m in _adaptive_matrices(node)])]


@rule("adaptive_avg_pool", backward=_adaptive_back)
def _adaptive_avg_pool(node: Node, inputs: Sequence[Field]) -> Field:
    return _mapped(inputs[0], _adaptive_matrices(node)) if inputs[0].known else inputs[0]


# ---- the largest -------------------------------------------------------------------------------------------
def _windows(node: Node) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """(tap matrices per dimension, how many elements each window reads)."""
    x, p = node.inputs[0], node.params
    rank = len(p["kernel_size"])
    taps = [
        tap_matrices(int(n), int(o), int(k), int(s), int(pad), int(dil))
        for n, o, k, s, pad, dil in zip(
            x.shape[-rank:], node.shape[-rank:], p["kernel_size"], p["stride"], p["padding"], p["dilation"], strict=True
        )
    ]
    counts = np.array(1.0)
    for t in taps:
        counts = np.multiply.outer(counts, np.sum(t, axis=0).sum(axis=1))
    return taps, counts


def _max_back(node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]) -> list[Field | None]:
    """Each cotangent goes to one element of its window, whichever is the largest."""
    taps, _ = _windows(node)
    rank = len(taps)
    second, table = g.second, g.pairs
    dims = list(g.dims)
    for d, t in enumerate(taps):
        reach = np.sum(t, axis=0)
        matrix = (reach / np.maximum(reach.sum(axis=1, keepdims=True), 1.0)).T
        position = len(g.dims) - rank + d
        k = sum(len(x) for x in g.dims[:position])
        old = g.axes[k]
        new = old.resized(matrix.shape[0])
        moved = pair.mapped(table, k, old, new, matrix, matrix)
        # an element with itself: the whole square of each cotangent goes to one place
        index: list = [slice(None)] * moved.ndim
        index[k] = new.same
        own = pair.resolved_one(table, k, old)
        own = np.repeat(own, old.size, axis=k) if own.shape[k] == 1 else own
        placed = np.moveaxis(np.tensordot(matrix, np.moveaxis(own, k, 0), axes=1), 0, k)
        moved[tuple(index)] = placed if new.lags is None else placed.mean(axis=k, keepdims=True)
        table = moved
        spread = np.repeat(second, old.size, axis=k) if second.shape[k] == 1 else second
        second = np.moveaxis(np.tensordot(matrix, np.moveaxis(spread, k, 0), axes=1), 0, k)
        dims[position] = (new,)
        g = replace(g, dims=tuple(dims), pairs=table, second=second, mean=np.zeros((1,) * len(g.axes)), array=None)
    _, _, count, rho, _ = _window_law(node, inputs[0])
    found = within_budget(replace(g, normal=False, kind=worst(g.kind, "approximate"), mean_kind=""))
    return [replace(found, focus=(found.pairs, count, rho))]


def _window_law(node: Node, x: Field) -> tuple[Any, Field, int, float, Field]:
    """(function, its normal argument, elements of a window, their correlation, the field of the window's mean)."""
    taps, counts = _windows(node)
    rank = len(taps)
    function, base = x.composed if x.composed is not None and _rising(*x.composed) else (_itself, x)
    _, std = average_law(base)
    count = max(round(float(np.mean(counts))), 1)
    window = replace(base, array=None)
    for d, t in enumerate(taps):  # the mean over a window has the mean correlation of its pairs
        reach = np.sum(t, axis=0)
        window = along(window, len(x.dims) - rank + d, reach / np.maximum(reach.sum(axis=1, keepdims=True), 1.0))
    of_mean = float(np.mean(window.second)) - float(np.mean(window.mean)) ** 2
    v = std * std
    rho = float(np.clip((of_mean / v - 1 / count) / (1 - 1 / count), 0.0, 1.0)) if count > 1 and v > 0 else 1.0
    return function, base, count, rho, window


@rule("max_pool", backward=_max_back)
def _max_pool(node: Node, inputs: Sequence[Field]) -> Field:
    (x,) = inputs
    if not x.known:
        return unknown(sizes(node.shape), "its argument is unknown", x.sources)
    function, base, inner, rho, window = _window_law(node, x)
    mean, std = average_law(base)
    of_mean = float(np.mean(window.second)) - float(np.mean(window.mean)) ** 2
    first, second, _ = of_largest(function, mean, std, rho, inner)
    variance = second - first**2
    # pairs: the common part of two windows is that of their means
    axes = window.axes
    centred = window.centred
    share = np.clip(centred / max(of_mean, 1e-300), -1, 1)
    # two windows: each element is the largest equally often, so that their covariance is that of the means,
    # times the slope of the expectation; a window with itself has the variance
    step = 1e-3 * max(std, 1e-12)
    slope = (
        of_largest(function, mean + step, std, rho, inner)[0] - of_largest(function, mean - step, std, rho, inner)[0]
    ) / (2 * step)
    apart = slope**2 * of_mean
    table = first**2 + share * (apart + (variance - apart) * np.abs(share) ** 3)
    one = (1,) * len(axes)
    return within_budget(
        Field(
            window.dims,
            np.full(one, first),
            np.full(one, second),
            np.broadcast_to(table, np.broadcast_shapes(table.shape, one)),
            normal=False,
            kurtosis=3.0,
            scale=x.scale,
            lean=x.lean,
            noise=x.noise,
            noise_lean=x.noise_lean,
            rough=x.rough,
            units=x.units,
            own=None,
            sources=x.sources,
            kind=worst(x.kind, "approximate"),
            mean_kind="",
            why=f"the largest of {inner} equally correlated normal values",
        )
    )


def _itself(x: np.ndarray) -> np.ndarray:
    return x


def _rising(function: Any, argument: Field) -> bool:
    """Whether a function rises over the law of its argument: the largest is then that of the argument."""
    m, s = average_law(argument)
    grid = m + s * np.linspace(-4, 4, 81)
    with np.errstate(all="ignore"):
        values = np.broadcast_to(np.asarray(function(grid), dtype=float), grid.shape)
    return bool(np.all(np.diff(values) >= -1e-12 * np.max(np.abs(values))))
