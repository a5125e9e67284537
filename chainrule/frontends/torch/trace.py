"""A torch function, module or training case as a graph: ``trace`` and ``trace_case``.

The program runs once, on the example's own tensors, under ``record``; ``untouched`` puts everything back.
What comes out is a :class:`Trace`: the graph, which leaf is which parameter, buffer and input, and every
module call. It is specialised to the example's shapes, dtypes and devices, and to the model's mode and
attributes at that moment.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

import chainrule.ops
from chainrule.errors import ChainruleError, ModelError, UnsupportedOpError
from chainrule.frontends.torch import batch as convention
from chainrule.frontends.torch.guards import Guard, OutsideDraws
from chainrule.frontends.torch.leaves import Leaves
from chainrule.frontends.torch.modules import ModuleCall
from chainrule.frontends.torch.names import Names, identifier
from chainrule.frontends.torch.record import Recorder
from chainrule.frontends.torch.source import custom_function, custom_functions, user_file
from chainrule.frontends.torch.state import State
from chainrule.frontends.torch.untouched import untouched
from chainrule.interpreters.differentiate import vjp_all
from chainrule.interpreters.repeats import Part, repeated
from chainrule.ir import Graph, Node, constant, shape_text
from chainrule.ops.opaque import Call

assert chainrule.ops  # the registry is filled by importing it

# torch has one place for pre-dispatch modes, which all threads share. Traces nest within a thread.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True, eq=False)
class Trace:
    """A traced program.

    Attributes:
        graph: inputs are the parameters, the buffers, the tensors of the batch (target last) and the
        closed-over
            tensors, each group in its own order; outputs are the loss, or the flattened tensors that came
            out.
        parameters, buffers: dotted name -> leaf; a tied parameter has several names and one leaf.
        frozen: the names of parameters with ``requires_grad=False``.
        batch_inputs: name -> leaf of each tensor of the batch, in order. captured: the same for closed-over
        tensors.
        values: leaf -> the example's tensor itself (not a copy).
        updates: buffer -> its value after the program, for buffers that it updates (the last outputs of the graph).
        guards: what Python read of values while it ran. mutations: attributes of modules that it changed.
        calls: every module call, in the order in which they ended (children before parents).
        loss: the loss, where there is one. outputs: what the model returned; output: the first of them.
        repeats: groups of modules that are the same but for their weights.
        bit_equal, largest_difference: what :meth:`compared` found, or None before.
    """

    graph: Graph
    parameters: Mapping[str, Node]
    buffers: Mapping[str, Node]
    frozen: frozenset[str]
    batch_inputs: Mapping[str, Node]
    captured: Mapping[str, Node]
    values: Mapping[Node, torch.Tensor]
    updates: Mapping[str, Node]
    guards: tuple[Guard, ...]
    mutations: tuple[str, ...]
    calls: tuple[ModuleCall, ...]
    loss: Node | None
    outputs: tuple[Node, ...]
    rerun: Callable[[], list[torch.Tensor]] = field(repr=False)
    flatten: Callable[[Any], list[torch.Tensor]] = field(repr=False)
    bit_equal: bool | None = None
    largest_difference: float | None = None

    @property
    def output(self) -> Node | None:
        """What the model returned, or the first of it."""
        return self.outputs[0] if self.outputs else None

    @property
    def opaque(self) -> Mapping[str, int]:
        """What has no declaration and is called as it is -> how often."""
        counts: dict[str, int] = {}
        for node in self.graph.nodes:
            call = node.params.get("call")
            if isinstance(call, Call):
                counts[call.name] = counts.get(call.name, 0) + 1
        return counts

    @property
    def unreached(self) -> tuple[str, ...]:
        """Trainable parameters that the loss does not depend on, or only through detach: they get no gradient."""
        if self.loss is None:
            return ()
        wanted = {path: leaf for path, leaf in self.parameters.items() if path not in self.frozen}
        found, _ = vjp_all([self.loss], [constant(1.0, self.loss.type.dtype)], list(wanted.values()), whole=True)
        return tuple(path for path, g in zip(wanted, found, strict=True) if g is None)

    @cached_property
    def repeats(self) -> tuple[tuple[str, ...], ...]:
        """Paths of modules that do the same with weights of their own, the largest first; no part of another group."""
        found: list[tuple[str, ...]] = []
        kinds: dict[str, dict[Hashable, Part]] = {}
        for call in self.calls:
            kinds.setdefault(call.class_name, {}).setdefault(call.path, (call.outputs, call.inputs))
        groups = [g for parts in kinds.values() for g in repeated(parts)]
        size = {call.path: 0 for call in self.calls}
        for path in size:
            size[path] = sum(other.startswith(f"{path}.") for other in size)
        for group in sorted(groups, key=lambda g: -size[str(g[0])]):
            paths = tuple(map(str, group))
            if not any(p.startswith(f"{whole}.") for p in paths for outer in found for whole in outer):
                found.append(paths)
        return tuple(found)

    def compared(self, outputs: Sequence[torch.Tensor]) -> Trace:
        """This trace with the verdict on ``outputs`` (of its graph), held against a new eager run.

        Equal means every bit, NaN being equal to NaN. The difference is relative to the largest value.
        """
        expected = eager(self)
        equal = all(torch.equal(*_comparable(a, b)) for a, b in zip(expected, outputs, strict=True))
        worst = max((_difference(a, b) for a, b in zip(expected, outputs, strict=True)), default=0.0)
        return replace(self, bit_equal=equal, largest_difference=worst)


def trace(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = True,
    follow: bool = False,
    root: nn.Module | None = None,
    inside: bool = False,
) -> Trace:
    """The graph of a function or module called with example arguments.

    Args:
        function: a module, or a function of tensors (and of anything else, which is then static).
        args, kwargs: example arguments; the tensors in them become inputs, called after the function's
            arguments.
        strict: refuse what has no declaration, instead of opaque nodes.
        follow: follow branches on values as the example takes them, with guards, instead of refusing them.
        root: the module whose parameters and buffers the function reads, if it is not the function itself.
        inside: the program is part of another one that is running, whose tensors it may read.
    Raises:
        UnsupportedOpError: an op, or a way to use Python, that a graph cannot hold; names module and line.
        ModelError: the function raised, or returned no tensor.
    """
    kwargs = kwargs or {}
    named = convention.named_arguments(getattr(function, "forward", function), args, kwargs)
    with _ONE_AT_A_TIME:
        return _traced(
            call=lambda given: (None, function(*given[0], **given[1])),
            batch=(tuple(args), dict(kwargs)),
            named=named,
            names_of=lambda given: list(convention.leaves((tuple(given[0]), dict(given[1])))),
            roots={"": function if root is None else root},
            strict=strict,
            follow=follow,
            inside=inside,
        )


def trace_case(
    model: Callable[..., Any],
    batch: Any,
    loss: Callable[[Any, Any], Any] | str | None = None,
    objective: Callable[[Any, Any], Any] | None = None,
    strict: bool = False,
    follow: bool = True,
) -> Trace:
    """The graph of a model on a batch, by the convention of all verbs.

    Args:
        model: a module (or a function).
        batch: ``(inputs, target)`` with a loss, the inputs alone without one or with ``loss="model"``, and
        whatever
            ``objective`` takes with an objective. Inputs: a tensor, a tuple (positional) or a mapping
            (keywords).
        loss: ``(output, target) -> scalar``, or ``"model"`` when the model returns it (itself, or as
        ``.loss``).
        objective: ``(model, batch) -> scalar``, in place of a loss.
        strict, follow: as in :func:`trace`.
    Raises:
        UnsupportedOpError: an op, or a way to use Python, that a graph cannot hold; names module and line.
        ModelError: the batch or the loss is not as described, or the model raised.
    """
    mode = _mode(model, loss, objective)
    # Asked for through a function, so that a batch of another structure is refused by the same words.
    with _ONE_AT_A_TIME:
        return _traced(
            call=lambda given: _call(model, given, loss, objective, mode),
            batch=batch,
            named=convention.named_batch(model, batch, mode),
            names_of=lambda given: convention.named_batch(model, given, mode),
            roots={"": model, "loss": loss},
            strict=strict,
            follow=follow,
        )


def eager(traced: Trace) -> list[torch.Tensor]:
    """The program run again as it is, without recording: what the outputs of the graph are compared with."""
    return traced.rerun()


def loss_value(model: Any, batch: Any, loss: Any = None, objective: Any = None) -> torch.Tensor:
    """The loss of a batch, computed as the traced program would, by torch itself.

    Raises:
        ModelError: the batch or the loss is not as described.
    """
    value, _ = _call(model, batch, loss, objective, _mode(model, loss, objective))
    if value is None:
        raise ModelError("there is no loss to compute", required="loss=..., or objective=...")
    return value


# ---- calling -----------------------------------------------------------------------------------------------
def run_case(model: Any, batch: Any, loss: Any = None, objective: Any = None) -> tuple[Any, Any]:
    """(loss or None, what the model returned) of one batch by the convention of all verbs, run as it is."""
    return _call(model, batch, loss, objective, _mode(model, loss, objective))


def _mode(model: Any, loss: Any, objective: Any) -> str:
    if not callable(model):
        raise ModelError("the model cannot be called", given=type(model).__name__, required="a torch.nn.Module")
    if objective is not None and loss is not None:
        raise ModelError("both loss and objective are given", required="one of them")
    for name, value in (("loss", loss), ("objective", objective)):
        if value is not None and not callable(value) and (name, value) != ("loss", "model"):
            raise ModelError(
                f"the {name} cannot be called",
                given=repr(value),
                required='a function (output, target) -> scalar, or "model"'
                if name == "loss"
                else "a function (model, batch) -> scalar",
            )
    return "objective" if objective is not None else "none" if loss is None else "model" if loss == "model" else "loss"


def _call(model: Any, batch: Any, loss: Any, objective: Any, mode: str) -> tuple[Any, Any]:
    """(loss, what the model returned) of one batch."""
    if mode == "objective":
        return _scalar(objective(model, batch), "the objective"), ()
    if mode == "none":
        return None, convention.call_model(model, batch)
    if mode == "loss":
        inputs, target = convention.split(batch)
        output = _something(convention.call_model(model, inputs))
        return _scalar(loss(output, target), "the loss"), output
    output = _something(convention.call_model(model, batch))
    value = getattr(output, "loss", None) if not isinstance(output, torch.Tensor) else output
    if value is None and isinstance(output, Mapping):
        value = output.get("loss")
    if value is None and isinstance(output, tuple):
        value = output[0]
    rest = [tensor for _, tensor in convention.leaves(output) if tensor is not value]
    return _scalar(value, 'the loss that the model returned (loss="model")'), rest


def _something(output: Any) -> Any:
    if next(convention.leaves(output), None) is None:
        raise ModelError(
            "the model returned no tensor",
            given=convention.describe(output),
            required="a tensor, or tuples, lists, dicts or dataclasses of tensors",
            instead="return ... at the end of its forward",
        )
    return output


def _scalar(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.shape == () and value.is_floating_point():
        return value
    raise ModelError(
        f"{what} is not a scalar",
        given=convention.describe(value),
        required="one floating-point number: a tensor of shape ()",
        instead='reduction="mean" in the loss, or .mean() of it',
    )


def run_program(program: Callable[[], Any], recorder: Recorder | None, given: str) -> Any:
    """Runs the user's code; what it raises becomes a ModelError that names the user's line and the module.

    ``record`` knows this function by name: frames outside of it are not the program's.
    """
    try:
        result = program()
    except ChainruleError as error:
        raise (recorder.failure or error) if recorder is not None else error from None
    except Exception as error:
        if recorder is not None and recorder.failure is not None:
            raise recorder.failure from None
        frames = [(user_file(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
        lines = [f"{file}:{line}" for file, line in frames if file]
        place = ", ".join(p for p in (lines[-1] if lines else "", recorder.modules.place if recorder else "") if p)
        raise ModelError(
            f"the model raised {type(error).__name__}{f' at {place}' if place else ''}: {error}",
            given=given,
            required="a model that runs on this batch",
        ) from error
    if recorder is not None and recorder.failure is not None:
        raise recorder.failure
    return result


# ---- tracing -----------------------------------------------------------------------------------------------
def _traced(
    call: Callable[[Any], tuple[Any, Any]],
    batch: Any,
    named: convention.Named,
    names_of: Callable[[Any], convention.Named],
    roots: Mapping[str, Any],
    strict: bool,
    follow: bool,
    inside: bool = False,
) -> Trace:
    modules = {name: root for name, root in roots.items() if isinstance(root, nn.Module)}
    leaves = Leaves(modules)
    recorder = Recorder(modules, leaves.capture, strict, follow)
    recorder.open = inside
    tensors = leaves.declare(named)
    for tensor, node, owner in leaves.owners():
        recorder.bind(tensor, node, owner, writable=owner.startswith("buffer "))
    _refuse_backward_hooks(modules.values())
    given = convention.describe(batch)

    def program(bound: Any = batch) -> tuple[Any, Any]:
        loss, output = call(bound)
        return loss, [tensor for _, tensor in convention.leaves(_something(output) if loss is None else output)]

    def rerun() -> list[torch.Tensor]:
        with untouched(modules.values()), torch.enable_grad():
            loss, found = run_program(program, None, given)
            after = [t.detach().clone() for t in state.updated(updates)]
        return [*(t.detach() for t in (found if loss is None else [loss])), *after]

    state = State(modules.get(""))
    updates: dict[str, Node] = {}
    outside = OutsideDraws()
    with untouched(modules.values()):
        with recorder.recording():
            same = all(held is given for held, (_, given) in zip(tensors, named, strict=True))
            bound = batch if same else convention.with_leaves(batch, iter(tensors))
            loss, found = run_program(lambda: program(bound), recorder, given)
        drew = outside.end()
        results = found if loss is None else [loss]
        custom = custom_functions(results) if strict else None
        if custom is not None:
            raise UnsupportedOpError(custom_function(custom))
        nodes = [recorder.node_of(t) for t in results]
        outputs = tuple(nodes) if loss is None else tuple(n for n in map(recorder.known_node, found) if n is not None)
        updates |= state.updates(recorder, leaves.buffers)
        mutations = state.mutations()
    names = _names(leaves, recorder.modules.calls, nodes[0] if loss is not None else None, outputs)
    graph = Graph(
        inputs=tuple(leaves.nodes),
        outputs=(*nodes, *updates.values()),
        output_names=(*_output_names(len(nodes), loss is not None), *(f"new_{identifier(p)}" for p in updates)),
        names=names,
        origins={**recorder.origins, **leaves.origins()},
        draws=tuple(recorder.draws),
    )
    if strict and mutations:
        raise UnsupportedOpError(
            f"the forward pass changes {mutations[0]}",
            required="a program whose result depends on its inputs alone",
            instead="a registered buffer for what has to be kept, or nothing",
        )
    if drew and not follow:  # nobody would ask the guard
        raise UnsupportedOpError(
            "the function draws from NumPy's or Python's random generator",
            required="random numbers of torch's, which a graph draws anew at every call",
            instead="torch.rand(...), torch.randint(...) or torch.bernoulli(...)",
        )
    expected = [(tuple(t.shape), t.dtype) for _, t in named]
    return Trace(
        graph=graph,
        parameters=MappingProxyType(leaves.parameters),
        buffers=MappingProxyType(leaves.buffers),
        frozen=frozenset(leaves.frozen),
        batch_inputs=MappingProxyType(leaves.batch),
        captured=MappingProxyType(leaves.captured),
        values=MappingProxyType(leaves.values),
        updates=MappingProxyType(updates),
        guards=(*recorder.guards, *([outside.guard()] if drew else [])),
        mutations=mutations,
        calls=tuple(recorder.modules.calls),
        loss=nodes[0] if loss is not None else None,
        outputs=outputs,
        rerun=rerun,
        flatten=lambda other: _flattened([t for _, t in names_of(other)], expected, other),
    )


def _flattened(tensors: list[torch.Tensor], expected: list[Any], batch: Any) -> list[torch.Tensor]:
    if [(tuple(t.shape), t.dtype) for t in tensors] != expected:
        raise ModelError(
            "the batch differs from the one that was traced",
            given=convention.describe(batch),
            required=", ".join(f"({shape_text(shape)}) {dtype}" for shape, dtype in expected),
            instead="a new trace for batches of other shapes or dtypes",
        )
    return tensors


def _refuse_backward_hooks(modules: Iterable[nn.Module]) -> None:
    for root in modules:
        for path, module in root.named_modules():
            if module._backward_hooks or module._backward_pre_hooks:
                raise UnsupportedOpError(
                    f"module {path!r} has a backward hook, which may change the gradient",
                    required="modules without register_full_backward_hook",
                    instead="hook.remove() before, or a forward hook",
                )
        for name, parameter in root.named_parameters():
            if parameter._backward_hooks:
                raise UnsupportedOpError(
                    f"parameter {name!r} has a gradient hook, which may change the gradient",
                    required="parameters without register_hook",
                    instead="hook.remove() before",
                )


def _output_names(count: int, loss: bool) -> tuple[str, ...]:
    if loss:
        return ("loss",)
    return ("output",) if count == 1 else tuple(f"output_{k + 1}" for k in range(count))


def _names(leaves: Leaves, calls: Iterable[ModuleCall], loss: Node | None, outputs: Sequence[Node]) -> dict[str, Node]:
    """Leaves first, then the loss, then what modules returned: printers take the first name of a node."""
    names: dict[str, Node] = dict(leaves.names)
    unique: Names = leaves.unique
    if loss is not None:
        names[unique.unique("loss")] = loss
    for call in calls:
        if call.path == "loss":
            continue
        base = f"{'f' if call.has_parameters else 'h'}_{identifier_of_path(call.path)}" if call.path else "output"
        for k, node in enumerate(call.outputs):
            names[unique.unique(base if not k else f"{base}_out{k + 1}")] = node
    if loss is None and "output" not in names and len(outputs) == 1:
        names[unique.unique("output")] = outputs[0]
    return names


def identifier_of_path(path: str) -> str:
    """A module path behind ``f_`` or ``h_``: dots to underscores; numbers may stay in front."""
    return identifier(f"f.{path}").removeprefix("f_")


def _comparable(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not a.is_floating_point():
        return a, b
    return torch.nan_to_num(a, nan=0.0) + a.isnan(), torch.nan_to_num(b, nan=0.0) + b.isnan()


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape or not a.numel():
        return 0.0 if a.shape == b.shape else float("inf")
    x, y = a.double(), b.double()
    same = (x == y) | (x.isnan() & y.isnan())
    scale = x[x.isfinite()].abs().max().item() if x.isfinite().any() else 1.0
    gap = (x - y).abs()[~same]
    return gap.max().item() / (scale or 1.0) if gap.numel() else 0.0
