"""``grad, grad_and_value, vjp, jvp, jacrev, jacfwd``: torch.func's transforms, derived and compiled.

Each takes a function of tensors (or trees of them) and returns one. At the first call with arguments of new shapes,
dtypes or devices the function is traced, its derivative is derived as a graph and emitted as straight-line torch;
later calls run that. What the function reads besides its arguments is part of the key, so that nothing stale is
returned; ``CHAINRULE_LOG=1`` prints every compilation to stderr. Buffers that the function updates are written back
once, as eager execution would.

Inside another program that is being traced, or where autograd is to differentiate the result, the emitted code runs
under autograd like code written by hand: transforms nest.

Neighbours: ``program`` traces and keeps; ``interpreters.differentiate`` derives; ``hessian`` is a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from chainrule.errors import ModelError, ShapeError
from chainrule.frontends.torch import active
from chainrule.interpreters.differentiate import jvp as forward_mode
from chainrule.interpreters.differentiate import vjp_all
from chainrule.ir import Node, constant
from chainrule.ops.families import zeros_like
from chainrule.verbs.program import Argnums, Program, Programs, described


# ---- reverse mode ------------------------------------------------------------------------------------------
def grad(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False, *, compile: bool = False
) -> Callable[..., Any]:
    """The gradient of a scalar function by its arguments ``argnums``, as ``torch.func.grad``.

    Args:
        func: returns one floating-point number (and, with ``has_aux``, anything else behind it).
        argnums: which positional arguments; an int gives one gradient, a tuple a tuple of them.
        compile: hand the emitted source to ``torch.compile`` (not where autograd is to differentiate the result).

    Returns:
        A function of the same arguments: the gradient, in the tree of its argument (with ``has_aux`` also the rest).

    Raises:
        ModelError: at a call: the result is not a scalar, an argument to derive by is missing or not floating-point.
        UnsupportedOpError: at a call: a branch on values, or an op without a derivative.

    >>> import torch, chainrule as cr
    >>> cr.grad(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
    tensor([ 3., 12.])
    """
    both = grad_and_value(func, argnums, has_aux, compile=compile)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        found, value = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return described(gradient, func, "gradient")


def grad_and_value(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False, *, compile: bool = False
) -> Callable[..., Any]:
    """Like :func:`grad`, and the value: ``(gradient, value)``, or ``(gradient, (value, aux))``; the same errors.

    >>> import torch, chainrule as cr
    >>> cr.grad_and_value(lambda x: x**2)(torch.tensor(3.0))
    (tensor(6.), tensor(9.))
    """

    def derived(program: Program, whole: bool) -> list[Node]:
        root = program.scalar()
        leaves = program.leaves(argnums)
        found, _ = vjp_all([root], [constant(1.0, root.type.dtype)], leaves, whole, again=True)
        return [zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    programs = Programs(func, "grad", derived, has_aux, compile)

    def gradient_and_value(*args: Any, **kwargs: Any) -> Any:
        run = programs(args, kwargs)
        return run.by_argument(run.derived, argnums), run.outputs()

    return described(gradient_and_value, func, "gradient and value")


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """The value, and the function from cotangents of it to cotangents of ``primals``, as ``torch.func.vjp``.

    Returns:
        ``(value, vjp_fn)`` or ``(value, vjp_fn, aux)``; ``vjp_fn(cotangents)`` gives a tuple, one tree per primal.

    Raises:
        ModelError: a primal is not floating-point.
        ShapeError: at a call of ``vjp_fn``: the cotangents have not the structure and shapes of the value.
        UnsupportedOpError: a branch on values, or an op without a derivative.

    >>> import torch, chainrule as cr
    >>> value, back = cr.vjp(lambda x: x.sin(), torch.tensor(0.0))
    >>> back(torch.tensor(2.0))
    (tensor(2.),)
    """
    argnums = tuple(range(len(primals)))
    run = Programs(func, "vjp", _pulled_back(argnums), has_aux)(primals, {})

    def vjp_fn(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        return run.by_argument(run.at(_like(cotangents, run.output, "the cotangents")), argnums)

    return (run.output, vjp_fn, run.aux) if has_aux else (run.output, vjp_fn)


def _pulled_back(argnums: Argnums) -> Callable[[Program, bool], list[Node]]:
    """The cotangents of the arguments for seeds of every result: zeros where nothing flows."""

    def derived(program: Program, whole: bool) -> list[Node]:
        leaves = program.leaves(argnums)
        found, _ = vjp_all(program.results, program.seeds(program.results), leaves, whole, again=True)
        return [zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    return derived


# ---- forward mode ------------------------------------------------------------------------------------------
def jvp(func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False) -> Any:
    """The value and its tangent for ``tangents`` of ``primals`` (both tuples), as ``torch.func.jvp``.

    Raises:
        ModelError: primals or tangents are no tuples, a primal is not floating-point; with ``strict`` a result that
            does not depend on the primals.
        ShapeError: the tangents have not the structure and shapes of the primals.
        UnsupportedOpError: a branch on values, or an op without a derivative.

    >>> import torch, chainrule as cr
    >>> cr.jvp(lambda x: x**2, (torch.tensor(3.0),), (torch.tensor(1.0),))
    (tensor(9.), tensor(6.))
    """
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)) or not primals:
        raise ModelError(
            "jvp takes its primals and tangents as tuples",
            given=f"{type(primals).__name__} and {type(tangents).__name__}",
            required="jvp(f, (x,), (t,))",
        )
    given = _like(tuple(tangents), tuple(primals), "the tangents")
    run = Programs(func, "jvp", _pushed_forward(tuple(range(len(primals))), strict), has_aux)(tuple(primals), {})
    moved = tree_unflatten(run.at(given), run.program.output_tree)
    return (run.output, moved, run.aux) if has_aux else (run.output, moved)


def _pushed_forward(argnums: Argnums, strict: bool = False) -> Callable[[Program, bool], list[Node]]:
    """The tangents of the results for seeds of every argument: zeros where nothing flows, or refused."""

    def derived(program: Program, whole: bool) -> list[Node]:
        leaves = program.leaves(argnums)
        found = forward_mode(program.results, leaves, program.seeds(leaves))
        if strict and any(t is None for t in found):
            raise ModelError("an output does not depend on the primals", instead="strict=False for zeros")
        return [zeros_like(y) if t is None else t for t, y in zip(found, program.results, strict=True)]

    return derived


def _like(tree: Any, pattern: Any, what: str) -> list[torch.Tensor]:
    """The tensors of a tree that has the structure, shapes and dtypes of another."""
    given, spec = tree_flatten(tree)
    wanted, wanted_spec = tree_flatten(pattern)
    fits = spec == wanted_spec and all(
        isinstance(g, torch.Tensor) and g.shape == w.shape for g, w in zip(given, wanted, strict=True)
    )
    if not fits:
        raise ShapeError(
            f"{what} do not fit",
            given=str(tree_map(_shape, tree)),
            required=str(tree_map(_shape, pattern)),
        )
    return [g.to(w.dtype) for g, w in zip(given, wanted, strict=True)]


def _shape(leaf: Any) -> Any:
    return tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__


# ---- Jacobians ---------------------------------------------------------------------------------------------
def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """The Jacobian by the arguments ``argnums``, as ``torch.func.jacrev``: output shape, then argument shape.

    The forward pass runs once; the vector-Jacobian product runs for all elements of the output at once, or for
    ``chunk_size`` of them at a time.

    Raises:
        ModelError: at a call: an argument to derive by is missing or not floating-point.
        UnsupportedOpError: at a call: a branch on values, or an op without a derivative.

    >>> import torch, chainrule as cr
    >>> cr.jacrev(lambda x: x**2)(torch.tensor([1.0, 3.0]))
    tensor([[2., 0.],
            [0., 6.]])
    """
    programs = Programs(func, "jacrev", _pulled_back(argnums), has_aux)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        run = programs(args, kwargs)
        outputs = tree_flatten(run.output)[0]
        rows = batched(run.at, basis(outputs), chunk_size)  # per argument: every element of every output, argument
        blocks = [[split(r, outputs)[k] for r in rows] for k in range(len(outputs))]
        tree = tree_unflatten([run.by_argument(b, argnums) for b in blocks], run.program.output_tree)
        return (tree, run.aux) if has_aux else tree

    return described(transformed, func, "Jacobian")


def jacfwd(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """The Jacobian, as ``torch.func.jacfwd``: one tangent per element of the arguments, all at once.

    The errors are those of :func:`jacrev`.

    >>> import torch, chainrule as cr
    >>> cr.jacfwd(lambda x: x**2)(torch.tensor([1.0, 3.0]))
    tensor([[2., 0.],
            [0., 6.]])
    """
    programs = Programs(func, "jacfwd", _pushed_forward(argnums), has_aux)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        run = programs(args, kwargs)
        inputs = run.program.tensors(args, argnums)
        columns = batched(run.at, basis(inputs), chunk_size)  # per output: every element of every argument, output
        blocks = [[columns_last(c, x) for c, x in zip(split(col, inputs), inputs, strict=True)] for col in columns]
        tree = tree_unflatten([run.by_argument(b, argnums) for b in blocks], run.program.output_tree)
        return (tree, run.aux) if has_aux else tree

    return described(transformed, func, "Jacobian")


def basis(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For each tensor a stack of seeds: row by row one element of all of them is 1 and the rest is 0."""
    total = sum(t.numel() for t in tensors)
    found, start = [], 0
    for t in tensors:
        rows = torch.zeros(total, t.numel(), dtype=t.dtype, device=t.device)
        rows[start : start + t.numel()].fill_diagonal_(1)
        found.append(rows.reshape(total, *t.shape))
        start += t.numel()
    return found


def batched(function: Callable[..., list[torch.Tensor]], seeds: list[torch.Tensor], chunk: int | None = None) -> Any:
    """The results of ``function`` for every row of the seeds, stacked.

    Inside a program that is being traced the rows run one by one, since vmap is no op of a graph.
    """
    count = len(seeds[0])
    if active() is not None or not count:
        rows = [function([s[k] for s in seeds]) for k in range(count)] or [
            function([s.new_zeros(s.shape[1:]) for s in seeds])
        ]
        return [torch.stack(r)[:count] for r in zip(*rows, strict=True)]
    return torch.vmap(lambda *s: function(list(s)), chunk_size=chunk)(*seeds)


def split(rows: torch.Tensor, tensors: Sequence[torch.Tensor], axis: int = 0) -> list[torch.Tensor]:
    """Rows for the elements of several tensors, taken apart: each with the shape of its tensor in that place."""
    parts = rows.split([t.numel() for t in tensors], axis)
    return [p.reshape(*p.shape[:axis], *t.shape, *p.shape[axis + 1 :]) for p, t in zip(parts, tensors, strict=True)]


def columns_last(block: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The leading dimensions, those of ``x``, moved to the end."""
    return block.permute(*range(x.dim(), block.dim()), *range(x.dim()))
