"""Penalties that the loss itself adds, against what the data say: terms of parameters alone, and sums over the batch.

The gradient of the penalty is taken out in one more pass, by gradient hooks at the places where such a term joins what
depends on the batch; what is left is the gradient of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.loss_calls import reduction_of
from chainrule.verbs.diagnose.naming import listed, modules_of
from chainrule.verbs.diagnose.torch_ops import LOSSES
from chainrule.verbs.diagnose.values import Call, Value, above
from chainrule.verbs.diagnose.wide import norm
from chainrule.verbs.kinds import Finding

_LIMIT = 10.0  # times the gradient of the data


def joins(e: Examination) -> list[tuple[Call, Value]]:
    """Scalars of parameters alone that are added to one that depends on the batch."""
    found = []
    for call in e.seen.tape.calls:
        if call.name not in ("add", "sub", "stack") or not call.outputs or call.outputs[0] not in e.path:
            continue
        terms = [v for v in call.inputs if v in e.path and math.prod(v.shape) == 1]
        alone = [v for v in terms if v.learned and not v.data and v.producer is not None]
        if alone and any(v.data for v in terms):
            found += [(call, v) for v in alone]
    return found


def penalty(e: Examination) -> list[Finding]:
    """regularizer: a penalty whose gradient is many times that of the data."""
    return _of_parameters(e) or _of_activations(e)


def _of_parameters(e: Examination) -> list[Finding]:
    terms = joins(e)
    if not terms:
        return []
    ratios = _against_the_rest(e, [v for _, v in terms])
    strong = [n for n, ratio in ratios.items() if ratio > _LIMIT]
    if not strong or len(strong) < len(ratios) / 2:
        return []
    name = max(strong, key=lambda n: ratios[n])
    ratio, call = ratios[name], terms[-1][0]
    return [
        Finding(
            "regularizer", "warning", listed(modules_of(strong), 6),
            "the penalty that the loss adds is stronger than the data: the weights go to where it is least instead of "
            "learning",
            measured=f"at {name} its gradient is {ratio:.3g} times that of the data; together the terms are "
            f"{sum(v.scale for _, v in terms):.3g} of a loss of {e.seen.loss_number:.3g}",
            expected="a part of the gradient of the data",
            fix=f"a factor {min(1.0, 0.1 / ratio):.1g} of what it is", source=call.place.text,
        )
    ]  # fmt: skip


# ---- a sum over the batch beside a mean over it ---------------------------------------------------------------
def _of_activations(e: Examination) -> list[Finding]:
    """A term that is summed over samples and meets no target, beside an error that is averaged: the KL of a VAE."""
    parts = _terms(e)
    if len(parts) < 2:
        return []
    errors = [v for v in parts if _meets_target(v)]
    summed = {v: rows for v in parts if v not in errors and (rows := _summed_over(e, v)) > 1}
    if not summed or not errors or not all(_averaged(v) for v in errors):
        return []
    shared = [(r, n) for n, r in _against_the_rest(e, summed).items() if r > 1e-6]  # the term depends on these too
    if not shared or sorted(shared)[len(shared) // 2][0] <= _LIMIT:
        return []
    ratio, name = max(shared)
    term, rows = next(iter(summed.items()))
    made = term.producer
    assert made is not None
    return [
        Finding(
            "regularizer", "warning", f"{made.name} in the loss",
            f"one term of the loss is a sum over {rows} samples and the error beside it a mean: the term is as many "
            "times too heavy, and what it weighs on collapses to where it is least (a VAE's code to the prior)",
            measured=f"at {name} its gradient is {ratio:.3g} times that of the error; the term is {term.scale:.3g} of "
            f"a loss of {e.seen.loss_number:.3g}",
            expected="both summed over features and averaged over samples",
            fix=f"the same reduction for both: .sum(1).mean(), or the term divided by {rows}", source=made.place.text,
        )
    ]  # fmt: skip


def _terms(e: Examination) -> list[Value]:
    """The scalars that the loss is a sum of, before the factors that they are weighed with."""
    found: list[Value] = []
    stack = [e.seen.loss]
    while stack and len(found) < 16:
        value = stack.pop()
        call = value.producer
        scalars = [v for v in call.inputs if math.prod(v.shape) == 1 and v in e.path] if call is not None else []
        if call is not None and call.name in _WEIGHED and scalars:
            stack += scalars
        elif value in e.path:
            found.append(value)
    return found


_WEIGHED = frozenset({"add", "sub", "mul", "div", "neg", "stack", "sum", "mean", "view", "squeeze", "clone"})


def _meets_target(value: Value) -> bool:
    """Whether a term compares something learned with something given: an error."""
    for v in above([value]):
        call = v.producer
        if call is None or len(call.inputs) < 2 or call.module:
            continue
        if call.name in LOSSES or call.name in ("sub", "mul", "gather", "nll_loss"):
            kinds = {u.learned for u in call.inputs[:2] if u.data and len(u.shape)}
            if kinds == {True, False}:
                return True
    return False


def _summed_over(e: Examination, value: Value) -> int:
    """How many samples a term is the plain sum over; 0 if it is none, or is divided by their number."""
    rows = {t.shape[0] for t in e.subject.input_tensors.values() if t.dim()}
    call = value.producer
    if call is None or call.name != "sum" or not call.inputs[0].shape:
        return 0
    first = call.inputs[0].shape[0]
    if first not in rows:
        return 0
    reader = next((c for c in value.consumers if c.outputs), None)
    while reader is not None and reader.name in ("mul", "div", "neg"):  # by what it is multiplied on its way
        factor = reader.outputs[0].scale / value.scale if value.scale else 1.0
        if factor < 2.0 / first:
            return 0
        reader = next((c for c in reader.outputs[0].consumers if c.outputs), None)
    return first


def _averaged(value: Value) -> bool:
    call = value.producer
    return call is not None and (call.name == "mean" or (call.name in LOSSES and reduction_of(call) == "mean"))


def _against_the_rest(e: Examination, terms: Iterable[Value]) -> dict[str, float]:
    """Matrix of weights -> its gradient by the terms as a multiple of that by the rest; 0 where the rest has none."""
    rest = _silenced(e, {v.producer.index for v in terms if v.producer is not None})
    ratios: dict[str, float] = {}
    for n, g in e.seen.gradients.items():
        if rest is None or g is None or g.is_sparse or g.dim() < 2 or n not in e.trainable:
            continue
        own = rest.get(n)
        size = norm(own) if own is not None else 0.0
        ratios[n] = norm(g.double() - own.double()) / size if own is not None and size > 0 else 0.0
    return ratios


def _silenced(e: Examination, producers: set[int]) -> dict[str, torch.Tensor | None] | None:
    """The gradients of a pass in which the outputs of these calls pass none on."""

    def watch(value: Value, grad: torch.Tensor) -> torch.Tensor | None:
        made = value.producer
        return torch.zeros_like(grad) if made is not None and made.index in producers else None

    try:
        return dict(e.subject.observe(sizes=False, watch=watch).gradients)
    except ModelError:
        return None
