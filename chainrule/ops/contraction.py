"""The one product: ``einsum``, and the identity matrix ``eye`` that derivatives of it need.

Matrix products, sums, transposes, outer products, traces, diagonals and linear layers are all einsum. Indices are
small integers numbered by first appearance, so that equal contractions are the same node; ``einsum("ij,jk->ik", A, B)``
is the builder, and it takes letters.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    MUL,
    OPS,
    Code,
    Dim,
    Node,
    Op,
    Rewrite,
    Sample,
    TensorType,
    apply,
    product,
    promote,
    register,
    shape_text,
    spelling,
)
from chainrule.ops import stable
from chainrule.ops.contraction_code import written_contraction
from chainrule.ops.contraction_moments import ContractionRule
from chainrule.ops.contraction_torch import contraction_order, torch_contraction
from chainrule.ops.families import leaf, multilinear_jvp
from chainrule.ops.index_letters import Indices, letters, subscripts_text
from chainrule.ops.movement import broadcast, expand_dims, squeeze


def _einsum_sizes(types: Sequence[TensorType], operands: Sequence[Indices]) -> dict[int, int | Dim]:
    sizes: dict[int, int | Dim] = {}
    for type_, indices in zip(types, operands, strict=True):
        if type_.rank != len(indices):
            raise ShapeError(
                f"operand has {type_.rank} dimensions where its subscripts name {len(indices)}",
                given=f"shape ({shape_text(type_.shape)}) for subscripts {letters(indices)!r}",
                required="one letter per dimension",
            )
        for index, size in zip(indices, type_.shape, strict=True):
            if sizes.setdefault(index, size) != size:
                raise ShapeError(
                    "contracted dimensions differ in size",
                    given=" and ".join(f"({shape_text(t.shape)})" for t in types)
                    + f" as {','.join(map(letters, operands))!r}",
                    required=f"one size for index {letters([index])!r}, not {sizes[index]} and {size}",
                )
    return sizes


def _einsum_shape(*types: TensorType, operands: tuple[Indices, ...], result: Indices) -> TensorType:
    sizes = _einsum_sizes(types, operands)
    if len(set(result)) != len(result) or any(i not in sizes for i in result):
        raise ShapeError("each result index occurs once and in an operand", given=subscripts_text(operands, result))
    dtype, device = promote(*types)
    return TensorType(tuple(sizes[i] for i in result), dtype, None, device)


def _einsum_value(*arrays: Any, operands: tuple[Indices, ...], result: Indices) -> Any:
    flat: list[Any] = []
    for array, indices in zip(arrays, operands, strict=True):
        flat += [np.asarray(array), list(indices)]
    return np.einsum(*flat, list(result), optimize=len(arrays) > 2)


@spelling("einsum")
def einsum(subscripts: str | tuple[Sequence[Indices], Indices], *inputs: Node) -> Node:
    """The contraction of ``inputs`` by ``subscripts`` (letters as in NumPy, or integer indices).

    >>> from chainrule.ir import variable, TensorType, Dim
    >>> A = variable("A", TensorType((Dim("m"), Dim("n"))))
    >>> einsum("ij->ji", A).shape
    (n, m)
    """
    if isinstance(subscripts, str):
        raw_operands, raw_result = _read_subscripts(subscripts, len(inputs))
    else:
        raw_operands, raw_result = [tuple(o) for o in subscripts[0]], tuple(subscripts[1])
    number: dict[int, int] = {}
    for index in [i for operand in raw_operands for i in operand]:
        number.setdefault(index, len(number))
    operands = tuple(tuple(number[i] for i in o) for o in raw_operands)
    if any(i not in number for i in raw_result):
        raise ShapeError("einsum: a result index occurs in no operand", given=str(subscripts))
    result = tuple(number[i] for i in raw_result)
    if len(inputs) == 1 and operands[0] == result and len(set(result)) == len(result) == inputs[0].type.rank:
        return inputs[0]
    return apply(EINSUM, *inputs, operands=operands, result=result)


def _read_subscripts(subscripts: str, count: int) -> tuple[list[Indices], Indices]:
    """``"ij,jk->ik"`` as indices, one group per operand."""
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    parts = left.split(",")
    if not arrow or len(parts) != count or not all(c.isalpha() for c in "".join(parts) + right):
        raise ShapeError(
            "einsum: subscripts that do not fit",
            given=f"{subscripts!r} for {count} operand{'s' * (count != 1)}",
            required="letters for each operand, separated by commas, then '->' and those of the result",
            instead="'ij,jk->ik'",
        )
    return [tuple(ord(c) for c in part) for part in parts], tuple(ord(c) for c in right)


def _einsum_vjp(g: Node, y: Node, *xs: Node, operands: tuple[Indices, ...], result: Indices) -> tuple[Node | None, ...]:
    return tuple(_operand_cotangent(g, xs, operands, result, k) if x.type.is_float else None for k, x in enumerate(xs))


def _operand_cotangent(g: Node, xs: tuple[Node, ...], operands: tuple[Indices, ...], result: Indices, k: int) -> Node:
    """The einsum of the cotangent with the other operands.

    An index repeated in the operand needs an identity between its occurrences; an index that only this operand
    has (a plain sum) needs a broadcast.
    """
    x, own = xs[k], operands[k]
    factors: list[tuple[Node, Indices]] = [(g, result)]
    factors += [(xs[j], operands[j]) for j in range(len(xs)) if j != k]
    fresh = max([-1, *(i for o in operands for i in o)]) + 1
    target: list[int] = []
    for axis, index in enumerate(own):
        if index in target:
            factors.append((eye(x.shape[axis], x.type.dtype), (index, fresh)))
            index, fresh = fresh, fresh + 1
        target.append(index)
    have = {i for _, indices in factors for i in indices}
    kept = tuple(i for i in target if i in have)
    cotangent = einsum(([f[1] for f in factors], kept), *(f[0] for f in factors))
    missing = tuple(axis for axis, i in enumerate(target) if i not in have)
    return broadcast(expand_dims(cotangent, missing), x.shape) if missing else cotangent


def contraction_cost(sizes: dict[int, int | Dim], operands: Sequence[Indices]) -> int | Dim:
    """Multiplications of a contraction done in one piece: (operands - 1) per point of the whole index space."""
    return product(list(sizes.values())) * (len(operands) - 1)


def _einsum_cost(_: TensorType, *types: TensorType, operands: tuple[Indices, ...], result: Indices) -> Any:
    return contraction_cost(_einsum_sizes(types, operands), operands)


def _einsum_terms(algebra: Any, node: Node, indices: tuple[Any, ...]) -> Any:
    return algebra.contraction(node.inputs, node.params["operands"], node.params["result"], indices)


def _merge_views(node: Node) -> Node | None:
    """A transpose of a transpose is one permutation. Sums are left: in another order they round differently."""
    pair = (node, *node.inputs[:1])
    summed = any(set(i) != set(n.params["result"]) for n in pair for i in n.params.get("operands", ()))
    return None if summed else _merge(node)


def _merge(node: Node) -> Node | None:
    """Transposes, diagonals and sums of one operand as one einsum."""
    (x, *rest) = node.inputs
    inner = x.params.get("operands")
    if rest or inner is None or len(x.inputs) != 1 or len(set(inner[0])) != len(inner[0]):
        return None
    names = dict(zip(x.params["result"], node.params["operands"][0], strict=True))
    fresh = max([-1, *names.values()]) + 1
    for index in inner[0]:
        if index not in names:
            names[index] = fresh
            fresh += 1
    return einsum(([tuple(names[i] for i in inner[0])], node.params["result"]), x.inputs[0])


EINSUM = register(
    Op(
        "einsum",
        "multilinear",
        shape=_einsum_shape,
        value=_einsum_value,
        vjp=_einsum_vjp,
        jvp=multilinear_jvp,
        terms=_einsum_terms,
        cost=_einsum_cost,
        text=lambda p, node: p.contraction(node),
        latex=lambda p, node: p.contraction(node),
        precedence=MUL,
        torch=lambda node, x: torch_contraction(node, x),
        into=lambda node, x, out: torch_contraction(node, x, out),
        order=lambda node: contraction_order(node),
        aliases=lambda node: len(node.inputs) == 1,  # a transpose is a view
        code=written_contraction,
        stable=(Rewrite(stable.solve_for_inverse),),
        rewrites=(Rewrite(_merge_views, exact=True), Rewrite(_merge)),
        aten={
            "mm": lambda a, b: einsum("ij,jk->ik", a, b),
            "mv": lambda a, b: einsum("ij,j->i", a, b),
            "dot": lambda a, b: einsum("i,i->", a, b),
            "bmm": lambda a, b: einsum("bij,bjk->bik", a, b),
            "t": lambda a: einsum("ij->ji", a) if a.type.rank == 2 else a,
            "numpy_T": lambda a: permute(a, tuple(reversed(range(a.type.rank)))),
            "transpose.int": lambda a, i, j: swap(a, i, j),
            "permute": lambda a, dims: permute(a, tuple(dims)),
            "einsum": lambda equation, tensors, path=None: _from_equation(equation, tensors),
            "mT": lambda a: swap(a, -1, -2),
            "swapaxes": lambda a, i, j: swap(a, i, j),
            "movedim.int": lambda a, source, destination: _moved(a, source, destination),
            "outer": lambda a, b: einsum("i,j->ij", a, b),
            "sum": lambda x, dtype=None: sum_axes(summable(x, dtype)),
            "sum.dim_IntList": lambda x, dim, keepdim=False, dtype=None: sum_axes(
                summable(x, dtype), tuple(dim) if dim else None, keepdim
            ),
        },
        samples=(
            Sample(
                (np.arange(6.0).reshape(2, 3) / 7 - 0.3, np.arange(12.0).reshape(3, 4) / 9 - 0.5),
                {"operands": ((0, 1), (1, 2)), "result": (0, 2)},
            ),
            Sample((np.arange(9.0).reshape(3, 3) / 5 - 0.7,), {"operands": ((0, 0),), "result": ()}),
            Sample((np.arange(9.0).reshape(3, 3) / 5 - 0.7,), {"operands": ((0, 0),), "result": (0,)}),
            Sample((np.arange(6.0).reshape(2, 3) / 7,), {"operands": ((0, 1),), "result": (1,)}),
            Sample(
                (np.arange(6.0).reshape(2, 3) / 7, np.arange(3.0) - 1.2), {"operands": ((0, 1), (1,)), "result": ()}
            ),
            Sample((np.arange(6.0).reshape(2, 3) / 7,), {"operands": ((0, 1),), "result": (1, 0)}),
            Sample(
                (np.arange(3.0) / 7 + 0.1, np.arange(4.0) / 3 - 0.2),
                {"operands": ((0,), (1,)), "result": (1, 0)},
            ),
            Sample(
                (
                    np.arange(6.0).reshape(2, 3) / 7,
                    np.arange(3.0) - 1.2,
                    np.arange(6.0).reshape(2, 3) / 4 - 1,
                ),
                {"operands": ((0, 1), (1,), (0, 1)), "result": (0,)},
            ),
        ),
        error_samples=(Sample((np.zeros((2, 3)), np.zeros((2, 3))), {"operands": ((0, 1), (1, 2)), "result": (0, 2)}),),
        moments=ContractionRule(),
        names=(),
        native="contraction",
        source="Laue, Mitterreiter, Giesen 2018: every multilinear map of tensors is one einsum",
    )
)


# ---- builders ----------------------------------------------------------------------------------------------
def permute(x: Node, axes: tuple[int, ...]) -> Node:
    """Dimensions of ``x`` in the order ``axes``."""
    axes = tuple(a % x.type.rank for a in axes)
    return einsum(([tuple(range(x.type.rank))], axes), x)


def swap(x: Node, i: int, j: int) -> Node:
    """``x`` with two dimensions exchanged."""
    axes = list(range(x.type.rank))
    if axes and not all(-len(axes) <= a < len(axes) for a in (i, j)):
        raise ShapeError(
            "dimensions that do not exist are exchanged",
            given=f"{i} and {j} of shape ({shape_text(x.shape)})",
            required=f"numbers from {-len(axes)} to {len(axes) - 1}",
        )
    if axes:
        axes[i], axes[j] = axes[j], axes[i]
    return permute(x, tuple(axes))


def transpose(x: Node) -> Node:
    """The last two dimensions exchanged: the matrix transpose, batched."""
    return swap(x, -1, -2)


def sum_axes(x: Node, axes: tuple[int, ...] | None = None, keepdims: bool = False) -> Node:
    """The sum over ``axes`` (all of them by default)."""
    rank = x.type.rank
    dropped = set(range(rank)) if axes is None else {a % max(rank, 1) for a in axes}
    if not rank or not dropped:
        return x
    total = einsum(([tuple(range(rank))], tuple(a for a in range(rank) if a not in dropped)), x)
    return expand_dims(total, tuple(sorted(dropped))) if keepdims else total


def matmul(a: Node, b: Node) -> Node:
    """The product of NumPy and torch: vectors at either side, leading dimensions broadcast.

    Raises:
        ShapeError: a scalar operand, or inner sizes that differ.
    """
    if not a.shape or not b.shape:
        raise ShapeError(
            "matrix product of a scalar",
            given=f"({shape_text(a.shape)}) @ ({shape_text(b.shape)})",
            instead="* for a product with a scalar",
        )
    inner_a, inner_b = a.shape[-1], b.shape[-2] if b.type.rank > 1 else b.shape[0]
    if inner_a != inner_b:
        raise ShapeError(
            "matrix product of shapes that do not fit",
            given=f"({shape_text(a.shape)}) @ ({shape_text(b.shape)})",
            required=f"equal inner sizes, not {inner_a} and {inner_b}",
        )
    batch = list(range(max(a.type.rank, b.type.rank, 2) - 2))  # indices of the leading dimensions of the result
    i, j, k = (len(batch) + n for n in range(3))
    rows, columns = a.type.rank > 1, b.type.rank > 1
    lead_a = batch[len(batch) - (a.type.rank - 2) :] if rows else []
    lead_b = batch[len(batch) - (b.type.rank - 2) :] if columns else []
    (a, kept_a), (b, kept_b) = _without_ones(a, lead_a, b, lead_b), _without_ones(b, lead_b, a, lead_a)
    operands = [(*kept_a, *((i, j) if rows else (j,))), (*kept_b, *((j, k) if columns else (j,)))]
    return einsum((operands, (*batch, *((i,) if rows else ()), *((k,) if columns else ()))), a, b)


def _without_ones(x: Node, own: list[int], other: Node, others: list[int]) -> tuple[Node, list[int]]:
    """``x`` without the leading dimensions of size 1 that broadcast against a larger one; the indices that stay."""
    sizes = dict(zip(others, other.shape, strict=False))
    ones = tuple(n for n, index in enumerate(own) if x.shape[n] == 1 and sizes.get(index, 1) != 1)
    return squeeze(x, ones), [index for n, index in enumerate(own) if n not in ones]


def _moved(x: Node, source: int, destination: int) -> Node:
    order = [n for n in range(x.type.rank) if n != source % x.type.rank]
    order.insert(destination % x.type.rank, source % x.type.rank)
    return permute(x, tuple(order))


def _from_equation(equation: str, tensors: Sequence[Node]) -> Node:
    """torch's notation: spaces are allowed, and without ``->`` the letters that occur once are the result."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    if "." in left:
        left, right, tensors = _without_ellipsis(left, right if arrow else None, tensors)
        arrow = "->"
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return einsum(f"{left}->{right}", *tensors)


def _without_ellipsis(left: str, right: str | None, tensors: Sequence[Node]) -> tuple[str, str, list[Node]]:
    """Letters in the place of ``...``, the last ones for the last dimensions; a size 1 that broadcasts is left out."""
    parts = left.split(",")
    free = [c for c in string.ascii_letters if c not in left + (right or "")]
    counts = [x.type.rank - len(p.replace("...", "")) for p, x in zip(parts, tensors, strict=True)]
    most = max(c for c, p in zip(counts, parts, strict=True) if "..." in p)
    sizes: dict[str, int | Dim] = {}
    for part, count, x in zip(parts, counts, tensors, strict=True):
        if "..." in part:
            at = part.index("...")
            for letter, n in zip(free[most - count : most], x.shape[at : at + count], strict=True):
                sizes[letter] = n if sizes.get(letter, 1) == 1 else sizes[letter]
    written, kept = [], []
    for part, count, x in zip(parts, counts, tensors, strict=True):
        letters_of = free[most - count : most] if "..." in part else []
        at = part.index("...") if "..." in part else 0
        ones = tuple(at + k for k, c in enumerate(letters_of) if x.shape[at + k] == 1 and sizes[c] != 1)
        kept.append(apply(OPS["squeeze"], x, axes=ones) if ones else x)
        stay = "".join(c for k, c in enumerate(letters_of) if at + k not in ones)
        written.append(part.replace("...", stay))
    if right is None:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = "..." + "".join(once)
    return ",".join(written), right.replace("...", "".join(free[:most])), kept


def summable(x: Node, dtype: str | None) -> Node:
    """What torch adds up: integers and conditions as int64."""
    dtype = dtype or (x.type.dtype if x.type.is_float else "int64")
    return x if x.type.dtype == dtype else apply(OPS["cast"], x, dtype=dtype)


# ---- the identity ------------------------------------------------------------------------------------------
EYE = leaf(
    "eye",
    shape=lambda *, size, dtype: TensorType((size, size), dtype),
    value=lambda *, size, dtype: np.eye(size),
    text=lambda p, node: p.identity(node.params["size"]),
    latex=lambda p, node: p.identity(node.params["size"]),
    torch=lambda node, _: f"torch.eye({node.params['size']}, dtype=torch.{node.type.dtype})",
    code=Code(lambda w, node: f"{w.np}.eye({w.size(node.params['size'])})"),
    terms=lambda algebra, node, indices: algebra.delta(node, indices),
    samples=(Sample((), {"size": 3, "dtype": "float64"}),),
    native="eye",
    source="the identity matrix: Kronecker's delta",
)


def eye(size: int | Dim, dtype: str = "float64") -> Node:
    """The identity matrix of that size."""
    return apply(EYE, size=size, dtype=dtype)
