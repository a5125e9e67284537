"""Where in a tensor something is wrong, in words: ``rows 64-127``, ``the last column``, ``where x < 0``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

EVERYWHERE = "all of it"
_DENSE, _HIT = 0.3, 0.15  # of the elements of a place that must be wrong, rounding hiding the others
_NAMES = {1: ("element",), 2: ("row", "column")}


def region(wrong: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str:
    """The place of the true entries of ``wrong``; ``inputs`` are tried as a condition on tensors of the same shape.

    >>> mask = torch.zeros(128, 8, dtype=torch.bool)
    >>> mask[64:] = True
    >>> region(mask, {})
    'rows 64-127'
    """
    count, total = int(wrong.sum()), wrong.numel()
    if not count:
        return ""
    if wrong.ndim == 0 or count == total:
        return EVERYWHERE if total > 1 else "its only element"
    spans = [_span(wrong, d) for d in range(wrong.ndim)]
    box = torch.ones_like(wrong)
    for d, indices in enumerate(spans):
        inside = torch.zeros(wrong.shape[d], dtype=torch.bool)
        inside[indices] = True
        box &= inside.reshape([-1 if k == d else 1 for k in range(wrong.ndim)])
    partial = [d for d, indices in enumerate(spans) if len(indices) < wrong.shape[d]]
    if any(_irregular(spans[d]) and len(spans[d]) > wrong.shape[d] // 3 for d in partial):
        partial = []  # scattered: rounding hides it in some places
    if partial and count >= 0.9 * int(box.sum()):
        return ", ".join(_span_text(spans[d], d, wrong) for d in partial)
    found = _condition(wrong, inputs)
    if found:
        return found
    if partial and count >= _DENSE * int(box.sum()):
        return ", ".join(_span_text(spans[d], d, wrong) for d in partial)
    if wrong.ndim >= 2 and wrong.shape[-1] == wrong.shape[-2]:
        i, j = torch.arange(wrong.shape[-2])[:, None], torch.arange(wrong.shape[-1])[None, :]
        for text, shape in (("on the diagonal", i == j), ("above the diagonal", j > i), ("below the diagonal", j < i)):
            place = shape.expand(wrong.shape)
            if not bool((wrong & ~place).any()) and count >= max(_HIT * int(place.sum()), 2):
                return text
    if count >= 0.9 * total:
        return EVERYWHERE
    if count >= 0.2 * total:
        return f"throughout ({count} of {total} elements)"
    first = tuple(int(i) for i in wrong.nonzero()[0])
    at = ", ".join(map(str, first))
    return f"{count} of {total} elements, the first at [{at}]"


def _condition(wrong: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str:
    """The sign of an input that all wrong elements share."""
    count, total = int(wrong.sum()), wrong.numel()
    for name, x in inputs.items():
        if x.shape == wrong.shape and x.is_floating_point():
            for text, condition in ((f"where {name} < 0", x < 0), (f"where {name} > 0", x > 0)):
                part, hit = int(condition.sum()), not bool((wrong & ~condition).any())
                if hit and part < total and count >= max(_HIT * part, 2):
                    return text
    return ""


def _irregular(indices: list[int]) -> bool:
    return len(indices) > 6 and len({b - a for a, b in itertools.pairwise(indices)}) > 1


def _span(wrong: torch.Tensor, dim: int) -> list[int]:
    other = [d for d in range(wrong.ndim) if d != dim]
    along = wrong.any(dim=other) if other else wrong  # type: ignore[arg-type]
    return [int(i) for i in along.nonzero().flatten()]


def _span_text(indices: list[int], dim: int, wrong: torch.Tensor) -> str:
    size = wrong.shape[dim]
    named = _NAMES.get(wrong.ndim)
    what = named[dim] if named else f"index of dimension {dim}"
    many = f"{what}s" if named else f"indices of dimension {dim}:"
    first, last = indices[0], indices[-1]
    if len(indices) == 1:
        if size > 1 and first in (0, size - 1):
            return f"the {'last' if first else 'first'} {what}"
        return f"{what} {first}"
    if indices == list(range(first, last + 1)):
        return f"{many} {first}-{last}"
    step = indices[1] - indices[0]
    if indices == list(range(first, last + 1, step)):
        return f"every {_ordinal(step)} {what}, from {first}"
    shown = ", ".join(map(str, indices[:6])) + (", ..." if len(indices) > 6 else "")
    return f"{many} {shown}"


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")
