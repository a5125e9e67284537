"""Parameters that no gradient reaches, and why: unused, cut, or behind a derivative that is zero.

Autograd says that a gradient is missing; the tape says where it was lost, since it holds the dependence too.
"""

from __future__ import annotations

import ast
from typing import Any

from torch import nn

from chainrule.errors import ModelError
from chainrule.frontends.torch.places import Edit, Place
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.naming import common, container, is_module, listed, modules_of
from chainrule.verbs.diagnose.patches import Patch, submodule
from chainrule.verbs.diagnose.registration import frozen, unregistered
from chainrule.verbs.diagnose.tape import Tape
from chainrule.verbs.diagnose.torch_ops import FLAT
from chainrule.verbs.diagnose.values import Call, Value, above, below
from chainrule.verbs.kinds import Finding


def connections(e: Examination) -> list[Finding]:
    """unregistered, cut, loss_detached, unused, output_unused, frozen."""
    found = unregistered(e)
    missing = [n for n in e.trainable if e.seen.gradients[n] is None]
    if e.optimizer is not None:  # a teacher, a target network: what the optimizer does not hold needs no gradient
        missing = [n for n in missing if id(e.subject.trainable[n]) in e.subject.optimized]
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
    found += [_cut(e, call, names) for call, names in cuts.values()]
    if not e.seen.loss.differentiable and not cuts and not found:
        found.append(_detached(e))
    found += _unused(e, unused) + _unreached(e, unreached) + frozen(e)
    return found


# ---- cut -----------------------------------------------------------------------------------------------------
def cut_of(e: Examination, value: Value) -> Call | None:
    """The call at which the gradient of a parameter ends, if the loss depends on it; or where it leaves torch."""
    after = below([value])
    if e.seen.loss in after:
        for call in e.seen.tape.calls:
            used = [o for o in call.outputs if o in e.ancestors]  # of topk, the indices perhaps
            if used and _cuts(call, used) and any(v in after for v in call.inputs):
                return call
        return None
    return next((c for c in e.seen.tape.calls if not c.outputs and any(v in after for v in c.inputs)), None)


def _cuts(call: Call, used: list[Value]) -> bool:
    ends = call.name == "Parameter" or not any(o.differentiable for o in used)
    return ends and any(v.differentiable for v in call.inputs)


def _no_grad(call: Call) -> bool:
    return not call.tracking and call.name not in ("detach", "data")


def _cut(e: Examination, call: Call, names: list[str]) -> Finding:
    modules = modules_of(names)
    every = len(names) == len(e.trainable)
    place, patch = call.place, None
    if _no_grad(call):
        cause = "these layers run inside of torch.no_grad(), so autograd records nothing of them"
        where, fix = common(modules), "take the layers out of the no_grad block"
        place = call.no_grad if call.no_grad.code is not None else place
        patch = _without_no_grad(place)
        if call.index in e.seen.tape.reentrant:
            cause = "a reentrant checkpoint makes gradients only if one of its inputs requires one, and none does"
            fix, patch = "checkpoint(..., use_reentrant=False)", None
    else:
        where = f"{call.module + ' ' if call.module else ''}{_spelled(call)}"
        cause, fix = _reason(call) if call.outputs else ("", "")
        if call.outputs and _at_the_end(e, call) and not call.outputs[0].dtype.is_floating_point:
            fix = "train on a loss that has a derivative (cross_entropy on the outputs); read this one beside it"
        patch = _rewritten(call) if call.outputs else None
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
    return not call.module and not above(call.inputs).keys().isdisjoint(e.seen.outputs)


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
    if call.name == "argmin":
        return (
            "argmin gives whole numbers, through which no derivative passes",
            "straight through to what was compared: z + (nearest - z).detach(), with a loss that draws nearest to z",
        )
    if call.name in ("argmax", "argsort", "one_hot", "multinomial", "bernoulli"):
        return (
            f"{call.name} gives whole numbers, through which no derivative passes",
            "softmax(z) @ table.weight, or F.gumbel_softmax(z, hard=True) @ table.weight",
        )
    if call.name in ("detach", "detach_", "data"):
        word = ".data" if call.name == "data" else f".{call.name}()"
        return f"{word} gives the same numbers without their history", f"remove {word}"
    if call.name == "Parameter":
        return "nn.Parameter(h) is a new leaf with the numbers of h and without their history", "h itself"
    if call.name == "custom":
        return f"{call.function.__name__} marks its output as not differentiable", "give it a backward"
    if all(o.dtype.is_floating_point for o in call.outputs):
        return f"{call.name} has no derivative here", "a differentiable op in its place"
    if any(o.differentiable for o in call.outputs):
        return (
            f"only the indices that {call.name} gives are used, through which no derivative passes",
            "its values, or softmax in its place",
        )
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
    elif call.name == "argmax" and call.outputs and call.outputs[0].consumers:
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
    resting = _used_in_evaluation(e, names) if names else set()
    for module in modules_of(names):
        own = [n for n in names if (n.rpartition(".")[0] or n) == module]
        part = any(n.rpartition(".")[0] == module for n in e.seen.parameters if n not in names)
        part = part or any(True for _ in getattr(container(e, module), "children", tuple)())
        idle = _idle_sibling(e, module) or set(own) <= resting
        found.append(
            Finding(
                "unused",
                "info" if idle else "warning",
                ", ".join(own) if part else module,
                "it was not needed for this batch, while others of its list were, or it is in evaluation (an expert, a "
                "dropped layer)" if idle
                else "it is registered, and nothing in the forward pass reads it",
                measured=f"gradient None for {listed(own)}",
                expected="every parameter takes part, or is not there",
                fix=f"call it in forward, or delete it: del {submodule(module)}" if not idle else "",
                patch=Patch(f"del {submodule(module)}") if not idle and not part and is_module(e, module) else None,
            )
        )  # fmt: skip
    return rolled_up(found)


def _used_in_evaluation(e: Examination, names: list[str]) -> set[str]:
    """Those of the parameters that a pass in evaluation mode reads: layers that training drops at random."""
    subject = e.subject
    if not any(m.training for root in subject.roots.values() for m in root.modules()):
        return set()
    tape = Tape(subject.roots, sizes=False)
    subject.passes += 1
    try:
        with subject.safely():
            values = {n: tape.declare(subject.parameters[n], f"parameter {n}", learned=True) for n in names}
            for root in subject.roots.values():
                root.eval()
            with tape.recording():
                subject.loss_of()
    except (ModelError, RuntimeError):
        return set()
    return {n for n, v in values.items() if v.consumers}


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
        # From the last on: what follows a deleted entry of a Sequential moves up.
        code = "\n".join(f.patch.code for f in reversed(same) if f.patch is not None)
        merged.append(
            Finding(
                first.kind, first.severity, listed([f.where for f in same], 6), first.cause,
                f"{len(same)} places; {first.measured}", first.expected, first.fix,
                patch=Patch(code) if code else None,
            )
        )  # fmt: skip
    return merged


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
                if same and isinstance(container(e, parent), nn.ModuleList):
                    return True
    return False


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
