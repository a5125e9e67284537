"""Values of many candidate answers at the same few random points: what decides which slip explains a claim.

A candidate is compared by values alone, so that hundreds can be tried. Points are kept where claim and right answer are
finite; named dimensions get different sizes, so that no shape fits by accident.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.interpreters.evaluate import evaluate, numeric
from chainrule.interpreters.text import text
from chainrule.ir import Node, substitute_nodes, toposort, variable
from chainrule.verbs.agreement import random_sizes
from chainrule.verbs.structured_values import with_structure

_POINTS = 3
_TRIES = 24
_TOLERANCE = 1e-8  # relative to the largest element: candidates differ by much more, rounding by much less
_LARGEST = 1e8  # beyond it cancellation hides what is compared

Values = list[Any]


class Points:
    """Random points of a formula, and the values of nodes there.

    Args:
        roots: nodes with all names and dimensions that will occur; a point is kept where all of them are finite.
        transform: changes the sampled value of a leaf, ``(leaf, value) -> value``.
        computed: leaves whose values follow from those of others, ``(sample: leaf -> value, sizes) -> value``.
        count: how many points.
    """

    def __init__(
        self,
        roots: Sequence[Node],
        transform: Callable[[Node, Any], Any] | None = None,
        computed: Mapping[Node, Callable[..., Any]] | None = None,
        count: int = _POINTS,
    ) -> None:
        self._nodes = toposort(roots)
        self._transform, self._computed = transform, dict(computed or {})
        self._kept: list[tuple[int, dict[str, int], bool]] = []
        for trial in range(_TRIES):
            drawn = random_sizes(self._nodes, np.random.default_rng([trial, 5]))
            sizes = {name: size + trial % 3 for name, size in drawn.items()}  # never the same at every point
            point = (trial, sizes, trial % 3 == 2 or trial > _TRIES // 2)
            # Every value on the way: the inverse of a singular matrix is huge, what is made of it may not look so.
            found = self._evaluate([n for n in self._nodes if getattr(n.type, "is_float", False)], point)
            if found is not None and all(_usable(v) for v in found):
                self._kept.append(point)
            if len(self._kept) == count:
                break

    def __len__(self) -> int:
        return len(self._kept)

    def sizes(self) -> list[dict[str, int]]:
        """The sizes of the named dimensions at each point."""
        return [sizes for _, sizes, _ in self._kept]

    def values(self, nodes: Sequence[Node]) -> list[Values | None]:
        """For every node its value at each point; None where it has none."""
        if not nodes:
            return []
        columns = [self._evaluate(nodes, point) for point in self._kept]
        if all(c is not None for c in columns):
            return [list(row) for row in zip(*columns, strict=True)]  # type: ignore[arg-type]
        if len(nodes) == 1:
            return [None]
        return [found for node in nodes for found in self.values([node])]  # one of them fails: each by itself

    def _evaluate(self, nodes: Sequence[Node], point: tuple[int, dict[str, int], bool]) -> Values | None:
        sizes = point[1]
        order = toposort(nodes)
        unknown = {n: variable(text(n), n.type) for n in order if n.op.family == "unknown"}
        roots = substitute_nodes(nodes, unknown) if unknown else nodes
        values = {}
        for leaf in toposort(roots):
            if not leaf.is_leaf or "name" not in leaf.params:
                continue
            values[leaf] = self._sample(leaf, point)
        try:
            return evaluate(list(roots), values, sizes)
        except (ArithmeticError, ValueError, np.linalg.LinAlgError):  # ShapeError is one: a size that does not fit
            return None

    def _sample(self, leaf: Node, point: tuple[int, dict[str, int], bool]) -> Any:
        trial, sizes, positive = point
        if leaf in self._computed:
            return self._computed[leaf](lambda other: self._sample(other, point), sizes)
        generator = np.random.default_rng([trial, zlib.crc32(str(leaf.params["name"]).encode())])
        shape = numeric(leaf.shape, sizes)
        value = generator.uniform(0.3, 1.7, shape) if positive else generator.standard_normal(shape)
        value = with_structure(leaf, value)
        return self._transform(leaf, value) if self._transform is not None else value

    def samples(self, leaves: Sequence[Node]) -> list[dict[Node, Any]]:
        """The values of leaves at each point."""
        return [{leaf: self._sample(leaf, point) for leaf in leaves} for point in self._kept]


def _usable(value: Any) -> bool:
    array = np.asarray(value, dtype=float)
    return bool(np.all(np.isfinite(array))) and bool(np.all(np.abs(array) < _LARGEST))


def same(a: Values | None, b: Values | None) -> bool:
    """Whether two lists of values are equal, shapes included."""
    return a is not None and b is not None and all(_equal(x, y) for x, y in zip(a, b, strict=True))


def _equal(x: Any, y: Any) -> bool:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or not np.all(np.isfinite(x)):
        return False
    size = max(np.max(np.abs(x), initial=0.0), np.max(np.abs(y), initial=0.0))
    return bool(np.max(np.abs(x - y), initial=0.0) <= _TOLERANCE * size + 1e-13)


def ratios(a: Values, b: Values) -> list[float] | None:
    """a / b at each point, where at each point it is one number; None if it is not."""
    found = []
    for x, y in zip(a, b, strict=True):
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if x.shape != y.shape or not np.any(y):
            return None
        scale = float(np.vdot(x, y) / np.vdot(y, y))
        if not _equal(x, scale * y) or not np.isfinite(scale):
            return None
        found.append(scale)
    return found


def is_constant(numbers: Sequence[float], value: float) -> bool:
    """Whether all of the numbers are this value."""
    return all(abs(n - value) <= _TOLERANCE * max(1.0, abs(value)) for n in numbers)
