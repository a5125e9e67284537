"""A function as a traced program with a derivative: compiled once per signature, kept, and run.

``Programs`` belongs to one transform of one function. Its key is the tree, shapes, dtypes, devices and layouts of the
arguments and everything else the function reads (``frontends.torch.Surroundings``); a call with an equal key runs the
compiled code, any other call traces again.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _functorch as functorch  # type: ignore[attr-defined]
from torch._C._functorch import maybe_current_level  # type: ignore[import]
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from chainrule.backends.torch import Compiled, compile
from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch import Surroundings, Trace, active, autocast, modules_of
from chainrule.frontends.torch import trace as trace_function
from chainrule.interpreters.kernels import selected
from chainrule.interpreters.partition import halves
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Graph, Node, fresh_variable

Argnums = int | tuple[int, ...]
Derive = Callable[["Program", bool], Sequence[Node]]


class Program:
    """One function traced on arguments of one signature.

    Attributes:
        results: nodes of the tensors that it returned (aux left out). output_tree: how they were returned.
    """

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: Any, has_aux: bool, inside: bool) -> None:
        self.args_tree: TreeSpec
        flat, self.args_tree = tree_flatten((tuple(args), dict(kwargs)))
        self._static = [None if isinstance(v, torch.Tensor) else v for v in flat]
        self._positions = [k for k, v in enumerate(flat) if isinstance(v, torch.Tensor)]
        self._func, self.has_aux = func, has_aux
        self.seed_leaves: list[Node] = []
        self.plan: Any = None  # how a transform puts together what it has computed,
        self.plan_nodes: list[Node] = []  # and of which nodes
        modules = modules_of(func)
        self.trace: Trace = trace_function(
            self._flat,
            tuple(flat[k] for k in self._positions),
            strict=False,
            root=_joined(modules) if modules else None,
            inside=inside,
        )
        if self.trace.mutations:
            raise UnsupportedOpError(
                f"the function changes {self.trace.mutations[0]}",
                required="a function whose result depends on its arguments alone",
                instead="a registered buffer for what has to be kept",
            )
        self.inputs = list(self.trace.batch_inputs.values())
        count = self.output_tree.num_leaves
        self.results = list(self.trace.outputs[:count])
        self.aux = list(self.trace.outputs[count:])

    def _flat(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The function from a flat list of tensors to a flat tuple of tensors."""
        flat = list(self._static)
        for position, tensor in zip(self._positions, tensors, strict=True):
            flat[position] = tensor
        args, kwargs = tree_unflatten(flat, self.args_tree)
        out = self._func(*args, **kwargs)
        aux: Any = None
        if self.has_aux:
            if not isinstance(out, tuple) or len(out) != 2:
                raise ModelError("with has_aux the function returns a pair", given=type(out).__name__)
            out, aux = out
        leaves, self.output_tree = tree_flatten(out)
        wrong = next((v for v in leaves if not isinstance(v, torch.Tensor)), None)
        if wrong is not None or not leaves:
            raise ModelError(
                "the function does not return tensors alone",
                given=type(wrong).__name__ if leaves else "nothing",
                required="a tensor, or a tree of tensors",
            )
        rest, self.aux_tree = tree_flatten(aux)
        self.aux_static = [None if isinstance(v, torch.Tensor) else v for v in rest]
        self.aux_positions = [k for k, v in enumerate(rest) if isinstance(v, torch.Tensor)]
        return (*leaves, *(rest[k] for k in self.aux_positions))

    # ---- arguments -----------------------------------------------------------------------------------------
    def argument_trees(self, argnums: Argnums) -> list[TreeSpec]:
        """The tree of each of these positional arguments."""
        args_spec = self.args_tree.children()[0]
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        found = []
        for number in numbers:
            if not -args_spec.num_children <= number < args_spec.num_children:
                raise ModelError(
                    f"there is no argument {number} to derive by",
                    given=f"{args_spec.num_children} positional arguments",
                    required=f"argnums below {args_spec.num_children}",
                )
            found.append(args_spec.children()[number])
        return found

    def leaves(self, argnums: Argnums) -> list[Node]:
        """The leaves of these arguments, flat.

        Raises:
            ModelError: one of them is not a floating-point tensor.
        """
        args_spec = self.args_tree.children()[0]
        self.argument_trees(argnums)
        starts = [0]
        for child in args_spec.children():
            starts.append(starts[-1] + child.num_leaves)
        found = []
        for number in (argnums,) if isinstance(argnums, int) else tuple(argnums):
            at = number % args_spec.num_children
            for position in range(starts[at], starts[at + 1]):
                if position not in self._positions:
                    raise ModelError(
                        f"argument {number} holds something that is not a tensor",
                        given=type(self._static[position]).__name__,
                        required="tensors to derive by",
                        instead="torch.tensor(...) of it",
                    )
                leaf = self.inputs[self._positions.index(position)]
                if not leaf.type.is_float:
                    raise ModelError(
                        f"argument {number} is {leaf.type.dtype}",
                        required="floating-point tensors to derive by",
                        instead=".double() or .float() of it",
                    )
                found.append(leaf)
        return found

    def tensors(self, args: Any, argnums: Argnums) -> list[torch.Tensor]:
        """The tensors of these arguments, flat."""
        held = [args[number] for number in ((argnums,) if isinstance(argnums, int) else argnums)]
        return held if all(isinstance(h, torch.Tensor) for h in held) else [t for h in held for t in tree_flatten(h)[0]]

    def seeds(self, of: Sequence[Node]) -> list[Node]:
        """Leaves for cotangents or tangents of these nodes: inputs that are given after the others."""
        taken = (*self.trace.graph.inputs, *self.seed_leaves)
        start = len(self.seed_leaves)
        new = [fresh_variable(f"seed_{k}", n.type, taken) for k, n in enumerate(of, start)]
        self.seed_leaves += new
        return new

    def scalar(self) -> Node:
        """The only result.

        Raises:
            ModelError: it is not one floating-point number.
        """
        if len(self.results) != 1 or self.results[0].shape != () or not self.results[0].type.is_float:
            shown = ", ".join(str(r.type) for r in self.results)
            raise ModelError(
                "the gradient of something that is not a scalar",
                given=shown,
                required="a function that returns one floating-point number",
                instead="jacrev for a Jacobian, vjp for a product with a cotangent; has_aux=True for more results",
            )
        return self.results[0]


class Run:
    """One call: results, the derivatives that need nothing else, and a function of seeds for those that do."""

    def __init__(self, compiled: Pair, values: Sequence[Any], tracked: bool) -> None:
        self.program, self._compiled, self._tracked = compiled.program, compiled, tracked
        program = self.program
        start = 0
        if compiled.values:
            count = program.output_tree.num_leaves
            leaf = program.output_tree.is_leaf()
            self.output = values[0] if leaf else tree_unflatten(list(values[:count]), program.output_tree)
            self.aux: Any = None
            if program.has_aux:
                rest = list(program.aux_static)
                for position, value in zip(program.aux_positions, values[count:], strict=False):
                    rest[position] = value
                self.aux = tree_unflatten(rest, program.aux_tree)
            start = count + len(program.aux_positions)
        self.derived = list(values[start : start + compiled.early])
        self.residuals = list(values[start + compiled.early + len(program.trace.updates) :])

    def outputs(self) -> Any:
        """The value, with what came beside it."""
        return (self.output, self.aux) if self.program.has_aux else self.output

    def at(self, seeds: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The derivatives for these cotangents or tangents."""
        run = self._compiled.second.tracked if self._tracked else self._compiled.second
        return list(run(*self.residuals, *seeds))

    def by_argument(self, derived: Sequence[torch.Tensor], argnums: Argnums) -> Any:
        """Derivatives in the trees of the arguments."""
        specs = self.program.argument_trees(argnums)
        if isinstance(argnums, int) and specs[0].is_leaf():
            return derived[0]
        remaining = iter(derived)
        trees = [tree_unflatten([next(remaining) for _ in range(spec.num_leaves)], spec) for spec in specs]
        return trees[0] if isinstance(argnums, int) else tuple(trees)


@dataclass(frozen=True, eq=False)
class Pair:
    """A compiled program: what needs no seed, and the rest.

    Attributes:
        early: derivatives among what needs no seed. values: whether the function's own results are computed too.
    """

    program: Program
    first: Compiled
    second: Compiled
    early: int
    values: bool = True


class Programs:
    """The compiled programs of one transform of one function.

    Args:
        func: the function. name: of the transform. derive: ``(program, whole) -> the derivative's nodes``.
        inductor: whether what needs no seed is handed to ``torch.compile``.
        values: whether the function's own results are wanted.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        name: str,
        derive: Derive,
        has_aux: bool,
        inductor: bool = False,
        values: bool = True,
    ) -> None:
        if not callable(func):
            raise ModelError(f"{name} takes a function", given=type(func).__name__)
        self.func, self.name, self.derive, self.has_aux = func, name, derive, has_aux
        self.inductor, self.values = inductor, values
        self._kept: dict[Any, Pair] = {}
        self._surroundings = Surroundings(func)

    def __call__(self, args: Any, kwargs: Any) -> Run:
        """The results for these arguments, and what their derivatives need."""
        recorder = active()
        if not kwargs and all(isinstance(a, torch.Tensor) for a in args):
            flat, spec = args, len(args)  # the common case, without walking trees
            tensors = args
        else:
            flat, spec = tree_flatten((tuple(args), dict(kwargs)))
            tensors = [v for v in flat if isinstance(v, torch.Tensor)]
        reads = self._surroundings.now()
        tracked = torch.is_grad_enabled() and (
            recorder is not None or any(t.requires_grad for t in tensors) or self._surroundings.wants_gradient
        )
        mapped = maybe_current_level() is not None  # under vmap or a transform of torch.func
        tracked = tracked or mapped
        key = (spec, tuple(map(_signature, flat)), tracked, mapped, autocast.state(), reads)
        if key not in self._kept:
            self._report(flat)
            if mapped:
                args, kwargs = tree_map(_one_of, (tuple(args), dict(kwargs)))
            with recorder.outside() if recorder is not None else temporarily_clear_interpreter_stack():
                self._kept[key] = self._compiled(args, kwargs, tracked)
        pair = self._kept[key]
        traced = pair.program.trace
        given = dict(zip(pair.program.inputs, tensors, strict=True))
        values = [given[i] if i in given else traced.values[i] for i in pair.first.graph.inputs]
        found = pair.first.tracked(*values) if tracked else pair.first(*values)
        run = Run(pair, found, tracked)
        if not pair.values and not run.derived and not run.residuals:
            return run  # nothing was asked of it: whatever answers instead writes
        written = found[len(found) - len(run.residuals) - len(traced.updates) :]
        with torch.no_grad():
            for path, new in zip(traced.updates, written, strict=False):
                traced.values[traced.buffers[path]].copy_(new)
        return run

    @staticmethod
    def nested() -> bool:
        """Whether a call now would be part of a program that is being traced, or of torch.func's."""
        return active() is not None or maybe_current_level() is not None

    def _compiled(self, args: Any, kwargs: Any, tracked: bool) -> Pair:
        program = Program(self.func, args, kwargs, self.has_aux, inside=tracked)
        # Code that is differentiated again keeps to ops that have derivatives.
        derived = list(self.derive(program, not tracked))
        graph, seeds = program.trace.graph, program.seed_leaves
        waits = bool(seeds)
        now, later = ((), derived) if waits else (derived, ())
        results = (*program.results, *program.aux) if self.values else ()
        joint = simplify(
            Graph(
                inputs=(*graph.inputs, *seeds),
                outputs=(*results, *now, *program.trace.updates.values(), *later),
                names=graph.names,
                origins=graph.origins,
                draws=graph.draws,
            ),
            exact=True,
        )
        name = self.name.replace(" ", "_")
        if not waits:
            empty = compile(Graph((), ()), name)
            ready = compile(joint, name, reuse=not tracked, inductor=self.inductor and not tracked, tracked=tracked)
            return Pair(program, ready, empty, len(derived), self.values)
        first, second = halves(selected(joint), seeds, len(derived))
        forward = compile(first, name, reuse=not tracked, tracked=tracked)
        return Pair(program, forward, compile(second, f"{name}_back", tracked=tracked), 0, self.values)

    def _report(self, flat: Sequence[Any]) -> None:
        if os.environ.get("CHAINRULE_LOG"):
            shown = ", ".join(map(_shown, flat))
            again = f" (signature {len(self._kept) + 1})" if self._kept else ""
            name = getattr(self.func, "__qualname__", type(self.func).__name__)
            print(f"chainrule: compiling {self.name} of {name}({shown}){again}", file=sys.stderr)


def described(transformed: Callable[..., Any], func: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``transformed`` with the name and the signature of ``func``."""
    name = getattr(func, "__name__", type(func).__name__)
    functools.update_wrapper(transformed, func, updated=())
    transformed.__doc__ = f"The {what} of {name}."
    return transformed


def _one_of(value: Any) -> Any:
    """A plain tensor in place of one that vmap or torch.func has wrapped: its first sample."""
    while isinstance(value, torch.Tensor) and functorch.is_functorch_wrapped_tensor(value):
        batch = functorch.maybe_get_bdim(value)
        value = functorch.get_unwrapped(value)
        value = value.select(batch, 0) if batch >= 0 else value
    return value


def _joined(modules: Sequence[torch.nn.Module]) -> torch.nn.Module:
    return modules[0] if len(modules) == 1 else torch.nn.ModuleList(modules)


def _tracked(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype, value.device, tuple(value.stride()), value.layout)
    try:
        hash(value)
    except TypeError:
        return (type(value), id(value))
    return (type(value), value)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    return repr(value)
