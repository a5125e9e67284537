"""Terms as data: a number times factors, each a node read at indices to a power; and one term found in another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

from chainrule.ir import Node, digest, tree_size

Number = Fraction | float
Index = int | None  # None: a dimension of size 1, read at its only element


@dataclass(frozen=True)
class Factor:
    """``atom[indices] ^ power``."""

    atom: Node
    indices: tuple[Index, ...]
    power: Number = Fraction(1)


@dataclass(frozen=True)
class Term:
    """``coefficient * product of factors``, summed over ``summed``."""

    coefficient: Number
    factors: tuple[Factor, ...] = ()
    summed: tuple[int, ...] = ()


Sum = list[Term]

_MAX_TIES = 720


def order_key(node: Node) -> tuple[object, ...]:
    """Human order: names alphabetically, then expressions from short to long, alphabetically among equals."""
    if node.is_leaf:
        return (0, 0, str(node.params.get("name", node.params)))
    return (1, tree_size(node), node.op.name, digest(node).hex())


def rename(term: Term, image: dict[int, int]) -> Term:
    """A term with indices renamed."""
    factors = tuple(
        replace(f, indices=tuple(image.get(i, i) if i is not None else None for i in f.indices)) for f in term.factors
    )
    return replace(term, factors=factors, summed=tuple(image.get(i, i) for i in term.summed))


def occurrence(
    pattern: Term,
    term: Term,
    at: dict[int, int] | None = None,
    symmetric: Callable[[Node], bool] = lambda _: False,
) -> tuple[Term, dict[int, int]] | None:
    """What is left of a term where another occurs in it, and where that one's indices are found.

    The pattern's summed indices must be summed in the term, over nothing but the factors that it takes away. Its
    coefficient is not looked at. ``at`` fixes indices beforehand; a matrix that is ``symmetric`` is read either way.
    """
    found = _Search(set(pattern.summed), set(term.summed), symmetric).match(
        pattern.factors, term.factors, dict(at or {})
    )
    if found is None:
        return None
    taken, image = found
    left = []
    for position, f in enumerate(term.factors):
        power = f.power - taken.get(position, Fraction(0))
        if power != 0:
            left.append(replace(f, power=power))
    gone = {image[i] for i in pattern.summed}
    if any(i in gone for f in left for i in f.indices):
        return None
    return Term(term.coefficient, tuple(left), tuple(i for i in term.summed if i not in gone)), image


_Matched = tuple[dict[int, Number], dict[int, int]]


@dataclass(frozen=True)
class _Search:
    """Backtracking over the factors that a pattern's factors may be. ``inner``, ``summed``: of pattern and term."""

    inner: set[int]
    summed: set[int]
    symmetric: Callable[[Node], bool]

    def match(self, wanted: Sequence[Factor], factors: Sequence[Factor], image: dict[int, int]) -> _Matched | None:
        """Which powers of which factors are taken, and where the pattern's indices are."""
        if not wanted:
            return {}, image
        first, *rest = wanted
        for position, f in enumerate(factors):
            if f.atom is not first.atom or f.power * first.power <= 0 or abs(f.power) < abs(first.power):
                continue
            ways = [f.indices]
            if len(f.indices) == 2 and f.indices[0] != f.indices[1] and self.symmetric(f.atom):
                ways.append(f.indices[::-1])
            remaining = [replace(g, power=g.power - first.power) if n == position else g for n, g in enumerate(factors)]
            for way in ways:
                extended = self._extended(first.indices, way, image)
                found = None if extended is None else self.match(rest, remaining, extended)
                if found is not None:
                    taken, whole = found
                    return {**taken, position: taken.get(position, Fraction(0)) + first.power}, whole
        return None

    def _extended(self, own: Sequence[Index], other: Sequence[Index], image: dict[int, int]) -> dict[int, int] | None:
        """The image with ``own`` taken to ``other``; summed indices go to different summed ones."""
        extended = dict(image)
        for i, j in zip(own, other, strict=True):
            if i is None or j is None:
                if i is not j:
                    return None
            elif i in extended:
                if extended[i] != j:
                    return None
            elif i in self.inner and (j not in self.summed or j in extended.values()):
                return None
            else:
                extended[i] = j
        return extended


# ---- equal terms ----------------------------------------------------------------------------------------
def canonical_key(term: Term, symmetric: Callable[[Node], bool] = lambda _: False) -> object:
    """A key that is equal for terms that differ only in the order of factors and the names of summed indices.

    A matrix that is ``symmetric`` is read either way. Summed indices are coloured by where they occur until colours
    are stable; remaining ties are broken by trying their orders (up to a limit, beyond which two equal terms may
    be kept apart, which is never wrong).
    """
    summed = set(term.summed)
    either = {f.atom for f in term.factors if len(f.indices) == 2 and symmetric(f.atom)}

    def signature(f: Factor, colour: dict[int, object]) -> tuple[object, ...]:
        shown = tuple(("s", colour[i]) if i in summed else ("f", i) for i in f.indices)
        return (digest(f.atom), str(f.power), repr(sorted(shown, key=repr) if f.atom in either else shown))

    def places(f: Factor, index: int) -> list[int]:
        return [0 if f.atom in either else p for p, i in enumerate(f.indices) if i == index]

    colour: dict[int, object] = dict.fromkeys(summed, "")
    for _ in range(3):
        colour = {
            d: repr(sorted((signature(f, colour), p) for f in term.factors for p in places(f, d))) for d in summed
        }
    groups: dict[str, list[int]] = {}
    for d in summed:
        groups.setdefault(str(colour[d]), []).append(d)
    ordered = [groups[c] for c in sorted(groups)]
    best: object = None
    for order in _orders(ordered):
        number: dict[int, object] = {d: k for k, d in enumerate(order)}
        key = tuple(sorted(signature(f, number) for f in term.factors))
        best = key if best is None or key < best else best  # type: ignore[operator]
    return best


def _orders(groups: list[list[int]]) -> Iterable[tuple[int, ...]]:
    results: list[tuple[int, ...]] = [()]
    for group in groups:
        options = list(permutations(group)) if len(group) <= 6 else [tuple(group)]
        if len(results) * len(options) > _MAX_TIES:
            options = options[:1]
        results = [r + o for r in results for o in options]
    return results
