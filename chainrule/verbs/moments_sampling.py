"""Moments of a formula held against seeded draws: ``m.sampled()``.

Names of dimensions and parameters of laws get numbers; the variables are drawn from their laws (a symmetric law, which
states no more than its variance, as a uniform one), the formula is evaluated as it is written, and every expectation
that was found is compared with the mean over the draws.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.frontends.formula import parse, parse_program
from chainrule.ir import Dim, Node, toposort

_ERRORS = 4.5  # standard errors within which a sample agrees


@dataclass(frozen=True)
class Sampling:
    """One expectation, held against its mean over the draws.

    Attributes:
        name: of the quantity. power: 1 for the mean, 2 for the mean square. predicted, measured: the two.
        error: standard error of the mean over the draws.
    """

    name: str
    power: int
    predicted: float
    measured: float
    error: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within 4.5 standard errors."""
        return abs(self.predicted - self.measured) <= _ERRORS * self.error + 1e-9 * abs(self.predicted)

    def __str__(self) -> str:
        power = "^2" if self.power == 2 else ""
        verdict = "agrees" if self.agrees else "DIFFERS"
        return (
            f"E[{self.name}{power}] = {self.predicted:.6g}, sampled {self.measured:.6g} +- {self.error:.2g}: {verdict}"
        )


def sampled(
    source: str,
    shapes: Mapping[str, Any] | None,
    laws: Mapping[str, str],
    values: Mapping[str, Any],
    draws: int,
    seed: int,
) -> tuple[Sampling, ...]:
    """Every expectation of ``values`` against ``draws`` seeded draws."""
    program = parse_program(source, shapes)
    leaves = {n.params["name"]: n for n in program.graph.inputs}
    generator = np.random.default_rng(seed)
    names = sorted({s for n in leaves.values() for d in n.shape if isinstance(d, Dim) for s in d.names})
    numbers: dict[str, float] = {name: float(3 + k) for k, name in enumerate(names)}
    sized = {name: tuple(_size(d, numbers) for d in leaf.shape) for name, leaf in leaves.items()}
    concrete = parse_program(source, {n: ",".join(map(str, s)) for n, s in sized.items() if s}) if names else program
    parts = {name: _law(law) for name, law in laws.items()}
    for _, arguments in parts.values():
        for argument in arguments:
            for leaf in parse(argument, given={n: parse(n).outputs[-1] for n in names}).inputs:
                numbers.setdefault(leaf.params["name"], 0.6 + 0.15 * len(numbers))
    fixed = {n: 0.5 + generator.random(sized[n]) for n in leaves if n not in laws}
    numbers |= {n: float(v) for n, v in fixed.items() if np.ndim(v) == 0}
    inputs = {n.params["name"]: n for n in concrete.graph.inputs}
    wanted = {s.name or "y": s.node for s in concrete.statements}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in values}
    for _ in range(draws):
        table: dict[Node, Any] = {}
        for name, leaf in inputs.items():
            if name in parts:
                table[leaf] = _drawn(*parts[name], numbers, sized[name], generator)
            else:
                table[leaf] = fixed[name]
        _evaluate(list(wanted.values()), table)
        for name, node in wanted.items():
            value = np.asarray(table[node], dtype=float)
            rows[name].append((float(np.mean(value)), float(np.mean(value**2))))
    found = []
    for name, quantity in values.items():
        samples = np.array(rows[name])
        for power, expression in ((1, quantity.mean), (2, quantity.second)):
            if expression is None:
                continue
            given = {*names, *(i.params["name"] for i in expression.graph.inputs)}
            predicted = np.mean(expression.evaluate(**{k: v for k, v in {**fixed, **numbers}.items() if k in given}))
            column = samples[:, power - 1]
            error = float(column.std(ddof=1)) / np.sqrt(draws)
            found.append(Sampling(name, power, float(predicted), float(column.mean()), error))
    return tuple(found)


def _evaluate(roots: Sequence[Node], table: dict[Node, Any]) -> None:
    """The values of these nodes and of what they need, put into the table."""
    for node in toposort(roots, stop=lambda n: n in table):
        if node not in table:
            table[node] = node.op.value(*(table[i] for i in node.inputs), **node.params)


def _size(d: Any, numbers: Mapping[str, float]) -> int:
    return int(numbers[next(iter(d.names))]) if isinstance(d, Dim) else int(d)


def _law(law: str) -> tuple[str, list[str]]:
    match = re.match(r"\s*([a-z]+)\s*\((.*)\)\s*$", law, re.S)
    assert match is not None  # it was read before
    parts, depth = [""], 0
    for character in match.group(2):
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return match.group(1), [p.strip() for p in parts]


def _drawn(
    kind: str, arguments: list[str], numbers: Mapping[str, float], shape: tuple[int, ...], generator: Any
) -> np.ndarray:
    a, b = (_number(argument, numbers) for argument in arguments)
    if kind == "uniform":
        return generator.uniform(min(a, b), max(a, b), shape)
    if kind == "symmetric":
        half = np.sqrt(3 * b)
        return a + generator.uniform(-half, half, shape)
    return a + np.sqrt(b) * generator.standard_normal(shape)


def _number(text: str, numbers: Mapping[str, float]) -> float:
    graph = parse(text)
    table: dict[Node, Any] = {i: numbers[i.params["name"]] for i in graph.inputs}
    _evaluate(graph.outputs, table)
    return float(table[graph.outputs[-1]])
