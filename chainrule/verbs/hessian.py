"""``cr.hessian``: the Hessian of a function of tensors, dense as torch.func gives it, and in the form it really has.

The second derivative of the traced function is brought into closed form by the algebra and split into cores that stand
on diagonals (``interpreters.diagonals``). Only the cores are computed; ``__call__`` puts them where they belong in one
tensor, ``factored`` returns them, ``solve`` uses them (blocks, Kronecker factors, a diagonal with a product of two
vectors), and ``matvec`` multiplies by a vector without any of it. Where there is no closed form, or where it would cost
more than a column at a time, the dense tensor is made by forward over reverse mode, all columns at once.

Neighbours: ``transforms`` (the other transforms), ``program`` (traces and keeps), ``factored`` (the result).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from chainrule.backends.torch.reuse import made_here, memories
from chainrule.errors import ModelError, ShapeError, UnsupportedOpError
from chainrule.interpreters.cost import multiplications
from chainrule.interpreters.diagonals import Core, cores
from chainrule.interpreters.differentiate import jvp, vjp_all
from chainrule.interpreters.linearize import jacobian
from chainrule.interpreters.simplify import simplify_all
from chainrule.ir import Node, TensorType, constant, toposort
from chainrule.ops.families import zeros_like
from chainrule.verbs.factored import Factored, Part, assembled
from chainrule.verbs.program import Argnums, Program, Programs, described
from chainrule.verbs.transforms import basis, batched, columns_last, split

_MOST_NODES = 700  # of a gradient whose derivative is brought into closed form
_LARGEST = 4  # times the elements of the Hessian: a larger value on the way to it is not worth a closed form


@dataclass(frozen=True)
class _Block:
    """The derivative of one gradient by one argument: its shape, and its cores in order.

    ``own``: the core without ties is computed into memory that nothing else lies in.
    """

    type: TensorType
    cores: tuple[Core, ...]
    own: bool = False


class Hessian:
    """The Hessian of a function as a function of the same arguments: see :func:`hessian`."""

    def __init__(self, func: Callable[..., Any], argnums: Argnums = 0) -> None:
        self._func, self._argnums = func, argnums
        self._closed = Programs(func, "hessian", self._in_closed_form, has_aux=False, values=False)
        self._factors = Programs(func, "hessian_factors", self._in_factors, has_aux=False, values=False)
        self._columns = Programs(func, "hessian", self._by_columns, has_aux=False)
        self._product = Programs(func, "hessian_product", self._times_vector, has_aux=False, values=False)
        described(self, func, "Hessian")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The dense Hessian: output shape, then twice the argument's; a tree of blocks where there are several."""
        run = None if Programs.nested() else self._closed(args, kwargs)
        if run is None or run.program.plan is None:
            return self._dense_by_columns(args, kwargs)
        blocks: list[list[_Block]] = run.program.plan
        values = dict(zip(run.program.plan_nodes, run.derived, strict=True))
        rows = []
        for row, like in zip(blocks, run.program.tensors(args, self._argnums), strict=True):
            parts = [[Part(c.ties, c.axes, ((values[c.node], c.axes),)) for c in block.cores] for block in row]
            dense = [assembled(p, block.type.shape, like, own=block.own) for p, block in zip(parts, row, strict=True)]
            rows.append(run.by_argument(dense, self._argnums))
        whole, tree = run.by_argument(rows, self._argnums), run.program.output_tree
        return whole if tree.is_leaf() else tree_unflatten([whole], tree)

    def factored(self, *args: Any, **kwargs: Any) -> Factored:
        """The Hessian by one tensor in the form it has: cores on diagonals, products of small factors.

        Raises:
            ModelError: several arguments to derive by, or a tree of them.
        """
        self._one_tensor(args, "factored")
        (x,) = self._tensors(args)
        run = None if Programs.nested() else self._factors(args, kwargs)
        if run is None or run.program.plan is None:
            whole = self._dense_by_columns(args, kwargs)
            axes = tuple(range(whole.dim()))
            return Factored((Part((), axes, ((whole, axes),)),), (*x.shape, *x.shape), x)
        ((block,),) = run.program.plan
        values = dict(zip(_factors(run.program.plan), run.derived, strict=True))
        parts = [Part(c.ties, c.axes, tuple((values[f], own) for f, own in c.factors)) for c in block.cores]
        return Factored(tuple(parts), (*x.shape, *x.shape), x)

    def matvec(self, *args_and_vector: Any, **kwargs: Any) -> Any:
        """The Hessian times a vector: ``H.matvec(*args, v)``, ``v`` in the tree and shapes of what is derived by.

        No Hessian is made: this is the derivative of the gradient along ``v``.
        """
        *args, vector = args_and_vector
        run = self._product(tuple(args), kwargs)
        wanted, given = run.program.tensors(args, self._argnums), tree_flatten(vector)[0]
        if [tuple(getattr(v, "shape", ())) for v in given] != [tuple(w.shape) for w in wanted]:
            raise ShapeError(
                "the vector does not fit",
                given=", ".join(str(tuple(getattr(v, "shape", ()))) for v in given),
                required=", ".join(str(tuple(w.shape)) for w in wanted),
            )
        seeds = [v.to(w.dtype) for v, w in zip(given, wanted, strict=True)]
        return run.by_argument(run.at(seeds), self._argnums)

    def solve(self, *args_and_b: Any, **kwargs: Any) -> torch.Tensor:
        """``s`` with ``H s = b``: ``H.solve(*args, b)``, a Newton step's system, by the structure of the Hessian.

        Raises:
            ModelError: several arguments to derive by. ShapeError: ``b`` has another shape than the argument.
        """
        *args, b = args_and_b
        return self.factored(*args, **kwargs).solve(b)

    # ---- closed form ---------------------------------------------------------------------------------------
    def _in_closed_form(self, program: Program, whole: bool) -> list[Node]:
        program.plan = self._planned(program)
        program.plan_nodes = [] if program.plan is None else _products(program.plan)
        return program.plan_nodes

    def _in_factors(self, program: Program, whole: bool) -> list[Node]:
        program.plan = self._planned(program)
        return [] if program.plan is None else _factors(program.plan)

    def _planned(self, program: Program) -> list[list[_Block]] | None:
        leaves = program.leaves(self._argnums)
        try:
            return _blocks(program, leaves)
        except (UnsupportedOpError, RecursionError):  # an op whose derivative has no matrix form
            return None

    def _tensors(self, args: Any) -> list[torch.Tensor]:
        numbers = (self._argnums,) if isinstance(self._argnums, int) else self._argnums
        return [t for number in numbers for t in tree_flatten(args[number])[0]]

    def _one_tensor(self, args: Any, what: str) -> None:
        tensors = self._tensors(args)
        if not isinstance(self._argnums, int) or len(tensors) != 1 or not isinstance(tensors[0], torch.Tensor):
            raise ModelError(
                f"{what} is for the Hessian by one tensor",
                given=f"argnums={self._argnums}, {len(tensors)} tensors",
                required="an int for argnums, and a tensor in that place",
                instead="matvec, which takes trees",
            )

    # ---- without one ---------------------------------------------------------------------------------------
    def _by_columns(self, program: Program, whole: bool) -> list[Node]:
        leaves = program.leaves(self._argnums)
        back, _ = vjp_all(program.results, program.seeds(program.results), leaves, again=True)
        gradients = [zeros_like(x) if g is None else g for g, x in zip(back, leaves, strict=True)]
        found = jvp(gradients, leaves, program.seeds(leaves))
        return [zeros_like(g) if t is None else t for t, g in zip(found, gradients, strict=True)]

    def _times_vector(self, program: Program, whole: bool) -> list[Node]:
        leaves = program.leaves(self._argnums)
        root = program.scalar()
        back, _ = vjp_all([root], [constant(1.0, root.type.dtype)], leaves, again=True)
        gradients = [zeros_like(x) if g is None else g for g, x in zip(back, leaves, strict=True)]
        found = jvp(gradients, leaves, program.seeds(leaves))
        straight = [zeros_like(g) if t is None else t for t, g in zip(found, gradients, strict=True)]
        small = len(toposort(straight)) <= _MOST_NODES
        short = simplify_all(straight) if small else straight
        return short if _work(short) <= _work(straight) else straight

    def _dense_by_columns(self, args: Any, kwargs: Any) -> Any:
        run = self._columns(args, kwargs)
        outputs, inputs = tree_flatten(run.output)[0], run.program.tensors(args, self._argnums)

        def columns(tangents: list[torch.Tensor]) -> list[torch.Tensor]:
            return batched(lambda cotangents: run.at([*cotangents, *tangents]), basis(outputs))

        found = batched(columns, basis(inputs))  # per argument: elements of arguments, elements of outputs, argument
        blocks = []
        for k in range(len(outputs)):
            by_first = [
                run.by_argument(
                    [
                        columns_last(split(c, outputs, z.dim())[k], z)
                        for c, z in zip(split(f, inputs), inputs, strict=True)
                    ],
                    self._argnums,
                )
                for f in found
            ]
            blocks.append(run.by_argument(by_first, self._argnums))
        return tree_unflatten(blocks, run.program.output_tree)


def hessian(func: Callable[..., Any], argnums: Argnums = 0) -> Hessian:
    """The Hessian, as ``torch.func.hessian``: output shape, then twice the argument's.

    Besides calling it, ``H.factored(*args)`` gives its parts (identities and small factors, nothing multiplied out),
    ``H.matvec(*args, v)`` its product with a vector and ``H.solve(*args, b)`` the solution of ``H s = b``.

    Args:
        func: of tensors; the result is one number for the closed form, any tensors otherwise.
        argnums: which positional arguments; an int gives one Hessian, a tuple a tuple of tuples of blocks.

    Raises:
        ModelError: at a call: an argument to derive by is missing or not floating-point.
        UnsupportedOpError: at a call: a branch on values, or an op without a second derivative.

    Source: Laue, Mitterreiter, Giesen 2018, for the closed form; Pearlmutter 1994 for the product with a vector.

    >>> import torch, chainrule as cr
    >>> H = cr.hessian(lambda x: (x**3).sum())
    >>> H(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    >>> H.solve(torch.tensor([1.0, 2.0]), torch.tensor([6.0, 6.0]))
    tensor([1.0000, 0.5000])
    """
    return Hessian(func, argnums)


# ---- closed form -------------------------------------------------------------------------------------------
def _blocks(program: Program, leaves: Sequence[Node]) -> list[list[_Block]] | None:
    """The second derivatives in parts, or None where columns are the better way."""
    if len(program.results) != 1 or program.results[0].shape != () or not program.results[0].type.is_float:
        return None
    root = program.results[0]
    back, _ = vjp_all([root], [constant(1.0, root.type.dtype)], leaves)
    gradients = [zeros_like(x) if g is None else g for g, x in zip(back, leaves, strict=True)]
    if len(toposort(gradients)) > _MOST_NODES or any(not n.op.pure for n in toposort(gradients)):
        return None
    rows: list[list[_Block]] = []
    for gradient, first in zip(simplify_all(gradients), leaves, strict=True):
        row = []
        for leaf in leaves:
            found = jacobian(gradient, leaf, "numerator")
            parts = [] if found is None else cores(found)
            if parts is None:
                return None
            row.append(_Block(TensorType((*first.shape, *leaf.shape), first.type.dtype), tuple(parts)))
        rows.append(row)
    nodes = _products(rows)
    if len(rows) == 1:
        (block,) = rows[0]
        rows = [[replace(block, own=_own(block))]]
    straight = jvp(gradients, leaves, leaves)
    one = _work([t for t in straight if t is not None])
    columns = sum(int(x.type.numel) for x in leaves if isinstance(x.type.numel, int))
    largest = max((_elements(n) for n in toposort(nodes)), default=0)
    too_large = largest > _LARGEST * sum(_elements_of(b.type) for row in rows for b in row)
    return None if _work(nodes) > 2 * columns * one or too_large else rows


def _own(block: _Block) -> bool:
    """Whether the values without ties lie in memory made at every call, and alone there."""
    if not block.cores or block.cores[0].ties:
        return False
    whole, *others = (c.node for c in block.cores)
    order = toposort([whole, *others])
    memory = memories(order)
    varies = any("name" in n.params and n.is_leaf for n in toposort([whole]))
    return varies and made_here(whole) and all(memory[o] is not memory[whole] for o in others)


def _products(blocks: Sequence[Sequence[_Block]]) -> list[Node]:
    """Every core, each value once."""
    return list(dict.fromkeys(c.node for row in blocks for block in row for c in block.cores))


def _factors(blocks: Sequence[Sequence[_Block]]) -> list[Node]:
    """The factors of every core, each value once."""
    return list(dict.fromkeys(f for row in blocks for block in row for c in block.cores for f, _ in c.factors))


def _work(nodes: Sequence[Node]) -> float:
    return float(multiplications(list(nodes)))  # type: ignore[arg-type]


def _elements(node: Node) -> int:
    return _elements_of(node.type) if isinstance(node.type, TensorType) else 0


def _elements_of(type_: TensorType) -> int:
    return type_.numel if isinstance(type_.numel, int) else 0
