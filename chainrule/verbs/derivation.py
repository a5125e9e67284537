"""The derivation of a chapter's kind: local factors between named quantities, and sums over paths.

Reverse mode visits the quantities from the output back (problem 7.12), forward mode from the variable on (7.13); each
step is a sum of terms, one per path, and a term is a local factor times a derivative that is already known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from chainrule.errors import ShapeError, UnsupportedOpError
from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Node, TensorType, constant, substitute_nodes, toposort, tree_size, variable
from chainrule.ops.contraction import einsum
from chainrule.ops.families import sum_nodes
from chainrule.ops.movement import broadcast
from chainrule.verbs.bracketing import source_of
from chainrule.verbs.expression import Expression, resolve
from chainrule.verbs.inner_names import in_symbols
from chainrule.verbs.named_program import NamedProgram
from chainrule.verbs.naming import shortest, useful_names
from chainrule.verbs.steps import Factor, Step, Term
from chainrule.verbs.zeros import is_zero, why_zero

_MAX_SUBSTITUTED = 120  # named quantities
_MAX_WRITTEN_OUT = 2000  # operators and operands of a form without names that is simplified
_MAX_HIDDEN = 60  # operators and operands of a form that is searched for a hidden zero
_MAX_CHAINED, _MAX_PATHS = 40, 4  # named quantities and paths, up to which whole products are shown
_MAX_NAMES = 24  # of them, for which forms in the user's names are compared


class Derivation:
    """Steps of one program in one mode. ``layout`` orders the dimensions of derivatives of non-scalars."""

    def __init__(self, program: NamedProgram, layout: str = "denominator", factors: bool = True) -> None:
        self.program, self.layout, self.with_factors = program, layout, factors
        self.cotangent: Node | None = None
        self.closed: dict[tuple[str, str], Node] = {}
        # What every name in an expression means: the program's, and the derivatives found so far.
        self.meanings: dict[Node, Node] = dict(program.definitions)
        self.derivatives: dict[Node, Node] = {}
        # Closed forms of very long programs would grow with every step: they stay in known derivatives.
        self.substitutes = factors and len(program.order) <= _MAX_SUBSTITUTED
        scalars = [program.symbol[n] for n in program.order]
        # What the rules build of a model's forward values is written by their names.
        self._symbols = {} if factors else program.symbols
        self.scalar = all(s.shape == () for s in [*scalars, *program.variables.values()])

    # ---- reverse -------------------------------------------------------------------------------------------
    def reverse(self, wrt: Sequence[str], cotangent: Node | None = None) -> list[Step]:
        """Steps ``dy/d.`` from the output back to each of ``wrt``."""
        self.cotangent = cotangent
        program, y = self.program, self.program.output
        needed = set().union(*(program.depends_on(w) for w in wrt)) & program.ancestors(y)
        order = [n for n in reversed(program.order) if n in needed and n != y]
        order += [w for w in wrt if w not in order and w != y]
        order = order if self.with_factors else _layer_by_layer(order, program)
        steps = []
        for name in order:
            children = [c for c in reversed(program.children(name)) if c in needed or c == y]
            terms = [t for c in children if (t := self._reverse_term(name, c, cotangent)) is not None]
            steps.append(self._step(y, name, terms))
        return steps

    def _reverse_term(self, name: str, child: str, cotangent: Node | None) -> Term | None:
        program, y = self.program, self.program.output
        local, x = program.local[child], program.symbol[name]
        known = self._known(y, child, cotangent)
        known_is_one = known is not None and known.number == 1
        scalar_output = program.symbol[y].shape == () or cotangent is not None
        tensor = self._local_factor(child, name, needed=not scalar_output)
        if scalar_output:
            # The seed of the output itself is the number one, or the cotangent that was given.
            seed = known if child == y and known is not None else self._derivative_symbol(y, child)
            (moved,) = vjp([local], [seed], [x])
            moved = None if moved is None else in_symbols(moved, self._symbols)
        elif tensor is None:
            moved = None
        else:
            moved = self._contracted(tensor, name, y, child)
        if moved is None:
            return None
        own = Factor(
            self._partial(name, child),
            None if tensor is None else self._expression(tensor),
            self._shape(name, child),
        )
        if child == y and cotangent is None and (known_is_one or not scalar_output):
            return Term((own,), self._expression(simplify(moved, exact=not self.with_factors)), moved)
        symbol = "g" if child == y and cotangent is not None and cotangent.is_leaf else f"d{y}/d{child}"
        if child == y and cotangent is not None:
            symbol = text(cotangent)
        before = Factor(symbol, self._closed_expression(y, child, cotangent), self._shape(child, y, cotangent))
        pair = (before, own) if self.scalar or self.layout == "numerator" else (own, before)
        return Term(pair, self._expression(simplify(moved, exact=not self.with_factors)), moved)

    def _local_factor(self, child: str, name: str, needed: bool) -> Node | None:
        """The local Jacobian; without matrix form None, unless there is no other way on."""
        if not self.with_factors and not needed:
            return None
        try:
            return self.program.local_jacobian(child, name, self.layout)
        except UnsupportedOpError:
            if needed:
                raise
            return None

    def _partial(self, name: str, child: str) -> str:
        """The symbol of a local factor; with round d's where the total derivative is a sum of more paths."""
        several = child == self.program.output and len(self.program.children(name)) > 1
        return f"∂{child}/∂{name}" if several else f"d{child}/d{name}"

    def _known(self, y: str, child: str, cotangent: Node | None) -> Node | None:
        if child != y:
            return None
        if cotangent is not None:
            return cotangent
        symbol = self.program.symbol[y]
        return constant(1.0, symbol.type.dtype) if symbol.shape == () else None

    def _contracted(self, tensor: Node, name: str, y: str, child: str) -> Node:
        """Jacobian times the derivative of a non-scalar output: both are tensors, contracted over the child."""
        if child == y:
            return tensor
        return self._product(tensor, self._derivative_symbol(y, child), name, child, y)

    def _product(self, before: Node, after: Node, start: str, middle: str, end: str) -> Node:
        """d middle/d start times d end/d middle: contracted over all dimensions of the middle."""
        ranks = [self.program.symbol[n].type.rank for n in (start, middle, end)]
        x, v, f = (tuple(range(k, k + n)) for k, n in zip((0, 50, 100), ranks, strict=True))
        if self.layout == "denominator":
            return einsum(([x + v, v + f], x + f), before, after)
        return einsum(([f + v, v + x], f + x), after, before)

    # ---- forward -------------------------------------------------------------------------------------------
    def forward(self, wrt: str) -> list[Step]:
        """Steps ``d./dx`` from the variable on to the output."""
        program = self.program
        needed = program.depends_on(wrt) & program.ancestors(program.output)
        steps = []
        for name in [n for n in program.order if n in needed and n != wrt]:
            parents = [p for p in program.parents[name] if p in needed or p == wrt]
            parents.sort(key=lambda p: program.order.index(p) if p in program.order else -1)
            terms = [t for p in parents if (t := self._forward_term(name, p, wrt)) is not None]
            steps.append(self._step(name, wrt, terms))
        if not steps:
            steps.append(self._step(program.output, wrt, []))
        return steps

    def _forward_term(self, name: str, parent: str, wrt: str) -> Term | None:
        program = self.program
        tensor = program.local_jacobian(name, parent, self.layout)
        if tensor is None:
            return None
        own = Factor(f"d{name}/d{parent}", self._expression(tensor), self._shape(parent, name))
        if parent == wrt:
            return Term((own,), self._expression(tensor), tensor)
        moved = self._product(self._derivative_symbol(parent, wrt), tensor, wrt, parent, name)
        known = Factor(f"d{parent}/d{wrt}", self._closed_expression(parent, wrt), self._shape(wrt, parent))
        pair = (own, known) if self.scalar or self.layout == "numerator" else (known, own)
        return Term(pair, self._expression(simplify(moved)), moved)

    # ---- any order -----------------------------------------------------------------------------------------
    def eliminating(self, wrt: Sequence[str], order: Sequence[str]) -> list[Step]:
        """Steps that remove the intermediate quantities in an order: each way in times each way out."""
        program, y = self.program, self.program.output
        needed = set().union(*(program.depends_on(w) for w in wrt)) & program.ancestors(y)
        ways: dict[tuple[str, str], list[Term]] = {}
        for parent in dict.fromkeys([*wrt, *order]):
            for child in [c for c in program.children(parent) if c in needed]:
                tensor = program.local_jacobian(child, parent, self.layout)
                if tensor is None:
                    continue
                local = self._expression(tensor)
                own = Term((Factor(f"d{child}/d{parent}", local, self._shape(parent, child)),), local, tensor)
                if parent in order:
                    ways[parent, child] = [own]
                if parent in wrt:
                    ways[source_of(parent), child] = [own]
        called = {source_of(w): w for w in wrt}
        steps: list[Step] = []
        gone: list[str] = []

        def settled(start: str, end: str) -> Factor:
            """The derivative along one way, as a step of its own unless it is a single local derivative."""
            terms, wrt_name = ways.pop((start, end)), called.get(start, start)
            around = _leads_around(ways, start, end)
            symbol = f"∂{end}/∂{wrt_name}" if around else f"d{end}/d{wrt_name}"
            if len(terms) == 1 and len(terms[0].factors) == 1:
                return replace(terms[0].factors[0], symbol=symbol)
            if len(terms) > 1:
                terms = [_as_partial(t, f"∂{end}/∂{wrt_name}") if len(t.factors) == 1 else t for t in terms]
            steps.append(self._step(end, wrt_name, terms, through=gone if around else None))
            return Factor(symbol, steps[-1].closed_form, steps[-1].shape)

        for name in order:
            into = [(p, settled(p, s)) for p, s in list(ways) if s == name]
            out = [(s, settled(p, s)) for p, s in list(ways) if p == name]
            gone.append(name)
            for start, before in into:
                for end, after in out:
                    term = self._joined(called.get(start, start), name, end, before, after)
                    ways.setdefault((start, end), []).append(term)
        for w in wrt:
            terms = ways.get((source_of(w), y), [])
            if len(terms) > 1:  # what goes straight to the output is one of several paths
                terms = [_as_partial(t, f"∂{y}/∂{w}") if len(t.factors) == 1 else t for t in terms]
            steps.append(self._step(y, w, terms))
        return steps

    def _joined(self, start: str, middle: str, end: str, before: Factor, after: Factor) -> Term:
        """dV/dX times dF/dV, contracted over V."""
        assert before.expression is not None and after.expression is not None
        moved = self._product(before.expression.node, after.expression.node, start, middle, end)
        pair = (after, before) if self.scalar or self.layout == "numerator" else (before, after)
        return Term(pair, self._expression(moved), moved)

    # ---- shared --------------------------------------------------------------------------------------------
    def _step(self, of: str, wrt: str, terms: list[Term], through: Sequence[str] | None = None) -> Step:
        """The sum over paths; ``through`` are the quantities that they lead through, if others lead around."""
        shape = self._shape(wrt, of) if not terms else terms[0].expression.shape
        total: Node | None = None
        for term in terms:
            total = term.expression.node if total is None else total + term.expression.node
        if total is None:
            total = broadcast(constant(0.0), shape)
        # A model's equations stay in the derivatives already known; a formula's are put in.
        substituted = resolve(total, self.derivatives) if self.substitutes else total
        closed = simplify(substituted) if self.with_factors else _plainest(substituted)
        if self.substitutes and len(self.program.order) <= _MAX_NAMES:
            named = useful_names(self.program.definitions, of)
            written_out = resolve(substituted, self.program.definitions)
            # Without names a program of many paths grows exponentially, and so does the search for a shorter form.
            closed = shortest(closed, written_out if tree_size(written_out) <= _MAX_WRITTEN_OUT else None, named)
            if named and tree_size(written_out) <= _MAX_HIDDEN and is_zero(simplify(written_out)):
                closed = simplify(written_out)  # names hide that y - (a - b) is zero
        note = ""
        if is_zero(closed):
            program = self.program
            meant = program.without(wrt)
            if through is not None:
                meant = {s: n for s, n in meant.items() if s.params["name"] in (*through, of)}
            output = resolve(program.symbol[of], meant)
            note = why_zero(of, wrt, output, program.symbol[wrt])
        self.closed[of, wrt] = closed
        sign = "d" if through is None else "∂"
        symbol = variable(f"{sign}{of}/{sign}{wrt}", TensorType(closed.shape, closed.type.dtype))
        self.derivatives[symbol] = self.meanings[symbol] = closed
        chain, sizes = ((), "") if through is not None else self._chain(of, wrt)
        return Step(
            of,
            wrt,
            tuple(terms),
            self._expression(total),
            self._expression(closed),
            shape,
            note=note,
            partial=through is not None,
            chain=chain,
            sizes=sizes,
            raw=self._raw(terms),
        )

    def _chain(self, of: str, wrt: str) -> tuple[tuple[tuple[Factor, ...], ...], str]:
        """The whole product along every path from ``wrt`` to ``of``, where there are few, and its sizes."""
        program = self.program
        if not self.with_factors or len(program.order) > _MAX_CHAINED:
            return (), ""
        needed = program.ancestors(of)
        paths: list[tuple[str, ...]] = []
        pending = [(wrt,)]
        while pending:
            path = pending.pop()
            if path[-1] == of:
                paths.append(path)
                continue
            ahead = [c for c in program.children(path[-1]) if c in needed and self._flows(path[-1], c)]
            pending += [(*path, c) for c in ahead]
            if len(paths) + len(pending) > _MAX_PATHS:
                return (), ""
        chain = tuple(self._factors_along(path) for path in paths)
        if any(f.expression is None for path in chain for f in path):
            return (), ""
        return chain, self._sizes(paths, wrt, of)

    def _flows(self, parent: str, child: str) -> bool:
        try:
            return self.program.local_jacobian(child, parent, self.layout) is not None
        except UnsupportedOpError:
            return True  # there is a path, whose factor has no matrix form

    def _factors_along(self, path: Sequence[str]) -> tuple[Factor, ...]:
        factors = []
        for parent, child in pairwise(path):
            tensor = self._local_factor(child, parent, needed=False)
            expression = None if tensor is None else self._expression(tensor)
            factors.append(Factor(self._partial(parent, child), expression, self._shape(parent, child)))
        if self.cotangent is not None and path[-1] == self.program.output:
            factors.append(Factor(text(self.cotangent), self._expression(self.cotangent), self.cotangent.shape))
        return tuple(factors if self.layout == "denominator" else reversed(factors))

    def _sizes(self, paths: Sequence[Sequence[str]], wrt: str, of: str) -> str:
        """``(D_1 x 1) = (D_1 x D_2)(D_2 x 1)``: a vector is a column in denominator layout, a row in the other."""
        shape = {n: self.program.symbol[n].shape for n in {wrt, of}.union(*paths)}
        if all(s == () for s in shape.values()) or any(len(s) > 1 for s in shape.values()) or not paths:
            return ""
        side = {n: str(s[0]) if s else "1" for n, s in shape.items()}
        seeded = self.cotangent is not None and of == self.program.output
        columns = self.layout == "denominator"

        def size(x: str, f: str) -> str:
            return f"({x} x {f})" if columns else f"({f} x {x})"

        products = []
        for path in paths:
            parts = [size(side[a], side[b]) for a, b in pairwise(path)] + ([size(side[of], "1")] if seeded else [])
            products.append("".join(parts if columns else reversed(parts)))
        return f"{size(side[wrt], '1' if seeded else side[of])} = {' + '.join(products)}"

    def _raw(self, terms: Sequence[Term]) -> Node | None:
        """The sum over paths as the rules give it, known derivatives put in."""
        if not self.substitutes or not terms or any(t.raw is None for t in terms):
            return None
        total = sum_nodes([t.raw for t in terms if t.raw is not None])
        return None if total is None else resolve(total, self.derivatives)

    def _derivative_symbol(self, of: str, wrt: str) -> Node:
        known = self.closed.get((of, wrt))
        if known is None:
            raise ShapeError(f"d{of}/d{wrt} is used before it is known")
        return variable(f"d{of}/d{wrt}", TensorType(known.shape, known.type.dtype))

    def _closed_expression(self, of: str, wrt: str, cotangent: Node | None = None) -> Expression:
        node = self.closed.get((of, wrt))
        return self._expression(node if node is not None else cotangent)  # type: ignore[arg-type]

    def _expression(self, node: Node) -> Expression:
        return Expression(node, self.meanings, self.program.leaves, derivative=True)

    def _shape(self, wrt: str, of: str, cotangent: Node | None = None) -> tuple[Any, ...]:
        x, f = self.program.symbol[wrt].shape, self.program.symbol[of].shape
        if cotangent is not None and of == self.program.output:
            return x  # the cotangent has been contracted with the output
        return (*x, *f) if self.layout == "denominator" else (*f, *x)


def _layer_by_layer(order: Sequence[str], program: NamedProgram) -> list[str]:
    """The same order with every variable right after the last quantity that reads it."""
    found = [n for n in order if n in program.local]
    place = {n: k for k, n in enumerate(found)}
    last = len(found)
    behind: dict[int, list[str]] = {}
    for name in order:
        if name not in place:
            behind.setdefault(max((place.get(c, -1) for c in program.children(name)), default=last), []).append(name)
    return [*behind.get(-1, []), *(n for k, name in enumerate(found) for n in (name, *behind.get(k, [])))]


def _plainest(node: Node) -> Node:
    """A model's equation: as the rules give it, unless the algebra finds a shorter form."""
    exact = simplify(node, exact=True)
    # In names by place: equations of repeated blocks, which differ in names alone, come out alike (and are met again).
    leaves = [n for n in toposort([exact]) if n.is_leaf and n is variable(str(n.params.get("name")), n.type)]
    placed = {leaf: variable(f"v{k:03}", leaf.type) for k, leaf in enumerate(leaves)}
    short = simplify(substitute_nodes([exact], placed)[0])
    if tree_size(short) >= tree_size(exact):
        return exact
    return substitute_nodes([short], {placed[leaf]: leaf for leaf in leaves})[0]


def _as_partial(term: Term, symbol: str) -> Term:
    return replace(term, factors=(replace(term.factors[0], symbol=symbol),))


def _leads_around(ways: Mapping[tuple[str, str], Sequence[Term]], start: str, end: str) -> bool:
    """Whether another path leads from ``start`` to ``end``."""
    seen, stack = {start}, [start]
    while stack:
        here = stack.pop()
        for p, s in ways:
            if p == here and s not in seen:
                seen.add(s)
                stack.append(s)
    return end in seen
