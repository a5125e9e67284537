"""A few steps of training, taken back: what the loss does, with everything left as it was.

The steps are those of ``fit`` on the user's own model, optimizer, scheduler and data. Whole epochs run as such, so that
a scheduler is stepped between them; without data every step is on the case's batch.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.verbs.case import Case
from chainrule.verbs.diagnose.keeping import kept
from chainrule.verbs.fit.data import Source, source_of
from chainrule.verbs.fit.result import FitResult
from chainrule.verbs.fit.verb import fit


def trial(case: Case, steps: int) -> FitResult:
    """Trains so many steps; model, optimizer, scheduler and generators are then as they were.

    Raises:
        ModelError: there is no optimizer, or the loss is not finite.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Linear(3, 1)
    >>> before = net.weight.clone()
    >>> batch = torch.ones(4, 3), torch.ones(4, 1)
    >>> c = cr.case(net, batch, torch.nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    >>> len(trial(c, 20).step_loss), torch.equal(net.weight, before)
    (20, True)
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ModelError(f"{steps!r} steps of training", required="a whole number from 1 on")
    if case.optimizer is None:
        raise ModelError(
            "training needs an optimizer",
            given="a case without one",
            instead="cr.case(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.1))",
        )
    data = [case.batch] if case.data is None else case.data
    with _as_it_was(case, source_of(data)):
        return _run(case, data, steps)


def _run(case: Case, data: Any, steps: int) -> FitResult:
    source = source_of(data)
    whole, rest = divmod(steps, source.steps) if source.steps else (0, steps)
    options: dict[str, Any] = {"scheduler": case.scheduler, "progress": False}
    parts = []
    if whole:
        parts.append(fit(case, data, epochs=whole, **options))
    if rest and not (parts and (parts[0].stopped or parts[0].interrupted)):
        parts.append(fit(case, _First(data, rest), epochs=1, **options))
    first = parts[0]
    return replace(
        first,
        loss=tuple(loss for part in parts for loss in part.loss),
        step_loss=tuple(loss for part in parts for loss in part.step_loss),
        learning_rate=tuple(rate for part in parts for rate in part.learning_rate),
        seconds=sum(part.seconds for part in parts),
    )


class _First:
    """The first batches of some data, from its beginning again where there are too few."""

    def __init__(self, data: Any, count: int) -> None:
        self.source, self.count = source_of(data), count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        given = 0
        while given < self.count:
            before = given
            for batch in self.source.batches():
                yield batch
                given += 1
                if given == self.count:
                    return
            if given == before:
                raise ModelError("the data is empty", required="at least one batch")


@contextlib.contextmanager
def _as_it_was(case: Case, source: Source) -> Iterator[None]:
    optimizers = list(case.optimizer) if isinstance(case.optimizer, list | tuple) else [case.optimizer]
    modules = [m for m in (_modules(case.model), _modules(case.loss)) for m in m]
    generators = [(g, g.get_state()) for g in source.generators()]
    schedulers = case.scheduler if isinstance(case.scheduler, list | tuple) else [case.scheduler]
    plans = [(s, copy.copy(s.__dict__)) for s in schedulers if s is not None]
    try:
        with contextlib.ExitStack() as stack:
            for k, optimizer in enumerate(optimizers):
                stack.enter_context(kept(modules if not k else [], optimizer))
            yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        for scheduler, held in plans:
            scheduler.__dict__.clear()
            scheduler.__dict__.update(held)


def _modules(value: Any) -> list[torch.nn.Module]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, torch.nn.Module)]
