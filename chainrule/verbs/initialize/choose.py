"""The choice for every parameter: kept, asked for, of the literature, or planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node
from chainrule.verbs.case import Case
from chainrule.verbs.initialize.derived import Derived, derived, isometric
from chainrule.verbs.initialize.example import Example, data_fields, tensor_field, traced
from chainrule.verbs.initialize.graph_roles import joined, norms, uses
from chainrule.verbs.initialize.held import is_sharded
from chainrule.verbs.initialize.laws import Constant, Normal
from chainrule.verbs.initialize.plan import Planner
from chainrule.verbs.initialize.result import Predicted
from chainrule.verbs.initialize.schemes import Choice, fixed
from chainrule.verbs.initialize.write import Own

PLANNED = ("auto", "critical")

Prediction = Callable[[], tuple[Predicted, ...]] | None


def example_of(case: Case, needed: bool) -> tuple[Example | None, list[str]]:
    """The traced example, None without a batch; and notes where it could not be traced and is not needed."""
    if case.batch is None:
        return None, []
    try:
        return traced(case), []
    except UnsupportedOpError as error:
        if needed:
            raise
        return None, [f"roles by the modules alone: {error.what}"]


def seen(owned: list[Own], example: Example) -> list[Own]:
    """With the roles that the program shows."""
    found = uses(example.trace)
    result = []
    for own in owned:
        leaf = example.leaf_of.get(id(own.tensor))
        role = joined(own.role, found[leaf], own.shape) if leaf is not None else own.role
        kept = own.kept or ("given values of its own" if role.kind == "bias" and _offset(own) else "")
        result.append(replace(own, role=role, kept=kept))
    return result


def _offset(own: Own) -> bool:
    """Whether a bias was given various numbers around one that is not zero, as the step sizes of state spaces are.

    The bias of a module of torch that nobody has written to is memory as it was found (``to_empty``).
    """
    bias = own.tensor
    found = bias._version == 0 and type(own.module).__module__.startswith("torch.")
    if found or bias.is_meta or is_sharded(bias) or bias.numel() < 16:
        return False
    values = bias.detach().to(torch.float64)
    std = float(values.std())
    return std > 0 and abs(float(values.mean())) > 2 * std


def chosen(
    owned: list[Own], schemes: Mapping[str, str], overrides: Mapping[str, Choice], example: Example | None
) -> tuple[dict[str, Choice], Prediction]:
    """The choice for every parameter, and what a plan expects of it."""
    choices: dict[str, Choice] = {}
    predicted: Prediction = None
    weights = [o for o in owned if o.role.kind in ("weight", "recurrent")]
    for own in owned:
        if own.kept:
            choices[own.name] = Choice(None, f"{own.kept}: left as it is")
        elif own.name in overrides:
            choices[own.name] = overrides[own.name]
        elif schemes[own.name] not in PLANNED:
            choices[own.name] = _fixed(own, schemes[own.name], owned, weights)
    todo = {schemes[o.name] for o in owned if o.name not in choices}
    if example is not None:
        for scheme in sorted(todo):
            found, predicted = _planned(owned, choices, example, scheme, schemes)
            choices |= found
        choices |= _lengths(owned, choices, example)
    return choices, predicted


def _lengths(owned: list[Own], choices: Mapping[str, Choice], example: Example) -> dict[str, Choice]:
    """The lengths of weights that are written as lengths times directions: those that the drawn directions have."""
    by_leaf = {example.leaf_of[id(o.tensor)]: o for o in owned if id(o.tensor) in example.leaf_of}
    found = {}
    for _, direction, lengths in norms(example.trace):
        rows, own = by_leaf.get(direction), by_leaf.get(lengths)
        law = choices[rows.name].law if rows is not None else None
        if rows is None or own is None or own.kept or law is None:
            continue
        count = rows.tensor.numel() // max(own.tensor.numel(), 1)
        found[own.name] = Choice(Constant(law.std * math.sqrt(count)), f"the length of {count} elements of {rows.name}")
    return found


def _fixed(own: Own, scheme: str, owned: list[Own], weights: list[Own]) -> Choice:
    beside = [w for w in weights if w.module is own.module]
    fan = beside[0].role.fans[0] if beside and own.role.kind == "bias" else None
    if own.role.module in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"):
        fan = own.shape[0] // own.role.parts  # torch's default counts the hidden units there
    choice = fixed(scheme, own.role, own.shape, None if own.role.module == "MultiheadAttention" else fan)
    if scheme == "mup" and own in weights and len(weights) > 1:
        tables = [o for o in owned if o.role.kind == "embedding"]
        if own is weights[0] and not tables:
            return replace(
                choice, why=f"input weight: Var(w) = 1 / fan_in, {own.role.fans[0]}; the rate as it is", rate=1.0
            )
        if own is weights[-1] and not any(o.tied for o in tables):  # a tied table is the output weight
            n = max(own.role.fans[0], 1)
            why = f"output weight: Var(w) = 1 / fan_in^2, rate 1 / fan_in, fan_in = {n}"
            return Choice(Normal(1.0 / n), why, 1.0 / n)
    return choice


def _planned(
    owned: list[Own], choices: Mapping[str, Choice], example: Example, scheme: str, schemes: Mapping[str, str]
) -> tuple[dict[str, Choice], Prediction]:
    given, roles, laws, unseen = data_fields(example.trace), {}, {}, {}
    for own in owned:
        leaf = example.leaf_of.get(id(own.tensor))
        if leaf is None or leaf not in example.trace.graph.inputs:
            if own.name not in choices:
                unseen[own.name] = Choice(None, "the example does not reach it: left as it is")
            continue
        roles[leaf] = (own.name, own.role)
        choice = choices.get(own.name)
        if choice is not None and choice.law is not None:
            laws[leaf] = choice
        elif choice is not None:
            given[leaf] = tensor_field(own.tensor, own.name)
        elif schemes[own.name] != scheme or own.role.kind == "other":
            given[leaf] = tensor_field(own.tensor, own.name)
    statistics = {leaf: tensor_field(o.tensor, o.name) for o in owned
                  if (leaf := example.leaf_of.get(id(o.tensor))) is not None and _stays(o)}  # fmt: skip
    computed = derived(example.trace)
    special = _behind(owned, computed, {o.name: example.leaf_of.get(id(o.tensor)) for o in owned})
    for own in owned:
        leaf = example.leaf_of.get(id(own.tensor))
        if own.name in special and leaf is not None and leaf not in given and leaf not in laws:
            given[leaf] = tensor_field(own.tensor, own.name)
    planner = Planner(example.trace, roles, given, laws, statistics, scheme == "critical", computed)
    found = {**planner.choices(), **unseen, **special}
    for own in owned:
        if own.name not in choices and own.name not in found and own.role.kind == "other":
            found[own.name] = Choice(None, "its use is not known: left as it is")
    wanted = {name: c for name, c in found.items() if name not in choices and schemes[name] == scheme}
    return wanted, planner.predictions


def _behind(owned: list[Own], computed: list[Derived], leaf_of: Mapping[str, Node | None]) -> dict[str, Choice]:
    """The start of the parameters behind computed weights."""
    free = {leaf for weight in computed for leaf in weight.free}
    behind = {leaf for weight in computed for leaf in weight.behind}
    found = {}
    for own in owned:
        leaf = leaf_of[own.name]
        if leaf in free:
            found[own.name] = Choice(isometric(own.shape), "divided by its own size: all singular values the largest")
        elif leaf in behind:
            found[own.name] = Choice(None, "the weight is a function of it: left as it is")
    return found


def _stays(own: Own) -> bool:
    """Whether the planner may leave it as it is: a scale that is no norm's."""
    return own.role.kind == "scale" and own.role.value != own.role.value


def agreed(model: nn.Module, choices: dict[str, Choice], measured: bool) -> dict[str, Choice]:
    """The choices of the first process: other processes see other batches, but parts or copies of one model."""
    parts = any(is_sharded(p) for p in model.parameters()) or type(model).__name__ == "DistributedDataParallel"
    if not measured or not parts or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return choices
    box = [choices]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
