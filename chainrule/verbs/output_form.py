"""The derivative of an activation in terms of its output, as problem 7.7 writes it: ``h * (1 - h)`` for the sigmoid.

The output is what a backward pass has at hand. First by algebra: where the derivative contains the function itself, or
a part of which the function is a multiple plus a number, that part is replaced. Then by a search among short forms in
``h``: their coefficients are solved for, and the form is accepted only if it holds at other points as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from chainrule.frontends.formula import parse
from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Node, constant, substitute_nodes, toposort, tree_size, variable
from chainrule.verbs.curve import Curve
from chainrule.verbs.expression import Expression
from chainrule.verbs.limits import number_text
from chainrule.verbs.scalar_function import ScalarFunction, on_arrays

OUTPUT = "h"
_FITTED, _TESTED = 97, 61
_TOLERANCE = 1e-9
# What the power of the derivative on the left is a sum of, short forms first.
_FORMS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (1, ("1", "h", "h^2")),
    (1, ("1", "[h > 0]", "h", "h * [h > 0]")),
    (1 / 2, ("1", "abs(h)")),
    (1, ("1", "h", "abs(h)", "h^2")),
    (1, ("[h > 0]", "h * [h > 0]", "h^2 * [h > 0]")),
    (1, ("1", "exp(-h)", "exp(h)")),
    (1, ("1", "cos(h)", "sin(h)", "cos(h)^2")),
    (-1, ("1", "h", "h^2")),
    (-1, ("1", "exp(-h)", "exp(h)")),
    (-1, ("1", "cos(h)", "sin(h)")),
    (2, ("1", "h", "h^2")),
    (-2, ("1", "h", "h^2")),
    (2 / 3, ("1", "h", "h^2")),
    (1, ("1", "h", "h^2", "h^3", "h^4")),
)


def output_form(function: ScalarFunction) -> tuple[Expression | None, str]:
    """(the derivative as an expression in ``h``, why there is none).

    >>> from chainrule.verbs.scalar_function import scalar_function
    >>> output_form(scalar_function("softplus"))[0].text
    '1 - exp(-h)'
    """
    curve, parts = function.curve, _parts(function)
    tested = _points(curve, _TESTED, 1)
    for candidate in _by_algebra(function, parts):
        if _holds(candidate, curve, tested):
            return Expression(candidate), ""
    x = _points(curve, _FITTED, 0)
    if x.size < 20:
        return None, "too few points where it is finite"
    h, slope = curve.value(x), curve.slope(x)
    if np.all(slope == 0):
        return Expression(constant(0.0)), ""
    pair = _same_output(curve, x, h, slope)
    if pair is not None:
        a, b = pair
        return None, f"z = {a:.4g} and z = {b:.4g} have the same output and different derivatives"
    leaf = variable(OUTPUT)
    for part, meaning in parts or [(None, leaf)]:
        inner = curve.value if part is None or function.variable is None else on_arrays(part, function.variable)
        u = inner(x)
        corners = [float(inner(np.array([c.at]))[0]) for c in curve.corners[:6]]
        for candidate in _candidates(u, slope, corners):
            written = simplify(substitute_nodes([candidate], {leaf: meaning})[0])
            if _holds(written, curve, tested):
                return Expression(written), ""
    return None, "no short form was found"


def _candidates(h: np.ndarray, slope: np.ndarray, corners: Sequence[float]) -> Iterator[Node]:
    for power, terms in (*_FORMS, *_between_corners(corners)):
        found = _fitted(power, terms, h, slope)
        if found is not None:
            yield found
    found = _power_law(h, slope)
    if found is not None:
        yield found


# ---- by algebra --------------------------------------------------------------------------------------------
def _parts(function: ScalarFunction) -> list[tuple[Node, Node]]:
    """(part, its meaning in h) where the function is a multiple of the part plus a number; itself first."""
    body, z = function.node, function.variable
    if body is None or z is None:
        return []
    h = variable(OUTPUT, body.type)
    found = [(body, h)]
    for part in reversed(toposort([body])):
        if part is body or (part.is_leaf and part is not z) or part.shape != ():
            continue
        t = variable("part of it", part.type)
        (outer,) = substitute_nodes([body], {part: t})
        if z in toposort([outer]):
            continue
        (scale,) = vjp([outer], [constant(1.0, body.type.dtype)], [t])
        factor = simplify(scale).number if scale is not None else None
        if not factor:
            continue
        (offset,) = substitute_nodes([outer], {t: constant(0.0, part.type.dtype)})
        found.append((part, simplify((h - offset) / float(factor))))
    return found


def _by_algebra(function: ScalarFunction, parts: Sequence[tuple[Node, Node]]) -> list[Node]:
    """The derivative with a part replaced by its meaning in h, where no z is left; the shortest first."""
    found = []
    for part, meaning in parts:
        assert function.slope is not None
        (written,) = substitute_nodes([function.slope], {part: meaning})
        if function.variable not in toposort([written]):
            found.append(simplify(written))
    return sorted(found, key=tree_size)


# ---- by a search -------------------------------------------------------------------------------------------
def _points(curve: Curve, count: int, shift: int) -> np.ndarray:
    """Points off the corners where value and slope are finite; another ``shift`` gives others, farther out."""
    reach = (6.0, 17.0)[shift]
    x = np.linspace(-reach, reach, count) + (0.00437, -0.01913)[shift]
    x = np.concatenate([x, np.linspace(-2, 2, count // 2) + 0.0071])
    low, high = curve.domain
    if np.isfinite(low) and np.isfinite(high):
        x = low + (high - low) * (np.arange(count) + 0.5) / count
    with np.errstate(all="ignore"):
        f, s = curve.value(x), curve.slope(x)
    ok = np.isfinite(f) & np.isfinite(s) & (np.abs(f) < 1e6) & (np.abs(s) < 1e6)
    for corner in curve.corners:
        ok &= np.abs(x - corner.at) > 1e-4
    return np.unique(x[ok])


def _same_output(curve: Curve, x: np.ndarray, h: np.ndarray, slope: np.ndarray) -> tuple[float, float] | None:
    """Two points with the same output where the derivative differs: then it is no function of the output."""
    flat = slope == 0
    signs = np.sign(slope)
    turn = np.flatnonzero(signs[1:] * signs[:-1] < 0)
    for k in turn:
        near = x[max(k - 8, 0)], x[min(k + 9, x.size - 1)]
        for end, other in (near, near[::-1]):
            target = float(curve.value(np.array([end]))[0])
            a, b = float(x[k]) if other > end else float(x[k + 1]), other
            fa, fb = (float(curve.value(np.array([p]))[0]) - target for p in (a, b))
            if not fa * fb < 0:
                continue
            for _ in range(80):
                middle = (a + b) / 2
                fm = float(curve.value(np.array([middle]))[0]) - target
                a, b, fa = (middle, b, fm) if fa * fm > 0 else (a, middle, fa)
            s = curve.slope(np.array([end, a]))
            if abs(s[0] - s[1]) > 1e-6 * max(abs(s)):
                return float(min(end, a)), float(max(end, a))
    order = np.argsort(h, kind="stable")
    close = np.flatnonzero((np.diff(h[order]) == 0) & (np.abs(np.diff(slope[order])) > 1e-9) & ~flat[order][1:])
    if close.size:
        pair = x[order[close[0]]], x[order[close[0] + 1]]
        return float(min(pair)), float(max(pair))
    return None


def _fitted(power: float, terms: Sequence[str], h: np.ndarray, slope: np.ndarray) -> Node | None:
    """``slope ** power`` as a combination of terms in h with recognised coefficients."""
    sign = np.sign(slope[np.argmax(np.abs(slope))])
    if power != 1 and (np.any(slope == 0) or np.any(np.sign(slope) != sign)):
        return None
    moderate = np.abs(slope) > 1e-4
    with np.errstate(all="ignore"):
        target = slope if power == 1 else np.abs(slope) ** power
        columns = np.stack([_column(t, h) for t in terms], axis=1)
        use = np.all(np.isfinite(columns), axis=1) & np.isfinite(target) & (moderate | (power == 1))
        use &= np.all(np.abs(columns) < 1e4, axis=1)
    if use.sum() < len(terms) + 12:
        return None
    columns, target = columns[use], target[use]
    kept = list(range(len(terms)))
    while kept:
        solved, _, rank, _ = np.linalg.lstsq(columns[:, kept], target, rcond=1e-11)
        parts = np.abs(solved) * np.max(np.abs(columns[:, kept]), axis=0)
        least = int(np.argmin(parts))
        if rank == len(kept) and parts[least] > 1e-8 * max(float(np.max(np.abs(target))), 1e-3):
            break
        del kept[least]
    if not kept:
        return None
    numbers = [number_text(float(c), 12) for c in solved]
    rest = columns[:, kept] @ [_number(t) for t in numbers] - target
    if np.max(np.abs(rest)) > _TOLERANCE * max(1.0, float(np.max(np.abs(target)))):
        return None
    body = " + ".join(f"({c}) * {terms[k]}" for c, k in zip(numbers, kept, strict=True))
    if power != 1:
        body = f"{'-' if sign < 0 else ''}({body})^({_exponent(1 / power)})"
    return simplify(parse(body.replace("pi", repr(np.pi))).outputs[0])


def _exponent(p: float) -> str:
    return repr(int(p)) if p == int(p) else repr(p)


def _number(written: str) -> float:
    node = parse(written.replace("pi", repr(np.pi))).outputs[0]
    return float(on_arrays(node, variable(OUTPUT))(np.zeros(1))[0])


def _column(term: str, h: np.ndarray) -> np.ndarray:
    return on_arrays(parse(term).outputs[0], variable(OUTPUT))(h)


def _between_corners(corners: Sequence[float]) -> list[tuple[float, tuple[str, ...]]]:
    """For functions of straight pieces: one number for each interval of the output between corners."""
    outputs = sorted({c for c in corners if np.isfinite(c)})
    if not outputs:
        return []
    edges = [repr(v) for v in outputs]
    inner = [f"[h > {a}] * [h < {b}]" for a, b in itertools.pairwise(edges)]
    pieces = (f"[h < {edges[0]}]", *inner, f"[h > {edges[-1]}]")
    return [(1, pieces), (1, (*pieces, *(f"h * {p}" for p in pieces)))]


def _power_law(h: np.ndarray, slope: np.ndarray) -> Node | None:
    """``c * abs(h)^p``."""
    use = (h != 0) & (slope != 0)
    sign = np.sign(slope[np.argmax(np.abs(slope))])
    if use.sum() < 12 or np.any(np.sign(slope[use]) != sign):
        return None
    design = np.stack([np.ones(use.sum()), np.log(np.abs(h[use]))], axis=1)
    (offset, p), *_ = np.linalg.lstsq(design, np.log(np.abs(slope[use])), rcond=None)
    size = f"abs({OUTPUT})" if np.any(h < 0) else OUTPUT
    text = f"({number_text(float(sign * np.exp(offset)), 12)}) * {size}^({number_text(float(p), 12)})"
    return simplify(parse(text.replace("pi", repr(np.pi))).outputs[0])


def _holds(form: Node, curve: Curve, x: np.ndarray) -> bool:
    """Whether the form has the derivative's values, at points that it was not made from."""
    with np.errstate(all="ignore"):
        got, expected = on_arrays(form, variable(OUTPUT))(curve.value(x)), curve.slope(x)
    # Where the output has lost the digits (1 - h of a saturated sigmoid), the form can have no more.
    allowed = 1e-8 * np.maximum(1.0, np.abs(expected))
    return bool(x.size and np.all(np.abs(got - expected) <= allowed))
