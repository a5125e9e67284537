"""Torch modules and functions as programs with named quantities, for ``derive``.

The names are the module's own: ``f_0`` is the pre-activation that module ``0`` computes, ``h_1`` what module ``1``
returns, ``weight_0`` a parameter. A function of tensors has no module names: its result is ``y``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch import Trace, trace
from chainrule.frontends.torch.trace import identifier_of_path
from chainrule.ir import Node, toposort
from chainrule.verbs.case import Case, as_case
from chainrule.verbs.inner_names import Named, backward_parts, forward_parts, inner_name, opened


def module_program(source: Case | Callable[..., Any], args: Sequence[Any]) -> tuple[Named, list[Node], list[str]]:
    """Named quantities in order of computation (the output last), variables, and what to derive by."""
    if isinstance(source, Case):
        return case_program(source.trace)
    if not callable(source):
        raise ModelError(
            "derive takes a formula, a module with its batch, or a function with its arguments",
            given=type(source).__name__,
        )
    if len(args) == 1 and isinstance(args[0], tuple) and not hasattr(source, "parameters"):
        return function_program(trace(source, args[0]))
    return case_program(as_case(source, *args).trace)


def case_program(traced: Trace) -> tuple[Named, list[Node], list[str]]:
    """A traced case: module outputs by name, the loss last; derived by parameters and float inputs."""
    root = traced.loss if traced.loss is not None else traced.output
    if root is None:
        raise ModelError("the model returned no tensor")
    if traced.opaque:
        raise UnsupportedOpError(
            f"no closed form: {', '.join(traced.opaque)} {'is' if len(traced.opaque) == 1 else 'are'} not declared",
            required="ops of chainrule/ops",
            instead="the same in declared ops, or a declaration (docs/adding-an-op.md)",
        )
    names = {node: name for name, node in reversed(list(traced.graph.names.items()))}
    image = opened([root])
    modules = _modules(traced, image)
    named = _named({image[n]: name for n, name in names.items() if n in image}, image[root], modules)
    root_name = names.get(root, "loss" if traced.loss is not None else "y")
    root = image[root]
    position = toposort([root])
    variables = [leaf for leaf in position if leaf.is_leaf and "name" in leaf.params]
    target = list(traced.batch_inputs.values())[-1:] if traced.loss is not None and len(traced.batch_inputs) > 1 else []
    frozen = {traced.parameters[n] for n in traced.frozen}
    fixed = {*target, *frozen, *traced.buffers.values(), *traced.captured.values()}
    active = [v for v in variables if v.type.is_float and v not in fixed and "stream" not in v.params]
    named = [*((n, node) for n, node in named if node is not root), (root_name, root)]
    named = _with_repeated(named, variables, modules)
    return named, variables, [v.params["name"] for v in active]


def _named(names: Mapping[Node, str], root: Node, modules: Mapping[Node, str]) -> Named:
    """Module outputs and the values inside of modules that deserve a name, in order of computation."""
    found = {node: name for node, name in names.items() if node.inputs}
    taken = set(names.values())
    for part in forward_parts(root, found):
        found[part] = inner_name(part, _path(modules.get(part, "")), taken.__contains__)
        taken.add(found[part])
    return [(found[node], node) for node in toposort([root]) if node in found]


def _with_repeated(named: Named, variables: list[Node], modules: Mapping[Node, str]) -> Named:
    """The same with names for what the equations of the backward pass would write more than once."""
    program = dict(named)
    taken = {*program, *(v.params["name"] for v in variables)}
    parts: dict[Node, str] = {}
    for part, owner in backward_parts(named, variables):
        if part in parts or part in program.values():
            continue
        parts[part] = inner_name(part, _path(modules.get(program[owner], "")), taken.__contains__)
        taken.add(parts[part])
    root_name, root = named[-1]
    both = {node: name for name, node in reversed(named)} | parts
    order = toposort([*parts, root])
    return [*((both[n], n) for n in order if n in both and n is not root), (root_name, root)]


def _modules(traced: Trace, image: Mapping[Node, Node]) -> dict[Node, str]:
    """node -> the module that computes it; what was inside a kernel belongs to where the kernel was called."""
    found: dict[Node, str] = {}
    for node, new in image.items():  # inputs first
        origin = traced.graph.origins.get(node)
        if origin is not None:
            for inner in toposort([new], stop=found.__contains__):
                found.setdefault(inner, origin.module)
    return found


def _path(module: str) -> str:
    return identifier_of_path(module) if module else ""


def function_program(traced: Trace) -> tuple[Named, list[Node], list[str]]:
    """A traced function: one result, derived by every float argument."""
    if len(traced.outputs) != 1:
        raise ModelError("derive takes one result", given=f"{len(traced.outputs)} results", instead="return one tensor")
    root = traced.outputs[0]
    variables = [leaf for leaf in toposort([root]) if leaf.is_leaf and "name" in leaf.params]
    active = [n for n, leaf in traced.batch_inputs.items() if leaf.type.is_float]
    missing = [leaf for leaf in traced.batch_inputs.values() if leaf not in variables]
    name, taken = "y", {v.params["name"] for v in (*variables, *traced.batch_inputs.values())}
    while name in taken:
        name += "_"
    return [(name, root)], [*variables, *missing], [traced.batch_inputs[n].params["name"] for n in active]
