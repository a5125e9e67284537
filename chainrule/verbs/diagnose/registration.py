"""What is trained: frozen layers, tensors that are not registered, parameters that the optimizer does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.layers import Layer, label
from chainrule.verbs.diagnose.naming import container, is_module, listed, modules_of
from chainrule.verbs.diagnose.patches import Patch, submodule
from chainrule.verbs.diagnose.torch_ops import DROPOUTS, MOVEMENT
from chainrule.verbs.diagnose.values import origin
from chainrule.verbs.kinds import Finding


# ---- frozen --------------------------------------------------------------------------------------------------
def frozen(e: Examination) -> list[Finding]:
    """A few frozen layers between trained ones; a frozen backbone, or a frozen base with adapters, is on purpose."""
    layers = [x for x in e.layers if x.value in e.path]
    fixed = [x for x in layers if not e.subject.parameters[x.parameter].requires_grad]
    trained = [x for x in layers if e.subject.parameters[x.parameter].requires_grad]
    if not fixed or not trained:
        return []
    between = [x for x in fixed if trained[0].call.index < x.call.index < trained[-1].call.index]
    between = [x for x in between if not _adapted(x, trained)]
    weights = {n: p for n, p in e.subject.parameters.items() if p.dim() >= 2}
    share = sum(1 for p in weights.values() if not p.requires_grad) / max(len(weights), 1)
    if not between or share > 0.4:
        return []
    names = list(dict.fromkeys(x.parameter for x in between))
    owners = modules_of(names)
    code = "\n".join(f"{submodule(m)}.requires_grad_(True)" for m in owners if is_module(e, m))
    if e.optimizer is not None and not all(id(e.subject.parameters[n]) in e.subject.optimized for n in names):
        fresh = " + ".join(f"list({submodule(m)}.parameters())" for m in owners)
        code += f"\noptimizer.add_param_group({{'params': {fresh}}})"
    return [
        Finding(
            "frozen",
            "warning",
            ", ".join(owners),
            "requires_grad is False here, while layers before and after it are trained",
            measured=f"{len(names)} of {len(weights)} weights frozen: {listed(names)}",
            expected="all of a backbone frozen, or all but adapters",
            fix="unfreeze it, or freeze what is before it too",
            patch=Patch(code) if code else None,
        )
    ]


def _adapted(layer: Layer, trained: Sequence[Layer]) -> bool:
    """Whether a trained layer runs beside a frozen one, on the same input: an adapter."""
    passed_on = MOVEMENT | DROPOUTS
    own = origin(layer.call.inputs[0], passed_on)
    return any(origin(x.call.inputs[0], passed_on) is own for x in trained)


# ---- registration --------------------------------------------------------------------------------------------
def unregistered(e: Examination) -> list[Finding]:
    """Leaf tensors that require a gradient and take part, but are no parameters of the model."""
    leaves = [v for v in e.seen.tape.leaves if not v.name and v.learned and v in e.path]
    tensors = [(v, t) for v in leaves if (t := v.tensor()) is not None]
    places: dict[str, list[torch.Tensor]] = {}
    # A discriminator, a perceptual loss: what only the loss runs has another optimizer, or none.
    apart = {id(p): type(m).__name__ for m in e.seen.tape.apart for p in m.parameters()}
    judges = list(dict.fromkeys(apart[id(t)] for _, t in tensors if id(t) in apart))
    if judges and not any(id(t) in e.subject.optimized for _, t in tensors if id(t) in apart):
        e.subject.notes.append(f"the loss runs {', '.join(judges)}, which the optimizer does not train")
    for _, tensor in tensors:
        if id(tensor) in e.subject.optimized or id(tensor) in apart:
            continue
        path = attribute_of(e.subject.model, tensor) or _stranger_of(e, tensor)
        if path is not None:
            places.setdefault(path, []).append(tensor)
    if not places:
        return []
    attributes = list(dict.fromkeys(p.partition("[")[0] for p in places))
    count = sum(len(t) for t in places.values())
    code = "\n".join(c for a in attributes if (c := _registering(e, a)))
    if code and e.optimizer is not None:
        code += "\nheld = {id(p) for g in optimizer.param_groups for p in g['params']}\n"
        code += "optimizer.add_param_group({'params': [p for p in model.parameters() if id(p) not in held]})"
    return [
        Finding(
            "unregistered",
            "error",
            ", ".join(attributes),
            "it takes part in the forward pass and requires a gradient, but is no registered parameter: a Python list "
            "or a plain attribute hides it from parameters()",
            measured=f"{count} tensors: {listed(list(places))}",
            expected="nn.ModuleList, nn.ParameterList or nn.Parameter",
            fix="nn.ModuleList([...]) for modules, nn.Parameter(...) for tensors",
            patch=Patch(code) if code else None,
            consequences=("the optimizer does not move it; to(device), state_dict() and train() miss it",),
        )
    ]


def attribute_of(model: Any, tensor: torch.Tensor) -> str | None:
    """Where a tensor sits in the plain attributes of a model's modules: ``layers[1].weight``."""
    for path, module in model.named_modules() if isinstance(model, nn.Module) else []:
        for key, value in vars(module).items():
            if key.startswith("_") and key in _OWN:
                continue
            inside = _inside(value, tensor, 3)
            if inside is not None:
                return f"{path}.{key}{inside}" if path else f"{key}{inside}"
    return None


_OWN = frozenset(vars(nn.Module()))


def _inside(value: Any, tensor: torch.Tensor, depth: int) -> str | None:
    if value is tensor:
        return ""
    if isinstance(value, nn.Module):
        return next((f".{n}" for n, p in value.named_parameters() if p is tensor), None)
    if depth and isinstance(value, (list, tuple)):
        parts = ((f"[{k}]", v) for k, v in enumerate(value))
    elif depth and isinstance(value, dict):
        parts = ((f"[{k!r}]", v) for k, v in value.items())
    else:
        return None
    for written, v in parts:
        found = _inside(v, tensor, depth - 1)
        if found is not None:
            return written + found
    return None


def _stranger_of(e: Examination, tensor: torch.Tensor) -> str | None:
    for module in e.seen.tape.strangers.values():
        if any(p is tensor for p in module.parameters()):
            return f"{type(module).__name__} (not a submodule)"
    return None


def _registering(e: Examination, attribute: str) -> str:
    owner, _, name = attribute.rpartition(".")
    holder = container(e, owner) if owner else e.subject.model
    held = getattr(holder, name, None) if name.isidentifier() else None
    target = f"{submodule(owner)}.{name}"
    if isinstance(held, (list, tuple)) and held and all(isinstance(m, nn.Module) for m in held):
        return f"{target} = nn.ModuleList({target})"
    if isinstance(held, dict) and held and all(isinstance(m, nn.Module) for m in held.values()):
        return f"{target} = nn.ModuleDict({target})"
    if isinstance(held, (list, tuple)) and held and all(isinstance(m, torch.Tensor) for m in held):
        return f"{target} = nn.ParameterList({target})"
    if isinstance(held, torch.Tensor):
        return f"held = {target}\ndel {target}\n{target} = nn.Parameter(held.detach())"
    return ""


def not_in_optimizer(e: Examination) -> list[Finding]:
    """Parameters with a gradient that the optimizer does not move; tensors in it that are no longer the model's."""
    if e.optimizer is None:
        return []
    optimized = e.subject.optimized
    left = [n for n, p in e.subject.trainable.items() if e.seen.gradients[n] is not None and id(p) not in optimized]
    own = {id(p) for p in e.subject.parameters.values()}
    used = {id(t) for v in e.seen.tape.leaves if (t := v.tensor()) is not None}
    stale = [p for g in e.optimizer.param_groups for p in g["params"] if id(p) not in own and id(p) not in used]
    found = []
    if left:
        found.append(_left_out(e, left, stale))
    twice = _twice(e.optimizer)
    if twice:
        found.append(twice)
    return found


def _left_out(e: Examination, left: list[str], stale: list[Any]) -> Finding:
    moved = [n for n in e.subject.trainable if n not in left]
    first = e.layers[0].parameter if e.layers else ""
    # Only the head is in the optimizer: a way to train on features, if a wasteful one.
    last = {x.parameter for x in e.layers[-1:]} | {
        n for n in moved if e.layers and label(n) == label(e.layers[-1].parameter)
    }
    features = bool(moved) and not stale and first in left and len(left) > len(moved) and bool(last & set(moved))
    modules = modules_of(left)
    return Finding(
        "not_in_optimizer",
        "info" if features else "error",
        listed(modules, 6),
        "the optimizer does not hold these parameters"
        + (": only what follows them is trained" if features else "")
        + (f", but {len(stale)} tensors that the model no longer has: it was made before a layer was replaced" if stale
           else ""),
        measured=f"{len(left)} of {len(e.subject.trainable)} trainable parameters left out: {listed(left)}",
        expected="all of model.parameters()",
        fix="make the optimizer after the model is complete" if not features
        else "requires_grad_(False) on what is not trained, which saves their gradients",
        patch=None if features else Patch(
            "held = {id(p) for g in optimizer.param_groups for p in g['params']}\n"
            "optimizer.add_param_group({'params': [p for p in model.parameters() if id(p) not in held]})"
        ),
    )  # fmt: skip


def _twice(optimizer: torch.optim.Optimizer) -> Finding | None:
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) in seen:
                return Finding(
                    "duplicate", "warning", "the optimizer", "a parameter is in the optimizer twice",
                    "it moves twice per step", "each parameter once", "parameter groups that do not overlap",
                )  # fmt: skip
            seen.add(id(p))
    return None
