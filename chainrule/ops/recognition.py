"""Known forms in a product: ``exp(u) / (1 + exp(u))`` is ``sigmoid(u)``, ``sign(u) * abs(u)`` is ``u``.

Each rule looks at the factors of one term, ``(atom, indices, power)``, and answers with other factors that have
the same product, fewer or simpler ones, or with None. ``interpreters.terms`` applies them until none fits. They are
ordinary identities of the functions (almost everywhere for ``sign``); what they buy is stability as well as brevity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainrule.ir import OPS, Node, apply

FactorLike = tuple[Node, tuple[Any, ...], Any]
_MAX_PAIRED = 24  # exponentials of one product that are compared with each other

Rule = Callable[[Sequence[FactorLike]], "list[FactorLike] | None"]


def _replaced(factors: Sequence[FactorLike], gone: Sequence[FactorLike], new: Sequence[FactorLike]) -> list[FactorLike]:
    """The factors without one power of each of ``gone``, with ``new`` added."""
    result = []
    for atom, indices, power in factors:
        for other, own, taken in gone:
            if other is atom and own == indices:
                power -= taken
        if power != 0:
            result.append((atom, indices, power))
    return [*result, *new]


def _logistic(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``exp(u) / (1 + exp(u)) = sigmoid(u)`` and ``1 / (1 + exp(u)) = sigmoid(-u)``."""
    for atom, indices, power in factors:
        e = _one_plus_exponential(atom)
        if e is None or power != int(power) or power > -1:
            continue
        u = e.inputs[0]
        if any(other is e and own == indices and p >= 1 for other, own, p in factors):
            return _replaced(factors, [(e, indices, 1), (atom, indices, -1)], [(apply(OPS["sigmoid"], u), indices, 1)])
        minus = u.inputs[0] if u.op.name == "neg" else -u
        return _replaced(factors, [(atom, indices, -1)], [(apply(OPS["sigmoid"], minus), indices, 1)])
    return None


def _logistic_tail(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``exp(-u) sigmoid(u) = sigmoid(-u)``."""
    for atom, indices, power in factors:
        if atom.op.name != "sigmoid" or power < 1:
            continue
        for other, own, p in factors:
            if other.op.name == "exp" and own == indices and p >= 1 and _opposite(other.inputs[0], atom.inputs[0]):
                tail = apply(OPS["sigmoid"], other.inputs[0])
                return _replaced(factors, [(atom, indices, 1), (other, own, 1)], [(tail, indices, 1)])
    return None


def _opposite(a: Node, b: Node) -> bool:
    """Whether a is -b: by a sign, or by a difference turned around among their factors."""
    if (a.op.name == "neg" and a.inputs[0] is b) or (b.op.name == "neg" and b.inputs[0] is a):
        return True
    if a.op is not b.op or len(a.inputs) != 2:
        return False
    (x, y), (u, v) = a.inputs, b.inputs
    if a.op.name == "sub":
        return x is v and y is u
    if a.op.name in ("mul", "div"):
        return (x is u and _opposite(y, v)) or (y is v and _opposite(x, u))
    return False


def _one_plus_exponential(node: Node) -> Node | None:
    if node.op.name != "add":
        return None
    a, b = node.inputs
    e, one = (a, b) if a.op.name == "exp" else (b, a)
    return e if e.op.name == "exp" and one.number == 1 and e.shape == node.shape else None


def _softmax(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``exp(x) / sum(exp(x))`` over the last dimension, or over all of a vector, is ``softmax(x)``."""
    for atom, indices, power in factors:
        operands = atom.params.get("operands")
        if operands is None or len(operands) != 1 or power > -1 or atom.inputs[0].op.name != "exp":
            continue
        e = atom.inputs[0]
        if operands[0][:-1] != atom.params["result"] or len(set(operands[0])) != len(operands[0]):
            continue
        for other, own, p in factors:
            if other is e and own[:-1] == indices and p >= 1:
                soft = apply(OPS["softmax"], e.inputs[0], axis=e.type.rank - 1)
                return _replaced(factors, [(e, own, 1), (atom, indices, -1)], [(soft, own, 1)])
    return None


def _absolute(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``sign(u) abs(u) = u``, ``u sign(u) = abs(u)``, ``sign(u)^2 = 1``, ``abs(u)^2 = u^2``, almost everywhere."""
    for atom, indices, power in factors:
        if atom.op.name == "abs" and power == int(power) and abs(power) >= 2:
            even = power - power % 2 if power > 0 else power + (-power) % 2
            return _replaced(factors, [(atom, indices, even)], [(atom.inputs[0], indices, even)])
        if atom.op.name != "sign" or power < 1:
            continue
        u = atom.inputs[0]
        if power >= 2:
            return _replaced(factors, [(atom, indices, 2)], [])
        for other, own, p in factors:
            if own != indices:
                continue
            if other.op.name == "abs" and other.inputs[0] is u and p != 0:
                # sign(u) = u / abs(u)
                return _replaced(factors, [(atom, indices, 1)], [(u, indices, 1), (other, indices, -1)])
            if other is u and p >= 1 and p == int(p):
                return _replaced(factors, [(atom, indices, 1), (u, indices, 1)], [(apply(OPS["abs"], u), indices, 1)])
    return None


def _quotients(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``sin(u) / cos(u) = tan(u)`` and ``sinh(u) / cosh(u) = tanh(u)``."""
    for over, under, quotient in (("sinh", "cosh", "tanh"), ("sin", "cos", "tan")):
        for atom, indices, power in factors:
            if atom.op.name != over or power < 1:
                continue
            below = apply(OPS[under], atom.inputs[0])
            if any(f is below and own == indices and p <= -1 for f, own, p in factors):
                found = apply(OPS[quotient], atom.inputs[0])
                return _replaced(factors, [(atom, indices, 1), (below, indices, -1)], [(found, indices, 1)])
    return None


def _exponentials(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``exp(u) exp(-u) = 1``."""
    found = [f for f in factors if f[0].op.name == "exp"]
    for k, (atom, indices, power) in enumerate(found[:_MAX_PAIRED]):
        for other, own, p in found[k + 1 : _MAX_PAIRED]:
            if own == indices and (p > 0) == (power > 0) and _opposite(other.inputs[0], atom.inputs[0]):
                common = min(p, power) if p > 0 else max(p, power)
                return _replaced(factors, [(atom, indices, common), (other, own, common)], [])
    return None


def _powers(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``x x^(a - 1) = x^a``."""
    for atom, indices, power in factors:
        if atom.op.name != "pow" or power != 1:
            continue
        base, exponent = atom.inputs
        if exponent.op.name != "sub" or exponent.inputs[1].number is None or atom.shape != base.shape:
            continue
        less = exponent.inputs[1].number
        for other, own, p in factors:
            if other is base and own == indices and p == less:
                whole = apply(OPS["pow"], base, exponent.inputs[0])
                return _replaced(factors, [(atom, indices, 1), (other, own, p)], [(whole, indices, 1)])
    return None


def _indicator(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """``[c]^k = [c]``, ``[u > 0] relu(u) = relu(u)`` and ``[u > 0] maximum(0, u) = maximum(0, u)``."""
    for atom, indices, power in factors:
        if atom.op.name != "iverson" or power < 1:
            continue
        if power > 1:
            return _replaced(factors, [(atom, indices, power - 1)], [])
        condition = atom.inputs[0]
        if condition.op.name != "gt" or condition.inputs[1].number != 0:
            continue
        for other, own, p in factors:
            if own == indices and p >= 1 and _positive_part(other) is condition.inputs[0]:
                return _replaced(factors, [(atom, indices, 1)], [])
    return None


def _positive_part(node: Node) -> Node | None:
    """u of ``relu(u)`` and ``maximum(0, u)``."""
    if node.op.name == "relu":
        return node.inputs[0]
    if node.op.name == "maximum":
        return next((u for u, zero in (node.inputs, node.inputs[::-1]) if zero.number == 0), None)
    return None


_COMPLEMENT = {"lt": "ge", "gt": "le", "eq": "ne"}


def complementary(a: Node, b: Node) -> Node | None:
    """The condition c of two indicators ``[c]`` and ``[not c]``; None of any others."""
    if a.op.name != "iverson" or b.op.name != "iverson":
        return None
    c, other = a.inputs[0], b.inputs[0]
    return c if _COMPLEMENT.get(c.op.name) == other.op.name and c.inputs == other.inputs else None


RULES: tuple[Rule, ...] = (
    _logistic,
    _logistic_tail,
    _exponentials,
    _softmax,
    _absolute,
    _indicator,
    _quotients,
    _powers,
)


def recognise(factors: Sequence[FactorLike]) -> list[FactorLike] | None:
    """Other factors with the same product, or None if nothing is recognised."""
    for rule in RULES:
        found = rule(factors)
        if found is not None:
            return found
    return None
