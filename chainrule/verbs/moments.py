"""``moments``: expectations before anything runs, as formulas or as numbers, with the proof.

For a formula, ``given`` says the laws of its variables; the result is symbolic where a closed form exists. For a
model, see :mod:`chainrule.verbs.model_moments`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, FormulaError, MissingExtraError
from chainrule.frontends.formula import parse, parse_program
from chainrule.interpreters import moments as propagation
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Dim, Node, apply, as_node, constant, rebuild
from chainrule.ir.moments import Moments, worst
from chainrule.verbs.defined import refuse_division_by_zero, refuse_unused
from chainrule.verbs.expression import Expression
from chainrule.verbs.moments_sampling import Sampling, sampled
from chainrule.verbs.notebook import axes_for, html_table, number, over_depth


@dataclass(frozen=True)
class Row:
    """Predicted moments of one module call.

    Attributes:
        name: in ``named_modules()``. module: class and sizes. op: what computes the output.
        mean, second: of the output's elements. grad_second: of their cotangents; None where unknown or no loss.
        band: interval for ``second`` in one draw of the weights (nine draws of ten); grad_band: for ``grad_second``.
        kind: exact ... unknown. why: the assumption of the last step.
        samples, positions: E[x x'] / E[x^2] of two samples at one position, and of two positions of one sample.
    """

    name: str
    module: str
    op: str
    mean: float | None
    second: float | None
    grad_second: float | None
    band: tuple[float, float] | None
    kind: str
    samples: float | None = None
    positions: float | None = None
    grad_band: tuple[float, float] | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class ParameterRow:
    """Predicted moments of one parameter and of its gradient.

    Attributes:
        name, shape: of the parameter. mean, second: of its elements. grad_second: of its gradient's elements.
        grad_band: nine draws of ten. kind: exact, approximate, probe or unknown.
    """

    name: str
    shape: tuple[int, ...]
    mean: float | None
    second: float | None
    grad_second: float | None
    grad_band: tuple[float, float] | None
    kind: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.__dict__, "shape": list(self.shape)}


@dataclass(frozen=True)
class Departure:
    """What an audit found: where a pass leaves its band, or a start that does not do what it should.

    Attributes:
        kind: vanishing, exploding, gain, logits, overflow, duplicate, residual. severity: error or warning.
        where: the first module or parameter. way: forward or backward.
        measured: the figures. formula: the law that explains them. fix: what to write instead.
    """

    kind: str
    severity: str
    where: str
    way: str
    measured: str
    formula: str
    fix: str

    def __str__(self) -> str:
        head = f"{self.severity}: {self.kind} ({self.way}) at {self.where}: {self.measured}"
        return f"{head}\n    {self.formula}\n    fix: {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True, eq=False)
class Quantity:
    """Moments of one named quantity of a formula; None where the law does not determine them.

    Attributes:
        name: as in the formula. mean, second, variance: of its elements. kind: of ``second``: exact, approximate (it
            holds for wide layers, or takes values as independent), probe or unknown. mean_kind: the same of ``mean``;
            the variance is as good as the worse of the two.
    """

    name: str
    mean: Expression | None
    second: Expression | None
    variance: Expression | None
    kind: str
    mean_kind: str = ""

    def __str__(self) -> str:
        parts = [f"E[{self.name}^2] = {self.second.text if self.second else 'unknown'}"]
        without = "not determined by symmetry alone" if self.second is not None else "unknown"
        parts.append(f"E[{self.name}] = {self.mean.text if self.mean else without}")
        if self.variance is not None:
            parts.append(f"Var[{self.name}] = {self.variance.text}")
        if self.mean is None or self.mean_kind in ("", self.kind):
            return "   ".join(parts) + f"   ({self.kind})"
        kinds = (self.kind, self.mean_kind, worst(self.kind, self.mean_kind))
        return "   ".join(f"{part} ({kind})" for part, kind in zip(parts, kinds, strict=False))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        shown = {
            k: (e.text if e is not None else None)
            for k, e in (("mean", self.mean), ("second", self.second), ("variance", self.variance))
        }
        return {"name": self.name, **shown, "kind": self.kind, "mean_kind": self.mean_kind or self.kind}


@dataclass(frozen=True, eq=False)
class MomentsResult:
    """``m["b"]`` is a quantity of a formula or a row of a model; ``m.steps`` the proof; ``m.rows`` a model's table.

    Attributes:
        rows: of a model, one per module call. given: the laws, as they were stated. steps: the proof, line by line.
        values: of a formula, name -> Quantity. parameters: of a model, every weight and its gradient.
        findings: what an audit of a model finds.
    """

    rows: tuple[Row, ...]
    given: tuple[str, ...]
    steps: tuple[str, ...]
    values: Mapping[str, Quantity] = field(repr=False)
    parameters: tuple[ParameterRow, ...] = ()
    findings: tuple[Departure, ...] = ()
    question: tuple[Any, ...] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        found = self.calls(name)
        if not found:
            known = [*self.values, *(r.name for r in self.rows)]
            raise ChainruleError(f"no moments of {name!r}", given=name, required=f"one of {', '.join(known)}")
        return found[-1]

    def calls(self, name: str) -> tuple[Row, ...]:
        """All calls of one module, in order."""
        return tuple(r for r in self.rows if r.name == name)

    def sampled(self, draws: int = 4000, seed: int = 0) -> tuple[Sampling, ...]:
        """Every expectation of a formula against seeded draws, names of dimensions and parameters as numbers.

        Raises:
            ChainruleError: the result is that of a model.

        >>> import chainrule as cr
        >>> m = cr.moments("b = relu(a)", given={"a": "symmetric(0, sigma^2)"})
        >>> all(s.agrees for s in m.sampled())
        True
        """
        if not self.question:
            raise ChainruleError("only the moments of formulas are sampled", required="a formula with given=...")
        return sampled(*self.question, values=self.values, draws=draws, seed=seed)

    def parameter(self, name: str) -> ParameterRow:
        """The row of one parameter.

        Raises:
            ChainruleError: no parameter of this name.
        """
        for row in self.parameters:
            if row.name == name:
                return row
        known = ", ".join(r.name for r in self.parameters)
        raise ChainruleError(f"no parameter {name!r}", given=name, required=f"one of {known}")

    def __str__(self) -> str:
        if self.values:
            lines = [f"given {line}" for line in self.given]
            lines += [f"  {step}" for step in self.steps]
            return "\n".join([*lines, *map(str, list(self.values.values())[-1:])])
        head = ("name", "module", "E[x]", "E[x^2]", "E[g^2]", "nine draws of ten", "kind")
        body = [
            (
                r.name or "(model)",
                r.module,
                _shown(r.mean),
                _shown(r.second),
                _shown(r.grad_second),
                f"{_shown(r.band[0])} .. {_shown(r.band[1])}" if r.band else "",
                r.kind,
            )
            for r in self.rows
        ]
        widths = [max(len(row[k]) for row in [head, *body]) for k in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]]
        return "\n".join([*lines, *map(str, self.findings)])

    def plot(self, ax: Any = None) -> Any:
        """A model's mean squares over depth, values and gradients with nine draws of ten; returns the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        ax, names = axes_for(ax), [r.name for r in self.rows]
        over_depth(ax, names, [r.second for r in self.rows], "E[x^2]", "tab:blue", [r.band for r in self.rows])
        gradients, bands = [r.grad_second for r in self.rows], [r.grad_band for r in self.rows]
        over_depth(ax, names, gradients, "E[(dL/dx)^2]", "tab:orange", bands)
        if names:
            ax.legend(frameon=False)
        return ax

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<pre>{escape(str(self))}</pre>"
        head = ("layer", "module", "mean", "mean square", "of the gradient", "nine draws of ten", "how")
        rows = [
            (r.name or "(model)", r.module, number(r.mean), number(r.second), number(r.grad_second),
             f"{r.band[0]:.3g} to {r.band[1]:.3g}" if r.band else "", r.kind)
            for r in self.rows
        ]  # fmt: skip
        return html_table(head, rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.moments/1",
            "given": list(self.given),
            "steps": list(self.steps),
            "values": {n: q.to_dict() for n, q in self.values.items()},
            "rows": [r.to_dict() for r in self.rows],
            "parameters": [r.to_dict() for r in self.parameters],
            "findings": [f.to_dict() for f in self.findings],
        }


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def moments(
    source: Any,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    *,
    given: Mapping[str, str] | None = None,
    shapes: Mapping[str, Any] | None = None,
    weights: Mapping[str, tuple[float, float]] | None = None,
) -> MomentsResult:
    """First and second moments of a formula's quantities, or of every module of a model, without running it.

    Args:
        source: text of the formula language with ``given``, or a model (or Case) with batch and loss.
        batch, loss, optimizer: of a model, as for all verbs; the optimizer is not read.
        given: variable -> law: ``symmetric(0, sigma^2)``, ``normal(mu, sigma^2)``, ``uniform(a, b)``, or for weights
            ``iid(0, s^2)``. Variables without a law are given numbers.
        shapes: dimensions of variables, as in :func:`chainrule.derive`.
        weights: of a model, parameter -> (mean, mean square) to assume in place of the tensor's own.

    Returns:
        MomentsResult.

    Raises:
        FormulaError: the formula or a law. UnsupportedOpError, ModelError: a model that cannot be traced.

    >>> import chainrule as cr
    >>> m = cr.moments("b = relu(a)", given={"a": "symmetric(0, sigma^2)"})
    >>> m["b"].second.text, m["b"].mean
    ('sigma^2 / 2', None)
    """
    if not isinstance(source, str):
        try:  # models need torch, formulas must work without
            from chainrule.verbs.model_moments import model_moments
        except ModuleNotFoundError as error:
            raise MissingExtraError("moments of a model", error.name or "torch", "torch") from error
        return model_moments(source, batch, loss, optimizer, weights or "weights")
    program = parse_program(source, shapes)
    refuse_division_by_zero(program)
    refuse_unused(program, shapes or {})
    laws = dict(given or {})
    leaves = {n.params["name"]: n for n in program.graph.inputs}
    for name in laws:
        if name not in leaves:
            raise FormulaError(
                f"a law for {name!r}, which the formula does not read", required=f"one of {', '.join(leaves)}"
            )
    dimensions = {d for n in leaves.values() for s in n.shape if isinstance(s, Dim) for d in s.names}
    sizes = {d: as_node(Dim(d)) for d in dimensions - set(leaves)}
    states = {leaf: law_of(name, laws[name], sizes) if name in laws else _fixed(leaf) for name, leaf in leaves.items()}
    named = [(s.name or "y", s.node) for s in program.statements]
    image, found = _propagated([node for _, node in named], states)
    if any(not found[image[node]].known for _, node in named):  # norm(a)^2 is a sum of squares
        shorter = [(name, node if found[image[node]].known else simplify(node)) for name, node in named]
        other_image, other = _propagated([node for _, node in shorter], states)
        if sum(other[other_image[n]].known for _, n in shorter) > sum(found[image[n]].known for _, n in named):
            named, image, found = shorter, other_image, other
    values, steps = {}, []
    names = {image[node]: name for name, node in named}
    for node, state in found.items():
        if node.inputs and node.type.is_float and state.why:
            shown = names.get(node) or text(node, {n: s for n, s in names.items() if n is not node})
            if state.second is not None:
                why = state.why
                if state.taken is not None:
                    wide = names.get(state.taken) or text(state.taken, names)
                    where = f"for E[{shown}], " if state.kind == "exact" else ""
                    exact = "exact for wide layers" if state.taken.inputs else "iid does not say so"
                    why += f"; {where}{wide} is taken as normal: {exact}"
                steps.append(f"E[{_squared(shown)}] = {_expression(state.second).text}: {why}")
            else:
                steps.append(f"E[{_squared(shown)}] is unknown: {state.why}")
    for name, node in named:
        values[name] = _quantity(name, found[image[node]])
    shown_laws = tuple(f"{name} ~ {law}" for name, law in laws.items())
    return MomentsResult((), shown_laws, tuple(steps), values, question=(source, shapes, laws))


def _propagated(
    nodes: Sequence[Node], states: Mapping[Node, Moments]
) -> tuple[Mapping[Node, Node], Mapping[Node, Moments]]:
    image = propagation.expanded(nodes)
    return image, propagation.forward([image[node] for node in nodes], states, strict=True)


def _squared(name: str) -> str:
    return f"{name}^2" if re.fullmatch(r"\w+", name) else f"({name})^2"


def _fixed(leaf: Node) -> Moments:
    """A variable without a law is a given number."""
    return Moments(leaf, leaf * leaf, law="given", why="given")


def _expression(value: Any) -> Expression:
    node = simplify(value) if isinstance(value, Node) else constant(float(np.mean(value)))
    return Expression(rebuild([node], _rounded)[node])


def _rounded(node: Node, inputs: tuple[Node, ...]) -> Node:
    """Numbers with 12 significant digits: quadrature and sums of floats give no more."""
    if node.number is not None and isinstance(node.number, float) and not node.type.rank:
        return constant(float(f"{node.number:.12g}"), node.type.dtype)
    return node if inputs == node.inputs else apply(node.op, *inputs, **node.params)


def _quantity(name: str, state: Moments) -> Quantity:
    moments: tuple[Any, Any] = (state.mean, state.second)
    if all(m is not None and not isinstance(m, Node) for m in moments):
        first, square = (float(np.mean(m)) for m in moments)
        spread = float(np.mean(np.asarray(state.second) - np.asarray(state.mean) ** 2))
        first = 0.0 if abs(first) < 1e-14 * np.sqrt(square) else first
        spread = 0.0 if abs(spread) < 1e-14 * square else spread
        return Quantity(
            name, _expression(first), _expression(square), _expression(spread), state.kind, state.kind_of_mean
        )
    mean = None if state.mean is None else _expression(state.mean)
    second = None if state.second is None else _expression(state.second)
    variance = None
    if state.mean is not None and state.second is not None:
        variance = _expression(as_node(state.second) - as_node(state.mean) * as_node(state.mean))
    return Quantity(name, mean, second, variance, state.kind, state.kind_of_mean)


# ---- laws --------------------------------------------------------------------------------------------------
_LAW = re.compile(r"\s*([a-z]+)\s*\((.*)\)\s*$", re.S)
_LAWS = ("symmetric", "normal", "uniform", "iid")


def law_of(name: str, law: str, sizes: Mapping[str, Node] | None = None) -> Moments:
    """The moments that a law such as ``normal(mu, sigma^2)`` states; ``sizes``: what the names of dimensions mean.

    Raises:
        FormulaError: not one of the laws, or not two arguments.
    """
    match = _LAW.match(law)
    arguments = _arguments(match.group(2)) if match else []
    if match is None or match.group(1) not in _LAWS or len(arguments) != 2:
        raise FormulaError(
            f"the law of {name!r} is not understood",
            given=law,
            required="symmetric(mean, variance), normal(mean, variance), uniform(from, to) or iid(mean, variance)",
            instead="symmetric(0, sigma^2)",
        )
    kind, source = match.group(1), frozenset({name})
    a, b = (simplify(parse(argument, given=sizes).outputs[-1]) for argument in arguments)
    low, high = _plain(a), _plain(b)
    bounds = None
    if kind == "uniform":
        if not isinstance(low, Node) and not isinstance(high, Node):
            if low > high:
                raise FormulaError(
                    f"the lower end of the law of {name} is above the upper",
                    given=law.strip(),
                    required="uniform(from, to)",
                )
            bounds = (low, high)
        mean, second = simplify((a + b) / 2.0), simplify((a * a + a * b + b * b) / 3.0)
    else:
        if not isinstance(high, Node) and high < 0:
            raise FormulaError(
                f"the variance of {name} is negative", given=law.strip(), required="a variance of at least 0"
            )
        mean, second = a, simplify(b + a * a)
    mean, second = _plain(mean), _plain(second)
    if bounds is not None:
        mean, second = (low + high) / 2, (low * low + low * high + high * high) / 3
    centred = mean == 0 if not isinstance(mean, Node) else mean.number == 0
    laws = {
        "symmetric": "symmetric",
        "normal": "normal",
        "uniform": "symmetric" if centred else "any",
        "iid": "normal",
    }
    return Moments(
        mean,
        second,
        law="uniform" if bounds is not None else laws[kind] if centred or kind in ("normal", "iid") else "any",
        limit="" if kind != "iid" else "symmetric" if centred else "any",
        sources=source,
        odd=source if centred else frozenset(),
        fresh=kind == "iid",
        independent=True,
        bounds=bounds,
        why=f"{name} ~ {law.strip()}",
    )


def _plain(node: Node) -> Any:
    return float(node.number) if node.number is not None else node


def _arguments(text_: str) -> Sequence[str]:
    """The arguments between commas outside brackets."""
    parts, depth = [""], 0
    for character in text_:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [p.strip() for p in parts if p.strip()]
