"""What ``d.code`` writes: the value of a program and its derivatives, each as a graph of the same arguments.

For a scalar: gradient, Hessian and Hessian-vector product; for other outputs: Jacobian and vector-Jacobian product.
A derivative is taken as it is printed, unless straight reverse mode needs clearly fewer multiplications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.backends.source import NUMPY, lower
from chainrule.errors import ChainruleError, UnsupportedOpError
from chainrule.interpreters.cost import multiplications
from chainrule.interpreters.differentiate import vjp, zeros_like
from chainrule.interpreters.linearize import jacobian
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Dim, Graph, Node, TensorType, constant, fresh_variable, toposort, tree_size
from chainrule.ir.dims import substitute
from chainrule.ops.contraction import einsum, permute
from chainrule.ops.movement import broadcast
from chainrule.verbs.expression import Expression

_CLEARLY = 1.1  # times the multiplications, from which on another form is written than the printed one
_MOST_NODES = 120  # of a Hessian that is written out, after lowering
_MOST_SIZE = 60  # operators and operands of a gradient whose own derivative is brought into closed form
_MOST_PRODUCT = 5000  # and of one that is derived once more at all
_STAND_IN = 16  # for a size that is a name


@dataclass(frozen=True)
class Part:
    """One function to write. ``kind``: ``value gradient hessian product third jacobian vjp``."""

    name: str
    kind: str
    graph: Graph
    doc: str


@dataclass(frozen=True)
class Derivatives:
    """The functions of a result.

    Attributes:
        inputs: arguments of all of them. wrt: those that are derived by. vectors: further arguments of the products.
        layout: of a Jacobian. definitions, closed_forms: ``(name, text)`` to be read.
    """

    inputs: tuple[Node, ...]
    wrt: tuple[Node, ...]
    vectors: tuple[Node, ...]
    parts: tuple[Part, ...]
    layout: str
    definitions: tuple[tuple[str, str], ...]
    closed_forms: tuple[tuple[str, str], ...]

    def part(self, kind: str) -> Part | None:
        """The function of a kind, if it is there."""
        return next((p for p in self.parts if p.kind == kind), None)


def derivatives(result: Any) -> Derivatives:
    """The functions of a DeriveResult.

    Raises:
        ChainruleError: it derives by a named quantity together with others, or holds random draws.
    """
    program = result.program
    cut = [w for w in result.wrt if w not in program.variables]
    if cut and len(result.wrt) > 1:
        raise ChainruleError(
            "no code for derivatives by a named quantity together with others",
            given=", ".join(result.wrt),
            required=f"variables, or {cut[0]} alone",
        )
    definitions = {s: n for s, n in program.definitions.items() if not cut or s is not program.symbol[cut[0]]}
    full = {n: Expression(program.symbol[n], definitions).full for n in program.order}
    output = full[program.output]
    targets = tuple(program.symbol[w] for w in result.wrt)
    scalar, seed = output, None
    first = result.derivatives[result.wrt[0]]
    if output.shape != () and first.shape == targets[0].shape * result.order:  # a cotangent was given
        seed = _seed(first.full, output, [*program.variables.values(), *program.symbol.values()])
        indices = tuple(range(output.type.rank))
        scalar = einsum(([indices, indices], ()), output, seed)
    reached = set(toposort([scalar]))
    if any(not n.op.pure for n in reached):
        raise ChainruleError("no code for a program with random draws", required="a function of its arguments alone")
    inputs = [v for v in program.variables.values() if v in reached or v in targets]
    inputs += [n for n in (*targets, *([seed] if seed is not None else [])) if n not in inputs]
    names = {n: node for n, node in full.items() if node.inputs}
    writer = _Parts(tuple(inputs), targets, names, result, {} if cut else {w: result[w].full for w in result.wrt})
    parts = writer.of_scalar(scalar) if scalar.shape == () else writer.of_tensor(output)
    order = "" if result.order == 1 else str(result.order)
    closed = tuple((f"d{order}{result.of}/d{w}{order}", e.text) for w, e in result.derivatives.items())
    where = tuple(item for e in result.derivatives.values() for item in e.where)
    read = tuple((n, Expression(program.local[n]).text) for n in program.order)
    return Derivatives(tuple(inputs), targets, writer.vectors, parts, result.layout, read, (*where, *closed))


def _seed(derivative: Node, output: Node, taken: Sequence[Node]) -> Node:
    """The cotangent that a vector-Jacobian product was asked for with."""
    known = {n for n in taken}
    leaves = [n for n in toposort([derivative]) if n.is_leaf and "name" in n.params and n not in known]
    return leaves[0] if leaves else fresh_variable("g", output.type, taken)


class _Parts:
    def __init__(
        self,
        inputs: tuple[Node, ...],
        wrt: tuple[Node, ...],
        names: Mapping[str, Node],
        result: Any,
        printed: Mapping[str, Node],
    ) -> None:
        self.inputs, self.wrt, self.names, self.result, self.printed = inputs, wrt, names, result, printed
        self.vectors: tuple[Node, ...] = ()
        self.of = str(result.of)
        self.by = ", ".join(str(w.params["name"]) for w in wrt)

    def of_scalar(self, output: Node) -> tuple[Part, ...]:
        parts = [self._part("value", "value", [output], "The value.")]
        gradients = []
        back = vjp([output], [constant(1.0, output.type.dtype)], self.wrt)
        for w, g in zip(self.wrt, back, strict=True):
            straight = g if g is not None else zeros_like(w)
            printed = self.printed.get(str(w.params["name"])) if self.result.order == 1 else simplify(straight)
            gradients.append(self._cheapest(printed, straight))
        parts.append(self._part("gradient", "gradient", gradients, "The gradient, in the shape of its variable."))
        size = max(tree_size(g) for g in gradients)
        hessian = self._hessian(gradients) if size <= _MOST_SIZE or self.result.order > 1 else None
        if hessian is not None:
            parts.append(hessian)
        product = self._product(gradients) if size <= _MOST_PRODUCT else None
        parts += [product] if product is not None else []
        return tuple(parts + self._third(hessian.graph.outputs[0] if hessian is not None else None))

    def of_tensor(self, output: Node) -> tuple[Part, ...]:
        parts = [self._part("value", "value", [output], "The value.")]
        layout = self.result.layout
        jacobians = []
        for w in self.wrt:
            printed = self.printed.get(str(w.params["name"])) if self.result.order == 1 else None
            jacobians.append(printed if printed is not None else _jacobian(output, w, layout))
        shapes = "the variable's dimensions, then the value's"
        if layout == "numerator":
            shapes = "the value's dimensions, then the variable's"
        parts.append(self._part("jacobian", "jacobian", jacobians, f"The derivative: {shapes}."))
        if self.result.order > 1:
            second = [self._second(j, w, output.type.rank) for j, w in zip(jacobians, self.wrt, strict=True)]
            shapes = "the value's dimensions, then the variable's twice"
            parts.append(self._part("hessian", "hessian", second, f"The second derivative: {shapes}."))
            parts += self._third(second[0])
        g = fresh_variable("g", TensorType(output.shape, output.type.dtype), self.inputs)
        self.vectors = (g,)
        back = vjp([output], [g], self.wrt)
        products = []
        for w, found in zip(self.wrt, back, strict=True):
            straight = found if found is not None else zeros_like(w)
            products.append(self._cheapest(simplify(straight), straight))
        doc = "The product of a cotangent of the value with the derivative, in the shape of the variable."
        parts.append(self._part("vjp", "vjp", products, doc, (g,)))
        return tuple(parts)

    def _second(self, first: Node, w: Node, rank_f: int) -> Node:
        """The second derivative: value, variable, variable."""
        printed = self.printed.get(str(w.params["name"])) if self.result.order == 2 else None
        if printed is not None:
            return printed
        rank = w.type.rank
        if self.result.layout == "denominator" and rank_f:
            first = permute(first, (*range(rank, rank + rank_f), *range(rank)))
        return _jacobian(first, w, "numerator")

    def _third(self, hessian: Node | None) -> list[Part]:
        """The third derivative, if it was asked for and its check has a second one to start from."""
        if self.result.order != 3 or hessian is None or len(self.wrt) != 1:
            return []
        (w,) = self.wrt
        found = self.printed.get(str(w.params["name"]))
        third = found if found is not None else _jacobian(hessian, w, "numerator")
        doc = "The third derivative: the value's dimensions, then the variable's three times."
        return [self._part("third_derivative", "third", [third], doc)]

    def _hessian(self, gradients: Sequence[Node]) -> Part | None:
        """The whole second derivative, where it is one matrix or small tensor of moderate size."""
        if self.result.order > 1:
            found = [self._second(g, w, 0) for g, w in zip(gradients, self.wrt, strict=True)]
            return self._part("hessian", "hessian", found, "The Hessian: the variable's dimensions twice.")
        if len(self.wrt) != 1 or self.wrt[0].type.rank > 2:
            return None
        (w,) = self.wrt
        try:
            hessian = _jacobian(gradients[0], w, "numerator")
        except UnsupportedOpError:  # no closed tensor form; the product needs none
            return None
        part = self._part("hessian", "hessian", [hessian], "The Hessian: the variable's dimensions twice.")
        nodes = lower(part.graph, NUMPY).nodes
        # Where the way to it is larger than itself, or long, the product with a vector is the better answer.
        moderate = len(nodes) <= _MOST_NODES and all(n.type.rank <= 2 * w.type.rank for n in nodes)
        return part if moderate else None

    def _product(self, gradients: Sequence[Node]) -> Part | None:
        """The Hessian times a vector: the gradient of <gradient, v>, the Hessian being symmetric."""
        names = ["v"] if len(self.wrt) == 1 else [f"v_{w.params['name']}" for w in self.wrt]
        self.vectors = tuple(
            fresh_variable(n, TensorType(w.shape, w.type.dtype), self.inputs)
            for n, w in zip(names, self.wrt, strict=True)
        )
        along: Node | None = None
        for g, v in zip(gradients, self.vectors, strict=True):
            indices = tuple(range(v.type.rank))
            inner = einsum(([indices, indices], ()), g, v)
            along = inner if along is None else along + inner
        assert along is not None
        try:
            back = vjp([along], [constant(1.0, along.type.dtype)], self.wrt)
        except UnsupportedOpError:
            self.vectors = ()
            return None
        found = []
        for w, b in zip(self.wrt, back, strict=True):
            straight = b if b is not None else zeros_like(w)
            small = tree_size(straight) <= 4 * _MOST_SIZE
            found.append(self._cheapest(simplify(straight, exact=not small), straight))
        doc = "The Hessian times a vector in the shape of the variable."
        return self._part("hessian_vector_product", "product", found, doc, self.vectors)

    def _part(self, name: str, kind: str, outputs: Sequence[Node], doc: str, vectors: tuple[Node, ...] = ()) -> Part:
        graph = Graph((*self.inputs, *vectors), tuple(outputs), (), dict(self.names))
        return Part(name, kind, graph, doc if len(outputs) == 1 else f"{doc[:-1]}, for each variable.")

    def _cheapest(self, printed: Node | None, straight: Node) -> Node:
        """The printed form unless it takes clearly more multiplications than reverse mode as it comes."""
        if printed is None:
            return straight
        straight = simplify(straight, exact=True)
        return printed if self._cost(printed) <= _CLEARLY * self._cost(straight) + 40 else straight

    def _cost(self, node: Node) -> int:
        graph = lower(Graph(self.inputs, (node,), (), dict(self.names)), NUMPY)
        total = multiplications(graph.outputs)
        if isinstance(total, Dim):
            total = substitute(total, dict.fromkeys(total.names, _STAND_IN))
        return int(total)


def _jacobian(output: Node, w: Node, layout: str) -> Node:
    found = jacobian(output, w, layout)
    shape = (*w.shape, *output.shape) if layout == "denominator" else (*output.shape, *w.shape)
    return found if found is not None else broadcast(constant(0.0, output.type.dtype), shape)
