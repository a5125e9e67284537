"""Whether the inputs have any influence: a loss that reads none of them, and outputs that are one for all samples."""

from __future__ import annotations

import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.naming import listed, modules_of
from chainrule.verbs.diagnose.torch_ops import PRODUCTS
from chainrule.verbs.diagnose.values import Call, Value, above
from chainrule.verbs.kinds import Finding


def no_signal(e: Examination) -> list[Finding]:
    """A loss that does not depend on the inputs at all."""
    floats = [v for n, v in e.seen.inputs.items() if n in e.subject.input_tensors]
    if not floats or any(v in e.ancestors for v in floats) or not e.path:
        return []
    return [
        Finding(
            "no_signal", "error", "the model", "the loss does not depend on the inputs: nothing reads them",
            measured=f"loss {e.seen.loss_number:.4g}", expected="an output that depends on its input",
            fix="use the argument of forward",
        )
    ]  # fmt: skip


def same_for_all(e: Examination) -> list[Finding]:
    """What the model returns is one and the same for all samples, now, on another batch and after steps of descent."""
    subject = e.subject
    inputs = [t for t in subject.input_tensors.values() if t.dim() and t.shape[0] > 1]
    if not e.seen.alike or not e.path or not any(bool((t != t[:1]).any()) for t in inputs):
        return []
    if e.other is not None and not e.other.alike:
        return []
    end = e.descended[1]
    try:
        with subject.safely(), torch.no_grad():
            for n, p in subject.trainable.items():
                p.copy_(end[n])
            later = subject.observe(sizes=False)
    except ModelError:
        return []
    if not later.alike:
        return []
    return [
        Finding(
            "no_signal", "error", "the model",
            "what the model returns is the same for every sample, and stays so when its parameters move: the inputs "
            "have no influence",
            measured=f"{inputs[0].shape[0]} equal outputs for samples that differ, before and after steps of descent",
            expected="an output that depends on its input",
            fix="look for what takes the input away: a factor of zero, a mask, an index that is the same for all",
        )
    ]  # fmt: skip


def silenced(e: Examination) -> list[Finding]:
    """A factor of zero that is written down, or a hook that returns zeros, and the parameters that it silences.

    Gradients that are zero by the sizes of things (attention to one place, pooling of one pixel) are no finding.
    """
    found = next(((c, ended) for c in reversed(e.seen.tape.calls) if (ended := _stopped(e, c))), None)
    if found is None:
        return []
    call, ended = found
    behind = above(ended)
    names = [n for n in e.forever_zero if e.seen.parameters[n] in behind]
    if not names:
        return []
    return [
        Finding(
            "zero_derivative", "error", f"{call.module + ' ' if call.module else ''}{call.name}",
            f"{call.name} passes no gradient on to one of its inputs: what is before it is multiplied by zero",
            measured=f"{len(names)} of {len(e.trainable)} parameters have gradient 0, now, on another batch and "
            f"after steps: {listed(names)}",
            expected="a gradient that is not zero for ever",
            fix="look for a factor, a mask or a hook that is zero", source=call.place.text,
            consequences=(f"{listed(modules_of(names))} will not be trained",),
        )
    ]  # fmt: skip


def _stopped(e: Examination, call: Call) -> list[Value]:
    """The inputs of a call that its gradient does not get to, though nothing in the call's own numbers says so."""
    if not call.outputs or call.outputs[0] not in e.path or not call.outputs[0].slope > 0:
        return []
    if call.name == "mul":
        constants = [a for a in call.arguments if isinstance(a, (int, float))]
        given = [v for v in call.inputs if not v.learned and v.forward is not None and v.forward[0] == 0]
        return [v for v in call.inputs if v.learned] if 0 in constants or given else []
    if call.name in PRODUCTS and all(v.scale > 0 for v in call.inputs[:1]):
        names = [v.name.removeprefix("parameter ") for v in call.inputs if v.name.startswith("parameter ")]
        return list(call.inputs) if names and all(n in e.zero for n in names) else []
    return []
