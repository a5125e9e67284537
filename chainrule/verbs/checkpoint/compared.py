"""A plan beside what torch itself offers: checkpointing of whole modules, and the budget of ``torch.compile``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chainrule.backends.torch.recompute.torch_budget import torch_budgets
from chainrule.verbs.checkpoint.apply import tried


@dataclass(frozen=True)
class Offer:
    """One way to run the step.

    Attributes:
        what: how. peak_bytes, recompute_fraction: as in a plan. ours: recomputation of our plan of the same graph in
            the same memory, None where no plan is that small.
    """

    what: str
    peak_bytes: int
    recompute_fraction: float
    ours: float | None


def compared(plan: Any) -> list[Offer]:
    """What ``plan.apply_`` can reach and what torch's ``activation_memory_budget`` does, with our plans beside them.

    Torch's plans are judged by the same simulator, on AOTAutograd's graph of model and loss. Nothing of the user's runs
    or changes; a model that looks at values of its tensors is run on a copy.
    """
    program, static = plan.program, plan.static_bytes
    plain, choices = tried(program)
    found: list[Offer] = []
    least = float("inf")
    for choice in sorted(choices, key=lambda c: (c.seconds, c.peak)):
        if choice.peak < least:
            least = choice.peak
            what = f"{len(choice.names)} modules under torch's checkpoint" if choice.names else "eager"
            again = max(choice.seconds / plain.seconds - 1.0, 0.0)
            found.append(Offer(what, static + choice.peak, again, _ours(plan, choice.peak)))
    for budget, peak, again, ours in torch_budgets(_step(program), program.args, program.kwargs):
        found.append(Offer(f"activation_memory_budget={budget:g}", static + peak, again, ours))
    return found


def _ours(plan: Any, peak: int) -> float | None:
    found = plan.program.frontier
    return found.within(peak).again / (plan.program.problem.cost or 1.0) if peak >= found.plans[-1].peak else None


def _step(program: Any) -> Any:
    """What torch is asked to compile: the model, and its loss where there is one."""

    def step(*args: Any, **kwargs: Any) -> Any:
        out = program.called(program.model, args, kwargs)
        return out if program.criterion is None else program.criterion(out, program.target)

    return step
