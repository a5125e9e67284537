"""Recurrent layers: one layer of torch's LSTM, GRU or RNN is one op, in one direction or both.

A program runs torch's kernel and its own backward over the whole sequence; what the layer means, and its second
derivative, is its expansion: one ``scan`` per direction. Layers on top of each other are several of these, with dropout
between them where the front end draws it. Sequences of different lengths come packed, as torch packs them: rows of all
sequences step by step, ``batch_sizes`` of them at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import (
    LOWERINGS,
    OPS,
    Graph,
    Node,
    Sample,
    TensorType,
    TupleType,
    apply,
    constant,
    item,
    rebuild,
    shape_text,
    variable,
)
from chainrule.ops.arithmetic import where
from chainrule.ops.contraction import einsum, swap
from chainrule.ops.elements import take_elements
from chainrule.ops.families import composite, written_as_call
from chainrule.ops.leaves import SEVERAL, known_numbers
from chainrule.ops.loops import scan
from chainrule.ops.movement import expand_dims
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.slicing import concat, select, slice_axis


# ---- one step of each kind ---------------------------------------------------------------------------------
def _parts(x: Node, count: int) -> list[Node]:
    size = int(x.shape[-1]) // count
    return [slice_axis(x, -1, k * size, (k + 1) * size) for k in range(count)]


def _unary(name: str, x: Node) -> Node:
    return apply(OPS[name], x)


def _plain_step(name: str) -> Callable[..., list[Node]]:
    return lambda given, moved, h: [_unary(name, given + moved)]


def _lstm_step(given: Node, moved: Node, h: Node, c: Node) -> list[Node]:
    i, f, g, o = _parts(given + moved, 4)
    new = _unary("sigmoid", f) * c + _unary("sigmoid", i) * _unary("tanh", g)
    return [_unary("sigmoid", o) * _unary("tanh", new), new]


def _gru_step(given: Node, moved: Node, h: Node) -> list[Node]:
    (given_r, given_z, given_n), (moved_r, moved_z, moved_n) = _parts(given, 3), _parts(moved, 3)
    r, z = _unary("sigmoid", given_r + moved_r), _unary("sigmoid", given_z + moved_z)
    n = _unary("tanh", given_n + r * moved_n)
    return [n + z * (h - n)]


@dataclass(frozen=True)
class _Kind:
    """One kind of cell.

    Attributes:
        gates: how many times the width of the state its matrices are wide. states: how many things it carries on.
        step: ``(x's part of the gates, the state's part, *states) -> new states``, the output first.
    """

    gates: int
    states: int
    step: Callable[..., list[Node]]


KINDS = {
    "lstm": _Kind(4, 2, _lstm_step),
    "gru": _Kind(3, 1, _gru_step),
    "rnn_tanh": _Kind(1, 1, _plain_step("tanh")),
    "rnn_relu": _Kind(1, 1, _plain_step("relu")),
}


# ---- packed sequences --------------------------------------------------------------------------------------
def _rows(batch_sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(number of the packed row for each step and sequence, 0 where there is none; whether there is one)."""
    there = np.arange(max(batch_sizes, default=0)) < np.asarray(batch_sizes)[:, None]
    starts = np.cumsum([0, *batch_sizes])[:-1, None]
    return np.where(there, starts + np.arange(there.shape[1]), 0), there


def _taken_rows(x: Node, rows: np.ndarray) -> Node:
    width = int(x.shape[-1])
    return take_elements(x, rows[..., None] * width + np.arange(width))


def _padded(x: Node, batch_sizes: Sequence[int]) -> tuple[Node, Node]:
    """The packed rows as ``(steps, sequences, features)``, and the mask of those that are there."""
    rows, there = _rows(batch_sizes)
    return _taken_rows(x, rows), constant(there[..., None])


def _packed(y: Node, batch_sizes: Sequence[int]) -> Node:
    _, there = _rows(batch_sizes)
    flat = np.flatnonzero(there)
    width = int(y.shape[-1])
    return take_elements(y, flat[:, None] * width + np.arange(width))


# ---- the expansion -----------------------------------------------------------------------------------------
def _weights_per_direction(has_biases: bool, projected: bool) -> int:
    return 2 + 2 * has_biases + projected


def _direction(
    kind: _Kind,
    x: Node,
    states: Sequence[Node],
    weights: Sequence[Node],
    mask: Node | None,
    has_biases: bool,
    reverse: bool,
) -> tuple[Node, list[Node]]:
    """The output at every step, and the last states, of one direction."""
    w_ih, w_hh, *rest = weights
    given = einsum("tbi,gi->tbg", x, w_ih)
    if has_biases:
        given = given + rest[0]
    consts = [w_hh, *rest[1:]] if has_biases else [w_hh, *rest]

    inner_consts = [variable(f"const_{k}", c.type) for k, c in enumerate(consts)]
    inner_states = [variable(f"state_{k}", s.type) for k, s in enumerate(states)]
    inner_x = variable("given", given.type.with_shape(given.shape[1:]))
    inner_mask = None if mask is None else variable("there", mask.type.with_shape(mask.shape[1:]))
    moved = einsum("bh,gh->bg", inner_states[0], inner_consts[0])
    if has_biases:
        moved = moved + inner_consts[1]
    new = kind.step(inner_x, moved, *inner_states)
    if len(consts) > 1 + has_biases:  # the output is projected
        new[0] = einsum("bh,ph->bp", new[0], inner_consts[-1])
    if inner_mask is not None:
        new = [where(inner_mask, n, s) for n, s in zip(new, inner_states, strict=True)]
    sliced = [inner_x] if inner_mask is None else [inner_x, inner_mask]
    body = Graph((*inner_consts, *inner_states, *sliced), (*new, new[0]))
    over = [given] if mask is None else [given, mask]
    *last, y = scan(body, consts, list(states), over, int(x.shape[0]), reverse)
    return y, last


def _expansion(
    x: Node,
    *operands: Node,
    mode: str,
    directions: int,
    has_biases: bool,
    batch_sizes: tuple[int, ...] | None,
    tracked: bool,
) -> Node:
    kind = KINDS[mode]
    states, weights = operands[: kind.states], operands[kind.states :]
    _check(x.type, [s.type for s in states], [w.type for w in weights], mode, directions, has_biases, batch_sizes)
    mask = None
    if batch_sizes is not None:
        x, mask = _padded(x, batch_sizes)
    each = len(weights) // directions
    outputs, finals = [], []
    for d in range(directions):
        own = weights[d * each : (d + 1) * each]
        y, last = _direction(kind, x, [select(s, 0, d) for s in states], own, mask, has_biases, reverse=d == 1)
        outputs.append(y)
        finals.append(last)
    y = concat(outputs, axis=2) if directions > 1 else outputs[0]
    if batch_sizes is not None:
        y = _packed(y, batch_sizes)
    stacked = [concat([expand_dims(f[k], (0,)) for f in finals], axis=0) for k in range(kind.states)]
    return apply(SEVERAL, y, *stacked)


def _check(
    x: TensorType,
    states: Sequence[TensorType],
    weights: Sequence[TensorType],
    mode: str,
    directions: int,
    has_biases: bool,
    batch_sizes: tuple[int, ...] | None,
) -> None:
    kind = KINDS[mode]
    each, odd = divmod(len(weights), directions)
    right = (
        not odd
        and each - _weights_per_direction(has_biases, False) in ((0, 1) if mode == "lstm" else (0,))
        and x.rank == (3 if batch_sizes is None else 2)
        and all(s.rank == 3 and s.shape[0] == directions for s in states)
        and all(w.rank == 2 and w.shape[-1] == x.shape[-1] for w in weights[::each])
        and all(w.shape == (weights[0].shape[0], states[0].shape[-1]) for w in weights[1::each])
        and weights[0].shape[0] == kind.gates * states[-1].shape[-1]
        and (batch_sizes is None or sum(batch_sizes) == x.shape[0])
        and all(s.shape[1] == (x.shape[1] if batch_sizes is None else max(batch_sizes)) for s in states)
    )
    if not right:
        shapes = [t.shape for t in (x, *states, *weights)]
        raise ShapeError(
            f"{mode} of shapes that do not fit",
            given=", ".join(f"({shape_text(s)})" for s in shapes),
            required="input (steps, batch, features), states (directions, batch, width), each direction's matrices",
        )


def _shape(
    x: TensorType, *types: TensorType, mode: str, directions: int, has_biases: bool, batch_sizes: Any, tracked: bool
) -> TupleType:
    kind = KINDS[mode]
    states, weights = types[: kind.states], types[kind.states :]
    _check(x, states, weights, mode, directions, has_biases, batch_sizes)
    y = x.with_shape((*x.shape[:-1], directions * states[0].shape[-1]))
    return TupleType((y, *(TensorType(s.shape, s.dtype, None, x.device) for s in states)))  # a zero state has no place


def _cost(result: TupleType, x: TensorType, *types: TensorType, mode: str, **_: Any) -> Any:
    """One product with every matrix for every row of the input; the gates count as one each."""
    rows = 1
    for n in x.shape[:-1]:
        rows = rows * n
    matrices = [w for w in types[KINDS[mode].states :] if w.rank == 2]
    total: Any = 0
    for w in matrices:
        total = total + rows * w.shape[0] * (w.shape[1] + 1)
    return total


def _torch(node: Node, x: list[str]) -> str:
    p = node.params
    kind = KINDS[p["mode"]]
    data, states, weights = x[0], x[1 : 1 + kind.states], ", ".join(x[1 + kind.states :])
    if node.inputs[0].type.device.startswith("cuda"):  # cuDNN wants states that lie in order; one number is expanded
        states = [f"{s}.contiguous()" for s in states]
    hidden = f"({', '.join(states)})" if kind.states > 1 else states[0]
    options = f"{p['has_biases']}, 1, 0.0, True, {p['directions'] == 2}"
    if p["batch_sizes"] is None:
        call = f"torch._VF.{p['mode']}({data}, {hidden}, [{weights}], {options}, False)"
    else:
        sizes = f"torch.tensor({list(p['batch_sizes'])})"
        call = f"torch._VF.{p['mode']}({data}, {sizes}, {hidden}, [{weights}], {options})"
    return f"with_gradients_on(lambda: {call})" if p["tracked"] else call


# torch has two kernels for an LSTM in float32, with bits of their own: one where gradients are on.
_TRACKED = '''\
def with_gradients_on(function):
    """The values of a call as it is made where gradients are on."""
    with torch.enable_grad():
        return tuple(x.detach() for x in function())


with_gradients_on.as_it_is = True  # nothing for torch.compile
'''


def _plainly(node: Node) -> Node:
    """The node whose call is written for a place where gradients are on."""
    return apply(node.op, *node.inputs, **(dict(node.params) | {"tracked": False}))


def _recorded(node: Node, inputs: Sequence[Node]) -> Node:
    return by_tape(_plainly(node), inputs)


def _fused(g: Any, y: Node, *xs: Node, **params: Any) -> tuple[Node | None, ...]:
    return by_tape_vjp(g, _plainly(y), *xs)


def without_gradients(found: Sequence[Node]) -> list[Node]:
    """The outputs of a call that was made where gradients are off."""

    def plain(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        return _plainly(new) if node.op is RECURRENT else new

    image = rebuild(found, plain)
    return [image[n] for n in found]


def _samples() -> tuple[Sample, ...]:
    def numbers(*shape: int, shift: float) -> np.ndarray:
        return np.sin(np.arange(1.0, 1 + np.prod(shape)) * 1.7 + shift).reshape(shape) * 0.8

    def sample(mode: str, directions: int, biases: bool, packed: Any = None, projection: int = 0) -> Sample:
        gates, width, features, batch = KINDS[mode].gates, 2, 2, 2
        out = projection or width
        rows = (3, batch) if packed is None else (sum(packed),)
        states = [numbers(directions, batch, out if not k else width, shift=k) for k in range(KINDS[mode].states)]
        weights = []
        for d in range(directions):
            weights += [numbers(gates * width, features, shift=3 + d), numbers(gates * width, out, shift=5 + d)]
            weights += [numbers(gates * width, shift=7 + d), numbers(gates * width, shift=9 + d)] if biases else []
            weights += [numbers(projection, width, shift=11 + d)] if projection else []
        given = {"mode": mode, "directions": directions, "has_biases": biases, "batch_sizes": packed, "tracked": True}
        return Sample((numbers(*rows, features, shift=0.4), *states, *weights), given)

    return (
        sample("lstm", 1, True),
        sample("lstm", 2, False, projection=1),
        sample("gru", 2, True),
        sample("gru", 1, True, packed=(2, 1)),
        sample("rnn_tanh", 1, False),
        sample("rnn_relu", 2, True, packed=(2, 2, 1)),
    )


_SAMPLES = _samples()

RECURRENT = composite(
    "recurrent_layer",
    expansion=_expansion,
    shape=_shape,
    names=(),
    family="kernel",
    **written_as_call("recurrent_layer"),
    torch=_torch,
    prelude=_TRACKED,
    works_inside=True,
    fused_vjp=_fused,
    recorded=_recorded,
    cost=_cost,
    samples=_SAMPLES,
    error_samples=(Sample((_SAMPLES[0].args[0][..., :1], *_SAMPLES[0].args[1:]), _SAMPLES[0].params),),
    source="Hochreiter and Schmidhuber 1997 with forget gates; Cho et al. 2014 in torch's form; Elman 1990",
)


# ---- from torch --------------------------------------------------------------------------------------------
def recurrent(
    mode: str,
    data: Node,
    batch_sizes: Node | None,
    hidden: Node | Sequence[Node],
    weights: Sequence[Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
    noise: Callable[[TensorType], Node] | None = None,
) -> list[Node]:
    """The outputs of torch's ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``: layers on top of each other.

    Args:
        noise: what dropout between layers multiplies a value of that type by.
    Raises:
        UnsupportedOpError: dropout would be drawn and there is no noise, or lengths that are not known.
    """
    dropped = dropout > 0 and train and num_layers > 1
    if dropped and dropout < 1 and noise is None:
        raise UnsupportedOpError("dropout between recurrent layers draws random numbers")
    if dropped and data.type.device.startswith("cuda"):
        raise UnsupportedOpError("dropout between recurrent layers is drawn inside of cuDNN's kernel")
    states = [hidden] if isinstance(hidden, Node) else list(hidden)
    directions = 2 if bidirectional else 1
    each = len(weights) // num_layers
    x = swap(data, 0, 1) if batch_first else data
    sizes = None if batch_sizes is None else _known_sizes(batch_sizes)
    finals: list[list[Node]] = []
    for layer in range(num_layers):
        own = [slice_axis(s, 0, layer * directions, (layer + 1) * directions) for s in states]
        node = apply(
            RECURRENT,
            x,
            *own,
            *weights[layer * each : (layer + 1) * each],
            mode=mode,
            directions=directions,
            has_biases=has_biases,
            batch_sizes=sizes,
            tracked=True,
        )
        x, *last = (item(node, k) for k in range(1 + len(states)))
        finals.append(last)
        if dropped and layer < num_layers - 1:
            x = x * (noise(x.type) if noise is not None and dropout < 1 else constant(0.0, x.type.dtype))
    y = swap(x, 0, 1) if batch_first else x
    return [
        y,
        *(concat([f[k] for f in finals], axis=0) if num_layers > 1 else finals[0][k] for k in range(len(states))),
    ]


def _known_sizes(batch_sizes: Node) -> tuple[int, ...]:
    known = known_numbers(batch_sizes)
    if known is None:
        raise UnsupportedOpError(
            "packed sequences whose lengths depend on the inputs",
            required="lengths that are known when the program is traced",
            instead="lengths as a list of numbers",
        )
    return tuple(int(n) for n in known)


def arguments(packed: bool, args: Sequence[Any]) -> tuple[Any, ...]:
    """The positional arguments of a call as :func:`recurrent` takes them after the mode."""
    return tuple(args) if packed else (args[0], None, *args[1:])


def _lowered(mode: str, packed: bool) -> Callable[..., list[Node]]:
    return lambda *args: recurrent(mode, *arguments(packed, args))


LOWERINGS.update(
    {f"{mode}.{overload}": _lowered(mode, overload == "data") for mode in KINDS for overload in ("input", "data")}
)


def _pack(x: Node, lengths: Node, batch_first: bool) -> list[Node]:
    """Rows of sequences, longest first, step by step; how many there are at each step."""
    known = np.asarray(_known_sizes(lengths))
    x = swap(x, 0, 1) if batch_first else x
    steps = int(known.max())
    sizes = [int((known > t).sum()) for t in range(steps)]
    _, there = _rows(sizes)
    batch = int(x.shape[1])
    rows = [t * batch + b for t, b in zip(*np.nonzero(there), strict=True)]
    trailing = [int(n) for n in x.shape[2:]]
    width = int(np.prod(trailing)) if trailing else 1
    flat = np.asarray(rows)[:, None] * width + np.arange(width)
    return [take_elements(x, flat.reshape(len(rows), *trailing)), constant(np.asarray(sizes, dtype=np.int64))]


LOWERINGS["_pack_padded_sequence"] = _pack
