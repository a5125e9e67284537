"""Which mistake explains a wrong gradient: a part of the derived formula left out, with the wrong sign, or scaled.

The derived gradient is a graph. Every part of it is taken out in turn (made zero, or one where it is a factor) and the
rest evaluated: what comes out differs from the truth by what that part contributes. A candidate that differs by a
multiple of such a contribution has that part with another coefficient. Nothing is matched by form, so that parts deep
inside are found as well.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, TensorType, substitute_nodes, toposort, tree_size, variable
from chainrule.verbs.limits import number_text

_LARGEST = 4_000  # operators and operands of a gradient that is simplified before it is taken apart
_MOST_WORK = 3e8  # elements computed
_MOST_PARTS = 150
_SHORT, _LONG = 40, 120  # characters


@dataclass(frozen=True)
class Evidence:
    """One gradient at one point: what was found and what is right, in float64, and how much rounding is allowed."""

    values: Mapping[Node, np.ndarray]
    found: np.ndarray
    right: np.ndarray
    allowed: float


def whole_scale(evidence: Sequence[Evidence], sizes: Mapping[str, Sequence[int]], what: str = "the gradient") -> str:
    """Whether what was found is, as a whole, a multiple of what is right, and which."""
    if all(not np.any(e.found) and np.any(e.right) for e in evidence):
        return f"{what} is zero"
    c = _coefficient([(e.found, e.right) for e in evidence])
    if c is None or not all(_explained(e, c * e.right) for e in evidence):
        return ""
    return _scale_text(what, c, sizes)


def part(node: Node, known: Sequence[Node], evidence: Sequence[Evidence], sizes: Mapping[str, Sequence[int]]) -> str:
    """The part of the derived formula whose removal, sign or scale explains what was found, or "".

    Args:
        node: the derived gradient (or output). known: the reference's own quantities, named in the answer.
        sizes: input -> shape, to say what a factor may be.
    """
    for root in dict.fromkeys((_readable(node, evidence[0]), node)):
        found = _part_of(root, known, evidence, sizes)
        if found:
            return found
    return ""


def _part_of(
    root: Node, known: Sequence[Node], evidence: Sequence[Evidence], sizes: Mapping[str, Sequence[int]]
) -> str:
    try:
        tables = [_table(root, e.values) for e in evidence[:2]]
    except (ChainruleError, ValueError, KeyError):
        return ""
    best: tuple[tuple[int, int, int], Node, float, float] | None = None
    each = sum(np.size(v) for v in tables[0].values() if not isinstance(v, tuple)) * len(_LESIONS) * len(tables)
    most = int(min(_MOST_PARTS, max(_MOST_WORK / max(each, 1), 1)))
    for depth, (place, operand) in enumerate(itertools.islice(_places(root), most)):
        for rank, (lesion, change) in enumerate(_LESIONS.items()):
            without = [_without(root, place, operand, t, change) for t in tables]
            if any(w is None for w in without):
                continue
            found = _verdict(evidence, [w for w in without if w is not None], lesion)
            if found is None:
                continue
            key = (found[0] + rank, depth, tree_size(operand))
            if best is None or key < best[0]:
                best = key, operand, found[1], rank
    if best is None:
        return ""
    _, operand, coefficient, rank = best
    return _part_text(root, operand, list(_LESIONS)[int(rank)], coefficient, known, sizes)


def _transposed(value: np.ndarray) -> np.ndarray | None:
    square = value.ndim >= 2 and value.shape[-1] == value.shape[-2]
    return np.swapaxes(value, -1, -2) if square else None


def _sum_of_one(value: np.ndarray) -> np.ndarray | None:
    return np.full_like(value, 1 / value.shape[-1]) if value.ndim else None


# What is done to a part, and what people call it.
_LESIONS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "missing term": np.zeros_like,
    "missing factor": np.ones_like,
    "missing transpose": _transposed,
    "missing factor, the sum over the last dimension of": _sum_of_one,
}


def _verdict(evidence: Sequence[Evidence], without: Sequence[np.ndarray], lesion: str) -> tuple[int, float] | None:
    """(how plain the mistake is, the part's coefficient) if the lesion, or a multiple of the part, explains it."""
    pairs = list(zip(evidence, without, strict=False))
    if all(np.allclose(w, e.right, rtol=0, atol=2 * e.allowed) for e, w in pairs):
        return None  # the part does not matter here
    if all(_explained(e, w) for e, w in pairs):
        return 0, 0.0
    if lesion != "missing term":
        return None
    c = _coefficient([(e.found - w, e.right - w) for e, w in pairs])
    if c is None or not all(_explained(e, w + c * (e.right - w)) for e, w in pairs):
        return None
    plain = any(abs(c - k) < 1e-3 for k in (-1, 2, 0.5))
    return (0 if plain else 5), c


def _coefficient(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """c with found = c * right by least squares, rounded where rounding explains it."""
    top = sum(float(np.sum(f * r)) for f, r in pairs)
    bottom = sum(float(np.sum(r * r)) for _, r in pairs)
    if not bottom or not math.isfinite(top) or not math.isfinite(bottom):
        return None
    c = top / bottom
    for k in (-1.0, 2.0, 0.5, -2.0, -0.5):
        if abs(c - k) < 0.01 * abs(k):
            return k
    return c


def _explained(e: Evidence, guess: np.ndarray) -> bool:
    """Whether a guess is what was found, up to rounding and a small part of the error."""
    if guess.shape != e.found.shape or not np.all(np.isfinite(guess)):
        return False
    error = float(np.max(np.abs(e.found - e.right), initial=0.0))
    rest = float(np.max(np.abs(e.found - guess), initial=0.0))
    return rest <= max(2 * e.allowed, 1e-6 * error) and rest <= 0.3 * error


# ---- the parts ---------------------------------------------------------------------------------------------
def _readable(node: Node, evidence: Evidence) -> Node:
    """The gradient simplified, if that is quick and gives the same values."""
    if tree_size(node) > _LARGEST:
        return node
    try:
        short = simplify(node)
        same = np.allclose(_table(short, evidence.values)[short], evidence.right, rtol=1e-7, atol=1e-9)
    except (ChainruleError, ValueError, KeyError, RecursionError):
        return node
    return short if same else node


def _places(root: Node) -> Iterator[tuple[Node, Node]]:
    """(node, operand): every edge where something can be left out, those near the result first."""
    order = toposort([root])
    rank = {root: 0}
    for node in reversed(order):
        for i in node.inputs:
            rank[i] = min(rank.get(i, 10**6), rank[node] + 1)
    for node in sorted(order, key=lambda n: (rank[n], -order.index(n))):
        for operand in dict.fromkeys(node.inputs):
            kind = operand.type
            if isinstance(kind, TensorType) and kind.is_float and operand.number is None:
                yield node, operand


def _table(root: Node, values: Mapping[Node, np.ndarray]) -> dict[Node, Any]:
    table: dict[Node, Any] = dict(values)
    with np.errstate(all="ignore"):
        for node in toposort([root], stop=lambda n: n in table):
            if node not in table:
                table[node] = node.op.value(*(table[i] for i in node.inputs), **node.params)
    return table


def _without(
    root: Node, place: Node, operand: Node, table: Mapping[Node, Any], change: Callable[[np.ndarray], np.ndarray | None]
) -> np.ndarray | None:
    """The result with one operand of one node changed."""
    new = change(np.asarray(table[operand], dtype=float))
    if new is None:
        return None
    changed: dict[Node, Any] = {}
    try:
        with np.errstate(all="ignore"):
            for node in toposort([root]):
                if node is place or any(i in changed for i in node.inputs):
                    inputs = [new if node is place and i is operand else changed.get(i, table[i]) for i in node.inputs]
                    changed[node] = node.op.value(*inputs, **node.params)
    except (ValueError, TypeError, ZeroDivisionError, np.linalg.LinAlgError):
        return None
    result = np.asarray(changed.get(root, table[root]), dtype=float)
    return result if np.all(np.isfinite(result)) else None


# ---- words -------------------------------------------------------------------------------------------------
def _part_text(
    root: Node, operand: Node, lesion: str, c: float, known: Sequence[Node], sizes: Mapping[str, Sequence[int]]
) -> str:
    """The mistake in words; the reference's quantities have names where the part would be long."""
    shown, where = text(operand), ""
    if len(shown) > _SHORT:
        shown, where = _with_names(operand, known)
    shown = _cut(shown)
    said = f"{lesion}{' ' if ',' in lesion else ': '}{shown}" if c == 0 else _scale_text(f"the term {shown}", c, sizes)
    if where:
        return f"{said}, where {where}"
    formula = text(root)
    return said + (f" (derived: {formula})" if len(formula) <= _LONG else "")


def _with_names(operand: Node, known: Sequence[Node]) -> tuple[str, str]:
    """The part with names for the reference's own quantities that occur several times, and what the names mean."""
    inside = toposort([operand])
    uses = Counter(i for n in inside for i in n.inputs)
    several = [q for q in known if uses[q] > 1 and q is not operand and tree_size(q) > 3 and q.type.is_float]
    leaf = {q: variable(f"t{k + 1}", q.type) for k, q in enumerate(several)}
    shown = _named(operand, leaf)
    meaning = {v: _named(q, {p: u for p, u in leaf.items() if p is not q}) for q, v in leaf.items()}
    needed, pending = set(), [shown]
    while pending:
        for n in toposort([pending.pop()]):
            if n in meaning and n not in needed:
                needed.add(n)
                pending.append(meaning[n])
    used = [v for v in leaf.values() if v in needed]
    return text(shown), ", ".join(f"{v.params['name']} = {_cut(text(meaning[v]))}" for v in used)


def _named(node: Node, leaf: Mapping[Node, Node]) -> Node:
    (written,) = substitute_nodes([node], leaf)
    return simplify(written) if tree_size(written) <= _LONG else written


def _cut(written: str) -> str:
    return written if len(written) <= _LONG else written[: _LONG - 4] + " ..."


def _scale_text(what: str, c: float, sizes: Mapping[str, Sequence[int]]) -> str:
    """What a coefficient other than 1 says about the mistake."""
    if abs(c + 1) < 1e-3:
        return f"sign: {what} has the wrong sign"
    if abs(c) < 1e-9:
        return f"{what} is zero"
    for name, shape in sizes.items():
        for d, n in enumerate(shape):
            if n > 2:
                for value, label in ((n, f"{n}"), (1 / n, f"1/{n}"), (n**0.5, f"sqrt({n})"), (n**-0.5, f"1/sqrt({n})")):
                    if abs(c - value) <= 1e-3 * value:
                        return f"scale: {what} is {label} times too large; {n} is the size of dimension {d} of {name}"
    if abs(c - 2) < 1e-3 or abs(c - 0.5) < 1e-3:
        return f"scale: {what} is " + ("twice" if c > 1 else "half") + " what it should be"
    return f"scale: {what} is {number_text(c, 5)} times what it should be"
