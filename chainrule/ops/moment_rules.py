"""How moments pass through ops: sums, products, contractions and pointwise functions.

A rule is an object with ``forward(states, node) -> Moments`` and, where the cotangent needs more than its local
derivative (alignment with the value), ``backward(g, states, y, node) -> cotangents``. They are written with plain arithmetic, so the same rule gives numbers for a
network and formulas for a derivation. Sources: He et al. 2015 (linear layers and ReLU); Gaussian integrals by
composite Gauss-Legendre quadrature split at the declared kinks, because a rule that straddles a kink is wrong by
percents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.ir import Dim, Node, TensorType, as_node, product, toposort, variable
from chainrule.ir.moments import UNKNOWN, CotangentMoments, Moments, worst

_SEGMENTS, _POINTS, _REACH = 8, 24, 10.0


# ---- expectations under a normal law ---------------------------------------------------------------------------------------
def normal_nodes(kinks: Sequence[float], mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for expectations under N(mean, std^2), with a segment border at every kink.

    Composite Gauss-Legendre on mean +- 10 std: exact to rounding for functions that are smooth between the kinks.
    """
    if std == 0:
        return np.array([mean]), np.array([1.0])
    borders = np.linspace(-_REACH, _REACH, _SEGMENTS + 1)
    inside = [(k - mean) / std for k in kinks if abs(k - mean) < _REACH * std]
    borders = np.unique(np.concatenate([borders, inside]))
    x, w = np.polynomial.legendre.leggauss(_POINTS)
    left, right = borders[:-1, None], borders[1:, None]
    z = ((right - left) * x + (right + left)) / 2
    weights = (right - left) / 2 * w * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return (mean + std * z).ravel(), weights.ravel()


def expectations(
    functions: Sequence[Callable[[np.ndarray], np.ndarray]], mean: Any, variance: Any, kinks: Sequence[float]
) -> list[np.ndarray]:
    """E[f(u)] for each function, u ~ N(mean, variance), elementwise over arrays of means and variances."""
    mean, variance = np.broadcast_arrays(np.asarray(mean, dtype=float), np.asarray(variance, dtype=float))
    pairs, back = np.unique(np.stack([mean.ravel(), variance.ravel()]), axis=1, return_inverse=True)
    values = np.empty((len(functions), pairs.shape[1]))
    for k, (m, v) in enumerate(pairs.T):
        u, w = normal_nodes(kinks, m, np.sqrt(max(v, 0.0)))
        for f, function in enumerate(functions):
            values[f, k] = np.sum(w * function(u))
    return [row[back.ravel()].reshape(mean.shape) for row in values]


# ---- pointwise functions ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pointwise:
    """Moments of phi(u) for an elementwise op.

    Args:
        symmetric: ``(second moment of u) -> second moment of phi(u)`` where symmetry of u about zero suffices.
        normal: ``(variance) -> (mean, second)`` in closed form for u ~ N(0, variance).
        odd: phi(-u) = -phi(u): a symmetric u stays symmetric.
        why: the reason, as a line of a proof.
    """

    symmetric: Callable[..., Any] | None = None
    normal: Callable[..., tuple[Any, Any]] | None = None
    odd: bool = False
    why: str = ""

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        u, *others = states
        extra = [o.mean for o in others]
        if not u.known or any(o.law != "given" for o in others):
            return replace(UNKNOWN, sources=_sources(states))
        law = "symmetric" if self.odd and u.law in ("normal", "symmetric") and _is_zero(u.mean) else "any"
        common = {"sources": u.sources, "odd": u.odd if self.odd else frozenset(), "law": law}
        if u.law == "given" and not isinstance(u.mean, Node):
            value = _value(node, u.mean, extra)
            return Moments(value, value**2, law="given", why="a function of given numbers")
        if _is_zero(u.mean) and u.law == "normal" and self.normal is not None:
            mean, second = self.normal(u.second, *extra)
            kurtosis = 3.0 if isinstance(second, Node) else self._kurtosis(u, node, extra)
            spread = u.unit_spread
            return Moments(mean, second, kind=u.kind, unit_spread=spread, kurtosis=kurtosis, why=self.why, **common)
        if _is_zero(u.mean) and u.law in ("normal", "symmetric") and self.symmetric is not None:
            second = self.symmetric(u.second, *extra)
            mean = 0.0 if law == "symmetric" else None
            if u.law == "normal" and not isinstance(u.second, Node):
                mean = self._integrals(u, node, extra)[0]
            return Moments(mean, second, kind=u.kind, unit_spread=u.unit_spread, why=self.why, **common)
        if isinstance(u.second, Node) or isinstance(u.mean, Node) or u.law in ("symmetric", "given"):
            return replace(UNKNOWN, sources=u.sources, why=f"no closed form of {node.op.name} for this law")
        mean, second, _ = self._integrals(u, node, extra)
        mean = np.zeros_like(mean) if self.odd and _is_zero(u.mean) else mean
        kind = u.kind if u.law == "normal" else worst(u.kind, "approximate")
        kurtosis = self._kurtosis(u, node, extra)
        why = "quadrature under a normal law" if u.law == "normal" else "quadrature as if the law were normal"
        return Moments(mean, second, kind=kind, unit_spread=u.unit_spread, kurtosis=kurtosis, why=why, **common)

    def _kurtosis(self, u: Moments, node: Node, extra: Sequence[Any]) -> Any:
        _, second, fourth = self._integrals(u, node, extra)
        return np.divide(fourth, second**2, out=np.ones_like(second), where=second > 0)

    def backward(
        self, g: CotangentMoments, states: Sequence[Moments], y: Moments, node: Node
    ) -> list[CotangentMoments | None] | None:
        """``g phi'(u)``: the part of g along phi(u) and the rest pass the derivative separately."""
        u, *others = states
        if not u.known or u.mean is None or u.law == "given" or not y.known:
            return None
        extra = [o.mean for o in others]

        def phi(x: np.ndarray) -> np.ndarray:
            return _value(node, x, extra)

        def dphi(x: np.ndarray) -> np.ndarray:
            return _slope(node, x, phi(x), extra)

        functions = [
            lambda x: dphi(x) ** 2,
            lambda x: (dphi(x) * phi(x)) ** 2,
            lambda x: dphi(x) * x * phi(x),
            lambda x: (dphi(x) * x) ** 2,
            lambda x: dphi(x) * x,
        ]
        kinks = [k.at for k in node.op.kinks]
        kind = worst(g.kind, u.kind, "exact" if u.law == "normal" else "approximate")
        nothing: list[CotangentMoments | None] = [None] * len(others)
        if g.given:
            axes = g.axes or ((node.type.rank - 1,) if node.type.rank else ())
            n = _count(node, axes)
            # The units share a variance that varies with the weights before: two equally likely values of it have
            # its mean and its spread, and given the variance the units are independent.
            half = np.sqrt(np.maximum(u.unit_spread - 1.0, 0.0)) * u.second / np.maximum(u.variance, 1e-300)
            aligned, passed = 0.0, 0.0
            for sign in (-1.0, 1.0):
                variance = u.variance * np.maximum(1.0 + sign * half, 0.0)
                d2, _, _, d2u2, du = expectations(functions, u.mean, variance, kinks)
                aligned = aligned + _over(g.second * (n * d2u2 + n * (n - 1) * _over(du, axes) ** 2), axes) / 2
                passed = passed + g.second * d2 / 2
            return [CotangentMoments(passed, aligned, axes, kind=kind), *nothing]
        d2, d2p2, dup, d2u2, _ = expectations(functions, u.mean, u.variance, kinks)
        if g.aligned is None:
            return [CotangentMoments(g.second * d2, None, g.axes, kind=kind), *nothing]
        n, q = _count(node, g.axes), y.second
        fourth = norm_fourth(y, n, g.axes)
        # a^2 with g = a phi(u) + rest
        along = np.divide(g.aligned, fourth, out=np.zeros_like(fourth), where=fourth > 0)
        rest = np.maximum(g.second - along * q, 0.0)
        # phi'(u) u = share * phi(u) + what is uncorrelated with it
        share = np.divide(dup, q, out=np.zeros(np.broadcast_shapes(np.shape(dup), np.shape(q))), where=q > 0)
        aligned = share**2 * g.aligned + n * rest * np.maximum(d2u2 - share**2 * q, 0.0)
        return [CotangentMoments(along * d2p2 + rest * d2, _over(aligned, g.axes), g.axes, kind=kind), *nothing]

    def _integrals(self, u: Moments, node: Node, extra: Sequence[Any]) -> list[np.ndarray]:
        def phi(x: np.ndarray) -> np.ndarray:
            return _value(node, x, extra)

        kinks = [k.at for k in node.op.kinks]
        functions = [phi, lambda x: phi(x) ** 2, lambda x: phi(x) ** 4]
        return expectations(functions, u.mean, u.variance, kinks)


def _count(node: Node, axes: Sequence[int]) -> int:
    return int(product([node.shape[a] for a in axes]))  # type: ignore[arg-type]


def _over(array: Any, axes: Sequence[int]) -> Any:
    """The mean over the unit dimensions, kept as size 1: units are alike there up to what a sample gives."""
    array = np.asarray(array, dtype=float)
    return array.mean(axis=tuple(a for a in axes if a < array.ndim), keepdims=True) if array.ndim else array


def norm_fourth(x: Moments, units: int, axes: Sequence[int]) -> Any:
    """E|x|^4 of the vectors along ``axes``: pairs of units share the spread, a unit with itself has its kurtosis."""
    q = np.asarray(x.second, dtype=float)
    spread = x.unit_spread if x.law != "given" else 1.0
    kurtosis = x.kurtosis if x.law != "given" else 1.0
    pairs = (units * _over(q, axes)) ** 2 - units * _over(q * q, axes)
    return _over(spread * np.ones_like(q), axes) * pairs + units * _over(kurtosis * spread * q * q, axes)


def _value(node: Node, x: Any, extra: Sequence[Any]) -> Any:
    with np.errstate(all="ignore"):
        return np.asarray(node.op.value(x, *(np.asarray(e).reshape(-1)[0] for e in extra), **node.params), dtype=float)


def _slope(node: Node, x: np.ndarray, y: np.ndarray, extra: Sequence[Any]) -> np.ndarray:
    """The declared local derivative, in numbers."""
    type_ = TensorType(x.shape)
    g, value, u = variable("g", type_), variable("y", type_), variable("u", type_)
    others = [variable(f"extra_{k}") for k, _ in enumerate(extra)]
    assert node.op.vjp is not None
    derivative = node.op.vjp(g, value, u, *others, **node.params)[0]
    if derivative is None:
        return np.zeros_like(x)
    values: dict[Node, Any] = {g: np.ones_like(x), value: y, u: x}
    values |= {leaf: np.asarray(e).reshape(-1)[0] for leaf, e in zip(others, extra, strict=True)}
    with np.errstate(all="ignore"):
        for n in toposort([derivative], stop=lambda n: n in values):
            if n not in values:
                values[n] = n.op.value(*(values[i] for i in n.inputs), **n.params)
    return np.broadcast_to(np.asarray(values[derivative], dtype=float), x.shape)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Node):
        return value.number == 0
    return value is not None and bool(np.all(np.asarray(value) == 0))


def _sources(states: Sequence[Moments]) -> frozenset[str]:
    return frozenset().union(*(s.sources for s in states))


# ---- sums ---------------------------------------------------------------------------------------------------------------------
def uncorrelated(a: Moments, b: Moments) -> bool:
    """Whether E[ab] = E[a]E[b]: independent sources, or one is odd in a source that the other does not have."""
    return not (a.sources & b.sources) or bool(a.odd - b.sources) or bool(b.odd - a.sources)


@dataclass(frozen=True)
class SumRule:
    """``a + sign * b``."""

    sign: int

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        a, b = states
        sign = self.sign
        if not a.known or not b.known:
            return replace(UNKNOWN, sources=_sources(states))
        kind, why = worst(a.kind, b.kind), "variances of independent terms add"
        mean = None if a.mean is None or b.mean is None else a.mean + sign * b.mean
        if node.inputs[0] is node.inputs[1]:
            factor = (1 + sign) ** 2
            return replace(a, mean=mean, second=a.second * factor, why="the same value twice")
        if uncorrelated(a, b):
            if mean is None and not (_is_zero(a.mean) or _is_zero(b.mean)):
                return replace(UNKNOWN, sources=_sources(states), why="a mean is unknown")
            cross = 0.0 if _is_zero(a.mean) or _is_zero(b.mean) else 2 * sign * (a.mean * b.mean)
            both_given = a.law == b.law == "given"
            cross = 2 * sign * (a.mean * b.mean) if both_given else cross
        else:
            kind, why = worst(kind, "approximate"), "terms with common sources, taken as independent"
            cross = 0.0 if mean is None else 2 * sign * (a.mean * b.mean)
        second = a.second + b.second + cross if not _is_zero(cross) else a.second + b.second
        return Moments(
            mean,
            second,
            law=_law_of_sum(a, b),
            kind=kind,
            sources=_sources(states),
            odd=a.odd & b.odd if a.sources and b.sources else (a.odd if _is_zero(b.second) else b.odd & a.odd),
            **_fourth_moments(a, b, second),
            why=why,
        )

    def backward(
        self, g: CotangentMoments, states: Sequence[Moments], y: Moments, node: Node
    ) -> list[CotangentMoments | None] | None:
        """g itself for both; its alignment with each from the split g = a (x + y) + rest."""
        if g.aligned is None or not all(s.known for s in states):
            return None
        n, q = _count(node, g.axes), _over(y.second, g.axes)
        qg = _over(g.second, g.axes)
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (g.aligned - n * q * qg) / (norm_fourth(y, n, g.axes) - n * q * q)
        along = np.clip(np.nan_to_num(along), 0.0, qg / np.maximum(q, 1e-300))
        rest = np.maximum(qg - along * q, 0.0)
        back: list[CotangentMoments | None] = []
        for x, other in zip(states, states[::-1], strict=True):
            qx, qo = _over(x.second, g.axes), _over(other.second, g.axes)
            aligned = along * (norm_fourth(x, n, g.axes) + n * qx * qo) + n * rest * qx
            back.append(CotangentMoments(g.second, aligned, g.axes, g.given, g.kind))
        return back


def _fourth_moments(a: Moments, b: Moments, second: Any) -> dict[str, Any]:
    """Spread and kurtosis of a sum of independent values, from E[(a + b)^4] and E[(a_i + b_i)^2 (a_j + b_j)^2]."""
    if isinstance(second, Node):
        return {}
    qa, qb = a.second, b.second
    between = a.unit_spread * qa**2 + b.unit_spread * qb**2 + 2 * qa * qb
    within = _fourth(a) * qa**2 + _fourth(b) * qb**2 + 6 * qa * qb
    shape = np.broadcast_shapes(np.shape(between), np.shape(second))
    return {
        "unit_spread": np.divide(between, second**2, out=np.ones(shape), where=second > 0),
        "kurtosis": np.divide(within, between, out=np.ones(shape), where=between > 0),
    }


def _fourth(x: Moments) -> Any:
    return 1.0 if x.law == "given" else x.kurtosis * x.unit_spread


def _law_of_sum(a: Moments, b: Moments) -> str:
    laws = {a.law, b.law}
    if laws <= {"given"}:
        return "given"
    if laws <= {"normal", "given"}:
        return "normal"
    if laws <= {"normal", "symmetric"}:
        return "symmetric"
    return "symmetric" if laws == {"symmetric", "given"} and (_is_zero(a.second) or _is_zero(b.second)) else "any"


# ---- products -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ScaleRule:
    """A fixed multiple, such as -1 or 1."""

    factor: float

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        (a,) = states
        if self.factor == 1:
            return a
        mean = None if a.mean is None else a.mean * self.factor
        return replace(a, mean=mean, second=a.second * self.factor**2 if a.known else None)

    def backward(
        self, g: CotangentMoments, states: Sequence[Moments], y: Moments, node: Node
    ) -> list[CotangentMoments | None] | None:
        """Scaled alike; g x is unchanged."""
        return [replace(g, second=g.second * self.factor**2)]


@dataclass(frozen=True)
class ProductRule:
    """``a * b``, or ``a / b`` for a b that is given."""

    invert: bool = False

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        a, b = states
        if not a.known or not b.known or (self.invert and b.law != "given"):
            return replace(UNKNOWN, sources=_sources(states))
        if self.invert:
            b = replace(b, mean=1.0 / b.mean, second=1.0 / (b.mean * b.mean))
        if a.law == "given" and b.law != "given":
            a, b = b, a
        kind, why = worst(a.kind, b.kind), "moments of independent factors multiply"
        if b.law == "given":
            why = "a given factor scales"
        elif a.sources & b.sources:
            kind, why = worst(kind, "approximate"), "factors with common sources, taken as independent"
        mean = None if a.mean is None or b.mean is None else a.mean * b.mean
        if mean is None and (_is_zero(a.mean) or _is_zero(b.mean)):
            mean = 0.0
        law = a.law if b.law == "given" else "symmetric" if "symmetric" in (a.law, b.law) or a.odd or b.odd else "any"
        if law == "normal" and _is_zero(b.second):
            law = "given"
        return Moments(
            mean,
            a.second * b.second,
            law=law,
            kind=kind,
            sources=_sources(states),
            odd=a.odd ^ b.odd,
            unit_spread=a.unit_spread,
            kurtosis=a.kurtosis if b.law == "given" else a.kurtosis * b.kurtosis,
            why=why,
        )


@dataclass(frozen=True)
class PowerRule(Pointwise):
    """``u ^ p`` for a given p: the square of a centred value in closed form, anything else by quadrature."""

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        u = states[0]
        if u.known and node.inputs[1].number == 2 and u.law != "given":
            normal_zero = u.law == "normal" and _is_zero(u.mean)
            second = u.second * u.second * 3 if normal_zero else None
            if second is not None or isinstance(u.second, Node):
                why = "E[u^2]; E[u^4] = 3 v^2 for a normal u"
                return Moments(u.second, second, kind=u.kind, sources=u.sources, unit_spread=u.unit_spread, why=why)
        return super().forward(states, node)


# ---- contractions ---------------------------------------------------------------------------------------------------------------
def contract(
    values: Sequence[Any], operands: Sequence[tuple[int, ...]], result: Sequence[int], sizes: dict[int, int | Dim]
) -> Any:
    """The einsum of moment arrays, where a dimension of size 1 stands for equal elements.

    A summed dimension that no operand resolves counts its size; a free one stays 1.
    """
    present = dict.fromkeys(i for o in operands for i in o)
    if any(isinstance(v, Node) for v in values) or any(isinstance(sizes[i], Dim) for i in present):
        total: Any = as_node(1.0)
        for v in values:
            total = total * v
        count = product([sizes[i] for i in present if i not in result])
        return total * as_node(count if isinstance(count, Dim) else float(count))
    flat: list[Any] = []
    resolved: set[int] = set()
    for value, indices in zip(values, operands, strict=True):
        array = np.asarray(value, dtype=float)
        array = array.reshape((1,) * (len(indices) - array.ndim) + array.shape)
        kept = [a for a, i in enumerate(indices) if array.shape[a] != 1 or sizes[i] == 1]
        flat += [array.reshape([array.shape[a] for a in kept]), [indices[a] for a in kept]]
        resolved |= {indices[a] for a in kept}
    free = [i for i in result if i in resolved]
    total = np.einsum(*flat, free)
    count = float(np.prod([int(sizes[i]) for i in present if i not in result and i not in resolved] or [1.0]))
    shape = [total.shape[free.index(i)] if i in resolved else 1 for i in result]
    return (total * count).reshape(shape)


class ContractionRule:
    """A contraction of independent operands, at least one of which is random with mean zero given the others.

    E[y^2] sums E[a^2] E[b^2] over the contracted elements where the operand with independent zero-mean elements makes
    cross terms vanish; a contraction without such an operand needs covariances and is unknown, unless all is given.
    """

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        operands, result = node.params["operands"], node.params["result"]
        if any(not s.known for s in states):
            return replace(UNKNOWN, sources=_sources(states))
        sizes = {i: s for n, o in zip(node.inputs, operands, strict=True) for i, s in zip(o, n.shape, strict=True)}
        summed = [i for i in sizes if i not in result]
        if all(s.law == "given" for s in states):
            mean = contract([s.mean for s in states], operands, result, sizes)
            return Moments(mean, mean * mean, law="given", why="a function of given numbers")
        random = [k for k, s in enumerate(states) if s.odd and set(summed) <= set(operands[k])]
        if len(states) == 1:
            return _single(states[0], node, summed, sizes, operands, result)
        if not random:
            return replace(UNKNOWN, sources=_sources(states), why="a contraction without independent zero-mean weights")
        second = contract([s.second for s in states], operands, result, sizes)
        kinds = [s.kind for s in states]
        weights = random[0]
        others = [s for k, s in enumerate(states) if k != weights]
        if any(states[weights].sources & s.sources for s in others):
            kinds.append("approximate")
        count = product([sizes[i] for i in summed])
        spread: Any = 1.0
        if len(states) == 2 and isinstance(count, int) and not isinstance(second, Node):
            spread = _spread_of_inputs(others[0], operands[1 - weights], operands[weights], result, count)
        zero = as_node(0.0) if isinstance(second, Node) else np.zeros(np.shape(second))
        return Moments(
            zero,
            second,
            law="normal",
            kind=worst(*kinds),
            sources=_sources(states),
            odd=frozenset().union(*(s.odd for s in states)),
            unit_spread=spread,
            why="independent weights of mean zero: E[f^2] = sum of Var(w) E[h^2]",
        )

    def backward(
        self, g: CotangentMoments, states: Sequence[Moments], y: Moments, node: Node
    ) -> list[CotangentMoments | None] | None:
        """The cotangent of x in f = W x for independent weights of mean zero, conditioned on f.

        Given f, the part of W along x is fixed (W x = f) and the rest is still random: the cotangent is
        x (g.f) / |x|^2 plus, in the other directions, an independent part of variance s^2 sum(g^2). Hence
        E[g_x^2] = E[(g.f)^2] / (n |x|^2) + (1 - 1/n) s^2 sum E[g^2], and (g_x.x) = (g.f).
        """
        operands, result = node.params["operands"], node.params["result"]
        if len(states) != 2 or g.given:
            return None
        weights = [k for k, s in enumerate(states) if s.fresh]
        if len(weights) != 1:
            return None
        (k,) = weights
        x, own, other = states[1 - k], operands[1 - k], operands[k]
        sizes = {i: s for n, o in zip(node.inputs, operands, strict=True) for i, s in zip(o, n.shape, strict=True)}
        summed = [i for i in own if i not in result]
        units = tuple(a for a, i in enumerate(result) if i in other and i not in own)
        if set(summed) != {i for i in other if i not in result} or not x.known:
            return None
        spread_over = contract([g.second, states[k].second], [result, other], own, sizes)
        axes = tuple(a for a, i in enumerate(own) if i in summed)
        if g.aligned is None or tuple(g.axes) != units:
            found = CotangentMoments(spread_over, None, axes, kind=worst(g.kind, x.kind, "approximate"))
        else:
            n = int(product([sizes[i] for i in summed]))  # type: ignore[arg-type]
            aligned = _moved_units(g.aligned, result, units, own, axes)
            squared = contract([x.second], [own], [i for i in own if i not in summed], sizes)
            squared = np.expand_dims(squared, axes)  # |x|^2, per vector
            whole = (n * _over(x.second, axes)) ** 2
            spread = np.divide(norm_fourth(x, n, axes), whole, out=np.ones_like(whole), where=whole > 0)
            spread = spread if x.law != "given" else 1.0
            along = np.divide(aligned, n * squared * spread, out=np.zeros(np.broadcast(aligned, squared).shape), where=squared > 0)
            found = CotangentMoments(along + (1 - 1 / n) * spread_over, aligned, axes, kind=worst(g.kind, x.kind))
        back: list[CotangentMoments | None] = [None, None]
        back[1 - k] = found
        return back


def _spread_of_inputs(x: Moments, own: Sequence[int], weights: Sequence[int], result: Sequence[int], n: int) -> Any:
    """The spread that units of W x share: that of |x|^2, vector by vector."""
    if x.law == "given":
        return 1.0
    axes = tuple(a for a, i in enumerate(own) if i not in result)
    if any(i in weights and i in result for i in own):
        return 1.0
    squared = (n * _over(x.second, axes)) ** 2
    spread = np.divide(norm_fourth(x, n, axes), squared, out=np.ones_like(squared), where=squared > 0)
    units = tuple(a for a, i in enumerate(result) if i not in own)
    return _moved_units(spread, own, axes, result, units)


def _moved_units(aligned: Any, result: Sequence[int], units: Sequence[int], own: Sequence[int], axes: Sequence[int]) -> Any:
    """A per-vector array of f as one of x: the shared dimensions permuted, units dropped and added with size 1."""
    array = np.asarray(aligned, dtype=float)
    array = array.reshape((1,) * (len(result) - array.ndim) + array.shape)
    shared = [i for a, i in enumerate(result) if a not in units]
    array = array.reshape([array.shape[a] for a in range(len(result)) if a not in units])
    order = [shared.index(i) for a, i in enumerate(own) if a not in axes]
    return np.expand_dims(np.transpose(array, order), tuple(axes))


def _single(
    state: Moments, node: Node, summed: list[int], sizes: dict[int, Any], operands: Any, result: Any
) -> Moments:
    """Permutations, and sums of one value (whose elements are taken as independent)."""
    if not summed:
        if isinstance(state.second, Node):
            return state
        mean = None if state.mean is None else contract([state.mean], operands, result, sizes)
        return replace(state, mean=mean, second=contract([state.second], operands, result, sizes))
    if state.mean is None:
        return replace(UNKNOWN, sources=state.sources)
    mean = contract([state.mean], operands, result, sizes)
    variance = contract([state.variance], operands, result, sizes)
    return Moments(
        mean,
        variance + mean * mean,
        law="normal",
        kind=worst(state.kind, "approximate"),
        sources=state.sources,
        odd=state.odd,
        why="a sum of elements taken as independent",
    )


# ---- movement -----------------------------------------------------------------------------------------------------------------
class MovementRule:
    """Values that only change place keep their moments."""

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        (x,) = states
        if not x.known or isinstance(x.second, Node):
            return x
        mean = None if x.mean is None else self._moved(x.mean, node)
        return replace(x, mean=mean, second=self._moved(x.second, node))

    def _moved(self, array: Any, node: Node) -> Any:
        if np.size(array) == 1:
            return np.reshape(array, (1,) * node.type.rank)
        return np.asarray(node.op.value(np.broadcast_to(array, node.inputs[0].shape), **node.params))
