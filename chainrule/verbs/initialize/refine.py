"""``refine``: one forward pass over a batch, in which every layer's scale is corrected where it is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chainrule.errors import ModelError
from chainrule.verbs.case import Case
from chainrule.verbs.initialize.example import Example, data_fields, tensor_field
from chainrule.verbs.initialize.laws import Constant, scaled
from chainrule.verbs.initialize.measure import scales, sweep
from chainrule.verbs.initialize.plan import Planner
from chainrule.verbs.initialize.refusals import needs_example
from chainrule.verbs.initialize.schemes import Choice
from chainrule.verbs.initialize.write import Own, elements, tensors


def refined(
    case: Case,
    owned: list[Own],
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
    drawn = tensors(owned, {o.name: elements(o, choices[o.name], seed) for o in owned})
    now = {row.name: row.second for row in scales(looked, drawn)} if example is None else {}
    wanted: dict[str, tuple[str, float]] = {}
    targets = _targets(owned, choices, example) if example is not None else {}
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


def _targets(owned: list[Own], choices: Mapping[str, Choice], example: Example) -> dict[str, float]:
    """module -> the mean square that the plan predicts for its output."""
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
