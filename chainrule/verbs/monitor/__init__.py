"""``monitor``: watch a training loop from inside: scales, liveness, updates, gradient noise, and what goes wrong when.

A context manager around the user's own loop, which stays as it is. Between measured steps it costs a counter and one
look at a gradient; in a measured step, forward hooks on the weight layers and gradient hooks on their outputs take
sizes, which are copied off the device (and summed over processes) once, at the optimizer's step.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import _foreach_mul, _foreach_norm, nn  # type: ignore[attr-defined]

from chainrule.errors import ModelError
from chainrule.verbs.diagnose.sharding import own_part
from chainrule.verbs.diagnose.subject import original
from chainrule.verbs.kinds import Finding
from chainrule.verbs.monitor.judging import Judge
from chainrule.verbs.monitor.measuring import Measurement, leaf_modules
from chainrule.verbs.monitor.recorder import Recorder


class monitor:
    """Watches a training loop: ``with cr.monitor(model, optimizer) as m: ...`` around the loop.

    Args:
        model: the module that is trained; wrapped by DDP or sharded by FSDP2 too. optimizer: the one that steps.
        every: measure each so manieth step (the first is measured).
        path: a file for JSON lines, one per measured step and one per finding.
        tensorboard: a ``SummaryWriter``, or anything with ``add_scalar(name, value, step)``.
        record: a file for the flight recorder: when a gradient is not finite, batch, weights and random state from
            before the step are written there, once; ``chainrule diagnose FILE`` looks at them.
        on_finding: called with each finding when it appears.

    Attributes:
        findings: what went wrong so far, each once, ``where`` naming the step. history: one dict per measured step:
            step, grad_norm, noise_scale, layers (name -> forward, backward, dead), updates (name -> ratio).
        notes: what could not be watched.

    Raises:
        ModelError: the model is no module, the optimizer is none, or ``every`` is not positive.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with cr.monitor(net, optimizer, every=1) as m:
    ...     for _ in range(2):
    ...         optimizer.zero_grad()
    ...         net(torch.ones(4, 3)).square().mean().backward()
    ...         optimizer.step()
    >>> [entry["step"] for entry in m.history]
    [0, 1]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 25,
        *,
        path: str | Path | None = None,
        tensorboard: Any = None,
        record: str | Path | None = None,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError("monitor needs a module", given=type(model).__name__, required="a torch.nn.Module")
        if every < 1:
            raise ModelError("a step is measured every so many", given=str(every), required="every >= 1")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
        if isinstance(optimizer, type) or not hasattr(optimizer, "register_step_pre_hook"):
            raise ModelError(
                "monitor needs the optimizer that steps",
                given=optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__,
                required="an instance of torch.optim.Optimizer",
                instead="cr.monitor(model, torch.optim.Adam(model.parameters()))",
            )
        self.model, self.optimizer, self.every = model, optimizer, every
        self.findings: list[Finding] = []
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.step = 0
        self._writer, self._path, self._on_finding = tensorboard, Path(path) if path is not None else None, on_finding
        self._record = Path(record) if record is not None else None
        self._handles: list[Any] = []
        self._judge = Judge()
        self._measurement: Measurement | None = None
        self._recorder: Recorder | None = None
        self._before: Any = None
        self._previous: list[torch.Tensor | None] = []
        self._replaced = True  # whether gradients are new tensors in every step
        self._stack = contextlib.ExitStack()
        if original(model) is not model:
            self.notes.append("a compiled model runs without hooks: layers are not measured, gradients and updates are")

    # ---- the loop ------------------------------------------------------------------------------------------
    def __enter__(self) -> monitor:
        self._parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        names = {id(p): n.removeprefix("module.") for n, p in original(self.model).named_parameters()}
        self._names = [names.get(id(p), f"parameter {k}") for k, p in enumerate(self._parameters)]
        self._full = self._record is not None  # then no step may pass unseen
        self._witness = self._smallest()
        small = self._witness is not None and self._witness.numel() <= 64 and self._witness.device.type == "cpu"
        plain = small and self._witness.dim() == 1 and not hasattr(self._witness, "to_local")  # type: ignore[union-attr]
        self._total = (lambda g: sum(g.tolist())) if plain else (lambda g: own_part(g).sum().item())
        self._modules = leaf_modules(original(self.model))
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        if self._record is not None:
            self._recorder = Recorder(self.model, self.optimizer, self._record)
            self._stack.enter_context(self._recorder)
        self._measure_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._measurement is not None:
            self._measurement.remove()
            self._measurement = None
        self._stack.close()

    def _smallest(self) -> torch.Tensor | None:
        """The smallest parameter of the first layers: what is not finite anywhere arrives there on the way back."""
        trained = [p for p in original(self.model).parameters() if p.requires_grad]
        return min(trained[:2], key=lambda p: p.numel(), default=None)

    def _measure_next(self) -> None:
        if self.step % self.every == 0:
            self._measurement = Measurement(self.model, self._modules, self._parameters)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._with_gradients()
            return None
        asked: list[bool] = []

        def then() -> Any:  # a closure makes the gradients inside of the step
            loss = closure()
            if not asked:
                asked.append(True)
                self._with_gradients()
            return loss

        return ((args[0], then, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": then})

    def _with_gradients(self) -> None:
        witness = self._witness
        if not self._full and self._measurement is None:
            grad = witness.grad if witness is not None else None
            if grad is not None and not math.isfinite(self._total(grad)):
                self._not_finite()
            if (self.step + 1) % self.every == 0:  # the next one is measured
                self._previous = self._gradients()
            self._next()
            return
        with torch.no_grad():
            if self._measurement is not None:
                self._measurement.at_step(self._earlier())
            if not self._measured_finite() and not finite(self._parameters):
                self._not_finite()
            if self._measurement is not None:
                self._measurement.remove()  # a closure may be run again in the same step
                self._previous = self._gradients() if self.every == 1 else []
                self._before = _foreach_mul([own_part(p.detach()) for p in self._parameters], 1.0)
                return
        if (self.step + 1) % self.every == 0:
            self._previous = self._gradients()
        if self._recorder is not None:
            self._recorder.forget()
        self._next()

    def _measured_finite(self) -> bool:
        """Whether the norms that a measurement has taken say that all gradients are finite."""
        norms = self._measurement.norms if self._measurement is not None else ()
        whole = len(norms) == sum(p.grad is not None for p in self._parameters)  # no sparse ones
        return bool(norms) and whole and math.isfinite(float(torch.stack(tuple(norms)).sum()))

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._before is None or self._measurement is None:
            return  # not measured, or the end of the step before one that is
        measurement, self._measurement = self._measurement, None
        measurement.remove()
        with torch.no_grad():
            entry = measurement.entry(self.step, self._names, self._parameters, self._before)
        self._before = None
        self._report(entry)
        if self._recorder is not None:
            self._recorder.forget()
        self._next()

    def _gradients(self) -> list[torch.Tensor | None]:
        """The gradients of this step, for the next: themselves where zero_grad() will put others in their place."""
        dense = [p.grad if p.grad is not None and not p.grad.is_sparse else None for p in self._parameters]
        if self._replaced:
            return dense
        return [own_part(g).detach().clone() if g is not None else None for g in dense]

    def _earlier(self) -> list[torch.Tensor | None]:
        """The gradients of the step before, unless they were written over since: then copies are kept from now on."""
        held = [own_part(g.detach()) if g is not None else None for g in self._previous]
        if self._replaced:
            for g, p in zip(held, self._parameters, strict=False):
                if g is not None and p.grad is not None and p.grad.layout == torch.strided:
                    if own_part(p.grad).data_ptr() == g.data_ptr():
                        self._replaced = False
                        return []
                    break  # one tells for all
        return held

    def _next(self) -> None:
        self.step += 1
        self._measure_next()

    # ---- telling -------------------------------------------------------------------------------------------
    def _report(self, entry: dict[str, Any]) -> None:
        self.history.append(entry)
        self._write(entry)
        if self._writer is not None:
            for name, value in scalars(entry):
                self._writer.add_scalar(name, value, entry["step"])
        if any(f.kind == "nonfinite" for f in self.findings):
            return  # every measurement after it is its consequence
        for finding in self._judge.findings(entry):
            self._tell(finding)

    def _tell(self, finding: Finding) -> None:
        if any((f.kind, f.where.partition(" (")[0]) == (finding.kind, finding.where.partition(" (")[0])
               for f in self.findings):  # fmt: skip
            return
        self.findings.append(finding)
        self._write({"step": self.step, "finding": finding.to_dict()})
        if self._on_finding is not None:
            self._on_finding(finding)

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._path is None or not _first_process():
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(entry), allow_nan=False) + "\n")

    def _not_finite(self) -> None:
        names = [
            n for n, p in zip(self._names, self._parameters, strict=True) if p.grad is not None and not finite([p])
        ]
        weights = [n for n, p in zip(self._names, self._parameters, strict=True)
                   if p.is_floating_point() and not bool(torch.isfinite(own_part(p.detach())).all())]  # fmt: skip
        if any(f.kind == "nonfinite" for f in self.findings):
            return
        written = self._recorder.write(self.step) if self._recorder is not None else None
        first = (weights or names or ["a gradient"])[0]
        self._tell(
            Finding(
                "nonfinite", "error", f"{first} (step {self.step})",
                "a weight is not finite before the step" if weights else "a gradient is not finite",
                measured=f"{len(weights or names)} of {len(self._names)} parameters",
                expected="finite numbers",
                fix=f"chainrule diagnose {written}" if written is not None
                else "record='crash.pt' writes batch, weights and random state of this step",
            )
        )  # fmt: skip


def finite(parameters: list[torch.Tensor]) -> bool:
    """Whether the gradients are, in one copy from the device."""
    grads = [own_part(p.grad) for p in parameters if p.grad is not None]
    grads = [g.coalesce().values() if g.is_sparse else g for g in grads if g.numel()]
    if not grads:
        return True
    if len(grads) == 1:
        return math.isfinite(float(grads[0].sum())) or bool(torch.isfinite(grads[0]).all())
    norms = torch.stack(_foreach_norm(grads, math.inf))
    return math.isfinite(float(norms.sum())) or bool(torch.isfinite(norms).all())


def _first_process() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


def scalars(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names and values as TensorBoard takes them."""
    found = [(k, entry[k]) for k in ("grad_norm", "noise_scale") if entry.get(k) is not None]
    for layer, numbers in entry["layers"].items():
        found += [(f"{which}/{layer}", value) for which, value in numbers.items() if value is not None]
    return found + [(f"update/{name}", value) for name, value in entry["updates"].items()]


def plain(value: Any) -> Any:
    """Data that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
