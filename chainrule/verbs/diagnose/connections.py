"""Parameters that no gradient reaches, and why: unused, cut, frozen, not registered, not in the optimizer.

Autograd says that a gradient is missing; the tape says where it was lost, since it holds the dependence too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch.places import Edit, Place
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.layers import Layer, label
from chainrule.verbs.diagnose.patches import Patch, submodule
from chainrule.verbs.diagnose.tape import Call, Value, below, origin
from chainrule.verbs.diagnose.torch_ops import DROPOUTS, FLAT, MOVEMENT
from chainrule.verbs.kinds import Finding


def connections(e: Examination) -> list[Finding]:
    """unregistered, cut, loss_detached, unused, output_unused, frozen."""
    found = unregistered(e)
    missing = [n for n in e.trainable if e.seen.gradients[n] is None]
    cuts: dict[Any, tuple[Call, list[str]]] = {}
    unused, unreached = [], []
    for name in missing:
        value = e.seen.parameters[name]
        if not value.consumers:
            unused.append(name)
            continue
        call = cut_of(e, value)
        if call is None:
            unreached.append(name)
        else:
            key = (call.no_grad.code, call.no_grad.line) if _no_grad(call) else id(call)
            cuts.setdefault(key, (call, []))[1].append(name)
    found += [_cut(e, call, names, len(missing)) for call, names in cuts.values()]
    if not e.seen.loss.differentiable and not cuts and not found:
        found.append(_detached(e))
    found += _unused(e, unused) + _unreached(e, unreached) + frozen(e)
    return found


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules that own parameters, without repetition; a parameter of the model itself by its own name."""
    return list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))


def listed(names: Sequence[str], limit: int = 4) -> str:
    """``a, b, c, d and 7 more``."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def common(paths: Sequence[str]) -> str:
    """The shortest list of modules that covers the paths: their parent where it has no other children among them."""
    if len(paths) == 1:
        return paths[0]
    parts = [p.split(".") for p in paths]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared) or listed(list(paths), 3)


# ---- cut -----------------------------------------------------------------------------------------------------
def cut_of(e: Examination, value: Value) -> Call | None:
    """The call at which the gradient of a parameter ends, if the loss depends on it; or where it leaves torch."""
    after = below([value])
    if e.seen.loss in after:
        for call in e.seen.tape.calls:
            if any(v in after for v in call.inputs) and _cuts(call) and any(o in e.ancestors for o in call.outputs):
                return call
        return None
    return next((c for c in e.seen.tape.calls if not c.outputs and any(v in after for v in c.inputs)), None)


def _cuts(call: Call) -> bool:
    return any(v.differentiable for v in call.inputs) and not any(o.differentiable for o in call.outputs)


def _no_grad(call: Call) -> bool:
    return not call.tracking and call.name not in ("detach", "data")


def _cut(e: Examination, call: Call, names: list[str], missing: int) -> Finding:
    modules = modules_of(names)
    every = len(names) == len(e.trainable)
    place, patch = call.place, None
    if _no_grad(call):
        cause = "these layers run inside of torch.no_grad(), so autograd records nothing of them"
        where, fix = common(modules), "take the layers out of the no_grad block"
        place = call.no_grad if call.no_grad.code is not None else place
        patch = _without_no_grad(place)
    else:
        where = f"{call.module + ' ' if call.module else ''}{_spelled(call)}"
        cause, fix = _reason(call)
        patch = _rewritten(call)
    if not call.outputs:
        cause = f".{call.name}() takes the numbers out of torch, and no gradient comes back"
        where, fix = f"{call.module + ' ' if call.module else ''}{call.name}", f"keep the tensor: no .{call.name}()"
    return Finding(
        "loss_detached" if every and not e.seen.loss.differentiable and _at_the_end(e, call) else "cut",
        "error",
        where.strip(),
        cause,
        measured=f"{len(names)} of {len(e.trainable)} parameters have no gradient: {listed(names)}",
        expected="a gradient for every parameter that the loss depends on",
        fix=fix,
        source=place.text,
        patch=patch,
        consequences=(f"{listed(modules)} will not be trained",),
    )


def _at_the_end(e: Examination, call: Call) -> bool:
    """Whether the cut is behind the model: in the loss."""
    return not call.module and any(v in e.seen.outputs for v in call.inputs)


_SPELLING = {"gt": "> (gt)", "ge": ">= (ge)", "lt": "< (lt)", "le": "<= (le)", "eq": "== (eq)", "ne": "!= (ne)",
             "data": ".data"}  # fmt: skip


def _spelled(call: Call) -> str:
    return _SPELLING.get(call.name, call.name)


def _reason(call: Call) -> tuple[str, str]:
    if call.name in ("gt", "ge", "lt", "le", "eq", "ne"):
        return (
            "a comparison gives truth values, through which no derivative passes",
            "sigmoid for a smooth step; or a straight-through estimator: hard + soft - soft.detach()",
        )
    if call.name in ("argmax", "argmin", "argsort", "one_hot", "multinomial", "bernoulli"):
        return (
            f"{call.name} gives whole numbers, through which no derivative passes",
            "softmax(z) @ table.weight, or F.gumbel_softmax(z, hard=True) @ table.weight",
        )
    if call.name in ("detach", "detach_", "data"):
        word = ".data" if call.name == "data" else f".{call.name}()"
        return f"{word} gives the same numbers without their history", f"remove {word}"
    if call.name == "custom":
        return f"{call.function.__name__} marks its output as not differentiable", "give it a backward"
    if any(o.dtype.is_floating_point for o in call.outputs):
        return f"{call.name} has no derivative here", "a differentiable op in its place"
    return f"{call.name} gives {call.outputs[0].dtype}, through which no derivative passes", "keep floating point"


def _rewritten(call: Call) -> Patch | None:
    """The edit of the user's line that lets the gradient through, where the expression is plain enough."""
    segment = call.place.segment
    tree = segment.tree if segment is not None else None
    if segment is None or tree is None:
        return None
    new = None
    if call.name in ("detach", "detach_") and isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute):
        new = ast.unparse(tree.func.value)
    elif call.name == "data" and isinstance(tree, ast.Attribute):
        new = ast.unparse(tree.value)
    elif call.name in ("gt", "ge") and isinstance(tree, ast.Compare) and len(tree.comparators) == 1:
        left, right = ast.unparse(tree.left), ast.unparse(tree.comparators[0])
        new = f"torch.sigmoid({left})" if right in ("0", "0.0") else f"torch.sigmoid(({left}) - ({right}))"
    elif call.name in ("argmax",) and call.outputs and call.outputs[0].consumers:
        return _soft_lookup(call)
    return Patch(edits=(Edit(segment, new),)) if new is not None else None


def _soft_lookup(call: Call) -> Patch | None:
    """``table(h.argmax(1))`` -> ``h.softmax(1) @ table.weight``."""
    use = call.outputs[0].consumers[0]
    if use.name != "embedding" or use.place.segment is None:
        return None
    outer = use.place.segment.tree
    if not (isinstance(outer, ast.Call) and len(outer.args) == 1 and isinstance(outer.args[0], ast.Call)):
        return None
    inner = outer.args[0]
    if not (isinstance(inner.func, ast.Attribute) and inner.func.attr == "argmax"):
        return None
    new = f"{ast.unparse(inner.func.value)}.softmax(-1) @ {ast.unparse(outer.func)}.weight"
    return Patch(edits=(Edit(use.place.segment, new),))


def _without_no_grad(place: Place) -> Patch | None:
    segment = place.segment
    if segment is None or "no_grad" not in segment.text:
        return None
    return Patch(edits=(Edit(segment, segment.text.replace("no_grad", "enable_grad")),))


def _detached(e: Examination) -> Finding:
    nothing = "no parameter requires a gradient" if not e.trainable else "no parameter reaches it"
    return Finding(
        "loss_detached",
        "error",
        "the loss",
        f"the loss has no history: {nothing}",
        measured="loss.requires_grad is False",
        expected="a loss that depends on the parameters",
        fix="requires_grad_(True) on what is to be trained"
        if not e.trainable
        else "compute the loss from the model's output itself",
    )


# ---- unused --------------------------------------------------------------------------------------------------
def _unused(e: Examination, names: list[str]) -> list[Finding]:
    found = []
    for module in modules_of(names):
        own = [n for n in names if (n.rpartition(".")[0] or n) == module]
        part = any(n.rpartition(".")[0] == module for n in e.seen.parameters if n not in names)
        idle = _idle_sibling(e, module)
        found.append(
            Finding(
                "unused",
                "info" if idle else "warning",
                ", ".join(own) if part else module,
                "it was not needed for this batch, while others of its list were (a mixture of experts?)" if idle
                else "it is registered, and nothing in the forward pass reads it",
                measured=f"gradient None for {listed(own)}",
                expected="every parameter takes part, or is not there",
                fix=f"call it in forward, or delete it: del {submodule(module)}" if not idle else "",
                patch=Patch(f"del {submodule(module)}") if not idle and not part and _is_module(e, module) else None,
            )
        )  # fmt: skip
    return rolled_up(found)


def rolled_up(findings: list[Finding]) -> list[Finding]:
    """One finding for several that differ in where they are only."""
    groups: dict[Any, list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.kind, f.severity, f.cause), []).append(f)
    merged = []
    for same in groups.values():
        if len(same) == 1:
            merged += same
            continue
        first = same[0]
        code = "\n".join(f.patch.code for f in same if f.patch is not None)
        merged.append(
            Finding(
                first.kind, first.severity, listed([f.where for f in same], 6), first.cause,
                f"{len(same)} places; {first.measured}", first.expected, first.fix,
                patch=Patch(code) if code else None,
            )
        )  # fmt: skip
    return merged


def _is_module(e: Examination, path: str) -> bool:
    try:
        e.subject.model.get_submodule(path)
    except (AttributeError, ValueError):
        return False
    return True


def _idle_sibling(e: Examination, module: str) -> bool:
    """Whether a module is one of a list of equals of which others were used."""
    parts = module.split(".")
    for k in range(len(parts) - 1, -1, -1):
        if not parts[k].isdigit():
            continue
        parent = ".".join(parts[:k])
        prefix = parent + "." if parent else ""
        rest = "." + ".".join(parts[k + 1 :]) if parts[k + 1 :] else ""
        for n, v in e.seen.parameters.items():
            pieces = n[len(prefix) :].split(".") if n.startswith(prefix) else []
            if pieces and pieces[0].isdigit() and pieces[0] != parts[k] and v.consumers:
                same = not rest or n.startswith(f"{prefix}{pieces[0]}{rest}")
                container = _container(e, parent)
                if same and isinstance(container, nn.ModuleList):
                    return True
    return False


def _container(e: Examination, path: str) -> Any:
    try:
        return e.subject.model.get_submodule(path)
    except (AttributeError, ValueError):
        return None


def _unreached(e: Examination, names: list[str]) -> list[Finding]:
    if not names:
        return []
    modules = modules_of(names)
    return [
        Finding(
            "output_unused",
            "warning",
            common(modules),
            "it runs, and nothing that it computes reaches the loss",
            measured=f"gradient None for {listed(names)}",
            expected="a loss that uses the output",
            fix="use its output in the loss, or delete it",
        )
    ]


# ---- frozen --------------------------------------------------------------------------------------------------
def frozen(e: Examination) -> list[Finding]:
    """A few frozen layers between trained ones; a frozen backbone, or a frozen base with adapters, is on purpose."""
    layers = e.layers
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
    code = "\n".join(f"{submodule(m)}.requires_grad_(True)" for m in owners if _is_module(e, m))
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
    for _, tensor in tensors:
        if id(tensor) in e.subject.optimized:
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
    holder = _container(e, owner) if owner else e.subject.model
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


# ---- zero derivative -----------------------------------------------------------------------------------------
def zero_derivative(e: Examination) -> list[Finding]:
    """Ops on the gradient's way whose derivative is zero wherever there is one."""
    found: dict[Any, tuple[Call, list[str]]] = {}
    for name in e.zero:
        after = below([e.seen.parameters[name]])
        flat = [c for c in e.seen.tape.calls if c.name in FLAT and any(v in after for v in c.inputs)]
        flat = [c for c in flat if any(o in e.path for o in c.outputs)]
        if flat and name in e.forever_zero:
            found.setdefault((flat[0].name, flat[0].place.code, flat[0].place.line), (flat[0], []))[1].append(name)
    return [
        Finding(
            "zero_derivative",
            "error",
            f"{call.module + ' ' if call.module else ''}{call.name}",
            f"the derivative of {call.name} is zero wherever there is one",
            measured=f"{len(names)} of {len(e.trainable)} parameters have gradient 0, now and after steps: "
            f"{listed(names)}",
            expected="a derivative that is not zero",
            fix="a smooth function (tanh for sign), or a straight-through estimator",
            source=call.place.text,
            patch=_smooth(call),
            consequences=(f"{listed(modules_of(names))} will not be trained",),
        )
        for call, names in found.values()
    ]


def _smooth(call: Call) -> Patch | None:
    segment = call.place.segment
    tree = segment.tree if segment is not None else None
    if segment is None or not isinstance(tree, ast.Call):
        return None
    inside = ast.unparse(tree.func.value) if isinstance(tree.func, ast.Attribute) and not tree.args else (
        ast.unparse(tree.args[0]) if tree.args else None)  # fmt: skip
    if inside is None:
        return None
    if call.name in ("sign", "sgn"):
        new = f"torch.tanh({inside})"
    else:
        hard = " ".join(segment.text.split())
        new = f"({inside} + ({hard} - {inside}).detach())"
    return Patch(edits=(Edit(segment, new),))
