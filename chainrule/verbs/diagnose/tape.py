"""One eager run, written down: every tensor op with its module, its line and what it did to the numbers.

A dispatch mode at the key above autograd sees each op whole (``linear``, ``layer_norm``, ``cross_entropy_loss``) and
sees what an exported graph would lose: ``detach``, ``no_grad`` blocks, comparisons. The model runs as it would without
us: same kernels, same draws, same autograd graph. Sizes of values are taken as they pass, those of gradients by hooks
on the tensors; neither is kept. Nothing is refused: an op in no table is recorded all the same.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._C._functorch import maybe_current_level  # type: ignore[import]
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from chainrule.frontends.torch.modules import around_calls
from chainrule.frontends.torch.places import Place, here
from chainrule.frontends.torch.python_side import custom_calls
from chainrule.verbs.diagnose.recurrent import GATES, gates
from chainrule.verbs.diagnose.torch_ops import (
    ACTIVATIONS,
    LOG_SOFTMAXES,
    LOSSES,
    MOVEMENT,
    RECURRENT,
    SHAPE_ONLY,
    base_name,
)
from chainrule.verbs.diagnose.values import Call, Liveness, ModuleRun, Value, tensors_in


class Tape(ProxyTorchDispatchMode):
    """Records while it is entered by :meth:`recording`.

    A subclass of torch's proxy mode because torch admits no other class at that key; nothing of the parent is used.

    Args:
        roots: name -> module, for module paths. sizes: whether to take sizes of values and gradients.
        watch: called with (value, gradient) for each gradient that flows; in place of taking its size.
    """

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        sizes: bool = True,
        watch: Callable[[Value, torch.Tensor], torch.Tensor | None] | None = None,
    ) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self.calls: list[Call] = []
        self.leaves: list[Value] = []
        self.runs: list[ModuleRun] = []
        self.strangers: dict[str, nn.Module] = {}  # modules that ran and are no submodules, by where they ran
        self.apart: list[nn.Module] = []  # those of them that ran in no module: in the loss
        self.reentrant: set[int] = set()  # calls inside of a reentrant checkpoint
        self.functions: dict[Any, tuple[Call, Any]] = {}  # custom autograd.Function -> its first call and arguments
        self.adopted: dict[str, Value] = {}
        self.no_grad_at = Place()
        self.sizes, self.watch = sizes, watch
        self._values: dict[int, tuple[Any, Value]] = {}
        self._paths: dict[int, str] = {}
        for root, module in roots.items():
            for path, child in module.named_modules():
                self._paths.setdefault(id(child), ".".join(p for p in (root, path) if p))
        self._running: list[tuple[nn.Module, str, tuple[Value, ...]]] = []
        self._suspended = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Tape:
        TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)

    # ---- leaves --------------------------------------------------------------------------------------------
    def declare(self, tensor: torch.Tensor, name: str, learned: bool = False, data: bool = False) -> Value:
        """A tensor that exists before the run."""
        value = self._value(tensor, None)
        value.name, value.learned, value.data = name, learned, data
        self.leaves.append(value)
        return value

    def of(self, tensor: Any) -> Value | None:
        """The latest Value of a tensor."""
        held = self._values.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def _value(self, tensor: torch.Tensor, producer: Call | None) -> Value:
        reference = weakref.ref(tensor)
        value = Value(tuple(tensor.shape), tensor.dtype, producer=producer, tensor=reference)
        value.differentiable = tensor.requires_grad
        self._values[id(tensor)] = (reference, value)
        return value

    def _known(self, tensor: torch.Tensor) -> Value:
        found = self.of(tensor)
        if found is None:
            found = self._value(tensor, None)
            if tensor.requires_grad and tensor.is_leaf:
                source = self._same_numbers(tensor)
                if source is not None:  # nn.Parameter(h): the numbers of a value, without its history
                    call = self._record("Parameter", (source,), {}, (source,), (), here(), torch.is_grad_enabled())
                    found.producer, call.outputs = call, (found,)
                    found.data, found.forward = source.data, source.forward
                found.learned = True
                found.name = self._adopted(tensor, found)
                self.leaves.append(found)
        return found

    def _same_numbers(self, leaf: torch.Tensor) -> Value | None:
        """The value that a new leaf lies on, if it has a history."""
        at = leaf.data_ptr() if leaf.layout == torch.strided and leaf.numel() else 0
        for reference, value in reversed(list(self._values.values()) if at else []):
            tensor = reference()
            if tensor is not None and tensor is not leaf and value.differentiable and value.producer is not None:
                if tensor.shape == leaf.shape and tensor.layout == torch.strided and tensor.data_ptr() == at:
                    return value
        return None

    def _adopted(self, tensor: torch.Tensor, value: Value) -> str:
        """The name of a tensor that sits in the running module in place of its parameter: sharding gathers it so."""
        if self._running:
            module, path, _ = self._running[-1]
            for own, p in module._parameters.items():
                if p is tensor and id(module) in self._paths:
                    name = f"{path}.{own}" if path else own
                    self.adopted[name] = value
                    return f"parameter {name}"
        return ""

    # ---- running -------------------------------------------------------------------------------------------
    @contextmanager
    def recording(self) -> Iterator[Tape]:
        """Everything in the block is recorded; module hooks and modes end with it."""
        with ExitStack() as stack:
            stack.enter_context(around_calls(self._before, self._after))
            stack.enter_context(_PythonSide(self))
            stack.enter_context(custom_calls(self))  # type: ignore[arg-type]
            stack.enter_context(enable_python_dispatcher())
            stack.enter_context(self)
            yield self

    def _before(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if path is None:
            path = self.path
            if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
                self.strangers.setdefault(f"{path}|{id(module)}", module)
                if not self._running:
                    self.apart.append(module)
        self._running.append((module, path, tuple(self._tensors_known(args))))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self._running and self._running[-1][0] is not module:
            self._running.pop()  # a module that raised inside a `try` of the user's
        if not self._running:
            return
        _, path, inputs = self._running.pop()
        if id(module) in self._paths:
            inputs += tuple(self._tensors_known(kwargs))
            self.runs.append(ModuleRun(path, module, inputs, tuple(self._tensors_known(output))))

    def _tensors_known(self, value: Any) -> Iterator[Value]:
        for tensor in tensors_in(value):
            found = self.of(tensor)
            if found is not None:
                yield found

    @property
    def path(self) -> str:
        """The running module; ``""`` outside of all."""
        return self._running[-1][1] if self._running else ""

    @property
    def suspended(self) -> bool:
        """Whether what runs now is part of a call that is recorded whole."""
        return self._suspended

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or self._suspended or maybe_current_level() is not None:
            return func(*args, **kwargs)
        place = here()
        name, in_place = _name_of(func)
        # Before the call: an in-place op makes another Value of the same tensor.
        inputs = () if name in SHAPE_ONLY else tuple(self._known(t) for t in tensors_in((args, kwargs)))
        arguments, keywords = self._described(args), {k: self._described(v) for k, v in kwargs.items()}
        liveness = self._liveness(func, name, args, kwargs)
        tracking = torch.is_grad_enabled()
        with no_python_dispatcher():
            out = func(*args, **kwargs)
        call = self._record(name, arguments, keywords, inputs, out, place, tracking)
        call.in_place, call.liveness = in_place, liveness
        if self.sizes and name in RECURRENT and not name.endswith("_cell"):
            call.again = partial(func, *args, **kwargs)
        if self.sizes and (name in LOSSES or (name in _MEASURES_OF_ERROR and self._near_the_loss(call))):
            call.held = tuple(t.detach() for t in tensors_in((args, kwargs)))
            self._weigh(call, out)
        elif self.sizes and name in LOG_SOFTMAXES:
            self._weigh_picks(call, out)
        return out

    def _near_the_loss(self, call: Call) -> bool:
        return not call.module and len(call.inputs) == 1

    def _weigh(self, call: Call, out: Any) -> None:
        if isinstance(out, torch.Tensor) and out.requires_grad:

            def hook(grad: torch.Tensor) -> None:
                call.weight = float(grad.detach().sum())

            out.register_hook(hook)

    def _weigh_picks(self, call: Call, out: Any) -> None:
        """Of log-probabilities: least and largest entry of their gradient, and whether a row has several."""
        if isinstance(out, torch.Tensor) and out.requires_grad and out.dim():

            def hook(grad: torch.Tensor) -> None:
                g = grad.detach()
                call.weight = (float(g.min()), float(g.max()), bool(((g != 0).sum(-1) > 1).any()))

            out.register_hook(hook)

    def _record(
        self, name: str, arguments: Any, keywords: Any, inputs: Any, out: Any, place: Place, tracking: bool
    ) -> Call:
        call = Call(len(self.calls), name, arguments, keywords, inputs, (), self.path, place, tracking)
        if not tracking:
            call.no_grad = self.no_grad_at
        learned, data = any(v.learned for v in inputs), any(v.data for v in inputs)
        outputs = []
        for tensor in tensors_in(out):
            value = self._value(tensor, call)
            value.learned, value.data = learned, data
            if name == "broadcast_tensors" and len(outputs) < len(inputs):  # each output is its own input
                value.learned, value.data = inputs[len(outputs)].learned, inputs[len(outputs)].data
            outputs.append(value)
            if tensor.is_floating_point() and tensor.numel():
                self._measure(tensor, value, moved=name in MOVEMENT and len(inputs) > 0)
        call.outputs = tuple(outputs)
        for value in dict.fromkeys(inputs):
            value.consumers.append(call)
        self.calls.append(call)
        return call

    def _measure(self, tensor: torch.Tensor, value: Value, moved: bool) -> None:
        if self.sizes and not (moved and value.producer is not None and value.producer.inputs[0].forward is not None):
            with torch.no_grad():
                value.forward = sizes_of(tensor)
        elif moved and value.producer is not None:
            value.forward = value.producer.inputs[0].forward
        if tensor.requires_grad and not tensor.is_leaf and (self.sizes or self.watch):
            watch = self.watch

            def hook(grad: torch.Tensor) -> torch.Tensor | None:
                if watch is not None:
                    return watch(value, grad)
                with torch.no_grad():
                    value.backward = sizes_of(grad)
                return None

            tensor.register_hook(hook)

    def _described(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._known(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._described(v) for v in value) if type(value) in (list, tuple) else tuple(value)
        return value

    def _liveness(self, func: Any, name: str, args: Any, kwargs: Any) -> Liveness | None:
        """The local derivative of an activation at its input, by torch's own rule for that very call."""
        if name in GATES and self.sizes:
            with no_python_dispatcher():
                return gates(name, args)
        known = ACTIVATIONS.get(name)
        if known is None or not self.sizes or not args or not isinstance(args[0], torch.Tensor):
            return None
        z = args[0]
        if not z.requires_grad or z.dim() < 2 or not z.numel():
            return None
        twin = getattr(getattr(torch.ops.aten, name), func._overloadname, None)
        if twin is None or any(isinstance(a, torch.Tensor) and a.dim() for a in args[1:]):
            return None
        # Hooks on saved tensors are the model's own business (activation checkpointing counts what is saved).
        plain = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        with no_python_dispatcher(), torch.enable_grad(), plain:
            leaf = z.detach().clone().requires_grad_()
            y = twin(leaf, *args[1:], **kwargs)
            y = y[0] if isinstance(y, tuple) else y
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        size = slope.abs().to(torch.float32)
        axis = self._unit_axis(self._known(z))
        units = size.transpose(0, axis).flatten(1) if axis else size.flatten(1)
        return Liveness(
            units=units.mean(1) / known.top,
            dead=units.amax(1) <= 1e-7 * known.top,  # exactly 0 of ReLU; of GELU, SiLU, ELU far out on the left
            squashed=float((size < 1e-3 * known.top).to(torch.float32).mean()),
            second=float(size.square().mean()),
        )

    def _unit_axis(self, value: Value) -> int:
        """Which dimension of a value counts units: channels after a convolution, else the last."""
        seen = 0
        current: Value | None = value
        while current is not None and current.producer is not None and seen < 8:
            name = current.producer.name
            if "conv" in name and len(value.shape) >= 3:
                return 1
            if name in ("linear", "addmm", "matmul", "mm", "bmm", "layer_norm"):
                break
            current = current.producer.inputs[0] if current.producer.inputs else None
            seen += 1
        return len(value.shape) - 1

    def bytes_made(self) -> Iterator[int]:
        """Bytes of each value that was made."""
        for call in self.calls:
            for v in call.outputs:
                yield math.prod(v.shape) * v.dtype.itemsize if call.name not in MOVEMENT else 0

    # ---- what is no op of the dispatcher -------------------------------------------------------------------
    def custom(self, cls: Any, apply_: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call of a custom autograd.Function, as one call."""
        if self._suspended:
            return apply_(*args, **kwargs)
        place = here(3)
        inputs = tuple(self._known(t) for t in tensors_in((args, kwargs)))
        arguments, tracking = self._described(args), torch.is_grad_enabled()
        held = tuple(t.detach().clone() for t in tensors_in(args)) if self.sizes and cls not in self.functions else ()
        reentrant = cls.__name__ == "CheckpointFunction"  # its layers are the user's, and run here without a record
        first = len(self.calls)
        self._suspended = not reentrant
        try:
            out = apply_(*args, **kwargs)
        finally:
            self._suspended = False
        if reentrant:
            self.reentrant |= set(range(first, len(self.calls)))
            inputs += tuple(self._tensors_known(out))
        if isinstance(out, torch.Tensor) and any(out is t for t in tensors_in(args)):
            return out
        with no_python_dispatcher():
            call = self._record("custom", arguments, dict(kwargs), inputs, out, place, tracking)
        call.function, call.held = cls, held
        self.functions.setdefault(cls, (call, args))
        return out

    def taken_out(self, name: str, tensor: torch.Tensor) -> None:
        """Python takes the numbers of a tensor out of torch: what is made of them is another tensor."""
        if not self._suspended:
            value = self._known(tensor)
            self._record(name, (value,), {}, (value,), (), here(3), torch.is_grad_enabled())

    def settle(self) -> Tape:
        """Brings all sizes over in one copy; call it when forward and backward pass are done."""
        pending: list[tuple[Value, str]] = []
        numbers: list[torch.Tensor] = []
        held: dict[int, int] = {}
        every = dict.fromkeys([*self.leaves, *(v for c in self.calls for v in (*c.inputs, *c.outputs))])
        for value in every:
            for which in ("forward", "backward"):
                pair = getattr(value, which)
                if isinstance(pair, _Numbers):
                    setattr(value, which, (pair[0], pair[1] / (math.prod(value.shape) or 1) ** 0.5))
                elif pair is not None and isinstance(pair[0], torch.Tensor):
                    if id(pair) not in held:
                        held[id(pair)] = len(numbers)
                        numbers += pair
                    pending.append((value, which))
        if numbers:
            device = numbers[0].device
            wide = [n if n.dtype == torch.float64 else n.to(device, torch.float64) for n in numbers]
            found = torch.stack(wide).tolist()
            places = [held[id(getattr(value, which))] for value, which in pending]
            for (value, which), k in zip(pending, places, strict=True):
                entries = math.prod(value.shape) or 1
                setattr(value, which, (found[k], found[k + 1] / entries**0.5))
        return self


class _Numbers(tuple[float, float]):
    """Largest absolute entry and Euclidean norm, before :meth:`Tape.settle`."""


def sizes_of(tensor: torch.Tensor) -> tuple[Any, Any]:
    """Largest absolute entry and Euclidean norm: numbers on the CPU, elsewhere tensors that nothing waits for.

    A small tensor that stays alive between large ones that come and go keeps the heap from using their places again.
    """
    t = tensor.detach()
    if t.is_sparse:
        t = t.coalesce().values()
    if not t.numel():
        zero = torch.zeros((), dtype=torch.float64)
        return zero, zero
    if t.is_complex():
        t = torch.view_as_real(t)
    # A norm adds up squares, which leave float32 at 1e-23 and 1e19: float64 sees them all, but in a copy of the tensor.
    # In between float32 is right to 1e-3 for 2e7 entries, and sizes are compared by factors.
    if t.device.type != "cpu":
        return torch.linalg.vector_norm(t, torch.inf), torch.linalg.vector_norm(t, dtype=torch.float64)
    top = float(torch.linalg.vector_norm(t, torch.inf))
    wide = torch.float32 if t.dtype != torch.float64 and 1e-15 < top < 1e14 else torch.float64
    return _Numbers((top, float(torch.linalg.vector_norm(t, dtype=wide))))


_MEASURES_OF_ERROR = frozenset({"pow", "square", "abs"})
_NAMES: dict[Any, tuple[str, bool]] = {}


def _name_of(func: Any) -> tuple[str, bool]:
    found = _NAMES.get(func)
    if found is None:
        own = func._schema.name.split("::")[-1]
        found = _NAMES[func] = (base_name(own), own != base_name(own))
    return found


_DATA: Any = torch.Tensor.data
_WAYS_OUT = {getattr(torch.Tensor, n): n for n in ("numpy", "tolist", "__array__", "item")}


class _PythonSide(TorchFunctionMode):
    """``.data`` and the ways out of torch, which never reach the dispatcher."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DATA.__get__ and not self.tape.suspended:
            out = func(*args)
            value = self.tape._known(args[0])
            with no_python_dispatcher():
                self.tape._record("data", (value,), {}, (value,), out, here(), torch.is_grad_enabled())
            return out
        if func is torch._C._set_grad_enabled and args and not args[0]:  # type: ignore[attr-defined]
            self.tape.no_grad_at = here()
        if func in _WAYS_OUT and isinstance(args[0], torch.Tensor):
            self.tape.taken_out(_WAYS_OUT[func], args[0])
        return func(*args, **(kwargs or {}))
