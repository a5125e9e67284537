"""A forward pass by compiled code, on the model's own parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter, getitem
from typing import Any

import torch

from chainrule.backends.native.access import sizes
from chainrule.backends.native.prepare import StepGraph, forward_graph, limits
from chainrule.backends.native.program import build
from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch import Surroundings, Trace, trace
from chainrule.ir import Node, toposort
from chainrule.verbs.native.shared import Checked
from chainrule.verbs.native.step import Memory, has_modes, looks, place
from chainrule.verbs.native.watch import watch

_ROOM = 64  # small results that are allocated at once


class NativeForward:
    """``f(x) -> output``: a forward pass by compiled code, on the model's own parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.surroundings = Surroundings(model)
        self.entries: dict[Any, Callable[[tuple[torch.Tensor, ...]], torch.Tensor | None]] = {}
        self.last: Callable[[tuple[torch.Tensor, ...]], torch.Tensor | None] | None = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the model returns for these inputs, without gradients.

        Raises:
            UnsupportedOpError, BackendError: native code does not cover the model.
        """
        call = self.last
        if call is not None:
            out = call(inputs)
            if out is not None:
                return out
        key = tuple([(x.shape, x.dtype) for x in inputs]), self.surroundings.now()
        call = self.entries.get(key)
        out = call(inputs) if call is not None else None
        if out is None:
            call = self.entries[key] = _ForwardEntry(self, inputs).call
            out = call(inputs)
        self.last = call
        return out


class _ForwardEntry:
    def __init__(self, forward: NativeForward, inputs: tuple[torch.Tensor, ...]) -> None:
        model = forward.model
        with torch.no_grad():
            example = model(*inputs)
        if not isinstance(example, torch.Tensor):
            raise UnsupportedOpError("a model that returns more than one tensor in native code")
        case = trace(model, inputs)
        if case.guards or case.updates or case.mutations:
            raise UnsupportedOpError(
                "a forward pass that branches on values or changes the model", instead="model.eval(), or eager"
            )
        (output,) = forward_graph([_only(case)])
        named = {p: t for p, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
        leaves = {leaf: path for path, leaf in [*case.parameters.items(), *case.buffers.items()]}
        order = toposort([output])
        if output.is_leaf:
            raise UnsupportedOpError("a model that returns its input in native code")
        held = [leaf for leaf in leaves if leaf in set(order)]
        graph = StepGraph(None, {}, {}, {leaf: leaves[leaf] for leaf in held}, (), (output,))
        batch = [leaf for leaf in case.batch_inputs.values() if leaf.shape]
        program = build(graph, batch, (), external=[output, *held])
        self.weights = [named[leaves[leaf]] for leaf in held]
        self.checks = [
            (*place(model, leaves[leaf], "_parameters" if leaves[leaf] in case.parameters else "_buffers"), tensor)
            for leaf, tensor in zip(held, self.weights, strict=True)
        ]
        known = {*leaves, *batch}
        self.limited = [
            (k, leaf, limit) for leaf, limit in limits(order).items() for k, b in enumerate(batch) if b is leaf
        ]
        self.memory = Memory(program, len(held) + 1, len(program.batch), 0)
        self.memory.external = self.weights
        self.memory.constants({n: t for n, t in case.values.items() if n not in known})
        last = len(program.batch)
        self.slots = [program.batch.index(leaf) if leaf in program.batch else last for leaf in batch]
        self.shape, self.dtype = sizes(output), example.dtype
        self.modules = [m for m in model.modules() if has_modes(m)]
        self.same = watch(model, None, None, forward.surroundings, trained=False)
        self.kinds = list(map(looks, inputs))
        self.holders = [holder for holder, _, _ in self.checks]
        self.names = [name for _, name, _ in self.checks]
        self.call = self._caller()

    def _caller(self) -> Callable[[tuple[torch.Tensor, ...]], torch.Tensor | None]:
        """``call(inputs)``: the output, or None where the entry is not for these inputs any more."""
        memory, slots, shape, dtype = self.memory, self.slots, self.shape, self.dtype
        holders, names, modules, kinds = self.holders, self.names, self.modules, self.kinds
        modes = [m.training for m in modules]
        training, contiguous, pointer = attrgetter("training"), torch.Tensor.is_contiguous, torch.Tensor.data_ptr
        data, tensors, code, address = memory.data, memory.tensors, memory.program.code, memory.address
        held = memory.point(holders, names, 1) or []
        limited, checked, same = self.limited, Checked(), self.same
        room: list[torch.Tensor] = []  # for outputs

        def call(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
            nonlocal held
            if list(map(looks, inputs)) != kinds:
                return None
            if list(map(training, modules)) != modes or not same():
                return None
            try:
                found = list(map(pointer, map(getitem, holders, names)))
            except (KeyError, TypeError):
                return None
            if found != held:
                held = memory.point(holders, names, 1) or []
                if not held:
                    return None
            for k, leaf, limit in limited:
                checked.check(leaf, inputs[k], limit)
            if not all(map(contiguous, inputs)):
                inputs = tuple(x.contiguous() for x in inputs)
            for slot, tensor in zip(slots, inputs):  # noqa: B905 -- their number was compared above; strict takes time
                data[slot] = tensor.data_ptr()
            if not room:
                room.extend(_outputs(shape, dtype))
            out = room.pop()
            tensors[0] = out.data_ptr()
            code(address)
            return out

        return call


def _outputs(shape: tuple[int, ...], dtype: torch.dtype) -> Sequence[torch.Tensor]:
    """Tensors for results, each at a cache line of its own: small ones by one allocation for many."""
    count, line = math.prod(shape), 64
    if not 0 < count * dtype.itemsize <= 4 * line:
        return [torch.empty(shape, dtype=dtype)]
    apart = -(-count * dtype.itemsize // line) * line // dtype.itemsize
    rows = torch.empty(_ROOM * apart, dtype=dtype).view(_ROOM, apart)
    return rows[:, :count].view(_ROOM, *shape).unbind()


def _only(case: Trace) -> Node:
    if case.output is None or len(case.outputs) != 1:
        raise UnsupportedOpError("a model that returns more than one tensor in native code")
    return case.output
