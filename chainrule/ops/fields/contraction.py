"""Fields through contractions: ``E[y y'] = sum over pairs of summed positions of the products of E[x x']``.

That holds for independent operands, whatever their laws; weights of mean zero keep only pairs of equal positions by
themselves. ``y`` is normal where an operand is made of independent weights (many of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.ir import Node
from chainrule.ir import pairs as pair
from chainrule.ir.field import Dims, Field, unknown, with_own, with_scale, within_budget, worst
from chainrule.ir.logarithms import log_shortfall
from chainrule.ops.fields.align import aligned, factor_labels, product_over, restricted
from chainrule.ops.fields.registry import rule, sizes
from chainrule.ops.fields.spread import summed_up


def contracted(
    fields: Sequence[Field], operands: Sequence[Sequence[Any]], result: Sequence[Any], name: Any, copies: bool = False
) -> Field:
    """The einsum of independent fields; indices are any labels.

    ``copies``: weights are those of a backward pass, independent of the forward pass by assumption.
    """
    if any(not f.known for f in fields):
        size = {i: n for f, o in zip(fields, operands, strict=True) for i, n in zip(o, f.shape, strict=True)}
        why = next(f.why for f in fields if not f.known)
        return unknown([size[i] for i in result], why, frozenset().union(*(f.sources for f in fields)))
    fields = aligned(
        [_diagonal(f, own) for f, own in zip(fields, operands, strict=True)], [list(dict.fromkeys(o)) for o in operands]
    )
    operands = [list(dict.fromkeys(o)) for o in operands]
    labels = factor_labels(fields, operands)
    axis_of = {label: a for f, own in zip(fields, labels, strict=True) for label, a in zip(own, f.axes, strict=True)}
    factors: dict[Any, list[Any]] = {}
    for f, own in zip(fields, operands, strict=True):
        for d, label in enumerate(own):
            found = [(label, j) for j in range(len(f.dims[d]))]
            if len(found) >= len(factors.get(label, [])):
                factors[label] = found
    order = [x for label in result for x in factors[label]]
    dims: Dims = tuple(tuple(axis_of[x] for x in factors[label]) for label in result)
    summed = [x for x in axis_of if x not in order]

    tables = [f.pairs for f in fields]
    pairs = product_over(tables, labels, order, {x: axis_of[x].weights for x in summed})
    counts: dict[Any, Any] = {x: float(axis_of[x].size) for x in summed}
    mean = product_over([f.mean for f in fields], labels, order, counts)
    second = product_over([f.second for f in fields], labels, order, counts)
    # pairs of different summed positions, as far as the tables know
    axes = [a for dim in dims for a in dim]
    whole = pair.resolved(pairs, axes)
    equal = []
    for table, own in zip(tables, labels, strict=True):
        for k, x in enumerate(own):
            if x in summed:
                table = restricted(table, k, axis_of[x])
        equal.append(table)
    averaged = {x: np.full(len(axis_of[x].same), axis_of[x].size / len(axis_of[x].same)) for x in summed}
    diagonal = product_over(equal, labels, order, averaged)
    if any(f.fresh for f in fields) or not summed:
        second = np.maximum(second + whole - pair.resolved(diagonal, axes), 0.0)
    else:  # a sum of many may nearly cancel: as the pairs say, with the profile of the single elements
        profile = second / np.maximum(pair.resolved(diagonal, axes), 1e-300)
        level, second = np.maximum(whole, 0.0), np.maximum(whole, 0.0) * profile
        average = float(np.mean(second))
        second = second * (float(np.mean(level)) / average) if average > 0 else level

    random = [f for f in fields if f.array is None]
    fresh = [f for f in fields if f.fresh]
    others = [f for f in fields if not f.fresh]
    given = not random
    scale: dict[Any, float] = {}
    for f in random:
        for key, e in f.scale.items():
            scale[key] = scale.get(key, 0.0) + e
    spread: float | None = None
    lean = sum(f.lean for f in random)
    if fresh and len(others) == 1 and others[0].array is None:
        scale, lean = with_own(scale, others[0], name), lean + log_shortfall(others[0].own_spread)
    for f, own in zip(fields, labels, strict=True):
        if f.strata and not fresh and any(a.size == f.strata for a, x in zip(f.axes, own, strict=True) if x in summed):
            fluctuation = float(np.log1p(f.uneven_strata))  # which the sum over the units leaves behind
            scale, lean = with_scale(scale, (name, f), float(np.sqrt(fluctuation))), lean + fluctuation / 2
    local, noise, noise_lean, rough, units = 0.0, 0.0, 0.0, 0.0, 0.0
    if fresh and len(others) == 1:
        (x,) = others
        fan_in = float(np.prod([axis_of[i].size for i in summed] or [1.0]))
        own = next(o for f, o in zip(fields, labels, strict=True) if f is x)
        units = float(np.prod([axis_of[i].size for i in order if i not in own] or [1.0]))
        if x.array is None:
            local = x.local + max(x.kurtosis - 1.0, 0.0) / fan_in
            more = x.spread_of_vector(fan_in)
            noise, noise_lean, rough = x.noise + more, x.noise_lean + more / 2, x.rough
        elif x.array.size > 1:
            rough = 1.0 / fan_in
    elif random:
        noise, rough = sum(f.noise for f in random), sum(f.rough for f in random)
        noise_lean = sum(f.noise_lean for f in random)
    shared = frozenset.intersection(*(f.sources for f in random)) if len(random) > 1 else frozenset()
    centred = bool(fresh) and len(others) == 1 and not any(np.any(f.mean) for f in fresh)
    coupled = bool(shared) or (len(random) > 1 and not fresh and not _disjoint(random))
    averaged_over = (
        len(fields) > 1 and not fresh and any(axis_of[x].lags is not None and axis_of[x].size > 1 for x in summed)
    )
    doubt = ["approximate"] if coupled or averaged_over else []
    kind = worst(*(f.kind if centred else f.kind_of_both for f in fields), *doubt)
    mean_kind = worst(
        *(["exact"] if centred else [f.kind_of_mean for f in fields]), *(["approximate"] if coupled else [])
    )
    mixed = 0 if fresh and not [f for f in others if f.array is None] else 1 if centred else 2
    if not fresh and len(random) == 1 and random[0].normal and len(fields) - len(random) == len(fields) - 1:
        mixed = random[0].mixed
    normal = bool(fresh) or (len(random) == 1 and random[0].normal)
    kurtosis = 3.0
    if (
        len(random) == 2 and not fresh and all(axis_of[x].size == 1 for x in summed)
    ):  # every element of one with many of the other
        spread = (1.0 + random[0].own_spread) * (1.0 + random[1].own_spread) - 1.0
    if len(random) > 1 and not fresh:
        kurtosis = 3.0 + 6.0 / max(float(np.prod([axis_of[x].size for x in summed] or [1.0])), 1.0)
        normal = True
    found = within_budget(
        Field(
            dims,
            mean,
            second,
            pairs,
            normal=normal or (bool(summed) and not given),
            kurtosis=kurtosis,
            scale=scale,
            local=local,
            noise=noise,
            noise_lean=noise_lean,
            lean=lean,
            degree=sum(f.degree for f in fields if not f.fresh and f.array is None),
            rough=rough,
            units=units,
            strata=max(f.strata for f in fields),
            own=0.0 if given else spread,
            own_sources={object(): 1.0},
            sources=frozenset().union(*(f.sources for f in fields)),
            odd=odd_product(fields),
            kind=kind,
            mean_kind=mean_kind,
            mixed=mixed,
            why="independent weights: E[y y'] sums E[w w'] E[x x']" if fresh else "operands taken as independent",
        )
    )
    if random and not fresh and any(axis_of[x].size > 1 for x in summed):
        return summed_up(found, fields, labels, summed, [axis_of[x] for x in summed])
    return found


def _disjoint(fields: Sequence[Field]) -> bool:
    """Whether no two of them depend on a common source."""
    return sum(len(f.sources) for f in fields) == len(frozenset().union(*(f.sources for f in fields)))


def odd_product(fields: Sequence[Field]) -> frozenset[str]:
    """Sources whose change of sign changes the sign of a product."""
    odd: frozenset[str] = frozenset()
    for f in fields:
        odd = odd ^ f.odd
    return odd


def _diagonal(value: Field, own: Sequence[Any]) -> Field:
    """Repeated indices of one operand: its diagonal, as far as a field knows it."""
    if len(set(own)) == len(own):
        return value
    keep = [own.index(label) for label in dict.fromkeys(own)]
    drop = [d for d in range(len(own)) if d not in keep]
    start = np.cumsum([0, *(len(d) for d in value.dims)])
    gone = tuple(k for d in drop for k in range(start[d], start[d + 1]))
    table, first, second = value.pairs, value.mean, value.second
    for k in gone:
        table = np.take(table, [0], axis=k)
        first, second = (np.mean(a, axis=k, keepdims=True) for a in (first, second))
    return replace(
        value,
        dims=tuple(value.dims[d] for d in keep),
        mean=np.squeeze(first, gone),
        second=np.squeeze(second, gone),
        pairs=np.squeeze(table, gone),
        kind=worst(value.kind, "approximate"),
        mean_kind="",
        fresh=False,
        array=None,
    )


def permuted(value: Field, order: Sequence[int]) -> Field:
    """Dimensions in another order."""
    start = np.cumsum([0, *(len(d) for d in value.dims)])
    axes = [k for d in order for k in range(start[d], start[d + 1])]
    return replace(
        value,
        dims=tuple(value.dims[d] for d in order),
        mean=np.transpose(value.mean, axes),
        second=np.transpose(value.second, axes),
        pairs=np.transpose(value.pairs, axes),
        echo=None,
        spike=None,
        array=None if value.array is None else np.transpose(value.array, axes),
    )


def is_permutation(node: Node) -> bool:
    """Whether an einsum only moves dimensions."""
    operands, result = node.params["operands"], node.params["result"]
    return len(operands) == 1 and sorted(operands[0]) == sorted(result) and len(set(result)) == len(result)


def order_of_dimensions(node: Node) -> list[int]:
    """The input's dimension that each of the result's is; the same ones, where nothing is moved."""
    if node.op.name == "einsum" and is_permutation(node):
        (own,), result = node.params["operands"], node.params["result"]
        return [own.index(i) for i in result]
    return list(range(len(node.shape)))


def with_alignment(
    back: Field, g: Field, weights: Field, x: Field, outputs: int, inputs: int, share: float = 1.0
) -> Field:
    """The cotangent of x in y = W x where g is partly parallel to y.

    Given y, the part of W along x is fixed (W x = y) and the rest is still random, so that
    E[g_x^2] = E[(g.y)^2] / (n |x|^2) + (1 - 1/n) s^2 sum E[g^2], and g_x.x = g.y.
    """
    if (g.alignment == 0.0 and g.own_alignment == 1.0) or not weights.fresh or not back.known or inputs < 2:
        return back
    lift = 1.0 + (g.pull(outputs) - 1.0) * share
    # (g.y)^2 / |x|^2, vector by vector: (g.y)^2 grows with |x| between its square and its fourth power
    uneven = np.sqrt(x.unevenness * (1.0 + x.local))
    more = 1.0 + (lift - 1.0) / (inputs * uneven)
    alignment = (lift / more - 1.0) / (inputs + 1)
    return replace(
        back,
        second=back.second * more,
        pairs=back.pairs * more,
        alignment=alignment,
        kind=worst(back.kind, "approximate"),
        mean_kind="",
    )


def _einsum_backward(
    node: Node, g: Field, y: Field, inputs: Sequence[Field], wanted: Sequence[bool]
) -> list[Field | None]:
    operands, result = node.params["operands"], node.params["result"]
    found: list[Field | None] = []
    for k, x in enumerate(inputs):
        if not wanted[k]:
            found.append(None)
            continue
        others = [f for j, f in enumerate(inputs) if j != k]
        rest = [o for j, o in enumerate(operands) if j != k]
        own = operands[k]
        present = {*result, *(i for o in rest for i in o)}
        target = [i for i in own if i in present]
        part = contracted([g, *others], [result, *rest], target, ("back", node, k), copies=True)
        if len(others) == 1 and others[0].fresh:
            (w,) = rest
            outputs = int(np.prod([n for i, n in zip(w, others[0].shape, strict=True) if i in result and i not in own]))
            summed = int(np.prod([n for i, n in zip(w, others[0].shape, strict=True) if i not in result]))
            part = with_alignment(part, g, others[0], x, outputs, summed)
        elif is_permutation(node):
            part = replace(
                part, alignment=g.alignment, own_alignment=g.own_alignment, scale=g.scale, own=g.own, units=g.units
            )
        found.append(_spread_to(part, target, own, x))
    return found


def _spread_to(part: Field, target: Sequence[Any], own: Sequence[Any], x: Field) -> Field:
    """A cotangent repeated along dimensions of x that were summed alone."""
    for d, label in enumerate(own):
        if label not in target:
            start = sum(len(f) for f in part.dims[:d])
            dims = list(part.dims)
            dims.insert(d, x.dims[d])
            where = tuple(range(start, start + len(x.dims[d])))
            part = replace(
                part,
                dims=tuple(dims),
                mean=np.expand_dims(part.mean, where),
                second=np.expand_dims(part.second, where),
                pairs=np.expand_dims(part.pairs, where),
            )
    return part


@rule("einsum", backward=_einsum_backward)
def _einsum(node: Node, inputs: Sequence[Field]) -> Field:
    if is_permutation(node):
        (own,), result = node.params["operands"], node.params["result"]
        return permuted(inputs[0], [own.index(i) for i in result])
    return contracted(inputs, node.params["operands"], node.params["result"], node)


_ = sizes
