"""``derive``: what is this gradient, in closed form, and how did you get it?

Takes a formula, assignments, a torch module with its batch and loss, or a plain Python function of tensors. All of
them become a program with named quantities (:mod:`chainrule.verbs.derivation`); this file chooses the names, the mode
and the form of the answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, FormulaError, MissingExtraError
from chainrule.frontends.formula import parse_program
from chainrule.interpreters.evaluate import evaluate_all
from chainrule.interpreters.latex import LatexPrinter
from chainrule.interpreters.linearize import jacobian
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Graph, Node, constant, shape_text, toposort, variable
from chainrule.ops.contraction import einsum, permute
from chainrule.ops.movement import broadcast
from chainrule.verbs.code import code
from chainrule.verbs.defined import refuse_division_by_zero, refuse_unused
from chainrule.verbs.derivation import Derivation, NamedProgram, Step
from chainrule.verbs.expression import Expression

MODES = ("direct", "forward", "reverse")
_MAX_PARTS = 60  # a longer single formula is derived as one step; nobody reads more
LAYOUTS = ("denominator", "numerator")


@dataclass(frozen=True, eq=False)
class DeriveResult:
    """The derivatives of one quantity, and the steps that lead to them.

    ``d["x"]`` is the derivative by x as an :class:`~chainrule.verbs.expression.Expression`; ``d.steps`` the way there.

    Attributes:
        of: the name of what was derived. wrt: by what. mode, order, layout: as asked.
        definitions: (name, expression) of the program's named quantities, in order.
    """

    of: str
    wrt: tuple[str, ...]
    mode: str
    order: int
    layout: str
    definitions: tuple[tuple[str, Expression], ...]
    steps: tuple[Step, ...]
    derivatives: Mapping[str, Expression] = field(repr=False)
    program: NamedProgram = field(repr=False)

    def __getitem__(self, name: str) -> Expression:
        if name not in self.derivatives:
            raise FormulaError(
                f"no derivative by {name!r} here",
                given=name,
                required=f"one of {', '.join(self.derivatives)}",
            )
        return self.derivatives[name]

    def text(self) -> str:
        """Definitions and steps, one line each, with the factors of every term below it."""
        lines = [f"{name} = {expression.text}" for name, expression in self.definitions]
        lines += [""] if lines else []
        for step in self.steps:
            lines.append(str(step))
            lines += _factor_lines(step)
        if self._has_matrix():
            lines.append(f"layout: {self.layout}" + (" (the book's)" if self.layout == "denominator" else ""))
        return "\n".join(lines)

    def latex(self) -> str:
        """An ``aligned`` environment: one line per step."""
        printer = LatexPrinter()
        lines = []
        for step in self.steps:
            left = printer.symbol(step.symbol)
            chain = " + ".join(" ".join(printer.symbol(f.symbol) for f in t.factors) for t in step.terms)
            middle = f" &= {chain}" if chain and chain != left else ""
            lines.append(f"{left}{middle} {'' if middle else '&'}= {step.closed_form.latex}")
        body = " \\\\\n".join(lines)
        return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"

    def values(self, **arrays: Any) -> dict[str, Any]:
        """Every named quantity and every derivative, in order, as numbers.

        Args:
            arrays: the variables by name.
        """
        table: dict[str, Any] = {}
        nodes: dict[str, Node] = {}
        for name in self.program.order:
            nodes[name] = Expression(self.program.symbol[name], self.program.definitions).full
        for step in self.steps:
            nodes[step.symbol] = step.closed_form.full
        leaves = [n for n in toposort(list(nodes.values())) if n.is_leaf and "name" in n.params]
        given = {n: arrays[n.params["name"]] for n in leaves if n.params["name"] in arrays}
        sizes = {k: int(v) for k, v in arrays.items() if np.ndim(v) == 0 and k not in self.program.variables}
        numbers = evaluate_all(list(nodes.values()), given, sizes)
        for name, node in nodes.items():
            table[name] = numbers[node]
        return table

    def code(self, target: str = "numpy") -> str:
        """Source text of the derivatives that runs on its own and checks itself (see :mod:`chainrule.verbs.code`).

        Raises:
            ChainruleError: an unknown target.
        """
        return code(self, target)

    def _has_matrix(self) -> bool:
        return any(len(s.shape) > 1 for s in self.steps)

    def __str__(self) -> str:
        return self.text()

    def _repr_latex_(self) -> str:
        return f"$${self.latex()}$$"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.derive/1",
            "of": self.of,
            "wrt": list(self.wrt),
            "mode": self.mode,
            "order": self.order,
            "layout": self.layout,
            "definitions": [[name, e.text] for name, e in self.definitions],
            "steps": [s.to_dict() for s in self.steps],
            "derivatives": {name: e.to_dict() for name, e in self.derivatives.items()},
        }


def _factor_lines(step: Step) -> list[str]:
    lines = []
    for term in step.terms:
        for f in term.factors:
            if f.symbol == step.symbol and len(term.factors) == 1:
                continue
            if f.expression is None or any(g.expression is None for g in term.factors):
                continue
            shown = f.expression.text
            shape = f"   ({shape_text(f.shape)})" if f.shape else ""
            lines.append(f"    {f.symbol} = {shown}{shape}")
    return list(dict.fromkeys(lines))


def derive(
    source: Any,
    *args: Any,
    wrt: str | Sequence[str] = "all",
    shapes: Mapping[str, Any] | None = None,
    mode: str = "reverse",
    order: int = 1,
    layout: str = "denominator",
    cotangent: str | None = None,
) -> DeriveResult:
    """The derivative of a formula or model, with every step of the chain rule.

    Args:
        source: text of the formula language (one formula or assignments), an Expression, or, with ``args``, a torch
            module (``derive(model, batch, loss)``) or function of tensors (``derive(f, (x,))``). Without a loss the
            cotangent of their output is called ``g``.
        wrt: variables (or named intermediates) to derive by: a name, names separated by commas, or ``"all"``.
        shapes: name -> dimensions of the variables that are not scalars, ``{"A": "m,n"}``.
        mode: ``"reverse"`` (problem 7.12), ``"forward"`` (7.13) or ``"direct"`` (one closed form, written out).
        order: 1, or 2 for the derivative of the derivative by the same variable.
        layout: ``"denominator"`` (the book's: X.shape + F.shape) or ``"numerator"`` (F.shape + X.shape).
        cotangent: name of a cotangent of the output: the result is then the vector-Jacobian product.

    Returns:
        DeriveResult: ``d["x"]``, ``d.steps``, ``d.text()``, ``d.latex()``, ``d.values(...)``, ``d.to_dict()``.

    Raises:
        FormulaError, ShapeError: the text or its operands. UnsupportedOpError: an op without a derivative.

    >>> import chainrule as cr
    >>> d = cr.derive("f1 = exp(x); f2 = f1^2; f3 = f1 + f2; f4 = exp(f3); f5 = sin(f3); y = f4 + f5", wrt="x")
    >>> print(d.steps[3])
    dy/df2 = dy/df3 * df3/df2 = cos(f3) + exp(f3)
    >>> cr.derive("f = x' @ A @ x", shapes={"x": "n", "A": "n,n"}, wrt="x")["x"].text
    "(A + A') @ x"
    """
    _choice("mode", mode, MODES)
    _choice("layout", layout, LAYOUTS)
    if order not in (1, 2):
        raise ChainruleError("unknown order of derivative", given=str(order), required="1 or 2")
    named, variables, active = _program(source, args, shapes, split=mode != "direct")
    program = NamedProgram(named, variables)
    targets = active if wrt == "all" else _targets(wrt, program)
    if not targets:
        raise ChainruleError("there is nothing to derive by", required="a variable that is not an integer")
    seed = None
    output = program.symbol[program.output]
    if cotangent is None and output.shape != () and not isinstance(source, str | Expression | Graph):
        cotangent = _free_name("g", Graph(tuple(variables), ()))  # a model without a loss: what comes back from above
    if cotangent is not None:
        seed = variable(cotangent, output.type)
    if mode == "direct" or order == 2:
        steps = [_direct(program, w, layout, seed, order) for w in targets]
        definitions: tuple[tuple[str, Expression], ...] = ()
    else:
        # A batch makes every local factor a tensor of order four: for models the equations say it all.
        factors = isinstance(source, str | Expression | Graph)
        derivation = Derivation(program, layout, factors)
        if mode == "reverse":
            steps = derivation.reverse(targets, seed)
        else:
            if seed is not None:
                raise ChainruleError("forward mode takes no cotangent", instead='mode="reverse"')
            steps = [s for w in targets for s in derivation.forward(w)]
        definitions = tuple((n, Expression(program.local[n])) for n in program.order)
    found = {s.wrt: s.closed_form for s in steps if s.of == program.output and s.wrt in targets}
    if isinstance(source, Expression) or (isinstance(source, str) and _is_single(source, shapes)):
        # The names of a single formula's parts are ours, for the steps; the answer is in the user's own.
        found = {w: Expression(simplify(e.full), program.definitions) for w, e in found.items()}
    return DeriveResult(program.output, tuple(targets), mode, order, layout, definitions, tuple(steps), found, program)


def _choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ChainruleError(f"unknown {name} {value!r}", given=value, required=f"one of {', '.join(allowed)}")


# ---- the program -------------------------------------------------------------------------------------------
def _program(
    source: Any, args: Sequence[Any], shapes: Mapping[str, Any] | None, split: bool
) -> tuple[list[tuple[str, Node]], list[Node], list[str]]:
    if isinstance(source, Expression):
        return _with_targets(_split(source.full, "y"), source.graph.inputs)
    if isinstance(source, Graph):
        named = [(n, node) for n, node in source.names.items() if node.inputs and node not in source.outputs]
        return _with_targets([*named, (source.output_names[0] or "y", source.outputs[0])], source.inputs)
    if isinstance(source, str):
        if args:
            raise ChainruleError("a formula takes no further positional arguments", given=repr(args))
        parsed = parse_program(source, shapes)
        refuse_unused(parsed, shapes or {})
        refuse_division_by_zero(parsed)
        statements = [(s.name, s.node) for s in parsed.statements if s.name]
        last = parsed.statements[-1]
        if not last.name:
            statements.append((_free_name("y", parsed.graph), last.node))
        scalar = all(n.type.rank == 0 for n in toposort([last.node]) if n.is_leaf)
        if split and len(statements) == 1 and scalar:  # a tensor formula is one step: its parts have names if wanted
            parts = _split(statements[0][1], statements[0][0])
            statements = parts if len(parts) <= _MAX_PARTS else statements
        return _with_targets(statements, parsed.graph.inputs)
    try:  # models need torch, formulas must work without
        from chainrule.verbs.modules import module_program
    except ModuleNotFoundError as error:
        raise MissingExtraError("derive of a model", error.name or "torch", "torch") from error
    return module_program(source, args)


def _is_single(source: str, shapes: Mapping[str, Any] | None) -> bool:
    return len(parse_program(source, shapes).statements) == 1


def _with_targets(
    named: list[tuple[str, Node]], inputs: Sequence[Node]
) -> tuple[list[tuple[str, Node]], list[Node], list[str]]:
    return named, list(inputs), [i.params["name"] for i in inputs if i.type.is_float]


def _free_name(name: str, graph: Graph) -> str:
    taken = {i.params["name"] for i in graph.inputs} | set(graph.names)
    while name in taken:
        name += "_"
    return name


def _split(root: Node, name: str) -> list[tuple[str, Node]]:
    """A single formula as elementary assignments f1, f2, ...: every operation that is not constant, in order.

    Movement and products with numbers stay inside the expression that uses them, so the steps are the chapter's.
    """
    order = [n for n in toposort([root]) if n.inputs and _depends_on_input(n)]
    taken = {n.params["name"] for n in toposort([root]) if "name" in n.params} | {name}
    named: list[tuple[str, Node]] = []
    for node in order:
        if node is root or node.op.family == "linear" or not node.type.is_float:  # a condition is no step
            continue
        fresh = f"f{len(named) + 1}"
        while fresh in taken:
            fresh += "_"
        named.append((fresh, node))
    return [*named, (name, root)]


def _depends_on_input(node: Node) -> bool:
    return any("name" in n.params and n.is_leaf for n in toposort([node]))


def _targets(wrt: str | Sequence[str], program: NamedProgram) -> list[str]:
    names = [w.strip() for w in wrt.split(",")] if isinstance(wrt, str) else list(wrt)
    known = {**program.variables, **dict.fromkeys(program.order)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise FormulaError(
                f"cannot derive by {name!r}: it does not occur in the formula",
                given=name,
                required=f"one of {', '.join(known)}",
                instead=near[0] if near else "",
            )
    return names


# ---- direct mode and second order --------------------------------------------------------------------------
def _direct(program: NamedProgram, wrt: str, layout: str, seed: Node | None, order: int) -> Step:
    """One closed form. A named intermediate as the variable is cut free of what it means."""
    target = program.symbol[wrt]
    definitions = {s: n for s, n in program.definitions.items() if s is not target}
    output = Expression(program.symbol[program.output], definitions).full
    if seed is not None:
        indices = tuple(range(output.type.rank))
        output = einsum(([indices, indices], ()), output, seed)
    found = jacobian(output, target, layout)
    note = "" if found is not None else f"{program.output} does not depend on {wrt}"
    shape = (*target.shape, *output.shape) if layout == "denominator" else (*output.shape, *target.shape)
    of = program.output
    if order == 2 and found is not None:
        again = jacobian(found, target, "numerator")
        note = "" if again is not None else f"d{of}/d{wrt} does not depend on {wrt}"
        shape, found = (*output.shape, *target.shape, *target.shape), again
        found = None if found is None else _output_first(found, len(target.shape), len(output.shape), layout)
    node = simplify(found) if found is not None else broadcast(constant(0.0), shape)
    if not note and node.number == 0:
        note = "the derivative is zero almost everywhere, or all paths cancel"
    expression = Expression(node, definitions)
    symbol_of, symbol_wrt = (of, wrt) if order == 1 else (f"2{of}", f"{wrt}2")
    return Step(
        of,
        wrt,
        (),
        expression,
        expression,
        node.shape,
        note=note,
        lines=((expression.text, symbol_of + "/d" + symbol_wrt),),
    )


def _output_first(found: Node, rank_x: int, rank_f: int, layout: str) -> Node:
    """Second derivatives as F.shape + X.shape + X.shape, whatever the layout of the first."""
    if rank_f == 0 or layout == "numerator":
        return found
    # denominator: X + F + X
    return permute(
        found, (*range(rank_x, rank_x + rank_f), *range(rank_x), *range(rank_x + rank_f, 2 * rank_x + rank_f))
    )
