"""Softmaxes over the wrong dimension: before a loss, over the batch, and of attention weights."""

from __future__ import annotations

import ast
import copy

from chainrule.frontends.torch.places import Edit
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.loss_calls import classes_of, is_output
from chainrule.verbs.diagnose.naming import container
from chainrule.verbs.diagnose.patches import Patch, around_loss, submodule
from chainrule.verbs.diagnose.torch_ops import DROPOUTS, LOG_SOFTMAXES, LOSSES, PRODUCTS, SOFTMAXES, TRANSPARENT
from chainrule.verbs.diagnose.values import Call, Value, origin
from chainrule.verbs.kinds import Finding

SCALINGS = frozenset({"div", "mul"})  # a temperature


def axis(e: Examination, call: Call) -> Finding | None:
    """A softmax over another dimension than the one that a loss takes for classes."""
    made = origin(call.inputs[0], TRANSPARENT).producer
    if made is not None and made.name == "linear":
        return _classes_last(e, call)
    if made is None or made.name not in SOFTMAXES | LOG_SOFTMAXES:
        return None
    dim, shape = made.argument(1, "dim"), made.outputs[0].shape
    if not isinstance(dim, int) or len(shape) < 2:
        return None
    if len(shape) > 2:
        counts = LOSSES[call.name].classes and shape[dim] != classes_of(call) and classes_of(call) in shape
        return _other_axis(made, shape, dim, classes_of(call)) if counts else None
    if dim not in (0, -2) or shape[0] < 2:
        return None
    patch = None
    module = container(e, made.module) if made.module else None
    if module is not None and getattr(module, "dim", None) == dim:
        patch = Patch(f"{submodule(made.module)}.dim = 1")
    return _wrong_axis(made, shape, dim, patch)


_SAME = DROPOUTS | {"view", "reshape", "contiguous", "to", "_to_copy", "clone", "alias", "float"}


def _classes_last(e: Examination, call: Call) -> Finding | None:
    """Logits (N, T, K) as a linear layer gives them, where the loss takes (N, K, T): silent where T equals K."""
    value, shape = call.inputs[0], call.inputs[0].shape
    if len(shape) < 3 or not LOSSES[call.name].classes or shape[1] != shape[-1]:
        return None
    while value.producer is not None and value.producer.name in _SAME and value.producer.inputs[0].shape == shape:
        value = value.producer.inputs[0]
    if value.producer is None or value.producer.name != "linear":
        return None
    return Finding(
        "loss_axis", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
        f"{call.name} takes dimension 1 for the classes, and the last layer gives them along the last: it compares "
        f"positions, which are as many ({shape[1]})",
        measured=f"logits {shape} straight from a linear layer", expected="(N, K, T), or one dimension of positions",
        fix="logits.flatten(0, 1) and target.flatten(), or logits.transpose(1, 2)",
        source=call.place.text or value.producer.place.text,
        patch=around_loss(e.subject.case, "compared(output.transpose(1, -1), target)") if e.seen.outputs
        and value.producer.outputs[0] is e.seen.outputs[0] else None,
    )  # fmt: skip


def over_the_batch(e: Examination) -> list[Finding]:
    """The same with a loss of one's own: a softmax over samples of what the model returns."""
    rows = {t.shape[0] for t in e.subject.input_tensors.values() if t.dim()}
    for call in e.seen.tape.calls:
        if call.name not in SOFTMAXES | LOG_SOFTMAXES or not any(o in e.path for o in call.outputs):
            continue
        dim, shape = call.argument(1, "dim"), call.outputs[0].shape
        if dim not in (0, -2) or len(shape) != 2 or shape[0] < 2 or shape[0] == shape[1] or shape[0] not in rows:
            continue
        scores = origin(call.inputs[0], TRANSPARENT | SCALINGS).producer
        compared = scores is not None and scores.name in PRODUCTS and all(v.data for v in scores.inputs[:2])
        output = call.inputs[0] in e.seen.outputs or origin(call.inputs[0], TRANSPARENT) in e.seen.outputs
        if compared or not (output or is_output(e, call.outputs[0])):
            continue
        return [_wrong_axis(call, shape, dim, None)]
    return []


_SCALED = TRANSPARENT | DROPOUTS | {"mul", "div", "add", "sub", "masked_fill", "where", "clamp", "tanh"}


def weights_of_an_average(e: Examination) -> list[Finding]:
    """Attention whose weights are normalised over another dimension than the one that they are summed over."""
    for call in e.seen.tape.calls:
        if call.name not in SOFTMAXES or not any(o in e.path for o in call.outputs):
            continue
        dim, shape = call.argument(1, "dim"), call.outputs[0].shape
        if not isinstance(dim, int) or len(shape) < 2:
            continue
        dim -= len(shape) if dim >= 0 else 0
        scores = origin(call.inputs[0], _SCALED).producer
        if scores is None or scores.name not in _MATRIX_PRODUCTS or not all(v.data for v in _factors(scores)):
            continue
        weights = call.outputs[0]
        while len(weights.consumers) == 1 and weights.consumers[0].name in DROPOUTS | {"contiguous", "to", "_to_copy"}:
            weights = weights.consumers[0].outputs[0]
        product = next((c for c in weights.consumers if c.name in _MATRIX_PRODUCTS), None)
        if product is None or len(weights.consumers) != 1:
            continue
        left, right = _factors(product)[:2]
        summed = -1 if left is weights else -2 if right is weights else None
        if summed is None or summed == dim or dim not in (-1, -2) or shape[-1] == 1 or left is right:
            continue
        return [
            Finding(
                "loss_axis", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
                f"{call.name} over dimension {dim}, and the product behind it sums over dimension {summed}: the "
                "weights of an average have to sum to one over what is averaged, here they sum to one over the queries",
                measured=f"scores of shape {shape}, dim={call.argument(1, 'dim')}", expected=f"dim={summed}",
                fix=f"softmax(dim={summed})", source=call.place.text, patch=redirected(call, summed),
            )
        ]  # fmt: skip
    return []


_MATRIX_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})


def _factors(call: Call) -> tuple[Value, ...]:
    return call.inputs[1:] if call.name == "baddbmm" else call.inputs


def _wrong_axis(call: Call, shape: tuple[int, ...], dim: int, patch: Patch | None) -> Finding:
    return Finding(
        "loss_axis", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
        f"{call.name} over dimension 0, the batch: samples compete with each other instead of classes",
        measured=f"shape {shape}, dim={dim}", expected="dim=1, the classes", fix="dim=1",
        source=call.place.text, patch=patch or redirected(call, 1),
    )  # fmt: skip


def redirected(call: Call, dim: int) -> Patch | None:
    """The user's call over another dimension, where the dimension is written in it."""
    segment = call.place.segment
    tree = segment.tree if segment is not None else None
    if segment is None or not isinstance(tree, ast.Call):
        return None
    made = copy.deepcopy(tree)
    named = next((k for k in made.keywords if k.arg in ("dim", "axis")), None)
    if named is not None:
        named.value = ast.Constant(dim)
    elif made.args and isinstance(made.args[-1], (ast.Constant, ast.UnaryOp)):
        made.args[-1] = ast.Constant(dim)
    else:
        return None
    return Patch(edits=(Edit(segment, ast.unparse(made)),))


def _other_axis(call: Call, shape: tuple[int, ...], dim: int, classes: int) -> Finding:
    right = shape.index(classes) - len(shape)
    return Finding(
        "loss_axis", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
        f"{call.name} over dimension {dim} of size {shape[dim]}, and the loss has {classes} classes: positions compete "
        "with each other instead of classes",
        measured=f"shape {shape}, dim={dim}", expected=f"dim={right}, the classes", fix=f"dim={right}",
        source=call.place.text, patch=redirected(call, right),
    )  # fmt: skip
