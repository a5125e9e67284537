"""``torch.func.grad``, ``grad_and_value`` and ``vmap`` inside of a traced program.

vmap works below the level at which programs are recorded: its rules turn a call on batched tensors into calls on the
tensors behind them, and those are sent back to be recorded (``physical``). ``grad`` is taken by our own rules: the
argument is a leaf of its own while the function runs, so that what the function reads of the same value by another way
does not count, and afterwards the leaf is what it stood for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import torch
import torch._functorch.eager_transforms as eager_transforms
from torch._C import DispatchKey, DispatchKeySet
from torch._C import _functorch as functorch  # type: ignore[attr-defined]
from torch._dispatch.python import no_python_dispatcher
from torch._functorch import pyfunctorch
from torch.utils._pytree import tree_flatten, tree_unflatten

from chainrule.frontends.torch.lower import type_of
from chainrule.interpreters.differentiate import vjp
from chainrule.ir import Node, constant, substitute_nodes, variable
from chainrule.ops.families import zeros_like
from chainrule.ops.movement import broadcast

_NUMBERS = count()


class Recording(Protocol):
    """What is asked of the recorder."""

    def node_of(self, tensor: torch.Tensor) -> Node: ...
    def means(self, tensor: torch.Tensor, node: Node) -> None: ...
    def unrecorded(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...
    def substitute(self, image: Mapping[Node, Node]) -> None: ...
    def fail(self, what: str, *, required: str = "", instead: str = "") -> None: ...


# ---- vmap --------------------------------------------------------------------------------------------------
def physical(operands: Sequence[torch.Tensor]) -> DispatchKeySet | None:
    """The key whose kernel makes of a call under vmap the calls on the tensors behind it; None where it is one."""
    off = torch._C._dispatch_tls_is_dispatch_key_excluded
    if not off(DispatchKey.FuncTorchDynamicLayerFrontMode):
        return DispatchKeySet(DispatchKey.FuncTorchDynamicLayerFrontMode)
    if any(functorch.is_batchedtensor(t) for t in operands):
        inner = off(DispatchKey.FuncTorchBatched)  # this vmap is done: the one around it goes on
        return DispatchKeySet(DispatchKey.FuncTorchDynamicLayerBackMode if inner else DispatchKey.FuncTorchBatched)
    return None


def without_python_kernels() -> Any:
    """A context in which torch's kernels run, not its Python versions of them; vmap brings their key back by itself."""
    if functorch.maybe_current_level() is None:
        return no_python_dispatcher()
    return torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.PythonDispatcher))


def only_vmap() -> bool:
    """Whether every transform of torch.func that runs now is vmap."""
    return all(isinstance(i, pyfunctorch.VmapInterpreter) for i in pyfunctorch.retrieve_all_functorch_interpreters())


# ---- grad --------------------------------------------------------------------------------------------------
_lock = threading.Lock()
_held: list[Any] = []


@contextmanager
def taken_over(recorder_now: Callable[[], Recording | None]) -> Iterator[None]:
    """In the block torch.func's gradient is taken by the recorder of the calling thread, where there is one."""

    def grad_and_value(func: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
        recorder = recorder_now()
        if recorder is None:
            return _held[0](func, argnums, has_aux, args, kwargs)
        return _recorded(recorder, func, argnums, has_aux, args, kwargs)

    with _lock:
        _held.append(eager_transforms.grad_and_value_impl if not _held else _held[0])
        eager_transforms.grad_and_value_impl = grad_and_value
    try:
        yield
    finally:
        with _lock:
            original = _held.pop()
            if not _held:
                eager_transforms.grad_and_value_impl = original


def _recorded(recorder: Recording, func: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    trees = [tree_flatten(args[n]) for n in numbers]
    stand_ins: list[_StandIn] = []
    given = list(args)
    for n, (leaves, spec) in zip(numbers, trees, strict=True):
        made = [_StandIn(recorder, x) for x in leaves]
        stand_ins += made
        given[n] = tree_unflatten([s.tensor for s in made], spec)
    with torch.enable_grad():
        out = func(*given, **kwargs)
        out, aux = out if has_aux else (out, None)
        if not isinstance(out, torch.Tensor) or out.dim() != 0:
            recorder.fail("torch.func.grad of something that is not a scalar", required="a function that returns one")
        value, _ = _unwrapped(out)
        node = recorder.node_of(value)
        seed = broadcast(constant(1.0, node.type.dtype), node.shape)
        found = vjp([node], [seed], [s.leaf for s in stand_ins], again=True)
        image = {s.leaf: s.node for s in stand_ins}
        own = [zeros_like(s.leaf) if g is None else g for g, s in zip(found, stand_ins, strict=True)]
        found = substitute_nodes(own, image)
        recorder.substitute(image)
        rows = recorder.unrecorded(_numbers, (value, [s.physical for s in stand_ins]), {})
    gradients = []
    for g, row, s in zip(found, rows, stand_ins, strict=True):
        recorder.means(row, g)
        gradients.append(_wrapped(row, s.path))
    by_argument, start = [], 0
    for leaves, spec in trees:
        by_argument.append(tree_unflatten(gradients[start : start + len(leaves)], spec))
        start += len(leaves)
    gradient = by_argument[0] if isinstance(argnums, int) else tuple(by_argument)
    return gradient, (out, aux) if has_aux else out


class _StandIn:
    """An argument that is derived by: a tensor like it, and the leaf that it means while the function runs."""

    def __init__(self, recorder: Recording, x: torch.Tensor) -> None:
        held, path = _unwrapped(x)
        levels = [(i.level(), i.batch_size()) for i in pyfunctorch.retrieve_all_functorch_interpreters()]  # type: ignore[attr-defined]
        if path and len(path) != len(levels):
            recorder.fail("torch.func.grad under nested vmap by a value that only one of them maps")
        if levels and not path:  # each sample has a gradient of its own by a value that they share
            sizes = [size for _, size in levels]
            held = _outside(lambda: held.expand(*sizes, *held.shape))
            path = [(level, 0) for level, _ in levels]
        self.path, self.node = path, recorder.node_of(held)
        if held.requires_grad:
            alias = recorder.unrecorded(lambda: _outside(lambda: held.view_as(held)), (), {})
        else:
            alias = recorder.unrecorded(lambda: _outside(lambda: held.detach().requires_grad_()), (), {})
        self.physical = alias
        self.leaf = variable(f"inner argument {next(_NUMBERS)}", type_of(alias))
        recorder.means(alias, self.leaf)
        self.tensor = _wrapped(alias, path)


def _numbers(value: torch.Tensor, by: list[torch.Tensor]) -> list[torch.Tensor]:
    def run() -> list[torch.Tensor]:
        if not value.requires_grad:
            return [torch.zeros_like(x) for x in by]
        found = torch.autograd.grad(value, by, torch.ones_like(value), create_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, by, strict=True)]

    return _outside(run)


def _outside(run: Callable[[], Any]) -> Any:
    """The result of a call on tensors behind those of vmap."""
    with pyfunctorch.temporarily_clear_interpreter_stack():
        return run()


def _unwrapped(tensor: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """The tensor behind one of vmap's, and (level, batch dimension) of each layer, the outermost level first."""
    path: list[tuple[int, int]] = []
    while functorch.is_functorch_wrapped_tensor(tensor):
        path.insert(0, (functorch.maybe_get_level(tensor), functorch.maybe_get_bdim(tensor)))
        tensor = functorch.get_unwrapped(tensor)
    return tensor, path


def _wrapped(tensor: torch.Tensor, path: Sequence[tuple[int, int]]) -> torch.Tensor:
    for level, dim in path:
        tensor = functorch._add_batch_dim(tensor, dim, level)
    return tensor
