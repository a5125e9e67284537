"""A graph as a function in source text: one product, solve or sum per line, elementwise steps joined while short.

Every op says in ``Op.code`` (torch: else in ``Op.torch``) how it is written. The text is made from the graph alone:
names are reduced to identifiers, and no text of a user's is ever part of an expression.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.backends.identifiers import unique
from chainrule.backends.source.languages import TORCH, Language
from chainrule.backends.source.lower import lower
from chainrule.backends.source.sizes import names_of_sizes, reading, with_valid_sizes
from chainrule.errors import BackendError
from chainrule.ir import ATOM, UNARY, Dim, Graph, Node, TensorType, describe, shape_text
from chainrule.ops.leaves import format_number

_WIDTH = 70  # columns of an expression that is not given a name of its own
RESERVED = frozenset(("np", "jnp", "jax", "torch", "math", "float", "tuple", "len", "_"))
_WHOLE_ARGUMENT = re.compile(r"[(,]\s*\{(\d)\}(?=\s*[,)])")


@dataclass(frozen=True)
class Function:
    """A function as text. ``sizes``: keyword arguments for sizes that no shape tells. ``ops``: what it calls."""

    name: str
    text: str
    arguments: tuple[str, ...]
    sizes: tuple[str, ...]
    helpers: tuple[str, ...] = field(default=())


def write(
    graph: Graph, name: str, language: Language, doc: str = "", derivative: bool = False, packed: bool = False
) -> Function:
    """A function of the graph's inputs that returns its outputs (one as it is, several as a tuple).

    Args:
        graph: sizes may be names; they are read from the arguments' shapes. derivative: whether it is one.
        name: of the function. language: what it is written in. doc: one line on what it returns.
        packed: whether one output is returned as a tuple as well.
    Raises:
        BackendError: an op that says nothing about the language, or a leaf that is no input of the graph.
    """
    taken: list[str] = []
    for i in graph.inputs:
        taken.append(unique(str(i.params["name"]), taken, RESERVED))
    arguments = tuple(taken)
    graph, _ = with_valid_sizes(graph, arguments)
    return Writer(lower(graph, language, derivative), arguments, language).function(name, doc, packed)


def helpers(functions: Iterable[Function]) -> list[str]:
    """The helper functions that some functions call, each once."""
    return list(dict.fromkeys(h for f in functions for h in f.helpers))


@dataclass(frozen=True)
class Written:
    """The text of a value, its binding strength, and whether it is a Python number rather than an array."""

    text: str
    strength: int = ATOM
    number: bool = False


class Writer:
    """Writes the values of a graph in order. Neighbour ``passes`` gives them names and keeps the lines apart."""

    def __init__(self, graph: Graph, arguments: Sequence[str], language: Language) -> None:
        self.graph, self.language = graph, language
        self.arguments = tuple(arguments)
        self.written: dict[Node, Written] = dict(zip(graph.inputs, (Written(a) for a in arguments), strict=True))
        self.sizes = names_of_sizes(graph)
        self.taken = {*arguments, *self.sizes}
        self.names = graph.name_of()
        nodes = graph.nodes
        self.uses = Counter(i for node in nodes for i in node.inputs)
        self.users = {i: node for node in nodes for i in node.inputs}
        self.like = next((a for a, i in zip(arguments, graph.inputs, strict=True) if i.type.is_float), None)
        dtype = next((i.type.dtype for i in graph.inputs if i.type.is_float), "float64")
        self.dtype = f"torch.{dtype}"  # torch's name for the numbers of the program
        self.lines: list[str] = []
        self.helpers: dict[str, None] = {}
        self.bodies: dict[Graph, str] = {}
        self.function_name = ""
        self.count = 0

    def compute(self) -> None:
        """Writes every value: joined to what uses it, or as a line."""
        for node in self.graph.nodes:
            if node in self.written:
                continue
            if "name" in node.params and node.is_leaf:
                raise BackendError(
                    f"{describe(node)} is read but is no input of the graph",
                    required="every leaf among graph.inputs",
                )
            found = self._expression(node)
            self.written[node] = found if self._joins(node, found) else self._assigned(node, found)

    def function(self, name: str, doc: str, packed: bool) -> Function:
        """The text of a function that computes the outputs."""
        self.function_name = name
        self.compute()
        returned = ", ".join(self._array(o) for o in self.graph.outputs)
        if packed and len(self.graph.outputs) == 1:
            returned = f"({returned},)"
        used = set(re.findall(r"\w+", " ".join([*self.lines, returned])))
        inputs = list(zip(self.arguments, self.graph.inputs, strict=True))
        wanted = [s for s in self.sizes if s in used or any(s in _names(i) for _, i in inputs)]
        top, missing = reading(inputs, wanted)
        missing = [m for m in missing if m in used or any(m in re.findall(r"\w+", line) for line in top)]
        parameters = [*self.arguments, *(["*", *missing] if missing else [])]
        body = [*([f'"""{doc}"""'] if doc else []), *top, *self.lines, f"return {returned}"]
        text = "\n".join([f"def {name}({', '.join(parameters)}):", *(f"    {line}" for line in body), ""])
        if self.language is TORCH and self.like:
            # The dtype of the arguments is the caller's choice: what a rule calls float64 is that of the first one.
            text = text.replace(", device='cpu'", "")
            text = text.replace(f"dtype={self.dtype}", f"dtype={self.like}.dtype, device={self.like}.device")
            text = text.replace(self.dtype, f"{self.like}.dtype") if self._has_one_dtype() else text
        return Function(name, text, self.arguments, tuple(missing), tuple(self.helpers))

    def _has_one_dtype(self) -> bool:
        types = [n.type for n in self.graph.nodes if isinstance(n.type, TensorType) and n.type.is_float and n.shape]
        return len({t.dtype for t in types}) <= 1

    # ---- lines ---------------------------------------------------------------------------------------------
    def _joins(self, node: Node, found: Written) -> bool:
        """Whether a value is written where it is used instead of on a line of its own."""
        if found.number or (node.is_leaf and len(found.text) < 12):
            return True
        if node in self.names or not isinstance(node.type, TensorType):
            return False
        if _is_view(node) and len(found.text) < 24:
            return True
        if self.uses[node] > 1 or len(found.text) > _WIDTH:
            return False
        user = self.users.get(node)
        if user is None:
            return True
        return node.op.family in ("elementwise", "linear") and self._takes_once(user, node)

    def _takes_once(self, user: Node, operand: Node) -> bool:
        """Whether the words of ``user`` hold the operand once."""
        words = self.language.words(user.op)
        if isinstance(words, str):
            return words.count(f"{{{user.inputs.index(operand)}}}") == 1
        return not self.language.borrows(user.op)

    def _assigned(self, node: Node, found: Written) -> Written:
        name = self._name(node)
        shape = f"  # {_kind(node)}" if isinstance(node.type, TensorType) else ""
        self.lines.append(f"{name} = {found.text}{shape}")
        return Written(name)

    def _name(self, node: Node) -> str:
        if node in self.names:
            name = unique(self.names[node], self.taken, RESERVED)
        else:
            while (name := f"t{self.count}") in self.taken:
                self.count += 1
        self.taken.add(name)
        return name

    # ---- expressions ---------------------------------------------------------------------------------------
    def _expression(self, node: Node) -> Written:
        if node.number is not None:
            return _number(node.number)
        words = self.language.words(node.op)
        if words is None:
            raise BackendError(
                f"op {node.op.name!r} cannot be written in {self.language.name}",
                given=describe(node),
                required="a `code` field, or an expansion",
                instead="declare it in chainrule/ops (docs/adding-an-op.md)",
            )
        self.helpers.update(dict.fromkeys(self.language.helpers(node.op)))
        if self.language.borrows(node.op):
            assert callable(words)
            return Written(str(words(node, [self._array(i, ATOM) for i in node.inputs])))
        if callable(words):
            found = words(_Words(self, node), node)
            text, strength = found if isinstance(found, tuple) else (found, ATOM)
            return Written(text, strength, node.is_leaf and node.shape == ())
        return self._template(node, words)

    def _template(self, node: Node, template: str) -> Written:
        """Operators ask their operands for strength, a function takes any expression as a whole argument."""
        if "(" not in template:
            asked = node.op.child_precedence or (node.op.precedence + 1,) * len(node.inputs)
            operands = [self._operand(i, s) for i, s in zip(node.inputs, asked, strict=True)]
            numbers = all(self.written[i].number for i in node.inputs)
            return Written(template.format(*operands), node.op.precedence, numbers)
        whole = {int(k) for k in _WHOLE_ARGUMENT.findall(template)}
        operands = [self._array(i, 0 if k in whole else ATOM) for k, i in enumerate(node.inputs)]
        return Written(template.format(*operands, np=self.language.np))

    def _operand(self, node: Node, strength: int) -> str:
        found = self.written[node]
        return found.text if found.strength >= strength else f"({found.text})"

    def _array(self, node: Node, strength: int = 0) -> str:
        """An operand of a function: torch wants a tensor where NumPy takes a number."""
        if self.language is TORCH and self.written[node].number:
            return f"torch.tensor({self.written[node].text}, dtype={self.dtype})"
        return self._operand(node, strength)


class _Words:
    """What a rule writes with: ``w(k, strength)`` is operand k, bracketed where it binds less than ``strength``."""

    def __init__(self, writer: Writer, node: Node) -> None:
        self._writer, self._node = writer, node
        self.np = writer.language.np
        self.dtype = f", dtype={writer.dtype}" if writer.language is TORCH else ""  # of a new array

    def __call__(self, k: int, strength: int = 0) -> str:
        return self._writer._array(self._node.inputs[k], strength)

    def number(self, k: int) -> str | None:
        """The text of operand k if it is a Python number."""
        found = self._writer.written[self._node.inputs[k]]
        return found.text if found.number else None

    def body(self, body: Graph) -> str:
        """The name of a function for the body of a loop, written above."""
        writer = self._writer
        if body not in writer.bodies:
            name = writer.bodies[body] = f"{writer.function_name}_body{len(writer.bodies)}"
            inner = write(body, name, writer.language, packed=True)
            writer.helpers.update(dict.fromkeys((*inner.helpers, inner.text)))
        return writer.bodies[body]

    def size(self, size: int | Dim) -> str:
        """A size, which is a variable of the function where it is a name."""
        return str(size)

    def shape(self, sizes: Sequence[int | Dim]) -> str:
        """A tuple of sizes."""
        return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"

    def index(self, parts: Iterable[str]) -> str:
        """Operand 0 indexed."""
        number = self.number(0)
        operand = self(0, ATOM) if number is None or self.np == "torch" else f"{self.np}.asarray({number})"
        return f"{operand}[{', '.join(parts)}]"

    def cast(self, k: int, dtype: str) -> str:
        """Operand k in another dtype."""
        if self._writer.language is TORCH:
            return f"{self(k, ATOM)}.to(torch.{dtype})"
        return f"{self.np}.asarray({self(k)}).astype({self.np}.{dtype if dtype != 'bool' else 'bool_'})"

    def array(self, values: Any) -> str:
        """A constant array."""
        return f"{self.np}.array({values.tolist()!r})"


def _names(node: Node) -> set[str]:
    return {name for s in node.shape if isinstance(s, Dim) for name in s.names}


def _number(value: float | int | bool) -> Written:
    if isinstance(value, bool):
        return Written(str(value), ATOM, True)
    if not np.isfinite(value):
        return Written(f'float("{value}")', ATOM, True)
    text = format_number(value)
    return Written(text, UNARY if text.startswith("-") else ATOM, True)


def _is_view(node: Node) -> bool:
    """Whether writing it again costs nothing: a permutation, or dimensions of size 1."""
    operands = node.params.get("operands")
    if operands is not None:
        return len(operands) == 1 and sorted(operands[0]) == sorted(node.params["result"])
    return node.op.family == "linear" and "axes" in node.params and not node.op.cost


def _kind(node: Node) -> str:
    """``scalar``, ``vector n``, ``matrix m x n``, ``tensor b x m x n``."""
    rank = node.type.rank
    kind = {0: "", 1: "vector ", 2: "matrix "}.get(rank, "tensor ")
    return f"{kind}{shape_text(node.shape)}"
