"""How an op reads its operands: where each element of a result comes from.

``Op.native`` says which reading an op has: a function (elementwise), or one of the words here. Views only move the
index; accumulations reduce a body over extra indices; placements are parts of a larger buffer; the rest computes
values from indices. Where an index goes is said here alone; other files ask for a word only where they treat one kind
of reading specially.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.backends.native.values import Affine
from chainrule.ir import Node

Index = tuple[Affine, ...]
ZERO = Affine()


def sizes(node: Node) -> tuple[int, ...]:
    """The shape of a node of a traced model, where every size is a number."""
    return node.shape  # type: ignore[return-value]


def is_elementwise(node: Node) -> bool:
    """Whether the op's native form is a function of its operands' elements."""
    return callable(node.op.native)


def broadcast_index(x: Node, shape: Sequence[Any], index: Index) -> Index:
    """Where an operand is read that broadcasts to ``shape``."""
    shift = len(shape) - x.type.rank
    return tuple(ZERO if size == 1 and shape[shift + a] != 1 else index[shift + a] for a, size in enumerate(sizes(x)))


# ---- views -------------------------------------------------------------------------------------------------
def _broadcast(node: Node, index: Index) -> Index:
    return broadcast_index(node.inputs[0], sizes(node), index)


def _expand_dims(node: Node, index: Index) -> Index:
    return tuple(i for a, i in enumerate(index) if a not in node.params["axes"])


def _squeeze(node: Node, index: Index) -> Index:
    rest = iter(index)
    return tuple(ZERO if a in node.params["axes"] else next(rest) for a in range(node.inputs[0].type.rank))


def _slice(node: Node, index: Index) -> Index:
    return tuple(
        i * step + start for i, start, step in zip(index, node.params["starts"], node.params["steps"], strict=True)
    )


def _flip(node: Node, index: Index) -> Index:
    shape = sizes(node)
    return tuple(i * -1 + (shape[a] - 1) if a in node.params["axes"] else i for a, i in enumerate(index))


def _permuted(node: Node, index: Index) -> Index:
    result = node.params["result"]
    return tuple(index[result.index(i)] for i in node.params["operands"][0])


def _split(node: Node, index: Index) -> Index:
    groups = reshape_groups(sizes(node.inputs[0]), sizes(node))
    out: list[Affine] = []
    for inside, outside in groups:
        total, stride = ZERO, 1
        for a in reversed(outside):
            total, stride = total + index[a] * stride, stride * sizes(node)[a]
        # At most one dimension of the operand is larger than 1 here.
        out += [total if sizes(node.inputs[0])[a] != 1 or len(inside) == 1 else ZERO for a in inside]
    return tuple(out)


_VIEWS: dict[str, Callable[[Node, Index], Index]] = {
    "broadcast": _broadcast,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "slice": _slice,
    "flip": _flip,
    "contraction": _permuted,
    "reshape": _split,
}


def reshape_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions (of the operand, of the result) that hold the same elements."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        inside, outside = [], []
        a = b = 1
        if i < len(before):
            inside.append(i)
            a, i = before[i], i + 1
        if j < len(after):
            outside.append(j)
            b, j = after[j], j + 1
        while a != b:
            if a < b:
                inside.append(i)
                a, i = a * before[i], i + 1
            else:
                outside.append(j)
                b, j = b * after[j], j + 1
        groups.append((inside, outside))
    merged: list[tuple[list[int], list[int]]] = []
    for inside, outside in groups:  # a run of ones on one side only belongs to its neighbour
        if merged and (not inside or not outside):
            merged[-1][0].extend(inside)
            merged[-1][1].extend(outside)
        else:
            merged.append((inside, outside))
    return merged


def _merges(node: Node) -> bool:
    before = sizes(node.inputs[0])
    groups = reshape_groups(before, sizes(node))
    return any(sum(before[a] != 1 for a in inside) > 1 for inside, _ in groups)


def is_view(node: Node) -> bool:
    """Whether it only moves the index of its operand, affinely."""
    kind = node.op.native
    if kind == "contraction":
        return len(node.inputs) == 1 and set(node.params["operands"][0]) == set(node.params["result"])
    if kind == "reshape":
        return not _merges(node)
    return isinstance(kind, str) and kind in _VIEWS


def through(node: Node, index: Index) -> Index:
    """Where a view reads its operand."""
    return _VIEWS[node.op.native](node, index)  # type: ignore[index]


# ---- accumulations -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Accumulation:
    """A result that is a sum (or extremum) over extra indices of a product of operands.

    Attributes:
        sizes: of the extra indices. combine: ``"add"``, ``"max"`` or ``"min"``.
        read: ``(index, extra) -> index of each operand``.
    """

    sizes: tuple[int, ...]
    combine: str
    read: Callable[[Index, Index], list[Index]]


def accumulation(node: Node) -> Accumulation | None:
    """How a node accumulates, or None if it does not."""
    rule = _ACCUMULATIONS.get(node.op.native) if isinstance(node.op.native, str) else None
    return rule(node) if rule is not None else None


def _contraction(node: Node) -> Accumulation | None:
    operands, result = node.params["operands"], node.params["result"]
    size: dict[int, int] = {}
    for x, own in zip(node.inputs, operands, strict=True):
        size.update(zip(own, sizes(x), strict=True))
    extra = [i for i in size if i not in result]
    if not extra:
        return None

    def read(index: Index, more: Index) -> list[Index]:
        at = dict(zip(result, index, strict=True)) | dict(zip(extra, more, strict=True))
        return [tuple(at[i] for i in own) for own in operands]

    return Accumulation(tuple(size[i] for i in extra), "add", read)


def _extremum(node: Node) -> Accumulation:
    (x,) = node.inputs
    axes, keep = node.params["axes"], node.params["keepdims"]

    def read(index: Index, more: Index) -> list[Index]:
        rest, extra = iter([i for a, i in enumerate(index) if not (keep and a in axes)]), iter(more)
        return [tuple(next(extra) if a in axes else next(rest) for a in range(x.type.rank))]

    return Accumulation(tuple(sizes(x)[a] for a in axes), str(node.op.native)[1:], read)


def _convolution(node: Node) -> Accumulation | None:
    x, w = node.inputs
    stride, dilation = node.params["stride"], node.params["dilation"]
    rank = len(stride)
    plain = x.type.rank == rank
    if any(node.params["padding"]) or node.params.get("groups", 1) != 1:
        return None

    def read(index: Index, more: Index) -> list[Index]:
        if plain:
            places = [o * s + k * d for o, k, s, d in zip(index, more, stride, dilation, strict=True)]
            return [tuple(places), more]
        b, o, *at = index
        c, *taps = more
        places = [p * s + k * d for p, k, s, d in zip(at, taps, stride, dilation, strict=True)]
        return [(b, c, *places), (o, c, *taps)]

    return Accumulation(tuple(sizes(w)) if plain else tuple(sizes(w)[1:]), "add", read)


_ACCUMULATIONS: dict[str, Callable[[Node], Accumulation | None]] = {
    "contraction": _contraction,
    "amax": _extremum,
    "amin": _extremum,
    "conv": _convolution,
}


def is_product(node: Node) -> bool:
    """An outer product: an einsum of several operands that sums over nothing."""
    return node.op.native == "contraction" and len(node.inputs) > 1 and accumulation(node) is None


def product_reads(node: Node, index: Index) -> list[Index]:
    """Where an outer product reads its operands."""
    at = dict(zip(node.params["result"], index, strict=True))
    return [tuple(at[i] for i in own) for own in node.params["operands"]]


# ---- placements --------------------------------------------------------------------------------------------
def is_placement(node: Node) -> bool:
    """Whether its operands are parts of it: they are computed in place, nothing is copied."""
    return node.op.native in ("pad", "concat") or (node.op.native == "reshape" and _merges(node))


def part(node: Node, k: int, strides: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """(offset, strides) of operand ``k`` inside a placement whose dimensions have these strides."""
    if node.op.native == "pad":
        low, interior = node.params["low"], node.params["interior"]
        return sum(p * s for p, s in zip(low, strides, strict=True)), tuple(
            s * (1 + n) for n, s in zip(interior, strides, strict=True)
        )
    if node.op.native == "concat":
        axis = node.params["axis"]
        return strides[axis] * sum(sizes(x)[axis] for x in node.inputs[:k]), tuple(strides)
    shape = sizes(node.inputs[0])
    out = [0] * len(shape)
    for inside, outside in reshape_groups(shape, sizes(node)):
        # The result's run must have one stride: its layout keeps merged dimensions together.
        stride = next((strides[a] for a in reversed(outside) if sizes(node)[a] != 1), 1)
        for a in reversed(inside):
            out[a], stride = stride, stride * shape[a]
    return 0, tuple(out)


def placement_is_exact(node: Node) -> tuple[bool, ...]:
    """Which dimensions of a placement must not be padded or moved apart: those of a run of several."""
    if node.op.native != "reshape":
        return (False,) * node.type.rank
    out = [False] * node.type.rank
    for inside, outside in reshape_groups(sizes(node.inputs[0]), sizes(node)):
        if (
            len([a for a in outside if sizes(node)[a] != 1]) > 1
            and len([a for a in inside if sizes(node.inputs[0])[a] != 1]) >= 1
        ):
            for a in outside:
                out[a] = True
    return tuple(out)


# ---- scatters and index values -----------------------------------------------------------------------------
def is_scatter(node: Node) -> bool:
    """Whether elements of the first operand are added where an integer operand says."""
    return node.op.native in ("put_sum", "scatter_sum")


def scattered(node: Node, index: Index, place: Any) -> list[Any]:
    """The index of the result that element ``index`` of the first operand is added to; ``place`` is its number."""
    axis = node.params["axis"]
    if node.op.native == "scatter_sum":
        return [place if a == axis else i for a, i in enumerate(index)]
    count = node.inputs[1].type.rank
    return [*index[:axis], place, *index[axis + count :]]


def scatter_place(node: Node, index: Index) -> Index:
    """Where the integer operand of a scatter is read for element ``index`` of the first."""
    if node.op.native == "scatter_sum":
        return index
    axis = node.params["axis"]
    return index[axis : axis + node.inputs[1].type.rank]


def gathered(node: Node, index: Index) -> tuple[Index, int, Index]:
    """(index of the integer operand, axis, index of the first operand without that axis) of a gather or take."""
    axis = node.params["axis"]
    if node.op.native == "gather":
        return index, axis, (*index[:axis], *index[axis + 1 :])
    count = node.inputs[1].type.rank
    return index[axis : axis + count], axis, (*index[:axis], *index[axis + count :])


INDEXED = ("gather", "take")  # read their first operand where the second says
FROM_INDEX = ("one_hot", "eye", "draw", "max_pool_place")  # computed from the index itself


def supported(node: Node) -> bool:
    """Whether this back end has a form for the node."""
    kind = node.op.native
    if kind is None:
        return False
    if callable(kind) or kind in ("input", "constant", *INDEXED, *FROM_INDEX):
        return True
    if kind == "pad":
        return all(p >= 0 for k in ("low", "high") for p in node.params[k])
    return is_view(node) or accumulation(node) is not None or is_product(node) or is_placement(node) or is_scatter(node)
