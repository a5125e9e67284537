"""Connectionist temporal classification: the likelihood of a labelling, summed over its alignments.

A program runs torch's kernel with its own backward, which supposes that the scores of each step are logarithms of
probabilities that sum to one (the output of log_softmax). The expansion is the forward recursion over steps as one
``scan``, in logarithms; its derivative is that of the formula for any scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.ir import Graph, Node, Sample, apply, as_node, constant, lowering, variable
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.casts import cast
from chainrule.ops.elements import take_elements
from chainrule.ops.families import kernel
from chainrule.ops.gathering import GATHER
from chainrule.ops.loops import scan
from chainrule.ops.movement import broadcast, expand_dims, reshape
from chainrule.ops.opaque import by_tape, by_tape_vjp
from chainrule.ops.slicing import concat, slice_axis
from chainrule.ops.special_functions import LOGADDEXP

_NEVER = -1e30  # the logarithm of a probability that is zero: finite, so that differences of two are numbers

_LP = np.sin(np.arange(4 * 2 * 3.0)).reshape(4, 2, 3)
_LP = _LP - np.log(np.exp(_LP).sum(-1, keepdims=True))


def _padded_targets(targets: Node, lengths: Sequence[int]) -> Node:
    """``batch x longest``, also of targets that are written one after the other."""
    longest = max(lengths, default=0)
    if targets.type.rank == 2:
        return slice_axis(targets, 1, 0, longest)
    starts = np.cumsum([0, *lengths])[:-1]
    places = starts[:, None] + np.minimum(np.arange(longest), np.maximum(np.asarray(lengths)[:, None] - 1, 0))
    return take_elements(targets, np.minimum(places, int(targets.shape[0]) - 1))


def _shifted(alpha: Node, by: int) -> Node:
    never = broadcast(as_node(_NEVER, like=alpha), (alpha.shape[0], by))
    return concat([never, slice_axis(alpha, 1, 0, int(alpha.shape[1]) - by)], axis=1)


def _ctc(
    lp: Node,
    targets: Node,
    *,
    input_lengths: tuple[int, ...],
    target_lengths: tuple[int, ...],
    blank: int,
    zero_infinity: bool,
) -> Node:
    if lp.type.rank != 3 or len(input_lengths) != lp.shape[1] or len(target_lengths) != lp.shape[1]:
        raise ShapeError("ctc of (steps, batch, classes) with two lengths per sequence", given=str(lp.type))
    steps, batch = int(lp.shape[0]), int(lp.shape[1])
    longest = max(target_lengths)
    if not longest:
        raise UnsupportedOpError("ctc of labellings that are all empty")
    labels = cast(_padded_targets(targets, target_lengths), "int64")
    blanks = broadcast(constant(blank, "int64"), (batch, longest, 1))
    pairs = concat([blanks, expand_dims(labels, (2,))], axis=2)
    states = concat(
        [reshape(pairs, (batch, 2 * longest)), broadcast(constant(blank, "int64"), (batch, 1))], axis=1
    )  # blank, label, blank, label, ..., blank
    width = 2 * longest + 1
    scores = apply(GATHER, lp, broadcast(expand_dims(states, (0,)), (steps, batch, width)), axis=2)
    # From a label to the next one, unless it is the same: a blank is then between them.
    before = concat([broadcast(constant(-1, "int64"), (batch, 2)), slice_axis(states, 1, 0, width - 2)], axis=1)
    skips = compare("ne", states, before) * compare("ne", states, constant(blank, "int64"))
    skips = skips * constant(np.broadcast_to(np.arange(width) > 2, (batch, width)))

    never = broadcast(as_node(_NEVER, like=lp), (batch, width))
    started = np.zeros((batch, width), dtype=bool)
    started[:, 0] = True
    started[:, 1] = np.asarray(target_lengths) > 0
    first = where(constant(started), reshape(slice_axis(scores, 0, 0, 1), (batch, width)), never)
    running = np.arange(1, steps)[:, None] < np.asarray(input_lengths)
    rest = slice_axis(scores, 0, 1, steps)

    allowed, alpha = variable("skips", skips.type), variable("alpha", first.type)
    score, on = variable("score", first.type), variable("on", constant(running[:1, :, None][0]).type)
    moved = apply(LOGADDEXP, alpha, _shifted(alpha, 1))
    moved = where(allowed, apply(LOGADDEXP, moved, _shifted(alpha, 2)), moved)
    body = Graph((allowed, alpha, score, on), (where(on, moved + score, alpha),))
    (last,) = scan(body, [skips], [first], [rest, constant(running[:, :, None])], steps - 1)

    ends = np.asarray(target_lengths)
    blank_end = apply(GATHER, last, constant(2 * ends[:, None]), axis=1)
    label_end = apply(GATHER, last, constant(np.maximum(2 * ends - 1, 0)[:, None]), axis=1)
    both = where(constant(ends[:, None] > 0), apply(LOGADDEXP, blank_end, label_end), blank_end)
    loss = -reshape(both, (batch,))
    impossible = compare("gt", loss, -_NEVER / 2)
    return where(impossible, as_node(0.0 if zero_infinity else np.inf, like=lp), loss)


def _torch(node: Node, x: list[str]) -> str:
    p = node.params
    lengths = f"{list(p['input_lengths'])}, {list(p['target_lengths'])}"
    return f"torch.ops.aten._ctc_loss({x[0]}, {x[1]}, {lengths}, {p['blank']}, {p['zero_infinity']})[0]"


_LENGTHS = {"input_lengths": (4, 3), "target_lengths": (2, 1), "blank": 0, "zero_infinity": False}

CTC = kernel(
    "ctc",
    call="",
    torch=_torch,
    expansion=_ctc,
    fused_vjp=by_tape_vjp,
    recorded=by_tape,
    samples=(
        Sample((_LP, np.array([[1, 2], [2, 0]])), _LENGTHS),
        Sample((_LP, np.array([1, 1, 2])), _LENGTHS | {"zero_infinity": True}),
    ),
    error_samples=(Sample((_LP[0], np.array([[1, 2], [2, 0]])), _LENGTHS),),
    source="Graves et al. 2006, equations 6 to 8",
)


@lowering("_ctc_loss")
def ctc(
    lp: Node,
    targets: Node,
    input_lengths: Sequence[int],
    target_lengths: Sequence[int],
    blank: int = 0,
    zero_infinity: bool = False,
) -> list[Any]:
    """The loss of every sequence; the forward variables are for the kernel's own backward."""
    # An infinite loss that counts as zero is replaced after this call, and again in its derivative.
    options = {"blank": blank, "zero_infinity": bool(zero_infinity)}
    lengths = {"input_lengths": tuple(map(int, input_lengths)), "target_lengths": tuple(map(int, target_lengths))}
    return [apply(CTC, lp, targets, **lengths, **options), None]
