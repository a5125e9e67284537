"""What a chain costs in each order of multiplication, and the cheapest order.

The chain rule multiplies local derivatives along the paths from the variables to the output. Multiplying from the
variables on is forward mode, from the output back is reverse mode; in general any intermediate quantity may go next:
*eliminating* it multiplies each derivative into it with each derivative out of it. On a single path this is the
bracketing of a matrix chain. Identities are kept as tied indices, so a diagonal n x n matrix times a dense n x m one
counts n*m multiplications, and one with all ones or an identity counts none. What the local derivatives themselves
cost is the same in every order and is not counted.

Source: Griewank and Walther, Evaluating Derivatives, ch. 9 (vertex elimination); Aho et al. for matrix chains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from chainrule.interpreters.terms import Algebra, collect
from chainrule.ir import Dim, Node, product
from chainrule.verbs.named_program import NamedProgram

Size = int | Dim
_SEED = "times the cotangent"
STAND_IN = 16  # what a named size counts as where two costs are compared
MAX_COUNTED = 60  # named quantities of a program whose counts are printed unasked
_MAX_EXACT = 7  # quantities whose orders are all tried
_MAX_CHAIN = 60  # quantities on a single path
_MAX_GREEDY = 120  # quantities of any program; beyond them the cheaper of forward and reverse mode is taken


@dataclass(frozen=True)
class Pattern:
    """Where a derivative of F by X may differ from zero.

    Attributes:
        sizes: of X's dimensions, then of F's. ties: a label per dimension; equal labels are equal indices, outside of
            which all elements are zero. rank: how many dimensions are X's. unit: all other elements are 1, or all -1.
    """

    sizes: tuple[Size, ...]
    ties: tuple[int, ...]
    rank: int
    unit: bool


def pattern_of(jacobian: Node, rank: int) -> Pattern | None:
    """The pattern of a derivative X.shape + F.shape; None if it is zero.

    >>> from chainrule.ir import TensorType
    >>> from chainrule.ops.contraction import eye
    >>> pattern_of(eye(3) * 2.0, 1)
    Pattern(sizes=(3, 3), ties=(0, 0), rank=1, unit=False)
    """
    algebra = Algebra()
    free = algebra.indices_of(jacobian.type)
    terms = collect(algebra.expand(jacobian, free), algebra)
    if not terms:
        return None
    labels: list[list[int]] = []
    for term in terms:
        label = list(range(len(free)))
        for f in term.factors:
            if _is_identity(f.atom) and all(i in free for i in f.indices):
                _tie(label, *(free.index(i) for i in f.indices if i is not None))
        labels.append(label)
    unit = len(terms) == 1 and abs(terms[0].coefficient) == 1 and all(_is_identity(f.atom) for f in terms[0].factors)
    ties = _canonical(list(zip(*labels, strict=True)))
    return Pattern(jacobian.shape, ties, rank, unit and not terms[0].summed)


def _is_identity(atom: Node) -> bool:
    return atom.is_leaf and atom.type.rank == 2 and "size" in atom.params


def _tie(label: list[int], a: int, b: int) -> None:
    old, new = label[b], label[a]
    label[:] = [new if x == old else x for x in label]


def _canonical(labels: Sequence[object]) -> tuple[int, ...]:
    seen: dict[object, int] = {}
    return tuple(seen.setdefault(x, len(seen)) for x in labels)


@lru_cache(maxsize=4096)
def multiply(before: Pattern, after: Pattern) -> tuple[Pattern, Size]:
    """The product of dV/dX and dF/dV, and how many multiplications it takes."""
    x, v = before.rank, len(before.sizes) - before.rank
    sizes = (*before.sizes, *after.sizes)
    apart = 1 + max(before.ties, default=0)
    label = [*before.ties, *(apart + t for t in after.ties)]
    for k in range(x, x + v):  # V is indexed by both
        _tie(label, k, k + v)
    kept = [*range(x), *range(x + 2 * v, len(label))]
    free = {label[k] for k in kept}
    unit = before.unit and after.unit and free.issuperset(label)
    result = Pattern(tuple(sizes[k] for k in kept), _canonical([label[k] for k in kept]), x, unit)
    cost = 0 if before.unit or after.unit else product(list(dict(zip(label, sizes, strict=True)).values()))
    return result, cost


@lru_cache(maxsize=4096)
def add(a: Pattern, b: Pattern) -> Pattern:
    """The sum of two derivatives: tied where both are."""
    return Pattern(a.sizes, _canonical(list(zip(a.ties, b.ties, strict=True))), a.rank, False)


# ---- the graph of a program --------------------------------------------------------------------------------
class Chain:
    """The local derivatives between named quantities, from the variables ``wrt`` to the output.

    Args:
        edges: (from, to) -> pattern. inner: the quantities between, in order of computation.
    """

    def __init__(self, edges: Mapping[tuple[str, str], Pattern], inner: Sequence[str]) -> None:
        self.edges, self.inner = dict(edges), tuple(inner)

    def eliminated(self, name: str) -> tuple[Chain, Size]:
        """The chain without one inner quantity, and the multiplications that took."""
        into = [(p, e) for (p, s), e in self.edges.items() if s == name]
        out = [(s, e) for (p, s), e in self.edges.items() if p == name]
        edges = {key: e for key, e in self.edges.items() if name not in key}
        total: Size = 0
        for p, before in into:
            for s, after in out:
                moved, cost = multiply(before, after)
                total = total + cost
                edges[p, s] = add(edges[p, s], moved) if (p, s) in edges else moved
        return Chain(edges, [n for n in self.inner if n != name]), total

    def cost(self, order: Sequence[str]) -> Size:
        """Multiplications to eliminate all inner quantities in that order."""
        chain: Chain = self
        total: Size = 0
        for name in order:
            chain, cost = chain.eliminated(name)
            total = total + cost
        return total


def chain_of(program: NamedProgram, wrt: Sequence[str], seeded: bool = False) -> Chain:
    """The chain of a program. A variable that is an inner quantity of others starts paths of its own.

    ``seeded``: the output's derivative is multiplied by a cotangent.

    Raises:
        UnsupportedOpError: a local derivative has no matrix form, so its pattern is not known.
    """
    y = program.output
    needed = set().union(*(program.depends_on(w) for w in wrt)) & program.ancestors(y)
    inner = [n for n in program.order if n in needed and n != y]
    edges: dict[tuple[str, str], Pattern] = {}
    for parent in dict.fromkeys([*wrt, *inner]):
        for child in program.children(parent):
            local = program.local_jacobian(child, parent, "denominator") if child in needed else None
            pattern = None if local is None else pattern_of(local, program.symbol[parent].type.rank)
            if pattern is None:
                continue
            if parent in inner:
                edges[parent, child] = pattern
            if parent in wrt:
                edges[source_of(parent), child] = pattern
    if seeded:
        output = program.symbol[y]
        edges[y, _SEED] = Pattern(output.shape, tuple(range(output.type.rank)), output.type.rank, False)
        inner.append(y)
    return Chain(edges, inner)


def source_of(name: str) -> str:
    """The start of the paths from a variable, apart from the quantity of the same name that others pass through."""
    return f"{name} (variable)"


# ---- orders ------------------------------------------------------------------------------------------------
def forward_order(chain: Chain) -> tuple[str, ...]:
    """From the variables on."""
    return chain.inner


def reverse_order(chain: Chain) -> tuple[str, ...]:
    """From the output back."""
    return chain.inner[::-1]


def best_order(chain: Chain, sizes: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """The cheapest order: the best of all up to seven quantities or on a single path, else the best that is found.

    Args:
        sizes: numbers for named dimensions; other names count as 16.
    """

    def weight(cost: Size) -> float:
        return weighed(cost, sizes)

    found = [reverse_order(chain), forward_order(chain)]
    if len(chain.inner) <= _MAX_EXACT:
        found.append(_of_all(chain, weight))
    elif len(chain.inner) <= _MAX_CHAIN and _is_path(chain):
        found.append(_of_path(chain, weight))
    elif len(chain.inner) <= _MAX_GREEDY:
        found.append(_greedy(chain, weight))
    return min(found, key=lambda order: weight(chain.cost(order)))  # the first of equals: reverse mode


def weighed(cost: Size, sizes: Mapping[str, int] | None = None) -> float:
    """A cost as one number."""
    if not isinstance(cost, Dim):
        return cost
    known = sizes or {}
    return sum(c * product([known.get(name, STAND_IN) for name in names]) for names, c in cost.terms)  # type: ignore[misc]


def _of_all(chain: Chain, weight: Callable[[Size], float]) -> tuple[str, ...]:
    """Every order, by what is left: the patterns that remain do not depend on the order of what went before."""
    states: dict[frozenset[str], tuple[float, tuple[str, ...], Chain]] = {frozenset(): (0.0, (), chain)}
    for _ in chain.inner:
        after: dict[frozenset[str], tuple[float, tuple[str, ...], Chain]] = {}
        for gone, (cost, order, left) in states.items():
            for name in left.inner:
                smaller, paid = left.eliminated(name)
                key, total = gone | {name}, cost + weight(paid)
                if key not in after or total < after[key][0]:
                    after[key] = total, (*order, name), smaller
        states = after
    ((_, order, _),) = states.values()
    return order


def _greedy(chain: Chain, weight: Callable[[Size], float]) -> tuple[str, ...]:
    """The cheapest elimination next; among equals the one that leaves fewest derivatives, and the latest."""
    order: list[str] = []
    while chain.inner:
        options = [(name, *chain.eliminated(name)) for name in reversed(chain.inner)]
        name, chain, _ = min(options, key=lambda o: (weight(o[2]), len(o[1].edges)))
        order.append(name)
    return tuple(order)


def _is_path(chain: Chain) -> bool:
    starts, ends = [p for p, _ in chain.edges], [s for _, s in chain.edges]
    return len(set(starts)) == len(starts) and len(set(ends)) == len(ends) and len(starts) == len(chain.inner) + 1


def _of_path(chain: Chain, weight: Callable[[Size], float]) -> tuple[str, ...]:
    """Matrix-chain order: the cheapest split of every stretch of the path, shortest stretches first."""
    after = dict(chain.edges)
    names = [next(p for p, _ in after if p not in {s for _, s in after})]
    following = {p: s for p, s in after}
    while names[-1] in following:
        names.append(following[names[-1]])
    best: dict[tuple[int, int], tuple[float, tuple[str, ...], Pattern]] = {
        (k, k + 1): (0.0, (), after[names[k], names[k + 1]]) for k in range(len(names) - 1)
    }
    for length, start in _stretches(len(names)):
        end = start + length
        for middle in range(end - 1, start, -1):
            (paid, first, before), (owed, second, then) = best[start, middle], best[middle, end]
            moved, cost = multiply(before, then)
            total = paid + owed + weight(cost)
            if (start, end) not in best or total < best[start, end][0]:
                best[start, end] = total, (*first, *second, names[middle]), moved
    return best[0, len(names) - 1][1]


def _stretches(count: int) -> Iterator[tuple[int, int]]:
    for length in range(2, count):
        for start in range(count - length):
            yield length, start


# ---- the answer --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bracketing:
    """Multiplications in every mode, the cheapest order, and the passes of forward and reverse mode.

    Attributes:
        counts: mode -> multiplications. order: in which ``best`` eliminates the intermediate quantities.
        passes: mode -> sweeps over the program that its mode takes: one per element of the variables in forward mode,
            one per element of the output in reverse mode. assumed: what named sizes counted as, if any.
    """

    counts: Mapping[str, Size]
    order: tuple[str, ...]
    passes: Mapping[str, Size]
    assumed: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; polynomials as text."""
        return {
            "counts": {mode: _plain(count) for mode, count in self.counts.items()},
            "best_order": list(self.order),
            "passes": {mode: _plain(count) for mode, count in self.passes.items()},
            "assumed": dict(self.assumed),
        }

    def lines(self) -> list[str]:
        """Multiplications and passes of every mode; what is the same in all of them is left out."""
        lines = []
        if any(self.counts.values()):
            shown = ", ".join(f"{mode} {_number(count)}" for mode, count in self.counts.items())
            lines.append(f"multiplications: {shown}")
            if self.assumed:
                lines.append("    (compared with " + ", ".join(f"{n} = {s}" for n, s in self.assumed.items()) + ")")
        if self.passes["forward"] != self.passes["reverse"]:
            lines.append("passes: " + ", ".join(f"{mode} {_number(count)}" for mode, count in self.passes.items()))
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _plain(count: Size) -> int | str:
    return count if isinstance(count, int) else str(count)


def _number(count: Size) -> str:
    return f"{count:,}" if isinstance(count, int) else str(count)


def bracketing(
    program: NamedProgram, wrt: Sequence[str], sizes: Mapping[str, int] | None = None, seeded: bool = False
) -> Bracketing:
    """Counts a program's chain in every mode; ``seeded`` with a cotangent of the output.

    Raises:
        UnsupportedOpError: a local derivative has no matrix form.
    """
    chain = chain_of(program, wrt, seeded)
    best = best_order(chain, sizes)
    orders = {"forward": forward_order(chain), "reverse": reverse_order(chain), "best": best}
    counts = {mode: chain.cost(order) for mode, order in orders.items()}
    names = sorted({n for c in counts.values() if isinstance(c, Dim) for n in c.names})
    assumed = {n: (sizes or {}).get(n, STAND_IN) for n in names}
    return Bracketing(counts, best, passes(program, wrt, seeded), assumed)


def passes(program: NamedProgram, wrt: Sequence[str], seeded: bool = False) -> dict[str, Size]:
    """Sweeps over the program: one per element of the variables going forward, per element of the output in reverse.

    With a cotangent (``seeded``) reverse mode takes one.
    """
    forward: Size = 0
    for w in wrt:
        forward = forward + product(program.symbol[w].shape)
    return {"forward": forward, "reverse": 1 if seeded else product(program.symbol[program.output].shape)}
