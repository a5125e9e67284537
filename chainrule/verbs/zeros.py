"""Why a derivative is exactly zero. A zero is never silent: it comes with what made it so.

The ways from the variable to the output are followed edge by edge. Where none arrives, the edges that stopped them
say why; where some arrive, their contributions cancel.
"""

from __future__ import annotations

from collections.abc import Iterable

from chainrule.errors import UnsupportedOpError
from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Node, TensorType, apply, toposort, variable

# What a derivative meets at an edge of the graph.
_FLAT, _STOPPED, _ZERO_FACTOR = "flat", "stopped", "zero factor"


def is_zero(node: Node) -> bool:
    """Whether a simplified node is zero everywhere."""
    while len(node.inputs) == 1 and node.number is None:
        node = node.inputs[0]
    literal = node.params.get("literal")
    return literal is not None and not literal.array.any()


def why_zero(of: str, wrt: str, output: Node, target: Node) -> str:
    """The reason that the derivative of ``output`` by the leaf ``target`` is exactly zero, in words.

    Args:
        of, wrt: how the two are called. output: written out in the original variables, save ``target``.

    >>> x = variable("x")
    >>> why_zero("y", "x", x - x, x)
    'all paths cancel: y is constant in x'
    >>> why_zero("y", "x", variable("z") + 1.0, x)
    'y does not depend on x'
    """
    depends = _depending(output, target)
    if output not in depends:
        return f"{of} does not depend on {wrt}"
    arrives, obstacles = _followed(output, target, depends)
    if not arrives:
        return "; ".join(_sentences(of, wrt, obstacles))
    constant = target not in toposort([simplify(output)])
    return "all paths cancel" + (f": {of} is constant in {wrt}" if constant else "")


def _sentences(of: str, wrt: str, obstacles: Iterable[tuple[str, str]]) -> list[str]:
    met: dict[str, list[str]] = {}
    for kind, name in obstacles:
        met.setdefault(kind, []).extend([name] if name and name not in met.get(kind, []) else [])
    said = []
    for kind, names in met.items():
        at = f" ({', '.join(names)})" if names else ""
        if kind == _FLAT:
            said.append(f"the derivative is zero almost everywhere{at}")
        elif kind == _STOPPED:
            said.append(f"no derivative flows{at}")
        else:
            said.append(f"{of} does not depend on {wrt}: a constant factor or exponent is zero")
    return said


def _depending(output: Node, target: Node) -> set[Node]:
    found = {target}
    for node in toposort([output]):
        if any(i in found for i in node.inputs):
            found.add(node)
    return found


def _followed(output: Node, target: Node, depends: set[Node]) -> tuple[bool, list[tuple[str, str]]]:
    """Whether a derivative gets from ``target`` to ``output``, and the obstacles met: kind and name of the function."""
    reached = {target}
    obstacles: list[tuple[str, str]] = []
    for node in toposort([output]):
        if node is target or node not in depends:
            continue
        for position, operand in enumerate(node.inputs):
            if operand in reached:
                met = _at_edge(node, position, depends)
                if met:
                    obstacles += met
                else:
                    reached.add(node)
    return output in reached, obstacles


def _at_edge(node: Node, position: int, depends: set[Node]) -> list[tuple[str, str]]:
    """What stops a derivative from input ``position`` of one op to its output; nothing where it flows."""
    types = [i.type for i in node.inputs]
    if not all(isinstance(t, TensorType) for t in (*types, node.type)):
        return []
    name = node.op.names[0] if node.op.names else ""
    if not (node.type.is_float and types[position].is_float):
        return [(_FLAT, name)]  # a condition, a rounded number, a position: constant between jumps
    local, operand = _alone(node, position, depends)
    try:
        back = _pulled_back(local, operand)
        if back is None:
            return _inside(local, operand) or [(_STOPPED, name)]
        if not is_zero(back):
            return []
        everywhere = _pulled_back(*_alone(node, position, set(node.inputs)))
    except UnsupportedOpError:
        return []  # whoever asked for the derivative has been told
    return [(_FLAT if everywhere is None or is_zero(everywhere) else _ZERO_FACTOR, name)]


def _alone(node: Node, position: int, free: set[Node]) -> tuple[Node, Node]:
    """The op on variables of their own in place of the operands that are ``free``, and the one at ``position``."""
    operands = [variable(f"operand {k}", i.type) if i in free else i for k, i in enumerate(node.inputs)]
    return apply(node.op, *operands, **node.params), operands[position]


def _pulled_back(local: Node, operand: Node) -> Node | None:
    (back,) = vjp([local], [variable("cotangent of it", local.type)], [operand])
    return None if back is None else simplify(back)


def _inside(local: Node, operand: Node) -> list[tuple[str, str]]:
    """The obstacles within a composite."""
    if local.op.expansion is None:
        return []
    inner = local.op.expansion(*local.inputs, **local.params)
    return _followed(inner, operand, _depending(inner, operand))[1]
