"""What ``activation`` looks at: a function of one variable from a name, a formula or a torch callable.

A formula becomes a node, whose derivative is derived. A torch callable is traced into one where all of its ops are
declared; otherwise its values are torch's own and its slopes those of torch's autograd, and ``derived_by`` says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, FormulaError, MissingExtraError, ShapeError
from chainrule.frontends.formula import parse_program
from chainrule.frontends.formula.functions import activations, known_functions, op_called
from chainrule.interpreters.differentiate import expand_composites, vjp
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, constant, substitute_nodes, toposort, variable
from chainrule.verbs.curve import Curve
from chainrule.verbs.defined import refuse_division_by_zero
from chainrule.verbs.expression import Expression

_PROBE = np.array([-2.3, -1.1, -0.4, 0.3, 0.9, 1.7, 2.6])


@dataclass(frozen=True, eq=False)
class ScalarFunction:
    """A function of one variable ``z``.

    Attributes:
        name: what it is called. variable: its leaf, None without a node. node, slope: value and derivative as nodes.
        curve: both as functions of arrays. derived_by: ``"algebra"`` or ``"torch autograd"``. note: what else to know.
    """

    name: str
    curve: Curve
    variable: Node | None = None
    node: Node | None = None
    slope: Node | None = None
    derived_by: str = "algebra"
    note: str = ""


def scalar_function(source: str | Expression | Callable[..., Any]) -> ScalarFunction:
    """The function that a name, a formula or a callable means.

    Raises:
        FormulaError: text that is no function of one variable. ModelError: a callable that is not elementwise.
    """
    if isinstance(source, Expression):
        return _of_node(source.full, source.text)
    if isinstance(source, str):
        return _of_text(source.strip())
    if not callable(source):
        raise ChainruleError(
            "not an activation",
            given=type(source).__name__,
            required="the name of a function, a formula in one variable, or an elementwise torch callable",
            instead='cr.activation("relu"), cr.activation("z * sigmoid(z)"), cr.activation(torch.nn.GELU())',
        )
    try:
        from chainrule.verbs.torch_function import torch_function
    except ImportError as error:
        raise MissingExtraError("activation of a callable", error.name or "torch", "torch") from None
    name, node, leaf, values, slopes, note = torch_function(source)
    if node is None or leaf is None:
        return ScalarFunction(name, Curve(values, slopes), derived_by="torch autograd", note=note)
    found = _of_node(node, name, leaf)
    return ScalarFunction(name, found.curve, found.variable, found.node, found.slope, note=note)


# ---- text --------------------------------------------------------------------------------------------------
def _of_text(source: str) -> ScalarFunction:
    if source.isidentifier() and source in known_functions():
        if source not in activations():
            op = op_called(source)
            more = op is not None and op.family == "elementwise"
            raise FormulaError(
                f"{source} is not a function of one number",
                source=source,
                given=source,
                required="an elementwise function of one variable",
                instead=f"{source}(z, 0.1), with the other arguments as numbers" if more else "sigmoid",
            )
        return replace(_of_text(f"{source}(z)"), name=source)
    program = parse_program(source)
    refuse_division_by_zero(program)
    root = program.statements[-1].node
    leaves = [n for n in toposort([root]) if n.is_leaf and "name" in n.params]
    if len(leaves) != 1:
        names = [n.params["name"] for n in leaves]
        near = difflib.get_close_matches(source, sorted(activations()), 1) if source.isidentifier() else []
        raise FormulaError(
            f"an activation has one variable, this formula has {len(leaves)}",
            source=source,
            given=", ".join(names) or "a constant",
            required="one variable; everything else is a number",
            instead=near[0] if near else "leaky_relu(z, 0.1)" if len(names) > 1 else "z * sigmoid(z)",
        )
    if root is leaves[0] and len(program.statements) == 1 and source.isidentifier() and len(source) > 2:
        near = difflib.get_close_matches(source, sorted(activations()), 1, 0.5)
        raise FormulaError(
            f"no function is called {source!r}",
            source=source,
            position=0,
            given=source,
            required=f"one of {', '.join(sorted(activations()))}, or a formula in one variable",
            instead=near[0] if near else "z * sigmoid(z)",
        )
    return _of_node(root, source, leaves[0])


def _of_node(node: Node, name: str, leaf: Node | None = None) -> ScalarFunction:
    """A node in one scalar variable, with its derivative."""
    if leaf is None:
        leaves = [n for n in toposort([node]) if n.is_leaf and "name" in n.params]
        if len(leaves) != 1:
            raise ShapeError(
                "an activation has one variable",
                given=", ".join(str(n.params["name"]) for n in leaves) or "a constant",
                required="an expression in one scalar variable",
            )
        leaf = leaves[0]
    if leaf.shape != () or node.shape != ():
        raise ShapeError(
            "an activation is a function of one number",
            given=f"shapes {leaf.shape} to {node.shape}",
            required="an expression in one scalar variable",
        )
    (body,) = expand_composites([node], keep_named=True)
    for n in toposort([body]):
        if n.op.family == "unknown" or not n.op.pure:
            raise FormulaError(
                f"{text(n)} has no values",
                given=name,
                required="functions of the language",
                instead=", ".join(sorted(activations())[:6]) + " ...",
            )
    if leaf.params["name"] != "z":
        body, leaf = substitute_nodes([body], {leaf: variable("z", leaf.type)})[0], variable("z", leaf.type)
    body = simplify(body)
    (slope,) = vjp([body], [constant(1.0, body.type.dtype)], [leaf])
    slope = constant(0.0) if slope is None else simplify(slope)
    value = on_arrays(body, leaf)
    if not np.allclose(value(_PROBE), [value(_PROBE[k : k + 1])[0] for k in range(_PROBE.size)], equal_nan=True):
        raise FormulaError(
            f"{name} is not elementwise: its values depend on the other elements",
            given=name,
            required="a function of one number",
            instead="z * sigmoid(z)",
        )
    return ScalarFunction(name, Curve(value, on_arrays(slope, leaf)), leaf, body, slope)


def on_arrays(node: Node, leaf: Node) -> Callable[[np.ndarray], np.ndarray]:
    """A scalar node as a function of arrays: its ops are elementwise."""
    order = [n for n in toposort([node]) if n is not leaf]

    def function(x: np.ndarray) -> np.ndarray:
        values: dict[Node, Any] = {leaf: np.asarray(x, dtype=np.float64)}
        with np.errstate(all="ignore"):
            for n in order:
                values[n] = n.op.value(*(values[i] for i in n.inputs), **n.params)
        return np.broadcast_to(np.asarray(values[node], dtype=np.float64), np.shape(x))

    return function
