"""``plan``: what a training step needs, whether it fits, and the cheapest step in less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chainrule.backends.torch.recompute.calibrate import measured_prices
from chainrule.backends.torch.recompute.eager import bytes_of, optimizer_bytes
from chainrule.errors import BudgetError, ModelError
from chainrule.frontends.torch.batch import leaves
from chainrule.planning.budget import parsed, size_text
from chainrule.planning.by_hand import keeping
from chainrule.planning.frontier import judged
from chainrule.planning.problem import unplanned
from chainrule.verbs.case import Case
from chainrule.verbs.checkpoint.by_name import storages_kept
from chainrule.verbs.checkpoint.program import Program, arguments, checked, inputs_of, program_of
from chainrule.verbs.checkpoint.result import Plan


def plan(
    model: nn.Module | Case,
    batch: Any = None,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    budget: int | float | str | None = None,
    every: int | None = None,
    keep: Sequence[str] = (),
    calibrate: bool = False,
    objective: Callable[[Any, Any], Any] | None = None,
) -> Plan:
    """What a training step needs, and the cheapest step within a budget.

    Args:
        model, batch, loss, optimizer: as for all verbs; what is not given is not counted. Tensors may be on the meta
            device.
        budget: bytes (``"8GB"``, int) for everything alive during a step, or a float in (0, 1], a fraction of what the
            unplanned step allocates on top of parameters, optimizer state and inputs. None: no recomputation.
        every: keep the output of every so many layers, recompute the rest (by hand, in place of a budget).
        keep: keep the outputs of these modules, recompute the rest.
        calibrate: measure every distinct op once on this machine, in place of the roofline's estimate.
        objective: ``(model, batch) -> scalar``, in place of a loss; it is planned as a part of the step.
    Raises:
        BudgetError: less than any plan needs; carries ``minimum_bytes``.
        ModelError: a budget that is none, or a name that is no module.
        UnsupportedOpError: the model does what a graph cannot hold.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh()) for _ in range(8)))
    >>> p = cr.plan(net, torch.ones(512, 64), budget=0.65)
    >>> p.peak_bytes < p.baseline_bytes, p.recompute_fraction < 0.3
    (True, True)
    """
    if isinstance(model, Case):
        case: Case | None = model
        if any(v is not None for v in (batch, loss, optimizer, objective)):
            raise ModelError(
                "a case is given, and a batch, loss, optimizer or objective beside it", required="one of them"
            )
        model, batch, loss, optimizer, objective = case.model, case.batch, case.loss, case.optimizer, case.objective
    else:
        case = None
    model = checked(model)
    wanted = None if budget is None else parsed(budget)
    if sum((wanted is not None, every is not None, bool(keep))) > 1:
        raise ModelError("a budget, every= and keep= are given together", required="one of them")
    if batch is None:
        raise ModelError("a plan needs a batch", required="(inputs, target), or the inputs alone without a loss")
    if loss is not None and objective is not None:
        raise ModelError("both loss and objective are given", required="one of them")
    program = traced(model, batch, loss, objective) if case is None else case.program
    if not program.current:  # the case's is of another mode, or of the model as it was before a change
        program = traced(model, batch, loss, objective)
    if calibrate:
        program = calibrated(program)
    return planned(program, batch, loss or objective, optimizer, budget, wanted, every, keep)


def traced(
    model: nn.Module, batch: Any, loss: Any = None, objective: Callable[[Any, Any], Any] | None = None
) -> Program:
    """The program of a model on a batch, by the convention of all verbs."""
    if objective is not None:
        return program_of(model, (batch,), {}, objective=objective)
    inputs, target = inputs_of(batch, loss)
    args, kwargs = arguments(inputs)
    return program_of(model, args, kwargs, None if loss == "model" else loss, target)


def calibrated(program: Program) -> Program:
    """The program with times and work measured on this machine."""
    return replace(program, prices=measured_prices(program.joint, program.trace.values))


def planned(
    program: Program,
    batch: Any,
    loss: Any,
    optimizer: torch.optim.Optimizer | None,
    budget: Any,
    wanted: int | float | None,
    every: int | None = None,
    keep: Sequence[str] = (),
) -> Plan:
    """The plan of a traced program."""
    model, problem = program.model, program.problem
    parameters, buffers = bytes_of(model.parameters()), bytes_of(model.buffers())
    given = bytes_of(t for _, t in leaves(batch))
    gradients = sum(problem.sizes[s] for s in problem.gradients)
    state, temporary = (0, 0) if optimizer is None else optimizer_bytes(optimizer)
    static = parameters + buffers + given + state + program.extraction.constants
    floor = static + gradients + temporary  # while the optimizer steps
    base = judged(problem, unplanned(problem))
    limit = None
    if wanted is not None:
        limit = int(wanted * base.peak) if isinstance(wanted, float) else int(wanted) - static
    found = base
    if every is not None or keep:
        found = judged(problem, keeping(problem, storages_kept(program, every, keep)))
    if limit is not None:
        least = program.frontier.plans[-1].peak
        if limit < least or (not isinstance(wanted, float) and int(wanted or 0) < floor):
            minimum = least if isinstance(wanted, float) else max(static + least, floor)
            raise BudgetError(
                "no plan fits into the budget",
                given=f"{budget!r}, " + _left(limit, least),
                required=f"at least {minimum:,} bytes ({size_text(minimum)})"
                + (" of activations" if isinstance(wanted, float) else ""),
                instead=f"budget={minimum}" if not isinstance(wanted, float) else f"budget={_up(least / base.peak)}",
                minimum_bytes=max(static + least, floor),
            )
        found = program.frontier.within(limit)
    missing = [what for what, held in (("loss", loss), ("optimizer", optimizer)) if held is None]
    inside = sorted({n.op.name for n in program.trace.graph.nodes if n.op.works_inside})
    if inside and program.prices is None:
        missing.append(f"what kernels take inside ({', '.join(inside)}: calibrate=True measures it)")
    plan = Plan(
        0,
        max(static + base.peak, floor),
        0.0,
        {
            "parameters": parameters,
            "buffers": buffers,
            "gradients": gradients,
            "optimizer state": state,
            "inputs": given,
            "constants": program.extraction.constants,
        },
        tuple(missing),
        budget,
        found.schedule,
        program,
        static,
        floor,
    )
    return plan.under(found, budget)


def _left(limit: int, least: int) -> str:
    """What a budget leaves for the activations."""
    if limit <= 0:
        return f"but parameters, inputs and the like alone take {size_text(-limit)} more than that"
    if limit < least:
        return f"that is {size_text(limit)} of activations"
    return "less than parameters, gradients and the optimizer's step take together"


def _up(fraction: float) -> float:
    return min(1.0, int(fraction * 1000 + 1) / 1000)
