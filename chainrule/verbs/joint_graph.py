"""Forward and backward pass of one formula as one graph, the backward pass simplified in terms of forward values.

Every matrix product ends a segment. Within a segment (normalisations, softmax, gates) the cotangents are put into each
other and simplified, so that paths cancel as they do on paper; from one segment to the next the cotangent is a value
of its own (``dS``), computed once and used by every gradient that needs it. Statistics, gates and the user's own
quantities stay names, so that the backward pass reads them where the forward pass has computed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chainrule.interpreters.contraction_order import pairwise
from chainrule.interpreters.cost import multiplications
from chainrule.interpreters.differentiate import expand_composites, vjp
from chainrule.interpreters.residuals import elements, is_view, number, operations
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Node, TensorType, apply, fresh_variable, rebuild, toposort, tree_size
from chainrule.verbs.expression import resolve
from chainrule.verbs.named_program import NamedProgram
from chainrule.verbs.naming import shortest

# Operators and operands of cotangents that are compared with their other forms.
_WORTH_TRYING, _MAX_SHORTENED = 12, 150


@dataclass(frozen=True)
class JointGraph:
    """Both passes of a program.

    Attributes:
        output: the forward pass. cotangent: the leaf that comes back.
        gradients: input name -> its gradient, None where no path leads there.
        names: node -> the user's name. ends: cotangent -> the forward value that it belongs to.
    """

    output: Node
    cotangent: Node
    gradients: Mapping[str, Node | None]
    names: Mapping[Node, str]
    ends: Mapping[Node, Node]


def joint_graph(
    output: Node,
    inputs: Sequence[Node],
    wrt: Sequence[str],
    cotangent: str,
    names: Mapping[Node, str],
    sizes: Mapping[str, int],
) -> JointGraph:
    """The passes of ``output`` and of the vector-Jacobian product by each of ``wrt``.

    Args:
        output: in terms of the inputs. names: node -> the user's name. sizes: numbers for named dimensions.
    """
    output, *named = expand_composites([output, *names])
    output, names = _narrow(output, dict(zip(named, names.values(), strict=True)))
    program = NamedProgram(_stages(output, inputs, names, sizes), inputs)
    seed = fresh_variable(cotangent, output.type, inputs)
    local = {program.symbol[n]: _simpler(node) for n, node in program.local.items() if node is not program.symbol[n]}
    sweep = _Sweep(program, local, seed, _ends(program, local, sizes))
    found = sweep.run(wrt)
    # Forward values first: what they compute is at hand for the backward pass.
    forward = resolve(program.symbol[program.output], local)
    stage_values = [resolve(program.symbol[n], local) for n in program.order]
    ordered = pairwise(stage_values, (), sizes)
    image = dict(zip(stage_values, ordered, strict=True))
    meanings = {program.symbol[n]: v for n, v in zip(program.order, ordered, strict=True)}
    called = {v: n for n, v in zip(program.order, ordered, strict=True) if n in names.values() and v.inputs}
    forward_nodes = [*toposort(ordered), seed]
    known = list(forward_nodes)
    values: dict[Node, Node] = dict(meanings)
    backward: dict[str, Node | None] = {}
    ends: dict[Node, Node] = {}
    for name, closed in found:
        if closed is None:
            backward[name] = None
            continue
        (value,) = pairwise([resolve(closed, _only(values, closed))], known, sizes)
        known += toposort([value])
        if name in sweep.symbols:
            values[sweep.symbols[name]] = value
            ends.setdefault(value, meanings[program.symbol[name]])
        backward[name] = value
    _shared(backward, found, sweep.symbols, values, forward_nodes, sizes)
    return JointGraph(image[forward], seed, {w: backward.get(w) for w in wrt}, called, ends)


def _shared(
    backward: dict[str, Node | None],
    found: Sequence[tuple[str, Node | None]],
    ends: Mapping[str, Node],
    values: Mapping[Node, Node],
    forward: Sequence[Node],
    sizes: Mapping[str, int],
) -> None:
    """Orders of products again, each gradient with all others at hand: the first did not know what the last has."""

    def price(gradients: Mapping[str, Node | None]) -> float:
        roots = [g for g in gradients.values() if g is not None]
        return number(multiplications(roots, set(forward).__contains__), sizes)

    for name, closed in found:
        if closed is None or name in ends:
            continue
        others = [g for n, g in backward.items() if g is not None and n != name]
        known = [*forward, *toposort(others)]
        changed = {**backward, name: pairwise([resolve(closed, _only(values, closed))], known, sizes)[0]}
        if price(changed) < price(backward):
            backward.update(changed)


def _only(values: Mapping[Node, Node], node: Node) -> dict[Node, Node]:
    return {n: values[n] for n in toposort([node]) if n in values and values[n] is not n}


def _simpler(node: Node) -> Node:
    """A stage's own formula in the normal form of the algebra, unless that is longer."""
    short = simplify(node)
    return short if tree_size(short) <= tree_size(node) else node


# ---- stages ------------------------------------------------------------------------------------------------
def is_product(node: Node) -> bool:
    """Whether a value is a contraction of two tensors that is no elementwise product: a matrix product."""
    operands = node.params.get("operands")
    if operands is None or len(operands) < 2:
        return False
    own = [set(o) for o in operands]
    return any(a - b and b - a and a & b for a in own for b in own)


def _stages(
    output: Node, inputs: Sequence[Node], names: Mapping[Node, str], sizes: Mapping[str, int]
) -> list[tuple[str, Node]]:
    """(name, node) of the quantities that the backward pass is written in, the output last."""
    order = toposort([output])
    users: dict[Node, list[Node]] = {}
    for node in order:
        for i in node.inputs:
            users.setdefault(i, []).append(node)
    wanted: set[Node] = {n for n in order if n in names}
    for node in order:
        if not node.inputs or not isinstance(node.type, TensorType) or not node.type.is_float:
            continue
        if is_product(node):
            wanted |= {node, *(_behind_views(i) for i in node.inputs)}
        elif any(elements(u, sizes) > elements(node, sizes) for u in users.get(node, ())):
            wanted.add(_behind_views(node))  # a statistic, read by every element
        elif len(users.get(node, ())) > 1 and not is_view(node):
            wanted.add(node)
    taken = {i.params["name"] for i in inputs} | set(names.values())
    stages: list[tuple[str, Node]] = []
    for node in order:
        if node in wanted and node.inputs and node is not output and _varies(node):
            name = names.get(node)
            while name is None or (node not in names and name in taken):
                name = f"t{len(stages)}" if name is None else name + "_"
            stages.append((name, node))
    last = names.get(output, "y")
    while output not in names and last in taken:
        last += "_"
    return [*stages, (last, output)]


def _narrow(output: Node, names: Mapping[Node, str]) -> tuple[Node, dict[Node, str]]:
    """Elementwise work on dimensions of size 1 done without them: a statistic per row is a vector."""

    def narrow(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        wide = [i for i in new.inputs if i.shape]
        axes = {i.params.get("axes") if i.op.family == "linear" else None for i in wide}
        if (
            new.op.family != "elementwise"
            or len(axes) != 1
            or None in axes
            or any(i.op is not wide[0].op for i in wide)
        ):
            return new
        inner = apply(new.op, *(i.inputs[0] if i.shape else i for i in new.inputs), **new.params)
        return apply(wide[0].op, inner, axes=axes.pop()) if inner.type.rank < new.type.rank else new

    image = rebuild([output, *names], narrow)
    kept: dict[Node, str] = {}
    for node, name in names.items():
        new = image[node]
        kept.setdefault(_behind_views(new) if 1 in new.shape else new, name)
    return image[output], kept


def _behind_views(node: Node) -> Node:
    while is_view(node):
        node = node.inputs[0]
    return node


def _varies(node: Node) -> bool:
    return any("name" in n.params and n.is_leaf for n in toposort([node]))


def _ends(program: NamedProgram, local: Mapping[Node, Node], sizes: Mapping[str, int]) -> set[str]:
    """Names whose cotangent is a value of its own: results and operands of matrix products, and dear cotangents."""
    ends: set[str] = set()
    symbols = {s: n for n, s in program.symbol.items()}
    for name in program.order:
        for node in toposort([local.get(program.symbol[name], program.local[name])]):
            dear = not node.is_leaf and node.op.cost is not None and not is_view(node)
            if is_product(node) or (
                dear and operations(node, sizes) > 8 * max(elements(i, sizes) for i in node.inputs)
            ):
                ends.add(name)
                ends |= {symbols[b] for i in node.inputs if (b := _behind_views(i)) in symbols}
    return ends


# ---- the sweep ---------------------------------------------------------------------------------------------
class _Sweep:
    """Reverse mode over the stages. ``symbols`` are the cotangents that are values of their own."""

    def __init__(self, program: NamedProgram, local: Mapping[Node, Node], seed: Node, ends: set[str]) -> None:
        self.program, self.local, self.seed, self.ends = program, local, seed, ends
        self.symbols: dict[str, Node] = {}
        self.closed: dict[str, Node | None] = {}
        taken = [*program.variables.values(), *program.symbol.values(), seed]
        for name in ends:
            if name not in program.variables and name != program.output:
                self.symbols[name] = fresh_variable(f"d{name}", program.symbol[name].type, taken)

    def run(self, wrt: Sequence[str]) -> list[tuple[str, Node | None]]:
        """(name, cotangent) of the ends of segments in order, then of ``wrt``, in forward values and ``symbols``."""
        program = self.program
        below = set().union(*(program.depends_on(w) for w in wrt)) if wrt else set()
        needed = below & program.ancestors(program.output)
        found: list[tuple[str, Node | None]] = []
        order = [n for n in reversed(program.order) if n in needed and n != program.output]
        for name in [*order, *(w for w in wrt if w not in order)]:
            total: Node | None = None
            for child in reversed(program.children(name)):
                if child not in needed or self._flowing(child) is None:
                    continue
                (moved,) = vjp([self._local(child)], [self._flowing(child)], [program.symbol[name]])  # type: ignore[list-item]
                if moved is not None:
                    total = moved if total is None else total + moved
            if name == program.output:
                total = self.seed
            self.closed[name] = None if total is None else self._shorter(total)
            if name in self.symbols or name in wrt:
                found.append((name, self.closed[name]))
        return found

    def _local(self, name: str) -> Node:
        return self.local.get(self.program.symbol[name], self.program.local[name])

    def _flowing(self, name: str) -> Node | None:
        if name == self.program.output:
            return self.seed
        return (
            self.symbols[name] if name in self.symbols and self.closed.get(name) is not None else self.closed.get(name)
        )

    def _shorter(self, total: Node) -> Node:
        """The shortest form in the names of the segment: cancellations that names hide are looked for as well."""
        closed = simplify(total)
        # Names hide what cancels in sums (of a centred row, say), not between numbers.
        sums = any("operands" in n.params and not is_view(n) for n in toposort([closed]))
        if not sums or not _WORTH_TRYING <= tree_size(closed) <= _MAX_SHORTENED:
            return closed
        within = {s: node for s, node in self.local.items() if s.params["name"] not in self.ends}
        return shortest(closed, resolve(total, within), list(within.items()))


# ---- after the choice of names -----------------------------------------------------------------------------
def open_composites(outputs: Sequence[Node], sizes: Mapping[str, int]) -> list[Node]:
    """Composites that are as large as their operand opened: a softmax is ``exp(x - logsumexp(x))``.

    What they hide, a statistic per row, is then a value that can be kept in place of the whole. Broadcasts that an
    elementwise op would do by itself are left out.
    """

    def opened(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        large = new.inputs and all(elements(i, sizes) <= elements(new, sizes) for i in new.inputs)
        if new.op.expansion is not None and large and not is_view(new):
            body = new.op.expansion(*new.inputs, **new.params)
            stop = set(new.inputs)
            return rebuild([body], opened, {n: n for n in stop})[body]
        return _without_broadcasts(new)

    image = rebuild(outputs, opened)
    return [image[o] for o in outputs]


def _without_broadcasts(node: Node) -> Node:
    if node.op.family != "elementwise":
        return node
    inputs = list(node.inputs)
    for k, i in enumerate(inputs):
        if i.op.family == "linear" and "shape" in i.params and len(i.inputs) == 1 and i.inputs[0].inputs:
            narrow = [*inputs[:k], i.inputs[0], *inputs[k + 1 :]]
            aligned = i.inputs[0].type.rank == i.type.rank or not i.inputs[0].shape
            if aligned and apply(node.op, *narrow, **node.params).type == node.type and i.op.name != "reshape":
                inputs = narrow
    return node if tuple(inputs) == node.inputs else apply(node.op, *inputs, **node.params)
