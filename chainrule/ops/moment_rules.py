"""How moments pass through ops: sums, products, contractions and pointwise functions.

A rule is an object with ``forward(states, node) -> Moments``, written with plain arithmetic, so that the same rule
gives numbers and formulas. What models need besides, pairs of elements and cotangents, is in ``ops.fields``.

Neighbours: ``quadrature`` for normal expectations, ``contraction_moments`` for linear layers. Source of the ReLU
rule: problem 7.14, He et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.ir import Node, as_node
from chainrule.ir.moments import UNKNOWN, Moments, worst
from chainrule.ops.quadrature import expectations


# ---- pointwise functions -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pointwise:
    """Moments of phi(u) for an elementwise op.

    Args:
        symmetric: ``(second moment of u) -> second moment of phi(u)`` where symmetry of u about zero suffices.
        normal: ``(variance) -> (mean, second)`` in closed form for u ~ N(0, variance).
        shifted: ``(mean, variance) -> (mean, second)`` in closed form for u ~ N(mean, variance).
        odd: phi(-u) = -phi(u): a symmetric u stays symmetric.
        why: the reason, as a line of a proof.
    """

    symmetric: Callable[..., Any] | None = None
    normal: Callable[..., tuple[Any, Any]] | None = None
    shifted: Callable[..., tuple[Any, Any]] | None = None
    odd: bool = False
    why: str = ""

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        u, *others = states
        extra = [o.mean for o in others]
        if not u.known or any(o.law != "given" for o in others):
            return replace(UNKNOWN, sources=sources_of(states))
        if u.law == "given" and not any(isinstance(m, Node) for m in (u.mean, *extra)):
            value = _value(node, u.mean, extra)
            return Moments(value, value**2, law="given", why="a function of given numbers")
        if not all(_uniform(e) for e in extra):
            return replace(UNKNOWN, sources=u.sources, why=f"{node.op.name} with different numbers per element")
        extra = _numbers(extra)
        law = "symmetric" if self.odd and u.law in ("normal", "symmetric") and _is_zero(u.mean) else "any"
        if law == "symmetric" and not u.is_symmetric:
            law = "any"
        taken = node.inputs[0] if u.law == "normal" and u.limit else None
        normally = worst(u.kind, "approximate") if taken is not None else u.kind  # what needs more than symmetry
        common = {"sources": u.sources, "odd": u.odd if self.odd else frozenset(), "law": law, "taken": taken}
        if _is_zero(u.mean) and u.law == "normal" and self.normal is not None:
            mean, second = self.normal(u.second, *extra)
            kurtosis = 3.0 if isinstance(second, Node) else self._kurtosis(u, node, extra)
            spread = u.unit_spread
            kind = u.kind if self.symmetric is not None and u.is_symmetric else normally
            kinds = {"kind": kind, "mean_kind": normally}
            return Moments(mean, second, unit_spread=spread, kurtosis=kurtosis, why=self.why, **kinds, **common)
        if _is_zero(u.mean) and u.law in ("normal", "symmetric") and self.symmetric is not None:
            second = self.symmetric(u.second, *extra)
            mean = 0.0 if law == "symmetric" else None
            if u.law == "normal" and not isinstance(u.second, Node):
                mean = self._integrals(u, node, extra)[0]
            kind = u.kind if u.is_symmetric else normally
            kinds = {"kind": kind, "mean_kind": kind if law == "symmetric" or mean is None else normally}
            if mean is None and kind == u.kind:
                common["taken"] = None
            return Moments(mean, second, unit_spread=u.unit_spread, why=self.why, **kinds, **common)
        symbolic = isinstance(u.second, Node) or isinstance(u.mean, Node)
        if u.law == "normal" and symbolic and u.mean is not None and self.shifted is not None:
            mean, second = self.shifted(as_node(u.mean), as_node(u.variance), *extra)
            return Moments(mean, second, kind=normally, mean_kind=normally, why=self.why, **common)
        if symbolic or u.law in ("symmetric", "given"):
            return replace(UNKNOWN, sources=u.sources, why=f"no closed form of {node.op.name} for this law")
        mean, second, _ = self._integrals(u, node, extra)
        if not np.all(np.isfinite(second)):
            return replace(UNKNOWN, sources=u.sources, why=f"{node.op.name} has no value on part of a normal law")
        mean = np.zeros_like(mean) if self.odd and _is_zero(u.mean) else mean
        kind = normally if u.law == "normal" else worst(u.kind, "approximate")
        mean_kind = u.kind if law == "symmetric" else kind
        kurtosis = self._kurtosis(u, node, extra)
        why = "quadrature under a normal law" if u.law == "normal" else "quadrature as if the law were normal"
        kinds = {"kind": kind, "mean_kind": mean_kind}
        return Moments(mean, second, unit_spread=u.unit_spread, kurtosis=kurtosis, why=why, **kinds, **common)

    def _kurtosis(self, u: Moments, node: Node, extra: Sequence[Any]) -> Any:
        _, second, fourth = self._integrals(u, node, extra)
        return np.divide(fourth, second**2, out=np.ones_like(second), where=second > 0)

    def _integrals(self, u: Moments, node: Node, extra: Sequence[Any]) -> list[np.ndarray]:
        def phi(x: np.ndarray) -> np.ndarray:
            return self._phi(node, x, extra)

        kinks = self._borders(node, extra)
        functions = [phi, lambda x: phi(x) ** 2, lambda x: phi(x) ** 4]
        return expectations(functions, u.mean, u.variance, kinks)

    def _phi(self, node: Node, x: np.ndarray, extra: Sequence[Any]) -> np.ndarray:
        return _value(node, x, extra)

    def _borders(self, node: Node, extra: Sequence[Any]) -> list[float]:
        """Where quadrature is split: the declared kinks, and the numbers that the value is compared with."""
        return [*(k.at for k in node.op.kinks), *extra]


def _uniform(extra: Any) -> bool:
    """Whether a given operand is one number for all elements."""
    return isinstance(extra, Node) or bool(np.all(np.asarray(extra) == np.ravel(extra)[:1]))


def _numbers(extra: Sequence[Any]) -> list[Any]:
    return [e if isinstance(e, Node) else float(np.ravel(e)[0]) for e in extra]


def over(array: Any, axes: Sequence[int]) -> Any:
    """The mean over the unit dimensions, kept as size 1: units are alike there up to what a sample gives."""
    array = np.asarray(array, dtype=float)
    return array.mean(axis=tuple(a for a in axes if a < array.ndim), keepdims=True) if array.ndim else array


def norm_fourth(x: Moments, units: int, axes: Sequence[int]) -> Any:
    """E|x|^4 of the vectors along ``axes``: pairs of units share the spread, a unit with itself has its kurtosis."""
    q = np.asarray(x.second, dtype=float)
    spread = x.unit_spread if x.law != "given" else 1.0
    kurtosis = x.kurtosis if x.law != "given" else 1.0
    pairs = (units * over(q, axes)) ** 2 - units * over(q * q, axes)
    return over(spread * np.ones_like(q), axes) * pairs + units * over(kurtosis * spread * q * q, axes)


def _value(node: Node, x: Any, extra: Sequence[Any]) -> Any:
    with np.errstate(all="ignore"):
        return np.asarray(node.op.value(x, *extra, **node.params), dtype=float)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Node):
        return value.number == 0
    return value is not None and bool(np.all(np.asarray(value) == 0))


def sources_of(states: Sequence[Moments]) -> frozenset[str]:
    return frozenset().union(*(s.sources for s in states))


# ---- sums --------------------------------------------------------------------------------------------------
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
            return replace(UNKNOWN, sources=sources_of(states))
        kind, why = worst(a.kind, b.kind), "variances of independent terms add"
        mean: Any = None if a.mean is None or b.mean is None else a.mean + sign * b.mean
        if node.inputs[0] is node.inputs[1]:
            factor = (1 + sign) ** 2
            return replace(a, mean=mean, second=a.second * factor, why="the same value twice")
        if uncorrelated(a, b):
            cross: Any = 0.0
            if not (_is_zero(a.mean) or _is_zero(b.mean)):
                if a.mean is None or b.mean is None:
                    return replace(UNKNOWN, sources=sources_of(states), why="a mean is unknown")
                cross = 2 * sign * (a.mean * b.mean)
        else:
            kind, why = worst(kind, "approximate"), "terms with common sources, taken as independent"
            cross = 0.0 if a.mean is None or b.mean is None else 2 * sign * (a.mean * b.mean)
        mean_kind = worst(a.kind_of_mean, b.kind_of_mean)
        if not _is_zero(cross):
            kind = worst(kind, mean_kind)
        second = a.second + b.second + cross if not _is_zero(cross) else a.second + b.second
        law, limit = _law_of_sum(a, b)
        return Moments(
            mean,
            second,
            coupled=not uncorrelated(a, b),
            law=law,
            limit=limit,
            kind=kind,
            mean_kind=mean_kind,
            sources=sources_of(states),
            odd=a.odd & b.odd if a.sources and b.sources else (a.odd if _is_zero(b.second) else b.odd & a.odd),
            **_fourth_moments(a, b, second),
            why=why,
        )


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


def _law_of_sum(a: Moments, b: Moments) -> tuple[str, str]:
    """The law of a sum, and its limit: see :class:`Moments`.

    Two symmetric values that share a source have a symmetric sum where one change of sign changes both.
    """
    laws = {("symmetric" if x.odd else "any") if x.law == "uniform" else x.law for x in (a, b)}
    if laws <= {"given"}:
        return "given", ""
    mirrored = "symmetric" if not (a.sources & b.sources) or a.odd & b.odd else "any"
    if laws <= {"normal", "given"}:
        if all(x.law == "given" or x.is_normal for x in (a, b)):
            return "normal", ""
        return "normal", mirrored if all(x.law == "given" or x.is_symmetric for x in (a, b)) else "any"
    if laws <= {"normal", "symmetric"}:
        return (mirrored if all(x.law != "normal" or x.is_symmetric for x in (a, b)) else "any"), ""
    alone = laws == {"symmetric", "given"} and (_is_zero(a.second) or _is_zero(b.second))
    return "symmetric" if alone else "any", ""


# ---- products ----------------------------------------------------------------------------------------------
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


@dataclass(frozen=True)
class ProductRule:
    """``a * b``, or ``a / b`` for a b that is given."""

    invert: bool = False

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        a, b = states
        if node.inputs[0] is node.inputs[1] and not self.invert and a.law != "given":
            return squared(a, node)
        if not a.known or not b.known or (self.invert and b.law != "given"):
            return replace(UNKNOWN, sources=sources_of(states))
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
        if law == "symmetric" and not any(x.odd or (x.law != "given" and x.is_symmetric) for x in (a, b)):
            law = "any"
        return Moments(
            mean,
            a.second * b.second,
            coupled=bool(a.sources & b.sources) and b.law != "given",
            law=law,
            limit=a.limit if law == "normal" else "",
            kind=kind,
            mean_kind=worst(a.kind_of_mean, b.kind_of_mean, *(k for k in (kind,) if a.sources & b.sources)),
            sources=sources_of(states),
            odd=a.odd ^ b.odd,
            unit_spread=a.unit_spread,
            kurtosis=a.kurtosis if b.law == "given" else a.kurtosis * b.kurtosis,
            why=why,
        )


def squared(u: Moments, node: Node) -> Moments:
    """The moments of u^2; its second moment is that of a normal u, otherwise unknown."""
    why, second = "E[u^4] needs more of the law than its variance", None
    if u.known and u.law == "normal" and u.mean is not None:
        m2, v = u.mean * u.mean, u.variance
        second = 3 * v * v if _is_zero(u.mean) else 3 * v * v + 6 * m2 * v + m2 * m2
        why = "E[u^4] = 3 v^2 + 6 m^2 v + m^4 for a normal u"
    kind, taken = u.kind if second is not None else "unknown", None
    if second is not None and u.limit:
        kind, taken = worst(kind, "approximate"), node.inputs[0]
    spread = u.unit_spread
    return Moments(
        u.second, second, taken=taken, kind=kind, mean_kind=u.kind, sources=u.sources, unit_spread=spread, why=why
    )


@dataclass(frozen=True)
class PowerRule(Pointwise):
    """``u ^ p`` for a given p: the square of a centred value in closed form, anything else by quadrature."""

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        u = states[0]
        if u.known and node.inputs[1].number == 2 and u.law != "given":
            found = squared(u, node)
            if found.known or isinstance(u.second, Node):
                return found
        return super().forward(states, node)


# ---- movement ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MovementRule:
    """Values that only change place keep their moments; ``fills``: zeros come between them."""

    fills: bool = False

    def forward(self, states: Sequence[Moments], node: Node) -> Moments:
        (x,) = states
        if not x.known or isinstance(x.second, Node):
            return x
        mean = None if x.mean is None else self._moved(x.mean, node)
        return replace(x, mean=mean, second=self._moved(x.second, node))

    def _moved(self, array: Any, node: Node) -> Any:
        if np.size(array) == 1 and not self.fills:
            return np.reshape(array, (1,) * node.type.rank)
        return np.asarray(
            node.op.value(np.broadcast_to(array, tuple(int(n) for n in node.inputs[0].shape)), **node.params)
        )
