"""The joint program of a traced model: forward pass and vector-Jacobian product, line by line.

The lines are those of ``backends.torch.emit``; here they are kept apart, so that a schedule can put them in any order,
repeat them, and delete what they made. The loss is the caller's, and runs between the passes as it is.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainrule.backends.torch.emit import _Identifiers, _Writer, inline_composites
from chainrule.backends.torch.recompute.extract import CPU, CUDA, Extraction, Line, Loss, Prices, extract
from chainrule.errors import UnsupportedOpError
from chainrule.interpreters.differentiate import vjp_all
from chainrule.interpreters.kernels import selected
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Graph, Node, TensorType, fresh_variable, toposort


class Traced(Protocol):
    """What is read of a trace (``frontends.torch.Trace`` is one)."""

    @property
    def graph(self) -> Graph: ...
    @property
    def parameters(self) -> Mapping[str, Node]: ...
    @property
    def frozen(self) -> frozenset[str]: ...
    @property
    def buffers(self) -> Mapping[str, Node]: ...
    @property
    def values(self) -> Mapping[Node, torch.Tensor]: ...
    @property
    def updates(self) -> Mapping[str, Node]: ...
    @property
    def guards(self) -> Sequence[Any]: ...
    @property
    def calls(self) -> Sequence[Any]: ...


@dataclass(frozen=True, eq=False)
class Joint:
    """A program as lines.

    Attributes:
        graph: inputs -> outputs, new buffers, gradients. inputs: leaves in calling order.
        outputs: what the model returns. updates: buffer path -> its new value. wrt: leaves that get a gradient.
        gradients: per leaf of ``wrt``, None where no path leads there.
        cotangents: per output, None where the backward pass does not start.
        checks: values whose readings the trace relied on.
        lines: forward pass, then backward pass. forward: how many are the forward pass.
        texts: source of each line. above: source that runs once. held: objects that it refers to.
        names: value -> Python name.
    """

    graph: Graph
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    updates: Mapping[str, Node]
    wrt: tuple[Node, ...]
    gradients: tuple[Node | None, ...]
    cotangents: tuple[Node | None, ...]
    checks: tuple[Node, ...]
    lines: tuple[Line, ...]
    forward: int
    texts: tuple[str, ...]
    above: str
    held: Mapping[str, Any]
    names: Mapping[Node, str]
    fixed: frozenset[Node]
    draws: frozenset[int] = field(default=frozenset())  # lines that draw random numbers
    changing: frozenset[Node] = field(default=frozenset())  # buffers that are written after the forward pass
    environment: dict[str, Any] = field(default_factory=dict, repr=False)  # what the lines of this object refer to

    @cached_property
    def given(self) -> tuple[Node, ...]:
        """The inputs that are no cotangents."""
        ends = set(self.cotangents)
        return tuple(i for i in self.inputs if i not in ends)

    @cached_property
    def index(self) -> dict[Node, int]:
        """input -> its place."""
        return {leaf: k for k, leaf in enumerate(self.inputs)}

    def start(self) -> int:
        """Makes the constants, which lines otherwise do when the first of them runs; says how many bytes they have."""
        _start(self.environment)
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(self.environment)}
        return sum(found.values())

    def again(self) -> Joint:
        """The same program with lines that have not run yet: a run on fake tensors leaves fake constants behind."""
        env: dict[str, Any] = {"__above__": self.above, "__held__": dict(self.held)}
        lines = []
        for line, text in zip(self.lines, self.texts, strict=True):
            names = [[self.names[v] for v in values] for values in (line.reads, line.writes)]
            lines.append(replace(line, run=_runner(env, text, *names)))
        return replace(self, lines=tuple(lines), environment=env)


def joint_of(
    traced: Traced, outputs: Sequence[Node], wrt: Sequence[Node], through: Sequence[bool] | None = None
) -> Joint:
    """The joint program of a trace.

    Args:
        outputs: what the model returns, among the graph's nodes. wrt: leaves that get a gradient.
        through: per output, whether the backward pass starts there; by default all that are floating-point.
    """
    taken = list(traced.graph.inputs)
    cotangents: list[Node | None] = []
    starts = [True] * len(outputs) if through is None else through
    for k, (out, start) in enumerate(zip(outputs, starts, strict=True)):
        made = None
        if start and isinstance(out.type, TensorType) and out.type.is_float:
            made = fresh_variable(f"d_output_{k}", out.type, taken)
            taken.append(made)
        cotangents.append(made)
    pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if g is not None]
    found, _ = vjp_all([o for o, _ in pairs], [g for _, g in pairs], list(wrt), whole=True)
    # Last layer first: each gradient is taken on the way back.
    used = [g for g in reversed(found) if g is not None]
    updates = list(traced.updates.values())
    checks = [node for guard in traced.guards for node in guard.nodes]
    graph = Graph(
        inputs=(*traced.graph.inputs, *(g for g in cotangents if g is not None)),
        outputs=(*outputs, *updates, *checks, *used),
        names=traced.graph.names,
        origins=traced.graph.origins,
        draws=traced.graph.draws,
    )
    graph = selected(inline_composites(simplify(graph, exact=True)))
    first = len(outputs)
    second = first + len(updates)
    third = second + len(checks)
    grads = list(graph.outputs[third:])
    gradients = [None if g is None else grads.pop() for g in found]
    news = dict(zip(traced.updates, graph.outputs[first:second], strict=True))
    read = graph.outputs[second:third]
    return _written(graph, graph.outputs[:first], news, wrt, gradients, cotangents, read, traced)


def _written(
    graph: Graph,
    outputs: Sequence[Node],
    updates: Mapping[str, Node],
    wrt: Sequence[Node],
    gradients: Sequence[Node | None],
    cotangents: Sequence[Node | None],
    checks: Sequence[Node],
    traced: Traced,
) -> Joint:
    writer = _Writer(graph, _Identifiers(graph, "c"), reuse=False, tracked=False)
    writer.function = "program"
    runs = [
        n
        for n in writer.nodes
        if n not in writer.inputs and n.number is None and n not in writer.unpacked and not _is_leaf(n)
    ]
    own = set(toposort([*outputs, *updates.values(), *checks, *graph.draws]))
    lines: list[Line] = []
    texts: list[str] = []
    draws: set[int] = set()
    module_of = _modules(traced, graph)
    forward = 0
    env: dict[str, Any] = {}
    for part in ([n for n in runs if n in own], [n for n in runs if n not in own]):
        for node in part:
            start = len(writer.body)
            writer._line(node)
            if len(writer.body) == start:
                continue  # computed once, above
            (text,) = writer.body[start:]
            writes = _writes(writer, node)
            reads = tuple(dict.fromkeys(_reads(writer, node)))
            random = not node.op.pure
            if random:
                draws.add(len(lines))
            run = _runner(env, text, [writer.names.of(r) for r in reads], [writer.names.of(w) for w in writes])
            module = module_of.get(node, "")
            lines.append(Line(node.op.name, reads, writes, run, module, state=_STATE if random else 0))
            texts.append(text)
            forward += node in own
    for out in (*outputs, *updates.values(), *checks, *(g for g in gradients if g is not None)):
        if out.number is not None:
            writer._operand(out, as_tensor=True)
    above = "\n".join([*writer.preludes, *writer.above])
    env["__above__"] = above
    env["__held__"] = dict(writer.held)
    return Joint(
        graph,
        graph.inputs,
        tuple(outputs),
        dict(updates),
        tuple(wrt),
        tuple(gradients),
        tuple(cotangents),
        tuple(checks),
        tuple(lines),
        forward,
        tuple(texts),
        above,
        dict(writer.held),
        dict(writer.names._names),
        frozenset(writer.fixed),
        frozenset(draws),
        frozenset(traced.buffers[path] for path in updates if path in traced.buffers),
        env,
    )


_STATE = 5056  # bytes of the state of torch's generator on the processor


def _is_leaf(node: Node) -> bool:
    return node.is_leaf and "name" in node.params


def _writes(writer: _Writer, node: Node) -> tuple[Node, ...]:
    if node not in writer.parts:
        return (node,)
    items = writer.parts[node]
    found = [items[k] for k in sorted(items)]
    return tuple([*found, node] if node in writer.whole else found)


def _reads(writer: _Writer, node: Node) -> Iterator[Node]:
    for i in node.inputs:
        if i.number is None and i not in writer.fixed:
            yield i


def _runner(env: dict[str, Any], text: str, reads: Sequence[str], writes: Sequence[str]) -> Any:
    code = compile(text, "<chainrule line>", "exec")

    def run(operands: Sequence[Any]) -> list[Any]:
        if "torch" not in env:
            _start(env)
        for name, value in zip(reads, operands, strict=True):
            env[name] = value
        exec(code, env)
        found = [env[name] for name in writes]
        for name in {*reads, *writes}:
            env.pop(name, None)
        env.pop("_", None)
        return found

    return run


def _tensors(env: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    return (v for v in env.values() if isinstance(v, torch.Tensor))


def _start(env: dict[str, Any]) -> None:
    env["torch"] = torch
    for name, held in env.pop("__held__").items():
        env[name] = torch.from_numpy(held.copy()) if isinstance(held, np.ndarray) else held
    exec(env.pop("__above__"), env)


def _modules(traced: Traced, graph: Graph) -> dict[Node, str]:
    """node -> the module that it was computed in, by the origins that survived; readers of weights by their weights."""
    found = {node: origin.module for node, origin in graph.origins.items() if origin.module}
    by_parameter = {leaf: path.rpartition(".")[0] for path, leaf in traced.parameters.items()}
    for node in toposort(graph.outputs):
        if node not in found:
            found[node] = next((by_parameter[i] for i in node.inputs if i in by_parameter), "") or next(
                (found[i] for i in node.inputs if found.get(i)), ""
            )
    return found


def extraction_of(
    joint: Joint, values: Mapping[Node, torch.Tensor], prices: Prices | None = None, loss: Loss | None = None
) -> Extraction:
    """The planner's problem, by a run on fake tensors like ``values``.

    ``loss``: what runs between the passes.
    """
    if prices is None:
        prices = CUDA if any(v.is_cuda for v in values.values()) else CPU
    try:
        with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return _extracted(joint.again(), {k: _fake(mode, v) for k, v in values.items()}, prices, loss)
    except (RuntimeError, IndexError) as error:
        # Some ops look at values (lengths of packed sequences, CTC): they have no answer without data.
        if any(v.is_meta for v in values.values()):
            raise UnsupportedOpError(
                f"an op of this model looks at values, so it cannot be planned without data: {first_line(error)}",
                given="a model or a batch on the meta device",
                required="tensors with values",
                instead="the model and the batch on a real device",
            ) from error
    with kept_generators():
        return _extracted(joint.again(), {k: v.detach() for k, v in values.items()}, prices, loss)


def first_line(error: Exception) -> str:
    """What an exception says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's log of what fake tensors cannot do: it is tried, and done otherwise where it fails."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Random generators are afterwards where they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield


def _extracted(joint: Joint, values: Mapping[Node, torch.Tensor], prices: Prices, loss: Loss | None) -> Extraction:
    with torch.no_grad():
        constants = joint.start()
        given = {leaf: values[leaf] for leaf in joint.inputs if leaf in values}
        free = [g for g in joint.cotangents if g is not None]
        for g in free:
            given[g] = torch.zeros(g.type.shape, dtype=getattr(torch, g.type.dtype), device=g.type.device)
        outputs = [*joint.outputs, *joint.updates.values(), *joint.checks]
        gradients = [g for g in joint.gradients if g is not None]
        found = extract(joint.lines, joint.forward, given, free, outputs, gradients, prices, loss)
        copies = sum(values[b].numel() * values[b].element_size() for b in joint.changing if b in values)
        return replace(found, constants=constants + copies)


def _fake(mode: FakeTensorMode, value: torch.Tensor) -> torch.Tensor:
    detached = value.detach()
    return detached if detached.is_meta else mode.from_tensor(detached)
