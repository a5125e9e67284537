"""The one loop: ``scan(body, consts, carry, xs)``, so that recurrences are not unrolled.

The body is a graph ``(consts, carry, x) -> (new carry, y)``; the loop returns the final carry and the stacked ys. Its
derivative is a loop in the other direction over the body's own derivative, which the differentiation interpreter
hands to the rule (``differentiation.vjp_graph``), since ops do not know interpreters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import (
    Code,
    Graph,
    Node,
    Op,
    Sample,
    TensorType,
    TupleType,
    apply,
    fresh_variable,
    item,
    rebuild,
    register,
    toposort,
)
from chainrule.ops.families import Parts, zeros_like
from chainrule.ops.leaves import INPUT
from chainrule.ops.movement import expand_dims
from chainrule.ops.slicing import concat, select


def _groups(items: Sequence[Any], n_consts: int, n_carry: int) -> tuple[list[Any], list[Any], list[Any]]:
    items = list(items)
    return items[:n_consts], items[n_consts : n_consts + n_carry], items[n_consts + n_carry :]


def _scan_shape(*types: TensorType, body: Graph, n_consts: int, n_carry: int, length: int, reverse: bool) -> TupleType:
    consts, carry, xs = _groups(types, n_consts, n_carry)
    expected = [i.type for i in body.inputs]
    given = [*consts, *carry, *(x.with_shape(x.shape[1:]) for x in xs)]
    if [t.shape for t in expected] != [t.shape for t in given]:
        raise ShapeError("scan: operands do not fit the body", given=str(given), required=str(expected))
    if any(x.shape[:1] != (length,) for x in xs):
        raise ShapeError("scan: a scanned operand has another length", required=str(length))
    if [o.shape for o in body.outputs[:n_carry]] != [c.shape for c in carry]:
        raise ShapeError("scan: the body returns another carry than it takes")
    ys = [o.type.with_shape((length, *o.shape)) for o in body.outputs[n_carry:]]
    return TupleType((*(o.type for o in body.outputs[:n_carry]), *ys))


def run_body(body: Graph, values: Sequence[Any]) -> list[Any]:
    """The body's outputs in NumPy."""
    table: dict[Node, Any] = dict(zip(body.inputs, values, strict=True))
    for node in toposort(body.outputs, stop=lambda n: n in table):
        if node not in table:
            table[node] = node.op.value(*(table[i] for i in node.inputs), **node.params)
    return [table[o] for o in body.outputs]


def _scan_value(*arrays: Any, body: Graph, n_consts: int, n_carry: int, length: int, reverse: bool) -> tuple[Any, ...]:
    consts, carry, xs = _groups(arrays, n_consts, n_carry)
    ys: list[list[Any]] = [[None] * length for _ in body.outputs[n_carry:]]
    for step in reversed(range(length)) if reverse else range(length):
        results = run_body(body, [*consts, *carry, *(np.asarray(x)[step] for x in xs)])
        carry = results[:n_carry]
        for column, y in zip(ys, results[n_carry:], strict=True):
            column[step] = y
    stacked = [
        np.stack(column) if length else np.zeros(o.type.with_shape((0, *o.shape)).shape)
        for column, o in zip(ys, body.outputs[n_carry:], strict=True)
    ]
    return (*carry, *stacked)


def scan(
    body: Graph,
    consts: Sequence[Node],
    carry: Sequence[Node],
    xs: Sequence[Node],
    length: int,
    reverse: bool = False,
) -> list[Node]:
    """The final carry and the stacked outputs of a loop, as nodes.

    Args:
        body: inputs ``(*consts, *carry, *one slice of each x)``, outputs ``(*carry, *ys)``.
        length: number of steps; ``reverse`` runs from the last slice to the first.
    """
    node = apply(
        SCAN,
        *consts,
        *carry,
        *xs,
        body=body,
        n_consts=len(consts),
        n_carry=len(carry),
        length=length,
        reverse=reverse,
    )
    return [item(node, k) for k in range(len(node.type.items))]


def _scan_parts(
    *inputs: Node, body: Graph, n_consts: int, n_carry: int, length: int, reverse: bool
) -> tuple[Node, ...]:
    """The loop written out, step after step.

    Raises:
        UnsupportedOpError: it is too long for that.
    """
    if length * len(body.nodes) > _WRITTEN_OUT:
        raise UnsupportedOpError(
            f"a loop of {length} steps written out",
            given=f"{len(body.nodes)} operations in each step",
            required=f"at most {_WRITTEN_OUT:,} operations",
            instead='backend="torch"',
        )
    consts, carry, xs = _groups(inputs, n_consts, n_carry)
    ys: list[list[Node]] = [[] for _ in body.outputs[n_carry:]]
    for step in reversed(range(length)) if reverse else range(length):
        given = [*consts, *carry, *(select(x, 0, step) for x in xs)]
        image = rebuild(body.outputs, image=dict(zip(body.inputs, given, strict=True)))
        carry = [image[o] for o in body.outputs[:n_carry]]
        for column, y in zip(ys, body.outputs[n_carry:], strict=True):
            column.append(expand_dims(image[y], (0,)))
    return (*carry, *(concat(column[::-1] if reverse else column, axis=0) for column in ys))


_WRITTEN_OUT = 4_000


def _scan_vjp(
    g: tuple[Node, ...],
    y: Node,
    *inputs: Node,
    body: Graph,
    n_consts: int,
    n_carry: int,
    length: int,
    reverse: bool,
    differentiation: Any,
) -> tuple[Node | None, ...]:
    consts, carry, xs = _groups(inputs, n_consts, n_carry)
    # The carries that entered each step, kept by one more run of the loop.
    kept = Graph(body.inputs, (*body.outputs[:n_carry], *body.inputs[n_consts : n_consts + n_carry]))
    entered = scan(kept, consts, carry, xs, length, reverse)[n_carry:]
    floats = [k for k, i in enumerate(body.inputs) if i.type.is_float]
    back, seeds = differentiation.vjp_graph(body, floats)
    at = {k: position for position, k in enumerate(floats)}
    # Backward body: carry = (carry cotangents, accumulated const cotangents), x = (carries in, xs, y cotangents).
    totals = {k: fresh_variable(f"total_{k}", body.inputs[k].type, body.inputs) for k in range(n_consts) if k in at}
    carry_seeds, y_seeds = seeds[:n_carry], seeds[n_carry:]
    new_totals = [total + back.outputs[at[k]] for k, total in totals.items()]
    new_carry = [back.outputs[at[n_consts + k]] for k in range(n_carry)]
    x_positions = [n_consts + n_carry + k for k in range(len(xs)) if n_consts + n_carry + k in at]
    body_back = Graph(
        (*body.inputs[:n_consts], *carry_seeds, *totals.values(), *body.inputs[n_consts:], *y_seeds),
        (*new_carry, *new_totals, *(back.outputs[at[p]] for p in x_positions)),
    )
    zeros = [zeros_like(consts[k]) for k in totals]
    results = scan(body_back, consts, [*g[:n_carry], *zeros], [*entered, *xs, *g[n_carry:]], length, not reverse)
    found: dict[int, Node] = {n_consts + k: results[k] for k in range(n_carry)}
    found |= dict(zip(totals, results[n_carry : n_carry + len(totals)], strict=True))
    found |= dict(zip(x_positions, results[n_carry + len(totals) :], strict=True))
    return tuple(found.get(k) for k in range(len(inputs)))


def _scan_jvp(
    tangents: Sequence[Node | None],
    y: Node,
    *inputs: Node,
    body: Graph,
    n_consts: int,
    n_carry: int,
    length: int,
    reverse: bool,
    differentiation: Any,
) -> tuple[Node, ...]:
    moved = [t if t is not None else zeros_like(x) for t, x in zip(tangents, inputs, strict=True)]
    both = differentiation.jvp_graph(body)
    primal, tangent = both.inputs[: len(inputs)], both.inputs[len(inputs) :]
    (p_const, p_carry, p_x), (t_const, t_carry, t_x) = (_groups(v, n_consts, n_carry) for v in (primal, tangent))
    outs, t_outs = both.outputs[: len(body.outputs)], both.outputs[len(body.outputs) :]
    merged = Graph(
        (*p_const, *t_const, *p_carry, *t_carry, *p_x, *t_x),
        (*outs[:n_carry], *t_outs[:n_carry], *outs[n_carry:], *t_outs[n_carry:]),
    )
    (consts, carry, xs), (d_const, d_carry, d_x) = (_groups(v, n_consts, n_carry) for v in (inputs, moved))
    results = scan(merged, [*consts, *d_const], [*carry, *d_carry], [*xs, *d_x], length, reverse)
    n_y = len(body.outputs) - n_carry
    start = 2 * n_carry + n_y
    return (*results[n_carry : 2 * n_carry], *results[start : start + n_y])


def _scan_torch(node: Node, x: list[str]) -> str:
    """A call of the loop that the back end writes above; ``x`` starts with the name of the body's function."""
    body, *operands = x
    groups = (", ".join([*g, ""]) for g in _groups(operands, node.params["n_consts"], node.params["n_carry"]))
    packed = ", ".join(f"({g.strip()})" for g in groups)
    return f"scan({body}, {packed}, {node.params['length']}, {node.params['reverse']})"


_SCAN = '''\
def scan(body, consts, carry, xs, length, reverse):
    """The loop body(*consts, *carry, *slices of xs) -> (*carry, *ys); returns the last carry and the stacked ys."""
    collected = [()] * length
    for k in reversed(range(length)) if reverse else range(length):
        out = body(*consts, *carry, *(x[k] for x in xs))
        carry, collected[k] = out[: len(carry)], out[len(carry) :]
    return (*carry, *(np.stack(ys) for ys in zip(*collected)))
'''


def _scan_code(w: Any, node: Node) -> str:
    return _scan_torch(node, [w.body(node.params["body"]), *(w(k) for k in range(len(node.inputs)))])


def _sample_body() -> Graph:
    w, h, x = (apply(INPUT, name=n, type=TensorType((2,))) for n in ("w", "h", "x"))
    new = w * h + x * h
    return Graph((w, h, x), (new, new * x))


SCAN = register(
    Op(
        "scan",
        "loop",
        shape=_scan_shape,
        value=_scan_value,
        vjp=_scan_vjp,
        jvp=_scan_jvp,
        transforms_body=True,
        torch=_scan_torch,
        native=Parts(_scan_parts),
        aliases=True,
        code=Code(_scan_code, torch=_scan_code, helper=(_SCAN,)),
        text=lambda p, node: f"scan({', '.join(p.child(i, 0) for i in node.inputs)})",
        latex=lambda p, node: rf"\operatorname{{scan}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)",
        samples=(
            Sample(
                (
                    np.array([0.5, -0.3]),
                    np.array([1.0, 2.0]),
                    np.array([[0.1, 0.2], [-0.3, 0.4], [0.7, -0.2]]),
                ),
                {"body": _sample_body(), "n_consts": 1, "n_carry": 1, "length": 3, "reverse": False},
            ),
        ),
        error_samples=(
            Sample(
                (np.zeros(2), np.zeros(2), np.zeros((4, 2))),
                {"body": _sample_body(), "n_consts": 1, "n_carry": 1, "length": 3, "reverse": False},
            ),
        ),
        source="jax.lax.scan's contract; derivative by a scan in the other direction",
    )
)
