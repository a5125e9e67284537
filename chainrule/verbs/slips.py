"""The likely slip behind a wrong derivative: which usual mistake turns the right answer into the claimed one.

Wrong answers are made from the right one and from its derivation, a family at a time, the most specific first, and
held against the claim at a few random points (:mod:`slip_points`):

    by value            a factor, the sign, the transpose, a sum, a term, another layout          slip_values
    on the claim        one edit of it makes it right                                             slip_edits
    on the chain        a path, a factor or a local derivative gone wrong                         slip_paths
    on the answer       one place of the simplified answer gone wrong                             slip_breaks
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.frontends.formula import Trees, tree
from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.linearize import jacobian
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, substitute_nodes, toposort, variable
from chainrule.verbs.slip_breaks import breaks
from chainrule.verbs.slip_edits import mended
from chainrule.verbs.slip_kinds import NONE, Slip
from chainrule.verbs.slip_paths import Chain, Path, paths, slipped
from chainrule.verbs.slip_points import Values, ratios, same
from chainrule.verbs.slip_question import Candidate, Question
from chainrule.verbs.slip_values import Evidence, scale_slip

_MOST_PAIRED = 16  # paths, of which pairs are tried
_MOST_SPECIAL = 3  # variables tried for each assumption


def find_slip(
    question: Question,
    claimed: Node | None,
    trees: Trees | None = None,
    computed: Mapping[Node, Callable[..., Any]] | None = None,
) -> Slip:
    """The usual mistake that explains a wrong claim, or :data:`NONE`.

    Args:
        claimed: the claim in the original variables; None if its shapes do not fit.
        trees: the claim as it was written, where there is a text. computed: what gives the values of a claim that is a
            function (``claimed`` is then a leaf that stands for them).
    """
    found = _Search(question, claimed, trees, computed=computed).slip()
    if found is not NONE or claimed is None or computed is not None:
        return found
    for leaf in [n for n in toposort([question.correct]) if n.is_leaf and "name" in n.params and n.shape][
        :_MOST_SPECIAL
    ]:
        for said, value in SPECIAL.items():
            special = _Search(
                question, claimed, trees, lambda n, v, leaf=leaf, value=value: value(v) if n is leaf else v
            )
            where = f"where {said.format(leaf.params['name'])}"
            if same(special.claim, special.right):
                return Slip("special case", f"right {where}")
            found = special.slip()
            if found is not NONE:
                return Slip(found.kind, f"{found.sentence} ({where})")
    return NONE


# Assumptions that printed answers often make in silence.
SPECIAL: dict[str, Callable[[Any], Any]] = {
    "the rows of {} sum to 1": lambda value: value / np.sum(value, axis=-1, keepdims=True),
    "{} is 1 or -1": lambda value: np.where(value < 0, -1.0, 1.0),
}


class _Search(Evidence):
    """The families of slips, held against one claim at one set of points."""

    def __init__(
        self,
        question: Question,
        claimed: Node | None,
        trees: Trees | None,
        transform: Callable[[Node, Any], Any] | None = None,
        computed: Mapping[Node, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(question, claimed, transform, computed)
        self.trees = trees

    def slip(self) -> Slip:
        """The first family's finding."""
        if len(self.points):
            for family in self.families():
                try:
                    found = family()
                except ChainruleError:
                    continue  # this family says nothing here: no derivative rule, no matrix form
                if found is not None:
                    return found
        return NONE

    def families(self) -> list[Callable[[], Slip | None]]:
        if self.claimed is None:
            return [
                self.edits("transposes"),
                self.edits("orders"),
                self.edits("products"),
                self.edits("sums", "eyes"),
                self.edits("insertions"),
                self.edits("removals"),
            ]
        if not self.fits:
            return [
                self.by_shape,
                self.edits("transposes"),
                self.edits("orders"),
                self.other_variable,
                self.on_the_chain,
                self.edits("products"),
                self.edits("sums", "eyes"),
                self.edits("insertions", "removals"),
            ]
        return [
            self.by_scale,
            self.by_layout,
            self.edits("transposes"),
            self.only_symmetric,
            self.edits("orders"),
            self.other_variable,
            self.by_paths,
            self.on_the_chain,
            self.by_terms,
            self.edits("signs"),
            self.edits("factors"),
            self.edits("products", "eyes"),
            self.edits("powers"),
            self.edits("sums"),
            self.on_the_answer,
            self.by_factor,
            self.edits("insertions"),
            self.edits("removals"),
        ]

    def other_variable(self) -> Slip | None:
        """The derivative by something else."""
        question, found = self.question, []
        output = question.full(question.output)
        others = [n for n in toposort([output]) if n.is_leaf and "name" in n.params and n.type.is_float]
        for other in others:
            if other is question.target or other is question.seed:
                continue
            (moved,) = vjp([output], [question.seed], [other])
            if moved is not None:
                sentence = f"this is d{question.of}/d{other.params['name']}"
                found.append(Candidate("wrong variable", sentence, moved))
        against = self.flat if self.fits else self.claim if question.output.shape == () else None
        return self.first(found, against)

    def by_paths(self) -> Slip | None:
        """One path of the chain rule with another coefficient: 0, else -1, 2 or 1/2; or two of them forgotten."""
        for parts in (False, True):
            found = paths(Chain(self.question, parts))
            values = self.points.values([self.question.full(p.contribution) for p in found])
            known = [
                (p, v) for p, v in zip(found, values, strict=True) if v is not None and not same(v, self.flat_right)
            ]
            for forgotten in (True, False):
                for path, value in known:
                    name = partial(self._path, path)
                    slip = self.coefficient(value, self.flat, self.flat_right, name)
                    if slip is not None and (slip.kind == "forgotten path") is forgotten:
                        return slip
            slip = self._two_forgotten(known)
            if slip is not None:
                return slip
        return None

    def _two_forgotten(self, known: Sequence[tuple[Path, Values]]) -> Slip | None:
        if self.flat is None or self.flat_right is None:
            return None
        gone = [np.asarray(r) - np.asarray(c) for c, r in zip(self.flat, self.flat_right, strict=True)]
        for k, (first, a) in enumerate(known[:_MOST_PAIRED]):
            for second, b in known[:k]:
                if same([np.asarray(x) + np.asarray(y) for x, y in zip(a, b, strict=True)], gone):
                    return Slip("forgotten path", f"the paths through {second.name} and {first.name} are missing")
        return None

    def _path(self, path: Path) -> str:
        written = text(simplify(path.contribution), self.question.names)
        plain = self.question.output.shape == () and len(written) <= 60
        return f"{written} (the path through {path.name})" if plain else f"of the path through {path.name}"

    # ---- by derivation and by text -------------------------------------------------------------------------
    def on_the_chain(self) -> Slip | None:
        for parts in (False, True):
            chain = Chain(self.question, parts)
            against = self.flat if self.fits else self.claim if self.question.output.shape == () else None
            candidates = list(slipped(chain))
            found = self.first(candidates, against) or self._up_to_a_number(candidates, against)
            if found is None and not self.fits:
                found = self.first(self._stopped(chain), self.claim)
            if found is not None:
                return found
        return None

    def _up_to_a_number(self, candidates: Sequence[Candidate], against: Values | None) -> Slip | None:
        """A chain that is cut, and what is left scaled by a number or a size."""
        cut = [c for c in candidates if c.kind in ("missing upstream term", "missing inner derivative")]
        values = self.points.values([self.question.full(c.node) for c in cut])
        for candidate, found in zip(cut, values, strict=True):
            scale = None if found is None or against is None else ratios(against, found)
            if scale is not None and all(scale) and (scale_slip(scale) or self.size(scale)):
                return Slip(candidate.kind, candidate.sentence)
        return None

    def _stopped(self, chain: Chain) -> Iterator[Candidate]:
        """Local Jacobians of a function that is no scalar, in the claim's own shape."""
        question = self.question
        layout = "numerator" if question.leading else "denominator"
        for v in chain.order[:12]:
            if v is not chain.target and v is not chain.output:
                leaf = variable("the value", v.type)
                outer = jacobian(substitute_nodes([chain.output], {v: leaf})[0], leaf, layout)
                if outer is not None:
                    above, this = question.symbol(chain.output, v), question.symbol(v, chain.target)
                    (stopped,) = substitute_nodes([outer], {leaf: v})
                    sentence = f"the chain stops at {question.name(v)}: this is {above}, {this} is left out"
                    yield Candidate("missing inner derivative", sentence, stopped)
                found = jacobian(v, chain.target, layout)
                if found is not None:
                    above, this = question.symbol(question.output, v), question.symbol(v, chain.target)
                    yield Candidate("missing upstream term", f"{above} is left out: this is {this}", found)

    def on_the_answer(self) -> Slip | None:
        for form in dict.fromkeys((self.correct, simplify(self.correct))):
            found = self.first(breaks(form), self.claim)
            if found is not None:
                return found
        return None

    def edits(self, *families: str):
        def search() -> Slip | None:
            if self.trees is None:
                return None
            insertions = _factors(self.trees, self.question) if "insertions" in families else ()
            if "eyes" in families:
                insertions = tuple((n, tree.Name(0, 0, 0, n)) for n in self.points.sizes()[0])
            return self.first(self._same_shape(mended(self.trees, families, insertions)), self.right)

        return search

    def _same_shape(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        seen: set[Node] = set()
        for c in candidates:
            if c.node.shape == self.correct.shape and c.node not in seen:
                seen.add(c.node)
                yield c


def _factors(trees: Trees, question: Question) -> tuple[tuple[str, tree.Tree], ...]:
    """Names that the claim may have left out, as trees."""
    names = [n for n in trees.given if n != question.of]
    return tuple((n, tree.Name(0, 0, 0, n)) for n in names[:12])
