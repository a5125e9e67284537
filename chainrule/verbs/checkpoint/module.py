"""``checkpoint``: a model whose backward pass needs no more than a budget, as a drop-in module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from chainrule.backends.torch.recompute.joint import Joint
from chainrule.backends.torch.recompute.module import run
from chainrule.backends.torch.recompute.source import Passes, passes_of
from chainrule.errors import BackendError, ModelError, StaleTraceError, UnsupportedOpError
from chainrule.frontends.torch import generator_states, restore_generators
from chainrule.frontends.torch.batch import leaves
from chainrule.planning.budget import parsed
from chainrule.planning.frontier import judged
from chainrule.planning.problem import Schedule
from chainrule.verbs.checkpoint.by_modules import ByModules, SameModel, by_modules
from chainrule.verbs.checkpoint.plan import planned
from chainrule.verbs.checkpoint.program import Program, arguments, call_of, called, program_of, state_of
from chainrule.verbs.checkpoint.result import Plan

_STALE = 3  # traces for other branches, after which the program branches on every batch


class Reader:
    """The tensors of a program's inputs, read from the model's own tables: no path is walked at a call."""

    def __init__(self, program: Program, model: nn.Module) -> None:
        trace = program.trace
        where: dict[Any, tuple[Any, Any]] = {leaf: ((value,), 0) for leaf, value in trace.values.items()}
        for table, leaves_of in (("_parameters", trace.parameters), ("_buffers", trace.buffers)):
            for path, leaf in leaves_of.items():
                owner, _, name = path.rpartition(".")
                where[leaf] = getattr(model.get_submodule(owner), table), name
        batch = {leaf: k for k, leaf in enumerate(trace.batch_inputs.values())}
        given = [i for i in program.joint.inputs if i in where or i in batch]
        self._where = [None if i in batch else where[i] for i in given]
        self._batch = [(k, batch[i]) for k, i in enumerate(given) if i in batch]

    def __call__(self, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found: list[Any] = [None if w is None else w[0][w[1]] for w in self._where]
        for k, at in self._batch:
            found[k] = batch[at]
        return found


@dataclass(frozen=True)
class Carried:
    """What other batches and copies are planned by.

    Attributes:
        problem: digest of the program; a copy whose first batch has it takes the schedule. limit: bytes for the others.
    """

    problem: str
    schedule: Schedule
    limit: int

    @staticmethod
    def of(plan: Plan) -> Carried:
        """Of a plan."""
        limit = plan.peak_bytes if plan.budget is None else plan.limit
        return Carried(plan.program.problem.digest, plan.schedule, limit - plan.breakdown["optimizer state"])


# What a copy makes anew, or shares with its model.
_OWN = {"_model", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_OWN |= {"plan", "source", "_budget", "_objective", "_carried", "_programs", "_readers", "_used"}


class Checkpointed(SameModel):
    """A model that runs by a plan. Parameters, buffers and submodules are the model's own, under their names.

    Without gradients it is the model itself. For inputs of another shape, another mode or another autocast setting it
    plans again, and says so once with a warning.

    Attributes:
        plan: of the first batch; None in a copy until its first call with gradients. executor, reason: what runs, and
            why. source: the passes of the latest plan.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None,
        budget: int | float | str | None,
        objective: Callable[..., Any] | None = None,
        carried: Carried | None = None,
    ) -> None:
        super().__init__(model)
        hidden = {
            "plan": plan,
            "source": "",
            "_budget": budget,
            "_objective": objective if plan is None else plan.program.objective,
            "_carried": carried if plan is None else Carried.of(plan),
            "_programs": {},
            "_readers": {},
            "_used": False,
        }
        self.__dict__.update(hidden)
        self.executor = "source"
        self.reason = "the model was traced as a whole: its passes run as straight-line code, and free as they go"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy has its own model and plans at its first call: traces and compiled passes are not copied."""
        state = {k: v for k, v in self.__dict__.items() if k not in _OWN}
        return Checkpointed, (self._model, None, self._budget, self._objective, self._carried), state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; its backward pass is the planned one."""
        given = [t for _, t in leaves((args, kwargs))]
        learns = any(p.requires_grad for p in self._model.parameters()) or any(t.requires_grad for t in given)
        if not torch.is_grad_enabled() or not learns:
            return called(self._objective, self._model, args, kwargs)
        if self.plan is None:
            object.__setattr__(self, "plan", self._planned(self._carried, args, kwargs))
        for _ in range(_STALE):
            key = self._key(args, kwargs)
            program, passes = self._program(key, args, kwargs)
            before = generator_states() if program.trace.guards else []
            try:
                return self._run(key, program, passes, args, kwargs)
            except StaleTraceError:
                if before:
                    restore_generators(before)
                self._programs.pop(key)
        raise ModelError(
            "the model takes another branch at every call",
            required="a forward pass that does the same ops on most batches",
            instead="torch.where in place of the branch",
        )

    def _run(self, key: Any, program: Program, passes: Passes, args: Any, kwargs: Any) -> Any:
        if self._readers.get(key, (None, None))[0] is not program:
            self._readers[key] = program, Reader(program, self._model)
        inputs = self._readers[key][1](program.trace.flatten((args, kwargs)))
        outputs = run(
            program.joint, passes, inputs, self._write, program.holds, program.able, lambda: self._whole(key, program)
        )
        return program.returned(outputs)

    def _whole(self, key: Any, program: Program) -> tuple[Joint, Passes]:
        """Passes that start from every output, from now on."""
        complete, passes = self._programs.get(key, (program, None))
        if passes is not None and complete.whole:
            return complete.joint, passes
        complete = program.with_all_outputs()
        plans = complete.frontier.plans
        limit = judged(self.plan.program.problem, self.plan.schedule).peak
        chosen = next((p for p in plans if p.peak <= limit), plans[-1])
        passes = passes_of(complete.joint, complete.extraction, chosen.schedule)
        self._programs[key] = complete, passes
        warnings.warn(
            "a gradient came through an output that the plan did not expect one from: this step ran its forward pass "
            "a second time, the next ones are planned for all outputs",
            stacklevel=2,
        )
        return complete.joint, passes

    def _write(self, path: str, value: torch.Tensor) -> None:
        self._model.get_buffer(path).copy_(value)

    def _key(self, args: Any, kwargs: Any) -> Any:
        return *call_of(args, kwargs), *state_of(self.plan.program.surroundings)

    def _planned(self, carried: Carried, args: Any, kwargs: Any) -> Plan:
        """The plan of a copy."""
        program = program_of(self._model, args, kwargs, objective=self._objective)
        same = program.problem.digest == carried.problem
        if same:
            plan = planned(program, (args, kwargs), self._objective, None, None, None)
            return plan.under(judged(program.problem, carried.schedule), self._budget)
        budget = carried.limit if self._budget is None else self._budget
        plan = planned(program, (args, kwargs), self._objective, None, budget, carried.limit)
        plan = replace(plan, budget=carried.limit)  # a fraction was one of another batch
        warnings.warn(f"planned again for another batch or mode (a copy): {plan}", stacklevel=5)
        return plan

    def _program(self, key: Any, args: Any, kwargs: Any) -> tuple[Program, Passes]:
        if key not in self._programs:
            plan, program = self.plan, self.plan.program
            planned_for = *call_of(program.args, program.kwargs), *program.state
            if key == planned_for and not self._used:  # a second time, it is the values that differ
                object.__setattr__(self, "_used", True)
            else:
                what = _difference(key, planned_for)
                if self._budget is None:
                    raise ModelError(
                        "the plan was made for another call",
                        given=f"{what}; " + ", ".join(f"{n}: {tuple(t.shape)}" for n, t in leaves((args, kwargs))),
                        required="the arguments, mode, autocast setting and hooks that were planned",
                        instead="checkpoint(model, batch, budget=...), which plans again",
                    )
                program = program_of(self._model, args, kwargs, objective=self._objective)
                plan = planned(program, (args, kwargs), None, None, self._budget, self._carried.limit)
                # the caller of the module
                warnings.warn(f"planned again for another batch or mode ({what}): {plan}", stacklevel=4)
            passes = passes_of(program.joint, program.extraction, plan.schedule)
            object.__setattr__(self, "source", passes.source)
            self._programs[key] = program, passes
        return self._programs[key]


def _difference(now: Any, then: Any) -> str:
    """What of a call is not what was planned."""
    texts = (
        "other shapes, dtypes, strides or names of tensors",
        "other arguments besides the tensors",
        "another autocast setting",
        "the model was changed since: its mode, attributes, modules or hooks",
    )
    found = [text for text, one, two in zip(texts, now, then, strict=True) if one != two]
    return ", ".join(found) or "other values that the program reads"


def checkpoint(
    model: nn.Module,
    batch: Any,
    *,
    budget: int | float | str | None = None,
    plan: Plan | None = None,
    objective: Callable[[Any, Any], Any] | None = None,
) -> Checkpointed | ByModules:
    """The model with a backward pass in the memory you have: ``loss.backward()`` as before.

    Args:
        model: any module. batch: the inputs, as the model is called with them (a tensor, a tuple or a mapping).
        budget: as in :func:`plan`. plan: one made before.
        objective: ``(model, batch) -> scalar``; what is returned is then called with a batch, and gives that scalar.
    Returns:
        A module with the model's own parameters; it works with any loss, optimizer and training loop. ``executor``
        and ``reason`` say what runs: the planned passes as code, or, for a model that no graph can hold, its own
        modules under torch's checkpoint, which is also said by a warning.
    Raises:
        BudgetError, ModelError: as :func:`plan`.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(6)))
    >>> small = cr.checkpoint(net, torch.ones(64, 8), budget=0.8)
    >>> small(torch.ones(64, 8)).sum().backward()
    >>> net[0][0].weight.grad.shape
    torch.Size([8, 8])
    """
    if (budget is None) == (plan is None):
        raise ModelError("checkpoint needs a budget or a plan", given="both" if plan else "neither", required="one")
    if plan is not None:
        if objective is not None and objective is not plan.program.objective:
            raise ModelError("the plan was made for another objective", required="the objective that was planned")
        if plan.program.model is not model:
            raise ModelError("the plan was made for another model", required="the model that was planned")
        return Checkpointed(model, plan, plan.budget)
    wanted = parsed(budget)
    args, kwargs = arguments(batch) if objective is None else ((batch,), {})
    try:
        program = program_of(model, args, kwargs, objective=objective)
        made = planned(program, batch, objective, None, budget, wanted)
    except (UnsupportedOpError, BackendError) as error:
        if objective is not None:
            raise
        small = by_modules(model, args, kwargs, wanted, error)
        warnings.warn(f"{small.executor}: {small.reason}; {small}", stacklevel=2)
        return small
    return Checkpointed(model, made, budget)
