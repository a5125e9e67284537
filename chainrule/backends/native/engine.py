"""The native engine: a model's step traced, compiled and run many steps per call.

The engine keeps its own packed copy of parameters, buffers and optimizer state; ``load`` and ``store`` convert from
and to torch's. Random draws (dropout) come from a counter-based stream of its own: same seed, same masks, whatever
the number of threads; they are not torch's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.backends.native import optimizers
from chainrule.backends.native.forms import KINDS
from chainrule.backends.native.prepare import StepGraph, step_graph
from chainrule.backends.native.program import STEP_COUNTER, Program, build
from chainrule.errors import BackendError, ModelError, UnsupportedOpError
from chainrule.frontends.torch import Trace, trace_case
from chainrule.frontends.torch import batch as convention
from chainrule.ir import Node


@dataclass(frozen=True, eq=False)
class Traced:
    """A step at one batch size, before it is compiled: the graph, and which leaf is what."""

    graph: StepGraph
    rule: optimizers.Rule | None
    batch: tuple[Node, ...]
    parameters: Mapping[Node, str]
    held: Mapping[Node, torch.Tensor]
    buffers: Mapping[Node, str]


class NativeEngine:
    """See :class:`chainrule.backends.engine.Engine`. Made by :func:`native_engine`."""

    name = "native"

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Any,
        objective: Any,
        optimizer: torch.optim.Optimizer,
        example: Any,
        seed: int,
    ) -> None:
        self.model, self.loss, self.objective, self.optimizer = model, loss, objective, optimizer
        self.example, self.seed = example, seed
        self.programs: dict[int, Program] = {}
        self.traced: dict[int, Traced] = {}
        self._arena: np.ndarray | None = None
        self._taken = 0
        self._loaded = False
        size = _batch_size(example)
        self.first = self._program(size)
        self.reason = self._reason(size)

    def _reason(self, size: int) -> str:
        graph = self.first.graph
        count = sum(int(np.prod(leaf.shape)) for leaf in graph.parameters)
        words = f"{count:,} parameters, batches of {size}, {type(self.optimizer).__name__}: one compiled loop"
        return words + ("; dropout from a stream of its own" if self.first.draws else "")

    # ---- programs ------------------------------------------------------------------------------------------
    def _program(self, size: int) -> Program:
        if size not in self.programs:
            traced = self._trace(size)
            fixed = self.first.layout if self.programs else None
            if fixed is not None and self._arena is not None:
                pass
            rates = traced.rule.rates if traced.rule is not None else ()
            self.traced[size] = traced
            self.programs[size] = build(traced.graph, traced.batch, rates, fixed)
        return self.programs[size]

    def _trace(self, size: int) -> Traced:
        batch = _sliced(self.example, size)
        case = trace_case(self.model, batch, self.loss, self.objective)
        return traced_step(case, self.model, self.optimizer, batch)

    # ---- memory --------------------------------------------------------------------------------------------
    def _memory(self) -> np.ndarray:
        """The arena, grown when a further program needs more."""
        need = max(p.layout.arena.size for p in self.programs.values()) + 4096
        if self._arena is None or len(self._arena) < need:
            raw = np.zeros(need + 64, np.uint8)
            shift = -raw.ctypes.data % 64
            grown = raw[shift : shift + need]
            if self._arena is not None:
                grown[: len(self._arena)] = self._arena
            self._arena = grown
        return self._arena

    def load(self) -> None:
        """Parameters, buffers and optimizer state from the torch objects into private memory."""
        arena = self._memory()
        arena[:] = 0
        self._fill(arena, list(self.programs), states=True)
        self._taken = 0
        self._loaded = True

    def _fill(self, arena: np.ndarray, sizes: Sequence[int], states: bool) -> None:
        named = dict(self.model.named_parameters(remove_duplicate=False))
        for size in sizes:
            program, traced = self.programs[size], self.traced[size]
            views = program.layout.views
            if states:
                for leaf, path in traced.parameters.items():
                    self._write(arena, program, leaf, named[path])
                for leaf, path in traced.buffers.items():
                    self._write(arena, program, leaf, traced.held[leaf])
                if traced.rule is not None:
                    for state in traced.rule.states:
                        if state.leaf in views:
                            value = optimizers.read_state(self.optimizer, named[state.parameter], state)
                            if value is not None:
                                self._write(arena, program, state.leaf, value)
                if program.draws:
                    program.array(arena, STEP_COUNTER)[...] = self.seed * 1_000_003
            for leaf in program.graph.order:
                if leaf.op.native == "constant" and leaf in views:
                    self._write(arena, program, leaf, leaf.params["literal"].array)
                elif leaf.op.native == "input" and leaf in views and leaf in traced.held and leaf not in traced.buffers:
                    if leaf not in traced.parameters and leaf not in program.batch:
                        self._write(arena, program, leaf, traced.held[leaf])

    def _write(self, arena: np.ndarray, program: Program, leaf: Node, value: Any) -> None:
        if leaf not in program.layout.views:
            return
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        program.array(arena, leaf)[...] = array
        for view in program.layout.copies.get(leaf, {}).values():
            program.array(arena, leaf, view)[...] = array

    def store(self) -> None:
        """Writes parameters, buffers and optimizer state back into the torch objects."""
        arena = self._memory()
        program, traced = self.first, self.traced[_batch_size(self.example)]
        named = dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for leaf, path in traced.parameters.items():
                if leaf in program.graph.updates:
                    named[path].copy_(torch.from_numpy(np.array(program.array(arena, leaf))))
            for leaf in traced.buffers:
                if leaf in program.graph.updates:
                    traced.held[leaf].copy_(torch.from_numpy(np.array(program.array(arena, leaf))))
            if traced.rule is None or not self._taken:
                return
            seen: set[str] = set()
            for state in traced.rule.states:
                parameter = named[state.parameter]
                if state.of_step is None and state.key != "first":
                    value = torch.from_numpy(np.array(program.array(arena, state.leaf)))
                    optimizers.write_state(self.optimizer, parameter, state.key, value)
            if optimizers.counts_steps(self.optimizer):
                for leaf, path in traced.parameters.items():
                    if leaf in program.graph.updates and path not in seen:
                        seen.add(path)
                        count = optimizers.steps_taken(self.optimizer, named[path]) + self._taken
                        held = self.optimizer.state[named[path]]
                        held["step"] = torch.tensor(float(count), dtype=torch.float32)
        self._taken = 0

    # ---- training ------------------------------------------------------------------------------------------
    def run(self, arrays: tuple, order: np.ndarray | None, batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
        """Trains ``len(learning_rates)`` steps; see ``Engine.run``."""
        if not self._loaded:
            self.load()
        rates = np.asarray(learning_rates, dtype=np.float64)
        steps = len(rates)
        groups = max(1, len(self.optimizer.param_groups))
        rates = np.ascontiguousarray(np.broadcast_to(rates.reshape(steps, -1), (steps, groups)))
        samples = len(arrays[0])
        order = np.arange(samples, dtype=np.int64) if order is None else np.ascontiguousarray(order, dtype=np.int64)
        if len(order) and (order.min() < 0 or order.max() >= samples):
            raise BackendError("sample numbers outside of the data", given=f"{order.min()} to {order.max()}")
        full = min(steps, len(order) // batch_size)
        rest = len(order) - full * batch_size if steps > full else 0
        if steps > full + (rest > 0):
            raise BackendError(
                "more steps than the order has batches",
                given=f"{steps} steps, {len(order)} sample numbers, batches of {batch_size}",
                required=f"at most {full + (rest > 0)} steps",
            )
        losses = np.zeros(steps, np.float64)
        if full:
            self._call(batch_size, arrays, order, full, rates, losses)
        if rest and steps > full:
            self._call(rest, arrays, order[full * batch_size :], 1, rates[full:], losses[full:])
        self._taken += steps
        return losses

    def _call(
        self, size: int, arrays: tuple, order: np.ndarray, steps: int, rates: np.ndarray, losses: np.ndarray
    ) -> None:
        new = size not in self.programs
        program = self._program(size)
        arena = self._memory()
        if new:
            self._fill(arena, [size], states=False)
        tensors = self._tensors(program, self.traced[size], arrays)
        pointers = np.array([t.data_ptr() for t in tensors], dtype=np.uint64)
        program.code(
            arena.ctypes.data,
            pointers.ctypes.data,
            order.ctypes.data,
            steps,
            rates.ctypes.data,
            losses.ctypes.data,
        )

    def _tensors(self, program: Program, traced: Traced, arrays: tuple) -> list[torch.Tensor]:
        if len(arrays) != len(traced.batch):
            raise ModelError(
                "another number of data tensors than the batch has",
                given=str(len(arrays)),
                required=str(len(traced.batch)),
            )
        out = []
        for leaf, tensor in zip(traced.batch, arrays, strict=True):
            if tuple(tensor.shape[1:]) != leaf.shape[1:] or str(tensor.dtype).removeprefix("torch.") != leaf.type.dtype:
                raise ModelError(
                    "data of another shape or dtype than the batch that was traced",
                    given=f"{tuple(tensor.shape)}, {tensor.dtype}",
                    required=f"(samples, {', '.join(map(str, leaf.shape[1:]))}), {leaf.type.dtype}",
                )
            if leaf in program.batch:
                out.append(tensor.detach().contiguous())
        return out


def native_engine(
    model: torch.nn.Module,
    example: Any,
    loss: Any,
    optimizer: torch.optim.Optimizer,
    *,
    objective: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
) -> NativeEngine:
    """A compiled training step.

    Args:
        model, loss, objective: as in :func:`chainrule.case`. example: one full batch, ``(inputs, target)``.
        optimizer: SGD, Adam, AdamW or RMSprop of torch.
        seed: of random draws.
    Raises:
        UnsupportedOpError: an op, dtype or optimizer without a native form; names it.
        BackendError: something that native code cannot do here.
    """
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise BackendError(
            "native code runs on the CPU", given="parameters on another device", instead='backend="torch"'
        )
    if not optimizers.supported(optimizer):
        raise UnsupportedOpError(f"optimizer {type(optimizer).__name__} has no native form", instead='backend="torch"')
    return NativeEngine(model, loss, objective, optimizer, example, seed)


def traced_step(case: Trace, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, batch: Any) -> Traced:
    """What is compiled for a traced case.

    Raises:
        UnsupportedOpError: an op or program without a native form.
    """
    if case.guards:
        raise UnsupportedOpError(
            f"the program branches on values at {case.guards[0].where}",
            required="a program that does the same ops on every batch",
            instead='backend="torch"',
        )
    if case.mutations:
        raise UnsupportedOpError(f"the forward pass changes {case.mutations[0]}", instead='backend="torch"')
    if case.loss is None:
        raise ModelError("a step needs a loss", instead="a loss or an objective")
    wanted: dict[Node, str] = {}
    for path, leaf in case.parameters.items():
        if path not in case.frozen and leaf not in wanted:
            wanted[leaf] = path
    rule: optimizers.Rule | None = None
    update: Callable[[Mapping[Node, Node]], Mapping[Node, Node]] | None = None
    if optimizer is not None:
        named = dict(model.named_parameters(remove_duplicate=False))
        group_of = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        wanted = {leaf: path for leaf, path in wanted.items() if id(named[path]) in group_of}
        groups = {leaf: group_of[id(named[path])] for leaf, path in wanted.items()}

        def written(grads: Mapping[Node, Node]) -> Mapping[Node, Node]:
            nonlocal rule
            rule = optimizers.updates(optimizer, grads, groups, wanted)
            return rule.updates

        update = written
    named_buffers = {leaf: path for path, leaf in case.buffers.items()}
    graph = step_graph(case.loss, wanted, {case.buffers[path]: new for path, new in case.updates.items()}, update)
    leaves = tuple(case.batch_inputs.values())
    for leaf in leaves:
        if leaf.type.dtype not in KINDS:
            raise UnsupportedOpError(f"a batch of dtype {leaf.type.dtype} in native code", instead='backend="torch"')
    used = [n for n in graph.order if n.op.native == "input"]
    parameters = {leaf: path for path, leaf in reversed(case.parameters.items()) if leaf in set(used) | set(wanted)}
    return Traced(graph, rule, leaves, parameters, case.values, named_buffers)


def _sliced(example: Any, size: int) -> Any:
    tensors = [t for _, t in convention.leaves(example)]
    if all(len(t) == size for t in tensors):
        return example
    if any(len(t) < size for t in tensors):
        raise BackendError("a batch larger than the example", given=str(size))
    return convention.with_leaves(example, iter([t[:size] for t in tensors]))


def _batch_size(example: Any) -> int:
    sizes = {len(t) if t.ndim else 0 for _, t in convention.leaves(example)}
    if len(sizes) != 1 or 0 in sizes:
        raise UnsupportedOpError(
            "a batch whose tensors differ in their first dimension", given=str(sorted(sizes)), instead='backend="torch"'
        )
    return sizes.pop()
