"""``compile_step``: one training step of a model, traced once per shape of batch, for a loop of one's own."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from chainrule.backends.torch import Step
from chainrule.backends.torch import step as compile_traced
from chainrule.errors import BackendError, ChainruleError, ModelError, StaleTraceError, UnsupportedOpError
from chainrule.frontends.torch import Surroundings, Trace, autocast, generator_states, restore_generators, trace_case

BACKENDS = ("auto", "native", "torch")
_MOST = 64  # steps that are kept: a program that reads a new number at every step is traced at every step
_MAX_STALE = 8  # traces for other branches, after which the program branches on every batch


class CompiledStep:
    """``loss, grads = step(params, batch)`` for batches of any shape: traced once per shape.

    A step holds for batches of one shape and for what the program reads besides: modes, attributes, which parameters
    are trained, what the loss closes over, autocast.

    Args:
        model, loss, objective: as in :func:`chainrule.case`.
        refuse: asked about every trace; raises what it does not allow.
    """

    def __init__(
        self, model: Any, loss: Any = None, objective: Any = None, refuse: Callable[[Trace], None] | None = None
    ) -> None:
        self.model, self.loss, self.objective = model, loss, objective
        self._surroundings = Surroundings((model, loss, objective))
        self._refuse = refuse
        self._steps: OrderedDict[Any, Step] = OrderedDict()
        self._stale = 0

    def __call__(self, params: dict[str, torch.Tensor], batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss and the gradient of every parameter, by dotted name; buffers are updated as eager would.

        Raises:
            UnsupportedOpError: the program reads another value on every batch (it branches on them), or the forward
                pass changes attributes of the model, which a compiled step could not.
        """
        key = _signature(batch), self._surroundings.now(), autocast.state()
        step = self._steps.get(key)
        if step is not None and not step.guarded:
            return step(params, batch)
        if step is not None:
            states = generator_states()
            try:
                return step(params, batch)
            except StaleTraceError as stale:
                restore_generators(states)
                self._stale += 1
                if self._stale > _MAX_STALE:
                    raise UnsupportedOpError(
                        f"{stale.what}, {_MAX_STALE} times",
                        required="a program that does the same ops on every batch",
                        instead="torch.where(condition, a, b) for a branch on values",
                    ) from None
                del self._steps[key]
        step = self._steps[key] = self._traced(batch)
        if len(self._steps) > _MOST:
            self._steps.popitem(last=False)
        return step(params, batch)

    def _traced(self, batch: Any) -> Step:
        traced = trace_case(self.model, batch, self.loss, self.objective)
        if traced.mutations:
            raise UnsupportedOpError(
                f"the forward pass changes {traced.mutations[0]}",
                required="a model whose state is in its buffers",
                instead="self.register_buffer(...), or eager training",
            )
        if self._refuse is not None:
            self._refuse(traced)
        return compile_traced(traced)


def _signature(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape), str(batch.dtype), str(batch.device)
    if isinstance(batch, dict):
        return tuple((k, _signature(v)) for k, v in sorted(batch.items()))
    if isinstance(batch, tuple | list):
        return tuple(_signature(v) for v in batch)
    return repr(batch)


def check_backend(backend: str) -> None:
    """Raises BackendError for a back end that there is not."""
    if backend not in BACKENDS:
        raise BackendError(f"unknown back end {backend!r}", required=" or ".join(BACKENDS), instead='backend="auto"')


def check_threads(threads: int | None, backend: str) -> None:
    """Raises BackendError for what is no number of threads, or where native code is not to run."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise BackendError(
            f"threads={threads!r}",
            required="a whole number, at least 1, or None: as many as a step is worth",
            instead="threads=1",
        )
    if backend == "torch":
        raise BackendError(
            "threads are those of native code", given='backend="torch"', instead=f"torch.set_num_threads({threads})"
        )


class StepOfYourOwn:
    """``step(x, y) -> loss``; see :func:`compile_step`.

    Attributes:
        backend: "native" or "torch". reason: why that one. Both are known after the first call.
    """

    def __init__(
        self, model: Any, loss: Any, optimizer: torch.optim.Optimizer | None, objective: Any, backend: str
    ) -> None:
        check_backend(backend)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise ModelError(
                "the optimizer is not one of torch's",
                given=type(optimizer).__name__,
                required="a torch.optim.Optimizer, or none",
                instead="torch.optim.SGD(model.parameters(), lr=0.1)",
            )
        self.model, self.loss, self.optimizer, self.objective = model, loss, optimizer, objective
        self.backend, self.reason, self._asked = "", "", backend
        self._run: Callable[..., torch.Tensor] = self._first

    def __call__(self, *batch: Any) -> torch.Tensor:
        """The loss of a batch; the model is trained by one step, or, without an optimizer, has its gradients."""
        return self._run(*batch)

    def _first(self, *batch: Any) -> torch.Tensor:
        self.reason = "asked for"
        if self._asked != "torch":
            try:
                self._run = self._native(batch)
                self.backend = "native"
                self.reason = "gradients and update in one compiled call" if self._asked == "auto" else "asked for"
                return self._run(*batch)
            except ChainruleError as error:
                if self._asked == "native" or isinstance(error, ModelError):
                    raise
                self.reason = f"not native: {error.what}"
        self.backend, compiled = "torch", CompiledStep(self.model, self.loss, self.objective)

        def step(*batch: Any) -> torch.Tensor:
            data = batch[0] if len(batch) == 1 else batch
            if self.optimizer is not None and wants_closure(self.optimizer):
                values: list[torch.Tensor] = []

                def closure() -> Any:
                    values.append(compute(compiled, self.model, data))
                    return values[-1]

                self.optimizer.step(closure)
                return values[0]
            value = compute(compiled, self.model, data)
            if self.optimizer is not None:
                self.optimizer.step()
            return value

        self._run = step
        return step(*batch)

    def _native(self, batch: tuple[Any, ...]) -> Callable[..., torch.Tensor]:
        if not isinstance(self.model, torch.nn.Module):
            raise BackendError("native code trains one torch module", instead='backend="torch"')
        # llvmlite is loaded where it is needed, and may be missing where there is no wheel of it
        try:
            from chainrule.verbs.native.step import NativeStep
        except ModuleNotFoundError as error:
            raise BackendError(f"{error.name} is not installed", instead='pip install "chainrule[torch]"') from None
        step = NativeStep(self.model, self.loss, self.optimizer, self.objective)
        step.prepare(*batch)
        return step


def compile_step(
    model: torch.nn.Module,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    objective: Any = None,
    backend: str = "auto",
) -> StepOfYourOwn:
    """A training step for a loop of one's own: ``step(x, y) -> loss``.

    With an optimizer each call takes one step of it; parameters and optimizer state are torch's own and up to date
    after every call, and ``.grad`` is left alone by native code, where gradients are used up by the update. Without one
    the gradients of the batch are put into ``.grad``, in place of what is there: where ``loss.backward()`` would add to
    it, a call replaces it, so gradients of several batches are added up by the caller. An optimizer that computes the
    loss several times in a step (L-BFGS) does so in torch's kernels; the loss is that before its step.

    Args:
        model, loss, optimizer, objective: as for all verbs.
        backend: "native": one call of compiled code; "torch": the derived step in torch's kernels; "auto": the first
            where it covers model and optimizer. ``step.backend`` and ``step.reason`` say which ran.

    Raises:
        ModelError, UnsupportedOpError: at the first call, if the model cannot be traced.
        BackendError: an unknown back end, or a native one that was asked for and cannot run.

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Linear(1, 1)
    >>> step = cr.compile_step(net, torch.nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    >>> x = torch.linspace(-1, 1, 8)[:, None]
    >>> losses = [float(step(x, 2 * x)) for _ in range(5)]
    >>> losses[-1] < losses[0]
    True
    """
    return StepOfYourOwn(model, loss, optimizer, objective, backend)


def wants_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` needs a function that computes loss and gradients again (L-BFGS)."""
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is parameter.empty


def compute(compiled: CompiledStep, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """The loss of a batch; gradients are put into ``.grad``."""
    parameters = {n: p for n, p in model.named_parameters(remove_duplicate=False)}
    value, grads = compiled({n: p.detach() for n, p in parameters.items()}, batch)
    for name, parameter in parameters.items():
        if name in grads:
            parameter.grad = grads[name]
    return value
