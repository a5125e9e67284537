"""A contraction as a graph: operands of order one and two are its edges, indices its vertices, reduced step by step.

Vectors on one index multiply elementwise, matrices between the same two indices too; where three operands meet, chains
beside another operand are multiplied out; what is left is paths and cycles, which are matrix products and traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chainrule.ir import MUL, POSTFIX

Indices = tuple[int, ...]


@dataclass
class Part:
    """A printed operand: its text and strength, its indices, and whether it is already transposed."""

    text: str
    strength: int
    indices: Indices
    is_identity: bool = False
    is_symmetric: bool = False


class NoMatrixForm(Exception):
    """The contraction is no product of matrices and vectors."""


class Contraction:
    """The reduction of one contraction to products, sums and traces."""

    def __init__(self, style: Any, parts: list[Part], result: Indices, batch: int = 0) -> None:
        self.style, self.result, self.batch = style, result, batch
        if any(len(p.indices) > 2 for p in parts):
            raise NoMatrixForm
        self.scalars = [p for p in parts if not p.indices]
        self.vectors = [p for p in parts if len(p.indices) == 1]
        self.matrices = [p for p in parts if len(p.indices) == 2 and not p.is_identity]
        self.identities = [p for p in parts if p.is_identity]

    def text(self) -> tuple[str, int]:
        self._identities_that_rename()
        self._self_loops()
        self._merge_matrices()
        self._merge_vectors()
        factor = self._elementwise_factor()
        self._sum_out()
        self._reduce_junctions()
        self._diagonals()
        components = self._components()
        text, strength = self._assemble(components)
        return (text, strength) if factor is None else self._times(text, strength, factor)

    def _elementwise_factor(self) -> Part | None:
        """An operand over just the indices of the result, which the others span too: an elementwise factor of all."""
        if not self.result:
            return None
        candidates = self.matrices if len(self.result) == 2 else self.vectors
        for p in candidates:
            if set(p.indices) != set(self.result) or len(self.result) != len(p.indices):
                continue
            rest = [q for q in [*self.vectors, *self.matrices, *self.identities] if q is not p]
            if any(q.is_identity for q in rest) or not set(self.result) <= {i for q in rest for i in q.indices}:
                continue
            candidates.remove(p)
            return p if p.indices == self.result else self._transposed(p)
        return None

    def _times(self, text: str, strength: int, factor: Part) -> tuple[str, int]:
        return self.style.hadamard([factor, Part(text, strength, self.result)]), MUL

    # ---- reductions ----------------------------------------------------------------------------------------
    def _uses(self, index: int) -> int:
        everything = [*self.vectors, *self.matrices, *self.identities]
        return sum(p.indices.count(index) for p in everything) + self.result.count(index)

    def _identities_that_rename(self) -> None:
        """A sum over an index of an identity only renames that index: ``eye(n) @ x`` is ``x``."""
        for p in list(self.identities):
            i, j = p.indices
            gone, kept = (j, i) if j not in self.result else (i, j)
            if i == j or gone in self.result or self._uses(gone) < 2:
                continue
            self.identities.remove(p)
            for q in [*self.vectors, *self.matrices, *self.identities]:
                q.indices = tuple(kept if k == gone else k for k in q.indices)

    def _self_loops(self) -> None:
        for p in [p for p in self.matrices if p.indices[0] == p.indices[1]]:
            self.matrices.remove(p)
            (index, _) = p.indices
            if self._uses(index) == 0:
                self.scalars.append(self._call("tr", p, ()))
            else:
                self.vectors.append(self._call("diag", p, (index,)))

    def _call(self, name: str, p: Part, indices: Indices, axis: int | None = None) -> Part:
        if self.batch and axis is None:
            raise NoMatrixForm  # tr and diag of a stack are left to einsum
        return Part(self.style.call(name, p, None if axis is None else self.batch + axis), 50, indices)

    def _merge_matrices(self) -> None:
        groups: dict[frozenset[int], list[Part]] = {}
        for p in self.matrices:
            groups.setdefault(frozenset(p.indices), []).append(p)
        self.matrices = []
        for group in groups.values():
            first = group[0]
            summed = all(self.result.count(i) == 0 for i in first.indices)
            alone = summed and all(
                sum(q.indices.count(i) for q in [*self.vectors, *self.identities]) == 0
                and not any(
                    i in g for g in groups if g is not frozenset(first.indices) and g != frozenset(first.indices)
                )
                for i in first.indices
            )
            if len(group) == 2 and alone:
                self.matrices += group  # a closed pair is a trace of a product or a sum of an elementwise product
                continue
            if len(group) > 1:
                aligned = [p if p.indices == first.indices else self._transposed(p) for p in group]
                first = Part(self.style.hadamard(aligned), MUL, first.indices)
            self.matrices.append(first)

    def _transposed(self, p: Part) -> Part:
        if p.is_symmetric:
            return Part(p.text, p.strength, p.indices[::-1], is_symmetric=True)
        return Part(self.style.transpose(p), POSTFIX, p.indices[::-1])

    def _diagonal(self, p: Part, indices: Indices) -> Part:
        if self.batch:
            raise NoMatrixForm
        return Part(self.style.call("diag", p, None), 50, indices, is_symmetric=True)

    def _merge_vectors(self) -> None:
        groups: dict[int, list[Part]] = {}
        for p in self.vectors:
            groups.setdefault(p.indices[0], []).append(p)
        self.vectors = []
        for index, group in groups.items():
            closed = self.result.count(index) == 0 and not any(
                index in p.indices for p in [*self.matrices, *self.identities]
            )
            if len(group) > 1 and closed and len(group) == 2:
                self.scalars.append(Part(self.style.matmul([self._transposed(group[0]), group[1]]), MUL, ()))
            elif len(group) > 1:
                self.vectors.append(Part(self.style.hadamard(group), MUL, (index,)))
            else:
                self.vectors.append(group[0])

    def _sum_out(self) -> None:
        """Indices that only one operand has are sums of it."""
        changed = True
        while changed:
            changed = False
            for p in list(self.matrices):
                lonely = [a for a, i in enumerate(p.indices) if self._uses(i) == 1]
                if not lonely:
                    continue
                self.matrices.remove(p)
                if len(lonely) == 2:
                    self.scalars.append(self._call("sum", p, ()))
                else:
                    kept = p.indices[1 - lonely[0]]
                    self.vectors.append(self._call("sum", p, (kept,), lonely[0]))
                changed = True
            if changed:
                self._merge_vectors()
            for p in list(self.vectors):
                if self._uses(p.indices[0]) == 1:
                    self.vectors.remove(p)
                    self.scalars.append(self._call("sum", p, ()))
                    changed = True

    def _diagonals(self) -> None:
        """Vectors on an index that continues on both sides become diagonal matrices."""
        for identity in self.identities:
            i, j = identity.indices
            on = [p for p in self.vectors if p.indices[0] in (i, j)]
            for p in on:
                self.vectors.remove(p)
            if on:
                inside = on[0] if len(on) == 1 else Part(self.style.hadamard(on), MUL, on[0].indices)
                self.matrices.append(self._diagonal(inside, (i, j)))
            else:
                self.matrices.append(Part(identity.text, 50, (i, j), is_symmetric=True))
        for p in list(self.vectors):
            (index,) = p.indices
            touching = [m for m in self.matrices if index in m.indices]
            free = self.result.count(index)
            if len(touching) + free < 2:
                continue
            if free and not touching:
                continue
            self.vectors.remove(p)
            if len(touching) == 2 and not free:
                fresh = -1 - index
                second = touching[1]
                second.indices = tuple(fresh if i == index else i for i in second.indices)
                self.matrices.append(self._diagonal(p, (index, fresh)))
            elif len(touching) == 1 and free:
                fresh = -1 - index
                touching[0].indices = tuple(fresh if i == index else i for i in touching[0].indices)
                self.matrices.append(self._diagonal(p, (index, fresh)))
            else:
                raise NoMatrixForm

    # ---- series and parallel -------------------------------------------------------------------------------
    def _reduce_junctions(self) -> None:
        """Where three operands meet: chains beside another operand are multiplied out, ``G * (X @ V)``, and so are
        chains that end in a vector, ``v * (W' @ g)``, until every index has at most two uses or a diagonal."""
        while any(self._is_junction(i) for p in self.matrices for i in p.indices):
            if not (self._pendant_to_vector() or self._chain_to_edge()):
                return
            self._merge_matrices()
            self._merge_vectors()
            self._sum_out()

    def _is_junction(self, index: int) -> bool:
        return self._uses(index) > 2

    def _pendant_to_vector(self) -> bool:
        """A chain from a junction to a vector becomes a vector on that junction."""
        for vector in self.vectors:
            (at,) = vector.indices
            matrices: list[Part] = []
            while at not in self.result and self._uses(at) == 2:
                onward = [m for m in self.matrices if at in m.indices and m not in matrices]
                if len(onward) != 1:
                    break
                matrices.append(onward[0])
                at = onward[0].indices[1] if onward[0].indices[0] == at else onward[0].indices[0]
            if not matrices or not self._is_junction(at):
                continue
            self.vectors.remove(vector)
            for m in matrices:
                self.matrices.remove(m)
            flips = self._flips(matrices[::-1], at)
            self.vectors.append(self._joined([*matrices[::-1], vector], [*flips, False], (at,)))
            return True
        return False

    def _chain_to_edge(self) -> bool:
        """A chain between two indices that another operand joins as well becomes one operand beside it."""
        for first in self.matrices:
            for start in first.indices:
                chain, at = [first], first.indices[1] if first.indices[0] == start else first.indices[0]
                while True:
                    beside = [m for m in self.matrices if m not in chain and set(m.indices) == {start, at}]
                    if (beside and len(chain) > 1) or at in self.result or self._uses(at) != 2:
                        break
                    onward = [m for m in self.matrices if at in m.indices and m not in chain]
                    if len(onward) != 1:
                        break
                    chain.append(onward[0])
                    at = onward[0].indices[1] if onward[0].indices[0] == at else onward[0].indices[0]
                if len(chain) < 2 or not beside:
                    continue
                for m in chain:
                    self.matrices.remove(m)
                # Read in the direction of the operand beside it, so that neither is transposed.
                if beside[0].indices[0] != start:
                    chain, start, at = chain[::-1], at, start
                edge = self._joined(chain, self._flips(chain, start), (start, at))
                self.matrices.insert(0, edge)
                return True
        return False

    @staticmethod
    def _flips(chain: list[Part], start: int) -> list[bool]:
        """For each matrix of a chain that begins at an index, whether it is entered from its second index."""
        flips = []
        for m in chain:
            flips.append(m.indices[0] != start)
            start = m.indices[0] if flips[-1] else m.indices[1]
        return flips

    # ---- paths and cycles ----------------------------------------------------------------------------------
    def _components(self) -> list[tuple[Part, Indices]]:
        """Each connected piece as one part with its free indices in reading order."""
        pieces: list[tuple[Part, Indices]] = []
        matrices, vectors = list(self.matrices), list(self.vectors)
        for index in {i for p in [*matrices, *vectors] for i in p.indices}:
            if sum(p.indices.count(index) for p in [*matrices, *vectors]) + self.result.count(index) > 2:
                raise NoMatrixForm
        while matrices or vectors:
            start = self._start(matrices, vectors)
            if start is None:
                pieces.append((self._cycle(matrices), ()))
                continue
            pieces.append(self._path(start, matrices, vectors))
        return pieces

    def _start(self, matrices: list[Part], vectors: list[Part]) -> int | Part | None:
        for index in self.result:
            if any(index in p.indices for p in [*matrices, *vectors]):
                return index
        return vectors[0] if vectors else None

    def _path(self, start: int | Part, matrices: list[Part], vectors: list[Part]) -> tuple[Part, Indices]:
        chain: list[Part] = []
        flips: list[bool] = []
        free: list[int] = []
        if isinstance(start, Part):
            vectors.remove(start)
            chain.append(start)
            flips.append(True)
            at: int | None = start.indices[0]
        else:
            free.append(start)
            at = start
        while at is not None:
            matrix = next((m for m in matrices if at in m.indices), None)
            if matrix is not None:
                matrices.remove(matrix)
                chain.append(matrix)
                flips.append(matrix.indices[0] != at)
                at = matrix.indices[1] if matrix.indices[0] == at else matrix.indices[0]
                if at in self.result:
                    free.append(at)
                    at = None
                continue
            vector = next((v for v in vectors if at in v.indices), None)
            if vector is None:
                raise NoMatrixForm
            vectors.remove(vector)
            chain.append(vector)
            flips.append(False)
            at = None
        if not free and sum(flips) > len(flips) - sum(flips) + 1:  # a scalar reads as well backwards, with fewer primes
            chain, flips = chain[::-1], [not f for f in flips[::-1]]
            flips[0], flips[-1] = True, False
        return self._joined(chain, flips, tuple(free)), tuple(free)

    def _joined(self, chain: list[Part], flips: list[bool], free: Indices) -> Part:
        turned = [flip and not p.is_symmetric for p, flip in zip(chain, flips, strict=True)]
        if len(free) == 2 and len(chain) > 2 and all(turned[k] or chain[k].is_symmetric for k in range(len(chain))):
            # A' @ B' @ C' is shorter as (C @ B @ A)'.
            inner = Part(self.style.matmul(chain[::-1]), MUL, free[::-1])
            return Part(self.style.transpose(inner), POSTFIX, free)
        parts = [self._transposed(p) if flip else p for p, flip in zip(chain, flips, strict=True)]
        if len(parts) == 1:
            return Part(parts[0].text, parts[0].strength, free)
        return Part(self.style.matmul(parts), MUL, free)

    def _cycle(self, matrices: list[Part]) -> Part:
        first = matrices.pop(0)
        chain, flips = [first], [False]
        begin, at = first.indices
        while at != begin:
            matrix = next((m for m in matrices if at in m.indices), None)
            if matrix is None:
                raise NoMatrixForm
            matrices.remove(matrix)
            chain.append(matrix)
            flips.append(matrix.indices[0] != at)
            at = matrix.indices[1] if matrix.indices[0] == at else matrix.indices[0]
        if len(chain) == 2 and flips == [False, True]:  # tr(A B') is the sum of A * B
            return Part(self.style.call("sum", Part(self.style.hadamard(chain), MUL, ()), None), 50, ())
        return Part(self.style.call("tr", self._joined(chain, flips, ()), None), 50, ())

    def _assemble(self, pieces: list[tuple[Part, Indices]]) -> tuple[str, int]:
        scalars = [*self.scalars, *(p for p, free in pieces if not free)]
        rest = [(p, free) for p, free in pieces if free]
        main: Part | None = None
        if len(rest) == 1:
            main, free = rest[0]
            if free != self.result:
                if free[::-1] != self.result:
                    raise NoMatrixForm
                main = self._transposed(main)
        elif len(rest) == 2 and all(len(f) == 1 for _, f in rest):
            (a, (i,)), (b, (j,)) = rest
            if (i, j) != self.result:
                a, b = b, a
            main = Part(self.style.matmul([a, self._transposed(b)]), MUL, self.result)
        elif rest:
            raise NoMatrixForm
        parts = [*scalars, *([main] if main is not None else [])]
        if len(parts) == 1:
            return parts[0].text, parts[0].strength
        return self.style.hadamard(parts), MUL
