"""What printers share: rendering a node from its op's template, brackets by binding strength, names for nodes.

``text`` and ``latex`` are the two targets. Reads ``Op.text``/``Op.latex``, ``precedence`` and ``child_precedence``;
a composite without a template prints as its expansion. Rendering walks the graph in topological order, so the depth
of a formula is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.interpreters.matrix_notation import contraction_text
from chainrule.ir import ATOM, MUL, UNARY, Node, toposort
from chainrule.ops.leaves import format_number


class Printer:
    """Renders nodes; subclasses are the styles of one language each.

    Args:
        names: node -> name to print in its place (the root itself is always written out).
    """

    field = "text"
    fallback_strength = ATOM  # of a contraction that has no matrix notation

    def __init__(self, names: Mapping[Node, str] | None = None) -> None:
        self.names = dict(names or {})
        self._done: dict[Node, tuple[str, int]] = {}

    def print(self, node: Node) -> str:
        """The text of a node."""
        own = self.names.pop(node, None)
        try:
            for n in toposort([node], stop=self.is_named):
                self.rendered(n)
            return self._done[node][0]
        finally:
            if own is not None:
                self.names[node] = own

    def is_named(self, node: Node) -> bool:
        """Whether a name stands for the node."""
        return node in self.names

    def rendered(self, node: Node) -> tuple[str, int]:
        """Text and binding strength."""
        if node not in self._done:
            self._done[node] = self._named(self.names[node]) if node in self.names else self._render(node)
        return self._done[node]

    def _named(self, name: str) -> tuple[str, int]:
        """A name; ``dy/df`` as a name binds like the quotient it looks like."""
        return self.symbol(name), MUL if "/" in name else ATOM

    def child(self, node: Node, strength: int) -> str:
        """The text of an operand, bracketed if it binds weaker than its place asks."""
        text, own = self.rendered(node)
        return text if own >= strength else self.brackets(text)

    def _render(self, node: Node) -> tuple[str, int]:
        template = getattr(node.op, self.field)
        if not template and node.op.expansion is not None:
            return self.rendered(node.op.expansion(*node.inputs, **node.params))
        if callable(template):
            found: Any = template(self, node)
            return found if isinstance(found, tuple) else (found, self._strength(node, found))
        asked = self.asked(node)
        parts = [self.child(i, s) for i, s in zip(node.inputs, asked, strict=True)]
        return template.format(*parts), node.op.precedence

    def asked(self, node: Node) -> Sequence[int]:
        """What strength each operand's place asks for."""
        return node.op.child_precedence or (0,) * len(node.inputs)

    def _strength(self, node: Node, text: str) -> int:
        if node.number is not None and text.startswith("-"):
            return UNARY
        if "/" in str(node.params.get("name", "")):
            return self._named(node.params["name"])[1]
        return node.op.precedence

    # ---- pieces that templates ask for ---------------------------------------------------------------------
    def number(self, value: Any) -> str:
        """A number."""
        return format_number(value)

    def symbol(self, name: str) -> str:
        """A variable's name."""
        return name

    def size(self, size: Any) -> str:
        """A dimension."""
        return str(size)

    def shape(self, shape: Sequence[Any]) -> str:
        """Sizes, separated by commas."""
        return ", ".join(self.size(s) for s in shape)

    def brackets(self, text: str) -> str:
        """Text in brackets."""
        return f"({text})"

    def array(self, array: Any) -> str:
        """An array constant, as a name for what cannot be written in a line."""
        return f"array{tuple(array.shape)}"

    def contraction(self, node: Node) -> tuple[str, int]:
        """An einsum in matrix notation where it has one."""
        return contraction_text(self, node)

    def identity(self, size: Any) -> str:
        """The identity matrix."""
        return f"eye({self.size(size)})"

    def broadcast(self, node: Node) -> tuple[str, int]:
        """A repeated value: ``ones(n)``, ``x * ones(m, n)``."""
        (x,) = node.inputs
        filled = self.call("ones", self.shape(node.params["shape"]))
        if x.number == 1:
            return filled, ATOM
        return self.hadamard([_Raw(*self.rendered(x)), _Raw(filled, ATOM)]), MUL

    def call(self, name: str, part: Any, axis: int | None = None) -> str:
        """A function call on a printed part."""
        inside = part if isinstance(part, str) else part.text
        return f"{name}({inside}{'' if axis is None else f', {axis}'})"

    def hadamard(self, parts: Sequence[Any]) -> str:
        """An elementwise product of printed parts; each language has its own."""
        raise NotImplementedError

    def operand(self, part: Any, strength: int) -> str:
        """A printed part, bracketed if it binds weaker than its place asks."""
        return part.text if part.strength >= strength else self.brackets(part.text)


class _Raw:
    def __init__(self, text: str, strength: int) -> None:
        self.text, self.strength = text, strength
