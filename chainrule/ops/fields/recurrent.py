"""torch's recurrent layers, called as one kernel, written out cell by cell."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence

from chainrule.ir import OPS, Node, apply
from chainrule.ops.contraction import permute
from chainrule.ops.movement import expand_dims, squeeze
from chainrule.ops.random import dropout_noise
from chainrule.ops.slicing import concat, slice_axis

_MOST_STEPS = 256
_CALL = re.compile(r"torch\.ops\.aten\.(lstm|gru|rnn_tanh|rnn_relu)\.input\((.*)\)$")

Cell = Callable[[Node, list[Node], Sequence[Node]], list[Node]]


def _linear(x: Node, w: Node, b: Node | None) -> Node:
    return apply(OPS["linear"], x, w, *([] if b is None else [b]))


def _gates(x: Node, h: Node, weights: Sequence[Node], count: int) -> tuple[list[Node], list[Node]]:
    """The parts of W x + b and of U h + c."""
    w, u, *biases = weights
    b, c = biases if biases else (None, None)
    sides = (_linear(x, w, b), _linear(h, u, c))
    n = int(w.shape[0]) // count
    first, second = ([slice_axis(s, 1, k * n, (k + 1) * n) for k in range(count)] for s in sides)
    return first, second


def _act(name: str, x: Node) -> Node:
    return apply(OPS[name], x)


def _lstm(x: Node, state: list[Node], weights: Sequence[Node]) -> list[Node]:
    h, c = state
    a, b = _gates(x, h, weights, 4)
    i, f, g, o = (p + q for p, q in zip(a, b, strict=True))
    new = _act("sigmoid", f) * c + _act("sigmoid", i) * _act("tanh", g)
    return [_act("sigmoid", o) * _act("tanh", new), new]


def _gru(x: Node, state: list[Node], weights: Sequence[Node]) -> list[Node]:
    (h,) = state
    a, b = _gates(x, h, weights, 3)
    r, z = (_act("sigmoid", a[k] + b[k]) for k in range(2))
    n = _act("tanh", a[2] + r * b[2])
    return [(1.0 - z) * n + z * h]


def _plain(name: str) -> Cell:
    def cell(x: Node, state: list[Node], weights: Sequence[Node]) -> list[Node]:
        a, b = _gates(x, state[0], weights, 1)
        return [_act(name, a[0] + b[0])]

    return cell


_CELLS: dict[str, Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _plain("tanh"), "rnn_relu": _plain("relu")}


def written_recurrence(node: Node) -> list[Node] | None:
    """The outputs of a recurrent layer in single ops; None where the node is none, or a very long one."""
    call = node.params.get("call")
    match = _CALL.match(call.text) if call is not None and hasattr(call, "text") else None
    if match is None:
        return None
    places = re.sub(r"\{(\d+)\}", r"\1", match.group(2))
    x, state, weights, biased, layers, dropout, train, both, first = ast.literal_eval(f"({places})")
    states = state if isinstance(state, list) else [state]
    data, inputs = node.inputs[x], node.inputs
    data = permute(data, (1, 0, 2)) if first else data
    steps = int(data.shape[0])
    if steps > _MOST_STEPS:
        return None
    cell, ways = _CELLS[match.group(1)], 2 if both else 1
    per_layer = 4 if biased else 2
    xs = [squeeze(slice_axis(data, 0, k, k + 1), (0,)) for k in range(steps)]
    finals: list[list[Node]] = [[] for _ in states]
    for layer in range(layers):
        outs: list[list[Node]] = []
        for way in range(ways):
            k = layer * ways + way
            own = [inputs[p] for p in weights[k * per_layer : (k + 1) * per_layer]]
            held = [squeeze(slice_axis(inputs[s], 0, k, k + 1), (0,)) for s in states]
            ys: dict[int, Node] = {}
            for t in range(steps)[:: -1 if way else 1]:
                held = cell(xs[t], held, own)
                ys[t] = held[0]
            outs.append([ys[t] for t in range(steps)])
            for column, value in zip(finals, held, strict=True):
                column.append(expand_dims(value, (0,)))
        xs = [concat([o[t] for o in outs], 1) if ways > 1 else outs[0][t] for t in range(steps)]
        if dropout and train and layer < layers - 1:
            xs = [y * dropout_noise(dropout, y.type, -1 - t - steps * layer) for t, y in enumerate(xs)]
    stacked = concat([expand_dims(y, (0,)) for y in xs], 0)
    stacked = permute(stacked, (1, 0, 2)) if first else stacked
    return [stacked, *(concat(column, 0) for column in finals)]
