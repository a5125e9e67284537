"""A matrix with structure: parts that stand on diagonals, each a product of factors that share no dimension.

What ``cr.hessian(f).factored(x)`` returns. With ``x`` of rank r the tensor has the dimensions of x twice; a tie says
that it is zero except where two of them are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from chainrule.errors import ModelError, ShapeError

Axes = tuple[int, ...]

_LARGEST_DENSE = 2**31  # bytes of a matrix that is solved with as it is


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a tensor.

    Attributes:
        ties: pairs of dimensions that are equal where the part is not zero.
        axes: the dimensions that are left, the second of each tie taken away.
        factors: tensors with the dimensions they have; the part is their product.
    """

    ties: tuple[tuple[int, int], ...]
    axes: Axes
    factors: tuple[tuple[torch.Tensor, Axes], ...]

    @property
    def product(self) -> torch.Tensor:
        """The factors multiplied out, over ``axes``."""
        if len(self.factors) == 1:
            return self.factors[0][0]
        operands: list[Any] = []
        for tensor, own in self.factors:
            operands += [tensor, list(own)]
        return torch.einsum(*operands, list(self.axes))

    @property
    def nbytes(self) -> int:
        """What the factors hold; what is only repeated counts once."""
        return sum(_distinct(t).numel() * t.element_size() for t, _ in self.factors)

    def __str__(self) -> str:
        ties = "".join(f" [{a} = {b}]" for a, b in self.ties)
        return " x ".join(f"{tuple(t.shape)} over {own}" for t, own in self.factors) + ties


@dataclass(frozen=True, eq=False)
class Factored:
    """A symmetric tensor of the dimensions of a variable twice, as a sum of parts.

    Attributes:
        parts: see :class:`Part`. shape: of the dense tensor. like: has its dtype and device.

    >>> import torch, chainrule as cr
    >>> V = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> H = cr.hessian(lambda U: ((U @ V.T) ** 2).sum()).factored(torch.ones(3, 2))
    >>> H.shape, H.nbytes, len(H.parts)
    ((3, 2, 3, 2), 16, 1)
    """

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    like: torch.Tensor

    @property
    def nbytes(self) -> int:
        """What the parts hold."""
        return sum(p.nbytes for p in self.parts)

    def dense(self) -> torch.Tensor:
        """The tensor with everything multiplied out."""
        return assembled(
            self.parts, self.shape, self.like, own=any(len(p.factors) > 1 for p in self.parts if not p.ties)
        )

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """The product with a vector of the shape of the variable: over its second half of dimensions."""
        rank = self._fits(v)
        total = torch.zeros_like(v)
        for part in self.parts:
            image = {b: a for a, b in part.ties}
            current, own = v, [_last(a, image) for a in range(rank, 2 * rank)]
            for tensor, axes in part.factors:
                later = {a for t, ax in part.factors if t is not tensor for a in ax}
                kept = [a for a in dict.fromkeys([*own, *axes]) if a < rank or a in later]
                current, own = torch.einsum(current, own, tensor, list(axes), kept), kept
            missing = [a for a in range(rank) if a not in own]
            current = current[(..., *(None for _ in missing))]
            total += current.permute([(*own, *missing).index(a) for a in range(rank)])
        return total

    def solve(self, b: torch.Tensor) -> torch.Tensor:
        """``s`` with ``H s = b``, by the structure: blocks, Kronecker factors, a diagonal plus products of vectors.

        Raises:
            ShapeError: ``b`` has another shape than the variable, or the Hessian has no structure and is too large.
            ModelError: it is singular.
        """
        rank = self._fits(b)
        try:
            return self._solved(b, rank)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ModelError(
                "the Hessian is singular here",
                given=str(error).splitlines()[0],
                required="a function without a flat direction at this point",
                instead="a multiple of the squared norm added to the function (damping)",
            ) from error

    def _solved(self, b: torch.Tensor, rank: int) -> torch.Tensor:
        for method in (_by_blocks, _by_kronecker, _by_woodbury):
            found = method(self.parts, b, rank)
            if found is not None:
                return found
        size = prod(self.shape[:rank])
        if size * size * b.element_size() > _LARGEST_DENSE:
            raise ShapeError(
                "a Hessian without structure that is too large to solve with",
                given=f"{size} x {size}",
                required=f"at most {_LARGEST_DENSE // 2**20} MB",
                instead="matvec in an iterative solver (conjugate gradients)",
            )
        return torch.linalg.solve(self.dense().reshape(size, size), b.reshape(size)).reshape(b.shape)

    def _fits(self, v: torch.Tensor) -> int:
        rank = len(self.shape) // 2
        if tuple(v.shape) != self.shape[:rank]:
            raise ShapeError("the vector does not fit", given=str(tuple(v.shape)), required=str(self.shape[:rank]))
        return rank

    def to_dict(self) -> dict[str, Any]:
        """Shapes and structure of the parts as plain data, without their numbers."""
        parts = [
            {"ties": list(p.ties), "axes": list(p.axes), "factors": [list(t.shape) for t, _ in p.factors]}
            for p in self.parts
        ]
        return {"shape": list(self.shape), "bytes": self.nbytes, "parts": parts}

    def __str__(self) -> str:
        lines = [f"  {part}" for part in self.parts] or ["  zero"]
        shape = " x ".join(map(str, self.shape))
        return "\n".join([f"{shape}, {self.nbytes} bytes in {len(self.parts)} parts", *lines])


# ---- dense -------------------------------------------------------------------------------------------------
def assembled(parts: Sequence[Part], shape: Sequence[Any], like: torch.Tensor, own: bool = False) -> torch.Tensor:
    """The dense tensor, in memory of its own.

    Args:
        like: has its dtype and device. own: the part without ties may be written into.
    """
    whole = next((p for p in parts if not p.ties), None)
    if whole is None:
        dense = torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)
    else:
        dense = whole.product if own else whole.product.clone(memory_format=torch.contiguous_format)
    for part in parts:
        if part is whole:
            continue
        view, axes = dense, list(range(len(shape)))
        for a, b in part.ties:
            view = torch.diagonal(view, 0, axes.index(a), axes.index(b))
            axes = [x for x in axes if x not in (a, b)] + [a]
        view.add_(part.product.permute([part.axes.index(a) for a in axes]))
    return dense


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with dimensions that only repeat it read once."""
    return tensor[tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())]


def _last(axis: int, image: dict[int, int]) -> int:
    while axis in image:
        axis = image[axis]
    return axis


# ---- solving -----------------------------------------------------------------------------------------------
def _by_blocks(parts: Sequence[Part], b: torch.Tensor, rank: int) -> torch.Tensor | None:
    """A matrix per place of the tied dimensions."""
    if len(parts) != 1 or not parts[0].ties or any(second != first + rank for first, second in parts[0].ties):
        return None
    (part,) = parts
    tied = [a for a, _ in part.ties]
    rows = [a for a in range(rank) if a not in tied]
    order = [*tied, *rows, *(a + rank for a in rows)]
    core = part.product.permute([part.axes.index(a) for a in order])
    size = prod(b.shape[a] for a in rows)
    right = b.permute([*tied, *rows])
    if not rows:
        solved = right / core
    elif all(s == 0 for s in core.stride()[: len(tied)]):  # the same matrix everywhere
        matrix = core[(0,) * len(tied)].reshape(size, size)
        solved = torch.linalg.solve(matrix, right.reshape(-1, size).T).T.reshape(right.shape)
    else:
        matrices = core.reshape(*core.shape[: len(tied)], size, size)
        flat = right.reshape(*right.shape[: len(tied)], size, 1)
        solved = torch.linalg.solve(matrices, flat).reshape(right.shape)
    return solved.permute([[*tied, *rows].index(a) for a in range(rank)])


def _by_kronecker(parts: Sequence[Part], b: torch.Tensor, rank: int) -> torch.Tensor | None:
    """Factors that each have dimensions of the rows together with the same dimensions of the columns."""
    if len(parts) != 1 or parts[0].ties or len(parts[0].factors) < 2:
        return None
    current = b
    for tensor, axes in parts[0].factors:
        rows = [a for a in axes if a < rank]
        if {a + rank for a in rows} | set(rows) != set(axes) or not rows:
            return None
        size = prod(b.shape[a] for a in rows)
        matrix = tensor.permute([axes.index(a) for a in (*rows, *(a + rank for a in rows))]).reshape(size, size)
        rest = [a for a in range(rank) if a not in rows]
        moved = current.permute([*rows, *rest])
        solved = torch.linalg.solve(matrix, moved.reshape(size, -1)).reshape(moved.shape)
        current = solved.permute([[*rows, *rest].index(a) for a in range(rank)])
    return current


def _by_woodbury(parts: Sequence[Part], b: torch.Tensor, rank: int) -> torch.Tensor | None:
    """A diagonal and products of a value of the rows with one of the columns.

    Source: Woodbury 1950: ``(D + U V')^-1 = D^-1 - D^-1 U (I + V' D^-1 U)^-1 V' D^-1``.
    """
    full = tuple((a, a + rank) for a in range(rank))
    diagonal = [p.product.permute([p.axes.index(a) for a in range(rank)]) for p in parts if p.ties == full]
    outer = [p for p in parts if not p.ties]
    if not diagonal or len(diagonal) + len(outer) != len(parts):
        return None
    left, right = [], []
    for part in outer:
        sides = {tuple(a < rank for a in axes) for _, axes in part.factors}
        if len(part.factors) != 2 or sides != {(True,) * rank, (False,) * rank}:
            return None
        for tensor, axes in part.factors:
            flat = tensor.permute([axes.index(a) for a in sorted(axes)]).reshape(-1)
            (left if axes[0] < rank else right).append(flat)
    d = sum(diagonal[1:], diagonal[0]).reshape(-1)
    scaled = b.reshape(-1) / d
    if left:
        u, v = torch.stack(left, 1), torch.stack(right, 1)
        small = torch.eye(u.shape[1], dtype=u.dtype, device=u.device) + v.T @ (u / d[:, None])
        scaled = scaled - (u / d[:, None]) @ torch.linalg.solve(small, v.T @ scaled)
    return scaled.reshape(b.shape)
