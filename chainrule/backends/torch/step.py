"""Loss and all gradients of a traced case as one function of parameters and batch: no tape, readable source.

The gradient graph comes from ``interpreters.differentiate``, shortened by rewrites that keep every bit, and
is emitted together with the forward pass, so that both share what they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from chainrule.backends.torch.compile import compile as compiled
from chainrule.errors import ModelError, StaleTraceError
from chainrule.interpreters.differentiate import gradient
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Graph, Node, shape_text


class Guard(Protocol):
    """A value that the program read when it was traced."""

    @property
    def nodes(self) -> Sequence[Node]: ...
    @property
    def where(self) -> str: ...
    def holds(self, tensors: Sequence[torch.Tensor]) -> bool: ...


class Case(Protocol):
    """What a step needs to know of a traced case (``frontends.torch.Trace`` is one)."""

    @property
    def graph(self) -> Graph: ...
    @property
    def loss(self) -> Node | None: ...
    @property
    def parameters(self) -> Mapping[str, Node]: ...
    @property
    def frozen(self) -> frozenset[str]: ...
    @property
    def batch_inputs(self) -> Mapping[str, Node]: ...
    @property
    def values(self) -> Mapping[Node, torch.Tensor]: ...
    @property
    def buffers(self) -> Mapping[str, Node]: ...
    @property
    def updates(self) -> Mapping[str, Node]: ...
    @property
    def guards(self) -> Sequence[Guard]: ...
    @property
    def flatten(self) -> Any: ...


class Step:
    """``loss, grads = step(params, batch)``.

    Attributes:
        graph: parameters, buffers and batch -> loss and gradients. source: what runs.
        unused: names of parameters that the loss does not depend on; their gradient is None.
    """

    def __init__(self, case: Case, compile: bool = False) -> None:
        if case.loss is None:
            raise ModelError("a step needs a loss", given="a trace without one", instead="a loss or an objective")
        self._case = case
        leaves: dict[Node, list[str]] = {}  # tied parameters: one leaf, several names
        for name, leaf in case.parameters.items():
            leaves.setdefault(leaf, []).append(name)
        wanted = {leaf: names for leaf, names in leaves.items() if not case.frozen.issuperset(names)}
        found = dict(zip(wanted, gradient(case.loss, list(wanted), whole=True), strict=True))
        # Last layer first: each gradient is taken on the way back, and what only it needs is freed at once.
        used = {leaf: g for leaf, g in reversed(found.items()) if g is not None}
        self.unused = tuple(name for leaf, names in wanted.items() if found[leaf] is None for name in names)
        named = {f"grad_{leaf.params['name']}": g for leaf, g in used.items()}
        read = list(dict.fromkeys(node for guard in case.guards for node in guard.nodes))
        rest = [*case.updates.values(), *read]
        self.graph = simplify(
            Graph(
                inputs=case.graph.inputs,
                outputs=(case.loss, *used.values(), *rest),
                output_names=("loss", *named, *(f"kept_{k}" for k in range(len(rest)))),
                names={**case.graph.names, **named},
                origins=case.graph.origins,
                draws=case.graph.draws,
            ),
            exact=True,
        )
        self._read = {node: k for k, node in enumerate(read, 1 + len(used) + len(case.updates))}
        self._written = {case.buffers[path]: k for k, path in enumerate(case.updates, 1 + len(used))}
        self._compiled = compiled(self.graph, "step", reuse=True, inductor=compile)
        self._leaves = {leaf: names[0] for leaf, names in leaves.items()}
        self._outputs = [(names, k) for k, leaf in enumerate(used) for names in [wanted[leaf]]]

    @property
    def guarded(self) -> bool:
        """Whether the trace holds only for batches on which the program reads the same values."""
        return bool(self._case.guards)

    @property
    def source(self) -> str:
        """The Python source of the function that runs."""
        return self._compiled.source

    def __call__(
        self, params: Mapping[str, torch.Tensor], batch: Any, update: bool = True
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        """The loss, and its gradient for every parameter that is not frozen.

        Args:
            params: dotted name -> tensor, as in ``dict(model.named_parameters())``; tied parameters by any one of
                their names.
            batch: of the shapes and dtypes that were traced. Buffers are the model's own, as they are at the call.
            update: whether buffers that the program updates (running statistics) are written back, as eager would.
        Returns:
            The loss, and dotted name -> gradient. A parameter that the loss does not depend on has None; the
            names of a tied parameter have the same tensor.
        Raises:
            ModelError: a parameter is missing or has another shape, or the batch is not like the traced one.
            StaleTraceError (one of them): a branch would be taken another way. Nothing is written then, but random
            numbers were drawn.
        """
        given = dict(zip(self._case.batch_inputs.values(), self._case.flatten(batch), strict=True))
        for leaf, name in self._leaves.items():
            given[leaf] = self._parameter(leaf, name, params)
        values = self._case.values
        results = self._compiled(*(given[i] if i in given else values[i] for i in self.graph.inputs))
        loss, *found = results
        for guard in self._case.guards:
            if not guard.holds([results[self._read[n]] for n in guard.nodes]):
                raise StaleTraceError(
                    f"the program read a value at {guard.where} that is another one on this batch",
                    required="a program that does the same ops on every batch",
                    instead="a new trace for this batch",
                )
        if update:
            with torch.no_grad():
                for leaf, k in self._written.items():
                    values[leaf].copy_(results[k])
        grads: dict[str, torch.Tensor | None] = dict.fromkeys(self.unused)
        for names, k in self._outputs:
            grads.update(dict.fromkeys(names, found[k]))
        return loss, grads

    def _parameter(self, leaf: Node, name: str, params: Mapping[str, torch.Tensor]) -> torch.Tensor:
        held = params.get(name)
        if held is None:
            held = next(
                (params[n] for n, other in self._case.parameters.items() if other is leaf and n in params),
                None,
            )
        if held is None:
            raise ModelError(
                f"parameter {name!r} is missing",
                given=", ".join(params) or "no parameters",
                required="a tensor for every parameter of the model",
                instead="dict(model.named_parameters())",
            )
        if tuple(held.shape) != leaf.shape:
            raise ModelError(
                f"parameter {name!r} has another shape than the one traced",
                given=f"({shape_text(tuple(held.shape))})",
                required=f"({shape_text(leaf.shape)})",
            )
        return held


def step(case: Case, compile: bool = False) -> Step:
    """The training step of a traced case: loss and gradients; with ``compile`` its source goes to ``torch.compile``.

    Raises:
        ModelError: the trace has no loss.
        UnsupportedOpError: an op on the path has no derivative rule.
        BackendError: an op that cannot be written in torch.
    """
    return Step(case, compile)
