"""What the checks look at: one recorded run, and further passes that are made only when a check asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.layers import Layer, layers_of
from chainrule.verbs.diagnose.sharding import own_part
from chainrule.verbs.diagnose.subject import Observed, Subject
from chainrule.verbs.diagnose.values import Value, above, tensors_in
from chainrule.verbs.diagnose.wide import moved, norm

DESCENT = 60  # steps of descent, at most, to see what can ever move


@dataclass(frozen=True)
class Trial:
    """Losses over steps of the user's own optimizer on the batch, and what its first step did.

    Attributes:
        losses: before each step and after the last. squared: |g|^2 at the start. updates: name -> rms of the update
            over rms of the weight, first step. unmoved: name -> share of entries with a gradient that the first
            step left as they were.
    """

    losses: tuple[float, ...]
    squared: float
    updates: Mapping[str, float]
    unmoved: Mapping[str, float]
    predicted: float


@dataclass(eq=False)
class Examination:
    """A subject and what was seen of it.

    Attributes:
        seen: the recorded run. stepped: gradients at the user's own optimizer step, by name, where they are known
            (a captured script, a training step that was given), with those of the step before. own: those that the
            step should have, if they are not the batch's alone. foreign: whether ``before`` came from another loss.
    """

    subject: Subject
    seen: Observed
    stepped: Mapping[str, torch.Tensor] | None = None
    before: Mapping[str, torch.Tensor] | None = None
    own: Mapping[str, torch.Tensor | None] | None = None
    foreign: bool = False

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return self.subject.optimizer

    @cached_property
    def ancestors(self) -> dict[Value, None]:
        """Every value that the loss was computed from, differentiably or not."""
        return above([self.seen.loss])

    @cached_property
    def path(self) -> dict[Value, None]:
        """The values that a gradient of the loss reaches."""
        if not self.seen.loss.differentiable:
            return {}
        return above([self.seen.loss], lambda call, source: source.differentiable and call.name != "Parameter")

    @cached_property
    def layers(self) -> list[Layer]:
        """The weight layers in the order in which they ran."""
        return layers_of(self.subject, self.seen)

    @cached_property
    def trainable(self) -> dict[str, Value]:
        """Values of the parameters that require a gradient."""
        return {n: v for n, v in self.seen.parameters.items() if n in self.subject.trainable}

    @cached_property
    def zero(self) -> dict[str, torch.Tensor]:
        """Gradients that are there and exactly zero."""
        found = {}
        for n in self.trainable:
            g = self.seen.gradients[n]
            if g is not None and not g.is_sparse and g.numel() and not bool((g != 0).any()):
                found[n] = g
        return found

    @cached_property
    def boosted_slopes(self) -> dict[int, float] | None:
        """rms of dL/dz by call of a pass with a loss 1e20 times as large, for gradients that underflow."""
        try:
            seen = self.subject.observe(boost=BOOST)
        except ModelError:
            return None
        return {c.index: c.outputs[0].slope for c in seen.tape.calls if c.outputs}

    # ---- another batch -------------------------------------------------------------------------------------
    @cached_property
    def other_batch(self) -> Any:
        """A batch of the same kind: rows mixed, numbers of the same mean and spread, targets moved on by one."""
        generator = torch.Generator().manual_seed(0)
        fed = {id(t) for t in self.subject.input_tensors.values()}
        targets = {id(t) for t in tensors_in(self.subject.target)} - fed
        made: dict[int, torch.Tensor] = {}

        def changed(t: torch.Tensor) -> torch.Tensor:
            if id(t) not in made:
                made[id(t)] = new(t)
            return made[id(t)]

        def new(t: torch.Tensor) -> torch.Tensor:
            if not t.numel() or t.is_sparse:
                return t
            if id(t) in targets:
                return t.roll(1, 0) if t.dim() else t
            if t.requires_grad:  # an input that something is differentiated by
                return new(t.detach()).requires_grad_()
            if t.is_floating_point() and t.dim() >= 2 and t.shape[0] > 1:
                order = torch.randperm(t.shape[0], generator=generator).to(t.device)
                weight = torch.rand((t.shape[0], *(1,) * (t.dim() - 1)), generator=generator).to(t)
                mixed = weight * t + (1 - weight) * t[order]
                return mixed / (weight**2 + (1 - weight) ** 2).sqrt() if float(t.amin()) < 0 else mixed
            return t.roll(1, 0) if t.dim() else t

        return replaced(self.subject.case.batch, changed)

    @cached_property
    def other(self) -> Observed | None:
        """The same on another batch; None where it does not run on one."""
        try:
            return self.subject.observe(self.other_batch)
        except ModelError:
            return None

    # ---- zero for ever -------------------------------------------------------------------------------------
    @cached_property
    def descended(self) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Parameters with a gradient at some step of descent, until no new one has for long; where they ended.

        Steps have length 0.1 whatever the gradient: the question is what is zero for ever, not what is small.
        """
        subject, moved, quiet = self.subject, set(), 0
        if subject.sharded:
            subject.notes.append("weights are sharded: no trial steps were made")
            return list(self.trainable), subject.values
        patience = min(len(self.layers) + 2, 20)
        with subject.safely():
            parameters = subject.trainable
            for _ in range(DESCENT):
                _, grads = subject.gradients()
                live = {n: g for n in parameters if (g := grads[n]) is not None and not g.is_sparse}
                new = {n for n, g in live.items() if bool((g != 0).any())} - moved
                moved |= new
                quiet = 0 if new else quiet + 1
                with torch.no_grad():
                    for n, g in live.items():
                        largest = float(g.abs().max()) if g.numel() else 0.0
                        if largest > 0 and largest == largest and largest != float("inf"):
                            parameters[n].add_(g / largest, alpha=-0.1)
                if quiet >= patience or len(moved) == len(parameters):
                    break
            end = {n: p.detach().clone() for n, p in parameters.items()}
        return [n for n in self.trainable if n in moved], end

    @cached_property
    def forever_zero(self) -> list[str]:
        """Parameters whose gradient is zero now, on another batch, and after steps of descent."""
        if not self.zero:
            return []
        other = self.other
        still = [n for n in self.zero if other is None or _is_zero(other.gradients[n])]
        return [n for n in still if n not in self.descended[0]] if still else []

    # ---- the user's own optimizer --------------------------------------------------------------------------
    @cached_property
    def trial(self) -> Trial | None:
        """Some steps of the user's own optimizer on the batch, taken back; None where it cannot be tried."""
        subject, optimizer = self.subject, self.optimizer
        if optimizer is None or not self.seen.loss.differentiable or not subject.optimized:
            return None
        if subject.sharded:
            subject.notes.append("weights are sharded: no trial steps were made")
            return None
        with subject.safely() as before:
            try:
                loss, grads = subject.gradients()
                live = {n: g for n in subject.trainable if (g := grads[n]) is not None and not g.is_sparse}
                squared = sum(norm(g) ** 2 for g in live.values())
                optimizer.step()
            except TypeError:
                subject.notes.append("the optimizer needs a closure: its steps were not tried")
                return None
            updates, unmoved, predicted = {}, {}, 0.0
            for n, g in live.items():
                p, old = subject.trainable[n], before[id(subject.trainable[n])]
                change, along, still = moved(own_part(p), own_part(old), own_part(g))
                size = norm(old)
                updates[n] = change / size if size else float("inf")
                predicted -= along
                if id(p) in subject.optimized and bool((g != 0).any()):
                    unmoved[n] = still
            del grads, live
            losses = [loss, *subject.steps(STEPS)]
        return Trial(tuple(losses), squared, updates, unmoved, predicted)


STEPS, BOOST = 11, 1e20


def _is_zero(gradient: torch.Tensor | None) -> bool:
    return gradient is None or not bool((gradient != 0).any() if not gradient.is_sparse else gradient._nnz())


def replaced(value: Any, change: Any) -> Any:
    """The same structure with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        made = {k: replaced(v, change) for k, v in value.items()}
        return made if type(value) is dict else type(value)(made)  # type: ignore[call-arg]
    if hasattr(value, "_fields"):
        return type(value)(*(replaced(v, change) for v in value))  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(v, change) for v in value)
    return value
