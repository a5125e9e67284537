"""Derivatives: reverse mode and forward mode over the same local rules, as graphs.

Reads ``Op.vjp`` and ``Op.jvp``. A composite without its own rule is expanded first; an op with a vjp but no jvp is
moved forward by transposing its vjp twice. Broadcasting is summed back here, once, not in the rules. A missing rule
raises; it never returns zero. Where no path leads from a variable to an output the result is None, and the caller
says so: a zero is never silent.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from chainrule.errors import ShapeError
from chainrule.interpreters.structure import within_structure
from chainrule.ir import (
    Graph,
    Node,
    TensorType,
    TupleType,
    apply,
    constant,
    fresh_variable,
    rebuild,
    rule_of,
    shape_text,
    toposort,
    variable,
)
from chainrule.ops.casts import cast
from chainrule.ops.movement import broadcast, unbroadcast

Cotangent = Any  # a Node, or a tuple of Node | None for a node with several outputs


def expand_composites(outputs: Sequence[Node], keep_named: bool = True) -> tuple[Node, ...]:
    """``outputs`` with composites replaced by their expansions; those with a derivative of their own stay."""
    return tuple(_expansion_image(outputs, keep_named)[node] for node in outputs)


def _expansion_image(outputs: Sequence[Node], keep_named: bool, again: bool = False) -> dict[Node, Node]:
    def expand(node: Node, inputs: tuple[Node, ...]) -> Node:
        kept = (keep_named and node.op.vjp is not None) or (again and node.op.fused_again)
        if node.op.expansion is None or kept:
            return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        inner = node.op.expansion(*inputs, **node.params)
        return _expansion_image([inner], keep_named, again)[inner]

    return rebuild(outputs, expand)


# ---- reverse mode ------------------------------------------------------------------------------------------
def vjp(
    outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node], again: bool = False
) -> list[Node | None]:
    """Cotangents of ``wrt`` for given cotangents of ``outputs`` (reverse mode).

    ``wrt`` may be any nodes, not only leaves. By a variable of declared structure the derivative is taken within it.
    None where no differentiable path exists. ``again`` as in :func:`vjp_all`.

    Raises:
        UnsupportedOpError: an op on the path has no derivative rule.
    """
    return vjp_all(outputs, cotangents, wrt, again=again)[0]


def vjp_all(
    outputs: Sequence[Node],
    cotangents: Sequence[Node],
    wrt: Sequence[Node],
    whole: bool = False,
    again: bool = False,
) -> tuple[list[Node | None], dict[Node, Node]]:
    """Like :func:`vjp`, with the cotangent of every node on the way (first outputs of tuples left out).

    ``whole``: composites stay as they are in the derivative and go back by their kernels (``Op.fused_vjp``); only the
    inside of one that has none is expanded. A program then computes its forward pass once; a formula, where expansions
    of different composites may cancel, is expanded throughout.
    ``again``: a program that is differentiated once more: whole where the kernels have derivatives themselves.
    """
    image = {} if whole else _expansion_image([*outputs, *wrt], keep_named=True, again=again)
    roots, targets = [image.get(o, o) for o in outputs], [image.get(w, w) for w in wrt]
    flowing = _reverse(roots, cotangents, targets, whole, again)
    back = {image[n]: n for n in image}
    named = {back.get(n, n): g for n, g in flowing.items() if isinstance(g, Node)}
    free = [flowing.get(t) for t in targets]
    return [within_structure(g, t) if isinstance(g, Node) else None for g, t in zip(free, targets, strict=True)], named


def _reverse(
    roots: Sequence[Node],
    cotangents: Sequence[Node],
    targets: Sequence[Node],
    whole: bool,
    again: bool = False,
    stop: Callable[[Node], bool] | None = None,
) -> dict[Node, Cotangent]:
    """The cotangent of every node between roots and targets. A node where it stops is like a leaf."""
    active = _depends_on(roots, set(targets), stop)
    flowing: dict[Node, Cotangent] = {}
    for root, g in zip(roots, cotangents, strict=True):
        if isinstance(root.type, TensorType) and root.shape != g.shape:
            raise ShapeError(
                "a cotangent has the shape of its output",
                given=f"({shape_text(g.shape)})",
                required=f"({shape_text(root.shape)})",
            )
        _accumulate(flowing, root, g)
    for node in reversed(toposort(roots, stop)):
        g = flowing.get(node)
        if g is None or node not in active or not node.inputs or (stop is not None and stop(node)):
            continue
        if not any(i in active for i in node.inputs):
            continue
        for x, gx in zip(node.inputs, _apply_vjp(node, g, active, whole, again), strict=True):
            if gx is not None and x in active:
                _accumulate(flowing, x, _fit(gx, x))
    return flowing


def gradient(output: Node, wrt: Sequence[Node], whole: bool = False) -> list[Node | None]:
    """The gradient of a scalar with respect to each of ``wrt``: each has its variable's shape.

    ``whole`` as in :func:`vjp_all`.

    Raises:
        ShapeError: the output is not a scalar.
    """
    if output.shape != ():
        raise ShapeError(
            "gradient of something that is not a scalar",
            given=f"shape ({shape_text(output.shape)})",
            required="a scalar",
            instead="vjp with a cotangent of that shape, or jacobian",
        )
    return vjp_all([output], [constant(1.0, output.type.dtype)], wrt, whole)[0]


def _depends_on(roots: Sequence[Node], targets: set[Node], stop: Callable[[Node], bool] | None = None) -> set[Node]:
    active: set[Node] = set()
    for node in toposort(roots, stop):
        if node in targets or any(i in active for i in node.inputs):
            active.add(node)
    return active


def _apply_vjp(
    node: Node, g: Cotangent, active: Container[Node], whole: bool = False, again: bool = False
) -> tuple[Cotangent, ...]:
    if not node.op.differentiable:
        return (None,) * len(node.inputs)
    if (whole or (again and node.op.fused_again)) and node.op.fused_vjp is not None:
        fused = node.op.fused_vjp(g, node, *node.inputs, **node.params)
        if fused is not None:
            return tuple(fused)
    if node.op.vjp is None and node.op.expansion is not None:
        inside = node.op.expansion(*node.inputs, **node.params)
        wanted = [x for x in dict.fromkeys(node.inputs) if x in active]
        # Only the inside: an operand may itself depend on another one.
        found = _reverse([inside], [g], wanted, True, stop=frozenset(node.inputs).__contains__)
        # One cotangent for a value that is an operand twice: it already is the sum over both places.
        return tuple(found.pop(x, None) if x in wanted else None for x in node.inputs)
    rule = rule_of(node.op, "vjp", "differentiate")
    if isinstance(node.type, TupleType):
        g = tuple(
            part if part is not None else broadcast(constant(0.0, t.dtype), t.shape)
            for part, t in zip(g, node.type.items, strict=True)
        )
    extra = {"differentiation": _FOR_BODIES} if node.op.transforms_body else {}
    return tuple(rule(g, node, *node.inputs, **node.params, **extra))


def _fit(g: Cotangent, x: Node) -> Cotangent:
    """Sums a cotangent over the dimensions that broadcasting repeated."""
    if isinstance(g, tuple) or isinstance(x.type, TupleType):
        return g
    fitted = broadcast(g, x.shape) if len(g.shape) < len(x.shape) else unbroadcast(g, x.shape)
    # A narrower operand that was promoted gets its cotangent in its own dtype.
    return cast(fitted, x.type.dtype) if x.type.is_float else fitted


def _accumulate(flowing: dict[Node, Cotangent], node: Node, g: Cotangent) -> None:
    before = flowing.get(node)
    if before is None:
        flowing[node] = g
    elif isinstance(g, tuple):
        flowing[node] = tuple(a if b is None else b if a is None else a + b for a, b in zip(before, g, strict=True))
    else:
        flowing[node] = before + g


# ---- forward mode ------------------------------------------------------------------------------------------
def jvp(outputs: Sequence[Node], wrt: Sequence[Node], tangents: Sequence[Node]) -> list[Node | None]:
    """Tangents of ``outputs`` for given tangents of ``wrt`` (forward mode). None where nothing moves.

    Raises:
        UnsupportedOpError: an op on the path has no derivative rule.
    """
    image = _expansion_image([*outputs, *wrt], keep_named=False)
    moving: dict[Node, Any] = {}
    for node, tangent in zip(wrt, tangents, strict=True):
        moving[image[node]] = tangent
    roots = [image[o] for o in outputs]
    for node in toposort(roots):
        if node in moving or not any(i in moving for i in node.inputs) or not node.op.differentiable:
            continue
        moved = _apply_jvp(node, [moving.get(i) for i in node.inputs])
        if moved is not None:
            moving[node] = broadcast(moved, node.shape) if isinstance(moved, Node) else moved
    return [moving.get(root) for root in roots]


def _apply_jvp(node: Node, tangents: list[Any]) -> Any:
    extra = {"differentiation": _FOR_BODIES} if node.op.transforms_body else {}
    if node.op.jvp is not None:
        return node.op.jvp(tangents, node, *node.inputs, **node.params, **extra)
    # The vjp is linear in g, so its own vjp with respect to g, at the tangent, is the jvp.
    several = isinstance(node.type, TupleType)
    items = node.type.items if several else (node.type,)
    gs = [variable(f"cotangent {k} of {id(node)}", t) for k, t in enumerate(items)]
    cotangents = _apply_vjp(node, tuple(gs) if several else gs[0], node.inputs)
    totals: list[Node | None] = [None] * len(gs)
    for x, t, back in zip(node.inputs, tangents, cotangents, strict=True):
        if t is None or back is None:
            continue
        for k, moved in enumerate(vjp([_fit(back, x)], [t], gs)):
            if moved is not None:
                before = totals[k]
                totals[k] = moved if before is None else before + moved
    return tuple(totals) if several else totals[0]


# ---- bodies of loops ---------------------------------------------------------------------------------------
class _Bodies:
    """What rules of ops with a body graph (loops) are given: differentiation of that body."""

    @staticmethod
    def vjp_graph(body: Graph, wrt: Sequence[int]) -> tuple[Graph, Sequence[Node]]:
        """The graph (inputs, output cotangents) -> input cotangents, zeros where there is no path."""
        # Fresh: the body may itself be a derivative, whose inputs are seeds.
        seeds = [fresh_variable(f"cotangent_{k}", o.type, body.inputs) for k, o in enumerate(body.outputs)]
        targets = [body.inputs[k] for k in wrt]
        found = vjp(body.outputs, seeds, targets)
        outs = [f if f is not None else zeros_like(t) for f, t in zip(found, targets, strict=True)]
        return Graph((*body.inputs, *seeds), tuple(outs)), seeds

    @staticmethod
    def jvp_graph(body: Graph) -> Graph:
        """The graph (inputs, input tangents) -> (outputs, output tangents)."""
        tangents = [fresh_variable(f"tangent_{k}", i.type, body.inputs) for k, i in enumerate(body.inputs)]
        moved = jvp(body.outputs, body.inputs, tangents)
        outs = [m if m is not None else zeros_like(o) for m, o in zip(moved, body.outputs, strict=True)]
        return Graph((*body.inputs, *tangents), (*body.outputs, *outs))


_FOR_BODIES = _Bodies()


def zeros_like(node: Node) -> Node:
    """Zeros in the type of a node."""
    assert isinstance(node.type, TensorType)
    return broadcast(constant(0.0, node.type.dtype), node.shape)
