"""Who depends on whom: one sample on another, a position on later ones; read off gradients, with the op that mixes.

The gradient of one sample's output, in evaluation mode, flows back; the first op (seen from the output) whose output's
gradient is zero in the other rows and whose input's is not has mixed them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.errors import ChainruleError
from chainrule.frontends.torch import batch as convention
from chainrule.verbs.diagnose.examination import Examination, replaced
from chainrule.verbs.diagnose.naming import container
from chainrule.verbs.diagnose.patches import Patch, submodule
from chainrule.verbs.diagnose.tape import Tape
from chainrule.verbs.diagnose.torch_ops import ACTIVATIONS, BATCH_STATISTICS, LOSSES, MOVEMENT, RECURRENT
from chainrule.verbs.diagnose.values import Call, Value, above, tensors_in
from chainrule.verbs.kinds import Finding

_ROW_BY_ROW = frozenset({"mul", "add", "sub", "div", "linear", "layer_norm", "dropout", *ACTIVATIONS})


@dataclass(frozen=True)
class _Spread:
    """Rows, or positions, outside of those that were asked for are reached; ``calls``: the ops that mix them."""

    calls: tuple[Call, ...]

    @property
    def call(self) -> Call | None:
        """The last of them; None where they are not known."""
        return self.calls[0] if self.calls else None


def dependence(e: Examination) -> list[Finding]:
    """batch_leak and future_leak."""
    return batch_leak(e) + future_leak(e)


def batch_leak(e: Examination) -> list[Finding]:
    """Whether the output for one sample depends on others."""
    found = []
    normalized = [c for c in e.seen.tape.calls if c.name in BATCH_STATISTICS and c.argument(5, "training") is True]
    statistics = normalized[0] if normalized else None
    if statistics is not None:
        found.append(
            Finding(
                "batch_leak", "info", statistics.where,
                "in training, BatchNorm makes every sample depend on the others",
                "", "", "", source=statistics.place.text,
            )
        )  # fmt: skip
    size = _batch_size(e)
    if size is None or size < 2:
        return found

    at = size // 2  # a recurrence over the batch looks back only

    def outside(g: torch.Tensor) -> bool:
        dim = _dimension(g.shape, 0, size)
        rest = size - at - 1
        return dim is not None and bool(
            (g.narrow(dim, 0, at) != 0).any() or (g.narrow(dim, at + 1, rest) != 0).any()
        )  # fmt: skip

    spread = _spread(e, lambda out: out[at], outside, lambda v: _dimension(v.shape, 0, size) is not None, 0, size)
    if spread is None:
        return found
    call = next((c for c in spread.calls if not _told_by_data(c, size)), spread.call)
    if call is not None and _compares(call, size):
        return found
    if call is not None and _told_by_data(call, size):
        found.append(
            Finding(
                "batch_leak", "info", f"{call.module + ' ' if call.module else ''}{call.name}",
                "samples are mixed by a matrix or indices that are given, as in a graph", "", "", "",
                source=call.place.text,
            )
        )  # fmt: skip
        return found
    found.append(
        Finding(
            "batch_leak", "error", f"{call.module + ' ' if call.module else ''}{call.name}" if call else "the model",
            "what the model returns for a sample depends on other samples of the batch",
            measured=f"d output[{at}] / d x[j] is not zero for j other than {at}, in evaluation mode",
            expected="zero: samples are independent",
            fix="batch_first=True, or x.transpose(0, 1) for a recurrence that takes time first" if call is not None
            and call.name in RECURRENT
            else "transpose or permute in place of view, which keeps the order in memory" if call is not None
            and call.name in MOVEMENT
            else "a softmax, norm, view or sum over the batch dimension: keep dimension 0 apart",
            source=call.place.text if call else "", patch=_batch_first(e, call),
        )
    )  # fmt: skip
    return found


def _compares(call: Call, size: int) -> bool:
    """Whether the output is a table of all pairs of samples, which is what a contrastive loss compares."""
    if not call.outputs or call.outputs[0].shape != (size, size) or sum(v.data for v in call.inputs) < 2:
        return False
    value = call.outputs[0]
    while value.consumers and value.consumers[0].name in _SCALED:
        value = value.consumers[0].outputs[0]
    return not value.consumers  # nothing in the model reads it


_SCALED = MOVEMENT | {"mul", "div", "neg", "pow", "square", "exp", "add", "sub"}


def _batch_first(e: Examination, call: Call | None) -> Patch | None:
    """A recurrence that takes time first is told that the batch is."""
    module = container(e, call.module) if call is not None and call.name in RECURRENT and call.module else None
    if call is None or module is None or getattr(module, "batch_first", True):
        return None
    return Patch(f"{submodule(call.module)}.batch_first = True")


def _told_by_data(call: Call, size: int) -> bool:
    """Whether what mixes rows is an operand that is given: a matrix between samples, as in a graph, or indices."""
    for v in call.inputs:
        square, indices = v.shape[-2:] == (size, size), v.dtype in (torch.int64, torch.int32)
        if v.learned or not (square or (indices and call.name != "embedding")):
            continue
        given = [u for u in above([v]) if u.producer is None and u.data]
        if all(u.shape[-2:] == (size, size) or not u.dtype.is_floating_point for u in given):
            return True
    return False


def _batch_size(e: Examination) -> int | None:
    """The common first dimension of inputs, outputs and target; None where dimension 0 need not be the batch."""
    inputs = [t for t in e.subject.input_tensors.values() if t.dim() > 0]
    outputs = [v.shape for v in e.seen.outputs if v.shape]
    if not inputs or not outputs or e.subject.case.objective is not None:
        return None
    size = inputs[0].shape[0]
    target = [t for t in tensors_in(e.subject.target) if t.dim() > 0]
    if len(outputs[0]) == 2 and outputs[0][0] == outputs[0][1] == size and e.subject.case.loss == "model":
        return None  # similarities of all pairs: a contrastive model compares samples on purpose
    if outputs[0][0] != size or any(t.shape[0] != size for t in target[:1]):
        return None
    if e.subject.case.loss == "model":
        return None if outputs[0] == () else size
    # Time first: recurrences and attention by torch put the batch second unless told otherwise. With one row of the
    # output and one label for each of dimension 0, it is the batch all the same.
    labelled = len(outputs[0]) == 2 and bool(target) and target[0].dim() <= 2
    if labelled and inputs[0].dim() > 2 and inputs[0].shape[0] != inputs[0].shape[1]:
        return size
    sequential = any(
        getattr(m, "batch_first", True) is False for root in e.subject.roots.values() for m in root.modules()
    )
    if sequential or any(c.name in RECURRENT and not getattr(c, "batch_first", True) for c in e.seen.tape.calls):
        return None
    if len(outputs[0]) >= 3 and target and target[0].dim() >= 2 and outputs[0][1] == inputs[0].shape[1]:
        return size if inputs[0].shape[0] != inputs[0].shape[1] else None
    return size


# ---- future --------------------------------------------------------------------------------------------------
def future_leak(e: Examination) -> list[Finding]:
    """Whether a model that predicts the next position looks at it."""
    found = _predicts_next(e)
    if found is None:
        return []
    read, along, length = found
    at = length // 2

    def outside(g: torch.Tensor) -> bool:
        dim = _dimension(g.shape, along, length)
        return dim is not None and bool((g.narrow(dim, at + 1, length - at - 1) != 0).any())

    def comparable(v: Value) -> bool:
        return _dimension(v.shape, along, length) is not None

    place = along if not _classes_second(e) else 2
    spread = _spread(e, lambda out: out.select(place, at), outside, comparable, along, length, read)
    if spread is None:
        return []
    call = spread.call
    return [
        Finding(
            "future_leak", "error", f"{call.module + ' ' if call.module else ''}{call.name}" if call else "the model",
            "the target is the input moved by one, and what the model returns at a position depends on later ones: it "
            "can copy the answer",
            measured=f"the output at position {at} depends on x at positions after {at}",
            expected="zero: a causal mask", fix=_causal(call),
            source=call.place.text if call else "",
        )
    ]  # fmt: skip


def _causal(call: Call | None) -> str:
    if call is not None and call.name in RECURRENT:
        return "bidirectional=False: the way back has read what is to be predicted"
    if call is not None and "conv" in call.name:
        return "padding on the left only: F.pad(x, ((kernel_size - 1) * dilation, 0)) and padding=0"
    return "is_causal=True, or a mask of -inf above the diagonal"


def _predicts_next(e: Examination) -> tuple[torch.Tensor, int, int] | None:
    """(input, dimension, length) of the sequence, if the target is the input moved on by one position."""
    targets = [t for t in tensors_in(e.subject.target) if t.numel()]
    outputs = [v.shape for v in e.seen.outputs if v.shape]
    if not targets or not outputs:
        return None
    for name, x in e.subject.input_tensors.items():
        if name not in e.seen.inputs or x.dim() < 2:
            continue
        for target in targets:
            if x.dtype != target.dtype or x.numel() != target.numel():
                continue
            y = target.detach().reshape(x.shape)  # labels are often flat
            for along in (1, 0):
                length = x.shape[along]
                shape = outputs[0] if not _classes_second(e) else (outputs[0][0], outputs[0][2])
                if length < 4 or shape[:2] != tuple(x.shape[:2]):
                    continue
                later, now = x.narrow(along, 1, length - 1), x.narrow(along, 0, length - 1)
                if bool((later == y.narrow(along, 0, length - 1)).all()) and bool((later != now).any()):
                    return x, along, int(length)
    return None


def _classes_second(e: Examination) -> bool:
    """Whether the output is (N, K, T), as cross-entropy takes it, with the positions last."""
    first = next((v for v in e.seen.outputs if v.shape), None)
    if first is None or len(first.shape) != 3:
        return False
    return any(c.name in LOSSES and LOSSES[c.name].classes and c.inputs[0] is first for c in e.seen.tape.calls)


def _dimension(shape: Sequence[int], along: int, size: int) -> int | None:
    """Which dimension counts samples, or positions: where it was, or the only one of that size."""
    if len(shape) > along and shape[along] == size:
        return along
    found = [k for k, s in enumerate(shape) if s == size]
    return found[0] if len(found) == 1 else None


# ---- one backward pass from part of the output ---------------------------------------------------------------
def _spread(
    e: Examination, part: Callable[[torch.Tensor], torch.Tensor], outside: Callable[[torch.Tensor], bool],
    comparable: Callable[[Value], bool], along: int, size: int, read: torch.Tensor | None = None,
) -> _Spread | None:  # fmt: skip
    """A pass in evaluation mode whose backward starts at part of the output; None where nothing outside is reached.

    ``read``: the input that counts; all of them without it. ``along``, ``size``: its dimension of samples or steps.
    """
    subject = e.subject
    seen: dict[Value, bool] = {}

    def watch(value: Value, grad: torch.Tensor) -> torch.Tensor | None:
        if comparable(value):
            seen[value] = outside(grad)
        return None

    def strictly(g: torch.Tensor) -> bool:
        return g.dim() > along and g.shape[along] == size and outside(g)

    if not _leaks(e, part, strictly, read):
        return None
    tape = Tape(subject.roots, sizes=False, watch=watch)
    inputs = subject.case.batch if subject.case.loss == "model" else convention.split(subject.case.batch)[0]
    subject.passes += 1
    try:
        with subject.safely():
            tensors = dict(subject.input_tensors)
            for n, t in tensors.items():
                tape.declare(t, f"batch {n}", data=True)
            fresh = {id(t): t.detach().clone().requires_grad_() for t in tensors.values() if t.is_floating_point()}
            for t in fresh.values():
                tape.declare(t, "batch", data=True)
            for root in subject.roots.values():
                root.eval()
            given = _with(inputs, fresh)
            with subject.around(), tape.recording():
                output = convention.call_model(subject.model, given)
            first = next((t for t in tensors_in(output) if t.is_floating_point() and t.dim()), None)
            if first is None or not first.requires_grad:
                return None
            chosen = part(first)
            weights = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0)).to(chosen)
            (chosen * weights).sum().backward()
    except (ChainruleError, RuntimeError, IndexError, TypeError, ValueError) as error:
        subject.notes.append(
            f"dependence between samples not checked: {str(error).splitlines()[0] if str(error) else ''}"
        )
        return None
    except Exception as error:
        subject.notes.append(f"dependence between samples not checked: {type(error).__name__}")
        return None
    mixing = [
        c
        for c in reversed(tape.calls)
        if (own := [o for o in c.outputs if o in seen])
        and not any(seen[o] for o in own)
        and any(seen.get(v, False) for v in c.inputs)
    ]
    # What is read twice is reached by way of both readers; one that works row by row is not what mixes.
    calls = [c for c in mixing if c.name not in _ROW_BY_ROW]
    if not calls:  # rows went into another shape and came back from it: gathered along edges, added up at nodes
        calls = [
            c
            for c in reversed(tape.calls)
            if any(o in seen and not seen[o] for o in c.outputs)
            and any(v.differentiable and v.data and not comparable(v) for v in c.inputs)
        ]
    calls = calls or mixing[:1]
    call = calls[0] if calls else None
    if call is None:  # the first that takes mixed rows into another shape
        call = next(
            (
                c
                for c in tape.calls
                if c.outputs
                and c.outputs[0] not in seen
                and any(v.data and comparable(v) for v in c.inputs)
                and not comparable(c.outputs[0])
                and c.outputs[0].differentiable
            ),
            None,
        )
    if call is None:
        call = next((c for c in tape.calls if any(o in seen and not seen[o] for o in c.outputs)), None)
    return _Spread(tuple(calls or ([call] if call is not None else [])))


def _leaks(
    e: Examination, part: Callable[[torch.Tensor], torch.Tensor], outside: Callable[[torch.Tensor], bool],
    read: torch.Tensor | None, alone: bool = True,
) -> bool:  # fmt: skip
    """The same without a record, which costs a plain pass: whether there is anything to look for.

    ``alone``: only the gradients of what goes in are made, those of the parameters take memory.
    """
    subject = e.subject
    inputs = subject.case.batch if subject.case.loss == "model" else convention.split(subject.case.batch)[0]
    rows: list[torch.Tensor] = []
    handles = []
    subject.passes += 1
    try:
        with subject.safely():
            tensors = dict(subject.input_tensors)
            fresh = {id(t): t.detach().clone().requires_grad_() for t in tensors.values() if t.is_floating_point()}

            def looked_up(module: Any, args: Any, output: torch.Tensor) -> None:
                if output.requires_grad and (read is None or _same(args[0] if args else None, read)):
                    output.retain_grad()
                    rows.append(output)

            for root in subject.roots.values():
                root.eval()
                handles += [m.register_forward_hook(looked_up) for m in root.modules() if isinstance(m, nn.Embedding)]
            with subject.around():
                output = convention.call_model(subject.model, _with(inputs, fresh))
            first = next((t for t in tensors_in(output) if t.is_floating_point() and t.dim()), None)
            if first is None or not first.requires_grad:
                return False
            chosen = part(first)
            chosen = (chosen * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0)).to(chosen)).sum()
            floats = [t for k, t in fresh.items() if read is None or k == id(read)]
            into = [t for t in (*floats, *rows) if t.requires_grad]
            if not into:
                return False
            chosen.backward(inputs=into if alone else None)
            return any(outside(t.grad) for t in into if t.grad is not None)
    except Exception as error:
        if alone and "heckpoint" in str(error):  # the reentrant kind makes all gradients or none
            return _leaks(e, part, outside, read, alone=False)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        subject.notes.append(f"dependence between samples not checked: {said}")
        return False
    finally:
        for handle in handles:
            handle.remove()


def _same(given: Any, read: torch.Tensor) -> bool:
    return isinstance(given, torch.Tensor) and given.shape == read.shape and bool((given == read).all())


def _with(value: Any, fresh: dict[int, torch.Tensor]) -> Any:
    return replaced(value, lambda t: fresh.get(id(t), t))
