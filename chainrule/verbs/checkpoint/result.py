"""What ``plan`` answers: what a step needs under a schedule, as numbers, tables, pictures and files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from chainrule.errors import BudgetError, ModelError
from chainrule.planning.budget import parsed, size_text
from chainrule.planning.frontier import Plan as Judged
from chainrule.planning.frontier import front, judged
from chainrule.planning.problem import Schedule
from chainrule.planning.simulate import simulate
from chainrule.verbs.checkpoint.apply import Applied, apply_
from chainrule.verbs.checkpoint.batch_size import largest_batch
from chainrule.verbs.checkpoint.program import Program
from chainrule.verbs.notebook import axes_for, html_table

_FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One module in the table of a plan.

    Attributes:
        module: dotted path. kept_bytes: carried from its forward to its backward pass.
        recomputed: how many of its tasks run again. recomputed_bytes: what these make. seconds: what that costs.
    """

    module: str
    kept_bytes: int
    recomputed: int
    recomputed_bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step needs under a plan.

    Attributes:
        peak_bytes: everything alive on the device at the worst moment of a step under this plan; baseline_bytes: of the
            unplanned step.
        recompute_fraction: time of recomputation over the time of the unplanned step, by the cost model.
        lower_bound: no schedule in this peak recomputes less than this fraction; gap: how far this plan is above it.
        breakdown: what -> bytes: parameters, buffers, gradients, optimizer state, inputs, activations, total.
        not_counted: what was not given or not measured, hence not counted. budget: as given.
        program: the traced model. schedule: the plan itself.
    """

    peak_bytes: int
    baseline_bytes: int
    recompute_fraction: float
    breakdown: dict[str, int]
    not_counted: tuple[str, ...]
    budget: int | float | str | None
    schedule: Schedule = field(repr=False)
    program: Program = field(repr=False)
    static_bytes: int = field(repr=False)
    floor_bytes: int = field(repr=False)

    @cached_property
    def minimum_bytes(self) -> int:
        """What a step needs at least, with as much recomputation as it takes."""
        return max(self.static_bytes + self.program.frontier.plans[-1].peak, self.floor_bytes)

    @cached_property
    def lower_bound(self) -> float:
        """No schedule whose peak is at most this plan's recomputes less: a fraction of the unplanned step's time."""
        problem = self.program.problem
        return self.program.frontier.bound.sharpened(self._judged.peak, self._judged.again) / (problem.cost or 1.0)

    @property
    def limit(self) -> int:
        """The budget in bytes of everything; the unplanned peak where there was none."""
        if self.budget is None:
            return self.baseline_bytes
        wanted = parsed(self.budget)
        if isinstance(wanted, float):
            return self.static_bytes + int(wanted * self.program.frontier.plans[0].peak)
        return wanted

    @property
    def gap(self) -> float:
        """``recompute_fraction - lower_bound``: 0 is proven optimal."""
        return max(self.recompute_fraction - self.lower_bound, 0.0)

    @cached_property
    def _judged(self) -> Judged:
        return judged(self.program.problem, self.schedule)

    @property
    def activation_bytes(self) -> int:
        """What the step allocates on top of parameters, optimizer state and inputs, at its worst moment."""
        return self._judged.peak

    def fits(self, budget: int | str) -> bool:
        """Whether a step under this plan needs at most so many bytes."""
        return self.peak_bytes <= _bytes(budget)

    def max_batch(self, budget: int | str, recompute: bool | None = None) -> int:
        """The largest size of the batch's first dimension that fits, 0 if none does.

        Args:
            recompute: with as much recomputation as it takes; by default if this plan was made for a budget.
        """
        replan = self.budget is not None if recompute is None else recompute
        return largest_batch(self.program, self.static_bytes, self.floor_bytes, _bytes(budget), replan)

    # ---- what it looks like --------------------------------------------------------------------------------
    def table(self) -> list[Row]:
        """Per module: what is kept, what is recomputed, and what that costs."""
        return table_of(self.program, self.schedule)

    def curve(self) -> list[int]:
        """Bytes alive while each task of the step runs, forwards and backwards, parameters and inputs included."""
        return [self.static_bytes + int(b) for b in simulate(self.program.problem, self.schedule).during]

    def trade_off(self) -> list[tuple[int, float, float]]:
        """(peak bytes, recompute fraction, lower bound) of plans from the unplanned step on, this one among them."""
        found, cost = self.program.frontier, self.program.problem.cost or 1.0
        bound = found.bound
        bound.sharpened(self._judged.peak, self._judged.again)
        plans = front([*found.plans, self._judged])
        return [(self.static_bytes + p.peak, p.again / cost, bound.at(p.peak) / cost) for p in plans]

    def within(self, budget: int | str) -> Plan:
        """The cheapest plan of the same program within a budget of everything that is alive.

        Raises:
            BudgetError: less than any plan needs.
        """
        limit = _bytes(budget)
        if limit < self.minimum_bytes:
            raise BudgetError(
                "no plan fits into the budget",
                given=f"{budget!r}",
                required=f"at least {self.minimum_bytes:,} bytes",
                minimum_bytes=self.minimum_bytes,
            )
        return self.under(self.program.frontier.within(limit - self.static_bytes), budget)

    @property
    def digest(self) -> str:
        """A hash of the program and the schedule, the same on every rank that has the same plan."""
        return hashlib.blake2b(f"{self.program.problem.digest}{self.schedule}".encode(), digest_size=8).hexdigest()

    def plot(self, ax: Any = None) -> Any:
        """Bytes alive over the step, and the unplanned peak, on matplotlib axes; returns them.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        ax = axes_for(ax)
        megabytes = [b / 1e6 for b in self.curve()]
        ax.fill_between(range(len(megabytes)), megabytes, color="tab:blue", alpha=0.2, linewidth=0)
        ax.plot(megabytes, color="tab:blue", label=f"this plan, {100 * self.recompute_fraction:.0f} % more time")
        ax.axhline(self.baseline_bytes / 1e6, color="0.5", linestyle="--", linewidth=1, label="unplanned peak")
        ax.set(xlabel="task of the step, forwards and backwards", ylabel="MB", ylim=(0, None))
        ax.legend(frameon=False)
        return ax

    def _repr_html_(self) -> str:
        rows = [(what, size_text(size)) for what, size in self.breakdown.items()]
        return html_table(("what", "bytes"), rows, str(self))

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "peak_bytes": self.peak_bytes,
            "baseline_bytes": self.baseline_bytes,
            "minimum_bytes": self.minimum_bytes,
            "recompute_fraction": self.recompute_fraction,
            "lower_bound": self.lower_bound,
            "breakdown": dict(self.breakdown),
            "not_counted": list(self.not_counted),
            "budget": self.budget,
            "digest": self.digest,
            "table": [vars(row) for row in self.table()],
            "curve": self.curve(),
            "trade_off": [list(point) for point in self.trade_off()],
        }

    def __str__(self) -> str:
        text = f"a step needs {size_text(self.peak_bytes)}"
        if self.peak_bytes < self.baseline_bytes:
            text += f" instead of {size_text(self.baseline_bytes)}, for {100 * self.recompute_fraction:.1f} % more time"
            text += f" (no schedule in this memory does with less than {100 * self.lower_bound:.1f} %)"
        text += f"; with recomputation down to {size_text(self.minimum_bytes)}"
        return text + "".join(f"; {what} not counted" for what in self.not_counted)

    # ---- files ---------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Writes the plan as JSON: data, no code."""
        body = {
            "format": _FORMAT,
            "program": self.program.problem.digest,
            "order": list(self.schedule.order),
            "split": self.schedule.split,
            "budget": self.budget,
        }
        Path(path).write_text(json.dumps(body))
        return Path(path)

    def load(self, path: str | Path) -> Plan:
        """The plan of a file, for this model and batch.

        Raises:
            ModelError: it was made for another program, or is no plan.
        """
        try:
            body = json.loads(Path(path).read_text())
        except OSError as error:
            raise ModelError(
                f"the plan in {path} cannot be read",
                given=error.strerror or str(error),
                required="a file that plan.save wrote",
                instead=f"plan(model, batch, budget=...).save({str(path)!r})",
            ) from error
        except ValueError as error:
            raise ModelError(f"{path} is no plan", given=str(error), required="a file that plan.save wrote") from error
        try:
            made_for, order, split = body["program"], tuple(map(int, body["order"])), int(body["split"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} is no plan", given=str(error), required="a file that plan.save wrote") from error
        if made_for != self.program.problem.digest:
            raise ModelError(
                f"the plan in {path} was made for another program",
                given=f"program {made_for}",
                required=f"program {self.program.problem.digest}: same model, same shapes and dtypes, same versions",
                instead="plan(model, batch, budget=...) again",
            )
        schedule = Schedule(order, split)
        _check(self.program, schedule)
        return self.under(judged(self.program.problem, schedule), body.get("budget"))

    def apply_(self, model: nn.Module) -> Applied:
        """Wraps modules of the user's own model with torch's checkpointing, as near to this plan as that gets.

        Returns:
            What was done: ``.peak_bytes``, ``.recompute_fraction``, ``.code()``, ``.undo()``.
        """
        return apply_(self, model)

    def under(self, found: Judged, budget: int | float | str | None) -> Plan:
        """The same step under another schedule, which was found for this budget."""
        cost = self.program.problem.cost or 1.0
        activations = found.peak
        total = max(self.static_bytes + activations, self.floor_bytes)
        breakdown = {**self.breakdown, "activations": activations - self.breakdown["gradients"], "total": total}
        return Plan(
            total,
            self.baseline_bytes,
            found.again / cost,
            breakdown,
            self.not_counted,
            budget,
            found.schedule,
            self.program,
            self.static_bytes,
            self.floor_bytes,
        )


def _bytes(budget: int | str) -> int:
    wanted = parsed(budget)
    if isinstance(wanted, float):
        raise ModelError("bytes are asked for here", given=repr(budget), required='"8GB", or a number of bytes')
    return wanted


def _check(program: Program, schedule: Schedule) -> None:
    """Raises ModelError for an order that is no schedule of the program."""
    problem = program.problem
    known = range(len(problem.tasks))
    backward = [t for t in schedule.order if t in set(problem.backward)]
    complete = set(schedule.order) == set(known) and len(backward) == len(set(backward))
    if not complete or not 0 <= schedule.split <= len(schedule.order):
        raise ModelError("the file is no schedule of this program", required="a file that plan.save wrote")
    simulate(problem, schedule)


def table_of(program: Program, schedule: Schedule) -> list[Row]:
    """See :meth:`Plan.table`."""
    problem = program.problem
    ahead = {s for t in schedule.order[: schedule.split] for s in problem.tasks[t].writes} - problem.resident
    written: set[int] = set()
    kept: set[int] = set()
    for t in schedule.order[schedule.split :]:
        kept.update(s for s in problem.tasks[t].reads if s in ahead and s not in written)
        written.update(problem.tasks[t].writes)
    counts: dict[int, int] = {}
    for t in schedule.order:
        counts[t] = counts.get(t, 0) + 1
    rows: dict[str, list[float]] = {}
    for t, module in enumerate(problem.modules):
        row = rows.setdefault(module or "(model)", [0, 0, 0, 0.0])
        task = problem.tasks[t]
        row[0] += sum(problem.sizes[s] for s in task.writes if s in kept)
        if counts.get(t, 0) > 1:
            row[1] += counts[t] - 1
            row[2] += sum(problem.sizes[s] for s in task.writes) * (counts[t] - 1)
            row[3] += task.cost * (counts[t] - 1)
    return [Row(m, int(k), int(n), int(b), s) for m, (k, n, b, s) in rows.items() if k or n]
