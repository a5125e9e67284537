"""One step on torch's own memory: what a loop of one's own calls.

Parameters, buffers and optimizer state are read and written where torch keeps them, so torch's objects are up to date
after every call. A call checks what the compiled code relies on (shapes, modes, hyperparameters, which tensors the
model and the optimizer hold, what else the program reads: ``watch``) and is compiled again where something changed.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, getitem, itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.backends.native import optimizers
from chainrule.backends.native.access import sizes
from chainrule.backends.native.draws import STEP_COUNTER
from chainrule.backends.native.prepare import StepGraph
from chainrule.backends.native.program import Program, build
from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch import Surroundings, trace_case
from chainrule.frontends.torch import batch as convention
from chainrule.ir import Node, TensorType, variable
from chainrule.verbs.native.shared import Checked
from chainrule.verbs.native.traced import traced_step
from chainrule.verbs.native.watch import watch

_MOST = 64  # steps that are kept: a program that reads a new number at every step is compiled at every step
_ROOM = 64  # losses that are allocated at once

looks = attrgetter("shape", "dtype")


class Memory:
    """Arena, and the seven numbers that compiled code is called with."""

    def __init__(self, program: Program, external: int, batches: int, rates: int) -> None:
        self.program = program
        self.external: list[torch.Tensor] = []
        size = program.layout.arena.size + 4096
        raw = np.zeros(size + 64, np.uint8)
        shift = -raw.ctypes.data % 64
        self.arena = raw[shift : shift + size]
        self.data = (ctypes.c_uint64 * (batches + 1))()  # the last takes what is not read
        self.rates = (ctypes.c_double * max(rates, 1))()
        self.tensors = (ctypes.c_uint64 * (external + 1))()
        self.order = np.arange(max([sizes(leaf)[0] for leaf in program.batch if leaf.shape], default=1), dtype=np.int64)
        self.arguments = (ctypes.c_uint64 * 7)(
            self.arena.ctypes.data,
            ctypes.addressof(self.data),
            self.order.ctypes.data,
            1,
            ctypes.addressof(self.rates),
            0,
            ctypes.addressof(self.tensors),
        )
        self.address = ctypes.addressof(self.arguments)

    def point(self, holders: Sequence[Any], names: Sequence[str], first: int = 0) -> list[int] | None:
        """The addresses of external tensors as they are now, where each is still the tensor that was compiled in.

        Raises:
            UnsupportedOpError: one of them is not contiguous.
        """
        for holder, name, tensor in zip(holders, names, self.external, strict=True):
            if holder.get(name) is not tensor or tensor.device.type != "cpu":
                return None
            if not tensor.is_contiguous():
                raise UnsupportedOpError(
                    "a parameter that is not contiguous in memory", instead="parameter.data.contiguous()"
                )
        found = list(map(torch.Tensor.data_ptr, self.external))
        self.tensors[first : first + len(found)] = found
        return found

    def constants(self, captured: Mapping[Node, torch.Tensor]) -> None:
        """Writes what does not change."""
        for leaf in self.program.layout.views:
            if leaf.op.native == "constant":
                self.program.array(self.arena, leaf)[...] = leaf.params["literal"].array
            elif leaf in captured:
                self.program.array(self.arena, leaf)[...] = captured[leaf].detach().numpy()


class Stream:
    """The stream of random draws of a step: one for all kinds of batches, so that a short one goes on with it."""

    def __init__(self, seed: int | None) -> None:
        self._seed, self._taken = seed, 0

    def next(self) -> int:
        """The number of the next step."""
        if self._seed is None:  # so that torch.manual_seed decides the masks
            self._seed = int(torch.randint(2**31 - 1, ()))
        self._taken += 1
        return self._seed * 1_000_003 + self._taken - 1


class NativeStep:
    """``step(x, y) -> loss``: gradients and update in one call of compiled code.

    Args:
        model, loss, objective: as in :func:`chainrule.case`. optimizer: None: gradients are put into ``.grad``.
        seed: of random draws; without one it is drawn from torch's generator when it is first needed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Any,
        optimizer: torch.optim.Optimizer | None,
        objective: Any = None,
        seed: int | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.objective = model, loss, optimizer, objective
        self.stream = Stream(seed)
        self.surroundings = Surroundings((model, loss, objective))
        self.entries: OrderedDict[Any, _Entry] = OrderedDict()
        self.entry: _Entry | None = None

    def __call__(self, *batch: Any) -> torch.Tensor:
        """The loss of a batch, after which the model is trained by one step.

        Raises:
            UnsupportedOpError, BackendError: at the first call, where native code does not cover the model.
        """
        entry = self.entry
        if entry is not None:
            loss = entry.call(batch)
            if loss is not None:
                return loss
        entry = self.entry = self._entry(batch)
        loss = entry.call(batch)
        assert loss is not None
        return loss

    def prepare(self, *batch: Any) -> None:
        """Compiles for batches like this one, without a step.

        Raises:
            UnsupportedOpError, BackendError: native code does not cover the model.
        """
        self.entry = self._entry(batch)

    def _entry(self, batch: tuple[Any, ...]) -> _Entry:
        given = batch[0] if len(batch) == 1 else batch
        key = (
            tuple((name, tuple(t.shape), t.dtype) for name, t in convention.leaves(given)),
            self.surroundings.now(),
            None if self.optimizer is None else optimizers.describe(self.optimizer),
        )
        found = self.entries.get(key)
        if found is None:
            found = self.entries[key] = _Entry(self, given)
            if len(self.entries) > _MOST:
                self.entries.popitem(last=False)
        else:
            found.bind()
        return found


class _Entry:
    """A compiled step for one kind of batch, with the tensors that it works on."""

    def __init__(self, step: NativeStep, batch: Any) -> None:
        model, optimizer = step.model, step.optimizer
        if any(p.device.type != "cpu" for p in model.parameters()):
            raise UnsupportedOpError("native code runs on the CPU", instead='backend="torch"')
        if optimizer is not None and (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks):
            raise UnsupportedOpError("an optimizer with hooks in native code", instead='backend="torch"')
        case = trace_case(model, batch, step.loss, step.objective)
        traced = traced_step(case, model, optimizer, counted=True)
        self.model, self.optimizer, self.traced = model, optimizer, traced
        self.same = watch(model, step.loss, step.objective, step.surroundings)
        graph, rates = traced.graph, () if traced.rule is None else traced.rule.rates
        if optimizer is None:
            self.gradients = {
                variable(f"{graph.parameters[leaf]}:grad", TensorType(leaf.shape, leaf.type.dtype)): leaf
                for leaf in graph.gradients
            }
            updates = {into: graph.gradients[leaf] for into, leaf in self.gradients.items()}
            graph = StepGraph(graph.loss, {**graph.updates, **updates}, {}, graph.parameters, graph.unused)
        else:
            self.gradients = {}
        order = set(graph.order) | set(graph.updates)
        self.leaves = [leaf for leaf in (*traced.parameters, *traced.buffers) if leaf in order]
        self.states = [] if traced.rule is None else list(traced.rule.states)
        external = [*self.leaves, *(s.leaf for s in self.states), *self.gradients]
        program = build(graph, traced.batch, rates, external=external)
        self.memory = Memory(program, len(external), len(program.batch), len(rates))
        self.memory.constants(traced.captured)
        self.stream = step.stream if program.draws else None
        self.counter = program.array(self.memory.arena, STEP_COUNTER) if program.draws else None
        self.modules = [m for m in model.modules() if has_modes(m)]
        self.modes = [m.training for m in self.modules]
        self.options = [] if optimizer is None else [_options(g) for g in optimizer.param_groups]
        found = [t for _, t in convention.leaves(batch)]
        self.flat = isinstance(batch, torch.Tensor) or (
            isinstance(batch, tuple) and all(isinstance(t, torch.Tensor) for t in batch)
        )
        self.kinds = list(map(looks, found))
        last = len(program.batch)
        self.slots = [program.batch.index(leaf) if leaf in program.batch else last for leaf in traced.batch]
        self.limited = [(k, leaf, traced.limits[leaf]) for k, leaf in enumerate(traced.batch) if leaf in traced.limits]
        self.checked = Checked()
        loss = graph.loss
        assert loss is not None
        self.dtype = getattr(torch, loss.type.dtype)
        self.bind()

    def bind(self) -> None:
        """Finds the tensors that model and optimizer hold now; state and gradients that are missing are made.

        Raises:
            UnsupportedOpError: one that native code cannot work on.
        """
        model, optimizer, traced = self.model, self.optimizer, self.traced
        named = dict(model.named_parameters(remove_duplicate=False))
        self.holders: list[Any] = []
        self.names: list[str] = []
        for leaf in self.leaves:
            table, path = (
                ("_parameters", traced.parameters[leaf])
                if leaf in traced.parameters
                else (
                    "_buffers",
                    traced.buffers[leaf],
                )
            )
            holder, name = place(model, path, table)
            self.holders.append(holder)
            self.names.append(name)
        for state in self.states:
            assert optimizer is not None
            parameter = named[state.parameter]
            held = optimizer.state[parameter]
            if held.get(state.key) is None:
                held[state.key] = (
                    torch.zeros((), dtype=torch.float32)
                    if state.key == "step"
                    else torch.zeros_like(parameter, memory_format=torch.contiguous_format)
                )
            self.holders.append(held)
            self.names.append(state.key)
        for leaf in self.gradients.values():
            parameter = named[traced.parameters[leaf]]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            self.holders.append(_Gradient(parameter))
            self.names.append("grad")
        self.state = None if optimizer is None else optimizer.state
        tensors = list(map(getitem, self.holders, self.names))
        leaves = [*self.leaves, *(s.leaf for s in self.states), *self.gradients]
        for leaf, tensor in zip(leaves, tensors, strict=True):
            if tuple(tensor.shape) != leaf.shape or str(tensor.dtype).removeprefix("torch.") != leaf.type.dtype:
                raise UnsupportedOpError(
                    f"{leaf.params['name']} is no longer what was compiled",
                    given=f"{tuple(tensor.shape)}, {tensor.dtype}",
                    required=str(leaf.type),
                    instead="a new compile_step",
                )
        self.memory.external = tensors
        self.call = self._caller()

    def _caller(self) -> Callable[[tuple[Any, ...]], torch.Tensor | None]:
        """``call(batch)``: the loss, or None, and nothing done, where the entry is not for this batch any more.

        One closure without a call into another: at a few microseconds per step these calls would be half of the time.
        """
        memory, optimizer = self.memory, self.optimizer
        holders, names = self.holders, self.names
        modules, modes, kinds = self.modules, self.modes, self.kinds
        options, state, flat, slots = self.options, self.state, self.flat, self.slots
        limited, checked = self.limited, self.checked
        stream, counter, same = self.stream, self.counter, self.same
        groups = [] if optimizer is None else optimizer.param_groups
        compiled = [(g, group, *option) for g, (group, option) in enumerate(zip(groups, options, strict=True))]
        data, rates, arguments, point = memory.data, memory.rates, memory.arguments, memory.point
        code, address, dtype = memory.program.code, memory.address, self.dtype
        training, contiguous, pointer = attrgetter("training"), torch.Tensor.is_contiguous, torch.Tensor.data_ptr
        room: list[torch.Tensor] = []  # for losses: one allocation for many
        held = point(holders, names) or []

        def call(batch: tuple[Any, ...]) -> torch.Tensor | None:
            nonlocal held
            given = batch if flat else _leaves(batch)
            if list(map(looks, given)) != kinds:
                return None
            if list(map(training, modules)) != modes or not same():
                return None
            try:
                found = list(map(pointer, map(getitem, holders, names)))
            except (KeyError, TypeError):
                return None
            if found != held:  # another tensor, or the same one with other memory
                held = point(holders, names) or []
                if not held:
                    return None
            if optimizer is not None:
                now = optimizer.param_groups
                if optimizer.state is not state or len(now) != len(compiled):
                    return None
                for g, group, get, values in compiled:
                    if now[g] is not group or get(group) != values:
                        return None
                    rates[g] = group["lr"]
            for k, leaf, limit in limited:
                checked.check(leaf, given[k], limit)
            if not all(map(contiguous, given)):
                given = [t.contiguous() for t in given]
            for slot, tensor in zip(slots, given):  # noqa: B905 -- their number was compared above; strict takes time
                data[slot] = tensor.data_ptr()
            if not room:
                room.extend(torch.empty(_ROOM, dtype=dtype).unbind())
            if stream is not None and counter is not None:
                counter[...] = stream.next()
            loss = room.pop()
            arguments[5] = loss.data_ptr()
            code(address)
            return loss

        return call


def _leaves(batch: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors of a batch."""
    given = batch[0] if len(batch) == 1 else batch
    return [t for _, t in convention.leaves(given)]


class _Gradient:
    """``.grad`` of a parameter, read like a dictionary."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        self.parameter = parameter

    def __getitem__(self, _: str) -> torch.Tensor | None:
        return self.parameter.grad

    def get(self, _: str) -> torch.Tensor | None:
        """The gradient."""
        return self.parameter.grad


_MODELESS = (
    nn.Linear,
    nn.Sequential,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Softmax,
    nn.Flatten,
    nn.Conv1d,
    nn.Conv2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.LayerNorm,
)


def has_modes(module: nn.Module) -> bool:
    """Whether a module may do something else in evaluation."""
    return type(module) not in _MODELESS


def _options(group: Mapping[str, Any]) -> tuple[Callable[[Mapping[str, Any]], Any], Any]:
    """What reads the options of a group that are compiled in, and their values."""
    get = itemgetter(*[k for k in group if k not in ("params", "lr", "initial_lr")])
    return get, get(group)


def place(model: torch.nn.Module, path: str, table: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a tensor, and its name there."""
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), table), name
