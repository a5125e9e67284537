"""Runs a program on its real tensors and writes down, op by op, the graph that it is.

A dispatch mode sits above autograd and above torch's decompositions (the PreDispatch key that ``torch.export`` uses), so
it sees ``linear`` and ``layer_norm`` whole, and every call knows which module, which line and which grad mode it was made
in. Each call is lowered at once (``lower``); what a tensor means is then one of three things:

    Node      depends on an input of the trace (parameter, buffer, batch, closed-over tensor)
    FOLDED    does not: it is a number known now, and becomes a constant where a node uses it
    Refused   cannot be expressed: the error is raised only if the result depends on it

Nothing passes through in silence. What a graph cannot hold raises here with module and line: branches on values, writes
into the user's tensors, custom ``autograd.Function``s, derivatives taken inside the program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch.autograd.function import BackwardCFunction
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from chainrule.errors import ChainruleError, ShapeError, UnsupportedOpError
from chainrule.frontends.torch import lower as lowering
from chainrule.frontends.torch.modules import ModuleStack
from chainrule.ir import OPS, Node, Origin, apply, toposort

_HERE = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_APPLY = torch.autograd.Function.apply.__func__.__code__  # the frame that every custom autograd.Function runs in

FOLDED = object()


class Refused:
    """A tensor that the graph cannot hold, with the error that says why."""

    def __init__(self, error: ChainruleError) -> None:
        self.error = error


class Recorder(ProxyTorchDispatchMode):
    """Records the graph of everything that runs while it is active.

    A subclass of torch's proxy mode because torch admits no other class at the PreDispatch key; nothing of the parent
    is used (it would import sympy, dynamo and inductor, which takes longer than most traces).

    Args:
        roots: name -> module, for module paths (see :class:`ModuleStack`).
        leaf: makes the leaf of a closed-over tensor that the trace meets.
    """

    def __init__(self, roots: Mapping[str, torch.nn.Module], leaf: Callable[[torch.Tensor], Node]) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self.modules = ModuleStack(roots, self.known_node)
        self.origins: dict[Node, Origin] = {}
        self.failure: ChainruleError | None = None
        self._leaf = leaf
        self._meaning = WeakTensorKeyDictionary()
        self._owners: dict[int, str] = {}  # storages that belong to the user -> whose
        self._files: dict[str, str | None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch wraps the handler in something that imports dynamo

    def __enter__(self) -> Recorder:
        return TorchDispatchMode.__enter__(self)

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything in the block is recorded; module hooks, modes and grad mode end with it."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.modules.watching())
            stack.enter_context(_PythonSide(self))
            stack.enter_context(enable_python_dispatcher())
            stack.enter_context(self)
            yield

    # ---- what tensors mean -------------------------------------------------------------------------------------------
    def bind(self, tensor: torch.Tensor, node: Node, owner: str) -> None:
        """Declares ``tensor`` an input; ``owner`` is how messages call it. Its memory is then protected."""
        self._meaning[tensor] = node
        self._owners.setdefault(_memory(tensor), owner)

    def meaning(self, tensor: torch.Tensor) -> Any:
        """A Node, FOLDED or Refused. A tensor never seen before comes from outside: it becomes an input."""
        found = self._meaning.get(tensor)
        if found is None:
            found = self._meaning[tensor] = self._discovered(tensor)
        return found

    def _discovered(self, tensor: torch.Tensor) -> Any:
        memory = _memory(tensor)
        relative = memory not in self._owners and any(_memory(t) == memory for t in self._meaning)
        if relative or tensor.grad_fn is not None:
            return Refused(
                self.refusal(
                    "a tensor that was made from another one outside of what can be traced",
                    required="tensors made by torch functions inside the model, or independent of it",
                    instead="the same with torch functions, or .detach() of it",
                )
            )
        try:
            node = self._leaf(tensor)
        except ChainruleError as error:
            return Refused(error)
        self._owners.setdefault(memory, f"the closed-over tensor {node.params['name']!r}")
        return node

    def node_of(self, tensor: torch.Tensor) -> Node:
        """The node of a tensor.

        Raises:
            ChainruleError: the graph cannot hold it.
        """
        meaning = self.meaning(tensor)
        if isinstance(meaning, Refused):
            raise meaning.error
        return lowering.constant_of(tensor) if meaning is FOLDED else meaning

    def known_node(self, tensor: torch.Tensor) -> Node | None:
        """The node of a tensor that depends on inputs; None for every other."""
        meaning = self._meaning.get(tensor)
        return meaning if isinstance(meaning, Node) else None

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's numbers change with the inputs, as far as is known."""
        return self.meaning(tensor) is not FOLDED

    # ---- one call ----------------------------------------------------------------------------------------------------
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or func.namespace == "prim":
            return func(*args, **kwargs)
        name, _ = lowering.key_of(func)
        operands = list(_tensors((*args, *kwargs.values())))
        if name == "lift_fresh" and self._meaning.get(operands[0]) is None:
            self._meaning[operands[0]] = FOLDED  # torch.tensor(...) of numbers in the program
        meanings = [self.meaning(t) for t in operands]
        depends = any(m is not FOLDED for m in meanings) and name not in lowering.VALUE_FREE
        origin = self._origin(func)
        self._refuse_writes(func, args, kwargs, origin)
        if depends:
            self._refuse_reads(func, name, origin)
        with no_python_dispatcher():  # the kernels that eager execution runs, not torch's Python versions of them
            out = func(*args, **kwargs)
        outputs = [out] if isinstance(out, torch.Tensor) else list(out) if isinstance(out, (tuple, list)) else []
        if not any(isinstance(o, torch.Tensor) for o in outputs):
            return out
        if depends or torch.Tag.nondeterministic_seeded in func.tags:
            results = self._results(func, args, kwargs, outputs, meanings, origin)
        else:
            results = [FOLDED] * len(outputs)
        for tensor, result in zip(outputs, results, strict=True):
            self._meaning[tensor] = result
        if lowering.is_in_place(func) and results[0] is not FOLDED:
            self._forget_views(outputs[0], origin)
        return out

    def _results(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Sequence[torch.Tensor],
        meanings: Sequence[Any],
        origin: Origin,
    ) -> Sequence[Any]:
        refused = next((m for m in meanings if isinstance(m, Refused)), None)
        if refused is not None:
            return [refused] * len(outputs)
        try:
            found = self._lowered(func, args, kwargs, outputs)
        except ShapeError as error:  # our rule is narrower than torch's: the model runs, but is not expressed
            problem = UnsupportedOpError(
                f"{func}: {error.what}", given=error.given, required=error.required, instead=error.instead
            )
            return [Refused(problem.located(str(origin)))] * len(outputs)
        except UnsupportedOpError as error:
            return [Refused(error.located(str(origin)))] * len(outputs)
        if not torch.is_grad_enabled():
            found = [apply(OPS["stop_gradient"], n) if n.type.is_float else n for n in found]
        for node in toposort(found, stop=self.origins.__contains__):
            if "name" not in node.params:  # a leaf does not come from the line that first reads it
                self.origins.setdefault(node, origin)
        return found

    def _lowered(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[torch.Tensor]
    ) -> list[Node]:
        device_type = outputs[0].device.type
        if torch.is_autocast_enabled(device_type):
            raise UnsupportedOpError(f"{func} under autocast is not supported yet")
        if torch.Tag.nondeterministic_seeded in func.tags and lowering.rule_for(func) is None:
            raise UnsupportedOpError(f"{func} draws random numbers, which is not supported yet")
        nodes = [_mapped(a, self._operand) for a in args]
        named = {key: _mapped(a, self._operand) for key, a in kwargs.items()}
        dtype = lowering.dtype_name(outputs[0].dtype)
        found = lowering.lower(func, nodes, named, dtype)
        found = [found] if isinstance(found, Node) else list(found)
        for tensor, node in zip(outputs, found, strict=True):
            _check_type(func, tensor, node)
        return found

    def _operand(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, torch.Tensor) else lowering.plain(value)

    # ---- refusals ----------------------------------------------------------------------------------------------------
    def _refuse_writes(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], origin: Origin
    ) -> None:
        """Nothing is written into parameters, buffers, the batch or closed-over tensors; before it happens."""
        written = [
            t
            for k, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
            for t in _tensors((args[k],) if k < len(args) else (kwargs.get(a.name),))
        ]
        name, _ = lowering.key_of(func)
        if name in _HIDDEN_WRITES and args[5]:  # batch statistics: the running ones are updated
            written = [t for t in args[3:5] if t is not None]
        for tensor in written:
            owner = self._owners.get(_memory(tensor))
            if owner is not None:
                self.fail(
                    f"{func} writes into {owner}",
                    required="a forward pass that leaves parameters, buffers and batch as they are",
                    instead="model.eval() for running statistics, or a copy (.clone()) before the write",
                )

    def _refuse_reads(self, func: Any, name: str, origin: Origin) -> None:
        """A number that leaves the graph for Python would be frozen in it: branches, loops, sizes."""
        if torch.Tag.data_dependent_output in func.tags or name in ("is_nonzero", "item", "equal", "allclose"):
            self.fail_read()
        if name in ("nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive"):
            self.fail(f"{func} gives a tensor whose size depends on values", required="sizes that do not")
        # An op that may write or alias and is not declared cannot be run on trust.
        if torch.Tag.maybe_aliasing_or_mutating in func.tags and lowering.rule_for(func) is None:
            self.fail(f"{func} is not declared")
        if torch._C._functorch.maybe_current_level() is not None:
            self.fail("a torch.func transform inside the traced program", instead="chainrule's own, outside of it")

    def fail_read(self) -> None:
        """Raises: Python reads a value that depends on the inputs."""
        self.fail(
            "Python reads the value of a tensor that depends on the inputs (a branch, item(), bool() or numpy())",
            required="a program that does the same ops whatever the values are",
            instead="torch.where(condition, a, b) for a branch",
        )

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises UnsupportedOpError with module and line, and remembers it: a `try` in the model hides nothing."""
        error = self.refusal(what, required=required, instead=instead)
        self.failure = self.failure or error
        raise error

    def refusal(self, what: str, *, required: str = "", instead: str = "") -> UnsupportedOpError:
        """The error with the place where the program is now."""
        origin = self._origin(None)
        place = str(origin) if str(origin) != "?" else "the model"
        return UnsupportedOpError(f"{place}: {what}", required=required, instead=instead)

    def _forget_views(self, written: torch.Tensor, origin: Origin) -> None:
        """After a write, other tensors on the same memory do not mean what they meant."""
        memory = _memory(written)
        for tensor in list(self._meaning):
            if tensor is not written and _memory(tensor) == memory:
                error = UnsupportedOpError(
                    f"{origin}: a write in place into a tensor of which another view is used later",
                    required="no view of what is written, or none that is read afterwards",
                    instead="the op that returns a new tensor (torch.cat, torch.where, masked_fill, x + y)",
                )
                self._meaning[tensor] = Refused(error)

    # ---- where the program is --------------------------------------------------------------------------------------
    def _origin(self, func: Any) -> Origin:
        """Module path, and the innermost line that is neither torch's nor ours. Finds custom Functions on the way."""
        file, line = "", None
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code is _APPLY and func is not None:
                function = frame.f_locals.get("cls")
                self.fail(custom_function(function))
            if not file:
                shown = self._shown(code.co_filename)
                if shown is not None:
                    file, line = shown, frame.f_lineno
            if code.co_filename.startswith(_HERE) and code.co_name == "run_program":
                break
            frame = frame.f_back
        return Origin(module=self.modules.path, file=file, line=line)

    def _shown(self, filename: str) -> str | None:
        if filename not in self._files:
            self._files[filename] = user_file(filename)
        return self._files[filename]


# Ops that update running statistics (arguments 3 and 4, if argument 5 is true) without saying so in their schema.
_HIDDEN_WRITES = frozenset(("batch_norm", "instance_norm"))


def custom_function(function: Any) -> str:
    """The sentence about a custom autograd.Function."""
    name = getattr(function, "__name__", str(function))
    return f"custom autograd.Function {name!r}: its backward is its own, and is not declared"


def user_file(filename: str) -> str | None:
    """How a source file is shown, relative to the working directory if inside; None for torch's and our own."""
    if filename.startswith((_TORCH, _HERE, "<frozen")) or filename.endswith(("contextlib.py", "functools.py")):
        return None
    inside = filename.startswith(os.getcwd() + os.sep)
    return os.path.relpath(filename) if inside else filename


def custom_functions(tensors: Sequence[torch.Tensor]) -> str | None:
    """The name of a custom autograd.Function in the history of ``tensors``, if there is one.

    One that returns its argument unchanged calls no op, so that only autograd's own record shows it.
    """
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        function = stack.pop()
        if isinstance(function, BackwardCFunction):
            return type(function).__name__.removesuffix("Backward")
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return None


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _mapped(value: Any, one: Callable[[Any], Any]) -> Any:
    return [_mapped(v, one) for v in value] if isinstance(value, (list, tuple)) else one(value)


def _check_type(func: Any, tensor: torch.Tensor, node: Node) -> None:
    """Our rules and torch agree on shape, dtype and device of each result, or the op is refused."""
    if node.number is not None:  # a constant has no place of its own
        return
    given = (tuple(tensor.shape), lowering.dtype_name(tensor.dtype), str(tensor.device))
    ours = (node.shape, node.type.dtype, node.type.device)
    if given != ours:
        raise UnsupportedOpError(
            f"{func} with these arguments", given=f"torch's result is {given}", required=f"{ours} by our rule"
        )


class _PythonSide(TorchFunctionMode):
    """What never reaches the dispatcher: attributes of tensors, and ways out of torch."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DATA.__get__:
            return args[0].detach()  # the same value and memory, and a derivative that ends here: never lost
        if func in _WAYS_OUT and self.recorder.depends(args[0]):
            self.recorder.fail_read()
        if func in _REFUSED:
            self.recorder.fail(f"{_REFUSED[func]} inside the traced program")
        return func(*args, **(kwargs or {}))


_DATA: Any = torch.Tensor.data
_WAYS_OUT = {
    getattr(torch.Tensor, name)
    for name in ("numpy", "tolist", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__")
}
_REFUSED: dict[Any, str] = {
    _DATA.__set__: "assignment to .data",
    torch.Tensor.grad.__set__: "assignment to .grad",  # type: ignore[attr-defined]
    torch.Tensor.backward: "backward()",
    torch.autograd.grad: "torch.autograd.grad",
    torch.autograd.backward: "torch.autograd.backward",
    torch.Tensor.register_hook: "a hook on a tensor's gradient",
    torch.Tensor.set_: "set_()",
}
