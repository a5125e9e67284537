"""The native engine: a model's step traced, compiled and run many steps per call.

The engine keeps its own packed copy of parameters, buffers and optimizer state; ``load`` and ``store`` convert from
and to torch's. Random draws (dropout) come from a counter-based stream of its own: same seed, same masks, whatever
the number of threads; they are not torch's bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chainrule.backends.native import access, jit, optimizers
from chainrule.backends.native.draws import STEP_COUNTER
from chainrule.backends.native.prepare import StepGraph
from chainrule.backends.native.program import Program
from chainrule.backends.native.threads import Threads
from chainrule.errors import BackendError, ModelError, UnsupportedOpError
from chainrule.frontends.torch import Trace, trace_case
from chainrule.frontends.torch import batch as convention
from chainrule.ir import Node
from chainrule.verbs.native import architecture, verify
from chainrule.verbs.native.closure import ClosureEngine
from chainrule.verbs.native.shared import Checked, Compiled, shared
from chainrule.verbs.native.traced import Traced, traced_step


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
        small: bool = False,
        beside: tuple[int, Compiled | None] | None = None,
        threads: int | None = None,
    ) -> None:
        self.model, self.loss, self.objective, self.optimizer = model, loss, objective, optimizer
        self.example, self.seed, self.small = example, seed, small
        self.steps_before = 0  # of the stream of random draws, when ``load`` is called: where a run goes on
        self._arena: np.ndarray | None = None
        self._taken = self._drawn = 0  # steps since the last store, and since the last load
        self._loaded = False
        self._filled: set[int] = set()
        self._checked = Checked()
        self._last: tuple[Any, ...] = (None, None, None)
        self.size = _batch_size(example)
        replicas, known = beside or (1, None)
        self.replica = 0  # which of those that are trained side by side
        self.compiled = known or shared(self._key(), self.size, replicas, allowed(threads if beside is None else 1))
        self._case: Trace | None = None
        self.first, self.traced = self._program(self.size)
        self.case = None if self.first.cached else self._case  # not held against torch so far
        if self.case is not None and replicas == 1:
            self._verify(self.case)
            self.case = None
        self._case = None
        self.reason = self._reason(self.size)

    def _key(self) -> Hashable | None:
        """What the compiled step depends on, where that can be told without a trace."""
        model = architecture.key_of(self.model)
        loss = architecture.key_of_loss(self.loss) if self.objective is None else None
        if model is None or loss is None:
            return None
        number = {id(p): k for k, p in enumerate(self.model.parameters())}
        groups = tuple(tuple(number.get(id(p), -1) for p in group["params"]) for group in self.optimizer.param_groups)
        batch = tuple((name, tuple(t.shape), t.dtype) for name, t in convention.leaves(self.example))
        return model, loss, optimizers.describe(self.optimizer), groups, batch

    def _reason(self, size: int) -> str:
        graph = self.first.graph
        count = sum(int(np.prod(access.sizes(leaf))) for leaf in graph.parameters)
        words = f"{count:,} parameters, batches of {size}, {type(self.optimizer).__name__}: one compiled loop"
        if self.first.threads > 1:
            words += f" on {self.first.threads} threads"
        return words + ("; dropout from a stream of its own" if self.first.draws else "")

    @property
    def draws(self) -> bool:
        """Whether a step draws random numbers, from ``seed``."""
        return self.first.draws

    # ---- programs ------------------------------------------------------------------------------------------
    def _program(self, size: int) -> tuple[Program, Traced]:
        return self.compiled.program(size, self._trace, _LONGEST if self.small else None)

    def _trace(self, size: int) -> Traced:
        batch = _sliced(self.example, size)
        self._case = trace_case(self.model, batch, self.loss, self.objective)
        traced = traced_step(self._case, self.model, self.optimizer)
        if self.small:
            _refuse_large(traced.graph)
        return traced

    def _verify(self, case: Trace) -> None:
        """Holds one step of new code against the torch back end.

        Raises:
            BackendError: it differs; the program is forgotten.
        """
        again = {} if self.draws or case.updates else self._known()
        case = verify.with_draws(case, self._counter())
        expected = verify.expected_step(case, self.model, self.optimizer, self.example, **again)
        if expected is None:
            return
        tensors = tuple(t for _, t in convention.leaves(self.example))
        rates = np.array([[float(group["lr"]) for group in self.optimizer.param_groups]])
        (loss,) = self.run(tensors, None, self.size, rates)
        named = {path: leaf for leaf, path in self.traced.parameters.items() if leaf in self.first.graph.updates}
        try:
            verify.compare(loss, {path: self._read(leaf) for path, leaf in named.items()}, expected)
        except BackendError:
            jit.forget(self.first.key)
            self.compiled.programs.clear()
            raise
        self._loaded = False

    def _known(self) -> dict[str, Any]:
        """Loss and objective, where nothing but torch's code and ours runs in a step: it has no effects."""
        own = type(self.objective).__module__.startswith("chainrule.")
        if architecture.key_of(self.model) is None or not (own or architecture.key_of_loss(self.loss)):
            return {}
        return {"objective": self.objective} if own else {"loss": self.loss}

    def settle(self) -> None:
        """Makes the best code now, which is otherwise made beside a run that takes seconds."""
        for program, _ in self.compiled.programs.values():
            if program.improving is not None:
                program.improving.settle()

    # ---- memory --------------------------------------------------------------------------------------------
    def _memory(self) -> np.ndarray:
        """The arena, grown when a further program needs more."""
        need = self.first.layout.arena.size + 4096
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
        self._memory()[:] = 0
        self.load_leaves()

    def load_leaves(self) -> None:
        """As ``load``, into memory that is zero so far."""
        program, traced = self.first, self.traced
        named = dict(self.model.named_parameters(remove_duplicate=False))
        for leaf, path in traced.parameters.items():
            self._write(program, leaf, named[path])
        held = dict(self.model.named_buffers(remove_duplicate=False))
        for leaf, path in traced.buffers.items():
            self._write(program, leaf, held[path])
        if traced.rule is not None:
            for state in traced.rule.states:
                value = optimizers.read_state(self.optimizer, named[state.parameter], state)
                if value is not None:
                    self._write(program, state.leaf, value)
        self._drawn = 0
        self._filled = set()
        self._fill(self.size)
        self._taken = 0
        self._loaded = True

    def _fill(self, size: int) -> None:
        """Writes the constants of a program, once."""
        if size in self._filled:
            return
        program, traced = self._program(size)
        self._memory()
        for leaf in program.layout.views:
            if leaf.op.native == "constant":
                self._write(program, leaf, leaf.params["literal"].array)
            elif leaf in traced.captured:
                self._write(program, leaf, traced.captured[leaf])
        self._filled.add(size)

    def _write(self, program: Program, leaf: Node, value: Any) -> None:
        if leaf not in program.layout.views:
            return
        arena = self._memory()
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for view in (program.layout.views[leaf], *program.layout.copies.get(leaf, {}).values()):
            program.array(arena, leaf, view, self.replica)[...] = array

    def store(self) -> None:
        """Writes parameters, buffers and optimizer state back into the torch objects."""
        self._last = (None, None, None)  # no engine keeps data beyond its run
        if not self._loaded:
            return
        program, traced = self.first, self.traced
        named = dict(self.model.named_parameters(remove_duplicate=False))
        held = dict(self.model.named_buffers(remove_duplicate=False))
        with torch.no_grad():
            for leaf, path in traced.parameters.items():
                if leaf in program.graph.updates:
                    named[path].copy_(self._read(leaf))
            for leaf, path in traced.buffers.items():
                if leaf in program.graph.updates:
                    held[path].copy_(self._read(leaf))
            if traced.rule is not None and self._taken:
                self._store_state(traced.rule, named)
        self._taken = 0

    def _store_state(self, rule: optimizers.Rule, named: Mapping[str, torch.nn.Parameter]) -> None:
        for state in rule.states:
            if state.of_step is None and state.key != "first":
                optimizers.write_state(self.optimizer, named[state.parameter], state.key, self._read(state.leaf))
        if optimizers.counts_steps(self.optimizer):
            for leaf, path in self.traced.parameters.items():
                if leaf in self.first.graph.updates:
                    count = optimizers.steps_taken(self.optimizer, named[path]) + self._taken
                    self.optimizer.state[named[path]]["step"] = torch.tensor(float(count), dtype=torch.float32)

    def _read(self, leaf: Node) -> torch.Tensor:
        held = self.first.array(self._memory(), leaf, replica=self.replica)
        return torch.from_numpy(np.array(held, order="C"))

    # ---- training ------------------------------------------------------------------------------------------
    def takes(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether a batch is like the one that was traced, and no larger."""
        held = self.traced.batch
        return len(tensors) == len(held) and all(
            0 < len(t) <= self.size
            and tuple(t.shape[1:]) == leaf.shape[1:]
            and str(t.dtype).removeprefix("torch.") == leaf.type.dtype
            for leaf, t in zip(held, tensors, strict=True)
        )

    def run(self, arrays: tuple, order: np.ndarray | None, batch_size: int, learning_rates: np.ndarray) -> np.ndarray:
        """Trains ``len(learning_rates)`` steps; see ``Engine.run``."""
        if not self._loaded:
            self.load()
        rates = np.ascontiguousarray(learning_rates, dtype=np.float64)
        steps = len(rates)
        groups = max(1, len(self.optimizer.param_groups))
        if rates.size != steps * groups:
            rates = np.ascontiguousarray(np.broadcast_to(rates.reshape(steps, -1), (steps, groups)))
        samples = len(arrays[0])
        order = np.arange(samples, dtype=np.int64) if order is None else np.ascontiguousarray(order, dtype=np.int64)
        if len(order) and order.view(np.uint64).max() >= samples:  # negative ones are larger than any
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
        program, traced = self._program(size)
        self._fill(size)
        arena = self._memory()
        if program.draws:  # every batch size has a counter of its own, and all of them are one stream
            program.array(arena, STEP_COUNTER)[...] = self._counter()
        self._drawn += steps
        pointers, _held = self._pointers(program, traced, arrays)
        held = [arena, pointers, order, rates, losses]
        start, data, numbers, rate, out = [a.__array_interface__["data"][0] for a in held]
        arguments = np.array([start, data, numbers, steps, rate, out, 0], dtype=np.uint64)
        program.run(arguments, size)

    def _pointers(self, program: Program, traced: Traced, arrays: tuple) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Where the data are, and what keeps them there; looked at again where it is not what the last call had."""
        places = [(t.data_ptr(), t._version) for t in arrays]
        if self._last[0] is not arrays or self._last[1] is not program or self._last[2] != places:
            tensors = self._tensors(program, traced, arrays)
            pointers = np.array([t.data_ptr() for t in tensors], dtype=np.uint64)
            if not all(t.is_contiguous() for t in arrays):  # these are copies, of what they hold now
                return pointers, tensors
            self._last = arrays, program, places, pointers, tensors
        return self._last[3], self._last[4]

    def _counter(self) -> int:
        """The number of the next step in the stream of random draws."""
        return self.seed * 1_000_003 + self.steps_before + self._drawn

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
            if leaf in traced.limits:
                self._checked.check(leaf, tensor, traced.limits[leaf])
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
    small: bool = False,
    threads: int | None = None,
) -> NativeEngine | ClosureEngine:
    """A compiled training step.

    Args:
        model, loss, objective: as in :func:`chainrule.case`. example: one full batch, ``(inputs, target)``.
        optimizer: SGD, Adam, AdamW, RMSprop or LBFGS of torch.
        seed: of random draws.
        small: refuse what is so large that torch's kernels on all cores are faster.
        threads: that run a step together; None: as many as it is worth, at most ``torch.get_num_threads()``.
    Raises:
        UnsupportedOpError: an op, dtype or optimizer without a native form; names it.
        BackendError: something that native code cannot do here.
    """
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise BackendError(
            "native code runs on the CPU", given="parameters on another device", instead='backend="torch"'
        )
    if small:
        count = sum(p.numel() for p in model.parameters())
        if count > _SMALL:
            raise BackendError(f"{count:,} parameters: torch's kernels are as fast", required=f"at most {_SMALL:,}")
    if type(optimizer) is torch.optim.LBFGS:
        return ClosureEngine(model, loss, objective, optimizer, example)
    if not optimizers.supported(optimizer):
        raise UnsupportedOpError(f"optimizer {type(optimizer).__name__} has no native form", instead='backend="torch"')
    return NativeEngine(model, loss, objective, optimizer, example, seed, small, threads=threads)


def allowed(asked: int | None) -> Threads:
    """How many threads a step may run on: those that were asked for, or as many as torch would use."""
    if asked is not None:
        return Threads(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Threads(min(torch.get_num_threads(), cores), exact=False)


_SMALL = 3_000_000  # parameters
_SMALL_STEP = 3e9  # multiplications of a step: a tenth of a second on one core
_SMALL_GRAPH = 3_000  # nodes
_LONGEST = 5_000_000  # characters of LLVM text: seconds of compilation


def _refuse_large(graph: StepGraph) -> None:
    """Raises BackendError for a step that torch's kernels run as fast, or that would take long to compile."""
    nodes = graph.order
    if len(nodes) > _SMALL_GRAPH:
        raise BackendError(
            f"a graph of {len(nodes):,} nodes takes long to compile", required=f"at most {_SMALL_GRAPH:,}"
        )
    work = 0.0
    for node in nodes:
        found = access.accumulation(node)
        if found is not None:
            work += float(np.prod(access.sizes(node), dtype=float) * np.prod(found.sizes, dtype=float))
    if work > _SMALL_STEP:
        raise BackendError(f"{work:.1e} multiplications a step: torch's kernels are as fast")


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
