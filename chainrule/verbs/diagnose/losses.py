"""Whether the loss is given what it expects: pairing, broadcasting, sign, masked labels, first value.

Dimensions of softmaxes are in ``axes``, targets in ``targets``.
"""

from __future__ import annotations

import ast
import math
from typing import Any

import torch

from chainrule.frontends.torch.places import Edit
from chainrule.verbs.diagnose.axes import axis, over_the_batch, weights_of_an_average
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.loss_calls import classes_of, is_output, losses_of, reduction_of
from chainrule.verbs.diagnose.naming import container
from chainrule.verbs.diagnose.optimizers import maximizes
from chainrule.verbs.diagnose.patches import Patch, around_loss, submodule
from chainrule.verbs.diagnose.removal import without
from chainrule.verbs.diagnose.targets import smoothed, targets, targets_by_hand
from chainrule.verbs.diagnose.torch_ops import (
    LOG_SOFTMAXES,
    LOSSES,
    PRODUCTS,
    SOFTMAXES,
    TRANSPARENT,
    UNBOUNDED_ABOVE,
)
from chainrule.verbs.diagnose.values import Call, Value, above, origin, tensors_in
from chainrule.verbs.kinds import Finding


def losses(e: Examination) -> list[Finding]:
    """loss_pairing, loss_axis, broadcast, target_range, sign, init_loss."""
    found: list[Finding] = []
    for call in losses_of(e):
        for check in (_pairing, axis, _shapes, targets, _first_value):
            finding = check(e, call)
            if finding is not None:
                found.append(finding)
                break
    found += _softmax_of_softmax(e) + _constant_softmax(e)
    if not maximizes(e.optimizer):
        found += _sign(e) + _picked_sign(e)
    found += over_the_batch(e) + weights_of_an_average(e) + targets_by_hand(e) + smoothed(e)
    if not any(f.kind == "broadcast" for f in found):
        found += _subtracted(e)
    unique: dict[tuple[str, str], Finding] = {}
    for f in found:
        unique.setdefault((f.kind, f.source or f.where), f)
    return list(unique.values())


# ---- pairing -------------------------------------------------------------------------------------------------
def floor_of_softmax(classes: int) -> float:
    """The least cross-entropy of K logits that are themselves probabilities: ln(e + K - 1) - 1."""
    return math.log(math.e + classes - 1) - 1


def _pairing(e: Examination, call: Call) -> Finding | None:
    expects, given = LOSSES[call.name].expects, origin(call.inputs[0], TRANSPARENT)
    made = given.producer
    if made is None:
        return None
    name, classes = made.name, classes_of(call)
    if call.name == "poisson_nll_loss" and call.argument(2, "log_input", True) is True:
        return _log_of_rate(e, made)
    if expects == "logits":
        if classes == 1:
            return _one_class(e.subject.case, call, made)
        if name in SOFTMAXES or name == "sigmoid":
            return _paired(
                e, call, made, "error",
                f"{call.name} takes logits and applies log-softmax itself; of probabilities in [0, 1] it cannot fall "
                f"below ln(e + K - 1) - 1 = {floor_of_softmax(classes):.3f} for K = {classes} classes",
                "the model's last product, without " + name,
            )  # fmt: skip
        if name == "tanh":
            floor = math.log(1 + (classes - 1) * math.exp(-2))
            return _paired(
                e, call, made, "warning",
                f"logits in [-1, 1] keep cross-entropy above ln(1 + (K - 1) e^-2) = {floor:.3f} for K = {classes}",
                "unbounded logits",
            )  # fmt: skip
        if name == "relu" and not made.inputs[0].consumers[1:]:
            return _paired(
                e, call, made, "warning",
                "a ReLU before cross-entropy makes negative logits impossible, and a class whose logits are all "
                "negative gets no gradient",
                "logits of both signs",
            )  # fmt: skip
        if name in LOG_SOFTMAXES and axis(e, call) is None:
            return _paired(
                e, call, made, "info",
                "log-softmax twice is log-softmax once (log-softmax is idempotent): harmless",
                "logits, or nll_loss",
            )  # fmt: skip
    elif expects == "log_probabilities":
        wrong = name in SOFTMAXES or name == "sigmoid" or name in PRODUCTS
        if wrong and _above_zero(call):
            what = "probabilities" if name not in PRODUCTS else "logits"
            return _paired(
                e, call, made, "error",
                f"{call.name} takes log-probabilities and is given {what}: it is -mean of them, "
                + ("between -1 and 0, with no pressure on small ones" if what == "probabilities"
                   else "which falls without bound"),
                "log_softmax",
            )  # fmt: skip
    elif expects == "probabilities" and name == "sigmoid":
        inner = origin(made.inputs[0], TRANSPARENT).producer
        if inner is not None and (inner.name in SOFTMAXES or inner.name in ("sigmoid", "relu", "tanh")):
            low, high = _SQUASHED.get(inner.name, _SQUASHED["sigmoid"])
            return _paired(
                e, call, inner, "error" if inner.name in SOFTMAXES or inner.name == "sigmoid" else "warning",
                f"the {inner.name} goes into a sigmoid: the probability stays between {low:.3g} and {high:.3g}",
                "the model's last product into one sigmoid",
            )  # fmt: skip
    elif expects == "binary_logits" and (name in SOFTMAXES or name == "sigmoid"):
        low, high = math.log1p(math.exp(-1)), math.log(2)
        return _paired(
            e, call, made, "error",
            "BCEWithLogits takes logits and applies the sigmoid itself; of probabilities it cannot fall below "
            f"(ln 2 + ln(1 + 1/e)) / 2 = {(low + high) / 2:.3f} for balanced labels",
            "the model's last product, without " + name,
        )  # fmt: skip
    elif expects == "binary_logits" and name in LOG_SOFTMAXES:
        return _paired(
            e, call, made, "error",
            "log-probabilities are never positive, so the sigmoid that BCEWithLogits applies to them stays below 1/2",
            "the model's last product, without " + name,
        )  # fmt: skip
    elif expects == "binary_logits" and name in ("relu", "tanh"):
        return _paired(
            e, call, made, "warning",
            f"{name} before BCEWithLogits: logits of {'one sign' if name == 'relu' else 'size at most 1'} only, so "
            f"the probability stays {'at least 1/2' if name == 'relu' else 'between .27 and .73'}",
            "unbounded logits",
        )  # fmt: skip
    return None


def _log_of_rate(e: Examination, made: Call) -> Finding | None:
    """A rate where its logarithm is meant: what is never negative makes a rate that is never below 1."""
    if made.name not in ("softplus", "exp", "relu"):
        return None
    return Finding(
        "loss_pairing", "warning" if made.name == "relu" else "error",
        f"{made.module + ' ' if made.module else ''}{made.name}",
        f"poisson_nll_loss with log_input=True takes the logarithm of the rate; of {made.name}, which is never "
        "negative, it makes a rate that is never below 1",
        measured=f"{made.name} goes into poisson_nll_loss with log_input=True; loss {e.seen.loss_number:.4g}",
        expected="the model's last product, which is the logarithm of the rate",
        fix=f"log_input=False, or no {made.name} at the end", source=made.place.text,
        patch=without(e, made, None),
    )  # fmt: skip


_SQUASHED = {"sigmoid": (0.5, 0.731), "relu": (0.5, 1.0), "tanh": (0.269, 0.731)}  # what a sigmoid makes of them


def _above_zero(call: Call) -> bool:
    return bool(call.held) and bool((call.held[0] > 0).any())


def _one_class(case: Any, call: Call, made: Call) -> Finding:
    where = made.module if made.module and made.name in PRODUCTS else ""
    return Finding(
        "loss_pairing", "error", f"{call.name} behind {where}" if where else call.where,
        f"{call.name} over one class: the log-softmax of one number is 0 whatever the number, so the loss is constant, "
        "its gradient 0, and nothing is trained",
        measured=f"outputs of shape {call.inputs[0].shape}: one class",
        expected="one output with BCEWithLogits, or an output per class",
        fix="binary_cross_entropy_with_logits(output, target.float()), or a last layer with an output per class",
        source=call.place.text or made.place.text,
        patch=around_loss(case, "nn.functional.binary_cross_entropy_with_logits(output.flatten(), "
                                "target.flatten().to(output.dtype))"),
    )  # fmt: skip


def _paired(e: Examination, call: Call, made: Call, severity: str, cause: str, expected: str) -> Finding:
    return Finding(
        "loss_pairing",
        severity,
        f"{made.module + ' ' if made.module else ''}{made.name}",
        cause,
        measured=f"{made.name} goes into {call.name}; loss {e.seen.loss_number:.4g}",
        expected=expected,
        fix=f"remove {made.name} before {call.name}"
        if LOSSES[call.name].expects != "log_probabilities"
        else f"log_softmax in place of {made.name}, or cross_entropy on the logits",
        source=made.place.text,
        patch=around_loss(e.subject.case, "compared(torch.log_softmax(output, 1), target)")
        if made.name in PRODUCTS
        else without(e, made, "nn.LogSoftmax(dim=1)" if LOSSES[call.name].expects == "log_probabilities" else None),
    )


def _softmax_of_softmax(e: Examination) -> list[Finding]:
    """The same mistake written with log_softmax or softmax and a loss of one's own."""
    found = []
    for call in e.seen.tape.calls:
        if call.name not in LOG_SOFTMAXES | SOFTMAXES or not any(o in e.path for o in call.outputs):
            continue
        made = origin(call.inputs[0], TRANSPARENT).producer
        if made is not None and made.name in SOFTMAXES and made.outputs[0].shape[-1] > 1:
            classes = call.inputs[0].shape[-1]
            found.append(_paired_twice(e, made, call, classes))
    return found


def _paired_twice(e: Examination, made: Call, call: Call, classes: int) -> Finding:
    return Finding(
        "loss_pairing", "error", f"{made.module + ' ' if made.module else ''}{made.name}",
        f"a softmax goes into another: log-softmax of numbers in [0, 1] cannot come above -(ln(e + K - 1) - 1) = "
        f"-{floor_of_softmax(classes):.3f} for K = {classes}",
        measured=f"{made.name}, then {call.name}", expected="one softmax", fix="remove the first",
        source=made.place.text, patch=without(e, made, None),
    )  # fmt: skip


def _constant_softmax(e: Examination) -> list[Finding]:
    found = []
    for call in e.seen.tape.calls:
        if call.name not in SOFTMAXES | LOG_SOFTMAXES or not any(o in e.path for o in call.outputs):
            continue
        dim, shape = call.argument(1, "dim"), call.outputs[0].shape
        if isinstance(dim, int) and shape and shape[dim] == 1 and is_output(e, call.outputs[0]):
            number = "1" if call.name in SOFTMAXES else "0"
            found.append(
                Finding(
                    "loss_pairing", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
                    f"the softmax of one number is {number} whatever the number: its derivative is 0, and nothing "
                    "before it is trained",
                    measured=f"{call.name} over a dimension of size 1, shape {shape}: the output is constant",
                    expected="a sigmoid for one output, or a softmax over two and more",
                    fix="Sigmoid in place of Softmax", source=call.place.text,
                    patch=_sigmoid(e, call),
                )
            )  # fmt: skip
    return found


def _sigmoid(e: Examination, call: Call) -> Patch | None:
    module = container(e, call.module) if call.module else None
    if module is not None and not list(module.children()):
        return Patch(f"model.set_submodule({call.module!r}, nn.Sigmoid())")
    return None


# ---- shapes ---------------------------------------------------------------------------------------------------


def _shapes(e: Examination, call: Call) -> Finding | None:
    if len(call.inputs) < 2 or LOSSES[call.name].classes or LOSSES[call.name].expects == "log_probabilities":
        return None
    spread = frozenset({"broadcast_tensors", "expand", "broadcast_to"})  # F.mse_loss does so first
    return _broadcast(e, call, _narrow(call.inputs[0], spread), _narrow(call.inputs[1], spread), call.name)


def _narrow(value: Value, spread: frozenset[str]) -> Value:
    """The value before it was made larger; of several that went in, its own."""
    while value.producer is not None and value.producer.name in spread:
        at = value.producer.outputs.index(value)
        value = value.producer.inputs[min(at, len(value.producer.inputs) - 1)]
    return value


def _broadcast(e: Examination, call: Call, output: Value, target: Value, name: str) -> Finding | None:
    a, b = output.shape, target.shape
    if a == b or not (a and b):
        return None
    try:
        both = torch.broadcast_shapes(a, b)
    except RuntimeError:
        return None
    size = math.prod(both)
    if size <= max(math.prod(a), math.prod(b)) or max(math.prod(a), math.prod(b)) < 2:
        return None
    variance = float(call.held[1].double().var()) if len(call.held) > 1 and call.held[1].numel() > 1 else None
    return Finding(
        "broadcast", "error", f"{call.module + ' ' if call.module else ''}{name}",
        f"output {a} against target {b} broadcasts to {tuple(both)}: every output is compared with every target, and "
        "the best output is the mean of the targets",
        measured=f"{math.prod(both)} differences for {b[0]} targets"
        + (f"; the loss cannot fall below their variance, {variance:.3g}" if variance is not None else ""),
        expected="equal shapes",
        fix="target.view_as(output), or output.squeeze(-1)",
        source=call.place.text,
        patch=_viewed(call) or around_loss(e.subject.case, "compared(output, target.view_as(output))"),
    )  # fmt: skip


def _viewed(call: Call) -> Patch | None:
    segment = call.place.segment
    if call.place.code is None:  # the loss is torch's own function
        return Patch("compared = loss\nloss = lambda output, target: compared(output, target.view_as(output))")
    tree = segment.tree if segment is not None else None
    if segment is None or not isinstance(tree, ast.Call) or len(tree.args) < 2:
        return None
    first, second = ast.unparse(tree.args[0]), ast.unparse(tree.args[1])
    rest = "".join(f", {ast.unparse(a)}" for a in tree.args[2:])
    return Patch(edits=(Edit(segment, f"{ast.unparse(tree.func)}({first}, ({second}).view_as({first}){rest})"),))


def _subtracted(e: Examination) -> list[Finding]:
    """(N, 1) - (N,), squared and averaged by hand; (N,) * log of (N, 1)."""
    for call in e.seen.tape.calls:
        if (
            call.name not in ("sub", "mul")
            or call.module
            or len(call.inputs) != 2
            or not any(o in e.path for o in call.outputs)
        ):
            continue
        a, b = call.inputs
        learned, target = (a, b) if a.learned else (b, a)
        if learned.learned and not target.learned and target.data:
            if call.name == "mul" and not _labels(e, target):
                continue  # weights of samples, a mask
            found = _broadcast(e, call, learned, target, call.name)
            if found is not None:
                return [found]
    return []


def _labels(e: Examination, value: Value) -> bool:
    """Whether a value is the target, or one minus it."""
    targets = {id(t) for t in tensors_in(e.subject.target)}
    for v in above([value]):
        tensor = v.tensor()
        if v.data and v.producer is None and tensor is not None and id(tensor) in targets:
            return True
    return False


def masked_labels(e: Examination) -> list[Finding]:
    """Losses whose labels are all, or nearly all, the ignored index."""
    for call in losses_of(e):
        if not LOSSES[call.name].classes or len(call.held) < 2 or call.held[1].is_floating_point():
            continue
        position = 4 if call.name.startswith("cross_entropy") or call.name.startswith("nll") else None
        ignored = call.argument(position, "ignore_index", -100) if position else -100
        target = call.held[1]
        if not isinstance(ignored, int) or not target.numel():
            continue
        share = float((target == ignored).float().mean())
        if share == 1.0 or share > 0.99:
            every = share == 1.0
            return [
                Finding(
                    "masked_labels", "error" if every else "warning",
                    f"batch y at {call.name}" if not call.module else f"{call.module} {call.name}",
                    "every label is ignore_index: the mean over no label is 0/0" if every
                    else "almost every label is ignore_index",
                    measured=f"{share:.1%} of {target.numel()} labels are {ignored}; loss {e.seen.loss_number:.4g}",
                    expected="labels that count in every batch",
                    fix="mask padding only; skip batches without labels, or longer sequences",
                    source=call.place.text,
                    consequences=("loss and gradients are nan",) if every else (),
                )
            ]  # fmt: skip
    return []


# ---- sign and first value ------------------------------------------------------------------------------------
def _sign(e: Examination) -> list[Finding]:
    """Losses bounded below that are maximised, where nothing else in the loss holds them."""
    known = [c for c in e.seen.tape.calls if isinstance(c.weight, float) and any(o in e.path for o in c.outputs)]
    negative = [c for c in known if c.weight < 0 and (c.name in UNBOUNDED_ABOVE or c.name in ("pow", "square", "abs"))]
    if not negative or any(c.weight > 0 for c in known) or not e.seen.loss_number < 0:
        return []
    call = negative[0]
    if call.name not in LOSSES and not _of_error(call):
        return []
    return [
        Finding(
            "sign", "error", call.name if not call.module else f"{call.module} {call.name}",
            f"{call.name} is at least 0 and is multiplied by a negative number: it is maximised, and the loss falls "
            "without bound",
            measured=f"d loss / d {call.name} = {call.weight:.3g}; loss {e.seen.loss_number:.4g}",
            expected="a positive weight", fix="remove the minus sign", source=call.place.text, patch=_unsigned(e, call),
        )
    ]  # fmt: skip


def _picked_sign(e: Examination) -> list[Finding]:
    """Log-probabilities of labels that are minimised: the loss is the likelihood, without its minus."""
    if not e.seen.loss_number < 0:
        return []
    for call in e.seen.tape.calls:
        if call.name not in LOG_SOFTMAXES or not isinstance(call.weight, tuple):
            continue
        low, high, dense = call.weight
        if low < 0 or high <= 0 or dense or len(call.outputs[0].consumers) > 1:
            continue
        return [
            Finding(
                "sign", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
                "the log-probability of the labels is minimised: it has no lower bound, and the model learns to avoid "
                "the right answer",
                measured=f"d loss / d log p is positive at every label; loss {e.seen.loss_number:.4g}",
                expected="-log p of the labels", fix="a minus sign in front of the log-probability, or nll_loss",
                source=call.place.text, patch=around_loss(e.subject.case, "-compared(output, target)"),
            )
        ]  # fmt: skip
    return []


def _of_error(call: Call) -> bool:
    """Whether what is squared is a difference of output and target."""
    made = origin(call.inputs[0], TRANSPARENT).producer
    return made is not None and made.name == "sub" and {v.learned for v in made.inputs} == {True, False}


def _unsigned(e: Examination, call: Call) -> Patch | None:
    for c in e.seen.tape.calls:
        if c.name == "neg" and any(v in call.outputs or origin(v, TRANSPARENT) in call.outputs for v in c.inputs):
            segment = c.place.segment
            tree = segment.tree if segment is not None else None
            if segment is not None and isinstance(tree, ast.UnaryOp):
                return Patch(edits=(Edit(segment, ast.unparse(tree.operand)),))
    return around_loss(e.subject.case, "-compared(output, target)")


def _first_value(e: Examination, call: Call) -> Finding | None:
    """The value of a classification loss against that of a model that knows nothing."""
    number = call.outputs[0].scale if call.outputs and call.outputs[0].forward is not None else None
    mean = reduction_of(call) == "mean"
    if number is None or not mean or call.outputs[0].shape != () or not math.isfinite(number):
        return None
    if call.name == "cross_entropy_loss":
        baseline = math.log(max(classes_of(call), 2))
    elif call.name in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        baseline = math.log(2)
    else:
        return None
    if number <= 5 * baseline:
        return None
    return Finding(
        "init_loss", "warning", call.name if not call.module else f"{call.module} {call.name}",
        "the model is sure of wrong answers: the loss is far above that of one that knows nothing",
        measured=f"{call.name} {number:.3g}", expected=f"{baseline:.3g} for equal probabilities",
        fix="a smaller last layer (zeros, or std 0.01), or inputs of unit scale", source=call.place.text,
        patch=_smaller_head(e),
    )  # fmt: skip


def _smaller_head(e: Examination) -> Patch | None:
    head = next((x for x in reversed(e.layers) if x.last), None)
    if head is None or not head.parameter.endswith(".weight"):
        return None
    return Patch(f"nn.init.normal_({submodule(head.parameter.rpartition('.')[0])}.weight, 0, 0.01)")
