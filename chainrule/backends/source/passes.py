"""One pass of a hand-written derivative as lines: every statistic and product named by what it is.

The same words as :mod:`.write`; what differs is that each line knows which of the outputs need it, so that a backward
pass computes only what is asked for, and that values are called ``row_sum``, ``Q_K`` or ``dS`` instead of ``t0``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chainrule.backends.identifiers import unique
from chainrule.backends.source.languages import TORCH
from chainrule.backends.source.write import RESERVED, Writer, Written
from chainrule.ir import ATOM, Dim, Graph, Node, TensorType, shape_text, toposort

_LONGEST = 20  # characters of an invented name
_PART = 9  # characters of an operand's name inside it


@dataclass(frozen=True)
class Line:
    """One assignment. ``outputs``: the numbers of the outputs that need it."""

    name: str
    text: str
    outputs: frozenset[int]


@dataclass(frozen=True)
class Pass:
    """The lines of a pass and what to write for each output. ``sizes``: names of sizes that the lines read."""

    lines: tuple[Line, ...]
    returned: tuple[str, ...]
    sizes: tuple[str, ...]
    helpers: tuple[str, ...]
    named: Mapping[Node, str]


def write_pass(graph: Graph, arguments: Sequence[str], wanted: Mapping[Node, str], like: str) -> Pass:
    """The lines that compute a graph's outputs.

    Args:
        graph: inputs are what is at hand, called ``arguments``. wanted: names for values that get a line of their own.
        like: an argument whose dtype and device constants take.
    Raises:
        BackendError: an op that cannot be written in torch.
    """
    return _PassWriter(graph, arguments, wanted, like).lines_of_pass()


class _PassWriter(Writer):
    def __init__(self, graph: Graph, arguments: Sequence[str], wanted: Mapping[Node, str], like: str) -> None:
        super().__init__(graph, arguments, TORCH)
        self.names = dict(wanted)
        self.like = like
        self.needs = self._needs()
        self.found: list[tuple[Node, str]] = []
        self.called: dict[Node, str] = dict(zip(graph.inputs, arguments, strict=True))

    def lines_of_pass(self) -> Pass:
        self.compute()
        returned = tuple(self._like(self._array(o)) for o in self.graph.outputs)
        lines = []
        for node, text in self.found:
            shape = f"  # {shape_text(node.shape)}" if isinstance(node.type, TensorType) and node.shape else ""
            lines.append(Line(self.called[node], self._like(text) + shape, self.needs[node]))
        read = set(re.findall(r"\w+", " ".join([*(text for _, text in self.found), *returned])))
        sizes = tuple(s for s in self.sizes if s in read)
        return Pass(tuple(lines), returned, sizes, tuple(self.helpers), self.called)

    def _like(self, text: str) -> str:
        # The dtype is the caller's choice: what a rule calls float64 is that of an argument.
        text = text.replace(", device='cpu'", "")
        text = text.replace(f"dtype={self.dtype}", f"dtype={self.like}.dtype, device={self.like}.device")
        return text.replace(self.dtype, f"{self.like}.dtype")

    def _needs(self) -> dict[Node, frozenset[int]]:
        needs: dict[Node, set[int]] = {n: set() for n in self.graph.nodes}
        for k, output in enumerate(self.graph.outputs):
            needs[output].add(k)
        for node in reversed(self.graph.nodes):
            for i in node.inputs:
                needs[i] |= needs[node]
        return {n: frozenset(s) for n, s in needs.items()}

    # ---- which values have a line --------------------------------------------------------------------------
    def _joins(self, node: Node, found: object) -> bool:
        text = getattr(found, "text", "")
        if getattr(found, "number", False):
            return True
        if node in self.graph.outputs and node not in self.names and self.uses[node] == 0:
            return not is_product(node) and node.type.rank == 0
        if node not in self.names and self.uses[node] == 1:
            if self._is_statistic(node):
                return False
            user = self.users[node]
            if len(node.params.get("operands", ())) == 1 and user.shape == node.shape and len(text) < 40:
                return user.op.family == "elementwise"  # a sum inside a mean
        return super()._joins(node, found) and (len(text) < 60 or is_view(node))  # type: ignore[arg-type]

    def _is_statistic(self, node: Node) -> bool:
        """Whether a value of its own kind ends here: what reads it, behind views, is larger."""
        if is_view(node) or not node.inputs or not isinstance(node.type, TensorType):
            return False
        user = self.users.get(node)
        while user is not None and is_view(user):
            user = self.users.get(user)
        return user is not None and user.type.rank > node.type.rank and len(toposort([node])) > 2

    def _expression(self, node: Node) -> Written:
        """Scalars that no tensor decides are numbers of Python: ``math.sqrt(d)``."""
        numbers = [self.written[i] for i in node.inputs]
        if node.shape != () or node.number is not None or not all(n.number for n in numbers):
            return super()._expression(node)
        if "size" in node.params and node.is_leaf:
            text = str(node.params["size"])
            return Written(text, ATOM if text.isidentifier() or text.isdigit() else 0, True)
        if len(numbers) == 1 and hasattr(math, node.op.name):
            return Written(f"math.{node.op.name}({numbers[0].text})", ATOM, True)
        return super()._expression(node)

    def _assigned(self, node: Node, found):  # type: ignore[no-untyped-def]
        result = super()._assigned(node, found)
        self.found.append((node, found.text))
        self.called[node] = result.text
        return result

    # ---- what they are called ------------------------------------------------------------------------------
    def _name(self, node: Node) -> str:
        wanted = self.names.get(node) or self.describe(node)
        if len(wanted) > _LONGEST and node not in self.names:
            wanted = _PLAIN.get(node.op.name, node.op.name)
        name = unique(wanted, self.taken, RESERVED)
        self.taken.add(name)
        return name

    def describe(self, node: Node) -> str:
        """A name that says what a value is."""
        return describe(node, self.called)


_INFIX = {"add": "plus", "sub": "minus", "mul": "times", "div": "over"}
_PLAIN = {"add": "total", "sub": "difference", "mul": "scaled", "div": "quotient", "neg": "minus", "pow": "power"}
_PLAIN |= {"einsum": "product"}


def describe(node: Node, called: Mapping[Node, str]) -> str:
    """A name that says what a value is: ``row_sum``, ``Q_K``, ``sigmoid_A``, ``X_minus_mean``."""
    if node in called:
        return called[node]
    if is_view(node):
        return describe(node.inputs[0], called)
    if not node.inputs:
        return str(node.params.get("size", node.params.get("name", "")))
    parts = [_part(i, called) for i in node.inputs]
    if is_product(node):
        return "_".join(parts) if all(parts) else "product"
    direction = _direction(node)
    if direction is not None:
        return direction + ("sum" if "operands" in node.params else node.op.name)
    if len(parts) == 1:
        plain = _PLAIN.get(node.op.name, node.op.name)
        return f"{plain}_{parts[0]}" if parts[0] else plain
    first, last = node.inputs[0], node.inputs[-1]
    if "size" in last.params and _direction(first) is not None and node.op.name == "div":
        return describe(first, called).replace("sum", "mean")
    if node.op.name in _INFIX and all(parts):
        return f"{parts[0]}_{_INFIX[node.op.name]}_{parts[-1]}"
    return _PLAIN.get(node.op.name, node.op.name)


def _part(node: Node, called: Mapping[Node, str]) -> str:
    name = describe(node, called)
    return name if len(name) <= _PART and name.isidentifier() else ""


def _direction(node: Node) -> str | None:
    """``row_``, ``column_``, ``total_`` for a reduction of one value; None for what is no reduction."""
    if len(node.inputs) != 1 or is_view(node) or not isinstance(node.inputs[0].type, TensorType):
        return None
    (x,) = node.inputs
    if x.type.rank <= node.type.rank:
        return None
    if node.type.rank != 1 or x.type.rank != 2:
        return "" if node.type.rank else "total_"
    operands, axes = node.params.get("operands"), node.params.get("axes", node.params.get("axis", 0))
    gone = axes if isinstance(axes, int) else axes[0]
    left = operands[0].index(node.params["result"][0]) if operands is not None else 1 - gone
    return "row_" if left == 0 else "column_"


def is_view(node: Node) -> bool:
    """Whether a value is another one's elements in place."""
    if len(node.inputs) != 1 or "index" in node.params:
        return False
    operands = node.params.get("operands")
    return node.op.family == "linear" if operands is None else sorted(operands[0]) == sorted(node.params["result"])


def is_product(node: Node) -> bool:
    """Whether a value is a product of two tensors that are contracted."""
    return len(node.params.get("operands", ())) > 1


def reading_sizes(sizes: Sequence[str], at_hand: Sequence[tuple[str, Node]]) -> tuple[list[str], list[str]]:
    """Lines that read sizes off tensors, and the sizes that none of them has."""
    lines, missing = [], []
    for size in sizes:
        for name, node in at_hand:
            if Dim(size) in node.shape:
                lines.append(f"{size} = {name}.shape[{node.shape.index(Dim(size))}]")
                break
        else:
            missing.append(size)
    return lines, missing
