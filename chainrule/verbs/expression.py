"""An expression: a node with the names that stand for parts of it, printed, compared and evaluated.

Derivations keep the user's intermediate names (``f3``) as leaves of a node and remember what they mean; evaluation
and comparison put the meaning back, so they need the original variables only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError
from chainrule.frontends.formula import parse
from chainrule.frontends.latex import is_latex, parse_latex
from chainrule.interpreters import simplify as simplification
from chainrule.interpreters.declared_limits import with_limits
from chainrule.interpreters.differentiate import expand_composites
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.index_languages import IndexLatex, IndexText
from chainrule.interpreters.index_notation import IndexPrinter, index_letters
from chainrule.interpreters.latex import latex
from chainrule.interpreters.mathml import mathml
from chainrule.interpreters.text import text
from chainrule.ir import (
    Graph,
    Node,
    TensorType,
    apply,
    constant,
    rebuild,
    shape_text,
    substitute_nodes,
    toposort,
    tree_size,
    variable,
)
from chainrule.verbs.agreement import agreement
from chainrule.verbs.agreement import random_sizes as random_sizes
from chainrule.verbs.agreement import sample_values as sample_values
from chainrule.verbs.assumptions import assumed_leaves, refuse_other_structure

NOTATIONS = ("matrix", "index")
_WRITTEN_OUT = 400  # operators and operands; longer expressions name the parts that occur several times


@dataclass(frozen=True, eq=False)
class Expression:
    """One formula: ``str(e)`` is its text in the formula language.

    Attributes:
        node: the value, some of whose leaves may be names of intermediates.
        definitions: those leaves -> what they mean.
        variables: of the formula it comes from; a derivative may have lost some, whose arrays still give sizes.
        known: names for parts of it that it repeats, :attr:`where`.
        derivative: it is one, whose value where it reads 0/0 (``x / norm(x)`` at 0) is the declared one.

    >>> import chainrule as cr
    >>> e = cr.formula("(x + 1)^2 - x^2")
    >>> e.text, e.simplified().text
    ('(x + 1)^2 - x^2', '1 + 2 * x')
    """

    node: Node
    definitions: Mapping[Node, Node] = field(default_factory=dict)
    variables: tuple[Node, ...] = ()
    known: Mapping[Node, str] = field(default_factory=dict)
    derivative: bool = False

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

    def text_in(self, notation: str) -> str:
        """The text in ``"matrix"`` notation, or as one ``"index"`` line of the element at i, j, k, ...

        >>> import chainrule as cr
        >>> cr.formula("A' @ x", shapes={"A": "m,n", "x": "m"}).text_in("index")
        'sum_j A_ji * x_j'
        """
        return self._in(notation, self.text, IndexText)

    def latex_in(self, notation: str) -> str:
        """The same in LaTeX."""
        return self._in(notation, self.latex, IndexLatex)

    def _in(self, notation: str, matrix: str, language: type[IndexPrinter]) -> str:
        if notation not in NOTATIONS:
            raise ChainruleError(
                f"unknown notation {notation!r}", given=notation, required=f"one of {', '.join(NOTATIONS)}"
            )
        letters = index_letters([self.node], self.node.type.rank)
        return matrix if notation == "matrix" else self.element(language(letters, [self.node]))

    def element(self, printer: IndexPrinter) -> str:
        """One element of the value, written by a printer of index notation; parts in :attr:`where` by name."""
        image = {node: variable(name, node.type) for node, name in self._invented().items()}
        return printer.element(_cut(self.node, image))

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
            return {n: self.known[n] for n in toposort([self.node]) if n in self.known and n is not self.node}
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
                expression does not contain is passed over, save that it gives the sizes of its dimensions.

        Raises:
            ShapeError: a missing variable, or an array of the wrong shape.
        """
        graph = self.graph
        names = {n.params["name"] for n in graph.inputs}
        sizes = {k: int(v) for k, v in arrays.items() if k not in names and np.ndim(v) == 0 and v == int(v)}
        leaves = dict.fromkeys((*graph.inputs, *(v for v in self.variables if v.params["name"] not in names)))
        values = {n: arrays[n.params["name"]] for n in leaves if n.params["name"] in arrays}
        for leaf, array in values.items():
            refuse_other_structure(leaf, array)
        roots = with_limits(graph.outputs) if self.derivative else graph.outputs
        return evaluate(roots, values, sizes)[0]

    def simplified(self) -> Expression:
        """The same function, shorter."""
        return replace(self, node=simplification.simplify(self.node))

    def equals(self, other: Expression | str, *, exact: bool = False) -> bool:
        """Whether two expressions are the same function: by algebra, else by values at random points.

        ``exact=True`` uses algebra alone: False then means only that it could not be shown.
        """
        other = formula(other) if isinstance(other, str) else other
        if self.shape != other.shape:
            return False
        mine, theirs = real_leaves([self.full, other.full])
        if simplification.equal(mine, theirs) or simplification.equal(*expand_composites([mine, theirs], False)):
            return True
        return False if exact else agreement(mine, theirs).same

    # ---- showing -------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        lines = [self.text]
        lines += [f"  where {name} = {body}" for name, body in self.where]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Expression({self.text!r}, shape=({shape_text(self.shape)}))"

    def _repr_html_(self) -> str:
        return mathml(self.latex) or f"<code>{escape(str(self))}</code>"

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


def real_leaves(nodes: Sequence[Node]) -> list[Node]:
    """The same functions of real variables: a leaf is its name and shape, whatever dtype, layout and device it had.

    What a traced program and a formula compute can then be compared.
    """

    def real(node: Node, inputs: tuple[Node, ...]) -> Node:
        if node.is_leaf and "name" in node.params and node.type.is_float:
            kept = {k: v for k, v in node.params.items() if k not in ("name", "type")}
            return apply(node.op, name=node.params["name"], type=TensorType(node.shape), **kept)
        if "literal" in node.params and node.type.is_float:
            return constant(node.params["literal"].array, "float64")
        if inputs == node.inputs:
            return node
        params = dict(node.params)
        if "float" in str(params.get("dtype", "")):
            params["dtype"] = "float64"
        return apply(node.op, *inputs, **params)

    image = rebuild(list(nodes), real)
    return [image[n] for n in nodes]


def formula(
    source: str, shapes: Mapping[str, Any] | None = None, *, assume: Mapping[str, str] | None = None, where: Any = None
) -> Expression:
    """An expression from text of the formula language.

    Args:
        source: one expression, or assignments of which the last is the result; LaTeX where it has commands.
        shapes: name -> dimensions, ``{"A": "m,n", "x": "n"}``; other names are scalars.
        assume: what matrices are known to be, ``{"S": "symmetric"}``, as in :func:`chainrule.derive`.
        where: a derivation, whose names then mean what they mean there; or an Expression, for the names in its
            :attr:`Expression.where`.

    Raises:
        FormulaError: text outside the language. ShapeError: operands that do not fit.

    >>> import chainrule as cr
    >>> cr.formula("A' @ x", shapes={"A": "m,n", "x": "m"}).shape
    (n,)
    >>> cr.formula("S' @ x", shapes={"S": "n,n", "x": "n"}, assume={"S": "symmetric"}).simplified().text
    'S @ x'
    """
    given: dict[str, Node] = {}
    definitions: Mapping[Node, Node] = {}
    if isinstance(where, Expression):
        given = {n.params["name"]: n for n in toposort([where.node]) if n.is_leaf and "name" in n.params}
        given |= {name: node for node, name in where._invented().items()}
        definitions = where.definitions
    elif where is not None:
        given, definitions = dict(where.program.symbol), where.program.definitions
        given |= {name: node for e in where.derivatives.values() for node, name in e._invented().items()}
    own = {k: v for k, v in (shapes or {}).items() if k not in given}
    latex_source = is_latex(source)
    graph = parse_latex(source, own, given=given).program().graph if latex_source else parse(source, own, given=given)
    image = assumed_leaves([i for i in graph.inputs if i.params["name"] not in given], assume)
    return Expression(substitute_nodes(graph.outputs[-1:], image)[0], definitions)
