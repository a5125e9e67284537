"""A case: model, batch, loss and optimizer, traced once; its parts are the verbs' results.

Every verb on a model takes ``(model, batch, loss, optimizer)`` or a Case in place of the four. The trace is made on
first use, verified against the eager model bit for bit, and shared by all verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from chainrule.backends.torch import Step, step
from chainrule.backends.torch import compile as emitted
from chainrule.errors import ModelError
from chainrule.frontends.torch import Trace, trace_case, untouched
from chainrule.frontends.torch import trace as trace_function
from chainrule.interpreters.differentiate import vjp_all
from chainrule.ir import Graph, Node, constant


@dataclass(frozen=True, eq=False)
class Case:
    """A model with everything needed to look at its training.

    Its parts are made when they are first asked for, of the weights as they are then: after training, ask a new case.

    Attributes:
        model: an ``nn.Module``. batch: ``(inputs, target)`` with a loss, else the inputs.
        loss: ``(output, target) -> scalar`` or ``"model"``. objective: ``(model, batch) -> scalar`` in its place.
        optimizer: a torch optimizer over the model's parameters.
        data, epochs, scheduler: for :func:`chainrule.fit`, where the case knows them.
        compile: whether the emitted step is handed to ``torch.compile``.
    """

    model: Any
    batch: Any
    loss: Callable[[Any, Any], Any] | str | None = None
    optimizer: torch.optim.Optimizer | None = None
    objective: Callable[[Any, Any], Any] | None = None
    data: Any = None
    epochs: int | None = None
    scheduler: Any = None
    compile: bool = False

    @cached_property
    def trace(self) -> Trace:
        """The traced forward pass, compared bit for bit with the eager one (tensors without storage have no bits)."""
        traced = trace_case(self.model, self.batch, self.loss, self.objective)
        if any(value.is_meta for value in traced.values.values()):
            return traced
        with untouched(()):  # the draws of the compiled program and of the eager one start from the same state
            outputs = emitted(traced.graph)(*(traced.values[i] for i in traced.graph.inputs))
        return traced.compared(outputs)

    @cached_property
    def program(self) -> Any:
        """The model as the planner's problem, shared by all plans of this case."""
        from chainrule.verbs.checkpoint.plan import traced  # it stands above the case

        return traced(self.model, self.batch, self.loss, self.objective)

    @cached_property
    def step(self) -> Step:
        """``loss, grads = step(params, batch)``, compiled, without an autograd tape.

        Raises:
            ModelError: no trainable parameter reaches the loss.
        """
        traced = self.trace
        trainable = [path for path in traced.parameters if path not in traced.frozen]
        made = step(traced, self.compile)
        if trainable and len(made.unused) == len(trainable):
            raise ModelError(
                "no parameter reaches the loss",
                given=", ".join(trainable[:5]) + (", ..." if len(trainable) > 5 else ""),
                required="a loss that depends on a parameter other than through detach, no_grad or an integer",
                instead="the loss of the model's output itself; or requires_grad_(False) on all of them",
            )
        return made

    @cached_property
    def equations(self) -> Any:
        """The backward pass as equations (a DeriveResult)."""
        from chainrule.verbs.derive import derive

        return derive(self)

    @cached_property
    def moments(self) -> Any:
        """Predicted moments of every module, forward and backward (a MomentsResult)."""
        from chainrule.verbs.model_moments import model_moments

        return model_moments(self)

    @cached_property
    def propagation(self) -> Any:
        """Fields of both passes, from the statistics of the weights as they are (a Propagation)."""
        from chainrule.verbs.fields import Program

        return Program.of(self.trace).run()

    @cached_property
    def samples(self) -> dict[int, Any]:
        """Mean squares over redraws of the weights, by their number (filled by ``model_moments.measured``)."""
        return {}

    @cached_property
    def diagnosis(self) -> Any:
        """What is wrong with it (a DiagnoseResult)."""
        from chainrule.verbs.diagnose import diagnose

        return diagnose(self)

    @property
    def findings(self) -> tuple[Any, ...]:
        """The findings of the diagnosis, root causes first."""
        return self.diagnosis.findings

    @cached_property
    def chain(self) -> Any:
        """The annotated chain."""
        from chainrule.verbs.chain import chain

        return chain(self)

    def report(self, path: str | Path = "report.html") -> Path:
        """Everything on one self-contained page."""
        from chainrule import report  # render stands above the verbs: reached through the package

        return report(self, path=path)

    def cotangents(self) -> tuple[dict[str, Node], Graph]:
        """name -> cotangent of every named value between loss and leaves, and the graph that computes them.

        Raises:
            ModelError: the case has no loss.
        """
        traced = self.trace
        if traced.loss is None:
            raise ModelError("no loss, hence no gradients", required="loss=..., or objective=...")
        seed = constant(1.0, traced.loss.type.dtype)
        leaves = [*traced.parameters.values(), *traced.batch_inputs.values()]
        floats = [leaf for leaf in dict.fromkeys(leaves) if leaf.type.is_float]
        _, flowing = vjp_all([traced.loss], [seed], floats, whole=True)
        names = {**traced.graph.names, **{leaf.params["name"]: leaf for leaf in floats}}
        found = {name: flowing[node] for name, node in names.items() if node in flowing and node is not traced.loss}
        graph = Graph(traced.graph.inputs, tuple(found.values()), tuple(found))
        return found, graph

    def tensors(self, parameters: Mapping[str, torch.Tensor] | None = None) -> dict[Node, torch.Tensor]:
        """leaf -> tensor: the example's own, with parameters replaced by dotted name where given."""
        values = dict(self.trace.values)
        for name, tensor in (parameters or {}).items():
            values[self.trace.parameters[name]] = tensor
        return values

    def __str__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters()) if hasattr(self.model, "parameters") else 0
        return f"Case({type(self.model).__name__}, {count:,} parameters)"


def case(
    model: Any,
    batch: Any,
    loss: Callable[[Any, Any], Any] | str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    objective: Callable[[Any, Any], Any] | None = None,
    data: Any = None,
    epochs: int | None = None,
    scheduler: Any = None,
    compile: bool = False,
) -> Case:
    """A case, to be traced on first use.

    Args:
        model, batch, loss, optimizer, objective: see :class:`Case`.
        data, epochs, scheduler: what ``fit`` needs, if it will be asked.
        compile: hand the emitted step to ``torch.compile`` (random numbers stay those of eager execution).

    >>> import torch, chainrule as cr
    >>> net = torch.nn.Linear(3, 2)
    >>> c = cr.case(net, (torch.ones(4, 3), torch.zeros(4, 2)), torch.nn.functional.mse_loss)
    >>> c.trace.bit_equal
    True
    """
    return Case(model, batch, loss, optimizer, objective, data, epochs, scheduler, compile)


def as_case(model: Any, batch: Any = None, loss: Any = None, optimizer: Any = None, objective: Any = None) -> Case:
    """A Case as it is; a model with its batch as a new one."""
    if isinstance(model, Case):
        return model
    if batch is None:
        raise ModelError(
            "a model needs a batch to be looked at",
            required="(inputs, target), or the inputs alone without a loss",
        )
    return Case(model, batch, loss, optimizer, objective)


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """The graph of a torch function or module called with example arguments.

    Args:
        function: what is called. args, kwargs: what with; the graph is specialised to their shapes and dtypes.

    Raises:
        UnsupportedOpError: an op, or a way to use Python, that a graph cannot hold. ModelError: it raised.

    >>> import torch, chainrule as cr
    >>> cr.trace(lambda x: (x * x).sum(), torch.ones(3)).outputs[0].shape
    ()
    """
    return trace_function(function, args, kwargs).graph
