"""Products of several tensors as products of two, in the cheapest order, using what is computed anyway.

``rowsum(P * (G @ V'))`` is the contraction ``P_ij G_ik V_jk`` over j and k: with ``O = P @ V`` at hand it is
``rowsum(G * O)``, and with ``G @ V'`` at hand a sum over the larger matrix. Every contraction is flattened into its
factors, all orders are compared (dynamic programming over subsets), and pairs that exist already cost nothing. Of long
products the pair that shrinks most is taken first.

Source: Lam, Sadayappan, Wenger 1997 (order of contractions by subsets).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from math import prod

from chainrule.interpreters.cost import multiplications
from chainrule.interpreters.residuals import is_view, number
from chainrule.interpreters.terms import Algebra, contract
from chainrule.ir import OPS, Node, apply, constant, rebuild, toposort
from chainrule.ops.contraction import einsum
from chainrule.ops.movement import expand_dims

Indices = tuple[int, ...]
_Operand = tuple[Node, Indices]
_Plan = tuple[float, int, Node, Indices]  # cost, operations, value, its indices

_MOST = 9  # operands whose orders are all compared; more are taken greedily
_TRANSPOSED = 3  # dimensions up to which a known product is also recognised transposed


def pairwise(outputs: Sequence[Node], known: Iterable[Node], sizes: Mapping[str, int]) -> list[Node]:
    """``outputs`` with every contraction as products of two operands.

    Args:
        outputs: in order of computation; what one computes is at hand for the next.
        known: values that are at hand without cost. sizes: numbers for named dimensions.
    """
    order = _Order(known, sizes)
    return [order.of(node) for node in outputs]


class _Order:
    def __init__(self, known: Iterable[Node], sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.known: set[Node] = set()
        self.pairs: set[frozenset[Node]] = set()  # operands, behind views, of products at hand
        self._remember(known)
        self.image: dict[Node, Node] = {n: n for n in self.known}

    def _remember(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self.known.add(node)
            self.pairs |= {frozenset(map(_behind_views, (*node.inputs, *node.inputs)[:2]))} if node.inputs else set()

    def of(self, output: Node) -> Node:
        """The output in its cheapest order; what it computes is at hand afterwards."""
        found = rebuild([output], self._replace, self.image)[output]
        # Once more with its own elementwise products at hand: a sum of one of them needs no product of its own.
        before = set(self.known), set(self.pairs)
        self._remember(n for n in toposort([found]) if n.op.family == "elementwise" and n.op.terms is not None)
        again = rebuild([output], self._replace, self.image)[output]
        self.known, self.pairs = before
        found = min((found, again), key=self._price)
        self.image[output] = found
        self._remember(toposort([found]))
        return found

    def _replace(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        operands = new.params.get("operands")
        if new in self.known:
            return new
        if operands is None:
            return self._rows_first(new)
        candidates = []
        if len(operands) > 1:
            candidates.append(self._contracted(list(zip(new.inputs, operands, strict=True)), new.params["result"]))
        flat = self._flattened(new)
        if flat is not None:
            coefficient, factors, result = flat
            candidates.append(self._scaled(coefficient, self._contracted(factors, result)))
        found = [c for c in candidates if c is not None and c.shape == new.shape]
        return min(found, key=self._price, default=new)

    def _rows_first(self, node: Node) -> Node:
        """An elementwise product with its small factors multiplied before they meet the large ones."""
        if node.op.family != "elementwise" or node.op.terms is None or node.type.rank == 0:
            return node
        algebra = Algebra(sums_are_atoms=True)
        free = algebra.indices_of(node.type)
        terms = algebra.expand(node, free)
        if len(terms) != 1 or terms[0].summed or len(terms[0].factors) < 3:
            return node
        groups: dict[Indices, list[tuple[Node, float]]] = {}
        if abs(terms[0].coefficient) != 1:
            groups[()] = [(constant(float(abs(terms[0].coefficient)), node.type.dtype), 1.0)]
        for f in terms[0].factors:
            own = tuple(i for i in free if i in f.indices)
            if own != f.indices or abs(f.power) != 1:
                return node
            groups.setdefault(own, []).append((f.atom, float(f.power)))
        found: _Operand | None = None
        for own in sorted(groups, key=len):
            found = _times(found, (_product(groups[own]), own), free)
        if found is None or found[0].shape != node.shape:
            return node
        signed = -found[0] if terms[0].coefficient < 0 else found[0]
        return min((node, signed), key=self._price)

    def _price(self, node: Node) -> tuple[float, int]:
        """What is not at hand: multiplications, then nodes."""
        stop = self.known.__contains__
        missing = [n for n in toposort([node], stop) if n.inputs and n not in self.known]
        return number(multiplications([node], stop), self.sizes), len(missing)

    def _flattened(self, node: Node) -> tuple[float, list[_Operand], Indices] | None:
        """A contraction of contractions as one product of factors, or None where it is no single plain product."""
        algebra = Algebra()
        free = algebra.indices_of(node.type)
        terms = algebra.expand(node, free)
        if len(terms) != 1:
            return None
        term = contract(terms[0], algebra)
        factors: list[_Operand] = []
        for f in term.factors:
            indices = tuple(i for i in f.indices if i is not None)
            if f.power != 1 or len(indices) != len(f.indices) or len(set(indices)) != len(indices):
                return None
            factors.append((f.atom, indices))
        used = {i for _, own in factors for i in own}
        tensors = [f for f in factors if f[1]]
        if len(tensors) < 2 or not set(free) <= used:
            return None
        return float(term.coefficient), factors, free

    def _scaled(self, coefficient: float, node: Node | None) -> Node | None:
        if node is None or coefficient == 1:
            return node
        return -node if coefficient == -1 else constant(coefficient, node.type.dtype) * node

    # ---- one contraction -----------------------------------------------------------------------------------
    def _contracted(self, operands: list[_Operand], result: Indices) -> Node | None:
        scalars = [node for node, own in operands if not own]
        tensors = [(node, own) for node, own in operands if own]
        if any(len(set(own)) != len(own) for _, own in tensors) or not tensors:
            return None
        size: dict[int, float] = {}
        for node, own in tensors:
            size.update((i, number(s, self.sizes)) for i, s in zip(own, node.shape, strict=True))
        if not set(result) <= set(size):
            return None
        core = (self._best if len(tensors) <= _MOST else self._greedy)(tensors, result, size)
        for node in scalars:
            core = node * core
        return core

    def _best(self, tensors: list[_Operand], result: Indices, size: Mapping[int, float]) -> Node:
        count = len(tensors)
        uses = [set(own) for _, own in tensors]
        best: dict[int, _Plan] = {}
        for k, (node, own) in enumerate(tensors):
            kept = self._kept(1 << k, uses, result)
            best[1 << k] = (0.0, 0, node, own) if kept == set(own) else self._summed(node, own, kept)
        for subset in sorted(range(1, 1 << count), key=int.bit_count):
            if subset in best:
                continue
            kept = self._kept(subset, uses, result)
            part = (subset - 1) & subset
            while part:
                rest = subset ^ part
                if part > rest:
                    plan = self._pair(best[part], best[rest], kept, result, size)
                    if subset not in best or plan[:2] < best[subset][:2]:
                        best[subset] = plan
                part = (part - 1) & subset
        _, _, node, own = best[(1 << count) - 1]
        return node if own == result else einsum(([own], result), node)

    def _greedy(self, tensors: list[_Operand], result: Indices, size: Mapping[int, float]) -> Node:
        """The pair whose product is smallest beside its operands first, then the next."""
        uses = [set(own) for _, own in tensors]
        plans: dict[int, _Plan] = {}
        for k, (node, own) in enumerate(tensors):
            kept = self._kept(1 << k, uses, result)
            plans[1 << k] = (0.0, 0, node, own) if kept == set(own) else self._summed(node, own, kept)
        scores: dict[tuple[int, int], tuple[bool, float, float, int, int]] = {}
        while len(plans) > 1:
            subsets = list(plans)
            for n, a in enumerate(subsets):
                for b in subsets[n + 1 :]:
                    if (a, b) not in scores:
                        ia, ib = set(plans[a][3]), set(plans[b][3])
                        grows = prod(size[i] for i in self._kept(a | b, uses, result))
                        grows -= prod(size[i] for i in ia) + prod(size[i] for i in ib)
                        scores[a, b] = (not ia & ib, grows, prod(size[i] for i in ia | ib), a, b)
            *_, a, b = min(scores[a, b] for n, a in enumerate(subsets) for b in subsets[n + 1 :])
            kept = self._kept(a | b, uses, result)
            plan = self._pair(plans.pop(a), plans.pop(b), kept, result, size)
            plans[a | b] = plan
        ((_, _, node, own),) = plans.values()
        return node if own == result else einsum(([own], result), node)

    def _kept(self, subset: int, uses: list[set[int]], result: Indices) -> set[int]:
        inside = set().union(*(u for k, u in enumerate(uses) if subset >> k & 1))
        outside = set(result).union(*(u for k, u in enumerate(uses) if not subset >> k & 1))
        return inside & outside

    def _summed(self, node: Node, own: Indices, kept: set[int]) -> _Plan:
        left = tuple(i for i in own if i in kept)
        return 0.0, 1, einsum(([own], left), node), left

    def _pair(self, a: _Plan, b: _Plan, kept: set[int], result: Indices, size: Mapping[int, float]) -> _Plan:
        cost, steps, x, ix = a
        other_cost, other_steps, y, iy = b
        cost, steps = cost + other_cost, steps + other_steps + 1
        at_hand = frozenset((_behind_views(x), _behind_views(y))) in self.pairs
        for value, own in self._spellings((x, ix), (y, iy), kept, result) if at_hand else ():
            if value in self.known:
                return cost, steps - 1, value, own
            if "operands" in value.params and len(value.inputs) == 1 and value.inputs[0] in self.known:
                return cost, steps, value, own  # the sum of a product at hand
        value, own = next(self._spellings((x, ix), (y, iy), kept, result))
        return cost + prod(size[i] for i in {*ix, *iy}), steps, value, own

    def _spellings(self, a: _Operand, b: _Operand, kept: set[int], result: Indices) -> Iterator[_Operand]:
        """The ways to write one product of two operands, the preferred one first."""
        (x, ix), (y, iy) = sorted((a, b), key=lambda o: -len(o[1]))
        summed = (set(ix) | set(iy)) - kept
        if set(iy) <= set(ix) and (not summed or set(iy) == set(ix)):  # elementwise, then a sum
            for first, second in ((x, _aligned(y, iy, ix)), (_aligned(y, iy, ix), x)):
                whole = apply(OPS["mul"], first, second)
                left = tuple(i for i in ix if i in kept)
                yield (whole, ix) if not summed else (einsum(([ix], left), whole), left)
            return
        if set(iy) <= set(ix):
            for first, second in ((x, _aligned(y, iy, ix)), (_aligned(y, iy, ix), x)):
                whole = apply(OPS["mul"], first, second)
                left = tuple(i for i in ix if i in kept)
                if whole in self.known and left != ix:
                    yield einsum(([ix], left), whole), left
        wanted = tuple(i for i in result if i in kept)
        natural = wanted if set(wanted) == kept else tuple(dict.fromkeys(i for i in (*ix, *iy) if i in kept))
        orders = [natural]
        if len(kept) <= _TRANSPOSED:
            orders += [o for o in permutations(natural) if o != natural]
        for own in orders:
            for pair in ((a, b), (b, a)):
                yield einsum(([o for _, o in pair], own), *(n for n, _ in pair)), own


def _behind_views(node: Node) -> Node:
    while is_view(node):
        node = node.inputs[0]
    return node


def _product(factors: Sequence[tuple[Node, float]]) -> Node:
    """The product of values of one shape, the divisors at the end."""
    above = [node for node, power in factors if power > 0]
    below = [node for node, power in factors if power < 0]

    def product_of(nodes: Sequence[Node]) -> Node | None:
        total: Node | None = None
        for node in nodes:
            total = node if total is None else total * node
        return total

    top, bottom = product_of(above), product_of(below)
    if bottom is None:
        assert top is not None
        return top
    return 1.0 / bottom if top is None else top / bottom


def _times(a: _Operand | None, b: _Operand, free: Indices) -> _Operand:
    if a is None:
        return b
    union = tuple(i for i in free if i in a[1] or i in b[1])
    return apply(OPS["mul"], _aligned(b[0], b[1], union), _aligned(a[0], a[1], union)), union


def _aligned(node: Node, own: Indices, target: Indices) -> Node:
    """``node`` with its dimensions in the order of ``target``, and a 1 for each that it lacks behind its first."""
    if not own:
        return node
    order = tuple(own.index(i) for i in target if i in own)
    if order != tuple(range(len(own))):
        node = einsum(([tuple(range(len(own)))], order), node)
    first = next(a for a, i in enumerate(target) if i in own)
    missing = tuple(a - first for a, i in enumerate(target) if i not in own and a > first)
    return expand_dims(node, missing) if missing else node
