"""An expression: a node with the names that stand for parts of it, printed, compared and evaluated.

Derivations keep the user's intermediate names (``f3``) as leaves of a node and remember what they mean; evaluation
and comparison put the meaning back, so they need the original variables only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, ShapeError
from chainrule.frontends.formula import parse
from chainrule.interpreters import simplify as simplification
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.latex import latex
from chainrule.interpreters.text import text
from chainrule.ir import Graph, Node, shape_text, substitute_nodes, toposort, tree_size, variable

_WRITTEN_OUT = 400  # operators and operands; longer expressions name the parts that occur several times


@dataclass(frozen=True, eq=False)
class Expression:
    """One formula: ``str(e)`` is its text in the formula language.

    Attributes:
        node: the value, some of whose leaves may be names of intermediates.
        definitions: those leaves -> what they mean.

    >>> import chainrule as cr
    >>> e = cr.formula("(x + 1)^2 - x^2")
    >>> e.text, e.simplified().text
    ('(x + 1)^2 - x^2', '1 + 2 * x')
    """

    node: Node
    definitions: Mapping[Node, Node] = field(default_factory=dict)

    # ---- reading -------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes of its dimensions; ``()`` is a scalar."""
        return self.node.shape

    @property
    def text(self) -> str:
        """The formula language; parts named in :attr:`where` are written by name."""
        return text(self.node, self._invented())

    @property
    def latex(self) -> str:
        """LaTeX in math mode."""
        return latex(self.node, self._invented())

    @property
    def where(self) -> tuple[tuple[str, str], ...]:
        """``(name, text)`` of the names that were invented to keep the text short."""
        invented = self._invented()
        return tuple((name, text(node, invented)) for node, name in invented.items())

    @property
    def size(self) -> int:
        """Operators and operands of text and where."""
        invented = self._invented()
        if not invented:
            return tree_size(self.node)
        image = {node: variable(name, node.type) for node, name in invented.items()}
        bodies = [self.node, *invented]
        return sum(tree_size(_cut(body, image)) for body in bodies)

    def _invented(self) -> dict[Node, str]:
        """Names for parts that occur several times in an expression too long to write out."""
        if tree_size(self.node) <= _WRITTEN_OUT:
            return {}
        uses: dict[Node, int] = {}
        order = toposort([self.node])
        for node in order:
            for i in node.inputs:
                uses[i] = uses.get(i, 0) + 1
        taken = {n.params["name"] for n in order if "name" in n.params}
        names: dict[Node, str] = {}
        for node in order:
            if node.inputs and uses.get(node, 0) > 1 and tree_size(node) > 3 and node is not self.node:
                name = f"t{len(names) + 1}"
                while name in taken:
                    name += "_"
                names[node] = name
        return names

    @property
    def full(self) -> Node:
        """The node with all intermediates replaced by what they mean."""
        return resolve(self.node, self.definitions)

    @property
    def graph(self) -> Graph:
        """The program that computes it from the original variables."""
        root = self.full
        inputs = tuple(n for n in toposort([root]) if "name" in n.params and n.is_leaf)
        return Graph(inputs, (root,), ("",))

    # ---- computing -----------------------------------------------------------------------------------------
    def evaluate(self, **arrays: Any) -> Any:
        """Its value in NumPy float64, given the original variables by name.

        Args:
            arrays: the variables; a whole number under another name is the size of that dimension (``n=3``). What the
                expression does not contain is passed over.

        Raises:
            ShapeError: a missing variable, or an array of the wrong shape.
        """
        graph = self.graph
        names = {n.params["name"] for n in graph.inputs}
        sizes = {k: int(v) for k, v in arrays.items() if k not in names and np.ndim(v) == 0 and v == int(v)}
        values = {n: arrays[n.params["name"]] for n in graph.inputs if n.params["name"] in arrays}
        return evaluate(graph.outputs, values, sizes)[0]

    def simplified(self) -> Expression:
        """The same function, shorter."""
        return Expression(simplification.simplify(self.node), self.definitions)

    def equals(self, other: Expression | str, *, exact: bool = False) -> bool:
        """Whether two expressions are the same function: by algebra, else by values at random points.

        ``exact=True`` uses algebra alone: False then means only that it could not be shown.
        """
        other = formula(other) if isinstance(other, str) else other
        if self.shape != other.shape:
            return False
        if simplification.equal(self.full, other.full):
            return True
        return False if exact else agree_at_random_points(self.full, other.full)[0]

    # ---- showing -------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        lines = [self.text]
        lines += [f"  where {name} = {body}" for name, body in self.where]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Expression({self.text!r}, shape=({shape_text(self.shape)}))"

    def _repr_latex_(self) -> str:
        return f"${self.latex}$"

    def to_dict(self) -> dict[str, Any]:
        """Text, LaTeX, shape and invented names."""
        return {
            "text": self.text,
            "latex": self.latex,
            "shape": [str(s) for s in self.shape],
            "where": [list(w) for w in self.where],
        }


def _cut(node: Node, image: Mapping[Node, Node]) -> Node:
    own = {k: v for k, v in image.items() if k is not node}
    return substitute_nodes([node], own)[0]


def resolve(node: Node, definitions: Mapping[Node, Node]) -> Node:
    """A node with names of intermediates replaced by their meaning, as deep as they go."""
    meaning: dict[Node, Node] = {}
    pending = [(node, False)]
    opened: set[Node] = set()
    while pending:
        symbol, ready = pending.pop()
        body = node if symbol is node and node not in definitions else definitions[symbol]
        if ready:
            meaning[symbol] = substitute_nodes([body], meaning)[0]
        elif symbol not in meaning:
            if symbol in opened:
                raise ChainruleError("names that are defined by each other", given=str(symbol))
            opened.add(symbol)
            pending.append((symbol, True))
            pending += [(n, False) for n in toposort([body]) if n in definitions and n not in meaning]
    return meaning[node]


def formula(source: str, shapes: Mapping[str, Any] | None = None) -> Expression:
    """An expression from text of the formula language.

    Args:
        source: one expression, or assignments of which the last is the result.
        shapes: name -> dimensions, ``{"A": "m,n", "x": "n"}``; other names are scalars.

    Raises:
        FormulaError: text outside the language. ShapeError: operands that do not fit.

    >>> import chainrule as cr
    >>> cr.formula("A' @ x", shapes={"A": "m,n", "x": "m"}).shape
    (n,)
    """
    return Expression(parse(source, shapes).outputs[-1])


# ---- equality by sampling ----------------------------------------------------------------------------------
def sample_values(
    leaves: list[Node], generator: np.random.Generator, sizes: Mapping[str, int], positive: bool
) -> dict[Node, Any]:
    """Random values for leaves: standard normal, or positive ones where logarithms and roots need them."""
    values = {}
    for leaf in leaves:
        shape = tuple(s if isinstance(s, int) else _size(s, sizes) for s in leaf.shape)
        values[leaf] = generator.uniform(0.3, 1.7, shape) if positive else generator.standard_normal(shape)
    return values


def _size(size: Any, sizes: Mapping[str, int]) -> int:
    total = 0
    for monomial, coefficient in size.terms:
        total += coefficient * int(np.prod([sizes[name] for name in monomial]))
    return total


def random_sizes(nodes: list[Node], generator: np.random.Generator) -> dict[str, int]:
    """A number for every named dimension, small and different from each other."""
    names = sorted({name for n in nodes for s in n.shape if not isinstance(s, int) for name in s.names})
    names += sorted({name for n in nodes if "size" in n.params for name in getattr(n.params["size"], "names", ())})
    names = list(dict.fromkeys(names))
    choices = generator.permutation(np.arange(2, 2 + max(len(names), 1)))
    return {name: int(choices[k]) for k, name in enumerate(names)}


def agree_at_random_points(
    a: Node, b: Node, trials: int = 8, seed: int = 0, tolerance: float = 1e-9
) -> tuple[bool, dict[str, Any]]:
    """Whether two nodes have the same values at random points, and the point where they differ most.

    Points where both are nan (outside a domain) are passed over; if all are, positive points are tried. An unknown
    function and its derivatives have random values like a variable.
    """
    unknown = {n: variable(text(n), n.type) for n in toposort([a, b]) if n.op.family == "unknown"}
    a, b = substitute_nodes([a, b], unknown)
    nodes = toposort([a, b])
    leaves = [n for n in nodes if "name" in n.params and n.is_leaf]
    worst: tuple[float, dict[str, Any]] = (-1.0, {})
    seen = 0
    for trial in range(2 * trials):
        generator = np.random.default_rng([seed, trial])
        sizes = random_sizes(nodes, generator)
        values = sample_values(leaves, generator, sizes, positive=trial >= trials)
        x, y = evaluate([a, b], values, sizes)
        if not np.all(np.isfinite(x)) or not np.all(np.isfinite(y)):
            if np.array_equal(np.isfinite(x), np.isfinite(y)):
                continue
            return False, _point(leaves, values, x, y)
        seen += 1
        scale = max(1.0, float(np.max(np.abs(x), initial=0)), float(np.max(np.abs(y), initial=0)))
        distance = float(np.max(np.abs(np.asarray(x) - np.asarray(y)), initial=0)) / scale
        if distance > worst[0]:
            worst = (distance, _point(leaves, values, x, y))
    if not seen:
        raise ShapeError("no finite values at any random point", required="functions with a common domain")
    return worst[0] <= tolerance, worst[1]


def _point(leaves: list[Node], values: Mapping[Node, Any], a: Any, b: Any) -> dict[str, Any]:
    # As many digits as it takes to see a difference.
    digits = next((d for d in range(4, 15) if not np.array_equal(np.round(a, d), np.round(b, d))), 4)

    def plain(v: Any) -> Any:
        return np.round(np.asarray(v, dtype=float), digits).tolist()

    return {
        "at": {n.params["name"]: plain(values[n]) for n in leaves},
        "first": plain(a),
        "second": plain(b),
    }
