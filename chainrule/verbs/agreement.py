"""Whether two nodes are the same function, by values: what algebra cannot decide.

Points are drawn at several scales (also those of the constants inside), only where the formula itself is finite, and on
both sides of every place where a comparison or a kink switches, which is found by bisection. A difference counts when
it exceeds what rounding explains; that is measured, by moving every intermediate value a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.interpreters.evaluate import evaluate, evaluate_all, numeric
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, structure_of, substitute_nodes, toposort, variable
from chainrule.verbs.structured_values import moved_element, with_structure

_TOLERANCE = 1e-9  # relative, of every element
_NUDGE = 1e-11  # relative, of every intermediate value, to see what rounding does to the result
_MODERATE = 8  # points around 1 of each sign convention
_SCALES = (1e-3, 0.1, 30.0, 1e3)
_MOST_CONSTANTS, _MOST_SWITCHES = 12, 12

Values = dict[Node, Any]


@dataclass(frozen=True)
class Agreement:
    """Whether two nodes agree, the point where they differ most, and the kinks where alone they differ."""

    same: bool
    point: dict[str, Any]
    except_at: str = ""


@dataclass(frozen=True)
class _Switch:
    """A quantity whose sign selects a branch; ``label`` says where it is zero."""

    left: Node
    right: Node | float
    label: str


class _Comparison:
    """Two nodes and the formula that they are derivatives of, at points."""

    def __init__(self, a: Node, b: Node, domain: Node | None) -> None:
        roots = [a, b] if domain is None else [a, b, domain]
        unknown = {n: variable(text(n), n.type) for n in toposort(roots) if n.op.family == "unknown"}
        self.roots = list(substitute_nodes(roots, unknown))
        self.a, self.b = self.roots[:2]
        self.nodes = toposort(self.roots)
        self.leaves = [n for n in self.nodes if "name" in n.params and n.is_leaf]
        self.has_domain = domain is not None
        self.worst: tuple[float, dict[str, Any]] = (-1.0, {})
        self.undefined: dict[str, Any] = {}
        self.seen = 0

    def difference(self, values: Values, sizes: Mapping[str, int], moderate: bool = True) -> float:
        """How far apart they are, as a multiple of what is tolerated; nan where nothing can be said."""
        table = evaluate_all(self.roots, values, sizes)
        x, y = np.asarray(table[self.a], dtype=float), np.asarray(table[self.b], dtype=float)
        if self.has_domain and not np.all(np.isfinite(table[self.roots[2]])):
            return np.nan
        finite_x, finite_y = bool(np.all(np.isfinite(x))), bool(np.all(np.isfinite(y)))
        if not finite_x or not finite_y:
            if (self.has_domain and not finite_y) or finite_x == finite_y or _overflows(table, self.nodes):
                return np.nan
            self.undefined = self.undefined or self.point(values, x, y)
            return np.inf if moderate else np.nan
        self.seen += 1
        apart = np.abs(x - y)
        if not np.any(apart > 0):
            return 0.0
        size = np.maximum(np.abs(x), np.abs(y))
        allowed = _TOLERANCE * size + 1e-290
        if np.any(apart > allowed):
            spread = self._spread(table, sizes)
            # A value that the nudge changes by much is noise as a whole; else rounding is far below the nudge.
            allowed = allowed + np.where(spread > 1e-2 * size, 10 * spread, 1e-3 * spread)
        return float(np.max(apart / allowed, initial=0.0))

    def _spread(self, table: Mapping[Node, Any], sizes: Mapping[str, int]) -> Any:
        """How much the two results move when every value on the way moves by ``_NUDGE``; comparisons stay."""
        found: Any = 0.0
        for seed in range(3):
            generator = np.random.default_rng(seed)
            moved: dict[Node, Any] = {}
            with np.errstate(all="ignore"):
                for node in toposort([self.a, self.b]):
                    value = table[node]
                    if node.inputs and not isinstance(value, tuple) and np.asarray(value).dtype != bool:
                        params = {k: numeric(v, sizes) for k, v in node.params.items()}
                        value = node.op.value(*(moved[i] for i in node.inputs), **params)
                    if (node.inputs or "name" in node.params) and np.asarray(value).dtype == np.float64:
                        value = value * (1 + _NUDGE * generator.uniform(-1, 1, np.shape(value)))
                    moved[node] = value
                change = np.abs(moved[self.a] - table[self.a]) + np.abs(moved[self.b] - table[self.b])
            found = np.maximum(found, np.where(np.isfinite(change), change, 0.0))
        return found

    def try_points(self, points: Iterator[tuple[Values, dict[str, int]]], moderate: bool) -> bool:
        """Whether they agree at all of the points; remembers the worst."""
        agreed = True
        for values, sizes in points:
            distance = self.difference(values, sizes, moderate)
            if np.isnan(distance):
                continue
            if distance > self.worst[0]:
                self.worst = (distance, self.point(values, *evaluate([self.a, self.b], values, sizes)))
            agreed = agreed and distance <= 1
        return agreed

    def point(self, values: Values, x: Any, y: Any) -> dict[str, Any]:
        return _point(self.leaves, values, x, y)

    # ---- where the points are ------------------------------------------------------------------------------
    def moderate_points(self, seed: int) -> Iterator[tuple[Values, dict[str, int]]]:
        for trial in range(2 * _MODERATE):
            generator = np.random.default_rng([seed, trial])
            sizes = random_sizes(self.nodes, generator)
            yield sample_values(self.leaves, generator, sizes, positive=trial >= _MODERATE), sizes

    def wide_points(self, seed: int) -> Iterator[tuple[Values, dict[str, int]]]:
        """At other scales, and around the constants of the formula and of what undoes them."""
        generator = np.random.default_rng([seed, 10**6])
        sizes = random_sizes(self.nodes, generator)
        numbers = {abs(float(n.number)) for n in self.nodes if n.is_leaf and n.number is not None}
        constants = sorted(c for c in numbers if np.isfinite(c) and c not in (0.0, 1.0))[-_MOST_CONSTANTS:]
        scales = list(_SCALES)
        for c in constants:
            scales += [c, 1 / c, float(np.sqrt(c)), float(np.sqrt(1 / c)), abs(float(np.log(c)))]
        scales = [s for s in dict.fromkeys(scales) if 1e-100 < s < 1e100]
        draws = [(0.0, s) for s in scales] + [(s * c, w) for c in constants for s in (1, -1) for w in (1.0, c / 100)]
        for shift, scale in draws:
            for positive in (False, True):
                values = sample_values(self.leaves, generator, sizes, positive)
                yield {leaf: (0 if structure_of(leaf) else shift) + scale * v for leaf, v in values.items()}, sizes
        for _ in range(2 * len(scales)):  # every variable on a scale of its own
            values = sample_values(self.leaves, generator, sizes, positive=False)
            yield {leaf: generator.choice([1.0, *scales]) * v for leaf, v in values.items()}, sizes

    def switches(self) -> list[_Switch]:
        """Where comparisons and declared kinks switch."""
        found: dict[Node, _Switch] = {}
        for n in self.nodes:
            operands = [i for i in n.inputs if getattr(i.type, "is_float", False)]
            pairs: list[tuple[Node, Node | float]] = []
            if getattr(n.type, "dtype", "") == "bool" and len(operands) == 2:
                pairs.append((operands[0], operands[1]))
            elif n.op.kinks and len(operands) == 2:
                pairs.append((operands[0], operands[1]))
            elif n.op.kinks and len(operands) == 1 and operands[0].shape == n.shape:
                pairs += [(operands[0], kink.at) for kink in n.op.kinks]
            for left, right in pairs:
                written = f"{right:g}" if not isinstance(right, Node) else text(right)
                label = f"{text(left)} = {written}"
                where = simplify(left - right)
                if simplify(-where) not in found:  # z > 0 and 0 > z switch at the same place
                    found.setdefault(where, _Switch(left, right, label))
        return list(found.values())[:_MOST_SWITCHES]

    def crossings(
        self, switch: _Switch, points: Sequence[Values], sizes: Mapping[str, int], seed: int
    ) -> Iterator[tuple[list[Values], Values | None]]:
        """Points close to where an element of the switch changes sign, and one where it is exactly zero."""
        roots = [switch.left, *([switch.right] if isinstance(switch.right, Node) else [])]
        leaves = [n for n in toposort(roots) if n in self.leaves and n.type.is_float]
        if not leaves:
            return
        generator = np.random.default_rng([seed, 10**7])

        def signs(values: Values) -> Any:
            found = evaluate(roots, values, sizes)
            return np.ravel(np.asarray(found[0] - (found[1] if len(found) > 1 else switch.right), dtype=float))

        at = [signs(p) for p in points]
        element = int(generator.integers(len(at[0]))) if len(at[0]) else 0
        below = [p for p, s in zip(points, at, strict=True) if len(s) and s[element] < 0]
        above = [p for p, s in zip(points, at, strict=True) if len(s) and s[element] > 0]
        for low, high in list(zip(below, above, strict=False))[:3]:
            # From one to the other, an entry of a variable at a time: one of them makes the sign change.
            here = {leaf: np.array(v, dtype=float) for leaf, v in low.items()}
            entries = [(leaf, k) for leaf in leaves for k in range(np.size(low[leaf]))]
            for i in generator.permutation(len(entries)):
                leaf, k = entries[i]
                start, end = float(here[leaf].flat[k]), float(np.ravel(high[leaf])[k])

                def moved(value: float, leaf: Node = leaf, k: int = k, here: Values = here) -> Values:
                    return {**here, leaf: moved_element(leaf, here[leaf], k, value)}

                if not signs(moved(end))[element] >= 0:
                    here = moved(end)
                    continue
                a, b = start, end
                for _ in range(120):
                    middle = (a + b) / 2
                    if middle in (a, b):
                        break
                    a, b = (middle, b) if signs(moved(middle))[element] < 0 else (a, middle)
                step = max(abs(b), 1e-3)
                near = [moved(b + s * d * step) for d in (1e-2, 1e-5) for s in (1, -1)]
                exact = [v for v in (*(round(b, d) for d in range(9)), b, a) if signs(moved(v))[element] == 0]
                yield near, moved(exact[0]) if exact else None
                break


def agreement(a: Node, b: Node, domain: Node | None = None, seed: int = 0) -> Agreement:
    """Whether two nodes have the same values wherever ``domain``, the formula itself, is finite.

    Without a domain, points where both are not finite are passed over. An unknown function and its derivatives have
    random values like a variable. A difference at a kink alone is no difference; ``except_at`` names the kink.

    Raises:
        ChainruleError: no point was found where the values are finite.
    """
    both = _Comparison(a, b, domain)
    if not both.try_points(both.moderate_points(seed), moderate=True):
        return Agreement(False, both.worst[1])
    wide = list(both.wide_points(seed))
    if not both.try_points(iter(wide), moderate=False):
        return Agreement(False, both.worst[1])
    exceptions: list[str] = []
    switches = both.switches()
    if switches:
        sizes = wide[0][1]
        generator = np.random.default_rng([seed, 2])
        points = [sample_values(both.leaves, generator, sizes, positive=False) for _ in range(6)]
        points += [values for values, _ in wide]
        for switch in switches:
            for near, exact in both.crossings(switch, points, sizes, seed):
                if not both.try_points(((p, sizes) for p in near), moderate=False):
                    return Agreement(False, both.worst[1])
                if exact is not None and switch.label not in exceptions and both.difference(exact, sizes) > 1:
                    exceptions.append(switch.label)
    if not both.seen:
        if both.undefined:
            return Agreement(False, both.undefined)
        raise ChainruleError(
            "no point was found where the formula and its derivative are finite",
            given=text(both.roots[-1])[:80],
            required="a formula with a domain; points were tried around 0 and around its constants",
        )
    return Agreement(True, both.worst[1], ", ".join(exceptions))


def _overflows(table: Mapping[Node, Any], nodes: Sequence[Node]) -> bool:
    """Whether a value that is not finite comes of numbers beyond the range of floats, not of the function."""
    for node in nodes:
        if isinstance(table[node], tuple) or np.all(np.isfinite(table[node])):
            continue
        inputs = [np.abs(np.asarray(table[i], dtype=float)) for i in node.inputs if not isinstance(table[i], tuple)]
        if any(np.any(v > 1e100) for v in inputs) or any(np.any((v > 0) & (v < 1e-100)) for v in inputs):
            return True
        if len(node.inputs) == 1 and np.any(np.isposinf(table[node])) and np.any(inputs[0] > 500):
            return True  # exp
    return False


# ---- values ------------------------------------------------------------------------------------------------
def sample_values(
    leaves: Sequence[Node], generator: np.random.Generator, sizes: Mapping[str, int], positive: bool
) -> Values:
    """Random values for leaves: standard normal, or positive ones where logarithms and roots need them."""
    values = {}
    for leaf in leaves:
        shape = numeric(leaf.shape, sizes)
        value = generator.uniform(0.3, 1.7, shape) if positive else generator.standard_normal(shape)
        values[leaf] = with_structure(leaf, value)
    return values


def random_sizes(nodes: Sequence[Node], generator: np.random.Generator) -> dict[str, int]:
    """A number for every named dimension, small and different from each other."""
    names = sorted({name for n in nodes for s in n.shape if not isinstance(s, int) for name in s.names})
    names += sorted({name for n in nodes if "size" in n.params for name in getattr(n.params["size"], "names", ())})
    names = list(dict.fromkeys(names))
    choices = generator.permutation(np.arange(2, 2 + max(len(names), 1)))
    return {name: int(choices[k]) for k, name in enumerate(names)}


def _point(leaves: Sequence[Node], values: Mapping[Node, Any], a: Any, b: Any) -> dict[str, Any]:
    """The point as plain numbers, with as many digits as it takes to see a difference."""

    def decimals(v: Any, digits: int) -> Any:
        return np.round(np.asarray(v, dtype=float), digits)

    def significant(v: Any, digits: int) -> Any:
        array = np.asarray(v, dtype=float)
        return np.array([float(f"{e:.{digits}g}") for e in array.ravel()]).reshape(array.shape)

    sizes = [float(np.max(np.abs(v), initial=0.0)) for v in values.values()]
    small = all(1e-2 <= s < 1e3 for s in sizes if s)
    ways = [(decimals, d) for d in range(4, 9)] if small else []
    ways += [(significant, d) for d in range(6, 18)]
    way, digits = next((w for w in ways if not np.array_equal(w[0](a, w[1]), w[0](b, w[1]))), ways[0])
    return {
        "at": {n.params["name"]: way(values[n], digits).tolist() for n in leaves},
        "first": way(a, digits).tolist(),
        "second": way(b, digits).tolist(),
    }
