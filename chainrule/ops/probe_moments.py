"""Moments of an op that couples its elements (softmax, cross-entropy, maxima, norms), by a small seeded probe.

The operands are drawn as independent normal values with their own moments, the op's NumPy value and its derivative rule
are evaluated, and averages taken. The result says that it is a probe. No data and no model are involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from chainrule.ir import Dim, Node, TupleType
from chainrule.ir.moments import UNKNOWN, Moments
from chainrule.ops.moment_rules import sources_of

_ELEMENTS = 1 << 16  # drawn in all: a second moment is then good to about one percent
_MOST_DRAWS, _MOST_BACKWARD = 4096, 256


class ProbeRule:
    """The rule of an op of any shape, from its value and its vjp."""

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        if not _drawable(states, node):
            return replace(UNKNOWN, sources=sources_of(states))
        values = [np.asarray(y, dtype=float) for y, _ in self._draws(states, node)]
        one = (1,) * node.type.rank
        mean, second = float(np.mean(values)), float(np.mean(np.square(values)))
        fourth = float(np.mean(np.power(values, 4)))
        return Moments(
            np.full(one, mean),
            np.full(one, second),
            kind="probe",
            sources=sources_of(states),
            kurtosis=fourth / second**2 if second > 0 else 1.0,
            why=f"{node.op.name} of {len(values)} seeded draws",
        )

    def _draws(self, states: Sequence[Moments], node: Node, most: int = _MOST_DRAWS) -> list[tuple[Any, list[Any]]]:
        """(value, operands) of seeded draws, stratified: over all draws each element has the quantiles of its law."""
        generator = np.random.default_rng(0)
        size = max(1, *(int(i.type.numel) for i in node.inputs))
        draws = []
        count = int(np.clip(_ELEMENTS // size, 1, most))
        normal = [_normal(s, i, count, generator) for s, i in zip(states, node.inputs, strict=True)]
        for k in range(count):
            operands = [_drawn(s, i, z, k) for s, i, z in zip(states, node.inputs, normal, strict=True)]
            with np.errstate(all="ignore"):
                draws.append((node.op.value(*operands, **node.params), operands))
        return draws


def _normal(state: Moments, node: Node, count: int, generator: np.random.Generator) -> np.ndarray:
    """``count`` standard normal draws of every element, one from each of as many equally likely intervals."""
    size = int(node.type.numel) if state.law != "given" else 0
    if count < 16:
        return generator.standard_normal((size, count))
    law = NormalDist()
    strata = np.array([law.inv_cdf((k + 0.5) / count) for k in range(count)])
    return generator.permuted(np.tile(strata / np.sqrt(np.mean(strata**2)), (size, 1)), axis=1)


def _drawn(state: Moments, node: Node, normal: np.ndarray, draw: int) -> Any:
    shape = tuple(int(n) for n in node.shape)
    if state.law == "given":
        values = np.broadcast_to(state.mean, shape)
        return values if node.type.is_float else values.astype(np.int64)
    std = np.sqrt(np.maximum(state.second - state.mean * state.mean, 0.0))
    return np.broadcast_to(state.mean, shape) + np.broadcast_to(std, shape) * normal[:, draw].reshape(shape)


def _drawable(states: Sequence[Moments], node: Node) -> bool:
    """Whether every operand has known numeric moments and a numeric shape."""
    symbolic = any(isinstance(v, Node) for s in states for v in (s.mean, s.second))
    named = any(isinstance(n, Dim) for i in node.inputs for n in i.shape)
    unknown = any(s.mean is None or s.second is None for s in states)
    return not (symbolic or named or unknown or isinstance(node.type, TupleType))
