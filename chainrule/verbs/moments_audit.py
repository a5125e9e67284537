"""What predicted moments say about a start: the first layer at which a pass leaves its band, and why.

Only values that every path from the input to the loss passes are compared over depth (the stream of a residual
network, not its branches). Gradients are compared by the sum of their squares per sample, which widths do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.ir import Node, TensorType, toposort
from chainrule.ir.field import Field
from chainrule.verbs.moments import Departure
from chainrule.verbs.moments_attention import saturated

_SHRINKS, _GROWS = 1 / 50, 1e3  # of the mean square of values, from the first layer on
_FADES, _BLOWS = 1e-3, 1e3  # of the sum of squares of a gradient, from the last layer back
_LARGE = 30.0  # mean square of values below which growth does no harm by itself
_LOGITS = 9.0  # variance of scores: a standard deviation of 3
_LARGE_DATA = 100.0  # mean square of data that were not standardised
_PER_BLOCK = 10.0  # what one residual branch may add, in units of the stream's start
_REACH = 4.5  # standard deviations that an element reaches


@dataclass(frozen=True)
class _Place:
    name: str
    node: Node
    value: Field
    cotangent: Field | None


def audited(trace: Any, run: Any) -> tuple[Departure, ...]:
    """Findings, those of the passes first."""
    places = list(_chain(trace, run))
    found = [*_overflow(trace, run), *saturated(trace, run, _names(trace, run)), *_passes(places)]
    found += [*_residual(trace, run, places), *_scores(trace, run)]
    return tuple([*found, *_layers(trace, run), *_duplicates(trace)])


# ---- the chain ---------------------------------------------------------------------------------------------
def _names(trace: Any, run: Any) -> dict[Node, str]:
    """Expanded node -> the path of the innermost module that returned it."""
    names: dict[Node, str] = {}
    for call in trace.calls:
        for node in call.outputs:
            if call.path and call.path != "loss":
                names.setdefault(run.image.get(node, node), call.path)
    return names


def _chain(trace: Any, run: Any) -> Iterator[_Place]:
    """Named values that every path from the data to the result passes, in order, from the first layer on."""
    root = trace.loss if trace.loss is not None else trace.output
    if root is None:
        return
    root = run.image.get(root, root)
    data = {run.image.get(n, n) for n in trace.batch_inputs.values()}
    order = toposort([root])
    moving: set[Node] = set()
    for n in order:
        if n in data or any(i in moving for i in n.inputs):
            moving.add(n)
    last_use: dict[Node, int] = {}
    position = {n: k for k, n in enumerate(order)}
    for n in order:
        for i in n.inputs:
            if i in moving:
                last_use[i] = max(last_use.get(i, -1), position[n])
    names, open_until = _names(trace, run), -1
    started = False
    for k, n in enumerate(order):
        if n not in moving or n is root:
            continue
        if k >= open_until and n.inputs and isinstance(n.type, TensorType) and n.type.is_float:
            started = started or _weighted(n, moving)
            value = run.forward.get(n)
            if started and n in names and isinstance(value, Field) and value.known and value.shape:
                back = run.backward.get(n)
                yield _Place(names[n], n, value, back if isinstance(back, Field) and back.known else None)
        open_until = max(open_until, last_use.get(n, k) if n not in data else -1)


def _weighted(node: Node, moving: set[Node]) -> bool:
    """Whether weights have met the data."""
    return any(i.is_leaf and i.op.name == "input" and i not in moving and i.type.rank > 1 for i in node.inputs)


# ---- both passes -------------------------------------------------------------------------------------------
def _passes(places: Sequence[_Place]) -> Iterator[Departure]:
    if len(places) < 2:
        return
    start = places[0].value.mean_square
    for k, place in enumerate(places):
        ratio = place.value.mean_square / start if start > 0 else 1.0
        grown = ratio > _GROWS and place.value.mean_square > _LARGE  # a norm may lift a small embedding to 1
        if start > 0 and (ratio < _SHRINKS or grown):
            kind = "vanishing" if ratio < 1 else "exploding"
            each = ratio ** (1 / max(k, 1))
            yield Departure(
                kind,
                "error" if not 1e-4 <= ratio <= 1e4 else "warning",
                place.name,
                "forward",
                f"E[x^2] = {place.value.mean_square:.3g} against {start:.3g} at {places[0].name}: "
                f"a factor {each:.3g} per layer",
                "E[f^2] = n Var(w) E[h^2] + Var(b), E[h^2] = E[phi(f)^2]",
                _remedy(ratio < 1),
            )
            break
    flows = [(p, p.cotangent.mean_square * float(np.prod(p.value.shape))) for p in places if p.cotangent is not None]
    flows = [(p, s) for p, s in flows if s > 0]
    if len(flows) < 2:
        return
    last_place, last = flows[-1]
    for place, size in reversed(flows):
        ratio = size / last
        if not _FADES <= ratio <= _BLOWS:
            whole = flows[0][1] / last
            each = whole ** (1 / max(len(flows) - 1, 1))
            yield Departure(
                "vanishing" if ratio < 1 else "exploding",
                "error",
                place.name,
                "backward",
                f"sum of g^2 is {size:.3g} against {last:.3g} at {last_place.name}, and {flows[0][1]:.3g} at "
                f"{flows[0][0].name}: a factor {each:.3g} per layer",
                "E[|g_h|^2] = D_out Var(w) E[|g_f|^2], E[g_f^2] = E[phi'(f)^2] E[g_h^2]; chi is their product",
                _remedy(ratio < 1),
            )
            break


def _remedy(small: bool) -> str:
    size = "larger" if small else "smaller"
    return f"{size} weights: chainrule.initialize_(model, batch, loss) keeps both passes at their scale"


# ---- residual streams --------------------------------------------------------------------------------------
def _residual(trace: Any, run: Any, places: Sequence[_Place]) -> Iterator[Departure]:
    """Branches that add far more to a stream than it starts with."""
    root = trace.loss if trace.loss is not None else trace.output
    if root is None:
        return
    order = toposort([run.image.get(root, root)])
    names = _names(trace, run)
    rank = {n: k for k, n in enumerate(order)}
    adds: list[tuple[Node, Field, Field]] = []
    for n in order:
        if n.op.name != "add" or len(n.inputs) != 2:
            continue
        a, b = (run.forward.get(i) for i in n.inputs)
        if not (isinstance(a, Field) and isinstance(b, Field)) or a.array is not None or b.array is not None:
            continue
        if a.shape != b.shape or not a.known or not b.known or a.fresh or b.fresh:
            continue
        old, new = sorted(n.inputs, key=lambda i: rank[i])
        if not run.forward[new].sources - run.forward[old].sources or not _reaches(new, old, rank):
            continue
        adds.append((n, run.forward[old], run.forward[new]))
    if len(adds) < 2:
        return
    start = adds[0][1].mean_square
    if not start > 0:
        return
    share = float(np.mean([b.mean_square for _, _, b in adds])) / start
    if share <= _PER_BLOCK:
        return
    node = next((n for n, _, b in adds if b.mean_square > _PER_BLOCK * start), adds[0][0])
    end = run.forward[adds[-1][0]].mean_square
    where = names.get(_newer(node, rank), names.get(node, "a residual sum"))
    yield Departure(
        "residual",
        "warning",
        where,
        "forward",
        f"its branch adds {run.forward[_newer(node, rank)].mean_square:.3g} to a stream that starts at {start:.3g}; "
        f"after {len(adds)} sums it is {end:.3g}",
        "q_L = q_0 + sum of the branches' mean squares",
        f"scale the last weights of each branch by 1 / sqrt({len(adds)})",
    )


def _newer(node: Node, rank: Mapping[Node, int]) -> Node:
    return max(node.inputs, key=lambda i: rank[i])


def _reaches(node: Node, target: Node, rank: Mapping[Node, int]) -> bool:
    """Whether a value depends on an earlier one."""
    stack, seen = [node], set()
    while stack:
        n = stack.pop()
        if n is target:
            return True
        for i in n.inputs:
            if i not in seen and rank.get(i, -1) >= rank[target]:
                seen.add(i)
                stack.append(i)
    return False


# ---- scores, numbers, single layers ------------------------------------------------------------------------
def _scores(trace: Any, run: Any) -> Iterator[Departure]:
    if trace.loss is None:
        return
    loss = run.image.get(trace.loss, trace.loss)
    for n in toposort([loss]):
        if n.op.name not in ("cross_entropy", "weighted_cross_entropy", "nll_loss", "bce_with_logits"):
            continue
        scores = run.forward.get(n.inputs[0])
        if not isinstance(scores, Field) or not scores.known or scores.mean_square <= _LOGITS:
            continue
        data = _large_data(trace, run)
        if data is not None and scores.mean_square <= _LOGITS * data[1]:
            yield Departure(
                "input_scale",
                "warning",
                data[0],
                "forward",
                f"E[x^2] = {data[1]:.3g}, and scores of E[z^2] = {scores.mean_square:.3g}: the layers pass it on",
                "E[f^2] = n Var(w) E[x^2]",
                "data of mean 0 and variance 1: (x - x.mean()) / x.std()",
            )
            continue
        names, node = _names(trace, run), n.inputs[0]
        while node.op.name in ("reshape", "slice", "cast", "contiguous", "pad") and node not in names:
            node = node.inputs[0]
        where = names.get(node, "the scores")
        weight = next((i.params["name"] for i in node.inputs if i.is_leaf and i.type.rank > 1), None)
        own = next((p for p, leaf in trace.parameters.items() if leaf.params["name"] == weight), weight)
        yield Departure(
            "logits",
            "warning",
            where,
            "forward",
            f"scores of standard deviation {np.sqrt(scores.mean_square):.3g}: the first loss is far above ln(classes)",
            "E[z^2] = d Var(w) E[x^2]" + (f", w = {own}" if own else ""),
            "a smaller last layer: Var(w) at most 1 / (d E[x^2])",
        )


def _large_data(trace: Any, run: Any) -> tuple[str, float] | None:
    """(name, mean square) of the largest data, where they were not standardised."""
    found = []
    for name, leaf in trace.batch_inputs.items():
        value = run.value(leaf) if leaf.type.is_float else None
        if value is not None and value.known and value.mean_square > _LARGE_DATA:
            found.append((name, value.mean_square))
    return max(found, key=lambda entry: entry[1], default=None)


_LARGEST = {"float16": 65504.0}


def _overflow(trace: Any, run: Any) -> Iterator[Departure]:
    """The first value whose elements leave what its dtype holds."""
    names = {}
    for call in trace.calls:
        for node in call.outputs:
            names.setdefault(node, call.path)
    for node in trace.graph.nodes:
        if not isinstance(node.type, TensorType) or node.type.dtype not in _LARGEST or not node.inputs:
            continue
        value = run.value(node)
        if value is None or not value.known:
            continue
        reach = _REACH * np.sqrt(float(np.max(value.second)))
        if reach > _LARGEST[node.type.dtype]:
            yield Departure(
                "overflow",
                "error",
                names.get(node) or node.op.name,
                "forward",
                f"elements of rms {np.sqrt(value.mean_square):.3g} reach {reach:.3g}; {node.type.dtype} holds "
                f"{_LARGEST[node.type.dtype]:.0f}",
                "the largest of many normal elements is about 4.5 standard deviations",
                "smaller weights, or bfloat16",
            )
            return


def _layers(trace: Any, run: Any) -> Iterator[Departure]:
    """Single layers whose weights were drawn for another fan than they have."""
    paths = {leaf: name for name, leaf in trace.parameters.items()}
    seen: set[str] = set()
    for node in trace.graph.nodes:
        if not isinstance(node.type, TensorType):
            continue
        own = [_sliced(i) for i in node.inputs if _sliced(i) in paths and i.type.rank > 1]
        if len(own) != 1 or node.op.name not in ("linear", "einsum", "convolution", "conv_transpose"):
            continue
        (leaf,) = own
        name = paths[leaf]
        x = next((run.value(i) for i in node.inputs if _sliced(i) is not leaf and i.type.rank > 1), None)
        w = run.forward.get(leaf)
        if name in seen or x is None or not x.known or not isinstance(w, Field) or not w.fresh or not x.mean_square > 0:
            continue
        seen.add(name)
        gain = _gain(node, w)
        why = _cause(node, trace, leaf, gain)
        if why is not None:
            formula, fix = why
            yield Departure(
                "gain",
                "warning",
                name,
                "forward",
                f"n Var(w) = {gain:.3g}: E[f^2] is {gain:.3g} times E[x^2]",
                formula,
                fix,
            )


def _sliced(node: Node) -> Node:
    """The value that a slice is taken of; others as they are."""
    return node.inputs[0] if node.op.name == "slice" else node


def _gain(node: Node, w: Field) -> float:
    """n Var(w): what the layer does to the mean square of independent inputs, away from borders."""
    shape = [int(n) for n in w.shape]
    if node.op.name == "conv_transpose":
        count = shape[0] / int(node.params.get("groups", 1)) * np.prod(shape[2:]) / np.prod(node.params["stride"])
    elif node.op.name == "einsum":
        operands, result = node.params["operands"], node.params["result"]
        position = next(k for k, i in enumerate(node.inputs) if _sliced(i).is_leaf and i.type.rank == len(shape))
        count = np.prod([n for i, n in zip(operands[position], shape, strict=True) if i not in result])
    else:
        count = np.prod(shape[1:])
    return float(count) * w.mean_square


def _cause(node: Node, trace: Any, leaf: Node, gain: float) -> tuple[str, str] | None:
    shape = [int(n) for n in leaf.shape]
    if node.op.name in ("convolution", "conv_transpose"):
        groups = int(node.params.get("groups", 1))
        if (gain >= 0.3 and groups == 1) or gain >= 0.6:
            return None
        if node.op.name == "conv_transpose":
            fan = shape[0] // groups * int(np.prod(shape[2:])) // int(np.prod(node.params["stride"]))
            return (
                f"a transposed convolution reads in * kernel / stride = {fan} inputs per output, not out * kernel",
                f"Var(w) = 1 / {fan}",
            )
        if groups > 1:
            fan = int(np.prod(shape[1:]))
            return f"a grouped convolution reads {fan} inputs per output", f"Var(w) = 1 / {fan}"
        return None
    if len(shape) != 2 or node.op.name != "linear":
        return None
    out, into = shape
    parts = [n for n in trace.graph.nodes if n.op.name == "slice" and (n.inputs[0] is leaf or _from(n, node))]
    if len(parts) > 1 and out % into == 0 and out > into and abs(gain - 2 * into / (into + out)) < 0.1 * gain:
        return (
            f"{out // into} matrices drawn as one: Var(w) = 2 / (in + {out // into} out) in place of 2 / (in + out)",
            f"xavier on each of the {out // into} parts",
        )
    tensor = trace.values.get(leaf)
    if tensor is not None and not tensor.is_meta and out > into and _orthogonal(tensor):
        return (
            "columns of length one: an orthogonal matrix keeps |x|, so E[f^2] = E[x^2] in / out",
            f"gain sqrt(out / in) = {np.sqrt(out / into):.3g}",
        )
    return None


def _from(node: Node, source: Node) -> bool:
    """Whether a slice is taken of a value, through reshapes and permutations."""
    for _ in range(12):
        (node,) = node.inputs[:1]
        if node is source:
            return True
        shifted = node.op.name == "add" and node.inputs[1].is_leaf  # by a bias
        moved = node.op.name in ("reshape", "einsum", "squeeze", "expand_dims", "contiguous") and len(node.inputs) == 1
        if not shifted and not moved:
            return False
    return False


def _orthogonal(tensor: torch.Tensor) -> bool:
    """Whether the columns are orthogonal and of one length, on a few of them."""
    columns = tensor.detach()[:, :32].double()
    gram = columns.T @ columns
    size = float(gram.diagonal().mean())
    return size > 0 and bool((gram - size * torch.eye(len(gram), dtype=gram.dtype)).abs().max() < 1e-3 * size)


def _duplicates(trace: Any) -> Iterator[Departure]:
    """Parameters that are equal element by element without being one tensor: layers that start as copies."""
    groups: dict[Any, list[str]] = {}
    for name, leaf in trace.parameters.items():
        tensor = trace.values[leaf]
        if tensor.dim() < 2 or tensor.is_meta or tensor.numel() < 4:
            continue
        flat = tensor.detach().reshape(-1)
        key = (tuple(tensor.shape), tuple(flat[:: max(flat.numel() // 16, 1)].tolist()))
        groups.setdefault(key, []).append(name)
    for names in groups.values():
        first = trace.values[trace.parameters[names[0]]]
        same = [n for n in names[1:] if torch.equal(first, trace.values[trace.parameters[n]])]
        same = [n for n in same if trace.parameters[n] is not trace.parameters[names[0]]]
        if same and float(first.detach().float().std()) > 0:
            yield Departure(
                "duplicate",
                "warning",
                same[0],
                "forward",
                f"{', '.join(same[:4])}{', ...' if len(same) > 4 else ''} equal {names[0]} element by element",
                "copies of one layer (copy.deepcopy, nn.TransformerEncoder) start alike and stay correlated",
                "draw each layer's weights by itself: layer.apply(reset) or chainrule.initialize_",
            )
            return
