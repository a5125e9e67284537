"""``diagnose``: name the cause, the layer and the fix, and stay silent on healthy networks.

One recorded eager run of the user's own objects (``tape``, ``subject``) is looked at by families of checks, each in a
file of its own; a check asks for further passes only where it suspects something (``examination``). What follows from
a root cause is nested under it (``ranking``), fixes that are statements are tried and taken back (``verification``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from chainrule.errors import ModelError
from chainrule.frontends.torch.batch import leaves as tensors_of
from chainrule.verbs.case import Case, as_case
from chainrule.verbs.diagnose.backward_check import wrong_backward
from chainrule.verbs.diagnose.connections import connections, zero_derivative
from chainrule.verbs.diagnose.data import bad_leaves, data
from chainrule.verbs.diagnose.dependence import dependence
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.flow import flow
from chainrule.verbs.diagnose.influence import no_signal, same_for_all, silenced
from chainrule.verbs.diagnose.losses import losses, masked_labels
from chainrule.verbs.diagnose.mode import evaluated
from chainrule.verbs.diagnose.numbers import nonfinite
from chainrule.verbs.diagnose.ranking import ranked
from chainrule.verbs.diagnose.refusals import as_finding
from chainrule.verbs.diagnose.registration import not_in_optimizer
from chainrule.verbs.diagnose.result import CHECKED as CHECKED
from chainrule.verbs.diagnose.result import DiagnoseResult as DiagnoseResult
from chainrule.verbs.diagnose.result import LayerSignal
from chainrule.verbs.diagnose.sharding import first_batch
from chainrule.verbs.diagnose.stepping import stepping
from chainrule.verbs.diagnose.subject import Subject
from chainrule.verbs.diagnose.training_step import stepped_gradients
from chainrule.verbs.diagnose.units import dead, linear_stack, noise, saturated, symmetric
from chainrule.verbs.diagnose.verification import verified
from chainrule.verbs.kinds import Finding as Finding

_FAMILIES: tuple[Callable[[Examination], list[Finding]], ...] = (
    connections, not_in_optimizer, zero_derivative, symmetric, wrong_backward, losses, data, flow, dead, saturated,
    noise, linear_stack, no_signal, dependence, stepping, evaluated,
)  # fmt: skip


def diagnose(
    model: Any,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    *,
    objective: Callable[[Any, Any], Any] | None = None,
    training_step: Callable[[], Any] | None = None,
    verify: bool = True,
) -> DiagnoseResult:
    """What is wrong with a model's training on one batch, if anything.

    Args:
        model, batch, loss, optimizer: the case (or a Case in place of the four). A loss is needed.
        objective: ``(model, batch) -> scalar`` in place of a loss.
        training_step: the loop's own step as a function without arguments; it is run twice, and taken back, to see
            whether gradients are left over from the step before or clipped away.
        verify: whether fixes that are statements are tried, measured and taken back.

    Returns:
        DiagnoseResult: ``r.ok``, ``r.findings``. Nothing of the user's has changed.

    Raises:
        ModelError: no loss, no optimizer in its place, an empty batch, complex numbers, or a model that cannot be run
            on the batch.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softmax(dim=1))
    >>> batch = torch.randn(8, 3), torch.arange(8) % 4
    >>> cr.diagnose(net, batch, torch.nn.functional.cross_entropy).findings[0].kind
    'loss_pairing'
    """
    case = as_case(model, batch, loss, optimizer, objective)
    subject = Subject(case)
    _refuse(case)
    if subject.sharded:
        subject = Subject(replace(case, batch=first_batch(case.batch)))
        subject.notes.append("weights are sharded: every process examines the first one's batch")
    return examine(subject, training_step=training_step, verify=verify)


def _refuse(case: Case) -> None:
    if case.loss is None and case.objective is None:
        raise ModelError("diagnose needs a loss", instead='loss=..., loss="model" or objective=...')
    if not callable(case.model):
        raise ModelError("the model cannot be called", given=type(case.model).__name__, required="a torch.nn.Module")
    if case.objective is None and case.loss != "model" and not callable(case.loss):
        raise ModelError(
            "the loss cannot be called", given=repr(case.loss)[:80],
            required="a function (output, target) -> scalar",
            instead='torch.nn.functional.mse_loss; loss="model" for a model that returns its loss',
        )  # fmt: skip
    optimizer = case.optimizer
    if optimizer is not None and (isinstance(optimizer, type) or not hasattr(optimizer, "param_groups")):
        raise ModelError(
            "the optimizer cannot be one",
            given=optimizer.__name__ if isinstance(optimizer, type) else repr(optimizer)[:80],
            required="an instance of torch.optim.Optimizer over the model's parameters",
            instead="torch.optim.Adam(model.parameters())",
        )
    _refuse_tensors(case)
    for name, tensor in tensors_of(case.batch):
        if tensor.dim() and not tensor.shape[0]:
            raise ModelError(
                "the batch is empty",
                given=f"{name or 'a tensor'} of shape {tuple(tensor.shape)}",
                required="at least one sample",
            )


def _refuse_tensors(case: Case) -> None:
    """Parameters without a shape, and complex numbers."""
    held = []
    for part in (case.model, case.loss):
        if isinstance(part, nn.Module):
            held += [*part.named_parameters(), *part.named_buffers()]
    lazy = [n for n, p in held if is_lazy(p)]
    if lazy:
        raise ModelError(
            "the model has parameters without a shape", given=", ".join(lazy[:5]),
            required="a model that has been called once",
            instead="model(inputs) once, then the optimizer, then diagnose",
        )  # fmt: skip
    wrong = [n for n, t in (*held, *tensors_of(case.batch)) if t.is_complex()]
    if wrong:
        raise ModelError(
            "complex numbers are not examined", given=", ".join(n or "the batch" for n in wrong[:5]),
            required="real parameters and a real batch",
            instead="torch.view_as_real: real and imaginary parts as numbers of their own",
        )  # fmt: skip


def examine(
    subject: Subject,
    *,
    stepped: Any = None,
    before: Any = None,
    own: Any = None,
    foreign: bool = False,
    training_step: Callable[[], Any] | None = None,
    verify: bool = True,
) -> DiagnoseResult:
    """All checks on a subject.

    ``stepped``, ``before``: gradients at the user's own steps, where they are known; ``own``: those that the step
    should have, if they are not the batch's alone; ``foreign``: whether ``before`` is another loss's gradient.
    """
    findings = bad_leaves(subject)
    if findings:
        return _result(subject, None, findings)
    try:
        e = Examination(subject, subject.observe())
    except ModelError as error:
        finding = as_finding(error, subject.case)
        if finding is None:
            raise
        return _result(subject, None, [finding])
    if training_step is not None:
        stepped, before = stepped_gradients(subject, training_step)
    e.stepped, e.before, e.own, e.foreign = stepped, before, own, foreign
    findings = masked_labels(e)
    bad = nonfinite(e)
    findings += bad
    for family in _FAMILIES if not bad and not any(f.severity == "error" for f in findings) else (connections,):
        findings += family(e)
    if not any(f.severity != "info" for f in findings):
        findings += same_for_all(e) or silenced(e)
    roots = ranked(findings)
    if verify and not bad:
        roots = verified(e, roots)
    return _result(subject, e, list(roots))


def _result(subject: Subject, e: Examination | None, findings: list[Finding]) -> DiagnoseResult:
    strip = () if e is None else strip_of(e, findings)
    return DiagnoseResult(
        ranked(findings), notes=tuple(dict.fromkeys(subject.notes)), strip=strip, passes=subject.passes
    )


def strip_of(e: Examination, findings: list[Finding]) -> tuple[LayerSignal, ...]:
    """One entry per weight layer, in order."""
    marked = {where: f.kind for f in findings if f.severity != "info" for where in f.where.split(", ")}
    rows = []
    for x in e.layers:
        live = x.activation.liveness if x.activation is not None else None
        rows.append(
            LayerSignal(
                x.name,
                x.forward,
                x.backward,
                float(live.dead.float().mean()) if live is not None else None,
                live.squashed if live is not None else None,
                marked.get(x.name, ""),
                x.value in e.path,
            )
        )
    return tuple(rows)
