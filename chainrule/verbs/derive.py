"""``derive``: what is this gradient, in closed form, and how did you get it?

Takes a formula, assignments, a torch module with its batch and loss, or a plain Python function of tensors. All of
them become a program with named quantities (:mod:`chainrule.verbs.derivation`); this file chooses the names, the mode
and the form of the answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, FormulaError, UnsupportedOpError
from chainrule.frontends.formula import parse_program
from chainrule.interpreters.evaluate import evaluate_all
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Dim, Graph, Node, toposort, variable
from chainrule.verbs.assumptions import assumptions_of, refuse_other_structure, under_assumptions
from chainrule.verbs.bracketing import MAX_COUNTED, Bracketing, best_order, bracketing, chain_of, passes
from chainrule.verbs.code import code
from chainrule.verbs.derivation import Derivation
from chainrule.verbs.direct import ORDERS, direct_step
from chainrule.verbs.equations import as_html, as_latex, as_text, model_lines
from chainrule.verbs.expression import NOTATIONS, Expression, resolve
from chainrule.verbs.function import CompiledDerivative
from chainrule.verbs.inner_names import in_the_language
from chainrule.verbs.known_quantities import known_quantities
from chainrule.verbs.named_program import (
    MAX_PARTS,
    NamedProgram,
    free_name,
    is_single_formula,
    program_of,
    refuse_cotangent,
    split_formula,
    target_names,
)
from chainrule.verbs.naming import shortest, useful_names
from chainrule.verbs.steps import Step
from chainrule.verbs.zeros import is_zero, why_zero

MODES = ("direct", "forward", "reverse", "best")
LAYOUTS = ("denominator", "numerator")


@dataclass(frozen=True, eq=False)
class DeriveResult:
    """The derivatives of one quantity, and the steps that lead to them.

    ``d["x"]`` is the derivative by x as an :class:`~chainrule.verbs.expression.Expression`; ``d.steps`` the way there.

    Attributes:
        of: the name of what was derived. wrt: by what. mode, order, layout: as asked.
        definitions: (name, expression) of the program's named quantities, in order.
        from_model: the program is a torch module or function. seeded: a cotangent multiplies the output.
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
    from_model: bool = False
    seeded: bool = False

    @property
    def assumptions(self) -> Mapping[str, str]:
        """What variables were assumed to be, by name."""
        return assumptions_of(self.program.leaves)

    def __getitem__(self, name: str) -> Expression:
        if name not in self.derivatives:
            raise FormulaError(
                f"no derivative by {name!r} here",
                given=repr(name),
                required=f"one of {', '.join(self.derivatives)}",
                instead=f'derive(..., wrt="{name}")',
            )
        return self.derivatives[name]

    @cached_property
    def is_counted(self) -> bool:
        """Whether counts are shown unasked: the tensors of order four of a model's batch take their time."""
        if self.order > 1 or self.from_model or len(self.program.order) > MAX_COUNTED:
            return False
        try:
            return bool(self.bracketing.counts)
        except UnsupportedOpError:  # a local derivative without matrix form: its product is not counted
            return False

    @cached_property
    def bracketing(self) -> Bracketing:
        """Multiplications of the chain in every mode, the cheapest order, and passes over the program.

        Raises:
            UnsupportedOpError: a local derivative has no matrix form, so its zeros are not known.
        """
        program = self.program
        if len(program.order) == 1:  # a single formula: its operations are the chain
            parts = split_formula(program.local[program.output], program.output)
            program = NamedProgram(parts, program.leaves) if len(parts) <= MAX_PARTS else program
        return bracketing(program, self.wrt, seeded=self.seeded)

    @property
    def counts(self) -> Mapping[str, int | Dim]:
        """Multiplications in forward, reverse and best mode: numbers, or polynomials in the dimensions' names."""
        return self.bracketing.counts

    @property
    def passes(self) -> Mapping[str, int | Dim]:
        """Sweeps over the program: one per element of the variables (forward) or of the output (reverse)."""
        return passes(self.program, self.wrt, self.seeded)

    @property
    def where(self) -> tuple[tuple[str, str], ...]:
        """What the names in the derivatives mean: ``(name, text)`` of the program's, then of those invented."""
        answers = {n for e in self.derivatives.values() for n in toposort([e.node])}
        unused = self.of if self.program.symbol[self.of] not in answers else None
        own = [(n, Expression(self.program.local[n]).text) for n in self.program.order if n != unused]
        return tuple(dict.fromkeys([*own, *(pair for e in self.derivatives.values() for pair in e.where)]))

    @property
    def notes(self) -> Mapping[str, str]:
        """Why a derivative is exactly zero, by variable; those that are not zero are not in it."""
        return {s.wrt: s.note for s in self.steps if s.note and s.of == self.of and s.wrt in self.wrt}

    def text(self, notation: str = "matrix", lines: bool = False, blocks: bool = True) -> str:
        """Definitions and steps, one line each, with the factors of every term below it.

        Args:
            notation: ``"matrix"``, or ``"index"`` for the element first and then the matrix it forms:
                ``dz_i/dh_j = Omega_ij, hence dz/dh = Omega'``.
            lines: below each step its lines from the chain rule to the simplified form, each with its rule.
            blocks: equations of a model that repeat are written once, with an index k; ``False`` writes all of them,
                and the text is then a program of the formula language.
        """
        _choice("notation", notation, NOTATIONS)
        return as_text(self, notation, lines, blocks)

    def latex(self, notation: str = "matrix") -> str:
        """An ``aligned`` environment: one line per step; ``notation`` as in :meth:`text`."""
        _choice("notation", notation, NOTATIONS)
        return as_latex(self, notation)

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
        leaves = [n for n in toposort([*nodes.values(), *self.program.leaves]) if n.is_leaf and "name" in n.params]
        given = {n: arrays[n.params["name"]] for n in leaves if n.params["name"] in arrays}
        sizes = {k: int(v) for k, v in arrays.items() if k not in self.program.variables and np.ndim(v) == 0}
        for leaf, array in given.items():
            refuse_other_structure(leaf, array)
        numbers = evaluate_all(list(nodes.values()), given, sizes)
        for name, node in nodes.items():
            table[name] = numbers[node]
        return table

    def code(self, target: str = "numpy", **options: Any) -> str:
        """Source of value and derivatives (``"numpy"``, ``"torch"``, ``"jax"``): it runs on its own and checks itself.

        ``"autograd"`` is a ``torch.autograd.Function`` with the residuals chosen by cost; its options are ``sizes``
        (numbers for named dimensions, by which the choice is made) and ``name``.

        Raises:
            ChainruleError: an unknown target or option, random draws.
            BackendError: an op without words in that language.
        """
        if self.assumptions:
            raise ChainruleError(
                "code is written for free variables",
                given=", ".join(f"{name} assumed {kind}" for name, kind in self.assumptions.items()),
                instead="derive without assume=",
            )
        return code(self, target, **options)

    def function(self, backend: str = "torch") -> CompiledDerivative:
        """The derivative as a callable of arrays (``"torch"`` or ``"numpy"``), by name or in order; see its ``source``.

        >>> import chainrule as cr
        >>> f = cr.derive("x' @ A @ x", shapes={"x": "n", "A": "n,n"}, wrt="x").function("numpy")
        >>> f(x=[1.0, 2.0], A=[[1.0, 0.0], [3.0, 1.0]])
        array([8., 7.])
        """
        return CompiledDerivative(self, backend)

    def _blocks(self) -> list[dict[str, Any]]:
        """The equations of a model that repeat, each block once."""
        lines = model_lines(self, blocks=True) if self.from_model and self.definitions else []
        return [part.to_dict() for part in lines if not isinstance(part, str)]

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return as_html(self)

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
            "blocks": self._blocks(),
            "notes": dict(self.notes),
            "multiplications": self.bracketing.to_dict() if self.is_counted else None,
            "assumptions": dict(self.assumptions),
        }


def derive(
    source: Any,
    *args: Any,
    wrt: str | Sequence[str] = "all",
    shapes: Mapping[str, Any] | None = None,
    mode: str = "reverse",
    order: int = 1,
    layout: str = "denominator",
    cotangent: str | None = None,
    at: Mapping[str, Any] | None = None,
    assume: Mapping[str, str] | None = None,
) -> DeriveResult:
    """The derivative of a formula or model, with every step of the chain rule.

    Args:
        source: text of the formula language (one formula or assignments), an Expression, or, with ``args``, a torch
            module (``derive(model, batch, loss)``) or function of tensors (``derive(f, (x,))``). Without a loss the
            cotangent of their output is called ``g``.
        wrt: variables (or named intermediates) to derive by: a name, names separated by commas, or ``"all"``.
        shapes: name -> dimensions of the variables that are not scalars, ``{"A": "m,n"}``.
        mode: ``"reverse"`` (problem 7.12), ``"forward"`` (7.13), ``"best"`` (the cheapest order of multiplication) or
            ``"direct"`` (one closed form, written out). All give the same derivative.
        order: 1, 2 or 3: the derivative of the derivative by the same variable; a third one has at most four indices.
        layout: ``"denominator"`` (the book's: X.shape + F.shape) or ``"numerator"`` (F.shape + X.shape).
        cotangent: name of a cotangent of the output: the result is then the vector-Jacobian product.
        assume: what matrices are known to be, ``{"S": "symmetric"}``: symmetric, lower triangular, upper triangular,
            diagonal or positive definite. The derivative by such a variable is that by its independent entries.
        at: numbers or arrays of the variables, by name: every step then holds its ``value`` there.

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
    if order not in ORDERS:
        raise ChainruleError(
            "unknown order of derivative", given=repr(order), required="1, 2 or 3", instead="order=2 for the Hessian"
        )
    named, variables, active = program_of(source, args, shapes, split=mode != "direct")
    named, variables = under_assumptions(named, variables, assume)
    program = NamedProgram(named, variables)
    targets = active if wrt == "all" else target_names(wrt, program)
    if not targets:
        raise ChainruleError(
            "there is nothing to derive by",
            given="a formula without variables" if wrt == "all" else f"wrt={wrt!r}",
            required="a variable that is not an integer",
            instead='cr.derive("y = x^2", wrt="x")',
        )
    from_text = isinstance(source, str | Expression | Graph)
    seed = None
    output = program.symbol[program.output]
    if cotangent is None and output.shape != () and not from_text:
        cotangent = free_name("g", Graph(tuple(variables), ()))  # a model without a loss: what comes back from above
    elif cotangent is not None:
        refuse_cotangent(cotangent, program)
    if cotangent is not None:
        seed = variable(cotangent, output.type)
    if mode == "direct" or order > 1:
        steps = [direct_step(program, w, layout, seed, order) for w in targets]
        definitions: tuple[tuple[str, Expression], ...] = ()
    else:
        # A batch makes every local factor a tensor of order four: for models the equations say it all.
        derivation = Derivation(program, layout, factors=from_text)
        if mode != "reverse" and seed is not None:
            raise ChainruleError(
                f"{mode} mode takes no cotangent",
                given=f"mode={mode!r}, cotangent={cotangent!r}",
                required="a mode that starts at the output",
                instead='mode="reverse"',
            )
        if mode == "reverse":
            steps = derivation.reverse(targets, seed)
        elif mode == "forward":
            steps = [s for w in targets for s in derivation.forward(w)]
        else:
            steps = derivation.eliminating(targets, best_order(chain_of(program, targets), _sizes(at)))
        symbols = program.symbols
        local = program.local if from_text else {n: in_the_language(e, symbols) for n, e in program.local.items()}
        definitions = tuple((n, Expression(local[n])) for n in program.order)
    found = {s.wrt: s.closed_form for s in steps if s.of == program.output and s.wrt in targets}
    if is_single_formula(source, shapes):
        # The names of a single formula's parts are ours, for the steps; the answer is in the user's own.
        own = _own_name(source, shapes, program)
        found = {w: _in_names(e, own, w, program) for w, e in found.items()}
    found = _with_names(found, program)
    steps = [_zero_seen(s, found.get(s.wrt), program) if s.of == program.output else s for s in steps]
    result = DeriveResult(
        program.output,
        tuple(targets),
        mode,
        order,
        layout,
        definitions,
        tuple(steps),
        found,
        program,
        not from_text,
        seed is not None,
    )
    return result if at is None else _at(result, at)


def _with_names(found: Mapping[str, Expression], program: NamedProgram) -> dict[str, Expression]:
    """The answers with names for what they repeat; the same quantity has the same name in all of them."""
    taken = {*program.variables, *program.order}
    named: dict[Node, str] = {}
    result = {}
    for w, answer in found.items():
        names = known_quantities(answer.node, taken, named)
        named.update(names)
        result[w] = replace(answer, known=names)
    return result


def _own_name(source: Any, shapes: Mapping[str, Any] | None, program: NamedProgram) -> dict[Node, Node]:
    """The one name of ``r = ...`` with what it means in the variables; nothing where the formula has none."""
    symbol = program.symbol[program.output]
    named = isinstance(source, str) and parse_program(source, shapes).statements[0].name == program.output
    return {symbol: resolve(symbol, program.definitions)} if named and symbol in program.definitions else {}


def _in_names(expression: Expression, own: Mapping[Node, Node], wrt: str, program: NamedProgram) -> Expression:
    """An answer in the variables and in the name that its formula was given."""
    named = [(s, n) for s, n in useful_names(own, program.output) if s.params["name"] != wrt]
    node = shortest(simplify(expression.full), None, named)
    return Expression(node, {**program.definitions, **dict(named)}, program.leaves, derivative=True)


def _sizes(at: Mapping[str, Any] | None) -> dict[str, int]:
    """The whole numbers among the values given, any of which may be a dimension's."""
    return {k: int(v) for k, v in (at or {}).items() if np.ndim(v) == 0 and v == int(v)}


def _zero_seen(step: Step, answer: Expression | None, program: NamedProgram) -> Step:
    """The step, saying that it is zero and why, where only the answer in the user's own names shows it."""
    if step.note or answer is None or not is_zero(answer.node):
        return step
    output = resolve(program.symbol[step.of], program.without(step.wrt))
    note = why_zero(step.of, step.wrt, output, program.symbol[step.wrt])
    return replace(step, closed_form=answer, note=note)


def _at(result: DeriveResult, at: Mapping[str, Any]) -> DeriveResult:
    """The result with the value of every step at a point."""
    values = result.values(**at)
    return replace(result, steps=tuple(replace(s, value=values[s.symbol]) for s in result.steps))


def _choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1, 0.4) or allowed
        raise ChainruleError(
            f"unknown {name} {value!r}",
            given=repr(value),
            required=f"one of {', '.join(allowed)}",
            instead=f'{name}="{near[0]}"',
        )
