"""What a parameter is for, by what the traced program does with it.

A composite is opened: the scale of a layer norm is found where the norm multiplies by it. The result are the uses of
every parameter, each with the node that uses it; what the program's modules know besides is added from ``roles``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from chainrule.frontends.torch import Trace
from chainrule.ir import OPS, Node, TensorType, toposort, variable
from chainrule.ops.convolution import CONV_TRANSPOSE, CONVOLUTION
from chainrule.ops.gathering import TAKE
from chainrule.ops.opaque import Call
from chainrule.verbs.initialize.laws import Layout
from chainrule.verbs.initialize.roles import Role

_ADDS = (OPS["add"], OPS["sub"])
_SCALES = (OPS["mul"], OPS["div"])


@dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
        node: of the traced graph. kind: as of a role. layout: of the tensor as it is used. fans: (in, out).
        direct: whether the parameter itself is the operand, not a slice or another view of it.
    """

    node: Node
    kind: str
    layout: Layout | None = None
    fans: tuple[int, int] = (0, 0)
    direct: bool = True


def views(traced: Trace) -> dict[Node, Node]:
    """node -> the parameter that it is a view of: the leaves themselves, transposed, sliced, reshaped, expanded."""
    found: dict[Node, Node] = {leaf: leaf for leaf in traced.parameters.values()}
    for node, direction, _ in norms(traced):
        found[node] = direction
    for node in nodes_of(traced):
        if node in found:
            continue
        sources = {found.get(i) for i in node.inputs}
        if len(sources) == 1 and None not in sources and (node.op.family == "linear" or _moves(node)):
            (source,) = sources
            assert source is not None
            found[node] = source
    return found


def norms(traced: Trace) -> list[tuple[Node, Node, Node]]:
    """(weight, its direction, its lengths) of every weight that is written as lengths times directions."""
    leaves = set(traced.parameters.values())
    found = []
    for node in nodes_of(traced):
        if node.op.name == "weight_norm" and leaves.issuperset(node.inputs):
            found.append((node, *node.inputs))
            continue
        call = node.inputs[0].params.get("call") if node.op.name == "item" else None
        if isinstance(call, Call) and "weight_norm" in call.name and node.params.get("index") == 0:
            operands = [i for i in node.inputs[0].inputs if i in leaves]
            if len(operands) == 2:
                found.append((node, operands[0], operands[1]))
    return found


def _moves(node: Node) -> bool:
    """A permutation, written as a product of one factor."""
    operands = node.params.get("operands")
    return operands is not None and len(operands) == 1 and set(operands[0]) == set(node.params["result"])


def nodes_of(traced: Trace) -> list[Node]:
    """The program in order."""
    roots = [traced.loss] if traced.loss is not None else []
    return toposort([*traced.outputs, *roots])


def uses(traced: Trace) -> dict[Node, list[Use]]:
    """parameter -> its uses, in the order of the program."""
    own = views(traced)
    found: dict[Node, list[Use]] = {leaf: [] for leaf in traced.parameters.values()}
    for node in nodes_of(traced):
        if node in own:
            continue
        for k, operand in enumerate(node.inputs):
            leaf = own.get(operand)
            if leaf is None:
                continue
            use = _use(node, k)
            if use is not None:
                kind, layout, fans = use
                direct = operand is leaf
                if not direct and layout is not None:
                    layout = _through(operand, leaf, layout)
                found[leaf].append(Use(node, kind, layout, fans, direct))
    return found


def _through(operand: Node, leaf: Node, layout: Layout) -> Layout | None:
    """The layout of the parameter, from that of a permutation of it; None for other views."""
    order = tuple(range(operand.type.rank))
    while operand is not leaf:
        if not _moves(operand):
            return None
        (axes,), result = operand.params["operands"], operand.params["result"]
        order = tuple(axes.index(result[d]) for d in order)
        operand = operand.inputs[0]

    def back(dims: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(order[d] for d in dims)

    return replace(
        layout,
        outputs=back(layout.outputs),
        inputs=back(layout.inputs),
        batch=back(layout.batch),
        kernel=back(layout.kernel),
    )


Found = tuple[str, Layout | None, tuple[int, int]]


def _use(node: Node, k: int) -> Found | None:
    """What ``node`` does with its operand ``k``, a parameter."""
    shape = tuple(int(s) for s in node.inputs[k].shape)  # type: ignore[arg-type]
    if node.op in (CONVOLUTION, CONV_TRANSPOSE):
        if k != 1:
            return ("bias", None, (0, 0)) if k == 2 else None
        kernel, groups = tuple(range(2, len(shape))), int(node.params["groups"])
        if node.op is CONV_TRANSPOSE:
            layout = Layout((1,), (0,), kernel=kernel, groups=groups, transposed=True)
        else:
            layout = Layout((0,), (1,), kernel=kernel, groups=groups)
        return "weight", layout, layout.fans(shape)
    if node.op is TAKE:
        return ("embedding", None, (1, math.prod(shape[1:]))) if k == 0 else None
    if "operands" in node.params:
        return _factor(node, k, shape)
    if node.op in _ADDS or node.op.name == "concat":
        units = sum(s > 1 for s in shape)
        return ("bias" if units <= 1 and node.op in _ADDS else "position"), None, (0, 0)
    if node.op in _SCALES:
        return ("scale", None, (0, 0)) if k == 0 or node.op is _SCALES[0] else None
    return _inside(node, k) if node.op.expansion is not None else None


def _factor(node: Node, k: int, shape: tuple[int, ...]) -> Found | None:
    """A factor of a product: summed with another operand, it is a weight."""
    operands, result = node.params["operands"], node.params["result"]
    if len(operands) < 2:
        return None
    others = {i for j, o in enumerate(operands) if j != k for i in o}
    own = operands[k]
    inputs = tuple(a for a, i in enumerate(own) if i in others and i not in result)
    outputs = tuple(a for a, i in enumerate(own) if i not in others and i in result)
    batch = tuple(a for a, i in enumerate(own) if i in others and i in result)
    if not inputs:
        return "scale", None, (0, 0)
    layout = Layout(outputs, inputs, batch)
    return "weight", layout if len(set(own)) == len(own) else None, layout.fans(shape)


def _inside(node: Node, k: int) -> Found | None:
    """The use of an operand inside of a composite."""
    if not all(isinstance(i.type, TensorType) for i in node.inputs):
        return None
    leaves = [variable(f"operand {j}", i.type) for j, i in enumerate(node.inputs)]
    root = node.op.expansion(*leaves, **node.params)  # type: ignore[misc]
    own = {leaves[k]}
    for inner in toposort([root]):
        if inner in own or not inner.inputs:
            continue
        for j, operand in enumerate(inner.inputs):
            if operand in own:
                if len(inner.inputs) == 1 and (inner.op.family == "linear" or _moves(inner)):
                    own.add(inner)
                    continue
                found = _use(inner, j)
                if found is None:
                    continue
                kind, layout, fans = found
                if kind == "position" and sum(int(s) > 1 for s in node.inputs[k].shape) <= 1:  # type: ignore[arg-type]
                    kind = "bias"
                if layout is not None and operand is not leaves[k]:
                    layout = _through(operand, leaves[k], layout)
                return kind, layout, fans
    return None


def joined(by_module: Role, found: list[Use], shape: tuple[int, ...]) -> Role:
    """One role from what the module knows and what the program does."""
    if not found or by_module.kind == "recurrent" or by_module.module.endswith(("RNN", "LSTM", "GRU", "Cell")):
        return by_module
    kinds = [u.kind for u in found]
    kind = next((k for k in ("embedding", "weight", "scale", "position", "bias") if k in kinds), "other")
    if kind == by_module.kind and kind != "weight":
        return by_module
    if kind == "scale" and by_module.kind == "other":
        return replace(by_module, kind="scale", value=math.nan)  # what it starts from is the planner's to say
    use = next((u for u in found if u.kind == kind), found[0])
    fans = use.fans if kind in ("weight", "embedding") else by_module.fans
    parts = by_module.parts
    if parts > 1 and kind == "weight":
        fans = by_module.fans
    return replace(by_module, kind=kind, layout=use.layout, fans=fans, parts=parts)
