"""Runs a program on its real tensors and writes down, op by op, the graph that it is.

A dispatch mode sits above autograd and above torch's decompositions (the PreDispatch key that
``torch.export`` uses), so it sees ``linear`` and ``layer_norm`` whole, and every call knows which module,
which line and which grad mode it was made in. Each call is lowered at once (``lower``); what a tensor means is
kept in ``meanings``.

Nothing passes through in silence. What a graph cannot hold raises here with module and line: writes into the
user's tensors, derivatives taken inside the program. What it can hold only as it is, without a closed form, is
refused where ``strict`` and is otherwise an opaque node (``calls``), a guard on a value that Python read
(``guards``) or a random draw (``draws``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._C._functorch import maybe_current_level  # type: ignore[import]
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from chainrule.errors import ChainruleError, ShapeError, UnsupportedOpError
from chainrule.frontends.torch import autocast, deferred, guards, inner_transforms
from chainrule.frontends.torch import lower as lowering
from chainrule.frontends.torch.calls import opaque_call, opaque_function
from chainrule.frontends.torch.complex_calls import ComplexCalls
from chainrule.frontends.torch.draws import drawn, generator_state
from chainrule.frontends.torch.meanings import FOLDED, Meanings, Refused, memory_of
from chainrule.frontends.torch.memory import of_the_same_bits, strided
from chainrule.frontends.torch.modules import ModuleStack
from chainrule.frontends.torch.nesting import flat, mapped, tensors
from chainrule.frontends.torch.python_side import PythonSide, custom_calls
from chainrule.frontends.torch.readings import KNOWN_THEN, READS, VERDICTS, deciding_operands
from chainrule.frontends.torch.source import custom_function, here
from chainrule.ir import OPS, Node, Origin, apply, item, rebuild, toposort
from chainrule.ops.batch_normalization import running_statistics


class Recorder(ComplexCalls, ProxyTorchDispatchMode):
    """Records the graph of everything that runs while it is active.

    A subclass of torch's proxy mode because torch admits no other class at the PreDispatch key; nothing of
    the parent is used (it would import sympy, dynamo and inductor, which takes longer than most traces).

    Args:
        roots: name -> module, for module paths (see :class:`ModuleStack`).
        leaf: makes the leaf of a closed-over tensor that the trace meets.
        strict: whether only what is declared may occur (for closed forms), or also opaque calls.
        follow: whether branches on values are followed as the example takes them, with a guard.
    """

    def __init__(
        self,
        roots: Mapping[str, torch.nn.Module],
        leaf: Callable[[torch.Tensor], Node],
        strict: bool = True,
        follow: bool = False,
    ) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        Meanings.__init__(self, leaf)
        self.modules = ModuleStack(roots, self.known_node)
        self.origins: dict[Node, Origin] = {}
        self.failure: ChainruleError | None = None
        self.strict, self.follow = strict, follow
        self.guards: list[guards.Guard] = []
        self.draws: list[Node] = []
        self._suspended = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch wraps the handler in something that imports dynamo

    def __enter__(self) -> Recorder:
        TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything in the block is recorded; module hooks, modes and grad mode end with it."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.modules.watching())
            stack.enter_context(PythonSide(self))
            if not self.strict:
                stack.enter_context(custom_calls(self))
            stack.enter_context(autocast.unshared())
            stack.enter_context(inner_transforms.taken_over(active))
            stack.enter_context(enable_python_dispatcher())
            stack.enter_context(self)
            yield

    # ---- one call ------------------------------------------------------------------------------------------
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or func.namespace == "prim" or self._suspended:
            return func(*args, **kwargs)
        name, _ = lowering.key_of(func)
        operands = list(tensors((*args, *kwargs.values())))
        if maybe_current_level() is not None:
            if not inner_transforms.only_vmap():
                self.fail("a torch.func transform inside the traced program", instead="grad, grad_and_value or vmap")
            below = inner_transforms.physical(operands)
            if below is not None:  # vmap's own kernel: the calls that it makes come back here, one by one
                with self:
                    return func.redispatch(below, *args, **kwargs)
        casting = autocast.key_for(func, operands)
        if casting is not None:  # autocast's own kernel: its casts and the op behind them come back here, one by one
            with self:
                return func.redispatch(casting, *args, **kwargs)
        if name == "lift_fresh" and self._meaning.get(operands[0]) is None:
            self._meaning[operands[0]] = FOLDED  # torch.tensor(...) of numbers in the program
        meanings = [self.meaning(t) for t in operands]
        depends = any(m is not FOLDED for m in meanings) and name not in lowering.VALUE_FREE
        origin = self._origin(func)
        self._refuse_writes(func, args, kwargs)
        if depends and any(t.is_complex() for t in operands):
            return self._complex(func, args, kwargs, operands, origin)
        if depends and func._schema.is_mutable and not lowering.is_in_place(func) and name not in _HIDDEN_WRITES:
            return self._written_out(func, args, kwargs)
        deciding = [t for t in deciding_operands(func, args) if self.depends(t)] if depends else []
        if depends and name not in READS and lowering.decomposes(func, args, kwargs):
            if deciding:  # read by pointers inside
                self._refuse_reads(func, name, deciding)
                self._guard(func, "", operands, deciding, None, origin)
            return self._decomposed(func, args, kwargs, origin)
        if depends:
            self._refuse_reads(func, name, deciding)
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        recorded = depends or seeded
        if recorded:
            self.count()
        # Before the call: it may write into a constant, or move a generator.
        prepared = self._prepared(args, kwargs, meanings, deciding) if recorded else None
        state = generator_state() if seeded else None
        in_place = recorded and lowering.is_in_place(func)
        before = self.on_memory_of(args[0]) if in_place else []
        # Written under no_grad, a tensor keeps the derivative that it had.
        kept = self.known_node(args[0]) if in_place and args[0].requires_grad and not torch.is_grad_enabled() else None
        with inner_transforms.without_python_kernels():  # what eager execution runs
            out = func(*args, **kwargs)
        if depends:
            self._guard(func, name, operands, deciding, out, origin)
        outputs = list(tensors((out,)))
        if any(out is t for t in operands) and not lowering.is_in_place(func):
            return out  # nothing was done (contiguous() of what is so): the tensor means what it meant
        if prepared is None or (name in KNOWN_THEN and len(deciding) == len(operands)):
            results: Sequence[Any] = [FOLDED] * len(outputs)
        else:
            drew = state is not None and (generator_state() != state or _would_draw(func, prepared, outputs))
            stream = len(self.draws) if drew else None
            results = self._results(func, (args, kwargs), prepared, out, origin, stream)
        if kept is not None and isinstance(results[0], Node):
            results = self.originated([apply(OPS["straight_through"], results[0], kept)], origin, cut=False)
        for tensor, result in zip(outputs, results, strict=True):
            self._meaning[tensor] = result
        if in_place and outputs and results[0] is not FOLDED and name not in _TURNS:
            self.renew(before, outputs[0], origin)
        if name in _HIDDEN_WRITES and isinstance(args[3], torch.Tensor) and args[5] and args[0].numel():
            self._new_statistics(name, args, results[0], origin)
        return out

    def _decomposed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], origin: Origin) -> Any:
        """torch's own composition of smaller ops, which is what eager execution runs, recorded op by op."""
        with self:
            out = func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        outputs = list(tensors((out,)))
        if any(t.is_floating_point() and self.meaning(t) is FOLDED for t in outputs):
            # Filled by pointers, without torch's ops: nothing was recorded. The call as a whole is.
            prepared = self._prepared(args, kwargs, [self.meaning(t) for t in tensors((*args, *kwargs.values()))])
            results = self._results(func, (args, kwargs), prepared, out, origin, None)
            for tensor, result in zip(outputs, results, strict=True):
                self._meaning[tensor] = result
        return out

    def _written_out(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An ``out=`` variant: the same op without it, and its results copied to where they belong."""
        places = [a.name for a in func._schema.arguments if a.is_out]
        if not places or any(key not in kwargs for key in places):
            self.fail(
                f"{func} writes into its arguments and is not declared", required="an op that returns new tensors"
            )
        packet = getattr(getattr(torch.ops, func.namespace), lowering.key_of(func)[0].split("::")[-1])
        with self:
            found = packet(*args, **{key: value for key, value in kwargs.items() if key not in places})
            for place, result in zip((kwargs[key] for key in places), tensors((found,)), strict=True):
                if place.shape != result.shape:
                    self.fail(
                        f"{func} changes the size of what it writes into",
                        required=f"out= of shape {tuple(result.shape)}",
                    )
                place.copy_(result)
        outs = tuple(kwargs[key] for key in places)
        return outs[0] if len(outs) == 1 else outs

    def _prepared(
        self, args: Any, kwargs: Mapping[str, Any], meanings: Sequence[Any], known: Sequence[torch.Tensor] = ()
    ) -> Any:
        """Arguments with nodes for tensors, constants for those that are ``known``, or the Refused among them."""
        refused = next((m for m in meanings if isinstance(m, Refused)), None)
        if refused is not None:
            return refused

        def operand(value: Any) -> Any:
            guarded = any(value is t for t in known)
            return lowering.constant_of(value) if guarded else self._operand(value)

        return [mapped(a, operand) for a in args], {k: mapped(a, operand) for k, a in kwargs.items()}

    def _results(
        self, func: Any, given: Any, prepared: Any, out: Any, origin: Origin, stream: int | None
    ) -> Sequence[Any]:
        """What the outputs of one call mean."""
        outputs = list(tensors((out,)))
        if isinstance(prepared, Refused) or not outputs:
            return [prepared] * len(outputs)
        args, kwargs = prepared
        if any(t.is_nested for t in outputs):
            return [Refused(self.refusal(f"{func} gives a nested tensor", required="dense tensors"))] * len(outputs)
        if any(t.is_complex() for t in outputs):  # made of real ones
            if self.strict or stream is not None:
                return [Refused(self.refusal(f"{func} gives complex numbers", required="real numbers"))] * len(outputs)
            parts = [mapped(a, self._part) for a in given[0]], {k: mapped(a, self._part) for k, a in given[1].items()}
            return self._settled(deferred.deferred_call(func, *parts, out), outputs, origin)
        found: list[Node] | None = None
        try:
            if stream is None:
                found = strided(lowering.key_of(func)[0], given[0], args, outputs[0])
                found = lowering.nodes_of(func, args, kwargs, outputs) if found is None else found
                found = of_the_same_bits(lowering.key_of(func)[0], given[0], args, found, outputs[0])
            else:
                found = drawn(func, given[0], given[1], args, outputs[0], stream)
                for tensor, node in zip(outputs, found or (), strict=found is not None):
                    lowering.check_type(func, tensor, node)
            problem = UnsupportedOpError(f"{func} draws random numbers and is not declared")
        except ShapeError as error:  # our rule is narrower than torch's: the model runs, but is not expressed
            problem = UnsupportedOpError(
                f"{func}: {error.what}", given=error.given, required=error.required, instead=error.instead
            )
        except UnsupportedOpError as error:
            problem = error
        if found is None and not self.strict:
            try:
                node_of = self._node_before(given, args, kwargs)
                whole = opaque_call(func, given[0], given[1], node_of, out, problem.what, stream)
                found = [item(whole, k) for k in range(len(outputs))] if len(outputs) > 1 else [whole]
            except (UnsupportedOpError, ShapeError) as error:
                problem = error if isinstance(error, UnsupportedOpError) else UnsupportedOpError(error.what)
        if found is None:
            return [Refused(problem.located(str(origin)))] * len(outputs)
        if None in found:  # what a kernel keeps for its own backward: no program reads it
            rest = Refused(UnsupportedOpError(f"a by-product of {func} is not declared").located(str(origin)))
            known = iter(self.originated([n for n in found if n is not None], origin))
            return [rest if n is None else next(known) for n in found]
        if stream is not None:
            self.draws += [n for n in toposort(found) if not n.op.pure and n not in self.draws]
        return self.originated(found, origin)

    def originated(self, found: list[Node], origin: Origin, cut: bool = True) -> list[Node]:
        """The nodes of a call, cut from derivatives where gradients are off, with the place they come from."""
        if cut and not torch.is_grad_enabled():
            found = [apply(OPS["stop_gradient"], n) if n.type.is_float else n for n in found]
        for node in toposort(found, stop=self.origins.__contains__):
            if "name" not in node.params:  # a leaf does not come from the line that first reads it
                self.origins.setdefault(node, origin)
        return found

    def _node_before(self, given: Any, args: Any, kwargs: Any) -> Callable[[torch.Tensor], Node]:
        """tensor -> its node as it was before the call."""
        own = tensors((*given[0], *given[1].values()))
        nodes = [n for n in flat((*args, *kwargs.values())) if isinstance(n, Node)]
        table = {id(t): n for t, n in zip(own, nodes, strict=True)}
        return lambda tensor: table[id(tensor)]

    def _operand(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, torch.Tensor) else lowering.plain(value)

    def _new_statistics(self, name: str, args: Sequence[Any], result: Any, origin: Origin) -> None:
        """What the running mean and variance mean after a batch."""
        new: Sequence[Any] = [result] * 2
        if isinstance(result, Node):
            try:
                new = self.originated(list(running_statistics(result)), origin)
            except UnsupportedOpError as error:
                new = [Refused(error.located(str(origin)))] * 2
        for tensor, node in zip(args[3:5], new, strict=True):
            self._meaning[tensor] = node

    # ---- what Python reads ---------------------------------------------------------------------------------
    def _guard(
        self,
        func: Any,
        name: str,
        operands: Sequence[Any],
        deciding: Sequence[torch.Tensor],
        out: Any,
        origin: Origin,
    ) -> None:
        read = READS.get(name)
        if read is None and torch.Tag.data_dependent_output in func.tags:
            read = guards.number
        if read is not None:
            expected = out if name in VERDICTS else read(*operands)
            self.guards.append(guards.Guard(tuple(map(self.node_of, operands)), read, expected, str(origin)))
        for tensor in deciding:
            self.guards.append(guards.Guard((self.node_of(tensor),), guards.numbers, tensor.tolist(), str(origin)))

    def read_out(self, tensor: torch.Tensor) -> None:
        """Python takes the numbers of a tensor out of torch: refused, or a guard.

        Raises:
            UnsupportedOpError: the tensor depends on the inputs, and only what is declared may occur.
        """
        if not self.follow or isinstance(self.meaning(tensor), Refused):
            self.fail_read()
        place = str(self._origin(None))
        self.guards.append(guards.Guard((self.node_of(tensor),), guards.numbers, tensor.tolist(), place))

    # ---- custom autograd.Functions -------------------------------------------------------------------------
    def custom(self, cls: Any, apply_: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call of a custom autograd.Function: one opaque node, whose backward is the Function's own."""
        own = [a for a in args if isinstance(a, torch.Tensor)]
        if cls is CheckpointFunction and not self._suspended:  # its backward is that of what it calls
            with torch.set_grad_enabled(torch.is_grad_enabled() and any(t.requires_grad for t in own)):
                return args[0](*args[2:])
        if self._suspended or all(self.meaning(t) is FOLDED for t in own):
            return self.unrecorded(apply_, args, kwargs)
        origin = self._origin(None)
        nodes = [self.node_of(t) for t in own]
        state, versions = generator_state(), [t._version for t in own]
        casting = autocast.current()
        out = self.unrecorded(apply_, args, kwargs)
        if [t._version for t in own] != versions:
            self.fail(f"autograd.Function {cls.__name__!r} writes into its arguments", instead="a copy (.clone())")
        flat = list(tensors((out,)))

        def call(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rest = iter(operands)
            given = [next(rest) if isinstance(a, torch.Tensor) else a for a in args]
            with casting():
                return tuple(tensors((apply_(*given, **kwargs),)))

        stream = len(self.draws) if generator_state() != state else None
        single = len(flat) == 1
        function = (lambda *operands: call(*operands)[0]) if single else call
        whole = opaque_function(f"autograd.Function {cls.__name__}", function, nodes, flat, stream)
        if stream is not None:
            self.draws.append(whole)
        found = self.originated([whole] if single else [item(whole, k) for k in range(len(flat))], origin)
        for tensor, node in zip(flat, found, strict=True):
            self._meaning[tensor] = node
        return out

    # ---- derivatives inside of the program -----------------------------------------------------------------
    def unrecorded(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls a function that is not part of the program."""
        with self.paused():
            return function(*args, **kwargs)

    def substitute(self, image: Mapping[Node, Node]) -> None:
        """Puts nodes in the place of leaves that stood for them, in everything that is known by now."""
        known = [(t, m) for t, m in self._meaning.items() if isinstance(m, Node)]
        calls, read = self.modules.calls, [n for g in self.guards for n in g.nodes]
        nodes = [*(m for _, m in known), *(n for c in calls for n in (*c.inputs, *c.outputs)), *self.draws, *read]
        done = rebuild(nodes, image=image)
        for tensor, node in known:
            self._meaning[tensor] = done[node]
        calls[:] = [
            replace(c, inputs=tuple(done[n] for n in c.inputs), outputs=tuple(done[n] for n in c.outputs))
            for c in calls
        ]
        self.draws[:] = [done[n] for n in self.draws]
        self.guards[:] = [replace(g, nodes=tuple(done[n] for n in g.nodes)) for g in self.guards]
        for node, origin in list(self.origins.items()):
            self.origins.setdefault(done.get(node, node), origin)

    def means(self, tensor: torch.Tensor, node: Node) -> None:
        """Declares what a tensor means, with the place where the program is."""
        (self._meaning[tensor],) = self.originated([node], self._origin(None))

    @contextmanager
    def outside(self) -> Iterator[None]:
        """In the block another program may be recorded: torch admits one recorder at a time."""
        with self.paused():
            mode = torch._ops.unset_mode_pre_dispatch(torch._C._TorchDispatchModeKey.PROXY)
            try:
                yield
            finally:
                torch._ops._set_mode_pre_dispatch(mode)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs in the block is not part of the program."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    @property
    def suspended(self) -> bool:
        """Whether what runs now is inside a call that is recorded as a whole."""
        return self._suspended

    # ---- refusals ------------------------------------------------------------------------------------------
    def _refuse_writes(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuses, before it happens, a write into parameters, buffers, the batch or closed-over tensors."""
        written = [
            t
            for k, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
            for t in tensors((args[k],) if k < len(args) else (kwargs.get(a.name),))
        ]
        name, _ = lowering.key_of(func)
        if name == "detach_":  # no number changes
            return
        if name in _HIDDEN_WRITES and isinstance(args[3], torch.Tensor) and args[5]:  # running statistics are updated
            written = [t for t in args[3:5] if t is not None]
        for tensor in written:
            owner = self._owners.get(memory_of(tensor))
            if owner is not None and memory_of(tensor) not in self._writable:
                self.fail(
                    f"{func} writes into {owner}",
                    required="a forward pass that leaves parameters and batch as they are",
                    instead="a copy (.clone()) before the write",
                )

    def _refuse_reads(self, func: Any, name: str, deciding: Sequence[torch.Tensor]) -> None:
        """Refuses what a graph cannot hold: numbers that Python reads, sizes that depend on values."""
        if not self.follow and (torch.Tag.data_dependent_output in func.tags or name in READS):
            self.fail_read()
        if not self.follow and deciding:
            self.fail(f"{func} gives a tensor whose size depends on values", required="sizes that do not")
        # An op that may write or alias and is not declared cannot be run on trust.
        if torch.Tag.maybe_aliasing_or_mutating in func.tags and lowering.rule_for(func) is None:
            self.fail(f"{func} is not declared")

    def fail_read(self) -> None:
        """Raises: Python reads a value that depends on the inputs."""
        self.fail(
            "Python reads the value of a tensor that depends on the inputs (a branch, item(), numpy())",
            required="a program that does the same ops whatever the values are",
            instead="torch.where(condition, a, b) for a branch",
        )

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises UnsupportedOpError with the place, and remembers it: a `try` in the model hides nothing."""
        error = self.refusal(what, required=required, instead=instead)
        self.failure = self.failure or error
        raise error

    def refusal(self, what: str, *, required: str = "", instead: str = "") -> UnsupportedOpError:
        """The error with the place where the program is now."""
        origin = self._origin(None)
        place = str(origin) if str(origin) != "?" else "the model"
        return UnsupportedOpError(f"{place}: {what}", required=required, instead=instead)

    # ---- where the program is ------------------------------------------------------------------------------
    def _origin(self, func: Any) -> Origin:
        """Module path and line of the user's. Refuses a custom Function that is running."""
        file, line, function = here()
        if function is not None and func is not None:
            self.fail(custom_function(function))
        return Origin(module=self.modules.path, file=file, line=line)


def _would_draw(func: Any, prepared: Any, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a call on tensors without storage, which moves no generator, is one of those that do."""
    if isinstance(prepared, Refused) or not outputs or not outputs[0].is_meta:
        return False
    try:
        lowering.lower(func, prepared[0], prepared[1], lowering.dtype_name(outputs[0].dtype))
    except (UnsupportedOpError, ShapeError):
        return True
    return False


def active() -> Recorder | None:
    """The recorder of the program that is running now, if one is."""
    mode = torch._ops._get_dispatch_mode_pre_dispatch(torch._C._TorchDispatchModeKey.PROXY)
    return mode if isinstance(mode, Recorder) and not mode.suspended else None


# In-place ops that change how a tensor reads its memory, and write nothing.
_TURNS = frozenset(("transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "detach_"))

# Ops that update running statistics (arguments 3 and 4, if argument 5 is true) and do not say so in their schema.
_HIDDEN_WRITES = frozenset(
    ("batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")
)
