"""Save or recompute: which values of a forward pass its backward pass keeps.

Every value of the forward pass that the backward pass needs is either kept (its bytes, at a price) or computed again
(its operations, and then what it is made of must be at hand as well). The cheapest choice of all is a minimum cut:
each value is an edge of the capacity of keeping it, entered by an edge of the capacity of computing it, and what is
computed again pulls in its inputs. Reads types, ``Op.cost`` and the shape of a contraction; knows no op by name.

Source: Picard 1976 (closure problems are minimum cuts); Dinic 1970 (the flow).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from chainrule.interpreters.cost import multiplications
from chainrule.ir import Dim, Node, TensorType, toposort
from chainrule.ir.dims import substitute

# Operations that are worth one byte: what processors compute in the time of moving a byte (float32, without matrix
# units: 5 to 10). An element of four bytes is then kept if it costs more than 32 operations.
BALANCE = 8.0
# Inputs and outputs are mostly alive outside anyway; a value of our own is not.
_SHARED = 0.5
_RAISES = 40
_INFINITE = float("inf")


@dataclass(frozen=True)
class Residuals:
    """What is kept between the passes.

    Attributes:
        kept: inputs first, then values of the forward pass in order of computation.
        recomputed: values that the backward pass computes again, in order.
        balance: operations per byte at which the choice was made; higher than asked where a budget forced it.
    """

    kept: tuple[Node, ...]
    recomputed: tuple[Node, ...]
    balance: float


def choose(
    forward: Sequence[Node],
    backward: Sequence[Node],
    cotangents: Collection[Node],
    sizes: Mapping[str, int],
    element: int = 4,
    balance: float = BALANCE,
    budget: float | None = None,
) -> Residuals:
    """The cheapest residuals for a backward pass.

    Args:
        forward: outputs of the forward pass. backward: outputs of the backward pass, in terms of forward values.
        cotangents: leaves that only the backward pass has.
        sizes: numbers for named dimensions, by which costs are compared.
        element: bytes of a floating-point number.
        balance: operations that are worth one byte.
        budget: bytes that may be kept; the balance is raised until it is met, or nothing more can be saved.

    >>> from chainrule.ir import TensorType, variable
    >>> from chainrule.ops.contraction import einsum
    >>> W, x, g = (variable(n, TensorType((1000,) * rank)) for n, rank in (("W", 2), ("x", 1), ("g", 1)))
    >>> z = einsum("ij,j->i", W, x)
    >>> [n.op.name for n in choose([z * z], [2.0 * g * z], {g}, {}).kept]  # a product of matrix and vector is dear
    ['einsum']
    >>> found = choose([x * x + x**3.0], [g * (2.0 * x + 3.0 * x**2.0)], {g}, {})
    >>> [n.params["name"] for n in found.kept], [n.op.name for n in found.recomputed]
    (['x'], ['mul', 'pow', 'mul', 'add'])
    """
    problem = _Problem(forward, backward, set(cotangents), sizes, element)
    found = problem.solve(balance)
    for _ in range(_RAISES):
        if budget is None or problem.bytes_of(found.kept) <= budget:
            break
        again = problem.solve(found.balance * 2)
        if again.kept != found.kept and problem.bytes_of(again.kept) >= problem.bytes_of(found.kept):
            break
        found = again
    return found


def is_view(node: Node) -> bool:
    """Whether a value is another one's elements in place: never worth keeping by itself."""
    if len(node.inputs) != 1:
        return False
    operands = node.params.get("operands")
    return node.op.family == "linear" or (operands is not None and set(operands[0]) == set(node.params["result"]))


def operations(node: Node, sizes: Mapping[str, int]) -> float:
    """What it takes to compute one node from its inputs: multiplications, and elements read by a reduction."""
    inputs = set(node.inputs)
    work = number(multiplications([node], stop=lambda n: n in inputs), sizes)
    largest = max((elements(i, sizes) for i in node.inputs), default=0.0)
    return max(work, largest) if elements(node, sizes) < largest and not is_view(node) else work


def elements(node: Node, sizes: Mapping[str, int]) -> float:
    """The number of elements of a value."""
    return number(node.type.numel, sizes) if isinstance(node.type, TensorType) else 0.0


def number(size: int | Dim, sizes: Mapping[str, int]) -> float:
    """A size as a number; names that ``sizes`` does not know count as 64."""
    known = substitute(size, sizes)
    if isinstance(known, Dim):
        known = substitute(known, dict.fromkeys(known.names, 64))
    return float(known) if not isinstance(known, Dim) else 0.0


class _Problem:
    def __init__(
        self,
        forward: Sequence[Node],
        backward: Sequence[Node],
        cotangents: set[Node],
        sizes: Mapping[str, int],
        element: int,
    ) -> None:
        self.sizes, self.element, self.outputs = sizes, element, set(forward)
        self.computed = set(toposort(forward))
        self.order = toposort(backward)
        varies: set[Node] = set()  # reached by an input of the forward pass
        late: set[Node] = set()  # reached by a cotangent
        for node in self.order:
            if node in cotangents or any(i in late for i in node.inputs):
                late.add(node)
            elif (node.is_leaf and "name" in node.params) or any(i in varies for i in node.inputs):
                varies.add(node)
        self.early = [n for n in self.order if n in varies]
        self.wanted = {i for n in late for i in n.inputs if i in varies} | {n for n in backward if n in varies}

    def bytes_of(self, nodes: Sequence[Node]) -> float:
        return sum(elements(n, self.sizes) * self._width(n) for n in nodes)

    def _width(self, node: Node) -> int:
        return self.element if node.type.is_float else 1

    def solve(self, balance: float) -> Residuals:
        """One cut. A value has an edge from ``made`` to ``at hand``; the source side is what the forward pass has."""
        source, sink = 0, 1
        made = {n: 2 + 2 * k for k, n in enumerate(self.early)}
        flow = _Flow(2 + 2 * len(self.early))
        for node in self.early:
            keeping = balance * elements(node, self.sizes) * self._width(node)
            if node.is_leaf or node in self.outputs:
                keeping *= _SHARED
            # What the forward pass does not compute by itself is not moved into it, but for signs and comparisons.
            beside = (n for n in toposort([node], self.computed.__contains__) if n not in self.computed)
            moved = any(operations(n, self.sizes) for n in beside)
            keepable = isinstance(node.type, TensorType) and not is_view(node) and not moved
            flow.edge(made[node], made[node] + 1, keeping if keepable else _INFINITE)
            again = _INFINITE if node.is_leaf or not node.op.pure else operations(node, self.sizes)
            flow.edge(source, made[node], again)
            for i in node.inputs:
                if i in made:
                    flow.edge(made[i] + 1, made[node], _INFINITE)
            if node in self.wanted:
                flow.edge(made[node] + 1, sink, _INFINITE)
        before = flow.side(source, sink)
        # ``at hand`` beyond the cut: needed. ``made`` beyond the cut as well: computed again, else kept.
        needed = [n for n in self.early if made[n] + 1 not in before]
        kept = [n for n in needed if made[n] in before]
        kept.sort(key=lambda n: not n.is_leaf)
        return Residuals(tuple(kept), tuple(n for n in needed if made[n] not in before), balance)


class _Flow:
    """Maximum flow by layers. Infinite capacities are allowed on edges, not on a whole path."""

    def __init__(self, size: int) -> None:
        self.edges: list[tuple[int, int]] = []
        self.left: list[float] = []
        self.at: list[list[int]] = [[] for _ in range(size)]

    def edge(self, start: int, end: int, capacity: float) -> None:
        for a, b, c in ((start, end, capacity), (end, start, 0.0)):
            self.at[a].append(len(self.edges))
            self.edges.append((a, b))
            self.left.append(c)

    def side(self, source: int, sink: int) -> set[int]:
        """The sink's complement of a minimum cut that keeps as late as it can: what cannot reach the sink."""
        while True:
            level = self._levels(source)
            if sink not in level:
                break
            start = [0] * len(self.at)
            while self._push(source, sink, _INFINITE, level, start) > 0:
                pass
        reaches, queue = {sink}, deque([sink])
        while queue:
            for e in self.at[queue.popleft()]:
                before = self.edges[e][1]
                if self.left[e ^ 1] > 1e-9 and before not in reaches:
                    reaches.add(before)
                    queue.append(before)
        return set(range(len(self.at))) - reaches

    def _levels(self, source: int) -> dict[int, int]:
        level, queue = {source: 0}, deque([source])
        while queue:
            at = queue.popleft()
            for e in self.at[at]:
                if self.left[e] > 1e-9 and self.edges[e][1] not in level:
                    level[self.edges[e][1]] = level[at] + 1
                    queue.append(self.edges[e][1])
        return level

    def _push(self, source: int, sink: int, limit: float, level: Mapping[int, int], start: list[int]) -> float:
        """One augmenting path along the layers, found without recursion: graphs may be deep."""
        path: list[int] = []
        at = source
        while at != sink:
            while start[at] < len(self.at[at]):
                e = self.at[at][start[at]]
                if self.left[e] > 1e-9 and level.get(self.edges[e][1]) == level[at] + 1:
                    break
                start[at] += 1
            if start[at] < len(self.at[at]):
                path.append(self.at[at][start[at]])
                at = self.edges[path[-1]][1]
            elif path:
                at = self.edges[path.pop()][0]
                start[at] += 1
            else:
                return 0.0
        amount = min([limit, *(self.left[e] for e in path)])
        for e in path:
            self.left[e] -= amount
            self.left[e ^ 1] += amount
        return amount
