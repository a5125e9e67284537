"""Slips that show in the values alone: the claim is the right answer times a factor, transposed, summed, or has one
term of it with another coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.interpreters.simplify import expand, simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, toposort
from chainrule.ops.contraction import permute, sum_axes, transpose
from chainrule.verbs.slip_kinds import NONE, Slip
from chainrule.verbs.slip_points import Points, Values, is_constant, ratios, same
from chainrule.verbs.slip_question import Candidate, Question

_MOST_SCALARS = 40


class Evidence:
    """One claim and the right answer at one set of points.

    Args:
        claimed: in the original variables; None if its shapes do not fit. transform, computed: see :class:`Points`.
    """

    def __init__(
        self,
        question: Question,
        claimed: Node | None,
        transform: Callable[[Node, Any], Any] | None = None,
        computed: Mapping[Node, Callable[..., Any]] | None = None,
    ) -> None:
        self.question, self.claimed = question, claimed
        self.correct = question.correct
        roots = [self.correct, *([claimed] if claimed is not None else []), question.full(question.output)]
        self.points = Points(roots, transform, computed)
        self.right: Values = self.values_of(self.correct) or []
        self.claim: Values | None = None if claimed is None else self.values_of(claimed)
        self.fits = claimed is not None and claimed.shape == self.correct.shape
        if self.fits and claimed is not None:
            self.flat = self.values_of(question.contracted(claimed))
            self.flat_right = self.values_of(question.contracted(self.correct))

    def values_of(self, node: Node) -> Values | None:
        return self.points.values([node])[0] if len(self.points) else None

    def first(self, candidates: Iterable[Candidate], against: Values | None) -> Slip | None:
        """The first of the candidates that has the values."""
        kept = list(candidates)
        found = self.points.values([self.question.full(c.node) for c in kept])
        for candidate, values in zip(kept, found, strict=True):
            if same(values, against):
                return Slip(candidate.kind, candidate.sentence)
        return None

    def by_scale(self) -> Slip | None:
        """The whole answer times a number, a size, or nothing at all."""
        assert self.claim is not None
        sizes = [
            (np.max(np.abs(c), initial=0.0), np.max(np.abs(r), initial=0.0))
            for c, r in zip(self.claim, self.right, strict=True)
        ]
        if all(claimed <= 1e-12 * right for claimed, right in sizes):
            return Slip("zero", "the derivative is not zero everywhere")
        found = ratios(self.claim, self.right)
        if found is None:
            return None
        known = scale_slip(found)
        if known is not None:
            return known
        return self.size(found)

    def size(self, found: Sequence[float]) -> Slip | None:
        """A named dimension by which the claim is off."""
        sizes = self.points.sizes()
        for name in sizes[0]:
            size = [float(s[name]) for s in sizes]
            for sign, minus in ((1.0, ""), (-1.0, "-")):
                for power, missing in (
                    (1.0, f"1/{name}"),
                    (-1.0, name),
                    (0.5, f"1/sqrt({name})"),
                    (-0.5, f"sqrt({name})"),
                ):
                    if is_constant([sign * r / s**power for r, s in zip(found, size, strict=True)], 1.0):
                        return Slip("normalisation", f"the factor {minus}{missing} is missing")
        return None

    def by_layout(self) -> Slip | None:
        """The transpose of the right answer, or the answer of the other layout."""
        rank = self.correct.type.rank
        if rank == 2 and self.claimed is not None and self.claimed.shape == self.correct.shape[::-1]:
            if same(self.values_of(transpose(self.claimed)), self.right):
                return Slip("missing transpose", f"the right answer is the transpose of this{self._other_layout()}")
        if rank > 2 and self.question.order == 1 and self.claimed is not None:
            inner = self.question.output.type.rank
            cut = rank - inner if self.question.leading else inner
            axes = (*range(cut, rank), *range(cut))
            turned = permute(self.claimed, axes)
            if turned.shape == self.correct.shape and same(self.values_of(turned), self.right):
                return Slip("layout", f"this is the derivative{self._other_layout()}")
        return None

    def _other_layout(self) -> str:
        if self.question.output.shape == () or self.question.order > 1:
            return ""
        return f" in the other layout, {'denominator' if self.question.leading else 'numerator'}"

    def by_shape(self) -> Slip | None:
        """A claim of another shape: its transpose, its sums, or the other layout."""
        assert self.claimed is not None
        slip = self.by_layout()
        if slip is not None:
            return slip
        rank, own = self.claimed.type.rank, self.correct.type.rank
        for size in range(1, rank - own + 1):
            for axes in _subsets(rank, size):
                summed = sum_axes(self.claimed, axes)
                over = " and ".join(str(self.claimed.shape[a]) for a in axes)
                values = self.values_of(summed)
                if summed.shape != self.correct.shape or values is None:
                    continue
                if same(values, self.right):
                    return Slip("forgotten broadcast sum", f"sum over {over} to get the shape of {self.question.wrt}")
                found = ratios(values, self.right)
                if found is not None:
                    return Slip("forgotten broadcast sum", f"over {over}, and a factor")
        if rank < own:
            axes = [a for a in _subsets(own, own - rank) if sum_axes(self.correct, a).shape == self.claimed.shape]
            for a in axes:
                if same(self.values_of(sum_axes(self.correct, a)), self.claim):
                    over = " and ".join(str(self.correct.shape[i]) for i in a)
                    return Slip("forgotten broadcast sum", f"this is summed over {over}, the right answer is not")
        return None

    def only_symmetric(self) -> Slip | None:
        """Right where a square matrix is symmetric."""
        roots = [self.correct, self.claimed]
        matrices = [
            n
            for n in toposort([r for r in roots if r is not None])
            if n.is_leaf and "name" in n.params and n.type.rank == 2 and n.shape[0] == n.shape[1]
        ]
        for matrix in matrices:
            points = Points(
                [r for r in roots if r is not None],
                lambda leaf, value, matrix=matrix: value + np.swapaxes(value, -1, -2) if leaf is matrix else value,
            )
            if len(points) and same(*points.values([self.correct, self.claimed])):  # type: ignore[list-item]
                name = matrix.params["name"]
                return Slip("symmetric only", f"{name} is not symmetric, so {name} and {name}' are both needed")
        return None

    def by_terms(self) -> Slip | None:
        """One term of the answer, as it is or multiplied out, with another coefficient."""
        for form in dict.fromkeys((self.correct, expand(simplify(self.correct)))):
            terms = [t for t in _terms(form) if t.shape == self.correct.shape]
            if not 2 <= len(terms) <= 12:
                continue
            for term, value in zip(terms, self.points.values(terms), strict=True):
                slip = self.coefficient(
                    value, self.claim, self.right, lambda term=term: text(simplify(term), self.question.names)
                )
                if slip is not None:
                    return slip
        return None

    def coefficient(
        self, term: Values | None, claim: Values | None, right: Values | None, name: Callable[[], str]
    ) -> Slip | None:
        if term is None or claim is None or right is None:
            return None
        apart = [np.asarray(c) - np.asarray(r) for c, r in zip(claim, right, strict=True)]
        found = ratios(apart, term)
        if found is None:
            return None
        for off, kind, sentence in (
            (-1.0, "forgotten path", "the term {} is missing"),
            (-2.0, "sign", "of the term {}"),
            (1.0, "missing factor", "1/2 in the term {}: a factor 2 too many"),
            (-0.5, "missing factor", "2 in the term {}"),
        ):
            if is_constant(found, off):
                return Slip(kind, sentence.format(_cut(name())))
        return None

    def by_factor(self) -> Slip | None:
        """The whole answer times or over one of the quantities in it."""
        assert self.claim is not None
        found = ratios(self.claim, self.right)
        if found is None:
            return None
        inside = toposort([self.correct, self.question.full(self.question.output)])
        scalars = [n for n in inside if n.shape == () and n.type.is_float][:_MOST_SCALARS]
        for node, values in zip(scalars, self.points.values(scalars), strict=True):
            if values is None:
                continue
            for power in (1.0, -1.0, 2.0, -2.0, 0.5, -0.5):
                with np.errstate(all="ignore"):
                    quotient = [
                        r / float(v) ** power if v > 0 or power == int(power) else np.nan
                        for r, v in zip(found, values, strict=True)
                    ]
                slip = scale_slip(quotient) if not is_constant(quotient, 1.0) else NONE
                if slip is not None:
                    written = self.question.name(node)
                    missing = {1.0: f"1/{written}", -1.0: written}.get(power, f"{written}^{-power:g}")
                    kind = (
                        "missing upstream term"
                        if any("name" in n.params for n in toposort([node]))
                        else "normalisation"
                    )
                    return Slip(kind, f"the factor {missing} is missing" + (f", and {slip}" if slip.kind else ""))
        return None


def scale_slip(found: Sequence[float]) -> Slip | None:
    """A number by which the claim is off, as the slip it is."""
    for factor, slip in (
        (-1.0, Slip("sign", "the whole answer is negated")),
        (0.5, Slip("missing factor", "2")),
        (2.0, Slip("missing factor", "1/2: a factor 2 too many")),
        (-0.5, Slip("missing factor", "-2, factor and sign")),
        (-2.0, Slip("missing factor", "-1/2, factor and sign")),
    ):
        if is_constant(found, factor):
            return slip
    value = found[0]
    if value and math.isfinite(value) and is_constant(found, value):
        for n in range(2, 13):
            for number, missing in ((1 / n, f"{n}"), (float(n), f"1/{n}")):
                for sign in (1, -1):
                    if is_constant(found, sign * number):
                        return Slip("missing factor", ("-" if sign < 0 else "") + missing)
        return Slip("missing factor", f"{1 / value:g}")
    return None


def _terms(node: Node) -> list[Node]:
    """The summands of a node, signs included."""
    pending, found = [(node, 1.0)], []
    while pending and len(found) < 40:
        n, sign = pending.pop()
        if n.op.name == "add":
            pending += [(i, sign) for i in n.inputs]
        elif n.op.name == "sub":
            pending += [(n.inputs[0], sign), (n.inputs[1], -sign)]
        elif n.op.name == "neg":
            pending.append((n.inputs[0], -sign))
        elif n.op.name == "div" and n.inputs[0].op.name in ("add", "sub") and n.inputs[0].shape == n.shape:
            a, b = n.inputs[0].inputs
            pending += [(a / n.inputs[1], sign), (b / n.inputs[1], -sign if n.inputs[0].op.name == "sub" else sign)]
        elif n.op.name == "mul" and n.inputs[0].shape == () and n.inputs[1].op.name in ("add", "sub"):
            a, b = n.inputs[1].inputs
            second = -sign if n.inputs[1].op.name == "sub" else sign
            pending += [(n.inputs[0] * a, sign), (n.inputs[0] * b, second)]
        else:
            found.append(n if sign > 0 else -n)
    return found


def _cut(written: str) -> str:
    return written if len(written) <= 100 else written[:97] + "..."


def _subsets(rank: int, size: int) -> list[tuple[int, ...]]:
    if size == 0:
        return [()]
    return [(*rest, a) for a in range(rank) for rest in _subsets(a, size - 1)]
