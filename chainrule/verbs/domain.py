"""Where a formula lives: which random numbers each variable may be, so that its value and derivative exist there.

Found by trying: standard normal numbers first, then positive ones, small ones and positive definite matrices, for as
few variables as possible, until the derivative agrees with finite differences in the reference evaluation. If nothing
does at all points, what does longest stands, and whoever draws from it sees the disagreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product

import numpy as np

from chainrule.interpreters.evaluate import evaluate, numeric
from chainrule.ir import Dim, Node, toposort
from chainrule.ir.dims import substitute

_TRIES, _DRAWS = 150, 12
_STEP = 1e-6
_TOLERANCE = 3e-7  # of the step below; what checks later is three times as patient

Law = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _definite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    a = rng.standard_normal(shape)
    return a @ np.swapaxes(a, -1, -2) / shape[-1] + np.eye(shape[-1])


LAWS: dict[str, Law] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
    "small": lambda rng, shape: rng.uniform(-0.8, 0.8, shape),
    "inside": lambda rng, shape: rng.uniform(0.2, 0.8, shape),
    "definite": _definite,
    "whole": lambda rng, shape: rng.integers(0, 2, shape),
}


@dataclass(frozen=True)
class Domain:
    """A number for each named size, and the name of a law for each variable."""

    sizes: dict[str, int]
    laws: dict[Node, str]

    def draw(self, rng: np.random.Generator) -> dict[Node, np.ndarray]:
        """Random values of the variables."""
        return {leaf: np.asarray(LAWS[law](rng, numeric(leaf.shape, self.sizes))) for leaf, law in self.laws.items()}


def domain(inputs: Sequence[Node], output: Node, wrt: Sequence[Node], slopes: Sequence[Node]) -> Domain:
    """Sizes and laws at which the derivatives of ``output`` agree with finite differences.

    Args:
        inputs: the variables. output: any shape. wrt, slopes: variables, and <dF/dx, g> for g of ones.
    """
    nodes = toposort([output, *slopes, *inputs])
    best: tuple[int, Domain] | None = None
    for sizes, laws in islice(_candidates(inputs, nodes), _TRIES):
        found = Domain(sizes, laws)
        good = next((k for k in range(_DRAWS) if not _agrees(found, k, output, wrt, slopes)), _DRAWS)
        if best is None or good > best[0]:
            best = good, found
        if good == _DRAWS:
            break
    assert best is not None
    return best[1]


def _candidates(inputs: Sequence[Node], nodes: Sequence[Node]) -> Iterator[tuple[dict[str, int], dict[Node, str]]]:
    """Few special variables first; for each choice all the ways to order sizes."""
    orders = list(_sizes(nodes))
    for laws, sizes in product(_laws(inputs), orders):
        yield sizes, laws


def _laws(inputs: Sequence[Node]) -> Iterator[dict[Node, str]]:
    base = {i: "normal" if i.type.is_float else "whole" for i in inputs}
    floats = [i for i in inputs if i.type.is_float]
    square = {i: "definite" for i in floats if "definite" in _special(i)}
    yield base
    yield base | dict.fromkeys(floats, "positive")
    for leaf in floats:
        for law in _special(leaf):
            yield base | {leaf: law}
    yield base | dict.fromkeys(floats, "positive") | square
    yield base | dict.fromkeys(floats, "inside")
    yield base | dict.fromkeys(floats, "inside") | square
    for chosen in combinations(floats, 2):
        for laws in product(*(_special(i) for i in chosen)):
            yield base | dict(zip(chosen, laws, strict=True))


def _special(leaf: Node) -> list[str]:
    square = leaf.type.rank >= 2 and leaf.shape[-1] == leaf.shape[-2]
    return [*(["definite"] if square else []), "positive", "small"]


def _sizes(nodes: Sequence[Node]) -> Iterator[dict[str, int]]:
    """Small different numbers for the named sizes, decreasing, increasing or mixed, with which all shapes exist."""
    shapes = [s for n in nodes for s in getattr(n.type, "shape", ()) if isinstance(s, Dim)]
    shapes += [n.params["size"] for n in nodes if isinstance(n.params.get("size"), Dim)]
    names = list(dict.fromkeys(name for s in shapes for name in sorted(s.names)))
    down = list(range(2, 2 + len(names)))[::-1]
    rng = np.random.default_rng(0)
    orders = [down, down[::-1], *(list(rng.permutation(down)) for _ in range(20))]
    seen = []
    for numbers in orders:
        sizes = {name: int(n) for name, n in zip(names, numbers, strict=True)}
        possible = all(int(substitute(s, sizes)) >= 1 for s in shapes)
        if possible and sizes not in seen and len(seen) < 4:
            seen.append(sizes)
            yield sizes
    if not seen:
        yield {name: int(n) for name, n in zip(names, down, strict=True)}


def _agrees(at: Domain, seed: int, output: Node, wrt: Sequence[Node], slopes: Sequence[Node]) -> bool:
    rng = np.random.default_rng(seed)
    values = at.draw(rng)

    def total(moved: dict[Node, np.ndarray]) -> float:
        return float(np.sum(evaluate([output], moved, at.sizes)[0]))

    try:
        found = evaluate(slopes, values, at.sizes)
        for leaf, slope in zip(wrt, found, strict=True):
            direction = rng.standard_normal(values[leaf].shape)
            step = _STEP * direction / max(float(np.sqrt(np.sum(direction**2))), 1e-12)
            above, below = total({**values, leaf: values[leaf] + step}), total({**values, leaf: values[leaf] - step})
            expected, size = float(np.sum(slope * step)), _STEP * max(1.0, abs(above))
            scale = max(abs(expected), 1e-3 * size)
            if not abs((above - below) / 2 - expected) <= _TOLERANCE * scale:
                return False
    except (np.linalg.LinAlgError, FloatingPointError):
        return False
    return True
