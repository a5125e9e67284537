"""``initialize_``: where a network should start, so that both passes keep their scale; in place.

1. What every parameter is for (``roles``, ``graph_roles``). 2. A law for each: from the literature (``schemes``) or
from the moments that reach it (``plan``). 3. The elements that this process holds, drawn by counter (``laws``,
``generator``, ``held``), and written. Everything that can fail happens before the first write.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chainrule.errors import ModelError
from chainrule.verbs.case import Case
from chainrule.verbs.initialize.choose import PLANNED, agreed, chosen, example_of, seen
from chainrule.verbs.initialize.example import bare
from chainrule.verbs.initialize.held import is_sharded, parameters
from chainrule.verbs.initialize.laws import Constant, Law, Normal, Uniform
from chainrule.verbs.initialize.measure import Scale, scales
from chainrule.verbs.initialize.refine import refined
from chainrule.verbs.initialize.refusals import (
    check_batch,
    check_model,
    check_scheme,
    check_values,
    matching,
    needs_example,
    selected,
)
from chainrule.verbs.initialize.result import InitializeResult, Parameter
from chainrule.verbs.initialize.roles import module_role
from chainrule.verbs.initialize.schemes import Choice
from chainrule.verbs.initialize.write import Own, elements, tensors, write


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
    counts = Counter(id(p) for _, p in case.model.named_parameters(remove_duplicate=False))
    owned = [
        Own(
            name,
            stream,
            p,
            module,
            module_role(module, name.rpartition(".")[2], tuple(p.shape)),
            tied=counts[id(p)] > 1,
        )
        for name, stream, module, p in parameters(case.model)
    ]
    names = [own.name for own in owned]
    schemes, overrides = _schemes(scheme, names)
    owned = _kept(owned, selected(names, only), case.model)
    check_values({o.name: o.tensor for o in owned}, [o.name for o in owned if not o.kept])
    planned = [o.name for o in owned if not o.kept and schemes[o.name] in PLANNED and o.name not in overrides]
    if planned and case.batch is None:
        raise needs_example(schemes[planned[0]])
    if planned:
        check_batch(case.batch)
    inner = replace_model(case)
    example, notes = example_of(inner, bool(planned))
    if example is not None:
        owned = seen(owned, example)
    choices, predicted = chosen(owned, schemes, overrides, example)
    choices = agreed(case.model, choices, bool(planned))
    plain = not any(is_sharded(o.tensor) or o.tensor.is_meta for o in owned)
    before = scales_of(inner, owned, {}) if plain and case.batch is not None else ()
    if refine is not None and refine is not False:
        choices = refined(inner, owned, choices, refine, example, seed, plain)
        choices = agreed(case.model, choices, measured=True)
    measured = plain and case.batch is not None
    if dry_run:
        drawn = {o.name: elements(o, choices[o.name], seed) for o in owned} if measured else {}
        after = scales_of(inner, owned, drawn) if measured else ()
    else:
        write(owned, choices, seed)
        after = scales_of(inner, owned, {}) if measured else ()
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
        matched = matching(names, pattern) or selected(names, pattern, "scheme={{{!r}: ...}}")
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


def _kept(owned: list[Own], asked: set[str], model: nn.Module) -> list[Own]:
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


def scales_of(case: Case, owned: list[Own], drawn: Mapping[str, torch.Tensor | float | None]) -> tuple[Scale, ...]:
    return scales(case, tensors(owned, drawn))


def _row(own: Own, choice: Choice) -> Parameter:
    law: Law | None = choice.law
    rule = "kept" if law is None else law.text
    if own.role.padding >= 0 and law is not None and not isinstance(law, (Constant, Uniform)):
        rule += f", row {own.role.padding} zero"
    return Parameter(own.name, own.shape, rule, law.std if law else 0.0, choice.why, choice.rate, law)
