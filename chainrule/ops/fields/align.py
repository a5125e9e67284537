"""Fields of several operands with the same factors, so that their arrays and tables meet dimension by dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from chainrule.ir.factors import common, merged, refined, with_factor, without_ones
from chainrule.ir.field import Dims, Field, regraded
from chainrule.ir.pairs import Axis, finer


def aligned(fields: Sequence[Field], labels: Sequence[Sequence[Any]]) -> list[Field]:
    """The fields with equal factors in every dimension that has the same label; dimensions of size 1 have none."""
    fields = list(fields)
    wanted: dict[Any, list[tuple[int, int]]] = {}
    for f, own in enumerate(labels):
        for d, label in enumerate(own):
            wanted.setdefault(label, []).append((f, d))
    for places in wanted.values():
        for f, d in places:
            if fields[f].shape[d] == 1:
                fields[f] = without_ones(fields[f], d)
        places = [(f, d) for f, d in places if fields[f].shape[d] != 1]
        if len(places) < 2:
            for f, d in places:
                fields[f] = without_ones(fields[f], d)
            continue
        lists = [[a.size for a in fields[f].dims[d] if a.size != 1] for f, d in places]
        both = common(lists)
        if both is None:
            both = [prod(lists[0])]
        for f, d in places:
            value = without_ones(fields[f], d)
            if len(both) == 1 and len(value.dims[d]) > 1:
                start = sum(len(x) for x in value.dims[:d])
                value = merged(value, start, len(value.dims[d]))
            fields[f] = refined(value, d, both)
        for j in range(len(both)):
            grade = None
            for f, d in places:
                own = fields[f].dims[d][j]
                grade = own if grade is None else finer(grade, own)
            assert grade is not None
            for f, d in places:
                start = sum(len(x) for x in fields[f].dims[:d])
                fields[f] = regraded(fields[f], start + j, grade)
    return fields


def broadcasted(fields: Sequence[Field], rank: int, shape: Sequence[int]) -> tuple[list[Field], Dims]:
    """Operands of an elementwise op: the same dimensions and factors, and the dims of the result."""
    full = []
    for value in fields:
        for _ in range(rank - len(value.dims)):
            value = replace(
                value,
                dims=((), *value.dims),
            )
        full.append(value)
    labels = [range(rank)] * len(full)
    full = aligned(full, labels)
    dims: list[tuple[Axis, ...]] = []
    for d in range(rank):
        factors = next((value.dims[d] for value in full if value.shape[d] == shape[d] and shape[d] != 1), ())
        for k, value in enumerate(full):
            if shape[d] != 1 and value.shape[d] == 1:
                value = without_ones(value, d)
                for a in reversed(factors):
                    value = with_factor(value, d, a)
                full[k] = value
            elif shape[d] == 1:
                full[k] = without_ones(value, d)
        dims.append(factors)
    return full, tuple(dims)


def factor_labels(fields: Sequence[Field], labels: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """A label (dimension's label, position) for every factor of aligned fields."""
    return [
        [(label, j) for d, label in enumerate(own) for j in range(len(f.dims[d]))]
        for f, own in zip(fields, labels, strict=True)
    ]


def product_over(
    arrays: Sequence[np.ndarray],
    labels: Sequence[Sequence[Any]],
    result: Sequence[Any],
    summed: Mapping[Any, Any],
) -> np.ndarray:
    """Products of arrays by label, summed over what ``result`` does not have.

    ``summed`` holds for each label that is summed away what every entry counts: a number where all are alike, or one
    weight per class. A dimension of size 1 stands for equal entries.
    """
    names: dict[Any, int] = {}
    operands: list[Any] = []
    present: dict[Any, bool] = {}
    for array, own in zip(arrays, labels, strict=True):
        kept = [d for d in range(array.ndim) if array.shape[d] != 1]
        operands += [
            array.reshape([array.shape[d] for d in kept]),
            [names.setdefault(own[d], len(names)) for d in kept],
        ]
        for d in kept:
            present[own[d]] = True
    factor = 1.0
    for label, weight in summed.items():
        if label in present:
            if isinstance(weight, np.ndarray):
                operands += [weight, [names[label]]]
        else:
            factor *= float(np.sum(weight))
    free = [label for label in result if label in present]
    value = np.einsum(*operands, [names[label] for label in free], optimize=True) * factor
    shape = []
    k = 0
    for label in result:
        if label in present:
            shape.append(value.shape[k])
            k += 1
        else:
            shape.append(1)
    return value.reshape(shape)


def restricted(table: np.ndarray, k: int, axis: Axis) -> np.ndarray:
    """The entries of positions with themselves, resolved or size 1."""
    return np.take(table, axis.same, axis=k) if table.shape[k] > 1 else table
