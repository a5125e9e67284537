"""What a value costs: multiplications, and bytes.

Reads ``Op.cost``; a composite without one is counted by its expansion. An einsum of more than two operands is counted
in the cheapest pairwise order, which is how back ends run it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.ir import Dim, Node, TensorType, product, toposort


def multiplications(outputs: Sequence[Node], stop: Callable[[Node], bool] | None = None) -> int | Dim:
    """Multiplications (and divisions and function values) to compute ``outputs``; nodes at ``stop`` are free."""
    total: int | Dim = 0
    for node in toposort(outputs, stop):
        if node.inputs and not (stop and stop(node)):
            total = total + _of_node(node)
    return total


def _of_node(node: Node) -> int | Dim:
    if node.op.cost is None:
        if node.op.expansion is None:
            return 0
        leaves = set(node.inputs)
        return multiplications([node.op.expansion(*node.inputs, **node.params)], stop=lambda n: n in leaves)
    operands = node.params.get("operands")
    if operands is not None and len(operands) > 2:
        return _pairwise(node)
    return node.op.cost(node.type, *(i.type for i in node.inputs), **node.params)


def _pairwise(node: Node) -> int | Dim:
    """The cost of contracting two operands at a time, greedily the cheapest pair first (names count as 16)."""
    sizes = {
        i: s for n, o in zip(node.inputs, node.params["operands"], strict=True) for i, s in zip(o, n.shape, strict=True)
    }
    parts = [frozenset(o) for o in node.params["operands"]]
    result = set(node.params["result"])
    total: int | Dim = 0
    while len(parts) > 1:
        pairs = [(a, b) for a in range(len(parts)) for b in range(a)]
        a, b = min(pairs, key=lambda p: _weight([sizes[i] for i in parts[p[0]] | parts[p[1]]]))
        union = parts[a] | parts[b]
        total = total + product([sizes[i] for i in union])
        rest = [p for k, p in enumerate(parts) if k not in (a, b)]
        needed = result.union(*rest) if rest else result
        parts = [*rest, frozenset(i for i in union if i in needed)]
    return total


def _weight(sizes: Sequence[int | Dim]) -> int:
    weight = 1
    for size in sizes:
        weight *= size if isinstance(size, int) else 16
    return weight


def nbytes(nodes: Sequence[Node]) -> int | Dim:
    """Bytes of the values of distinct nodes."""
    total: int | Dim = 0
    for node in dict.fromkeys(nodes):
        if isinstance(node.type, TensorType):
            total = total + node.type.nbytes
    return total
