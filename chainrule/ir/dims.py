"""Sizes of dimensions: integers, names such as ``D_1``, and polynomials of them.

A size is an ``int`` wherever it is known and a :class:`Dim` where it is not. Arithmetic on sizes stays exact:
``Dim("n") - 1 + 1 == Dim("n")``, and a result without names is an ``int`` again, so code that computes shapes
never asks which of the two it holds.
"""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.errors import ShapeError

Size = "int | Dim"
_Monomial = tuple[str, ...]  # names with repetition, sorted: ("m", "n", "n") is m*n^2


class Dim:
    """A symbolic size: a polynomial with integer coefficients in dimension names.

    >>> n = Dim("n")
    >>> n * 2 - n - n, n + 1, n * Dim("m")
    (0, n + 1, m*n)
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, name: str | None = None, *, terms: Mapping[_Monomial, int] | None = None) -> None:
        if terms is None:
            if not name:
                raise ShapeError("a dimension needs a name", given=repr(name))
            terms = {(name,): 1}
        self.terms = tuple(sorted(terms.items()))
        self._hash = hash(self.terms)

    @property
    def names(self) -> frozenset[str]:
        """The names that occur in it."""
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    @property
    def name(self) -> str:
        """Its text; a plain name for an atomic dimension."""
        return str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: int | Dim) -> int | Dim:
        return _polynomial([*self.terms, *_terms(other)])

    def __mul__(self, other: int | Dim) -> int | Dim:
        return _polynomial([(tuple(sorted(a + b)), x * y) for a, x in self.terms for b, y in _terms(other)])

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> int | Dim:
        return self * -1

    def __sub__(self, other: int | Dim) -> int | Dim:
        return self + other * -1

    def __rsub__(self, other: int | Dim) -> int | Dim:
        return self * -1 + other

    def __int__(self) -> int:
        raise ShapeError(f"dimension {self} has no number here", required="a size given as a number")

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in sorted(self.terms, key=lambda t: (-len(t[0]), t[0])):
            body = "*".join(monomial)
            size = (
                str(abs(coefficient)) if not body else body if abs(coefficient) == 1 else f"{abs(coefficient)}*{body}"
            )
            sign = "-" if coefficient < 0 else "+"
            parts.append(f" {sign} {size}" if parts else (f"-{size}" if coefficient < 0 else size))
        return "".join(parts)

    __repr__ = __str__


def _terms(size: int | Dim) -> tuple[tuple[_Monomial, int], ...]:
    return size.terms if isinstance(size, Dim) else (((), size),)


def _polynomial(terms: list[tuple[_Monomial, int]]) -> int | Dim:
    total: dict[_Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    total = {m: c for m, c in total.items() if c}
    if not total:
        return 0
    if set(total) == {()}:
        return total[()]
    return Dim(terms=total)


def product(sizes: tuple[int | Dim, ...] | list[int | Dim]) -> int | Dim:
    """The product of sizes: the number of elements of a shape.

    >>> product((2, Dim("n"), 3))
    6*n
    """
    result: int | Dim = 1
    for size in sizes:
        result = result * size
    return result


def substitute(size: int | Dim, sizes: Mapping[str, int]) -> int | Dim:
    """``size`` with the named dimensions that ``sizes`` knows replaced by numbers.

    >>> substitute(Dim("n") * 2 + 1, {"n": 4})
    9
    """
    if not isinstance(size, Dim):
        return size
    result: int | Dim = 0
    for monomial, coefficient in size.terms:
        result = result + product([coefficient, *(sizes.get(name, Dim(name)) for name in monomial)])
    return result


def solve_for(size: int | Dim, value: int, sizes: dict[str, int]) -> bool:
    """Learns a name from ``size == value`` where the size is a single unknown name; False on contradiction."""
    known = substitute(size, sizes)
    if not isinstance(known, Dim):
        return known == value
    if len(known.terms) == 1 and len(known.terms[0][0]) == 1 and value % known.terms[0][1] == 0:
        sizes[known.terms[0][0][0]] = value // known.terms[0][1]
    return True
