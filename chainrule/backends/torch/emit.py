"""A graph as straight-line Python: one assignment per node, in the words of torch.

Every op says in its ``torch`` field how it is written; a composite without one is written as its expansion.
What does not depend on an input is computed once, above the function. The text is made from the graph alone:
names are reduced to identifiers, and no text of a user's is ever part of an expression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.backends.identifiers import identifier, unique
from chainrule.backends.torch.order import with_less_alive
from chainrule.backends.torch.recycle import memory_plan
from chainrule.errors import BackendError
from chainrule.interpreters.kernels import selected
from chainrule.ir import Graph, Literal, Node, TensorType, TupleType, apply, describe, rebuild, shape_text

_LARGE = 64  # elements, above which a constant array is handed over instead of being written out
_WIDTH = 100  # columns, beyond which a signature is broken into lines and a comment is left out
_RESERVED = frozenset(("torch", "float", "scan", "_"))

# The one loop, written above a function that needs it: body(*consts, *carry, *slices) -> (*carry, *ys).
_SCAN = """\
def scan(body, consts, carry, xs, length, reverse):
    collected = [()] * length
    for k in reversed(range(length)) if reverse else range(length):
        out = body(*consts, *carry, *(x[k] for x in xs))
        carry, collected[k] = out[: len(carry)], out[len(carry) :]
    return (*carry, *(torch.stack(ys) for ys in zip(*collected)))
"""


@dataclass(frozen=True)
class Source:
    """Python source, and the objects that it refers to by name beside torch (large constants, Python functions)."""

    text: str
    names: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None  # where the arrays among them belong; None is the CPU


def emit(graph: Graph, name: str = "forward", free: bool = True, reuse: bool = False) -> str:
    """The text of :func:`source_of`."""
    return source_of(graph, name, free, reuse).text


def source_of(
    graph: Graph,
    name: str = "forward",
    free: bool = True,
    reuse: bool = False,
    constants: str = "c",
    tracked: bool = False,
) -> Source:
    """Python source of a function of the graph's inputs that returns the tuple of its outputs.

    Args:
        graph: all inputs with numbers for sizes.
        name: of the function.
        free: whether intermediates are deleted after their last use.
        reuse: whether results may be written over operands that end there (not where autograd records, or vmap maps).
        tracked: whether autograd is to record it: calls that it cannot differentiate are written as their expansions.
        constants: what the names of constants above the function start with.
    Raises:
        BackendError: an op without a ``torch`` field, or a leaf that is no input of the graph.
    """
    graph = selected(inline_composites(graph, tracked))
    writer = _Writer(graph, _Identifiers(graph, constants), reuse, tracked)
    return Source(writer.source(identifier(name, _RESERVED), free), writer.held, writer.device)


def inline_composites(graph: Graph, tracked: bool = False) -> Graph:
    """The graph with composites that have no ``torch`` field (``tracked``: or no tape) replaced by their expansions."""

    def expand(node: Node, inputs: tuple[Node, ...]) -> Node:
        called = node.op.torch is not None and (node.op.taped or not tracked)
        if called or node.op.expansion is None:
            return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        body = node.op.expansion(*inputs, **node.params)
        return rebuild([body], expand)[body]

    return graph.map(rebuild([*graph.outputs, *graph.draws], expand))


class _Identifiers:
    """One Python name per node: the user's first name for it, or ``t0``, ...; ``c0``, ... for constants."""

    def __init__(self, graph: Graph, constants: str) -> None:
        self._names: dict[Node, str] = {}
        self._taken: set[str] = set()
        self._counters = {"t": 0, constants: 0}
        self.constants = constants
        for node in graph.inputs:
            self._give(node, str(node.params.get("name", "x")))
        for node, name in graph.name_of().items():
            if node not in self._names:
                self._give(node, name)

    def of(self, node: Node, prefix: str = "t") -> str:
        """The name of a node, made at the first request."""
        if node not in self._names:
            while True:
                name = f"{prefix}{self._counters[prefix]}"
                self._counters[prefix] += 1
                if name not in self._taken:
                    break
            self._names[node] = name
            self._taken.add(name)
        return self._names[node]

    def _give(self, node: Node, wanted: str) -> None:
        name = unique(wanted, self._taken, _RESERVED)
        self._names[node] = name
        self._taken.add(name)


class _Writer:
    def __init__(self, graph: Graph, names: _Identifiers, reuse: bool, tracked: bool) -> None:
        self.graph, self.names, self.tracked = graph, names, tracked
        self.inputs = set(graph.inputs)
        self.nodes = graph.schedule()
        devices = [i.type.device for i in graph.inputs if isinstance(i.type, TensorType)]
        self.device = next((d for d in devices if d != "cpu"), None)
        self.parts = {n: _items(n, self.nodes) for n in self.nodes if isinstance(n.type, TupleType) and n.inputs}
        self.unpacked = {item for items in self.parts.values() for item in items.values()}
        readers = {i for n in self.nodes if n not in self.unpacked for i in n.inputs}
        # Tuples that another op than item reads: what is behind the outputs (a tape) has the node's own name.
        self.whole = {n for n in self.parts if n in readers or n in self.graph.outputs}
        self.fixed = self._independent()
        self.overwritten: dict[Node, int] = {}
        self.recycled: dict[Node, Node] = {}
        if reuse:
            running = [n for n in self.nodes if n not in self.fixed and n not in self.inputs]
            kept = {*graph.inputs, *graph.outputs, *self.fixed}
            running = with_less_alive(running, kept)
            self.overwritten, self.recycled = memory_plan(running, kept)
            self.nodes = [*(n for n in self.nodes if n in self.fixed or n in self.inputs), *running]
        self.above: list[str] = []
        self.body: list[str] = []
        self.bodies: dict[Graph, str] = {}
        self.preludes: list[str] = []
        self.held: dict[str, Any] = {}  # what the text refers to by name
        self.function = ""
        self.tensors: set[Node] = set()  # scalar constants that are needed as tensors

    def source(self, name: str, free: bool) -> str:
        self.function = name
        last = self._last_uses() if free else {}
        for node in self.nodes:
            if node in self.inputs:
                continue
            if "name" in node.params and node.is_leaf:
                raise BackendError(
                    f"{describe(node)} is read but is no input of the graph",
                    required="every leaf among graph.inputs",
                )
            if node.number is not None:
                continue  # written where it is used
            # Where the tuple was made, the names of its parts were given.
            written = [] if node in self.unpacked else self._line(node)
            dead = [self.names.of(n) for n in last.get(node, ()) if n not in self.parts or n in self.whole]
            if free and "_" in written and node not in self.fixed:
                dead.append("_")  # the last output that nobody reads would live on under it
            if dead:
                self.body.append(f"del {', '.join(dead)}")
        returned = ", ".join(self._operand(o, as_tensor=True) for o in self.graph.outputs)
        comma = "," if len(self.graph.outputs) == 1 else ""
        self.body.append(f"return ({returned}{comma})")
        head = _signature(name, [self.names.of(i) for i in self.graph.inputs])
        above = [*self.preludes, *self.above]
        return "\n".join([*above, *([""] if above else []), head, *(f"    {b}" for b in self.body), ""])

    def _independent(self) -> set[Node]:
        """Nodes that no input reaches: computed once, above the function."""
        fixed: set[Node] = set()
        for node in self.nodes:
            if node not in self.inputs and node.op.pure and all(i in fixed for i in node.inputs):
                fixed.add(node)
        return fixed

    def _last_uses(self) -> dict[Node, list[Node]]:
        """node -> intermediates that nobody needs once it is computed."""
        last: dict[Node, Node] = {}
        for node in self.nodes:
            for i in (*node.inputs, *([self.recycled[node]] if node in self.recycled else [])):
                last[i] = node
        kept = {*self.inputs, *self.graph.outputs, *self.fixed}
        dying: dict[Node, list[Node]] = {}
        for node in self.nodes:  # a draw that nobody reads
            if not node.op.pure:
                last.setdefault(node, node)
        for node, user in last.items():
            if node not in kept and user not in self.fixed:
                dying.setdefault(user, []).append(node)
        return dying

    def _line(self, node: Node) -> list[str]:
        """Writes the assignment, and returns what stands left of the equals sign."""
        above = node in self.fixed
        targets = self._targets(node, self.names.constants if above else "t")
        name = f"({targets[0]},)" if len(targets) == 1 and node in self.parts else ", ".join(targets)
        expression = self._expression(node)
        if above and self.device is not None and not node.inputs:
            expression = f"{expression}.to({self.device!r})"
        shape = f"  # {shape_text(node.shape)}" if isinstance(node.type, TensorType) else ""
        (self.above if above else self.body).append(f"{name} = {expression}{shape}")
        return targets

    def _targets(self, node: Node, prefix: str) -> list[str]:
        """A name, or one for every output that is read."""
        if node not in self.parts:
            return [self.names.of(node, prefix)]
        items = self.parts[node]
        targets = [self.names.of(items[k], prefix) if k in items else "_" for k in range(len(node.type.items))]
        return targets + ([self.names.of(node, prefix)] if node in self.whole else ["_"] if node.op.keeps_more else [])

    def _expression(self, node: Node) -> str:
        written = node.op.torch
        if written is None:
            raise BackendError(
                f"op {node.op.name!r} cannot be written in torch",
                given=describe(node),
                required="a `torch` field, or an expansion",
                instead="declare it in chainrule/ops (docs/adding-an-op.md)",
            )
        literal = node.params.get("literal")
        if literal is not None and literal.array.size > _LARGE:
            return f"{self._hold(literal.array, 'array')}.to(torch.{node.type.dtype})"
        if node.op.prelude and node.op.prelude not in self.preludes:
            self.preludes.append(node.op.prelude)
        if node.op.transforms_body and callable(written):
            operands = [self._operand(i, as_tensor=True) for i in node.inputs]
            return str(written(node, [self._body(node.params["body"]), *operands]))
        # An infix operator takes numbers as they are, beside at least one tensor; a function wants tensors.
        tensors = [i for i in node.inputs if i.number is None]
        infix = isinstance(written, str) and "(" not in written and bool(tensors)
        if infix and not any(i.type.is_float for i in tensors):
            # Beside integers a Python float would be of torch's default dtype, not of its own.
            infix = not any(i.type.is_float for i in node.inputs)
        operands = [self._operand(i, as_tensor=not infix) for i in node.inputs]
        if node.op.externals is not None:
            operands = [*(self._hold(o, "function") for o in node.op.externals(**node.params)), *operands]
        if node in self.overwritten or node in self.recycled:
            placed = self._placed(node, operands)
            if placed:
                return placed
        return written.format(*operands) if isinstance(written, str) else str(written(node, operands))

    def _placed(self, node: Node, operands: list[str]) -> str:
        """The expression that leaves the result over an operand or in the memory of a dead value, "" without one."""
        if node.inputs[0].number is not None:  # these calls take a number behind a tensor only
            operands = [self._operand(node.inputs[0], as_tensor=True), *operands[1:]]
        if node in self.overwritten:
            return node.op.in_place[self.overwritten[node]].format(*operands)
        out, rule = self.names.of(self.recycled[node]), node.op.into
        return rule.format(*operands, out=out) if isinstance(rule, str) else str(rule(node, operands, out))

    def _body(self, body: Graph) -> str:
        """The name of a function for the body of a loop, written above this one."""
        if body not in self.bodies:
            if not self.bodies:
                self.above.append(_SCAN)
            self.bodies[body] = f"{self.function}_body{len(self.bodies)}"
            # Names of its own: the constants of a body and of the function share the module.
            inner = source_of(body, self.bodies[body], constants=f"{self.bodies[body]}_c", tracked=self.tracked)
            self.above.append(inner.text)
            self.held.update(inner.names)
        return self.bodies[body]

    def _hold(self, thing: Any, kind: str) -> str:
        """The name under which the text finds an object that cannot be written out."""
        for name, held in self.held.items():
            if held is thing:
                return name
        name = f"{self.names.constants}_{kind}{len(self.held)}"
        self.held[name] = thing
        return name

    def _operand(self, node: Node, as_tensor: bool) -> str:
        if node.number is None:
            return self.names.of(node)
        if not as_tensor:
            text = _number(node)
            return f"({text})" if text.startswith("-") else text
        name = self.names.of(node, self.names.constants)
        if node not in self.tensors:
            self.tensors.add(node)
            device = f", device={self.device!r}" if self.device else ""
            self.above.append(f"{name} = torch.tensor({_number(node)}, dtype=torch.{node.type.dtype}{device})")
        return name


def _items(node: Node, nodes: Sequence[Node]) -> dict[int, Node]:
    """index -> the node that reads that output."""
    return {n.params["index"]: n for n in nodes if n.inputs[:1] == (node,) and "index" in n.params}


def _number(node: Node) -> str:
    """A scalar constant as the shortest Python number that rounds to it in its dtype."""
    literal: Literal = node.params["literal"]
    value = literal.array[()]
    if isinstance(value, np.floating):
        return str(value) if np.isfinite(value) else f'float("{value}")'
    return repr(value.item())


def _signature(name: str, arguments: Sequence[str]) -> str:
    line = f"def {name}({', '.join(arguments)}):"
    if len(line) <= _WIDTH:
        return line
    lines, row = [], ""
    for argument in arguments:
        if row and len(row) + len(argument) > _WIDTH - 8:
            lines.append(row)
            row = ""
        row += f"{argument}, "
    return "\n".join([f"def {name}(", *(f"    {r.rstrip()}" for r in [*lines, row]), "):"])
