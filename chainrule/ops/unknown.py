"""Unknown functions: ``l(f)``, of which only the name is known, and their derivatives ``dl/df``.

The chapter writes the end of a chain so: the loss ``l`` is some scalar function of the output, and the
backward pass starts from ``dl/df``. One op holds the function (``wrt = ()``) and its partial derivatives of
every order: ``wrt`` names the arguments, and the shape is theirs, one after the other. Partial derivatives
commute, so ``wrt`` is kept sorted and equal derivatives are one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from chainrule.errors import UnsupportedOpError
from chainrule.ir import POWER, Node, Op, TensorType, apply, promote, register
from chainrule.ops.contraction import einsum, permute
from chainrule.ops.families import sum_nodes


def _shape(*types: TensorType, name: str, wrt: tuple[int, ...]) -> TensorType:
    dtype, device = promote(*types)
    return TensorType(tuple(s for k in wrt for s in types[k].shape), dtype, None, device)


def _value(*arrays: Any, name: str, wrt: tuple[int, ...]) -> NoReturn:
    what = f"the function {name!r}" if not wrt else f"a derivative of the function {name!r}"
    raise UnsupportedOpError(
        f"{what} is unknown and has no value",
        given=f"{name} of {len(arrays)} value{'s' * (len(arrays) != 1)}: only its name is known",
        required="functions of the formula language, where numbers are asked for",
        instead=f"a formula for {name}, or evaluate what does not depend on it",
    )


def partial(name: str, xs: Sequence[Node], wrt: Sequence[int] = ()) -> Node:
    """The derivative of the unknown scalar function ``name`` of ``xs`` in each of the arguments ``wrt`` in
    turn.

    Its shape is the shapes of those arguments in that order; without ``wrt`` it is the function's value, a
    scalar.

    >>> from chainrule.ir import Dim, TensorType, variable
    >>> f = variable("f", TensorType((Dim("n"),)))
    >>> partial("l", [f]).shape, partial("l", [f], [0]).shape, partial("l", [f], [0, 0]).shape
    ((), (n,), (n, n))
    """
    order = sorted(range(len(wrt)), key=lambda k: wrt[k])
    node = apply(FUNCTION, *xs, name=name, wrt=tuple(wrt[k] for k in order))
    blocks: dict[int, list[int]] = {}
    axis = 0
    for k in order:
        rank = xs[wrt[k]].type.rank
        blocks[k] = list(range(axis, axis + rank))
        axis += rank
    axes = tuple(a for k in range(len(wrt)) for a in blocks[k])
    return permute(node, axes) if axes else node


def _contract(g: Node, derivative: Node, rank: int, over_leading: bool) -> Node:
    """The product of ``g`` with a derivative's leading (or trailing) dimensions; ``rank`` others remain."""
    indices = tuple(range(derivative.type.rank))
    if not g.type.rank:
        return g * derivative
    held, kept = (indices[: g.type.rank], indices[g.type.rank :])
    if not over_leading:
        kept, held = (indices[:rank], indices[rank:])
    return einsum(([held, indices], kept), g, derivative)


def _vjp(g: Node, y: Node, *xs: Node, name: str, wrt: tuple[int, ...]) -> tuple[Node | None, ...]:
    return tuple(
        _contract(g, partial(name, xs, (*wrt, k)), x.type.rank, True) if x.type.is_float else None
        for k, x in enumerate(xs)
    )


def _jvp(tangents: Sequence[Node | None], y: Node, *xs: Node, name: str, wrt: tuple[int, ...]) -> Node | None:
    return sum_nodes(
        [
            _contract(t, partial(name, xs, (*wrt, k)), y.type.rank, False)
            for k, t in enumerate(tangents)
            if t is not None
        ]
    )


# ---- printing ----------------------------------------------------------------------------------------------
def _runs(wrt: Sequence[int]) -> list[tuple[int, int]]:
    """Arguments with how often each occurs: (0, 0, 1) is ((0, 2), (1, 1))."""
    return [(k, wrt.count(k)) for k in sorted(set(wrt))]


def _text(p: Any, node: Node) -> str:
    name, wrt = node.params["name"], node.params["wrt"]
    arguments = [p.child(x, 0) for x in node.inputs]
    if not wrt:
        return f"{name}({', '.join(arguments)})"
    below = ""
    for k, times in _runs(wrt):
        argument = arguments[k] if arguments[k].isidentifier() else f"({arguments[k]})"
        below += f"d{argument}{times if times > 1 else ''}"
    return f"d{len(wrt) if len(wrt) > 1 else ''}{name}/{below}"


def _latex(p: Any, node: Node) -> str:
    name, wrt = p.symbol(node.params["name"]), node.params["wrt"]
    arguments = [p.child(x, 0) for x in node.inputs]
    if not wrt:
        return rf"{name}\left({', '.join(arguments)}\right)"

    def power(times: int) -> str:
        return f"^{{{times}}}" if times > 1 else ""

    below = []
    for k, times in _runs(wrt):
        single = p.is_named(node.inputs[k]) or node.inputs[k].is_leaf
        below.append(rf"\partial {arguments[k] if single else f'({arguments[k]})'}{power(times)}")
    return rf"\frac{{\partial{power(len(wrt))} {name}}}{{{' '.join(below)}}}"


FUNCTION = register(
    Op(
        "function",
        "unknown",
        shape=_shape,
        value=_value,
        vjp=_vjp,
        jvp=_jvp,
        text=_text,
        latex=_latex,
        # The parser reads `2 * dl/df` as 2 * (dl/df); powers and transposes of it are bracketed for people.
        precedence=POWER,
        indexed=lambda p, node, indices: (
            p.partial(node.params["name"], node.inputs[node.params["wrt"][0]], indices)
            if len(node.params["wrt"]) == 1
            else None
        ),
        source="the chapter's losses: l(f), dl/df",
    )
)
