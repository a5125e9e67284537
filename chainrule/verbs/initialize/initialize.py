"""``initialize_``: where a network should start, so that both passes keep their scale; in place.

1. What every parameter is for (``roles``, ``graph_roles``). 2. A law for each: from the literature (``schemes``) or
from the moments that reach it (``plan``). 3. The elements that this process holds, drawn by counter (``laws``,
``generator``, ``held``), and written. Everything that can fail happens before the first write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.verbs.case import Case
from chainrule.verbs.initialize.example import Example, bare, data_fields, tensor_field, traced
from chainrule.verbs.initialize.graph_roles import joined, norms, uses
from chainrule.verbs.initialize.held import Held, held, is_sharded, parameters
from chainrule.verbs.initialize.laws import Constant, Law, Normal, Uniform, draw_in_place, scaled
from chainrule.verbs.initialize.measure import Scale, scales, sweep
from chainrule.verbs.initialize.plan import Planner
from chainrule.verbs.initialize.refusals import (
    check_model,
    check_scheme,
    check_values,
    matching,
    needs_example,
    selected,
)
from chainrule.verbs.initialize.result import InitializeResult, Parameter, Predicted
from chainrule.verbs.initialize.roles import Role, module_role
from chainrule.verbs.initialize.schemes import Choice, fixed

_PLANNED = ("auto", "critical")

Prediction = Callable[[], tuple[Predicted, ...]] | None


@dataclass(frozen=True)
class _Own:
    """One parameter of the model: its name, the name it is drawn under, its role, and why it is kept if it is."""

    name: str
    stream: str
    tensor: nn.Parameter
    module: nn.Module
    role: Role
    kept: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def initialize_(
    model: Any,
    batch: Any = None,
    loss: Any = None,
    *,
    scheme: str | Mapping[str, Any] = "auto",
    seed: int = 0,
    only: Any = None,
    dry_run: bool = False,
    refine: Any = None,
    objective: Any = None,
) -> InitializeResult:
    """Chooses where a model starts, and puts it there.

    Every element is a function of the seed, the parameter's name and the element's place: one process, data parallel,
    ``DTensor`` shards of any mesh, CPU or GPU get the same bits. Frozen parameters, loaded ones (Hugging Face's
    ``_is_hf_initialized``), buffers and torch's random state stay as they are; tied parameters are drawn once.

    Args:
        model: an ``nn.Module``, or a Case.
        batch, loss, objective: an example by the convention of all verbs; ``auto`` and ``critical`` need one.
        scheme: ``auto`` (from the moments that reach each weight), ``critical`` (every plain chain at its critical
            point), ``he``, ``xavier``, ``lecun``, ``orthogonal``, ``mup``, ``torch-default``, ``zeros``; or a mapping
            from module, parameter or pattern to one of these or to a standard deviation, ``""`` being the rest.
        seed: of the draws.
        only: names or patterns of parameters or modules; the rest is left as it is.
        dry_run: choose, and change nothing.
        refine: a batch of inputs, on which one forward pass corrects each layer's scale; True: the example itself.

    Returns:
        InitializeResult: ``r.parameters`` (name, rule, std, why), ``r.before``, ``r.after``, ``r.param_groups(lr)``.

    Raises:
        ModelError: an unknown scheme, no example, a model with non-finite weights or zero-width layers. Nothing has
            been changed then.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128))
    >>> r = cr.initialize_(net, scheme="he")
    >>> r["0.weight"].rule, round(r["0.weight"].std, 4)
    ('normal', 0.1768)
    """
    case = model if isinstance(model, Case) else Case(model, batch, loss, None, objective)
    check_model(case.model)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ModelError("the seed is not a whole number", given=repr(seed), required="an int", instead="seed=0")
    owned = [
        _Own(name, stream, p, module, module_role(module, name.rpartition(".")[2], tuple(p.shape)))
        for name, stream, module, p in parameters(case.model)
    ]
    names = [own.name for own in owned]
    schemes, overrides = _schemes(scheme, names)
    owned = _kept(owned, selected(names, only), case.model)
    check_values({o.name: o.tensor for o in owned}, [o.name for o in owned if not o.kept])
    planned = [o.name for o in owned if not o.kept and schemes[o.name] in _PLANNED and o.name not in overrides]
    if planned and case.batch is None:
        raise needs_example(schemes[planned[0]])
    inner = replace_model(case)
    example, notes = _example(inner, bool(planned))
    if example is not None:
        owned = _seen(owned, example)
    choices, predicted = _chosen(owned, schemes, overrides, example)
    choices = _agreed(choices, owned, bool(planned) or refine is not None)
    plain = not any(is_sharded(o.tensor) or o.tensor.is_meta for o in owned)
    before = _scales(inner, owned, {}) if plain and case.batch is not None else ()
    if refine is not None and refine is not False:
        choices = _refined(inner, owned, choices, refine, example, seed, plain)
    measured = plain and case.batch is not None
    if dry_run:
        drawn = {o.name: _elements(o, choices[o.name], seed) for o in owned} if measured else {}
        after = _scales(inner, owned, drawn) if measured else ()
    else:
        _write(owned, choices, seed)
        after = _scales(inner, owned, {}) if measured else ()
    if any(r.second is not None and not math.isfinite(r.second) for r in after):
        notes.append("values are not finite after it: the activation makes any deviation grow without bound")
    rows = tuple(_row(o, choices[o.name]) for o in owned)
    shown = scheme if isinstance(scheme, str) else ", ".join(f"{k or 'rest'}: {v}" for k, v in scheme.items())
    return InitializeResult(
        rows, shown, seed, before, after, not dry_run, tuple(notes), predicted, {o.name: o.tensor for o in owned}
    )


def replace_model(case: Case) -> Case:
    """The case of the bare model, without data parallel and compiling wrappers."""
    inner = bare(case.model)
    return case if inner is case.model else replace(case, model=inner)


# ---- what is asked -----------------------------------------------------------------------------------------
def _schemes(scheme: Any, names: list[str]) -> tuple[dict[str, str], dict[str, Choice]]:
    """The scheme of every parameter, and the laws that were given as numbers."""
    if isinstance(scheme, str) or not isinstance(scheme, Mapping):
        check_scheme(scheme)
        return dict.fromkeys(names, scheme), {}
    by_pattern: dict[str, Any] = dict(scheme)
    rest = str(by_pattern.pop("", None) or by_pattern.pop("*", "auto"))
    check_scheme(rest)
    found = dict.fromkeys(names, rest)
    laws: dict[str, Choice] = {}
    for pattern, value in by_pattern.items():
        matched = matching(names, pattern) or selected(names, pattern)
        for name in matched:
            laws.pop(name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not 0 <= value < float("inf"):
                    raise ModelError(f"{pattern!r} is to have the standard deviation {value}", required="0 or more")
                laws[name] = Choice(Normal(float(value)) if value else Constant(0.0), "asked for")
            else:
                check_scheme(value, pattern)
                found[name] = str(value)
    return found, laws


def _kept(owned: list[_Own], asked: set[str], model: nn.Module) -> list[_Own]:
    """With the reason of every parameter that is not to be drawn."""
    root_loaded = getattr(bare(model), "_is_hf_initialized", False)  # then the flag of a module says only: built
    found = []
    for own in owned:
        why = ""
        if own.name not in asked:
            why = "not asked for"
        elif not own.tensor.requires_grad:
            why = "frozen"
        elif getattr(own.tensor, "_is_hf_initialized", False):
            why = "loaded"
        elif not root_loaded and getattr(own.module, "_is_hf_initialized", False):
            why = "loaded"
        elif getattr(own.tensor, "_no_reinit", False):
            why = "marked _no_reinit"
        elif not own.tensor.is_floating_point():
            why = f"of dtype {str(own.tensor.dtype).removeprefix('torch.')}"
        found.append(replace(own, kept=why))
    return found


# ---- what is chosen ----------------------------------------------------------------------------------------
def _example(case: Case, needed: bool) -> tuple[Example | None, list[str]]:
    if case.batch is None:
        return None, []
    try:
        return traced(case), []
    except UnsupportedOpError as error:
        if needed:
            raise
        return None, [f"roles by the modules alone: {error.what}"]


def _seen(owned: list[_Own], example: Example) -> list[_Own]:
    """With the roles that the program shows."""
    found = uses(example.trace)
    result = []
    for own in owned:
        leaf = example.leaf_of.get(id(own.tensor))
        role = joined(own.role, found[leaf], own.shape) if leaf is not None else own.role
        kept = own.kept or ("given values of its own" if role.kind == "bias" and _offset(own.tensor) else "")
        result.append(replace(own, role=role, kept=kept))
    return result


def _offset(bias: torch.Tensor) -> bool:
    """Whether a bias holds various numbers around one that is not zero, as the step sizes of state spaces do."""
    if bias.is_meta or is_sharded(bias) or bias.numel() < 16:
        return False
    values = bias.detach().to(torch.float64)
    std = float(values.std())
    return std > 0 and abs(float(values.mean())) > 2 * std


def _chosen(
    owned: list[_Own], schemes: Mapping[str, str], overrides: Mapping[str, Choice], example: Example | None
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
        elif schemes[own.name] not in _PLANNED:
            choices[own.name] = _fixed(own, schemes[own.name], owned, weights)
    todo = {schemes[o.name] for o in owned if o.name not in choices}
    if example is not None:
        for scheme in sorted(todo):
            found, predicted = _planned(owned, choices, example, scheme, schemes)
            choices |= found
        choices |= _lengths(owned, choices, example)
    return choices, predicted


def _lengths(owned: list[_Own], choices: Mapping[str, Choice], example: Example) -> dict[str, Choice]:
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


def _fixed(own: _Own, scheme: str, owned: list[_Own], weights: list[_Own]) -> Choice:
    beside = [w for w in weights if w.module is own.module]
    fan = beside[0].role.fans[0] if beside and own.role.kind == "bias" else None
    if own.role.module in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"):
        fan = own.shape[0] // own.role.parts  # torch's default counts the hidden units there
    choice = fixed(scheme, own.role, own.shape, None if own.role.module == "MultiheadAttention" else fan)
    if scheme == "mup" and own in weights and len(weights) > 1:
        if own is weights[0]:
            return replace(
                choice, why=f"input weight: Var(w) = 1 / fan_in, {own.role.fans[0]}; the rate as it is", rate=1.0
            )
        if own is weights[-1]:
            n = max(own.role.fans[0], 1)
            why = f"output weight: Var(w) = 1 / fan_in^2, rate 1 / fan_in, fan_in = {n}"
            return Choice(Normal(1.0 / n), why, 1.0 / n)
    return choice


def _planned(
    owned: list[_Own], choices: Mapping[str, Choice], example: Example, scheme: str, schemes: Mapping[str, str]
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
    planner = Planner(example.trace, roles, given, laws, statistics, critical=scheme == "critical")
    found = {**planner.choices(), **unseen}
    for own in owned:
        if own.name not in choices and own.name not in found and own.role.kind == "other":
            found[own.name] = Choice(None, "its use is not known: left as it is")
    wanted = {name: c for name, c in found.items() if name not in choices and schemes[name] == scheme}
    return wanted, planner.predictions


def _stays(own: _Own) -> bool:
    """Whether the planner may leave it as it is: a scale that is no norm's."""
    return own.role.kind == "scale" and own.role.value != own.role.value


def _agreed(choices: dict[str, Choice], owned: list[_Own], measured: bool) -> dict[str, Choice]:
    """The choices of the first process: other processes see other batches, but parts of one model."""
    parts = any(is_sharded(o.tensor) for o in owned)
    if not measured or not parts or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return choices
    box = [choices]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


# ---- drawing and writing -----------------------------------------------------------------------------------
def _elements(own: _Own, choice: Choice, seed: int) -> torch.Tensor | float | None:
    """What will be written: the elements that are held, a number for all, None where the parameter is kept."""
    if choice.law is None or own.tensor.is_meta:
        return None
    here = held(own.name, own.tensor)
    found = choice.law.elements(here, seed, own.stream)
    if own.role.padding >= 0 and isinstance(found, torch.Tensor):
        found = _padded(found, here, own.role.padding % max(own.shape[0], 1))
    return found


def _padded(elements: torch.Tensor, here: Held, row: int) -> torch.Tensor:
    """The row of a padding token stays zero."""
    rows = here.index[0]
    at = torch.tensor([row]) if rows is None else (rows == row).nonzero().reshape(-1)
    if at.numel():
        elements[at.to(elements.device)] = 0.0
    return elements


@torch.no_grad()
def _write(owned: list[_Own], choices: Mapping[str, Choice], seed: int) -> None:
    for own in owned:
        law = choices[own.name].law
        if law is None or own.tensor.is_meta:
            continue
        here = held(own.name, own.tensor)
        if own.role.padding < 0 and draw_in_place(law, here, seed, own.stream):
            continue
        value = _elements(own, choices[own.name], seed)
        if isinstance(value, torch.Tensor):
            here.local.copy_(value.to(here.local.device))  # cast to the parameter's dtype
        elif value is not None:
            here.local.fill_(value)


def _tensors(owned: list[_Own], drawn: Mapping[str, torch.Tensor | float | None]) -> dict[str, torch.Tensor]:
    """The drawn parameters as tensors of their dtype, by the names of the bare model."""
    found = {}
    for own in owned:
        value = drawn.get(own.name)
        if isinstance(value, torch.Tensor):
            found[own.stream] = value.to(own.tensor.dtype).to(own.tensor.device)
        elif value is not None:
            found[own.stream] = torch.full_like(own.tensor, value, requires_grad=False)
    return found


def _scales(case: Case, owned: list[_Own], drawn: Mapping[str, torch.Tensor | float | None]) -> tuple[Scale, ...]:
    return scales(case, _tensors(owned, drawn))


# ---- one pass over data ------------------------------------------------------------------------------------
def _refined(
    case: Case,
    owned: list[_Own],
    choices: dict[str, Choice],
    refine: Any,
    example: Example | None,
    seed: int,
    plain: bool,
) -> dict[str, Choice]:
    """The choices with each layer's scale as one forward pass over a batch shows it."""
    if not plain:
        raise ModelError(
            "refine needs the whole model in one place",
            given="sharded or meta parameters",
            required="parameters with storage, on one process",
            instead="r = chainrule.initialize_(whole, batch, refine=True, dry_run=True) first",
        )
    if refine is True:
        if case.batch is None:
            raise needs_example("refine=True")
        looked = case
    else:
        looked = Case(case.model, refine)
    by_path = dict(case.model.named_modules())
    drawn = _tensors(owned, {o.name: _elements(o, choices[o.name], seed) for o in owned})
    now = {row.name: row.second for row in scales(looked, drawn)} if example is None else {}
    wanted: dict[str, tuple[str, float]] = {}
    targets = example_targets(case, owned, choices, example) if example is not None else {}
    for own in owned:
        path = own.stream.rpartition(".")[0]
        law = choices[own.name].law
        if own.role.kind != "weight" or law is None or path not in by_path or isinstance(law, Constant):
            continue
        target = targets.get(path, now.get(path))
        if target:
            wanted[path] = (own.stream, target)
    factors = sweep(looked, drawn, wanted)
    result = dict(choices)
    for own in owned:
        factor = factors.get(own.stream)
        law = choices[own.name].law
        if factor and law is not None:
            result[own.name] = replace(
                choices[own.name], law=scaled(law, factor), why=f"{choices[own.name].why}; x {factor:.4g} on the batch"
            )
    return result


def example_targets(
    case: Case, owned: list[_Own], choices: Mapping[str, Choice], example: Example | None
) -> dict[str, float]:
    """module -> the mean square that the plan predicts for its output."""
    if example is None:
        return {}
    given, laws, roles = data_fields(example.trace), {}, {}
    for own in owned:
        leaf = example.leaf_of.get(id(own.tensor))
        if leaf is None:
            continue
        roles[leaf] = (own.name, own.role)
        choice = choices[own.name]
        if choice.law is None:
            given[leaf] = tensor_field(own.tensor, own.name)
        else:
            laws[leaf] = choice
    planner = Planner(example.trace, roles, given, laws, {})
    found = {}
    for call in example.trace.calls:
        node = next((o for o in call.outputs if o.type.is_float), None)
        if node is not None and node in planner.ground.shape.index:
            second = planner.ground.flow.second(node)
            if second:
                found[call.path] = second
    return found


def _row(own: _Own, choice: Choice) -> Parameter:
    law: Law | None = choice.law
    rule = "kept" if law is None else law.text
    if own.role.padding >= 0 and law is not None and not isinstance(law, (Constant, Uniform)):
        rule += f", row {own.role.padding} zero"
    return Parameter(own.name, own.shape, rule, law.std if law else 0.0, choice.why, choice.rate, law)
