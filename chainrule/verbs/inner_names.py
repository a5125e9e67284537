"""Names for what happens inside a module: the softmax of attention, the gates of a cell, a deviation used twice.

A module's output has its path as its name (``f_fc``, ``h_act``). Values inside are named where a reader would: those
with a customary letter (``p`` for softmax), results of products of two computed values, and whatever the forward and
the backward equations together write more than once. Their names end in the module's path too: ``p_attn``, ``u2_cell``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Node, TensorType, apply, rebuild, substitute_nodes, toposort, tree_size, variable
from chainrule.verbs.expression import resolve
from chainrule.verbs.named_program import NamedProgram

_WORTH_A_NAME = 5  # operators and operands of a part that is written more than once

Named = list[tuple[str, Node]]


def opened(roots: Iterable[Node]) -> dict[Node, Node]:
    """node -> the same with kernels opened in which a value with a customary letter hides (attention's softmax)."""

    def replace_node(node: Node, inputs: tuple[Node, ...]) -> Node:
        if node.op.expansion is not None and node.op.vjp is None and not node.op.symbol:
            inside = node.op.expansion(*inputs, **node.params)
            if any(n.op.symbol for n in toposort([inside], stop=frozenset(inputs).__contains__)):
                return inside
        return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)

    return rebuild(list(roots), replace_node)


def in_the_language(node: Node, symbols: Mapping[Node, Node]) -> Node:
    """A definition with kernels that the formula language has no function for written out, in the names at hand."""

    def replace_node(n: Node, inputs: tuple[Node, ...]) -> Node:
        if n.op.expansion is not None and not n.op.names:
            return in_symbols(n.op.expansion(*inputs, **n.params), symbols)
        return n if inputs == n.inputs else apply(n.op, *inputs, **n.params)

    symbols = {meaning: symbol for meaning, symbol in symbols.items() if meaning is not node}
    return simplify(rebuild([node], replace_node)[node], exact=True)


def in_symbols(node: Node, symbols: Mapping[Node, Node]) -> Node:
    """With names for what they mean; a name may stand in the meaning of the next."""
    while (named := substitute_nodes([node], symbols)[0]) is not node:
        node = named
    return node


def forward_parts(root: Node, named: Mapping[Node, str]) -> list[Node]:
    """Values inside of modules that deserve a name, in order of computation."""
    order = toposort([root])
    uses: dict[Node, int] = {}
    for node in order:
        for i in dict.fromkeys(node.inputs):
            uses[i] = uses.get(i, 0) + 1
    found = []
    for node in order:
        if node in named or not node.inputs or node is root or not _is_value(node):
            continue
        computed = sum(bool(i.inputs) for i in node.inputs)
        product = len(node.params.get("operands", ())) > 1 and computed > 1
        cut = _cut(node, {*named, *found})
        several = sum(i.number is None for i in cut.inputs) > 1  # x + f(x): its derivative is a sum of paths
        repeated = uses[node] > 1 and (several or tree_size(cut) >= _WORTH_A_NAME)
        if node.op.symbol or product or repeated:
            found.append(node)
    return found


def backward_parts(named: Named, variables: list[Node]) -> list[tuple[Node, str]]:
    """(part, name of the quantity that it comes from): forward values that the local derivatives write repeatedly."""
    program = NamedProgram(named, variables)
    cotangents = {n: variable(f"d {n}", program.symbol[n].type) for n in program.order}
    equations: list[Node] = []
    owner: dict[Node, str] = {}
    for child in program.order:
        local = program.local[child]
        parents = [program.symbol[p] for p in program.parents[child] if program.symbol[p].type.is_float]
        back = vjp([local], [cotangents[child]], parents) if parents and local.type.is_float else []
        own = [simplify(b, exact=True) for b in back if b is not None]
        for part in (p for e in own for p in _forward_values(e, cotangents[child])):
            owner.setdefault(part, child)
        if local.inputs:
            equations += [*own, local]
            owner.pop(local, None)
    found: list[Node] = []
    for part in sorted(owner, key=tree_size, reverse=True):
        if tree_size(part) < _WORTH_A_NAME or not _is_value(part):
            continue
        if _times_written(part, equations) > 1:
            symbol = variable(f"part {len(found)}", part.type)
            found.append(part)
            equations = [*substitute_nodes(equations, {part: symbol}), part]
    return [(resolve(part, program.definitions), owner[part]) for part in found]


def _times_written(part: Node, equations: Sequence[Node]) -> int:
    """In how many places the part stands, in all equations together."""
    return sum(sum(i is part for n in toposort([e]) for i in n.inputs) + (e is part) for e in equations)


def _forward_values(equation: Node, cotangent: Node) -> set[Node]:
    """The parts of an equation in which the cotangent does not occur."""
    behind: set[Node] = set()
    order = toposort([equation])
    for node in order:
        if node is cotangent or any(i in behind for i in node.inputs):
            behind.add(node)
    return {n for n in order if n not in behind and n.inputs}


def _cut(node: Node, named: set[Node]) -> Node:
    image = {n: variable("v", n.type) for n in named if n is not node}
    return rebuild([node], image=image)[node]


def _is_value(node: Node) -> bool:
    return isinstance(node.type, TensorType) and node.type.is_float and node.op.family != "linear"


def inner_name(node: Node, path: str, is_taken: Callable[[str], bool]) -> str:
    """``p_attn``, ``u2_attn``: the value's customary letter and the module's path."""
    letter, count = node.op.symbol or "u", 1
    while is_taken(name := f"{letter}{count if count > 1 else ''}{'_' if path else ''}{path}"):
        count += 1
    return name
