"""From a formula's graph to one that is written line by line: what a careful programmer does before typing.

Composites without words are written out; stable forms replace naive ones (``Op.stable``); products of several factors
become products of two in the cheapest order (vectors before matrices), and inverses in them become solves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chainrule.backends.source.languages import Language
from chainrule.ir import Dim, Graph, Node, apply, rebuild
from chainrule.ir.dims import substitute
from chainrule.ops.contraction import einsum
from chainrule.ops.stable import LIMIT

_STAND_IN = 16  # for a size that is a name
_MOST_FACTORS = 10  # for which every order is tried
_ROUNDS = 4

Indices = tuple[int, ...]
Factor = tuple[Node, Indices]


def lower(graph: Graph, language: Language, derivative: bool = False) -> Graph:
    """An equal graph to be written in a language; names follow.

    Args:
        derivative: it is one, so that limits apply (``ops/stable.py``) where a value would be what it is.
    """
    graph = _composites_written_out(graph, language)
    graph = _in_pairs(_merged(stable(graph, derivative)))
    return _merged(stable(graph, derivative), views_only=True)


def _composites_written_out(graph: Graph, language: Language) -> Graph:
    def expand(node: Node, inputs: tuple[Node, ...]) -> Node:
        if language.words(node.op) is not None or node.op.expansion is None:
            return _same(node, inputs)
        body = node.op.expansion(*inputs, **node.params)
        return rebuild([body], expand)[body]

    return graph.map(rebuild(graph.outputs, expand))


def _same(node: Node, inputs: tuple[Node, ...]) -> Node:
    return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)


def stable(graph: Graph, derivative: bool = False) -> Graph:
    """The graph with naive forms replaced by stable ones; for a derivative, quotients by their limits as well."""

    def replace(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = _same(node, inputs)
        for _ in range(_ROUNDS):
            rules = [r for r in new.op.stable if derivative or r.name != LIMIT]
            found = next((f for r in rules if (f := r.rule(new)) is not None and f.type == new.type), None)
            if found is None:
                return new
            new = found
        return new

    return graph.map(rebuild(graph.outputs, replace))


# ---- products ----------------------------------------------------------------------------------------------
def _merged(graph: Graph, views_only: bool = False) -> Graph:
    """Products of products as one product, where the inner one has no name and no other use."""
    uses = Counter(i for node in graph.nodes for i in node.inputs)
    kept = {*graph.outputs, *graph.names.values()}
    # What may be merged into its user, by what it has become.
    open_: set[Node] = set()

    def replace(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = _same(node, inputs)
        if "operands" in new.params:
            new = _with_inner(new, open_)
            view = "operands" in new.params and tuple(map(sorted, new.params["operands"])) == (
                sorted(new.params["result"]),
            )
            if node not in kept and (view or (uses[node] == 1 and not views_only)):
                open_.add(new)
        return new

    return graph.map(rebuild(graph.outputs, replace))


def _with_inner(node: Node, open_: set[Node]) -> Node:
    factors: list[Factor] = []
    fresh = max([-1, *(i for o in node.params["operands"] for i in o)]) + 1
    for x, own in zip(node.inputs, node.params["operands"], strict=True):
        if x not in open_ or "operands" not in x.params or len(node.inputs) + len(x.inputs) > _MOST_FACTORS:
            factors.append((x, own))
            continue
        names = dict(zip(x.params["result"], own, strict=True))
        for inner, indices in zip(x.inputs, x.params["operands"], strict=True):
            for i in indices:
                if i not in names:
                    names[i], fresh = fresh, fresh + 1
            factors.append((inner, tuple(names[i] for i in indices)))
    return einsum(([f[1] for f in factors], node.params["result"]), *(f[0] for f in factors))


def _in_pairs(graph: Graph) -> Graph:
    """Every product as products of two, after diagonals and sums within one factor."""

    def replace(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = _same(node, inputs)
        if "operands" not in new.params or len(new.inputs) < 2:
            return new
        factors = list(zip(new.inputs, new.params["operands"], strict=True))
        return _contracted(factors, new.params["result"])

    return graph.map(rebuild(graph.outputs, replace))


def _contracted(factors: Sequence[Factor], result: Indices) -> Node:
    ready: list[Factor] = []
    for k, (x, own) in enumerate(factors):
        elsewhere = {i for n, (_, o) in enumerate(factors) if n != k for i in o}
        kept = tuple(i for i in dict.fromkeys(own) if i in elsewhere or i in result)
        ready.append((x if kept == own else einsum(([own], kept), x), kept))
    sizes = {i: _number(s) for x, own in ready for i, s in zip(own, x.shape, strict=True)}
    while len(ready) > _MOST_FACTORS:  # too many to try all orders
        pairs = [(a, b) for b in range(len(ready)) for a in range(b)]
        a, b = min(pairs, key=lambda p: _volume({*ready[p[0]][1], *ready[p[1]][1]}, sizes))
        rest = [f for k, f in enumerate(ready) if k not in (a, b)]
        needed = {*result, *(i for _, own in rest for i in own)}
        ready = [*rest, _pair(ready[a], ready[b], tuple(i for i in _union(ready[a], ready[b]) if i in needed))]
    found, own = _best_order(ready, result, sizes)
    return found if own == result else einsum(([own], result), found)


def _best_order(factors: Sequence[Factor], result: Indices, sizes: dict[int, int]) -> Factor:
    """The cheapest tree of products of two, by dynamic programming over subsets."""
    count = len(factors)
    whole = (1 << count) - 1

    def needed(subset: int) -> set[int]:
        return {*result, *(i for k in range(count) if not subset >> k & 1 for i in factors[k][1])}

    indices = {1 << k: f[1] for k, f in enumerate(factors)}
    cost = {1 << k: 0 for k in range(count)}
    split: dict[int, int] = {}
    for subset in range(1, whole + 1):
        if subset in cost:
            continue
        first = subset & -subset  # the first factor stays on the left, so that each split is seen once
        left = (subset - 1) & subset
        while left:
            if left & first:
                right = subset ^ left
                price = cost[left] + cost[right] + _volume({*indices[left], *indices[right]}, sizes)
                if subset not in cost or price < cost[subset]:
                    cost[subset], split[subset] = price, left
            left = (left - 1) & subset
        kept = needed(subset)
        union = dict.fromkeys((*indices[split[subset]], *indices[subset ^ split[subset]]))
        indices[subset] = result if subset == whole else tuple(i for i in union if i in kept)

    def build(subset: int) -> Factor:
        if subset not in split:
            return factors[subset.bit_length() - 1]
        return _pair(build(split[subset]), build(subset ^ split[subset]), indices[subset])

    return build(whole)


def _pair(a: Factor, b: Factor, result: Indices) -> Factor:
    return einsum(([a[1], b[1]], result), a[0], b[0]), result


def _union(a: Factor, b: Factor) -> Indices:
    return tuple(dict.fromkeys((*a[1], *b[1])))


def _volume(indices: set[int], sizes: dict[int, int]) -> int:
    volume = 1
    for i in indices:
        volume *= sizes[i]
    return volume


def _number(size: int | Dim) -> int:
    if isinstance(size, Dim):
        size = substitute(size, dict.fromkeys(size.names, _STAND_IN))
    return max(int(size), 1)
