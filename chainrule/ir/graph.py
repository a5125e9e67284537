"""A program: nodes that are made once, and the graph that gives them names and origins.

A :class:`Node` is a value: op, inputs, static parameters and type. Making the same node twice gives the same object
(hash-consing), so derivatives share subexpressions by construction and equality of graphs is identity of nodes.
What a user calls a node (``f1``, ``layers.3``) and where it came from are facts about a program, not about the value:
they live on the :class:`Graph`, so merging equal nodes loses no names and no names leak from one program to another.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.dims import Dim
from chainrule.ir.op import OPS, Op
from chainrule.ir.summary import Summary
from chainrule.ir.types import TensorType, TupleType

_NODES: weakref.WeakValueDictionary[Any, Node] = weakref.WeakValueDictionary()


class Literal:
    """An array constant with identity by dtype, shape and bits, so that ``0.0``, ``-0.0`` and ``0`` differ."""

    __slots__ = ("_key", "array")

    def __init__(self, array: Any, dtype: str) -> None:
        self.array = np.ascontiguousarray(array)
        self.array = self.array.reshape(np.shape(array))  # ascontiguousarray makes 0-d arrays 1-d
        self.array.setflags(write=False)
        self._key = (dtype, self.array.dtype.str, self.array.shape, self.array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Literal) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        text = repr(self.array.tolist())
        return text if len(text) <= 40 else f"array{self.array.shape}:{hashlib.blake2b(self._key[3]).hexdigest()[:8]}"


class Node:
    """One value of a program. Never built directly: use :func:`apply`, the builders of ``chainrule.ops`` or operators.

    Attributes:
        op: the declaration. inputs: nodes. params: static parameters (read-only). type: TensorType or TupleType.
    """

    __slots__ = ("__weakref__", "_depth", "_digest", "_key", "_size", "inputs", "op", "params", "type")

    op: Op
    inputs: tuple[Node, ...]
    params: Mapping[str, Any]
    type: Any
    _digest: bytes | None
    _size: int | None
    _depth: int | None
    _key: Any

    # ---- shorthand -----------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int | Dim, ...]:
        """Shape of the value (of a node with one output)."""
        return self.type.shape

    @property
    def is_leaf(self) -> bool:
        """Whether it is an input or a constant of the program."""
        return not self.inputs

    @property
    def number(self) -> float | int | bool | None:
        """The Python number of a scalar constant, or None."""
        literal = self.params.get("literal")
        return literal.array.item() if literal is not None and literal.array.ndim == 0 else None

    # ---- operators: rules then read like their formulas ----------------------------------------------------
    def __add__(self, other: Any) -> Node:
        return _binary("add", self, other)

    def __radd__(self, other: Any) -> Node:
        return _binary("add", other, self)

    def __sub__(self, other: Any) -> Node:
        return _binary("sub", self, other)

    def __rsub__(self, other: Any) -> Node:
        return _binary("sub", other, self)

    def __mul__(self, other: Any) -> Node:
        return _binary("mul", self, other)

    def __rmul__(self, other: Any) -> Node:
        return _binary("mul", other, self)

    def __truediv__(self, other: Any) -> Node:
        return _binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return _binary("div", other, self)

    def __pow__(self, other: Any) -> Node:
        return _binary("pow", self, other)

    def __rpow__(self, other: Any) -> Node:
        return _binary("pow", other, self)

    def __neg__(self) -> Node:
        return apply(OPS["neg"], self)

    def __repr__(self) -> str:
        return f"<{describe(self)}: {self.type}>"


def apply(op: Op, *inputs: Node, **params: Any) -> Node:
    """The node of ``op`` on ``inputs``: runs the shape rule, and returns the existing node if there is one.

    Raises:
        ShapeError: the shape rule refuses the operands.
    """
    key = (op.name, inputs, tuple(sorted(params.items())))
    found = _NODES.get(key)
    if found is not None:
        return found
    try:
        type_ = op.shape(*(n.type for n in inputs), **params)
    except ShapeError as error:
        raise error.located(op.name) if not error.what.startswith(op.name) else error from None
    node = Node()
    node.op, node.inputs, node.type = op, inputs, type_
    node.params, node._key, node._digest, node._size, node._depth = MappingProxyType(params), key, None, None, None
    return _NODES.setdefault(key, node)


def variable(name: str, type: TensorType | None = None, structure: str | None = None) -> Node:
    """The leaf called ``name``. Two leaves are the same node if name, type and structure are the same."""
    known = {} if structure is None else {"structure": structure}
    return apply(OPS["input"], name=name, type=type or TensorType(), **known)


def fresh_variable(name: str, type: TensorType, taken: Iterable[Node]) -> Node:
    """A leaf called ``name``, or ``name'`` and so on, that is none of those ``taken``."""
    leaf = variable(name, type)
    while leaf in taken:
        name += "'"
        leaf = variable(name, type)
    return leaf


def constant(value: Any, dtype: str | None = None) -> Node:
    """A constant scalar or array. Without ``dtype``: Python's and NumPy's own, with floats as float64."""
    array = np.asarray(value)
    dtype = dtype or str(array.dtype)
    # bfloat16 does not exist in NumPy: such constants are kept in float32, which holds all its values.
    return apply(OPS["constant"], literal=Literal(array.astype(_stored(dtype)), dtype), dtype=dtype)


def _stored(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _binary(name: str, a: Any, b: Any) -> Node:
    return apply(OPS[name], as_node(a, like=b), as_node(b, like=a))


def as_node(value: Any, like: Any = None) -> Node:
    """A node as it is; a number as a constant, in the dtype of its partner ``like`` where that can hold it."""
    if isinstance(value, Node):
        return value
    if isinstance(value, Dim):
        return apply(OPS["dim"], size=value)
    if isinstance(like, Node) and isinstance(like.type, TensorType) and like.type.is_float:
        return constant(value, like.type.dtype)
    if type(value) is int and isinstance(like, Node) and "int" in getattr(like.type, "dtype", ""):
        return constant(value, like.type.dtype)
    return constant(float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value)


def describe(node: Node) -> str:
    """One line that names a node in messages: ``mul(x, exp)``, parameters included."""
    if not node.inputs:
        return str(node.params.get("name", node.params.get("literal", node.op.name)))
    inner = [i.params["name"] if "name" in i.params and not i.inputs else i.op.name for i in node.inputs]
    params = [f"{k}={v!r}" for k, v in node.params.items()]
    return f"{node.op.name}({', '.join([*map(str, inner), *params])})"


# ---- traversal ---------------------------------------------------------------------------------------------
def toposort(outputs: Iterable[Node], stop: Callable[[Node], bool] | None = None) -> list[Node]:
    """Every node that ``outputs`` need, inputs before users, in a deterministic order. Iterative: depth is no limit.

    ``stop(node)`` keeps a node but not what it needs.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    for root in outputs:
        stack: list[tuple[Node, Iterator[Node]]] = []
        if root not in seen:
            seen.add(root)
            stack.append((root, iter(() if stop and stop(root) else root.inputs)))
        while stack:
            node, rest = stack[-1]
            for child in rest:
                if child not in seen:
                    seen.add(child)
                    stack.append((child, iter(() if stop and stop(child) else child.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def digest(node: Node) -> bytes:
    """A structural hash, the same in every process: for canonical order, caches and repeated blocks."""
    if node._digest is None:
        for n in toposort([node], stop=lambda n: n._digest is not None):
            if n._digest is None:
                body = repr((n.op.name, sorted((k, _stable(v)) for k, v in n.params.items())))
                parts = [body.encode(), *(i._digest or b"" for i in n.inputs)]
                n._digest = hashlib.blake2b(b"|".join(parts), digest_size=12).digest()
    assert node._digest is not None
    return node._digest


def tree_size(node: Node) -> int:
    """Operators and operands of the expression written out in full: what simplification makes small."""
    if node._size is None:
        for n in toposort([node], stop=lambda n: n._size is not None):
            if n._size is None:
                extra = max(0, len(n.inputs) - 2)  # a product of three operands has two operators
                n._size = min(1 + extra + sum(i._size or 0 for i in n.inputs), 10**12)
    assert node._size is not None
    return node._size


def algebraic_depth(node: Node) -> int:
    """How deep sums and products are nested below a node without another function between them."""
    if node._depth is None:
        for n in toposort([node], stop=lambda n: n._depth is not None):
            if n._depth is None:
                n._depth = 0 if n.op.terms is None else 1 + max((i._depth or 0 for i in n.inputs), default=0)
    assert node._depth is not None
    return node._depth


def _stable(value: Any) -> str:
    return value._key.__repr__() if isinstance(value, Literal) else repr(value)


@dataclass(frozen=True)
class Origin:
    """Where a node came from: a column of a formula, or a module path and a source line.

    ``str()`` is how messages name it: ``column 7 of 'y = exp(x)'`` or ``encoder.0 (model.py:41)``.
    """

    text: str = ""
    position: int | None = None
    module: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.position is not None:
            return f"column {self.position + 1} of {self.text!r}"
        place = f"{self.file}:{self.line}" if self.file else ""
        return f"{self.module} ({place})" if self.module and place else self.module or place or "?"


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: inputs in calling order, outputs, and what the user calls its nodes.

    Attributes:
        inputs: leaves, in calling order. outputs: nodes. output_names: one per output.
        names: name -> node; several names may mean one node. origins: node -> Origin.
        draws: random draws that run whether an output needs them or not: each moves the generator for the next.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    output_names: tuple[str, ...] = ()
    names: Mapping[str, Node] = field(default_factory=dict)
    origins: Mapping[Node, Origin] = field(default_factory=dict)
    draws: tuple[Node, ...] = ()

    @property
    def nodes(self) -> list[Node]:
        """All nodes that the outputs need, inputs before users."""
        return toposort(self.outputs)

    def schedule(self) -> list[Node]:
        """Like :attr:`nodes`, with every random draw after all draws before it in the program, used or not."""
        order: list[Node] = []
        seen: set[Node] = set()
        needed = toposort([*self.outputs, *self.draws])
        waiting = sorted((n for n in needed if not n.op.pure), key=lambda n: n.params["stream"])

        def run(node: Node) -> None:
            for n in toposort([node], stop=seen.__contains__):
                if n not in seen:
                    seen.add(n)
                    order.append(n)

        if not waiting:
            return toposort(self.outputs)
        for node in toposort(self.outputs):
            while not node.op.pure and waiting and waiting[0].params["stream"] < node.params["stream"]:
                run(waiting.pop(0))
            run(node)
        for node in waiting:
            run(node)
        return order

    def output(self, name: str) -> Node:
        """The output called ``name``."""
        return self.outputs[self.output_names.index(name)]

    def name_of(self) -> dict[Node, str]:
        """node -> its first name: what printers write in its place."""
        result: dict[Node, str] = {}
        for name, node in self.names.items():
            result.setdefault(node, name)
        return result

    def map(self, image: Mapping[Node, Node]) -> Graph:
        """The same program after a pass: outputs, names and origins follow ``image`` (node -> new node)."""
        names = {name: image.get(node, node) for name, node in self.names.items()}
        origins = {image.get(node, node): origin for node, origin in self.origins.items()}
        outputs = tuple(image.get(node, node) for node in self.outputs)
        draws = tuple(image.get(node, node) for node in self.draws)
        return replace(self, outputs=outputs, names=names, origins=origins, draws=draws)

    def op_counts(self) -> dict[str, int]:
        """How many nodes of each op."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.op.name] = counts.get(node.op.name, 0) + 1
        return dict(sorted(counts.items()))

    def summary(self) -> Summary:
        """What the program holds: declared ops, composites with a kernel of their own, opaque calls, constants."""
        return Summary.of(self.nodes)

    def __str__(self) -> str:
        return canonical_text(self)


def rebuild(
    outputs: Sequence[Node],
    replace_node: Callable[[Node, tuple[Node, ...]], Node] | None = None,
    image: Mapping[Node, Node] | None = None,
) -> dict[Node, Node]:
    """node -> new node over everything ``outputs`` need, inputs first.

    ``image`` gives replacements from the start (a substitution); ``replace_node(node, new inputs)`` makes the new
    node, by default the same op on the new inputs.
    """
    done: dict[Node, Node] = dict(image or {})
    for node in toposort(outputs, stop=lambda n: n in done):
        if node in done:
            continue
        inputs = tuple(done[i] for i in node.inputs)
        if replace_node is not None:
            done[node] = replace_node(node, inputs)
        else:
            done[node] = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
    return done


def substitute_nodes(outputs: Sequence[Node], image: Mapping[Node, Node]) -> tuple[Node, ...]:
    """``outputs`` with nodes replaced by others of the same type."""
    done = rebuild(outputs, image=image)
    return tuple(done[node] for node in outputs)


def canonical_text(graph: Graph) -> str:
    """One line per node, numbered in topological order: equal programs have equal text, in every process.

    >>> import chainrule as cr
    >>> print(cr.formula("x*x + 1").graph)
    %0 = input name='x' : float64[]
    %1 = mul %0 %0 : float64[]
    %2 = constant 1.0 : float64[]
    %3 = add %1 %2 : float64[]
    return %3
    """
    number: dict[Node, int] = {}
    lines = []
    for node in graph.nodes:
        number[node] = len(number)
        inputs = [f"%{number[i]}" for i in node.inputs]
        shown = {k: v for k, v in node.params.items() if k not in ("type", "dtype")}
        params = [repr(v) if k == "literal" else f"{k}={v!r}" for k, v in shown.items()]
        lines.append(" ".join([f"%{number[node]} =", node.op.name, *inputs, *params, ":", str(node.type)]))
    lines.append("return " + ", ".join(f"%{number[o]}" for o in graph.outputs))
    return "\n".join(lines)


def item(node: Node, index: int) -> Node:
    """Output ``index`` of a node with several."""
    assert isinstance(node.type, TupleType)
    return apply(OPS["item"], node, index=index)
