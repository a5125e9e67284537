"""Torch modules and functions as programs with named quantities, for ``derive``.

The names are the module's own: ``f_0`` is the pre-activation that module ``0`` computes, ``h_1`` what module ``1``
returns, ``weight_0`` a parameter. A function of tensors has no module names: its result is ``y``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch import Trace, trace
from chainrule.ir import Node, toposort
from chainrule.verbs.case import Case, as_case

Named = list[tuple[str, Node]]


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
    position = {node: k for k, node in enumerate(toposort([root]))}
    first: dict[Node, str] = {}
    for name, node in traced.graph.names.items():
        if node in position and node.inputs and node is not root:
            first.setdefault(node, name)
    named = sorted(((name, node) for node, name in first.items()), key=lambda item: position[item[1]])
    root_name = next(
        (n for n, node in traced.graph.names.items() if node is root),
        "loss" if traced.loss is not None else "y",
    )
    variables = [leaf for leaf in position if leaf.is_leaf and "name" in leaf.params]
    target = list(traced.batch_inputs.values())[-1:] if traced.loss is not None and len(traced.batch_inputs) > 1 else []
    frozen = {traced.parameters[n] for n in traced.frozen}
    active = [v for v in variables if v.type.is_float and v not in target and v not in frozen]
    return [*named, (root_name, root)], variables, [v.params["name"] for v in active]


def function_program(traced: Trace) -> tuple[Named, list[Node], list[str]]:
    """A traced function: one result, derived by every float argument."""
    if len(traced.outputs) != 1:
        raise ModelError("derive takes one result", given=f"{len(traced.outputs)} results", instead="return one tensor")
    root = traced.outputs[0]
    variables = [leaf for leaf in toposort([root]) if leaf.is_leaf and "name" in leaf.params]
    active = [n for n, leaf in traced.batch_inputs.items() if leaf.type.is_float]
    missing = [leaf for leaf in traced.batch_inputs.values() if leaf not in variables]
    return [("y", root)], [*variables, *missing], [traced.batch_inputs[n].params["name"] for n in active]
