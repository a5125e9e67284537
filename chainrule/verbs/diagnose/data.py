"""What is wrong with the batch itself: numbers that are not, scales, constants, and too few samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.layers import rms
from chainrule.verbs.diagnose.patches import Patch, around_loss
from chainrule.verbs.diagnose.sharding import own_part
from chainrule.verbs.diagnose.subject import Subject
from chainrule.verbs.diagnose.torch_ops import BATCH_STATISTICS, LOSSES, MOVEMENT, NORMALIZATIONS, TABLES
from chainrule.verbs.diagnose.values import Value, above, origin
from chainrule.verbs.kinds import Finding

SMALL, LARGE = 0.02, 20.0  # largest entry, and root mean square, of inputs that are worth a word
UNRESOLVED = 1e6  # of this size float32 resolves steps of a tenth, and every layer's first products are as large


STANDARD = "({x} - {x}.mean(0)) / ({x}.std(0) + 1e-12)"


def _assigned(subject: Subject, name: str, expression: str) -> Patch | None:
    """``batch = (..., batch[1])`` with a changed input, where the input is the one tensor ``x``."""
    if name != "x" or subject.target is None:
        return None
    return Patch(f"batch = ({expression.format(x='batch[0]')}, batch[1])")


def first_bad(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Where the first entry is that is not finite."""
    if not tensor.is_floating_point() or tensor.is_sparse or tensor.is_meta:
        return None
    bad = torch.nonzero(~torch.isfinite(tensor))
    return tuple(int(i) for i in bad[0]) if len(bad) else None


def bad_leaves(subject: Subject) -> list[Finding]:
    """nonfinite: in the batch, a parameter or a buffer, before anything is computed."""
    named: Iterator[tuple[str, str, torch.Tensor]] = (
        *(("batch", n, t) for n, t in subject.batch_tensors.items()),
        *(("parameter", n, t) for n, t in subject.parameters.items()),
        *(("buffer", n, t) for m in subject.roots.values() for n, t in m.named_buffers()),
    )  # type: ignore[assignment]
    for kind, name, tensor in named:
        tensor = own_part(tensor.detach())
        position = first_bad(tensor)
        if position is None or (kind == "buffer" and not bool(torch.isnan(tensor).any())):
            continue  # a buffer of -inf is a mask
        if kind == "batch" and not tensor.dtype.is_floating_point:
            continue
        count = int((~torch.isfinite(tensor)).sum())
        return [
            Finding(
                "nonfinite",
                "error",
                f"{kind} {name}{list(position)}",
                f"the {kind} holds {tensor[position].item()} before anything is computed",
                measured=f"{count} of {tensor.numel()} values",
                expected="finite numbers",
                patch=_assigned(subject, name, "torch.nan_to_num({x})") if kind == "batch" else None,
                fix="clean the data: torch.nan_to_num, or drop the samples" if kind == "batch"
                else "restore or initialise it",
                consequences=("every value computed from it is not finite either",),
            )
        ]  # fmt: skip
    return []


def data(e: Examination) -> list[Finding]:
    """input_constant, input_scale, target_scale, batch_too_small."""
    found = []
    for name, t in e.subject.input_tensors.items():
        t = t.detach()
        if t.is_floating_point() and t.numel() > 1 and t.dim() and name in _used(e):
            found += _constant(name, t) or _scale(e, name, t)
        elif not t.is_floating_point() and t.dim() >= 2 and t.shape[0] > 1 and t.numel() > t.shape[0]:
            found += _constant(name, t) if name in _used(e) and _main(e, name) else []
    return found + _target_scale(e) + _few(e)


def _used(e: Examination) -> set[str]:
    """Inputs that a weight layer, or a table, works on: what only the loss reads is a target."""
    read = above([v for x in e.layers for v in x.call.inputs if v.data])
    tables = _looked_up(e)
    return {n for n, v in e.seen.inputs.items() if v in e.ancestors and (v in read or v in tables or not e.layers)}


def _main(e: Examination, name: str) -> bool:
    """Whether a tensor of whole numbers is looked up in a table: masks and positions may well be equal."""
    ids = name not in ("position_ids", "token_type_ids", "attention_mask")
    return ids and e.seen.inputs[name] in _looked_up(e)


def _looked_up(e: Examination) -> set[Value]:
    """What is looked up in tables, before it was reshaped for them."""
    return {origin(v, MOVEMENT) for c in e.seen.tape.calls if c.name in TABLES for v in c.inputs}


def _constant(name: str, t: torch.Tensor) -> list[Finding]:
    if t.shape[0] < 2 or (t.numel() == t.shape[0] and t.dim() < 2):
        return []
    if bool((t != t[:1]).any()):
        return []
    return [
        Finding(
            "input_constant", "error", f"batch {name}",
            "all samples are the same, so the best the model can do is one answer for all",
            measured=f"{t.shape[0]} equal samples"
            + (f", every value {float(t.flatten()[0]):.4g}" if not bool((t != t.flatten()[0]).any()) else ""),
            expected="samples that differ", fix="look at what the loader returns: a constant, or the same index",
        )
    ]  # fmt: skip


def _scale(e: Examination, name: str, t: torch.Tensor) -> list[Finding]:
    top, size = float(t.abs().max()), rms(t)
    if not math.isfinite(size) or size == 0.0 or _normalised(e, name):
        return []
    if top < SMALL:
        what = "divided by 255 twice?" if top < 1 / 128 else "normalised twice?"
        return [
            Finding(
                "input_scale", "warning", f"batch {name}",
                f"the inputs are so small that the first layer sees its bias only ({what})",
                measured=f"largest {top:.2g}, rms {size:.2g}", expected="rms about 1",
                fix=f"normalise once: ({name} - mean) / std",
                patch=_assigned(e.subject, name, STANDARD),
            )
        ]  # fmt: skip
    if size > LARGE:
        copes = size < UNRESOLVED and _copes(e)
        return [
            Finding(
                "input_scale", "info" if copes else "warning", f"batch {name}",
                "the inputs are not normalised: the first layer's outputs and the weights' gradients are as many times "
                "too large" + ("; training copes with it on this batch" if copes else ""),
                measured=f"rms {size:.3g}, between {float(t.min()):.3g} and {float(t.max()):.3g}; first loss "
                f"{e.seen.loss_number:.3g}",
                expected="rms about 1",
                fix=f"({name} - mean) / std" + (f"; {name} / 255 for pixels" if 100 < top <= 255 else ""),
                patch=_assigned(e.subject, name, STANDARD),
            )
        ]  # fmt: skip
    return []


def _copes(e: Examination) -> bool:
    """Whether trial steps bring the loss down in spite of it."""
    trial = e.trial
    if trial is None:
        return False
    losses = trial.losses
    return (
        all(map(math.isfinite, losses))
        and losses[-1] < 0.7 * losses[0]
        and max(losses) < 10 * losses[0]
        and (losses[-1] <= min(losses) * 1.5)
    )


def _normalised(e: Examination, name: str) -> bool:
    """Whether a normalisation is among the first things that happen to an input."""
    value = e.seen.inputs[name]
    for _ in range(6):
        names = [c.name for c in value.consumers]
        if any(n in NORMALIZATIONS for n in names):
            return True
        following = next((c for c in value.consumers if c.outputs and len(c.inputs) <= 3), None)
        if following is None or any(v.learned and v.shape for v in following.inputs):
            return False
        value = following.outputs[0]
        if value.forward is not None and SMALL <= value.forward[0] and value.forward[1] <= LARGE:
            return True  # scaled inside of the model
    return False


def _target_scale(e: Examination) -> list[Finding]:
    for call in e.seen.tape.calls:
        if call.name not in LOSSES or LOSSES[call.name].expects != "any" or LOSSES[call.name].classes:
            continue
        if len(call.held) < 2 or not call.held[1].is_floating_point() or not call.held[1].numel():
            continue
        output, target = rms(call.held[0]), rms(call.held[1])
        if math.isfinite(target) and target > 100 and target > 100 * output and call.outputs[0] in e.path:
            return [
                Finding(
                    "target_scale", "warning", f"target of {call.name}",
                    "the targets are orders of magnitude larger than what the model returns, so training first spends "
                    "its steps on growing the last layer",
                    measured=f"rms {target:.3g} against {output:.3g}", expected="targets of rms about 1",
                    fix="(y - y.mean()) / y.std(), undone after prediction", source=call.place.text,
                    patch=_standardised(e),
                )
            ]  # fmt: skip
    return []


def _standardised(e: Examination) -> Patch | None:
    """The loss of targets of mean 0 and spread 1."""
    if not isinstance(e.subject.target, torch.Tensor):
        return None
    before = "middle, spread = batch[1].mean(), batch[1].std()"
    return around_loss(e.subject.case, "compared(output, (target - middle) / spread)", before)


def _few(e: Examination) -> list[Finding]:
    for run in e.seen.tape.calls:
        if run.name not in BATCH_STATISTICS or not run.outputs:
            continue
        training = run.argument(5, "training", False)
        shape = run.inputs[0].shape
        count = math.prod(shape) // shape[1] if len(shape) > 1 else 0
        if training is True and 0 < count < 4:
            return [
                Finding(
                    "batch_too_small", "warning", run.where,
                    "batch normalisation over so few values that its mean and variance are noise",
                    measured=f"{count} values per channel", expected="16 and more",
                    fix="a larger batch, or GroupNorm or LayerNorm", source=run.place.text,
                )
            ]  # fmt: skip
    return []
